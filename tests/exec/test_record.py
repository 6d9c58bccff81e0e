"""Run directories, manifests, fingerprints and differences."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ptycho_exec.errors import SettingsError, UserError
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


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    write_manifest(tmp_path, status="running")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"), [(None, "cannot read the manifest"), ("{", "not JSON"), ("[]", "not a manifest")]
)
def test_a_bad_manifest_is_a_clear_error(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "manifest.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_manifest(path)


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
