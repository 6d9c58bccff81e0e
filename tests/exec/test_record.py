"""Run directories, manifests, fingerprints and differences."""

from __future__ import annotations

import datetime
import enum
import json
import math
import subprocess
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from ptycho_exec.errors import SettingsError, SettingsWarning, UserError
from ptycho_exec.fields.model import Effect
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.files import file_sha256
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import ModuleTraits, resolve_plan
from ptycho_exec.record import (
    fingerprint,
    git_state,
    manifest_parts,
    new_run_dir,
    numerics,
    read_manifest,
    settings_from_manifest,
    values_of,
    write_manifest,
    write_settings_toml,
)
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind
from tests.exec.samples import COMPANIONS, SAMPLES


def settings(**values: object) -> ExecutionSettings:
    return ExecutionSettings.from_values(values)


@pytest.mark.parametrize("name", SAMPLES)
def test_fingerprint_changes_with_numerics_alone(name: str) -> None:
    companions = COMPANIONS.get(name, {})
    before, after = settings(**companions), settings(**companions, **{name: SAMPLES[name]})
    is_numerics = field_specs()[name].effect is Effect.NUMERICS
    assert (fingerprint(before) != fingerprint(after)) == is_numerics
    assert fingerprint(after) == fingerprint(numerics(after))


@pytest.mark.parametrize("name", SAMPLES)
def test_settings_survive_a_manifest_and_a_toml_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = settings(**{**COMPANIONS.get(name, {}), name: SAMPLES[name]})
    write_manifest(tmp_path / "manifest.json", **manifest_parts(before))
    write_settings_toml(tmp_path / "settings.toml", before)
    assert ExecutionSettings(settings_file=tmp_path / "settings.toml") == before
    monkeypatch.setenv(field_specs()[name].variable, "nonsense")
    assert settings_from_manifest(tmp_path) == before


def test_a_batch_that_follows_from_the_global_one_is_not_written_as_asked(tmp_path: Path) -> None:
    before = settings(global_batch_size=64).with_factory_defaults(batch_size=8)
    plan = resolve_plan(before, MachineFacts())
    write_manifest(tmp_path, **manifest_parts(before, plan=plan))
    write_settings_toml(tmp_path / "settings.toml", before)
    again = [settings_from_manifest(tmp_path), ExecutionSettings(settings_file=tmp_path / "settings.toml")]
    for after in again:
        assert resolve_plan(after, MachineFacts()).problems == ()
        assert resolve_plan(after, MachineFacts()).settings == plan.settings
        assert fingerprint(after) == fingerprint(before)
    asked = settings_from_manifest(tmp_path, {"batch_size": 4})
    assert [row.code for row in resolve_plan(asked, MachineFacts()).problems] == ["conflict"]
    assert read_manifest(tmp_path)["plan"]["totals"]["text"] == "64"


def test_manifest_says_what_ran_with_what_from_where(tmp_path: Path) -> None:
    wanted = settings(batch_size=8, num_workers="auto")
    facts = MachineFacts(cpus_logical=4)
    plan = resolve_plan(wanted, facts, ModuleTraits(has_validation=False))
    write_manifest(tmp_path, **manifest_parts(wanted, plan=plan), status="running")
    found = read_manifest(tmp_path)
    assert found["intent"] == values_of(wanted)
    assert found["origins"]["batch_size"]["kind"] == "argument"
    assert found["origins"]["batch_size"]["shadowed"][0]["kind"] == "default"
    assert found["plan"]["effective"]["num_workers"]["value"] == 3
    assert "4 usable CPUs" in found["plan"]["effective"]["num_workers"]["reason"]
    assert found["plan"]["effective"]["checkpoint_monitor_metric"]["value"] == "train_loss"
    assert found["facts"]["cpus_logical"] == 4
    assert found["fingerprint"] == fingerprint(wanted)
    assert found["versions"]["torch"]
    assert found["seeds"] == {"seed": 42}
    assert found["status"] == "running"


