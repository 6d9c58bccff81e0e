"""Callbacks with a real Trainer: checkpoints, early stopping, resuming, progress, throughput."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.model import METRIC_DRIVEN
from ptycho_exec.machine.facts import Gpu, MachineFacts
from ptycho_exec.plan import resolve_plan
from ptycho_exec.trainer import readback
from ptycho_exec.trainer.callbacks import build_callbacks, build_plugins
from tests.exec.trainer.scripted_runs import (
    FACTS,
    SCRIPT,
    fit,
    plan_of,
    settings,
)


def kinds(callbacks: list[Any]) -> list[str]:
    return [type(row).__name__ for row in callbacks]


def test_callbacks_of_a_run_that_writes(tmp_path: Path) -> None:
    found = build_callbacks(plan_of(enable_progress_bar=True), run_dir=tmp_path, has_logger=True)
    assert kinds(found) == [
        "Together",
        "ReadBack",
        "Continuity",
        "Throughput",
        "EarlyStopping",
        "LearningRateMonitor",
        "TrainingProgress",
        "BestCheckpoints",
        "ResumePoint",
    ]


def test_callbacks_of_a_run_that_writes_nothing() -> None:
    found = build_callbacks(plan_of(early_stop_patience=None), has_logger=False)
    assert kinds(found) == [
        "Together",
        "ReadBack",
        "Continuity",
        "Throughput",
        "TrainingProgress",
        "StopAtStep",
    ]


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"enable_checkpointing": False}, []),
        ({"fast_dev_run": 1}, []),
        ({"checkpoint_save_top_k": 0}, ["ResumePoint"]),
        ({}, ["BestCheckpoints", "ResumePoint"]),
    ],
)
def test_checkpoint_callbacks(asked: dict[str, object], names: list[str], tmp_path: Path) -> None:
    found = kinds(build_callbacks(plan_of(**asked), run_dir=tmp_path, has_logger=False))
    assert [name for name in found if "Best" in name or "Resume" in name] == names


def test_sharded_strategies_keep_their_own_checkpoint_writer() -> None:
    gpu = Gpu(name="A100", memory_mb=1, capability="8.0", bf16=True)
    facts = MachineFacts(gpus=(gpu, gpu))
    assert build_plugins(resolve_plan(settings(strategy="fsdp", devices=2), facts)) == []
    assert kinds(build_plugins(plan_of())) == ["AtomicCheckpointIO"]


def test_callbacks_travel_to_spawned_processes(tmp_path: Path) -> None:
    found = build_callbacks(plan_of(enable_progress_bar=True), run_dir=tmp_path, has_logger=False)
    assert kinds(pickle.loads(pickle.dumps(found))) == kinds(found)


@pytest.mark.acts(
    "early_stop_patience", "epochs trained with a scripted metric", ["True-1-min-3", "False-1-min-3"]
)
@pytest.mark.acts(
    "checkpoint_mode", "files in `checkpoints/`, and when training stops early", ["True-1-max-2"]
)
@pytest.mark.parametrize(
    ("patience", "mode", "stops_after"), [(1, "min", 3), (2, "min", 5), (1, "max", 2), (None, "min", 5)]
)
@pytest.mark.parametrize("validate", [True, False])
def test_early_stopping(patience: int | None, mode: str, stops_after: int, validate: bool) -> None:
    wanted = settings(early_stop_patience=patience, checkpoint_mode=mode)
    trainer, _ = fit(wanted, None, epochs=5, validate=validate, script=SCRIPT)
    assert trainer.current_epoch == stops_after


@pytest.mark.parametrize("scheduler", sorted(METRIC_DRIVEN))
def test_a_metric_that_only_the_scheduler_reads_must_be_logged(scheduler: str) -> None:
    wanted = settings(scheduler=scheduler, checkpoint_monitor_metric="ssim", early_stop_patience=None)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    plan = resolve_plan(wanted.with_overrides(checkpoint_save_top_k=0), FACTS)
    with pytest.raises(SettingsError, match="checkpoint_monitor_metric=ssim: the module never logged it"):
        readback.require_monitor(trainer, plan)
