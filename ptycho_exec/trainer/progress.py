"""How fast a run is, and how much of it remains."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback, ProgressBar

from ptycho_exec.progress import Meter

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


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

    def on_train_start(self, *_: Any) -> None:
        self._start, self._steady, self.samples = time.perf_counter(), None, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, outputs, batch_idx
        self.samples += batch_length(batch) * trainer.world_size
        if self._steady is None:
            self._steady = (time.perf_counter(), self.samples)

    def on_train_end(self, *_: Any) -> None:
        now = time.perf_counter()
        self.seconds = now - self._start
        if self._steady and self.samples > self._steady[1]:
            self.samples_per_second = (self.samples - self._steady[1]) / (now - self._steady[0])


def batch_length(batch: Any) -> int:
    """Return the length of the first tensor in a batch of nested dicts and sequences; 0 without one."""
    if isinstance(batch, torch.Tensor):
        return int(batch.shape[0]) if batch.ndim else 0
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    return next((length for part in parts if (length := batch_length(part))), 0)


class TrainingProgress(ProgressBar):
    """One line for the whole training or prediction, with the time that remains to its end."""

    METRICS = ("train_loss", "val_loss")

    def __init__(self) -> None:
        super().__init__()
        self._meter: Meter | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_meter": None}

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        batches, epochs = trainer.num_training_batches, trainer.max_epochs or 0
        finite = batches != float("inf")
        total = batches * epochs if finite and epochs > 0 else None
        if trainer.max_steps > 0:
            total = min(total or float("inf"), trainer.max_steps * trainer.accumulate_grad_batches)
        self._start(trainer, "training", total, trainer.current_epoch * int(batches) if finite else 0)

    def on_predict_start(self, trainer: Trainer, *_: Any) -> None:
        batches: Any = trainer.num_predict_batches
        self._start(trainer, "reconstructing", sum(batches) if isinstance(batches, list) else batches)

    def _start(self, trainer: Trainer, what: str, total: float | None, done: int = 0) -> None:
        if self._enabled and trainer.is_global_zero:
            self._meter = Meter(what, total, done=done, unit="batches", stays=True)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._meter is not None:
            logged = trainer.callback_metrics
            metrics = [f"{name} {float(logged[name]):.4g}" for name in self.METRICS if name in logged]
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._meter.step(what=epoch, note="  ".join(metrics))

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        del trainer, pl_module, batch
        if self._meter is not None:
            self._meter.step()

    def on_train_end(self, *_: Any) -> None:
        self._stop()

    def on_predict_end(self, *_: Any) -> None:
        self._stop()

    def on_exception(self, *_: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._meter is not None:
            self._meter.close()
            self._meter = None
