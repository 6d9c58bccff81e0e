"""What a training reports to Ptychodus: each epoch, wherever its processes are, and a model to go on with.

The process of rank zero writes a line of JSON for each epoch; a thread of the process that Ptychodus started
reads them, shows them, and lets a Stop act between them.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.callbacks import Callback

from ptycho_exec.trainer.checkpoints import copy_once
from ptycho_torch.network.checkpoint import MODEL_NAME
from ptycho_torch.ptychodus.keywords import LOGGER
from ptycho_torch.ptychodus.window import Progress, end_with_parent, end_with_window, report

logger = logging.getLogger(LOGGER)

EPOCHS_NAME = "epochs.jsonl"
LOOKS_EVERY_S, REPORTS_EVERY = 0.2, 5
IF_GREY = "where it is grey, choose the algorithm anew"


class EpochNews(Callback):
    """Writes a line for each epoch, once its checkpoints are there, and keeps the best as `model.ckpt`.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._builder = os.getpid()
        self._started_s = 0.0
        self._done = 0
        self._best = ""
        self._row: dict[str, Any] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        del trainer, pl_module, stage
        if os.getpid() != self._builder:
            end_with_parent()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        del trainer, pl_module
        self._started_s = time.monotonic()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        del pl_module
        self._done += 1
        left = trainer.max_epochs - trainer.current_epoch - 1
        self._row = {
            "epoch": trainer.current_epoch,
            "of": trainer.max_epochs,
            "left_s": left * (time.monotonic() - self._started_s) / self._done,
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        }

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        del pl_module
        self._write(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        del pl_module
        self._write(trainer)

    def _write(self, trainer: Any) -> None:
        """Write the epoch that ended: Lightning's checkpoints come after everybody's end of the epoch."""
        row, self._row = self._row, None
        if row is None or not trainer.is_global_zero:
            return
        found = (getattr(callback, "best_model_path", "") for callback in trainer.checkpoint_callbacks)
        best = next((path for path in found if path), "")
        if best != self._best:
            copy_once(Path(best), self.folder / MODEL_NAME)
            row["best"], self._best = True, best
        with (self.folder / EPOCHS_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class Follower(threading.Thread):
    """Shows the epochs of a training as they end, inside a `with` block.

    Args:
        folder: the run directory.
        callbacks: callbacks that cannot be where the training is; the ends of its epochs are played to them.
    """

    def __init__(self, folder: Path, callbacks: Iterable[Callback] = ()) -> None:
        super().__init__(name="epochs", daemon=True)
        self.folder, self.callbacks = folder, tuple(callbacks)
        self.progress = Progress(0, "the model of before stays")
        self._over = threading.Event()
        self._read = 0
        self._error: Exception | None = None

    def __enter__(self) -> Follower:
        end_with_window()
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self.join()
        self._follow()
        (self.folder / EPOCHS_NAME).unlink(missing_ok=True)
        if self._error is not None and kind is None:
            raise self._error

    def run(self) -> None:
        looks = 0
        while not self._over.wait(LOOKS_EVERY_S):
            self._follow()
            looks += 1
            if looks % REPORTS_EVERY == 0:
                report(self.progress)

    def _follow(self) -> None:
        file = self.folder / EPOCHS_NAME
        text = file.read_bytes()[self._read :] if file.is_file() else b""
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        try:
            for line in whole.splitlines():
                self._show(json.loads(line))
        except Exception as error:  # of a callback; the training goes on, and the caller gets it
            self._error = self._error or error

    def _show(self, row: dict[str, Any]) -> None:
        number, metrics = row["epoch"] + 1, row["metrics"]
        losses = ", ".join(
            f"{name} {metrics[name]:.4g}" for name in ("train_loss", "val_loss") if name in metrics
        )
        best = "; best so far" if row.get("best") else ""
        logger.info("epoch %d of %d: %s; %.0f s left%s", number, row["of"], losses, row["left_s"], best)
        model = self.folder / MODEL_NAME
        kept = f"Infer takes the model of epoch {number}, {model}; {IF_GREY}" if best else self.progress.kept
        self.progress = Progress(number, kept)
        report(self.progress, model if best else None)
        trainer: Any = SimpleNamespace(
            callback_metrics=metrics, current_epoch=row["epoch"], sanity_checking=False, is_global_zero=True
        )
        for callback in self.callbacks:
            callback.on_validation_epoch_end(trainer, None)  # type: ignore[arg-type]
            callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
