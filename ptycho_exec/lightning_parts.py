"""Our Lightning classes: callbacks, progress bar, checkpoint writer.

The one module of this package that imports Lightning at its top; `callbacks` imports it when a Trainer is
built. (The classes live at module level so that spawned processes can unpickle them.)
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException
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
from ptycho_exec.loggers import log_picture, log_settings
from ptycho_exec.plan import Plan
from ptycho_exec.record import fingerprint, numerics

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import LightningModule, Trainer
    from numpy.typing import NDArray
    from rich.progress import Progress, TaskID

PLATEAU_METRICS = "ptycho_exec_plateau_metrics"


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
        for left_by_a_kill in final.parent.glob(f".{final.name}.*.part"):
            left_by_a_kill.unlink(missing_ok=True)
        part = final.with_name(f".{final.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, final)
        finally:
            part.unlink(missing_ok=True)


class BestCheckpoints(ModelCheckpoint):
    """Keep the best checkpoints; a run resumed in another directory takes those it has with it."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the kept files into this run's folder, so that ranking goes on and the folder is complete.

        If any of them is gone, ranking starts anew, as Lightning does.
        """
        kept = {Path(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        moved = self.dirpath is not None and state_dict.get("dirpath") != self.dirpath
        if moved and kept and all(path.exists() for path in kept):
            state_dict = self._take_along(state_dict, kept)
        super().load_state_dict(state_dict)

    def _take_along(self, state: dict[str, Any], kept: dict[Path, torch.Tensor]) -> dict[str, Any]:
        folder = Path(str(self.dirpath))
        for path in kept:
            copy_once(path, folder / path.name)

        def here(name: str) -> str:
            return str(folder / Path(state[name]).name) if state.get(name) else ""

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        ranked = {str(folder / path.name): score for path, score in kept.items()}
        moved = {name: here(name) for name in paths}
        return {**state, **moved, "dirpath": self.dirpath, "best_k_models": ranked}


@rank_zero_only
def copy_once(source: Path, target: Path) -> None:
    """Copy a file so that it bears its name only when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.copyfile(source, part)
    os.replace(part, target)


class ResumePoint(Checkpoint):
    """Write `last.ckpt` after every epoch, so that a run can go on where it stopped."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "last.ckpt"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        trainer.save_checkpoint(self.path)


class Continuity(Callback):
    """Make a resumed run the same, bit for bit, as one that was never interrupted.

    The random numbers of an epoch depend on seed, epoch and rank alone, not on what was drawn before: a
    resumed run builds its loaders in another order than a running one, so saved generator states would not
    do. Lightning does not save the metric that a plateau scheduler is waiting for; this does.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._resumed = False
        self._missed: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        seed_epoch(self.seed, trainer.current_epoch, trainer.global_rank)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed again: Lightning makes the iterator of a resumed epoch earlier than that of a running one."""
        del pl_module, batch
        if batch_idx == 0:
            seed_epoch(self.seed, trainer.current_epoch, trainer.global_rank)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        del pl_module
        metrics = trainer.callback_metrics
        names = {config.monitor for config in trainer.lr_scheduler_configs if config.reduce_on_plateau}
        checkpoint[PLATEAU_METRICS] = {name: float(metrics[name]) for name in names if name in metrics}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        del trainer, pl_module
        self._resumed = True
        self._missed = checkpoint.get(PLATEAU_METRICS, {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if self._resumed:
            self._step_plateaus(trainer)
            seed_epoch(self.seed, trainer.current_epoch, trainer.global_rank)
            restart_loaders(trainer)
        self._resumed, self._missed = False, {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let a terminated run end with the usual status; Lightning's own exception says success."""
        del trainer, pl_module
        if isinstance(exception, SIGTERMException):
            exception.code = 128 + signal.SIGTERM

    def _step_plateaus(self, trainer: Trainer) -> None:
        """Take the plateau step that the interrupted run was about to take after its checkpoint."""
        for config in trainer.lr_scheduler_configs:
            due = trainer.current_epoch % config.frequency == 0
            if config.reduce_on_plateau and config.monitor in self._missed and due:
                config.scheduler.step(self._missed[config.monitor])  # type: ignore[arg-type]


def restart_loaders(trainer: Trainer) -> None:
    """Begin the training loaders anew, in the order of the epoch that comes next.

    Lightning makes their iterators before it tells the samplers the epoch; loader workers have by then
    fetched ahead in the order of epoch 0.
    """
    loop = trainer.fit_loop
    for loader in loop._combined_loader.flattened if loop._combined_loader else ():
        for sampler in (attribute(loader, "sampler"), attribute(loader, "batch_sampler", "sampler")):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(trainer.current_epoch)
    if loop._data_fetcher is not None:
        iter(loop._data_fetcher)


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Seed Python's, NumPy's and torch's generators with a function of seed, epoch and rank."""
    words = np.random.SeedSequence([seed, epoch, rank]).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


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
        for logger in trainer.loggers:
            log_settings(logger, self.plan.settings)

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


class Pictures(Callback):
    """Send pictures to the loggers every so many epochs, and after the last one.

    Args:
        make: takes the module and returns pictures (H, W, 3) of bytes by name, such as `amplitude`.
        every_n_epochs: `log_images_every_n_epochs`.
    """

    def __init__(
        self, make: Callable[[LightningModule], dict[str, NDArray[np.uint8]]], every_n_epochs: int
    ) -> None:
        self.make, self.every_n_epochs = make, every_n_epochs
        self._sent = -1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._send(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._sent != trainer.global_step:
            self._send(trainer, pl_module)

    def _send(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sent = trainer.global_step
        if not trainer.is_global_zero or not trainer.loggers:
            return
        training = pl_module.training
        pl_module.eval()
        with torch.no_grad():
            pictures = self.make(pl_module)
        pl_module.train(training)
        for logger in trainer.loggers:
            for name, picture in pictures.items():
                log_picture(logger, name, picture, trainer.global_step)


class TrainingProgress(ProgressBar):
    """One line for the whole training or prediction, with the time that remains to its end."""

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
        done = trainer.current_epoch * int(trainer.num_training_batches)
        self._start(trainer, "training", self._total(trainer), done)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        batches: Any = trainer.num_predict_batches
        self._start(trainer, "reconstructing", sum(batches) if isinstance(batches, list) else batches)

    def _start(self, trainer: Trainer, what: str, total: float | None, done: int = 0) -> None:
        if self._enabled and trainer.is_global_zero:
            self._progress = _bar()
            self._task = self._progress.add_task(what, total=total, completed=done, metrics="")
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

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        del trainer, pl_module, batch
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        self._stop()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
