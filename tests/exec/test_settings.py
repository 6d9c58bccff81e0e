"""`ExecutionSettings` itself: well-formed, frozen, comparable, picklable, and silent about secrets."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.model import CONFLICTS, malformed
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind

if TYPE_CHECKING:
    from conftest import Place

DESIGN_DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "precision": "32-true",
    "matmul_precision": "highest",
    "compile": False,
    "deterministic": True,
    "benchmark": False,
    "seed": 42,
    "batch_size": 16,
    "accum_steps": 1,
    "learning_rate": 1e-3,
    "scheduler": "Default",
    "gradient_clip_val": None,
    "gradient_clip_algorithm": "norm",
    "max_time": None,
    "limit_train_batches": None,
    "fast_dev_run": None,
    "num_workers": 0,
    "pin_memory": "auto",
    "persistent_workers": False,
    "prefetch_factor": None,
    "enable_checkpointing": True,
    "checkpoint_save_top_k": 1,
    "checkpoint_monitor_metric": "val_loss",
    "checkpoint_mode": "min",
    "early_stop_patience": 100,
    "enable_progress_bar": "auto",
    "logger_backend": "csv",
    "log_every_n_steps": 10,
    "inference_batch_size": None,
    "middle_trim": 0,
    "pad_eval": False,
    "on_unsupported": "error",
    "drift": "error",
}


def make(**values: Any) -> ExecutionSettings:
    return ExecutionSettings.from_values(values)


def test_defaults_are_those_of_the_design() -> None:
    settings = make()
    assert {name: getattr(settings, name) for name in DESIGN_DEFAULTS} == DESIGN_DEFAULTS


def test_every_default_is_accepted_when_it_is_given() -> None:
    defaults = {name: spec.default for name, spec in field_specs().items()}
    assert make(**defaults) == make()
    assert json.loads(json.dumps(make().model_dump(mode="json"))) == make().model_dump(mode="json")


def test_the_old_name_is_the_same_class() -> None:
    import ptycho_exec

    assert ptycho_exec.PyTorchExecutionConfig is ExecutionSettings


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("accelerator", ["tpu", "CPU", "", 0, None, True]),
        ("devices", [0, -1, "2", [], [-1], [0, 0], [True], [[0]], True, 1.5, None, 10**10, {"a": 1}]),
        ("num_nodes", [0, 1.5, "1", True, None]),
        ("strategy", ["dp", "deepspeed_stage_4", ""]),
        ("precision", [16, 32, "16", "bf16", "32"]),
        ("compile", [1, 0, "true", None]),
        ("deterministic", [1, 0, 1.0, "true", "yes", "WARN", None]),
        ("seed", [-1, 2**32, 1.5, "1", True, None, 10**400]),
        ("batch_size", [0, -1, 1.5, "8", True, None, float("nan"), float("inf"), 10**400, [1], {}]),
        ("learning_rate", [0, -1e-3, 11, float("nan"), float("inf"), "1e-3", True, None, 10**400]),
        ("gradient_clip_val", [0, -1.0, float("inf"), "1", True]),
        ("max_time", ["1h", "24:00:00", "00:24:00:00", "00:00:60:00", "00:00:00:00", 3600, ""]),
        ("limit_train_batches", [0, 0.0, -1, 1.5, True, "0.5", float("nan")]),
        ("fast_dev_run", [0, True, "1"]),
        ("num_workers", [-1, "Auto", True, None]),
        ("pin_memory", [1, "true", None]),
        ("checkpoint_save_top_k", [-2, 1.5, True]),
        ("checkpoint_monitor_metric", ["", "val loss", "1loss", None]),
        ("checkpoint_mode", ["minimum", None]),
        ("logger_backend", ["neptune", True, ""]),
        ("experiment_name", ["", None, 3]),
        ("tracking_uri", ["", 3, b"http://x"]),
        ("on_unsupported", ["ignore", None]),
        ("drift", ["ignore", None]),
    ],
)
def test_malformed_values_are_refused(name: str, values: list[Any]) -> None:
    for value in values:
        assert malformed({name: value}) == [name], value
        with pytest.raises(SettingsError, match=f"{name} = .* is not allowed") as caught:
            make(**{name: value})
        finding = caught.value.findings[0]
        assert len(caught.value.findings) == 1
        assert finding.where == "argument from_values()"
        assert finding.expected == field_specs()[name].expected()
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("batch_size", 8.0, 8),
        ("devices", [0, 1], (0, 1)),
        ("devices", [1.0], (1,)),
        ("devices", 2.0, 2),
        ("learning_rate", 1, 1.0),
        ("limit_train_batches", 1, 1),
        ("limit_train_batches", 1.0, 1.0),
        ("limit_train_batches", 5.0, 5),
        ("early_stop_patience", "None", None),
        ("logger_backend", "null", None),
        ("max_time", "99:23:59:59", "99:23:59:59"),
    ],
)
def test_what_json_and_toml_cannot_tell_apart_is_one_value(name: str, given: Any, value: Any) -> None:
    found = getattr(make(**{name: given}), name)
    assert (found, type(found)) == (value, type(value))


def test_whole_numbers_of_numpy_become_plain_ones() -> None:
    import numpy as np

    settings = make(batch_size=np.int64(4), devices=[np.int32(1)], learning_rate=np.float64(0.5))
    assert [type(value) for value in (settings.batch_size, settings.devices[0])] == [int, int]  # type: ignore[index]
    assert json.loads(settings.model_dump_json())["learning_rate"] == 0.5


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        ({"batch_size": "8"}, "write batch_size=8, without quotes"),
        ({"compile": "yes"}, "write compile=true, without quotes"),
        ({"accelerator": "cdua"}, 'did you mean accelerator="cuda"?'),
        ({"deterministic": "WARN"}, 'did you mean deterministic="warn"?'),
        ({"batch_size": " "}, "write another value, or remove it for the default, 16"),
        ({"batch_size": "nan"}, "write another value, or remove it for the default, 16"),
        ({"learning_rate": "nan"}, "write another value, or remove it for the default, 0.001"),
    ],
)
def test_the_remedy_fits_the_mistake(value: dict[str, Any], fix: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make(**value)
    assert caught.value.findings[0].fix == fix


def test_a_value_of_a_foreign_type_names_its_type() -> None:
    from decimal import Decimal
    from pathlib import Path

    with pytest.raises(SettingsError, match=r"tracking_uri = /x \(of type PosixPath\) is not allowed"):
        make(tracking_uri=Path("/x"))
    with pytest.raises(SettingsError, match=r"batch_size = 2\.5 \(of type Decimal\) is not allowed"):
        make(batch_size=Decimal("2.5"))


def test_an_enormous_value_is_shortened_in_the_message() -> None:
    with pytest.raises(SettingsError, match=r"10{59}\.\.\. \(401 characters\) is not allowed"):
        make(batch_size=10**400)


# --- contradictions -------------------------------------------------------------------------------------

CLASHES: list[dict[str, Any]] = [
    {"deterministic": True, "benchmark": True},
    {"gradient_clip_algorithm": "agc"},
    {"gradient_clip_algorithm": "value", "gradient_clip_val": None},
    {"accelerator": "cpu", "devices": [0]},
    {"accelerator": "cpu", "strategy": "fsdp"},
    {"accelerator": "mps", "strategy": "deepspeed_stage_3_offload"},
    {"accelerator": "mps", "precision": "64-true"},
]


@pytest.mark.parametrize("values", CLASHES, ids=str)
def test_contradictions_show_both_sides_and_how_to_choose(values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        make(**values)
    (finding,) = caught.value.findings
    (rule,) = [rule for rule in CONFLICTS if rule.fix == finding.fix]
    assert all(f"{name} = " in finding.where for name in rule.fields)
    assert finding.what.startswith(" and ".join(rule.fields))


def test_every_contradiction_has_a_test() -> None:
    fixes = set()
    for values in CLASHES:
        with pytest.raises(SettingsError) as caught:
            make(**values)
        fixes |= {finding.fix for finding in caught.value.findings}
    assert fixes == {rule.fix for rule in CONFLICTS}


@pytest.mark.parametrize(
    "values",
    [
        {"deterministic": "warn", "benchmark": True},
        {"deterministic": False, "benchmark": True},
        {"gradient_clip_algorithm": "agc", "gradient_clip_val": 0.01},
        {"accelerator": "cpu", "devices": 2, "strategy": "ddp"},
        {"accelerator": "auto", "strategy": "fsdp", "devices": [0, 1]},
        {"num_nodes": 4},
        {"num_workers": 0, "persistent_workers": True, "prefetch_factor": 2},
        {"accelerator": "gpu", "precision": "16-mixed"},
    ],
    ids=str,
)
def test_what_only_a_machine_can_refuse_is_well_formed(values: dict[str, Any]) -> None:
    assert make(**values).model_fields_set >= set(values)


def test_two_contradictions_come_in_one_report() -> None:
    with pytest.raises(SettingsError) as caught:
        make(benchmark=True, gradient_clip_algorithm="agc")
    assert len(caught.value.findings) == 2


def test_a_contradiction_across_sources_names_both_places(place: Place) -> None:
    place.environ["PTYCHO_EXEC_BENCHMARK"] = "yes"
    place.write("ptycho_exec.toml", "\ndeterministic = true\n")
    with pytest.raises(SettingsError) as caught:
        place.settings()
    (finding,) = caught.value.findings
    assert "benchmark = true (environment PTYCHO_EXEC_BENCHMARK)" in finding.where
    assert f"deterministic = true (project-file ({place.cwd}/ptycho_exec.toml:2))" in finding.where
    assert finding.line == 2


# --- frozen, equal, copied, pickled ---------------------------------------------------------------------


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


def test_an_error_survives_pickling() -> None:
    with pytest.raises(SettingsError) as caught:
        make(bach_size=1, seeed=2)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (type(copied), copied.findings, str(copied)) == (
        SettingsError,
        caught.value.findings,
        str(caught.value),
    )


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


# --- hermetic -------------------------------------------------------------------------------------------


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
    assert len(caught.value.findings) == 5


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


# --- secrets --------------------------------------------------------------------------------------------

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
