"""Callbacks of the workflows: the history of a training, and the stitching of a prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from torch import Tensor

from ptycho_exec.errors import UserError
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import InferenceConfig
from ptycho_torch.data.dataset import samples_in
from ptycho_torch.data.scan import ScanData
from ptycho_torch.network.ranks import several
from ptycho_torch.workflows.stitching import ObjectWriter, flat_prediction


class History(Callback):
    """Keeps the epoch's value of every logged metric: name -> list over epochs."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        del pl_module
        for name, value in trainer.callback_metrics.items():
            self.values.setdefault(name, []).append(float(value))

    def state_dict(self) -> dict[str, Any]:
        return {"values": {name: list(values) for name, values in self.values.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the epochs before an interruption."""
        self.values = {name: list(values) for name, values in state_dict["values"].items()}


class StitchWriter(ObjectWriter, BasePredictionWriter):
    """Adds each predicted batch of a Trainer to the canvas at once.

    Of several processes the first one receives the batches of all and adds them in the order of the scan, as
    one process does that predicts them all; in the end every process has its canvas. It keeps an error until
    then, because the others are still sending.
    """

    def __init__(
        self, scan: ScanData, module: Any, inference: InferenceConfig, settings: ExecutionSettings
    ) -> None:
        ObjectWriter.__init__(self, scan, module, inference, settings)
        BasePredictionWriter.__init__(self, "batch")
        self.batch_size = settings.inference_batch_size or settings.batch_size
        self._error: UserError | None = None

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        del pl_module, batch_indices, batch_idx, dataloader_idx
        if not several(trainer):
            self.add(prediction)
            return
        own = flat_prediction(prediction)
        channels = len(own[0]) // len(batch["amplitude"])
        for part in _received(trainer, *own, samples_in(batch) * channels, self.batch_size * channels):
            try:
                if self._error is None:
                    self.add_patches(*part)
            except UserError as error:
                self._error = error

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Take out what phase is left; every process gets the canvas of the first.

        Raises:
            UserError: what was wrong with a batch, in every process.
        """
        del pl_module
        if self._error is None:
            self.finish()
        self.aligner = None
        if several(trainer):
            names = ("canvas", "n_patches", "n_cropped", "n_outside")
            own = {name: getattr(self.stitcher, name) for name in names}
            first, self.moved_rad, self._error = trainer.strategy.broadcast(
                (own, self.moved_rad, self._error), src=0
            )
            vars(self.stitcher).update(first)
        if self._error is not None:
            raise self._error


def _received(
    trainer: Any, patches: Tensor, positions_px: Tensor, count: int, room: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Send the first `count` patches to the first process, which yields those of each process in turn.

    All send the same number of rows, `room`, in which the last column tells patches from what fills up.
    """
    kind, n = torch.promote_types(patches.real.dtype, positions_px.dtype), patches.shape[-1]
    rows = torch.zeros(room, 2 * n * n + 3, dtype=kind, device=patches.device)
    rows[:count, : 2 * n * n] = torch.view_as_real(patches[:count]).flatten(1)
    rows[:count, -3:-1], rows[:count, -1] = positions_px[:count], 1
    parts = [torch.empty_like(rows) for _ in range(trainer.world_size)] if trainer.is_global_zero else None
    torch.distributed.gather(rows, parts)
    for part in parts or ():
        sent = part[part[:, -1] > 0]
        images = sent[:, : 2 * n * n].reshape(-1, n, n, 2).to(patches.real.dtype)
        yield torch.complex(images[..., 0], images[..., 1]), sent[:, -3:-1].to(positions_px.dtype)
