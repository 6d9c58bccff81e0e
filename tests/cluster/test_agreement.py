"""Two processes of which one was given something else: stopped before the first step, with all about it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ptycho_exec.record import read_manifest
from tests.cluster.launching import PROGRAM, QUICK, THOROUGH, left_running, ranks_with, run, scan_file

pytestmark = pytest.mark.slow

COMMAND = ("train", "scan0.npz", "--out", "run")
DIFFERENT: dict[str, tuple[str, str, str]] = {
    "batch": ("export PTYCHO_EXEC_BATCH_SIZE=4", "batch_size", "environment PTYCHO_EXEC_BATCH_SIZE"),
    "precision": ("export PTYCHO_EXEC_PRECISION=64-true", "precision", "environment PTYCHO_EXEC_PRECISION"),
    "checkpointing": (
        "export PTYCHO_EXEC_ENABLE_CHECKPOINTING=false",
        "enable_checkpointing",
        "environment PTYCHO_EXEC_ENABLE_CHECKPOINTING",
    ),
    "gridsize": ("export PTYCHO_TORCH_GRIDSIZE=2", "gridsize", "environment PTYCHO_TORCH_GRIDSIZE"),
    "epochs": ("export PTYCHO_TORCH_EPOCHS=3", "epochs", "environment PTYCHO_TORCH_EPOCHS"),
    "scan": ("set -- train scan1.npz --out run", "SHA-256 of the training scan", "scan1.npz"),
    "version": ('export PYTHONPATH="$PWD/other:$PYTHONPATH"', "version of numpy", "installed here"),
    "seed": ("export PTYCHO_EXEC_SEED=7", "seed", "environment PTYCHO_EXEC_SEED"),
    "profile": ("export PTYCHO_EXEC_PROFILE=cautious", "learning_rate", "cautious"),
    "cwd": ("cd sub", "run directory", "sub"),
}

OTHERS = ("precision", "checkpointing", "epochs", "seed", "version", "profile", "cwd")
"""Cases that go the way of "batch", "gridsize" and "scan"; a fast test goes through all names."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two scans, a profile, another version of a package, and a run that was trained."""
    folder = tmp_path_factory.mktemp("agreement")
    scan_file(folder)
    scan_file(folder, seed=1)
    (folder / "sub").mkdir()
    shutil.copy(folder / "scan0.npz", folder / "sub")
    metadata = folder / "other" / "numpy-9.9.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 9.9\n")
    (folder / "ptycho_exec.toml").write_text("[profiles.cautious]\nlearning_rate = 0.0001\n")
    assert run((*PROGRAM, *COMMAND[:2], "--out", "before", *QUICK), folder).code == 0
    return folder


def stopped(changes: str, place: Path, *more: str) -> str:
    """Run two processes of which one differs; none trains, none is left. Return the output."""
    shutil.rmtree(place / "run", ignore_errors=True)
    words = ranks_with(changes, place)
    ended = run((*words, *COMMAND, *more), place, PTYCHO_TORCH_EPOCHS="2")
    assert ended.code not in (0, None), ended.output
    assert not list(place.glob("run/checkpoints/*.ckpt"))
    assert left_running(place / "run") == []
    return ended.output


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[THOROUGH] * (case in OTHERS)) for case in DIFFERENT]
)
def test_a_difference_is_named_with_both_values_and_origins(case: str, place: Path) -> None:
    changes, name, origin = DIFFERENT[case]
    output = stopped(changes, place)
    assert output.count(f"{name} differs between the processes: ") == 1, output
    assert "on rank 0" in output
    assert "on rank 1" in output
    (line,) = [row for row in output.splitlines() if "where:" in row and "rank 1: " in row and origin in row]
    assert "rank 0: " in line
    manifest = read_manifest(place / "run")
    assert manifest["status"] == "failed"
    assert f"{name} differs between the processes" in manifest["error"]


def test_another_checkpoint_is_named(place: Path) -> None:
    output = stopped("set -- train scan0.npz --out run", place, "--resume", "before")
    assert "checkpoint to continue from differs between the processes" in output
    assert "before/checkpoints/last.ckpt on rank 0, none on rank 1" in output


def test_a_misspelt_variable_of_one_process_stops_all(place: Path) -> None:
    output = stopped("export PTYCHO_EXEC_BACH_SIZE=4", place)
    assert "PTYCHO_EXEC_BACH_SIZE" in output
    assert "PTYCHO_EXEC_BATCH_SIZE" in output
