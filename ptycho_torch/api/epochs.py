"""Epochs of a training in other processes, recorded there and played to callbacks that stayed here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.callbacks import Callback


class EpochRecord(Callback):
    """Writes the metrics of every epoch as a line of JSON, on rank zero."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        del pl_module
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"epoch": trainer.current_epoch, "metrics": metrics}) + "\n")


def replay(path: Path, callbacks: Iterable[Callback]) -> None:
    """Call the hooks of an epoch's end as if the training had happened here, epoch by epoch."""
    lines = path.read_text().splitlines() if path.is_file() else []
    told = list(callbacks)
    for line in lines:
        row = json.loads(line)
        trainer: Any = SimpleNamespace(
            callback_metrics=row["metrics"],
            current_epoch=row["epoch"],
            sanity_checking=False,
            is_global_zero=True,
        )
        for callback in told:
            callback.on_validation_epoch_end(trainer, None)  # type: ignore[arg-type]
            callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
