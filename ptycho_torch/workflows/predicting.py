"""The loop of a prediction in one process on one device: what a Trainer does there, without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from ptycho_exec.plan import Plan
from ptycho_exec.trainer.alone import effective, moved, predicting, rounding, shown
from ptycho_exec.trainer.drift import DriftReport
from ptycho_torch.data.dataset import Batch
from ptycho_torch.network.predictor import Predictor
from ptycho_torch.workflows.clock import Parts


def predict_all(
    module: Predictor, loader: DataLoader[Batch], plan: Plan, take: Callable[[Any], None], times: Parts
) -> DriftReport:
    """Predict batch by batch, and hand each prediction over; return what this process had at the first one.

    Raises:
        DataError: the network has no probe or was never trained, or `take` refuses a prediction.
    """
    report = DriftReport(())
    with predicting(module, plan) as device, shown(plan, len(loader)) as meter:
        batches = iter(loader)
        while True:
            with times.part("load"):
                batch = next(batches, None)
            if batch is None:
                return report
            with times.part("transfer"):
                batch = moved(batch, device)
            with rounding(device, plan):
                report = report if report.rows else effective(plan, module, loader, meter)
                with times.part("compute"):
                    prediction = module.predict_step(batch)
            with times.part("stitch"):
                take(prediction)
            if meter is not None:
                meter.step()
