"""Check inside fit that the run is what was planned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden

from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.model import METRIC_DRIVEN, monitor_readers
from ptycho_exec.fields.spec import format_value
from ptycho_exec.plan import Plan
from ptycho_exec.record import fingerprint, numerics
from ptycho_exec.trainer.drift import DriftReport, DriftRow, apply_drift_policy, requested_and_effective
from ptycho_exec.trainer.loggers import log_settings
from ptycho_exec.trainer.parameters import UNKNOWN, attribute

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class ReadBack(Callback):
    """Check inside fit that the run is what was planned: drift, optimizer steps, and that all ranks agree.

    `report` holds the latest comparison; its rows land in the manifest.
    """

    def __init__(self, plan: Plan, *, writes: bool, profiler: Any = UNKNOWN) -> None:
        self.plan = plan
        self.writes = writes
        self.profiler = profiler
        self.report = DriftReport(())
        self.optimizer_steps = 0
        self._batches = 0
        self._steps_this_epoch = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        del pl_module, stage
        if trainer.world_size > 1:
            agree_on_settings(trainer, self.plan)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        loaders = {"train": trainer.train_dataloader, "validation": trainer.val_dataloaders}
        requested = self.plan.requested
        report = requested_and_effective(
            trainer,
            requested,
            self.plan,
            loaders={role: loader for role, loader in loaders.items() if hasattr(loader, "batch_size")},
            writes=self.writes,
            profiler=self.profiler,
        )
        self.report = DriftReport((*report.rows, *optimizer_rows(trainer, self.plan)))
        apply_drift_policy(self.report, requested)
        for logger in trainer.loggers:
            log_settings(logger, self.plan.settings)

    def on_train_epoch_start(self, *_: Any) -> None:
        self._batches = self._steps_this_epoch = 0

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.optimizer_steps += 1
        self._steps_this_epoch += 1

    def on_train_batch_end(self, *_: Any) -> None:
        self._batches += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the steps of a whole epoch with its batches divided by `accum_steps`, rounded up."""
        if pl_module.automatic_optimization and self._batches == trainer.num_training_batches:
            expected = -(-self._batches // self.plan.settings.accum_steps)
            row = DriftRow("optimizer_steps_per_epoch", expected, self._steps_this_epoch, "accum_steps")
            others = tuple(old for old in self.report.rows if old.name != row.name)
            self.report = DriftReport((*others, row))
            apply_drift_policy(DriftReport((row,)), self.plan.requested)
        # What the module logs in its own hook comes after this one.
        if not is_overridden("on_train_epoch_end", pl_module):
            require_monitor(trainer, self.plan)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch:
            require_monitor(trainer, self.plan)


def require_monitor(trainer: Trainer, plan: Plan) -> None:
    """Stop after the first epoch when the monitored metric was not logged, in a smoke test, too.

    Raises:
        SettingsError: with the metrics that were logged, and where the name came from.
    """
    settings, name = plan.settings, plan.settings.checkpoint_monitor_metric
    logged = trainer.callback_metrics
    if name not in logged and monitor_readers(dict(settings)):
        raise SettingsError(
            f"checkpoint_monitor_metric={name}: the module never logged it",
            where=settings.origin_of("checkpoint_monitor_metric"),
            expected="one of: " + (", ".join(sorted(logged)) or "(nothing was logged)"),
            fix="set checkpoint_monitor_metric to a logged metric",
        )


def optimizer_rows(trainer: Trainer, plan: Plan) -> list[DriftRow]:
    """Compare the optimizer's learning rate and the scheduler's presence and monitor with the settings."""
    settings, configs = plan.settings, trainer.lr_scheduler_configs
    rows = [DriftRow("has_scheduler", settings.scheduler != "Default", bool(configs), "scheduler")]
    for optimizer in trainer.optimizers[:1]:
        group = optimizer.param_groups[0]
        rate = group.get("initial_lr", group["lr"])
        have = float(rate) if isinstance(rate, (int, float, torch.Tensor)) else UNKNOWN
        rows.append(DriftRow("learning_rate", settings.learning_rate, have, "learning_rate"))
    if settings.scheduler in METRIC_DRIVEN and configs:
        name = "checkpoint_monitor_metric"
        monitor = attribute(configs[0], "monitor")
        rows.append(DriftRow("scheduler_monitor", getattr(settings, name), monitor, name))
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
    places = [
        f"{name}: {format_value(own[name])} here, {format_value(first[name])} on rank 0" for name in differing
    ]
    raise SettingsError(
        "the processes of this run have different settings",
        where=f"rank {trainer.global_rank}: " + ("; ".join(places) or "as rank 0"),
        expected="the same settings in every process",
        fix="give every process the same files, variables and arguments",
    )
