"""Checkpoint files with a real Trainer: whole or not there, the best ones kept."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from ptycho_exec.errors import UserError
from ptycho_exec.trainer.checkpoints import AtomicCheckpointIO
from tests.exec.trainer.scripted_runs import (
    SCRIPT,
    checkpoints,
    fit,
    settings,
    weights,
)


@pytest.mark.acts(
    "checkpoint_save_top_k",
    "files in `checkpoints/` with a scripted metric",
    ["True-3-min-epochs1", "True--1-min-epochs2", "False-0-min-epochs3"],
)
@pytest.mark.acts(
    "checkpoint_mode", "files in `checkpoints/`, and when training stops early", ["True-1-max-epochs4"]
)
@pytest.mark.parametrize(
    ("top_k", "mode", "epochs"),
    [
        (1, "min", [3]),
        (3, "min", [1, 3, 4]),
        (-1, "min", [0, 1, 2, 3, 4]),
        (0, "min", []),
        (1, "max", [0]),
        (3, "max", [0, 2, 4]),
    ],
)
@pytest.mark.parametrize("validate", [True, False])
def test_the_best_checkpoints_are_kept(
    top_k: int, mode: str, epochs: list[int], validate: bool, tmp_path: Path
) -> None:
    wanted = settings(checkpoint_save_top_k=top_k, checkpoint_mode=mode)
    fit(wanted, tmp_path, epochs=5, validate=validate, script=SCRIPT)
    best = [f"epoch{epoch:04d}-step{8 * (epoch + 1):07d}.ckpt" for epoch in epochs]
    assert checkpoints(tmp_path) == [*best, "last.ckpt"]


@pytest.mark.acts(
    "checkpoint_monitor_metric", "metric that ranks checkpoints and drives metric-driven schedules"
)
def test_the_asked_metric_ranks(tmp_path: Path) -> None:
    trainer, _ = fit(settings(checkpoint_monitor_metric="train_loss"), tmp_path, epochs=2)
    ranker = next(row for row in trainer.callbacks if type(row).__name__ == "BestCheckpoints")
    assert ranker.monitor == "train_loss"
    assert ranker.best_model_score == min(trainer.callback_metrics["train_loss"], ranker.best_model_score)
    assert checkpoints(tmp_path)[-1] == "last.ckpt"


@pytest.mark.acts("enable_checkpointing", "files in `checkpoints/`")
def test_no_checkpoints_if_so_wished(tmp_path: Path) -> None:
    fit(settings(enable_checkpointing=False), tmp_path, epochs=1)
    assert checkpoints(tmp_path) == []


def test_a_checkpoint_loads_with_weights_only(tmp_path: Path) -> None:
    fit(settings(scheduler="ReduceLROnPlateau"), tmp_path, epochs=2)
    found = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert found["epoch"] == 1


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)

    def fail(checkpoint: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match="disk full"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [row.name for row in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_what_a_kill_left_is_swept_up_and_was_never_named_as_finished(tmp_path: Path) -> None:
    code = """
        import os, sys, torch
        from ptycho_exec.trainer.checkpoints import AtomicCheckpointIO
        os.fsync = lambda _: os._exit(9)
        AtomicCheckpointIO().save_checkpoint({"epoch": 1}, sys.argv[1])
    """
    path = tmp_path / "last.ckpt"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], check=False)
    assert done.returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    assert left.suffix == ".part"
    AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert [row.name for row in tmp_path.iterdir()] == ["last.ckpt"]


def test_storage_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "x", storage_options={"a": 1})


def test_the_best_of_before_are_taken_along_and_ranked_on(tmp_path: Path) -> None:
    script = (5.0, 1.0, 4.0, 2.0, 3.0, 0.5)
    wanted = settings(checkpoint_save_top_k=2)
    with pytest.raises(InterruptedError):
        fit(wanted, tmp_path / "part", stop_at=25, script=script)
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    fit(wanted, tmp_path / "rest", resume=last, script=script, epochs=5)
    names = ["epoch0001-step0000016.ckpt", "epoch0003-step0000032.ckpt", "last.ckpt"]
    assert checkpoints(tmp_path / "rest") == names
    assert "epoch0002-step0000024.ckpt" in checkpoints(tmp_path / "part")


def test_ranking_starts_anew_where_the_best_of_before_are_gone(tmp_path: Path) -> None:
    wanted = settings()
    with pytest.raises(InterruptedError):
        fit(wanted, tmp_path / "part", stop_at=25, script=(1.0, 2.0, 3.0, 4.0, 5.0))
    folder = tmp_path / "part" / "checkpoints"
    (folder / "epoch0000-step0000008.ckpt").unlink()
    fit(wanted, tmp_path / "rest", resume=folder / "last.ckpt", epochs=5, script=(1.0, 2.0, 3.0, 4.0, 5.0))
    assert checkpoints(tmp_path / "rest") == ["epoch0003-step0000032.ckpt", "last.ckpt"]


def test_checkpoints_do_not_change_what_is_trained(tmp_path: Path) -> None:
    _, writing = fit(settings(), tmp_path, epochs=3)
    _, silent = fit(settings(), None, epochs=3)
    for one, other in zip(weights(writing), weights(silent), strict=True):
        assert torch.equal(one, other)