def test_a_manifest_is_updated_part_by_part(tmp_path: Path) -> None:
    write_manifest(tmp_path, status="running", timings={"train_s": 1.0})
    write_manifest(tmp_path, status="done")
    found = read_manifest(tmp_path)
    assert (found["status"], found["timings"]) == ("done", {"train_s": 1.0})


def test_values_that_json_lacks_become_text(tmp_path: Path) -> None:
    write_manifest(tmp_path, path=Path("a/b"), nan=float("nan"), odd={1})
    found = json.loads((tmp_path / "manifest.json").read_text())
    assert (found["path"], found["nan"], found["odd"]) == ("a/b", "nan", [1])


def test_a_planted_secret_is_written_nowhere(tmp_path: Path) -> None:
    wanted = settings(tracking_uri="https://user:hunter2@example.org/?token=hunter2", logger_backend="mlflow")
    plan = resolve_plan(wanted, MachineFacts())
    write_manifest(tmp_path, **manifest_parts(wanted, plan=plan), note=wanted.tracking_uri)
    write_settings_toml(tmp_path / "settings.toml", wanted)
    for path in tmp_path.iterdir():
        assert "hunter2" not in path.read_text()
    with pytest.raises(SettingsError, match="hides credentials in tracking_uri"):
        settings_from_manifest(tmp_path)


def test_a_credential_in_a_table_is_hidden_and_the_rest_of_the_table_comes_back(tmp_path: Path) -> None:
    table = {"min_epochs": 2, "model_registry": "https://user:hunter2@example.org"}
    for wanted in (settings(trainer=table), Lab.from_values({"trainer": table})):
        write_manifest(tmp_path, **manifest_parts(wanted, plan=resolve_plan(wanted, MachineFacts())))
        write_settings_toml(tmp_path / "settings.toml", wanted)
        assert [path.name for path in tmp_path.iterdir() if "hunter2" in path.read_text()] == []
        assert "hunter2" not in repr(wanted) + wanted.explain() + wanted._repr_html_()
        model = type(wanted)
        for given in ({}, {"trainer": {"min_steps": 3}}):
            with pytest.raises(SettingsError, match=r"hides credentials in trainer\.model_registry"):
                settings_from_manifest(tmp_path, given, model=model)
        anew = {"trainer": {"model_registry": table["model_registry"]}}
        again = settings_from_manifest(tmp_path, anew, model=model)
        assert (again, type(again)) == (wanted, model)
        assert "overrides" in again.origin_of("trainer.model_registry")
        assert again.origin_of("trainer.min_epochs") == f"argument {tmp_path / 'manifest.json'}"


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    write_manifest(tmp_path, status="running")
    assert list(tmp_path.iterdir()) == []


# --- a settings class of another program -------------------------------------------------------------------


class Mode(enum.Enum):
    RASTER = "raster"
    SPIRAL = "spiral"


class Lab(ExecutionSettings):
    """Fields of its own of every kind, and another effect of one that it inherits."""

    model_config = SettingsConfigDict(env_prefix="LAB_")
    program: ClassVar[str] = "lab"

    num_workers: int = 2
    beamline: str = "none"
    note: Annotated[str | None, Effect.UI] = None
    dwell_s: float | None = None
    limit: float = 1.0
    raw: Path = Path("raw")
    mode: Mode = Mode.RASTER
    frames: list[int] = Field(default_factory=list)
    parts: list[Path] = Field(default_factory=list)
    tags: frozenset[str] = frozenset()
    weights: dict[str, list[int | None]] = Field(default_factory=dict)
    day: datetime.date | None = None
    raw_bytes: bytes = b""


OWN: dict[str, Any] = {
    "num_workers": 3,
    "beamline": "26-ID",
    "note": "first",
    "dwell_s": 0.5,
    "limit": math.inf,
    "raw": Path("/data/raw"),
    "mode": Mode.SPIRAL,
    "frames": [1, 2],
    "parts": [Path("a"), Path("b")],
    "tags": frozenset("xyzabc"),
    "weights": {"a": [1, 2]},
    "day": datetime.date(2026, 11, 26),
    "raw_bytes": b"ab",
    "trainer": {"min_epochs": 2, "min_steps": None},
}
LAB = f"{__name__}:Lab"


