"""Checks inside fit, with a real Trainer."""

from __future__ import annotations

import pytest

from ptycho_exec.fields.model import METRIC_DRIVEN
from ptycho_exec.trainer.readback import ReadBack
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
