"""A common phase for all predicted patches, found where they overlap.

A diffraction pattern does not tell the constant phase of its patch: |F(P O)| = |F(P O exp(i a))|. A network
that sees one pattern at a time gives each patch a phase of its own, typically one of mean zero, so that the
average of the patches loses the object's slow phase changes. Overlapping patches do tell how their phases
differ. Wanted are unit numbers z_j that make sum_jk <z_j p_j, z_k p_k> largest: synchronization over the
group U(1) (Singer, Appl. Comput. Harmon. Anal. 30, 20 (2011)), solved here as there by power iteration.

It runs while patches arrive, in memory that hardly grows with their number: each patch is reduced to its
probe-weighted sums over blocks of canvas pixels. A patch is turned to agree with what came before it. What
remains when all have come varies slowly over the canvas, and is taken out of the stitched sum as a smooth
phase.

Shapes: B patches of N x N, K x K blocks of a patch, (H, W) canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCKS = 16
"""Blocks along the side of a patch."""
PASSES = 100
TOLERANCE_RAD = 1e-3
_DARK = 1e-6


@dataclass(frozen=True)
class _Sums:
    """Patches reduced to blocks: weighted sums (B, K, K) complex, and the corners (B, 2) they start from."""

    sums: Tensor
    corners: Tensor


class PhaseAligner:
    """Turns patches to a common phase as they arrive, and says what is left to turn in the end.

    Args:
        canvas_shape: (H, W) of the object.
        n: side N of a patch.
        weights: float (N, N), how well each pixel of a patch is known; the probe's intensity.
    """

    def __init__(self, canvas_shape: tuple[int, int], n: int, weights: Tensor) -> None:
        self.canvas_shape, self.n = canvas_shape, n
        self.block = max(1, n // BLOCKS)
        self.side = -(-(n + self.block - 1) // self.block)
        self.margin = self.block * self.side  # a patch may overhang the canvas by its whole side
        height, width = (-(-(extent + 2 * self.margin) // self.block) for extent in canvas_shape)
        self.grid = (height, width)
        self.weights = (weights / weights.max()).float().cpu()
        self.total = torch.zeros(height * width, dtype=torch.complex64)
        self.light = torch.zeros(height * width)
        self._kept: list[_Sums] = []
        self._moved: list[Tensor] = []

    @torch.no_grad()
    def align(self, patches: Tensor, positions_px: Tensor) -> Tensor:
        """Turn patches (B, N, N) complex at positions_px (B, 2) to the phase of those that came before.

        One after the other, so that the result does not depend on how a scan is cut into batches.
        """
        corners = self._corners(positions_px.cpu())
        index, blocks = self._block_index(corners), self._blocks(corners)
        sums = _summed(self.weights * patches.cpu().to(torch.complex64), blocks)
        turn = torch.from_numpy(self._turns(sums, index, _summed(self.weights, blocks)))
        self._kept.append(_Sums(_turned(sums, turn), corners))
        self._moved.append(turn.angle())
        return _turned(patches, turn.to(patches.device))

    def _turns(self, sums: Tensor, index: Tensor, weights: Tensor) -> NDArray[np.complex64]:
        """Turn patches (B,) one by one and add them up; numpy, whose small operations cost less."""
        total, light = self.total.numpy(), self.light.numpy()
        turns = np.ones(len(sums), dtype=np.complex64)
        rows = zip(*(part.flatten(1).numpy() for part in (sums, index, weights)), strict=True)
        for j, (own, blocks, weight) in enumerate(rows):
            agreement = np.vdot(own, total[blocks] / np.maximum(light[blocks], _DARK))
            turns[j] = agreement / abs(agreement) if agreement else 1
            total[blocks] += own * turns[j]  # no block appears twice in one patch
            light[blocks] += weight
        return turns

    @torch.no_grad()
    def field(self) -> Tensor:
        """Unit complex64 (H, W) with which the stitched object is still to be multiplied."""
        if not self._kept:
            return torch.ones(self.canvas_shape, dtype=torch.complex64)
        sums = torch.cat([kept.sums for kept in self._kept])
        corners = torch.cat([kept.corners for kept in self._kept])
        index = self._block_index(corners)
        empty = torch.zeros_like(self.total)
        turn = self._power_iteration(sums, index)
        self.total = _added(empty, index, _turned(sums, turn))
        weights = torch.cat([_summed(self.weights, self._blocks(kept.corners)) for kept in self._kept])
        return self._smooth(_added(empty, index, _turned(weights, turn)).view(self.grid))

    @property
    def moved_rad(self) -> float:
        """Root mean square of the phases by which patches were turned on arrival."""
        return float(torch.cat(self._moved).square().mean().sqrt()) if self._moved else 0.0

    def _power_iteration(self, sums: Tensor, index: Tensor) -> Tensor:
        """Turn patches towards the mean of all until none changes by more than the tolerance -> (B,)."""
        turn = torch.ones(len(sums), dtype=torch.complex64)
        light = self.light.clamp_min(_DARK)
        for _ in range(PASSES):
            mean = _added(torch.zeros_like(self.total), index, _turned(sums, turn)) / light
            before, turn = turn, _phase_towards(mean, sums, index)
            if float((turn * before.conj()).angle().abs().max()) < TOLERANCE_RAD:
                break
        return turn

    def _corners(self, positions_px: Tensor) -> Tensor:
        """First pixel of each patch on the canvas with its margin; what lies farther off is moved there."""
        origin = torch.round(positions_px.double() - (self.n - 1) / 2).long() + self.margin
        limit = torch.tensor(self.grid) * self.block - self.margin
        return torch.minimum(origin.clamp_min(0), limit)

    def _block_index(self, corners: Tensor) -> Tensor:
        """Flat index of the blocks that each patch touches -> (B, K, K)."""
        first, step = corners // self.block, torch.arange(self.side)
        rows, columns = first[:, 0, None, None] + step[:, None], first[:, 1, None, None] + step
        return rows * self.grid[1] + columns

    def _blocks(self, corners: Tensor) -> tuple[Tensor, Tensor]:
        """Which block each row and each column of a patch falls into: two of (B, K, N), 0 or 1."""
        block = (corners[..., None] % self.block + torch.arange(self.n)) // self.block
        within = (block[:, :, None, :] == torch.arange(self.side)[:, None]).float()
        return within[:, 0], within[:, 1]

    def _smooth(self, turns: Tensor) -> Tensor:
        """Interpolate each block's mean turn to canvas pixels; where no light fell, nothing is turned."""
        lit = turns.abs() > _DARK
        unit = torch.where(lit, turns / turns.abs().clamp_min(_DARK), 1)
        planes = torch.view_as_real(unit).permute(2, 0, 1)[None]
        fine = torch.nn.functional.interpolate(
            planes, scale_factor=float(self.block), mode="bilinear", align_corners=False
        )[0]
        height, width = self.canvas_shape
        start = self.margin
        image = torch.complex(fine[0], fine[1])[start : start + height, start : start + width]
        return torch.where(image.abs() > _DARK, image / image.abs().clamp_min(_DARK), 1)


def _added(canvas: Tensor, index: Tensor, values: Tensor) -> Tensor:
    return canvas.index_add(0, index.flatten(), values.flatten().to(canvas.dtype))


def _summed(image: Tensor, blocks: tuple[Tensor, Tensor]) -> Tensor:
    """Sum an image (N, N) or (B, N, N) over the blocks -> (B, K, K)."""
    rows, columns = (part.to(image.dtype) for part in blocks)
    return rows @ image @ columns.mT


def _turned(images: Tensor, turn: Tensor) -> Tensor:
    return images * turn[:, None, None]


def _phase_towards(mean: Tensor, sums: Tensor, index: Tensor) -> Tensor:
    """Unit numbers (B,) that turn each patch to the mean of all; 1 where they share no light."""
    agreement = (sums.conj() * mean[index]).sum(dim=(1, 2))
    size = agreement.abs()
    return torch.where(size > 0, agreement / size.clamp_min(torch.finfo(size.dtype).tiny), 1)