@pytest.mark.parametrize("name", OWN)
def test_a_field_of_a_subclass_is_recorded_everywhere_and_comes_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, plain = Lab.from_values({name: OWN[name]}), Lab.from_values({})
    write_manifest(tmp_path, **manifest_parts(lab, plan=resolve_plan(lab, MachineFacts())))
    write_settings_toml(tmp_path / "settings.toml", lab)
    manifest = read_manifest(tmp_path)
    assert manifest["settings_class"]["name"] == LAB
    assert set(manifest["intent"]) == set(manifest["origins"]) == set(Lab.model_fields)
    assert manifest["origins"][name]["kind"] == "argument"
    assert (fingerprint(lab) != fingerprint(plain)) == (name != "note")
    assert manifest["fingerprint"] == fingerprint(lab)
    assert Lab(settings_file=tmp_path / "settings.toml") == lab
    monkeypatch.setenv(f"LAB_{name.upper()}", "nonsense")
    again = settings_from_manifest(tmp_path, model=Lab)
    assert (again, type(again), fingerprint(again)) == (lab, Lab, fingerprint(lab))


def test_a_plain_manifest_and_its_fingerprint_are_those_of_every_version(tmp_path: Path) -> None:
    parts = manifest_parts(settings())
    assert "settings_class" not in parts
    assert list(parts["intent"]) == list(field_specs())
    same = type("Same", (ExecutionSettings,), {"__module__": __name__}).from_values({})
    assert fingerprint(same) == parts["fingerprint"] == fingerprint(numerics(settings()))
    write_manifest(tmp_path, **manifest_parts(Lab.from_values({"beamline": "x"})))
    write_manifest(tmp_path, **parts)  # a run that goes on with the plain class
    assert settings_from_manifest(tmp_path) == settings()


def test_without_the_class_its_fields_are_left_out_and_named(tmp_path: Path) -> None:
    write_manifest(tmp_path, **manifest_parts(Lab.from_values({"beamline": "x", "seed": 3})))
    with pytest.warns(SettingsWarning, match=f"settings of {LAB} are left out: beamline, note") as caught:
        found = settings_from_manifest(tmp_path)
    assert (type(found), found.seed, caught[0].filename) == (ExecutionSettings, 3, __file__)
    (notice,) = found.notices
    assert (notice.level, notice.code) == ("note", "left-out")
    assert notice.fix == "pass the class: settings_from_manifest(..., model=Lab)"
    assert settings_from_manifest(tmp_path, model=Lab).beamline == "x"


def test_a_class_below_reads_the_manifest_of_one_above(tmp_path: Path) -> None:
    write_manifest(tmp_path, **manifest_parts(settings(seed=3)))
    lab = settings_from_manifest(tmp_path, model=Lab)
    assert (lab.seed, lab.beamline, lab.origin_of("beamline")) == (3, "none", "default")


def test_a_secret_of_a_subclass_is_written_nowhere_and_asked_for_again(tmp_path: Path) -> None:
    class Keyed(ExecutionSettings):
        key: SecretStr
        servers: list[str] = Field(default_factory=list)

    keyed = Keyed.from_values({"key": "hunter2", "servers": ["https://u:hunter2@example.org"]})
    write_manifest(tmp_path, **manifest_parts(keyed, plan=resolve_plan(keyed, MachineFacts())))
    write_settings_toml(tmp_path / "settings.toml", keyed)
    assert [path.name for path in tmp_path.iterdir() if "hunter2" in path.read_text()] == []
    assert "# key is left out: it holds credentials" in (tmp_path / "settings.toml").read_text()
    with pytest.raises(SettingsError, match="hides credentials in key, servers"):
        settings_from_manifest(tmp_path, model=Keyed)
    given = {"key": SecretStr("hunter2"), "servers": keyed.servers}
    assert settings_from_manifest(tmp_path, given, model=Keyed) == keyed


