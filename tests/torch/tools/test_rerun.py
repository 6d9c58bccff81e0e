"""Runs repeated from their manifests in a hostile place: the same bits, or what exactly is not the same."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.trainer.trainer import Trainer as RealTrainer

from ptycho_exec.errors import DataError, SettingsError, UserError
from ptycho_torch.cli import main
from ptycho_torch.tools.rerun import Places, repeated, rerun, verify

TINY = ["--n-filters=4", "--depth=1", "--epochs=2", "--num-workers=1", "--accum-steps=2", "--seed=5"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan, a training on it and an inference with it."""
    folder = tmp_path_factory.mktemp("made")
    scan, run, out = folder / "scan.npz", folder / "run", folder / "out"
    assert main(["simulate", "--out", str(scan), "--n=32", "--patterns=40", "--photons=1e5"]) == 0
    assert main(["train", str(scan), "--out", str(run), *TINY]) == 0
    assert main(["infer", str(run), str(scan), "--out", str(out), "--middle-trim=16", "--refine=1"]) == 0
    return folder


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A directory and variables that would each change a run that looked at them."""
    (tmp_path / ".env").write_text("PTYCHO_EXEC_SEED=99\nPTYCHO_EXEC_BATCHSIZE=7\n")
    (tmp_path / "ptycho_exec.toml").write_text('batch_size = 3\nnonsense = "x"\n')
    (tmp_path / "pyproject.toml").write_text("[tool.ptycho_exec]\nlearning_rate = 0.5\n")
    parameters = set(inspect.signature(RealTrainer.__init__).parameters) - {"self"}
    variables = {f"PL_TRAINER_{name.upper()}": "7" for name in parameters}
    variables |= {"PTYCHO_EXEC_SEED": "13", "PTYCHO_EXEC_PRECISION": "64-true", "PTYCHO_EXEC_BATCHSIZE": "1"}
    variables |= {"PTYCHO_EXEC_PROFILE": "ci", "PTYCHO_EXEC_SETTINGS_FILE": "nowhere.toml"}
    variables |= {"PL_GLOBAL_SEED": "1", "PYTHONHASHSEED": "3", "XDG_CONFIG_HOME": str(tmp_path)}
    return tmp_path, variables


def command(place: Path, variables: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ptycho_torch", *words],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", ["run", "out"])
def test_a_manifest_alone_repeats_the_run_bit_for_bit_in_a_hostile_place(
    task: str, made: Path, hostile: tuple[Path, dict[str, str]]
) -> None:
    place, variables = hostile
    copied = place / "copied" / "manifest.json"
    copied.parent.mkdir()
    shutil.copy(made / task / "manifest.json", copied)
    done = command(place, variables, "rerun", str(copied), "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DIFFERS" not in done.stdout
    before, now = manifest(made / task), manifest(place / "copied-rerun")
    assert now["content"] == before["content"] != {}
    assert (now["intent"], now["science"]) == (before["intent"], before["science"])
    assert now["verification"]["same"] is True
    assert now["rerun_of"]["manifest"] == str(copied)


def test_the_manifest_names_places_that_hold_anywhere(made: Path) -> None:
    trained, inferred = manifest(made / "run"), manifest(made / "out")
    places = (trained["data"]["train"]["source"], inferred["data"]["test"]["source"], inferred["model"])
    assert all(Path(place).is_absolute() and Path(place).exists() for place in places)


def test_other_results_are_told_one_by_one(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "new")
    words = ["rerun", str(made / "run"), "--out", out, "--verify", "--learning-rate=0.001"]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert "weights" in shown
    assert "DIFFERS" in shown
    assert "settings that can change results" in shown
    rows = {row["name"]: row["same"] for row in manifest(tmp_path / "new")["verification"]["compared"]}
    assert rows["train data"] is True
    assert rows["weights"] is False


@pytest.mark.thorough
@pytest.mark.slow
def test_another_number_of_processes_repeats_a_run_within_the_tolerance(made: Path, tmp_path: Path) -> None:
    words = ("train", str(made / "scan.npz"), "--out", "run", *TINY, "--precision=64-true")
    assert command(tmp_path, {}, *words).returncode == 0
    for run, more in ((tmp_path / "run", ["--batch-size=4"]), (made / "out", [])):
        name = f"again-{run.name}"
        done = command(tmp_path, {}, "rerun", str(run), "--out", name, "--verify", "--devices=2", *more)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("verified:") == 1
        assert manifest(tmp_path / name)["plan"]["totals"]["world_size"] == 2
        assert manifest(tmp_path / name)["verification"]["same"] is True
    done = command(tmp_path, {}, "rerun", "run", "--verify", "--devices=2")
    assert done.returncode == 1  # twice the samples in each step
    assert "DIFFERS" in done.stdout


def edited(source: Path, target: Path, **changes: Any) -> Path:
    target.mkdir()
    found = {**manifest(source), **changes}
    (target / "manifest.json").write_text(json.dumps(found))
    return target


def test_other_versions_and_commits_are_told_but_do_not_decide(made: Path, tmp_path: Path) -> None:
    versions = {**manifest(made / "out")["versions"], "torch": "1.0"}
    older = edited(made / "out", tmp_path / "older", versions=versions, git={"commit": "0" * 40})
    again = rerun(older, tmp_path / "new")
    rows = verify(older, again.folder)
    assert repeated(rows)
    changed = {row.name for row in rows if not row.same}
    assert {"versions: torch", "git: commit"} <= changed


def moved(made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The inference's manifest, naming a scan that is no longer there, and where the scan is now."""
    record = manifest(made / "out")["data"]["test"]
    lost = edited(
        made / "out", tmp_path / "lost", data={"test": {**record, "source": str(tmp_path / "gone.npz")}}
    )
    return lost, Path(shutil.copy(made / "scan.npz", tmp_path / "scan.npz"))


