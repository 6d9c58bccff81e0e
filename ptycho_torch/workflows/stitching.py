"""From predicted batches to the object, one batch at a time: memory does not grow with the scan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptycho_exec.errors import DataError
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import InferenceConfig
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage.patterns import at_once
from ptycho_torch.reconstruction.phase_sync import PhaseAligner
from ptycho_torch.reconstruction.stitch import Stitcher, StitchResult, probe_weights


class ObjectWriter:
    """Adds each predicted batch to the canvas at once.

    Attributes:
        moved_rad: root mean square of the phases by which patches were rotated; 0 when none were.
    """

    def __init__(
        self, scan: ScanData, module: Any, inference: InferenceConfig, settings: ExecutionSettings
    ) -> None:
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
        self.moved_rad = 0.0

    def add(self, prediction: Any) -> None:
        """Add what `predict_step` returned for one batch."""
        self.add_patches(*flat_prediction(prediction))

    def add_patches(self, patches: Tensor, positions_px: Tensor) -> None:
        """Add the patches (B, N, N) of one batch at their positions (B, 2)."""
        patches, positions_px = patches.cpu(), positions_px.cpu()
        count = at_once(patches.shape[-1])
        for some, places in zip(torch.split(patches, count), torch.split(positions_px, count), strict=True):
            aligned = some if self.aligner is None else self.aligner.align(some, places)
            self.stitcher.add(aligned, places)

    def finish(self) -> None:
        """Take out what phase is left, once all batches are added."""
        if self.aligner is not None:
            for rows, factor in self.aligner.fields():
                self.stitcher.rotate_phase(factor, rows)
            self.moved_rad = self.aligner.moved_rad
        self.aligner = None

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


def flat_prediction(prediction: Any) -> tuple[Tensor, Tensor]:
    """Return patches (B, N, N) and positions (B, 2) of a prediction in groups."""
    n = prediction["patches"].shape[-1]
    return prediction["patches"].reshape(-1, n, n), prediction["positions_px"].reshape(-1, 2)