class Excluding(ExecutionSettings):
    """Settings with a field that is written nowhere."""

    program: ClassVar[str] = "excluding"
    model_config = SettingsConfigDict(env_prefix="EXCLUDING_")
    word: str = Field(default="", exclude=True)

    @field_validator("word")
    @classmethod
    def _lower(cls, value: str) -> str:
        return value.lower()


def test_an_excluded_field_is_written_nowhere_and_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXCLUDING_WORD", "Hunter2")
    given = Excluding()
    write_manifest(tmp_path, **manifest_parts(given, plan=resolve_plan(given, MachineFacts())))
    write_settings_toml(tmp_path / "settings.toml", given)
    assert [path.name for path in tmp_path.iterdir() if "unter2" in path.read_text()] == []
    assert "# word is left out: Field(exclude=True)" in (tmp_path / "settings.toml").read_text()
    assert read_manifest(tmp_path)["origins"]["word"]["place"] == "EXCLUDING_WORD"
    assert fingerprint(given) == read_manifest(tmp_path)["fingerprint"]
    with pytest.warns(SettingsWarning, match="word was set in that run") as caught:
        assert settings_from_manifest(tmp_path, model=Excluding).word == ""
    assert 'give it again: settings_from_manifest(..., {"word": ...})' in str(caught[0].message)
    assert settings_from_manifest(tmp_path, {"word": "hunter2"}, model=Excluding) == given


def test_an_excluded_field_that_nobody_set_is_not_missed(tmp_path: Path) -> None:
    write_manifest(tmp_path, **manifest_parts(Excluding.from_values({"seed": 3})))
    found = settings_from_manifest(tmp_path, model=Excluding)
    assert (found.seed, found.notices) == (3, ())


def test_what_toml_cannot_hold_is_left_out_with_a_line(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    write_settings_toml(path, Lab.from_values({"weights": {"a": [None]}, "raw_bytes": b"\xff"}))
    text = path.read_text()
    assert [name for name in OWN if f"# {name} is left out" in text] == ["weights", "raw_bytes"]
    assert Lab(settings_file=path) == Lab.from_values({})


def test_an_override_may_repair_what_the_manifest_has(tmp_path: Path) -> None:
    clipped = settings(gradient_clip_algorithm="agc", gradient_clip_val=0.01)
    write_manifest(tmp_path, **manifest_parts(clipped))
    found = settings_from_manifest(tmp_path, {"gradient_clip_val": 0.02})
    assert (found.gradient_clip_val, found.origins["gradient_clip_val"].shadowed[0].value) == (0.02, 0.01)
    assert found.origins["gradient_clip_val"].kind is Kind.OVERRIDE


@pytest.mark.parametrize(
    ("text", "words"), [(None, "cannot read the manifest"), ("{", "not JSON"), ("[]", "not a manifest")]
)
def test_a_bad_manifest_is_a_clear_error(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "manifest.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_manifest(path)
    assert "fix:      name the directory that the run was given" in str(caught.value)


def test_new_run_dir_makes_parents(tmp_path: Path) -> None:
    folder = new_run_dir(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []
    assert new_run_dir(folder) == folder


def test_new_run_dir_refuses_a_directory_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="not empty"):
        new_run_dir(tmp_path)


def test_new_run_dir_refuses_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    with pytest.raises(UserError, match="is a file"):
        new_run_dir(path)


def test_new_run_dir_below_a_file_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="cannot write"):
        new_run_dir(tmp_path / "x" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_new_run_dir_that_cannot_be_written_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        new_run_dir(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_git_state_of_a_checkout_and_of_none(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    for words in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", "--allow-empty"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    found = git_state(tmp_path)
    assert found is not None
    assert len(found["commit"]) == 40
    assert found["dirty"] is False


def test_file_sha256(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
