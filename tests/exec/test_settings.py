"""`ExecutionSettings` itself: well-formed, frozen, comparable, picklable, and silent about secrets."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from ptycho_exec.errors import SettingsError
from ptycho_exec.record import manifest_parts
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind

if TYPE_CHECKING:
    from conftest import Place
from tests.exec.makers import make


def test_the_old_name_is_the_same_class() -> None:
    import ptycho_exec

    assert ptycho_exec.PyTorchExecutionConfig is ExecutionSettings


def test_settings_cannot_be_changed() -> None:
    settings = make()
    with pytest.raises(SettingsError, match=r"use settings\.with_overrides\(batch_size=\.\.\.\)"):
        settings.batch_size = 3
    with pytest.raises(SettingsError, match="settings cannot be changed"):
        settings.bach_size = 3  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        settings.origins["seed"] = None  # type: ignore[index]
    assert settings.batch_size == 16


def test_the_origin_of_a_value_as_text(place: Place) -> None:
    settings = make(batch_size=8)
    assert settings.origin_of("batch_size") == settings.origins["batch_size"].describe()
    assert settings.origin_of("seed") == "default"
    assert settings.origin_of("no such field") == ""
    assert ExecutionSettings.model_construct().origin_of("seed") == ""


def test_origins_take_no_part_in_equality_hash_and_schema(place: Place) -> None:
    place.environ["PTYCHO_EXEC_BATCH_SIZE"] = "8"
    resolved, given = place.settings(), make(batch_size=8)
    assert resolved.origins["batch_size"] != given.origins["batch_size"]
    assert resolved == given
    assert hash(resolved) == hash(given)
    assert resolved != make(batch_size=9)
    assert resolved != "settings"
    assert "origins" not in json.dumps(ExecutionSettings.model_json_schema())
    assert set(resolved.model_dump()) == set(ExecutionSettings.model_fields)


def _echo(settings: ExecutionSettings) -> tuple[ExecutionSettings, str]:
    return settings, settings.origins["batch_size"].describe()


def test_origins_survive_pickling_copying_and_a_spawned_process(place: Place) -> None:
    place.write("ptycho_exec.toml", "batch_size = 8\n")
    settings = place.settings(profile="ci")
    others = [pickle.loads(pickle.dumps(settings)), copy.copy(settings), copy.deepcopy(settings)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        child, told = pool.apply(_echo, (settings,))
    assert told == settings.origins["batch_size"].describe()
    for other in (*others, child):
        assert other == settings
        assert dict(other.origins) == dict(settings.origins)


def test_model_copy_validates() -> None:
    settings = make(batch_size=8)
    assert settings.model_copy(update={"seed": 1}) == settings.with_overrides(seed=1)
    assert settings.model_copy() == settings
    for update in ({"batch_size": 0}, {"bach_size": 3}):
        with pytest.raises(SettingsError):
            settings.model_copy(update=update)


def test_overrides_are_validated_and_remember_what_they_replace() -> None:
    settings = make(batch_size=8).with_overrides(batch_size=4).with_overrides(batch_size=2, seed=0)
    chain = [(origin.kind, origin.value) for origin in settings.origins["batch_size"].shadowed]
    assert chain == [(Kind.OVERRIDE, 4), (Kind.ARGUMENT, 8), (Kind.DEFAULT, 16)]
    with pytest.raises(SettingsError, match="contradict"):
        settings.with_overrides(benchmark=True)


@pytest.fixture
def hostile(clean_process: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Our own variables, right and wrong; files that are broken; a profile that does not exist."""
    for name in ("PTYCHO_EXEC_BATCH_SIZE", "PTYCHO_EXEC_SEED"):
        monkeypatch.setenv(name, "77")
    monkeypatch.setenv("PTYCHO_EXEC_NONSENSE", "1")
    monkeypatch.setenv("PTYCHO_EXEC_PROFILE", "absent")
    monkeypatch.setenv("PTYCHO_EXEC_SETTINGS_FILE", "absent.toml")
    clean_process.write(".env", "PTYCHO_EXEC_SEED=78\nPTYCHO_EXEC not an assignment\n")
    clean_process.write("ptycho_exec.toml", "[[[")
    clean_process.write_user_file("seed = 79\n")
    return clean_process


def test_the_hostile_place_is_hostile(hostile: Place) -> None:
    with pytest.raises(SettingsError) as caught:
        ExecutionSettings()
    assert len(caught.value.findings) == 4  # the profile may stand in the broken file


