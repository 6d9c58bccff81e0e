"""The callbacks and the checkpoint writer that a plan asks for. Lightning is imported when they are built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ptycho_exec.fields.model import SHARDED
from ptycho_exec.plan import Plan
from ptycho_exec.settings import ExecutionSettings

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from lightning.pytorch.callbacks import Checkpoint
    from lightning.pytorch.profilers import Profiler

CHECKPOINT_FOLDER = "checkpoints"
BEST_NAME = "epoch{epoch:04d}-step{step:07d}"


def build_callbacks(
    plan: Plan, *, run_dir: str | Path | None = None, has_logger: bool, profiler: Profiler | None = None
) -> list[Callback]:
    """Return the callbacks for the plan's effective values; without a `run_dir` none that writes files."""
    from ptycho_exec.trainer.progress import Throughput
    from ptycho_exec.trainer.readback import ReadBack
    from ptycho_exec.trainer.resume import Continuity

    settings = plan.settings
    callbacks: list[Callback] = [
        ReadBack(plan, writes=run_dir is not None, profiler=profiler),
        Continuity(settings.seed),
        Throughput(),
    ]
    if settings.early_stop_patience is not None:
        from lightning.pytorch.callbacks import EarlyStopping

        callbacks.append(
            EarlyStopping(
                monitor=settings.checkpoint_monitor_metric,
                mode=settings.checkpoint_mode,
                patience=settings.early_stop_patience,
                check_on_train_epoch_end=True,
                verbose=False,
            )
        )
    if has_logger:
        from lightning.pytorch.callbacks import LearningRateMonitor

        callbacks.append(LearningRateMonitor(logging_interval="step"))
    if settings.enable_progress_bar is True:
        from ptycho_exec.trainer.progress import TrainingProgress

        callbacks.append(TrainingProgress())
    if run_dir is not None and settings.enable_checkpointing and not settings.fast_dev_run:
        callbacks += build_checkpoints(settings, Path(run_dir) / CHECKPOINT_FOLDER)
    return callbacks


def build_checkpoints(settings: ExecutionSettings, folder: Path) -> list[Checkpoint]:
    """Return the keeper of the best `checkpoint_save_top_k` checkpoints, and that of `last.ckpt`."""
    from ptycho_exec.trainer.checkpoints import BestCheckpoints
    from ptycho_exec.trainer.resume import ResumePoint

    best = BestCheckpoints(
        dirpath=folder,
        filename=BEST_NAME,
        auto_insert_metric_name=False,
        monitor=settings.checkpoint_monitor_metric,
        mode=settings.checkpoint_mode,
        save_top_k=settings.checkpoint_save_top_k,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    last = ResumePoint(folder)
    return [last] if settings.checkpoint_save_top_k == 0 else [best, last]


def build_plugins(plan: Plan) -> list[object]:
    """Return the writer of checkpoints: to a temporary file, renamed when it is complete.

    Sharded strategies write checkpoints of several files in their own way and keep it.
    """
    if plan.settings.strategy in SHARDED:
        return []
    from ptycho_exec.trainer.checkpoints import AtomicCheckpointIO

    return [AtomicCheckpointIO()]
