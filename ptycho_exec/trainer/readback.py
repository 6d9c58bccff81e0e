"""Check inside fit that the run is what was planned."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden

from ptycho_exec.errors import Finding, SettingsError
from ptycho_exec.fields.model import METRIC_DRIVEN, monitor_readers
from ptycho_exec.plan import Plan, announce, asked, findings_of_module, monitor_asked
from ptycho_exec.trainer.caller import CallersOwn
from ptycho_exec.trainer.drift import (
    DriftReport,
    DriftRow,
    apply_drift_policy,
    loader_rows,
    requested_and_effective,
)
from ptycho_exec.trainer.loggers import log_settings
from ptycho_exec.trainer.module import compile_network, is_compiled, traits_of
from ptycho_exec.trainer.parameters import UNKNOWN, attribute

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


logger = logging.getLogger(__name__)


class ReadBack(Callback):
    """Check inside fit that the run is what was planned: drift and optimizer steps.

    `report` holds the latest comparison, `notices` what turned out in fit; both land in the manifest.
    `own` is what the caller brought.
    """

    def __init__(self, plan: Plan, *, writes: bool, own: CallersOwn | None = None) -> None:
        self.plan = plan
        self.writes = writes
        self.own = own or CallersOwn()
        self.report = DriftReport(())
        self.notices: tuple[Finding, ...] = ()
        self.optimizer_steps = 0
        self._batches = 0
        self._steps_this_epoch = 0
        self._epochs = 0
        self._steps_itself = self._unmonitored = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        del trainer
        if stage == "fit":
            require_hooks(pl_module, self.plan)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile a network that does not do so itself."""
        del trainer
        if self.plan.settings.compile and not is_compiled(pl_module):
            compile_network(pl_module)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        loaders = {"train": trainer.train_dataloader, "validation": trainer.val_dataloaders}
        requested = self.plan.requested
        report = requested_and_effective(
            trainer,
            requested,
            self.plan,
            loaders=loaders,
            writes=self.writes,
            profiler=self.own.profiler,
        )
        self.report = DriftReport((*report.rows, *optimizer_rows(trainer, self.plan)))
        apply_drift_policy(self.report, requested)
        found = too_few_steps(trainer, self.plan)
        self.notices += found
        announce(found)
        for backend in trainer.loggers:
            log_settings(backend, self.plan.settings)

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.state.fn == "validate":  # a validation in fit was compared when it began
            self._compare_loaders("validation", trainer.validate_loop)

    def on_test_start(self, trainer: Trainer, *_: Any) -> None:
        self._compare_loaders("test", trainer.test_loop)

    def on_predict_start(self, trainer: Trainer, *_: Any) -> None:
        self._compare_loaders("predict", trainer.predict_loop)

    def _compare_loaders(self, role: str, loop: Any) -> None:
        rows = tuple(loader_rows(role, attribute(loop, "_combined_loader"), self.plan.settings))
        others = {row.name for row in rows}
        kept = (row for row in self.report.rows if row.name not in others)
        self.report = DriftReport((*kept, *rows))
        apply_drift_policy(DriftReport(rows), self.plan.requested)

    def on_train_epoch_start(self, *_: Any) -> None:
        self._batches = self._steps_this_epoch = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Look again whether the module steps its optimizer itself: it may decide that as late as here.

        Before the first step that is refused; a training that has begun goes on, with a warning.
        """
        del trainer
        if pl_module.automatic_optimization or self._steps_itself:
            return
        self._steps_itself = True
        if not self.optimizer_steps:
            require_hooks(pl_module, self.plan)
        found = findings_of_module(self.plan, traits_of(pl_module))
        self.notices += tuple(replace(row, level="note") if row.level == "error" else row for row in found)
        announce(found)

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.optimizer_steps += 1
        self._steps_this_epoch += 1

    def on_train_batch_end(self, *_: Any) -> None:
        self._batches += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the steps of a whole epoch with its batches divided by `accum_steps`, rounded up."""
        counts = pl_module.automatic_optimization and not any(map(self.own.has, CHANGE_ACCUMULATION))
        if counts and self._batches == trainer.num_training_batches:
            expected = -(-self._batches // self.plan.settings.accum_steps)
            row = DriftRow("optimizer_steps_per_epoch", expected, self._steps_this_epoch, "accum_steps")
            others = tuple(old for old in self.report.rows if old.name != row.name)
            self.report = DriftReport((*others, row))
            apply_drift_policy(DriftReport((row,)), self.plan.requested)
        self._epochs += 1
        # What the module logs in its own hook comes after this one.
        if not is_overridden("on_train_epoch_end", pl_module):
            self._check_monitor(trainer)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch:
            self._check_monitor(trainer)

    def _check_monitor(self, trainer: Trainer) -> None:
        """Refuse a monitored metric that is not logged, or, where nobody asked for one, do without it.

        Before the first validation nothing can be said of its metrics.
        """
        settings = self.plan.settings
        not_yet = self._epochs < settings.check_val_every_n_epoch or settings.max_steps is not None
        if settings.checkpoint_monitor_metric.startswith("val") and trainer.enable_validation and not_yet:
            return
        if monitor_asked(self.plan):
            require_monitor(trainer, self.plan)
        elif settings.checkpoint_monitor_metric not in trainer.callback_metrics and not self._unmonitored:
            self._unmonitored = True
            self.notices += (without_monitor(self.plan),)


CHANGE_ACCUMULATION = ("GradientAccumulationScheduler", "StochasticWeightAveraging")
"""Kinds of callback that change in the middle of a training how many batches make a step."""


def require_hooks(module: LightningModule, plan: Plan) -> None:
    """Refuse what this module cannot do and the plan did not know.

    Raises:
        SettingsError: with every such setting.
    """
    problems = [row for row in findings_of_module(plan, traits_of(module)) if row.level == "error"]
    if problems:
        raise SettingsError.from_findings(problems)


def too_few_steps(trainer: Trainer, plan: Plan) -> tuple[Finding, ...]:
    """Report a least number of steps that the epochs of this training do not reach."""
    least, epochs, batches = trainer.min_steps, trainer.max_epochs, trainer.num_training_batches
    counted = trainer.lightning_module.automatic_optimization and batches < math.inf
    if least is None or epochs is None or epochs < 1 or not counted:
        return ()
    steps = epochs * math.ceil(batches / plan.settings.accum_steps)
    notice = Finding(
        f"min_steps={least} has no effect: the training has {steps} steps",
        plan.requested.origin_of("trainer.min_steps"),
        fix="train for more epochs, or remove it",
        level="note",
        code="idle",
        field="trainer",
    )
    return () if steps >= least else (notice,)


def without_monitor(plan: Plan) -> Finding:
    """Report that that what ranks and stops early does without a metric that is not logged."""
    name = plan.settings.checkpoint_monitor_metric
    notice = Finding(
        f"the module does not log {name}: the newest checkpoint is kept, and nothing stops early",
        fix="log it, or set checkpoint_monitor_metric to a metric that is logged",
        level="note",
        code="nothing-monitored",
        field="checkpoint_monitor_metric",
    )
    logger.info("%s", notice.render())
    return notice


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
    """Compare the optimizer's learning rate and the scheduler's presence and monitor with the settings.

    Both are the module's own; they differ from what was asked only where somebody set the field. Of several
    learning rates one must be the setting's.
    """
    settings, configs = plan.settings, trainer.lr_scheduler_configs

    def row(name: str, want: Any, have: Any, field: str) -> DriftRow:
        return DriftRow(name, want, have, field, "settings" if asked(plan.requested, field) else "nobody")

    rows = [row("has_scheduler", settings.scheduler != "Default", bool(configs), "scheduler")]
    for optimizer in trainer.optimizers[:1]:
        rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        known = [float(rate) for rate in rates if isinstance(rate, (int, float, torch.Tensor))]
        have = settings.learning_rate if settings.learning_rate in known else (*known, UNKNOWN)[0]
        rows.append(row("learning_rate", settings.learning_rate, have, "learning_rate"))
    if settings.scheduler in METRIC_DRIVEN and configs:
        monitor = attribute(configs[0], "monitor")
        wanted = settings.checkpoint_monitor_metric
        rows.append(row("scheduler_monitor", wanted, monitor, "checkpoint_monitor_metric"))
    return rows