def test_hermetic_ways_of_building_read_nothing(hostile: Place) -> None:
    class Holder(BaseModel):
        settings: ExecutionSettings

    values = {"batch_size": 8}
    settings = make(**values)
    text = json.dumps(values)
    same = [
        ExecutionSettings.model_validate(values),
        ExecutionSettings.model_validate(settings),
        ExecutionSettings.model_validate_json(text),
        settings.with_overrides(),
        settings.model_copy(),
        pickle.loads(pickle.dumps(settings)),
        Holder(settings=settings).settings,
    ]
    assert all(other == settings and other.seed == 42 for other in same)


def test_inside_another_model_settings_are_taken_as_they_stand(hostile: Place) -> None:
    """A constructor called by pydantic would resolve this place: what was written elsewhere would change."""

    class Job(BaseModel):
        settings: ExecutionSettings
        others: list[ExecutionSettings] = []

    settings = make(batch_size=8, devices=[0, 1], max_time="00:01:00:00")
    job = Job(settings=settings, others=[settings, make()])
    assert job.settings is settings
    again = Job.model_validate_json(job.model_dump_json())
    assert again == job
    assert Job(**json.loads(job.model_dump_json())) == job
    assert Job.model_validate({"settings": {"batch_size": 8}}).settings == make(batch_size=8)
    assert TypeAdapter(list[ExecutionSettings]).validate_python([{"batch_size": 8}]) == [make(batch_size=8)]
    assert TypeAdapter(ExecutionSettings).validate_json('{"batch_size": 8}') == make(batch_size=8)
    assert again.settings.origins["batch_size"].kind is Kind.ARGUMENT
    for copied in (copy.deepcopy(job), copy.copy(job), job.model_copy(deep=True)):
        assert copied == job
        assert copied.settings.origins == settings.origins


def test_what_is_wrong_inside_another_model_is_told_by_it() -> None:
    class Job(BaseModel):
        settings: ExecutionSettings

    for values, words in (
        ({"sed": 1}, "unknown setting 'sed'"),
        ({"seed": "x"}, "seed = 'x' is not allowed"),
        ({"deterministic": True, "benchmark": True}, "contradict each other"),
        (7, "must be a mapping"),
        (None, "must be a mapping"),
    ):
        with pytest.raises(ValidationError, match=words):
            Job.model_validate({"settings": values})


