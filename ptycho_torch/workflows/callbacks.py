"""Callbacks of the workflows: the history of a training, and the stitching of a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback

from ptycho_exec.errors import DataError
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import InferenceConfig
from ptycho_torch.data.scan import ScanData
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
    """Adds each predicted batch to the canvas at once, so memory does not grow with the scan."""

    def __init__(
        self, scan: ScanData, module: Any, inference: InferenceConfig, settings: ExecutionSettings
    ) -> None:
        super().__init__("batch")
        weights = probe_weights(module.probe.detach()).cpu()
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

    @property
    def moved_rad(self) -> float:
        """Root mean square of the phases by which patches were rotated; 0 when none were."""
        return 0.0 if self.aligner is None else self.aligner.moved_rad

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
        del trainer, pl_module, batch_indices, batch, batch_idx, dataloader_idx
        n = prediction["patches"].shape[-1]
        patches = prediction["patches"].reshape(-1, n, n).cpu()
        positions = prediction["positions_px"].reshape(-1, 2).cpu()
        if self.aligner is not None:
            patches = self.aligner.align(patches, positions)
        self.stitcher.add(patches, positions)

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Take out what phase is left, and add up the canvases of all processes.

        Each process has aligned its own patches; they are brought to the phase of the first one's.
        """
        del pl_module
        several = trainer.world_size > 1
        if self.aligner is not None:
            self.stitcher.rotate_phase(self.aligner.field())
            if several:
                own, device = self.aligner.total, trainer.strategy.root_device
                first = trainer.strategy.broadcast(torch.view_as_real(own).to(device), src=0)
                agreement = torch.vdot(own, torch.view_as_complex(first.cpu()))
                self.stitcher.rotate_phase(torch.polar(torch.ones(()), agreement.angle()))
        if several:
            self.stitcher.canvas = trainer.strategy.reduce(self.stitcher.canvas, reduce_op="sum")

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
