"""Callbacks of the workflows: the history of a training, and the stitching of a prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from torch import Tensor

from ptycho_exec.errors import DataError, UserError
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import InferenceConfig
from ptycho_torch.data.dataset import samples_in
from ptycho_torch.data.scan import ScanData
from ptycho_torch.network.ranks import several
from ptycho_torch.reconstruction.phase_sync import PhaseAligner
from ptycho_torch.reconstruction.stitch import Stitcher, StitchResult, probe_weights


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


class StitchWriter(BasePredictionWriter):
    """Adds each predicted batch to the canvas at once, so memory does not grow with the scan.

    Of several processes the first one receives the batches of all and adds them in the order of the scan, as
    one process does that predicts them all; in the end every process has its canvas. It keeps an error until
    then, because the others are still sending.

    Attributes:
        moved_rad: root mean square of the phases by which patches were rotated; 0 when none were.
    """

    def __init__(
        self, scan: ScanData, module: Any, inference: InferenceConfig, settings: ExecutionSettings
    ) -> None:
        super().__init__("batch")
        weights = probe_weights(module.probe.detach()).cpu()
        self.batch_size = settings.inference_batch_size or settings.batch_size
        self.stitcher = Stitcher(
            scan.canvas_shape,
            scan.n_pixels,
            weights=weights if inference.patch_weighting == "probe" else None,
            middle_trim=settings.middle_trim,
            pad_eval=settings.pad_eval,
            window=inference.window,
            out_of_canvas=inference.out_of_canvas,
        )
        align = inference.align_phases
        self.aligner = PhaseAligner(scan.canvas_shape, scan.n_pixels, weights) if align else None
        self.moved_rad = 0.0
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
        n = prediction["patches"].shape[-1]
        own = prediction["patches"].reshape(-1, n, n), prediction["positions_px"].reshape(-1, 2)
        if not several(trainer):
            self._add(*own)
            return
        channels = len(own[0]) // len(batch["amplitude"])
        for part in _received(trainer, *own, samples_in(batch) * channels, self.batch_size * channels):
            try:
                if self._error is None:
                    self._add(*part)
            except UserError as error:
                self._error = error

    def _add(self, patches: Tensor, positions_px: Tensor) -> None:
        """Add the patches (B, N, N) of one batch at their positions (B, 2)."""
        patches, positions_px = patches.cpu(), positions_px.cpu()
        if self.aligner is not None:
            patches = self.aligner.align(patches, positions_px)
        self.stitcher.add(patches, positions_px)

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Take out what phase is left; every process gets the canvas of the first.

        Raises:
            UserError: what was wrong with a batch, in every process.
        """
        del pl_module
        if self.aligner is not None and self._error is None:
            self.stitcher.rotate_phase(self.aligner.field())
            self.moved_rad = self.aligner.moved_rad
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

    def result(self) -> StitchResult:
        """Return the stitched object.

        Raises:
            DataError: nothing covers the canvas, or the object is not finite.
        """
        stitched = self.stitcher.result()
        if not stitched.n_patches or not stitched.coverage.any():
            raise DataError(
                "no patch covers the canvas", fix="check the scan's positions and its object's size"
            )
        if not torch.isfinite(torch.view_as_real(stitched.object)).all():
            raise DataError(
                "the stitched object has values that are not finite",
                expected="finite numbers",
                fix="the weights are damaged or diverged: train again, with a smaller learning_rate",
            )
        return stitched


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