def test_an_instance_rebuilt_from_a_manifest_reads_nothing(
    hostile: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All of Lightning's variables, ours, broken files, another working directory: nothing of it counts."""
    import inspect

    from lightning.pytorch import Trainer

    from ptycho_exec.record import manifest_parts, settings_from_manifest, write_manifest

    settings = make(batch_size=8, gradient_clip_val=0.5, devices=[0, 1])
    write_manifest(tmp_path / "manifest.json", **manifest_parts(settings))
    names = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
    assert len(names) >= 39
    for name in names:
        monkeypatch.setenv(f"PL_TRAINER_{name.upper()}", "3")
    monkeypatch.chdir("/")
    rebuilt = settings_from_manifest(tmp_path / "manifest.json")
    assert rebuilt == settings
    kinds = {origin.kind for origin in rebuilt.origins.values()}
    assert kinds == {Kind.ARGUMENT}
    assert rebuilt.origins["batch_size"].place == str(tmp_path / "manifest.json")


def test_the_constructor_reads_its_place(clean_process: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTYCHO_EXEC_BATCH_SIZE", "7")
    settings = ExecutionSettings(seed=1, overrides={"accum_steps": 2}, profile="ci", factory_defaults={})
    found = (settings.batch_size, settings.seed, settings.accum_steps, settings.accelerator)
    assert found == (7, 1, 2, "cpu")


TOKEN = "s3cr3t-t0ken"


ADDRESSES = [
    f"https://user:{TOKEN}@mlflow.example/api",
    f"https://{TOKEN}@mlflow.example",
    f"https://user:{TOKEN}@ss@mlflow.example",
    f"https://user:{TOKEN}/with/slashes@mlflow.example",
    f"https://mlflow.example/?access_token={TOKEN}&x=1",
    f"https://mlflow.example/#api-key={TOKEN}",
    f"user:{TOKEN}@mlflow.example:5000",
    f"//user:{TOKEN}@mlflow.example",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_planted_token_never_shows(address: str, place: Place) -> None:
    place.environ["PTYCHO_EXEC_TRACKING_URI"] = address
    place.write("ptycho_exec.toml", f'tracking_uri = "{address}"\n')
    settings = place.settings(arguments={"tracking_uri": address}, profile="ci")
    origin = settings.origins["tracking_uri"]
    assert settings.tracking_uri == address
    resolution = place.resolve(arguments={"tracking_uri": address})
    loaded = pickle.loads(pickle.dumps(settings))
    shown = [repr(settings), str(settings), repr(origin), repr(loaded), repr(loaded.origins)]
    shown += [json.dumps(origin.to_json()), repr(resolution), str(dict(settings.origins))]
    shown += [repr(list(settings.__rich_repr__())), format(settings), repr([settings])]
    assert not [text for text in shown if TOKEN in text]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("wrap", [lambda a: [a], lambda a: {a: a}, lambda a: a.encode(), lambda a: (a, a)])
def test_a_planted_token_never_shows_in_errors(address: str, wrap: Any, place: Place) -> None:
    place.environ["PTYCHO_EXEC_SEED"] = address
    place.write("ptycho_exec.toml", f'batch_size = "{address}"\nextra = "{address}"\n')
    place.write(".env", f"PTYCHO_EXEC_NONSENSE={address}\nseed={address}\nPTYCHO_EXEC {address}\n")
    with pytest.raises(SettingsError) as caught:
        place.settings(arguments={"tracking_uri": wrap(address)})
    error = caught.value
    assert len(error.findings) >= 6
    assert TOKEN not in f"{error!s}{error!r}{error.args}{error.findings}{error.__context__}"
    with pytest.raises(SettingsError) as caught:
        make().tracking_uri = address
    assert TOKEN not in str(caught.value)


def test_a_planted_token_never_shows_in_an_excerpt(place: Place) -> None:
    for address in ADDRESSES:
        place.write("ptycho_exec.toml", f'tracking_uri = "{address}\n')
        findings = place.resolve().findings
        assert findings[0].excerpt.startswith("tracking_uri = ")
        assert TOKEN not in findings[0].render()


def test_a_planted_token_never_shows_in_a_manifest(place: Place) -> None:
    from ptycho_exec.record import manifest_parts, write_manifest, write_settings_toml

    for number, address in enumerate(ADDRESSES):
        settings = make(tracking_uri=address)
        write_manifest(place.cwd / f"{number}.json", **manifest_parts(settings))
        write_settings_toml(place.cwd / f"{number}.toml", settings)
        written = [(place.cwd / f"{number}.{kind}").read_text() for kind in ("json", "toml")]
        assert not [text for text in written if TOKEN in text]
        assert "***" in written[0]


def test_addresses_without_credentials_are_shown_as_they_are() -> None:
    for address in (
        "http://mlflow.example:5000",
        "http://mlflow.example/#/experiments/3",
        "databricks",
        "databricks://profile",
        "file:///data/mlruns",
        "sqlite:////data/mlflow.db",
        "http://[::1]:5000/",
        "C:\\runs\\a",
        "https://host:8443/path/a@b",
    ):
        assert address in repr(make(tracking_uri=address)).replace("\\\\", "\\")


def test_notes_about_the_sources_stay_with_settings_that_are_made_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PTYCHO_EXEC_SEED", "")
    settings = ExecutionSettings()
    made = (
        settings.with_overrides(batch_size=3),
        settings.with_factory_defaults(batch_size=3),
        settings.with_recorded({"batch_size": 3}, place="model"),
        settings.model_copy(update={"batch_size": 3}),
    )
    assert [[note.code for note in other.notices] for other in made] == [["empty-variable"]] * 4


def test_a_deprecated_field_warns_who_reads_it_and_not_who_derives_or_shows_settings() -> None:
    class Aging(ExecutionSettings):
        old: int = Field(default=1, deprecated="use something else")

    settings = Aging.from_values({"old": 2})  # any warning is an error in these tests
    derived = (
        settings.with_overrides(seed=1).with_factory_defaults(batch_size=4).model_copy(update={"seed": 2})
    )
    assert "old = 2" in derived.explain("old")
    assert "<th>old</th><th>2</th>" in derived._repr_html_()
    assert manifest_parts(derived)["intent"]["old"] == 2
    with pytest.warns(DeprecationWarning, match="use something else"):
        assert derived.old == 2
