"""Checks inside fit, with a real Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ptycho_exec.errors import DriftError, SettingsError, SettingsWarning
from ptycho_exec.fields.model import METRIC_DRIVEN
from ptycho_exec.trainer.build import build_trainer, process_flags
from ptycho_exec.trainer.readback import ReadBack
from tests.exec.trainer import linear_runs
from tests.exec.trainer.linear_runs import Linear
from tests.exec.trainer.scripted_runs import (
    fit,
    settings,
)


@pytest.mark.parametrize(("accumulated", "steps"), [(1, 8), (3, 3), (8, 1), (100, 1)])
def test_optimizer_steps_are_counted(accumulated: int, steps: int) -> None:
    trainer, _ = fit(settings(accum_steps=accumulated), None, epochs=2)
    reader = next(row for row in trainer.callbacks if isinstance(row, ReadBack))
    assert reader.optimizer_steps == 2 * steps
    (row,) = (row for row in reader.report.rows if row.name == "optimizer_steps_per_epoch")
    assert (row.requested, row.effective, row.verdict) == (steps, steps, "same")


@pytest.mark.acts("drift", "whether a run with a Trainer other than asked stops or warns")
@pytest.mark.parametrize("scheduler", sorted(METRIC_DRIVEN))
def test_a_plateau_on_another_metric_than_asked_is_drift(scheduler: str) -> None:
    wanted = settings(scheduler=scheduler, checkpoint_monitor_metric="train_loss", drift="warn")
    with pytest.warns(UserWarning, match="scheduler_monitor=train_loss, but the Trainer has val_loss"):
        fit(wanted, None, epochs=1)


class Manual(Linear):
    """A module that begins to step its optimizer itself in one of its hooks."""

    def __init__(self, hook: str, epoch: int = 0) -> None:
        super().__init__()
        self.hook, self.epoch = hook, epoch

    def decide(self, hook: str) -> None:
        if hook == self.hook and self.current_epoch >= self.epoch:
            self.automatic_optimization = False

    def setup(self, stage: str) -> None:
        self.decide("setup")

    def on_train_start(self) -> None:
        self.decide("on_train_start")

    def on_train_epoch_start(self) -> None:
        self.decide("on_train_epoch_start")

    def training_step(self, batch: list[torch.Tensor], index: int) -> Any:
        loss = super().training_step(batch, index)
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None


def fit_manual(module: Linear, **asked: Any) -> ReadBack:
    wanted = linear_runs.settings(early_stop_patience=None, **asked)
    trainer, _ = linear_runs.fit(wanted, module=module, epochs=2)
    reader: ReadBack = linear_runs.read_back(trainer)
    return reader


@pytest.mark.parametrize("asked", [{"gradient_clip_val": 0.1}, {"accum_steps": 2}])
@pytest.mark.parametrize("hook", ["setup", "on_train_start", "on_train_epoch_start"])
def test_a_module_that_steps_itself_and_was_not_known_cannot_clip_or_accumulate(
    hook: str, asked: dict[str, Any]
) -> None:
    (name,) = asked
    with pytest.raises(SettingsError, match=f"{name}=.*the module steps its optimizer itself"):
        fit_manual(Manual(hook), **asked)
    with pytest.warns(SettingsWarning, match=f"{name}: .* became"):
        reader = fit_manual(Manual(hook), on_unsupported="adapt", **asked)
    assert [notice.code for notice in reader.notices] == ["manual-optimization"]
    assert fit_manual(Manual(hook)).notices == ()


def test_a_module_that_steps_itself_from_the_second_epoch_on_goes_on_with_a_warning() -> None:
    with pytest.warns(SettingsWarning, match="gradient_clip_val=0.1: the module steps its optimizer itself"):
        reader = fit_manual(Manual("on_train_epoch_start", epoch=1), gradient_clip_val=0.1)
    assert [(notice.code, notice.level) for notice in reader.notices] == [("manual-optimization", "note")]


class Every(Linear):
    """A module for each of the four stages, whose training takes batches of two loaders, too."""

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return super().training_step(batch["a"] if isinstance(batch, dict) else batch, index)

    def test_step(self, batch: list[torch.Tensor], index: int) -> None: ...

    def predict_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return batch[0]


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_stage_without_training_compares_its_loader_before_it_begins(stage: str) -> None:
    wanted = linear_runs.settings(inference_batch_size=3)
    options: dict[str, Any] = {} if stage == "predict" else {"verbose": False}
    with process_flags(wanted):
        trainer = build_trainer(wanted, announce=False)
        with pytest.raises(DriftError, match="batch_size=3, but the Trainer has 5"):
            getattr(trainer, stage)(Every(), linear_runs.loader(wanted, batch_size=5), **options)
        trainer = build_trainer(wanted, announce=False)
        getattr(trainer, stage)(Every(), linear_runs.loader(wanted, batch_size=3), **options)
    found = {name: row for name, row in linear_runs.rows(trainer).items() if "batch_size" in name}
    assert [row.verdict for row in found.values()] == ["same"]


def test_each_of_several_training_loaders_is_compared_in_fit() -> None:
    wanted = linear_runs.settings(batch_size=8)
    small, right = (linear_runs.loader(wanted, batch_size=size) for size in (4, 8))
    with process_flags(wanted):
        trainer = build_trainer(wanted, max_epochs=1, announce=False)
        with pytest.raises(DriftError, match=r"asked for train\[b\]\.batch_size=8, but the Trainer has 4"):
            trainer.fit(Every(), {"a": right, "b": small}, right)
        trainer = build_trainer(wanted, max_epochs=1, announce=False)
        trainer.fit(Every(), {"a": right, "b": right}, [right])
    assert {"train[a].batch_size", "validation[0].batch_size"} <= set(linear_runs.rows(trainer))


@pytest.mark.parametrize(("least", "accumulated", "noted"), [(13, 1, True), (12, 1, False), (12, 2, True)])
def test_more_steps_than_the_epochs_have_are_reported(least: int, accumulated: int, noted: bool) -> None:
    asked: dict[str, Any] = {"trainer": {"min_steps": least}, "accum_steps": accumulated}
    if noted:
        with pytest.warns(SettingsWarning, match=rf"min_steps={least} has no effect: the training has"):
            trainer, _ = linear_runs.fit(linear_runs.settings(**asked), epochs=2)
    else:
        trainer, _ = linear_runs.fit(linear_runs.settings(**asked), epochs=2)
    assert [row.code for row in linear_runs.read_back(trainer).notices] == ["idle"] * noted
