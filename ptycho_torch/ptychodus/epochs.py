"""Epochs reported as they end, and those of other processes replayed to callbacks that stayed in this one."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.callbacks import Callback

from ptycho_torch.ptychodus.keywords import LOGGER

logger = logging.getLogger(LOGGER)


class EpochNews(Callback):
    """Logs losses and remaining time of every epoch: Ptychodus's own bar moves at the end only."""

    def __init__(self) -> None:
        self.started_s = 0.0
        self.done = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        del trainer, pl_module
        self.started_s = time.monotonic()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        del pl_module
        self.done += 1
        number, total = trainer.current_epoch + 1, trainer.max_epochs
        metrics = trainer.callback_metrics
        losses = (
            f"{name} {float(metrics[name]):.4g}" for name in ("train_loss", "val_loss") if name in metrics
        )
        left_s = (total - number) * (time.monotonic() - self.started_s) / self.done
        logger.info("epoch %d of %d: %s; %.0f s left", number, total, ", ".join(losses), left_s)


class EpochRecord(Callback):
    """Writes the metrics of every epoch as a line of JSON, on rank zero."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        del pl_module
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": trainer.current_epoch, "metrics": metrics}) + "\n")


def replay(path: Path, callbacks: Iterable[Callback]) -> None:
    """Call the hooks of an epoch's end as if the training had happened here, epoch by epoch."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    receivers = list(callbacks)
    for line in lines:
        row = json.loads(line)
        trainer: Any = SimpleNamespace(
            callback_metrics=row["metrics"],
            current_epoch=row["epoch"],
            sanity_checking=False,
            is_global_zero=True,
        )
        for callback in receivers:
            callback.on_validation_epoch_end(trainer, None)  # type: ignore[arg-type]
            callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
