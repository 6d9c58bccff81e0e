"""Our Lightning classes: callbacks, progress bar, checkpoint writer.

The one module of this package that imports Lightning at its top; `callbacks` imports it when a Trainer is
built. (The classes live at module level so that spawned processes can unpickle them.)
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.utilities.model_helpers import is_overridden

from ptycho_exec.drift import (
    UNKNOWN,
    DriftReport,
    DriftRow,
    apply_drift_policy,
    attribute,
    requested_and_effective,
    verdict,
)
from ptycho_exec.errors import SettingsError
from ptycho_exec.fields import text_of
from ptycho_exec.plan import Plan
from ptycho_exec.record import fingerprint, numerics

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from rich.progress import Progress, TaskID

RANDOM_STATES = "ptycho_exec_random_states"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint under another name beside its place, and give it its name when it is complete.

    Lightning writes to the system's temporary folder and then moves, which copies when that is another file
    system; a kill during the copy leaves half a file under the finished name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not used: checkpoints are local files")
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        part = final.with_name(f".{final.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, final)
        finally:
            part.unlink(missing_ok=True)


class ResumePoint(Checkpoint):
    """Write `last.ckpt` after every epoch, random states included, so that a run can be resumed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "last.ckpt"
        self._states: dict[str, Any] | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        trainer.save_checkpoint(self.path)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        del trainer, pl_module
        checkpoint[RANDOM_STATES] = random_states()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        del trainer, pl_module
        self._states = checkpoint.get(RANDOM_STATES)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore late: between loading and here, Lightning draws numbers for samplers and hooks."""
        del trainer, pl_module
        if self._states is not None:
            restore_random_states(self._states)
            self._states = None


def random_states() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators as values that load with weights_only."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Set the generators as `random_states` found them."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


class ReadBack(Callback):
    """Check inside fit that the run is what the plan says: drift, optimizer steps, and that all ranks agree.

    `report` holds the latest comparison; its rows land in the manifest.
    """

    def __init__(self, plan: Plan, *, writes: bool) -> None:
        self.plan = plan
        self.writes = writes
        self.report = DriftReport(())
        self.optimizer_steps = 0
        self._batches = 0
        self._steps_this_epoch = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        del pl_module, stage
        if trainer.world_size > 1:
            agree_on_settings(trainer, self.plan)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        loaders = {"train": trainer.train_dataloader, "validation": trainer.val_dataloaders}
        found = {role: loader for role, loader in loaders.items() if hasattr(loader, "batch_size")}
        requested = self.plan.requested
        report = requested_and_effective(trainer, requested, self.plan, loaders=found, writes=self.writes)
        self.report = DriftReport((*report.rows, *optimizer_rows(trainer, self.plan)))
        apply_drift_policy(self.report, requested)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        self._batches = self._steps_this_epoch = 0

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        del trainer, pl_module, optimizer
        self.optimizer_steps += 1
        self._steps_this_epoch += 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del trainer, pl_module, outputs, batch, batch_idx
        self._batches += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._compare_steps(trainer, pl_module)
        # What the module logs in its own hook comes after this one.
        if not is_overridden("on_train_epoch_end", pl_module):
            require_monitor(trainer, self.plan)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if trainer.current_epoch:
            require_monitor(trainer, self.plan)

    def _compare_steps(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the steps of a whole epoch with its batches divided by `accum_steps`, rounded up."""
        if not pl_module.automatic_optimization or self._batches != trainer.num_training_batches:
            return
        accumulated = self.plan.settings.accum_steps
        wanted = -(-self._batches // accumulated)
        same = verdict(wanted, self._steps_this_epoch)
        row = DriftRow("optimizer_steps_per_epoch", wanted, self._steps_this_epoch, same, "accum_steps")
        others = tuple(old for old in self.report.rows if old.name != row.name)
        self.report = DriftReport((*others, row))
        apply_drift_policy(DriftReport((row,)), self.plan.requested)


def require_monitor(trainer: Trainer, plan: Plan) -> None:
    """Stop after the first epoch when the monitored metric was not logged, in a smoke test, too.

    Raises:
        SettingsError: with the metrics that were logged, and where the name came from.
    """
    settings, name = plan.settings, plan.settings.checkpoint_monitor_metric
    ranks = settings.enable_checkpointing and settings.checkpoint_save_top_k != 0
    used = ranks or settings.early_stop_patience or settings.scheduler == "ReduceLROnPlateau"
    logged = trainer.callback_metrics
    if not used or name in logged:
        return
    origin = settings.origins.get("checkpoint_monitor_metric")
    raise SettingsError(
        f"checkpoint_monitor_metric={name}: the module never logged it",
        where=origin.describe() if origin else "",
        expected="one of: " + (", ".join(sorted(logged)) or "(nothing was logged)"),
        fix="set checkpoint_monitor_metric to a logged metric",
    )


def optimizer_rows(trainer: Trainer, plan: Plan) -> list[DriftRow]:
    """Compare the optimizer's learning rate and the scheduler's presence and monitor with the settings."""
    settings, rows = plan.settings, []
    for optimizer in trainer.optimizers[:1]:
        group = optimizer.param_groups[0]
        rate = group.get("initial_lr", group["lr"])
        have = float(rate) if isinstance(rate, (int, float, torch.Tensor)) else UNKNOWN
        same = verdict(settings.learning_rate, have)
        rows.append(DriftRow("learning_rate", settings.learning_rate, have, same, "learning_rate"))
    configs = trainer.lr_scheduler_configs
    wanted = settings.scheduler != "Default"
    rows.append(DriftRow("has_scheduler", wanted, bool(configs), verdict(wanted, bool(configs)), "scheduler"))
    if settings.scheduler == "ReduceLROnPlateau" and configs:
        want, have = settings.checkpoint_monitor_metric, attribute(configs[0], "monitor")
        rows.append(
            DriftRow("scheduler_monitor", want, have, verdict(want, have), "checkpoint_monitor_metric")
        )
    return rows


def agree_on_settings(trainer: Any, plan: Plan) -> None:
    """Compare this rank's numerics with rank zero's, and stop every rank if any differs.

    Raises:
        SettingsError: on every rank; where this rank differs it names the fields.
    """
    own = numerics(plan.settings)
    first = trainer.strategy.broadcast(own, src=0)
    same = fingerprint(first) == fingerprint(own)
    if trainer.strategy.reduce_boolean_decision(same, all=True):
        return
    differing = [name for name in own if own[name] != first[name]]
    told = [f"{name}: {text_of(own[name])} here, {text_of(first[name])} on rank 0" for name in differing]
    raise SettingsError(
        "the processes of this run have different settings",
        where=f"rank {trainer.global_rank}: " + ("; ".join(told) or "as rank 0"),
        expected="the same settings in every process",
        fix="give every process the same files, variables and arguments",
    )


class Throughput(Callback):
    """Measure training: wall time in seconds, samples, and samples per second without the first batch.

    The first batch pays for start-up (workers, compilation, memory), so the rate is taken after it.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.samples = 0
        self.samples_per_second: float | None = None
        self._start = 0.0
        self._steady: tuple[float, int] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        self._start, self._steady, self.samples = time.perf_counter(), None, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, outputs, batch_idx
        self.samples += batch_length(batch) * trainer.world_size
        if self._steady is None:
            self._steady = (time.perf_counter(), self.samples)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        now = time.perf_counter()
        self.seconds = now - self._start
        if self._steady and self.samples > self._steady[1]:
            self.samples_per_second = (self.samples - self._steady[1]) / (now - self._steady[0])


def batch_length(batch: Any) -> int:
    """Return the length of the first tensor found in a batch of nested dicts and sequences; 0 without one."""
    if isinstance(batch, torch.Tensor):
        return int(batch.shape[0]) if batch.ndim else 0
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    return next((length for part in parts if (length := batch_length(part))), 0)


class TrainingProgress(ProgressBar):
    """One line for the whole training: epoch, metrics, and the time that remains to the last epoch."""

    METRICS = ("train_loss", "val_loss")

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_progress": None, "_task": None}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if self._enabled and trainer.is_global_zero:
            self._progress = _bar()
            total = self._total(trainer)
            done = trainer.current_epoch * int(trainer.num_training_batches)
            self._task = self._progress.add_task("training", total=total, completed=done, metrics="")
            self._progress.start()

    def _total(self, trainer: Trainer) -> float | None:
        batches, epochs = trainer.num_training_batches, trainer.max_epochs
        finite = epochs is not None and epochs > 0 and batches != float("inf")
        return batches * epochs if finite and epochs is not None else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, outputs, batch, batch_idx
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task, advance=1, description=self._epoch(trainer), metrics=self._metrics(trainer)
            )

    def _epoch(self, trainer: Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"

    def _metrics(self, trainer: Trainer) -> str:
        found = trainer.callback_metrics
        return "  ".join(f"{name} {float(found[name]):.4g}" for name in self.METRICS if name in found)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        del trainer, pl_module, exception
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _bar() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[metrics]}"),
        TextColumn("remaining"),
        TimeRemainingColumn(),
        transient=False,
    )
