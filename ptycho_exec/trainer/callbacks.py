"""The callbacks and the checkpoint writer that a plan asks for. Lightning is imported when they are built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho_exec.fields.model import SHARDED, SPAWNING
from ptycho_exec.plan import Plan, monitor_asked
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.caller import CallersOwn

if TYPE_CHECKING:
    from lightning.pytorch import Callback

CHECKPOINT_FOLDER = "checkpoints"
BEST_NAME = "epoch{epoch:04d}-step{step:07d}"


@dataclass(frozen=True, slots=True)
class CallbackRow:
    """One callback that a run may have: the name of its class, when it has it, and how it is built."""

    kind: str
    wanted: Callable[[CallbackInputs], bool]
    build: Callable[[CallbackInputs], Callback]


@dataclass(frozen=True, slots=True)
class CallbackInputs:
    """What callbacks are chosen and built from."""

    plan: Plan
    run_dir: Path | None
    has_logger: bool
    own: CallersOwn

    @property
    def settings(self) -> ExecutionSettings:
        return self.plan.settings

    @property
    def checkpoints(self) -> bool:
        """Whether this run writes checkpoints."""
        written = self.settings.enable_checkpointing and not self.settings.fast_dev_run
        return written and self.run_dir is not None

    @property
    def strict(self) -> bool:
        """Whether the monitored metric must be there; `max_steps` may end a run before its validation."""
        return monitor_asked(self.plan) and self.settings.max_steps is None

    @property
    def folder(self) -> Path:
        return Path(str(self.run_dir)) / CHECKPOINT_FOLDER


def build_callbacks(
    plan: Plan, *, run_dir: str | Path | None = None, has_logger: bool, own: CallersOwn | None = None
) -> list[Callback]:
    """Return the callbacks for the plan's effective values; without a `run_dir` none that writes files.

    Where the caller brings one of a kind, ours is left out.
    """
    folder = None if run_dir is None else Path(run_dir)
    inputs = CallbackInputs(plan, folder, has_logger, own or CallersOwn())
    return [row.build(inputs) for row in CALLBACKS if row.wanted(inputs)]


def callback_names(plan: Plan) -> list[str]:
    """Return the classes of the callbacks of a run with a directory, without importing Lightning."""
    has_logger = plan.settings.logger_backend is not None
    inputs = CallbackInputs(plan, Path(), has_logger, CallersOwn())
    return [row.kind for row in CALLBACKS if row.wanted(inputs)]


def _read_back(inputs: CallbackInputs) -> Callback:
    from ptycho_exec.trainer.readback import ReadBack

    return ReadBack(inputs.plan, writes=inputs.run_dir is not None, own=inputs.own)


def _continuity(inputs: CallbackInputs) -> Callback:
    from ptycho_exec.trainer.resume import Continuity

    return Continuity(inputs.settings.seed)


def _together(_: CallbackInputs) -> Callback:
    from ptycho_exec.trainer.together import Together

    return Together()


def _spawned(_: CallbackInputs) -> Callback:
    from ptycho_exec.trainer.spawned import Spawned

    return Spawned()


def _throughput(_: CallbackInputs) -> Callback:
    from ptycho_exec.trainer.progress import Throughput

    return Throughput()


def _early_stopping(inputs: CallbackInputs) -> Callback:
    from lightning.pytorch.callbacks import EarlyStopping

    return EarlyStopping(
        monitor=inputs.settings.checkpoint_monitor_metric,
        mode=inputs.settings.checkpoint_mode,
        patience=inputs.settings.early_stop_patience or 0,
        check_on_train_epoch_end=judged_each_epoch(inputs.settings),
        strict=inputs.strict,
        verbose=False,
    )


def _learning_rate_monitor(_: CallbackInputs) -> Callback:
    from lightning.pytorch.callbacks import LearningRateMonitor

    return LearningRateMonitor(logging_interval="step")


def _progress(_: CallbackInputs) -> Callback:
    from ptycho_exec.trainer.progress import TrainingProgress

    return TrainingProgress()


def _best(inputs: CallbackInputs) -> Callback:
    from ptycho_exec.trainer.checkpoints import BestCheckpoints

    return BestCheckpoints(
        strict=inputs.strict,
        dirpath=inputs.folder,
        filename=BEST_NAME,
        auto_insert_metric_name=False,
        monitor=inputs.settings.checkpoint_monitor_metric,
        mode=inputs.settings.checkpoint_mode,
        save_top_k=inputs.settings.checkpoint_save_top_k,
        save_on_train_epoch_end=judged_each_epoch(inputs.settings),
        enable_version_counter=False,
    )


def _last(inputs: CallbackInputs) -> Callback:
    from ptycho_exec.trainer.resume import ResumePoint

    every_n_steps, every = inputs.settings.checkpoint_every_n_steps, inputs.settings.checkpoint_every
    requeues = inputs.settings.max_requeues
    return ResumePoint(inputs.folder, every_n_steps=every_n_steps, every=every, requeues=requeues)


def _stop(inputs: CallbackInputs) -> Callback:
    from ptycho_exec.trainer.stop import StopAtStep

    return StopAtStep(inputs.settings.max_requeues)


def judged_each_epoch(settings: ExecutionSettings) -> bool:
    """Return whether each epoch ends with a new value of the monitored metric.

    Where validation skips epochs, its metrics are judged when it ends.
    """
    return settings.check_val_every_n_epoch == 1 or not settings.checkpoint_monitor_metric.startswith("val")


def _moving_average(inputs: CallbackInputs) -> Callback:
    from ptycho_exec.trainer.averaging import MovingAverage

    return MovingAverage(inputs.settings.ema_decay or 0.0)


def _mean_of_epochs(inputs: CallbackInputs) -> Callback:
    from ptycho_exec.trainer.averaging import MeanOfEpochs

    return MeanOfEpochs(inputs.settings.swa_epoch_start or 0)


CALLBACKS: tuple[CallbackRow, ...] = (
    CallbackRow("Together", lambda _: True, _together),
    CallbackRow("ReadBack", lambda _: True, _read_back),
    CallbackRow("Continuity", lambda _: True, _continuity),
    CallbackRow("Throughput", lambda _: True, _throughput),
    CallbackRow("MovingAverage", lambda i: i.settings.ema_decay is not None, _moving_average),
    CallbackRow("MeanOfEpochs", lambda i: i.settings.swa_epoch_start is not None, _mean_of_epochs),
    CallbackRow(
        "EarlyStopping",
        lambda i: i.settings.early_stop_patience is not None and not i.own.has("EarlyStopping"),
        _early_stopping,
    ),
    CallbackRow(
        "LearningRateMonitor",
        lambda i: i.has_logger and not i.own.has("LearningRateMonitor"),
        _learning_rate_monitor,
    ),
    CallbackRow(
        "TrainingProgress",
        lambda i: i.settings.enable_progress_bar is True and not i.own.has("ProgressBar"),
        _progress,
    ),
    CallbackRow("Spawned", lambda i: i.settings.strategy in SPAWNING, _spawned),
    CallbackRow("BestCheckpoints", lambda i: i.checkpoints and i.settings.checkpoint_save_top_k != 0, _best),
    CallbackRow("ResumePoint", lambda i: i.checkpoints, _last),
    CallbackRow("StopAtStep", lambda i: not i.checkpoints, _stop),
)
"""In the order in which the Trainer calls them."""


def plugin_names(plan: Plan) -> list[str]:
    """Return the class of the writer of checkpoints: to a temporary file, renamed when it is complete.

    Sharded strategies write checkpoints of several files in their own way and keep it.
    """
    return [] if plan.settings.strategy in SHARDED else ["AtomicCheckpointIO"]


def build_plugins(plan: Plan) -> list[object]:
    """Return the plugins of `plugin_names`."""
    from ptycho_exec.trainer import checkpoints

    return [getattr(checkpoints, name)() for name in plugin_names(plan)]