def test_moved_data_are_found_where_one_says(made: Path, tmp_path: Path) -> None:
    lost, scan = moved(made, tmp_path)
    with pytest.raises(DataError, match="not where they were") as caught:
        rerun(lost, tmp_path / "new")
    assert "--data FILE" in str(caught.value)
    assert not (tmp_path / "new").exists()
    again = rerun(lost, tmp_path / "new", places=Places(data=scan))
    assert repeated(verify(lost, again.folder))


def test_changed_data_are_refused(made: Path, tmp_path: Path) -> None:
    lost, scan = moved(made, tmp_path)
    with np.load(scan) as archive:
        arrays = dict(archive)
    np.savez(scan, **{**arrays, "diff3d": arrays["diff3d"] + 1})
    with pytest.raises(DataError, match="have changed"):
        rerun(lost, tmp_path / "new", places=Places(data=scan))
    assert not (tmp_path / "new").exists()


def test_a_lost_or_another_model_is_refused_and_the_same_weights_are_enough(
    made: Path, tmp_path: Path
) -> None:
    lost = edited(made / "out", tmp_path / "lost", model=str(tmp_path / "gone" / "model.ckpt"))
    with pytest.raises(DataError, match="not where it was"):
        rerun(lost, tmp_path / "new")
    again = rerun(made / "run", tmp_path / "trained again")
    assert rerun(lost, tmp_path / "new", places=Places(model=again.folder)).folder.is_dir()
    other = rerun(made / "run", tmp_path / "other", overrides={"seed": 6})
    with pytest.raises(DataError, match="the model has changed"):
        rerun(lost, tmp_path / "newer", places=Places(model=other.folder))


def test_a_resumed_run_is_repeated_from_the_same_checkpoint(made: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    longer = [word for word in TINY if not word.startswith("--epochs")] + ["--epochs=3"]
    scan = str(made / "scan.npz")
    assert main(["train", scan, "--out", str(more), "--resume", str(made / "run"), *longer]) == 0
    again = rerun(more, tmp_path / "again")
    assert repeated(verify(more, again.folder))
    with pytest.raises(DataError, match="checkpoint and its contents have changed"):
        rerun(more, tmp_path / "new", places=Places(resume=more))


def test_a_run_without_results_cannot_be_verified(made: Path, tmp_path: Path) -> None:
    failed = edited(made / "out", tmp_path / "failed", status="failed")
    with pytest.raises(UserError, match="status failed"):
        verify(failed, made / "out")


def test_what_is_no_run_cannot_be_repeated(made: Path, tmp_path: Path) -> None:
    odd = edited(made / "out", tmp_path / "odd", task="bake")
    with pytest.raises(UserError, match="does not say what was run"):
        rerun(odd)
    with pytest.raises(UserError, match="cannot read the manifest"):
        rerun(tmp_path / "nothing")


def test_hidden_credentials_are_given_again(made: Path, tmp_path: Path) -> None:
    intent = {**manifest(made / "out")["intent"], "tracking_uri": "http://me:***@host/"}
    hidden = edited(made / "out", tmp_path / "hidden", intent=intent)
    with pytest.raises(SettingsError, match="hides credentials"):
        rerun(hidden)
    again = rerun(hidden, tmp_path / "new", overrides={"tracking_uri": None})
    assert repeated(verify(hidden, again.folder))


def test_a_settings_file_is_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerun", str(made / "run"), "--profile=ci"]) == 2
    assert "from the manifest" in capsys.readouterr().err
