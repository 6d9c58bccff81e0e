"""A common phase for all predicted patches, computed where they overlap.

A diffraction pattern does not determine the constant phase of its patch: |F(P O)| = |F(P O exp(i a))|. A
network that sees one pattern at a time gives each patch a phase of its own, typically one of mean zero, so
that the average of the patches loses the object's slow phase changes. Overlapping patches show how their
phases differ. Wanted are unit numbers z_j that make sum_jk <z_j p_j, z_k p_k> largest: synchronization over
the group U(1) (Singer, Appl. Comput. Harmon. Anal. 30, 20 (2011)), solved here as there by power iteration.

It runs while patches arrive, in memory that hardly grows with their number: each patch is reduced to its
probe-weighted sums over blocks of canvas pixels. A patch is rotated in phase to agree with what came before
it. When all have come, their sums are rotated again, along the rows of the canvas and by power iteration.
What remains varies slowly over the canvas, and is taken out of the stitched sum as a smooth phase.

Shapes: B patches of N x N, K x K blocks of a patch, (H, W) canvas.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCKS = 16
"""Blocks along the side of a patch."""
PASSES = 10
"""At most; what differs from patch to patch is gone by then, and what varies slowly the rows have settled."""
AT_ONCE = 512
"""Patches whose sums are worked on at once: they stay in the processor's cache."""
ROWS_AT_ONCE = 256
"""Rows of the canvas whose phase is worked on at once."""
TOLERANCE_RAD = 1e-3
_TINY = 1e-6


class _Sums:
    """Up to `AT_ONCE` patches reduced to blocks: weighted sums, and the corners (B, 2) they start from.

    In half precision, in memory that is taken at once: many small pieces would leave gaps between them.
    """

    def __init__(self, side: int) -> None:
        self.count = 0
        self._parts = torch.empty(AT_ONCE, side, side, 2, dtype=torch.float16)
        self._corners = torch.empty(AT_ONCE, 2, dtype=torch.int64)

    def add(self, sums: Tensor, corners: Tensor) -> int:
        """Keep as many of the sums (B, K, K) as fit in memory; return how many."""
        taken = min(len(sums), AT_ONCE - self.count)
        rows = slice(self.count, self.count + taken)
        self._parts[rows], self._corners[rows] = torch.view_as_real(sums[:taken]), corners[:taken]
        self.count += taken
        return taken

    @property
    def sums(self) -> Tensor:
        """(B, K, K) complex."""
        pairs: Tensor = torch.view_as_complex(self._parts[: self.count].float())
        return pairs

    def sum_of(self, row: int) -> Tensor:
        """(K, K) complex, of one patch."""
        pairs: Tensor = torch.view_as_complex(self._parts[row].float())
        return pairs

    @property
    def corners(self) -> Tensor:
        """(B, 2)."""
        return self._corners[: self.count]


class PhaseAligner:
    """Rotates patches to a common phase as they arrive, and knows the phase that is left in the end.

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
        self.weight = torch.zeros(height * width)
        # The weights' sums depend only on where in a block a patch begins.
        begins = torch.cartesian_prod(torch.arange(self.block), torch.arange(self.block))
        rows, columns = self._blocks(begins)
        self._weight_sums = rows.matmul(self.weights).bmm(columns.mT)
        self._kept: list[_Sums] = []
        self._rotations_rad: list[Tensor] = []

    @torch.no_grad()
    def align(self, patches: Tensor, positions_px: Tensor) -> Tensor:
        """Rotate patches (B, N, N) complex at positions_px (B, 2) to the phase of those that came before.

        One after the other, so that the result does not depend on how a scan is cut into batches.
        """
        # First pixel of each patch on the canvas with its margin; what lies farther off is moved there.
        origin = torch.round(positions_px.cpu().double() - (self.n - 1) / 2).long() + self.margin
        corners = torch.minimum(origin.clamp_min(0), torch.tensor(self.grid) * self.block - self.margin)
        sums = _complex_sums(self.weights * patches.cpu().to(torch.complex64), self._blocks(corners))
        found = self._rotations(sums, self._block_index(corners), self._weights_at(corners))
        rotation = torch.from_numpy(found)
        self._keep(_rotated(sums, rotation), corners)
        self._rotations_rad.append(rotation.angle())
        return _rotated(patches, rotation.to(patches.device))

    def _keep(self, sums: Tensor, corners: Tensor) -> None:
        """Remember the sums of a batch, in a unit that half precision holds; only their phases matter."""
        sums = sums / self._weight_sums.max()
        while len(sums):
            if not self._kept or self._kept[-1].count == AT_ONCE:
                self._kept.append(_Sums(self.side))
            taken = self._kept[-1].add(sums, corners)
            sums, corners = sums[taken:], corners[taken:]

    def _rotations(self, sums: Tensor, index: Tensor, weights: Tensor) -> NDArray[np.complex64]:
        """Unit numbers (B,) that rotate each patch to those before it; adds the patches up on the way.

        numpy, whose small operations cost less.
        """
        total, weight = self.total.numpy(), self.weight.numpy()
        rotations = np.ones(len(sums), dtype=np.complex64)
        rows = zip(*(part.flatten(1).numpy() for part in (sums, index, weights)), strict=True)
        for j, (own, blocks, own_weight) in enumerate(rows):
            # <own, mean so far> = sum of conj(own) * mean has the phase by which the mean is ahead of the
            # patch; rotated by it, the patch adds to the mean in phase. The first patch on empty blocks has
            # nothing to agree with (agreement 0) and keeps its phase. No block appears twice in one patch,
            # so that `total[blocks] +=` loses nothing.
            agreement = np.vdot(own, total[blocks] / np.maximum(weight[blocks], _TINY))
            rotations[j] = agreement / abs(agreement) if agreement else 1
            total[blocks] += own * rotations[j]
            weight[blocks] += own_weight
        return rotations

    @torch.no_grad()
    def fields(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield what the stitched object is still to be multiplied with, some rows of the canvas at a time.

        A slice of rows, and unit complex64 numbers (rows, W).
        """
        if not self._kept:
            yield slice(0, self.canvas_shape[0]), torch.ones(self.canvas_shape, dtype=torch.complex64)
            return
        rotations = self._power_iteration()
        self.total, mean = torch.zeros_like(self.total), torch.zeros_like(self.total)
        for kept, rotation in zip(self._kept, rotations, strict=True):
            index = self._block_index(kept.corners)
            _add(self.total, index, _rotated(kept.sums, rotation))
            _add(mean, index, _rotated(self._weights_at(kept.corners), rotation))
        # Interpolate each block's mean rotation to canvas pixels; 1 where nothing was illuminated.
        mean = mean.view(self.grid)
        unit = torch.where(mean.abs() > _TINY, mean / mean.abs().clamp_min(_TINY), 1)
        height, width = self.canvas_shape
        step = max(1, ROWS_AT_ONCE // self.block)
        for first in range(0, self.grid[0], step):
            begin = first * self.block - self.margin
            rows = slice(max(begin, 0), min(begin + step * self.block, height))
            if rows.start < rows.stop:
                fine, top = self._interpolated(unit, first, step)
                image = fine[rows.start - top : rows.stop - top, self.margin : self.margin + width]
                yield rows, torch.where(image.abs() > _TINY, image / image.abs().clamp_min(_TINY), 1)

    def _interpolated(self, unit: Tensor, first: int, count: int) -> tuple[Tensor, int]:
        """Return rows of blocks, one more on either side, as rows of pixels; and which row comes first."""
        above = max(first - 1, 0)
        planes = torch.view_as_real(unit[above : first + count + 1]).permute(2, 0, 1)[None]
        fine = torch.nn.functional.interpolate(
            planes, scale_factor=float(self.block), mode="bilinear", align_corners=False
        )[0]
        return torch.complex(fine[0], fine[1]), above * self.block - self.margin

    @property
    def moved_rad(self) -> float:
        """Root mean square of the phases by which patches were rotated on arrival."""
        phases = self._rotations_rad
        return float(torch.cat(phases).square().mean().sqrt()) if phases else 0.0

    def _one_after_the_other(self) -> list[Tensor]:
        """Rotate patches to those before them once more, now along the rows of the canvas.

        Each then overlaps one before it, in whatever order the scan visited them: phases that grew from
        several places at a time would meet at borders that the power iteration hardly moves.
        """
        corners = torch.cat([kept.corners for kept in self._kept])
        line, column = corners[:, 0] // max(self.n // 4, 1), corners[:, 1]
        there_and_back = torch.where(line % 2 == 0, column, -column)
        order = np.lexsort((there_and_back.numpy(), line.numpy()))
        counts = [kept.count for kept in self._kept]
        piece = np.repeat(np.arange(len(counts)), counts)
        row = np.concatenate([np.arange(count) for count in counts])
        found = np.ones(len(order), dtype=np.complex64)
        self.total.zero_()
        self.weight.zero_()
        for some in np.split(order, range(AT_ONCE, len(order), AT_ONCE)):
            places = corners[some]
            sums = torch.stack([self._kept[piece[i]].sum_of(row[i]) for i in some])
            found[some] = self._rotations(sums, self._block_index(places), self._weights_at(places))
        return list(torch.split(torch.from_numpy(found), counts))

    def _power_iteration(self) -> list[Tensor]:
        """Rotate patches towards the mean of all until none changes by more than the tolerance."""
        rotations = self._one_after_the_other()
        weight = self.weight.clamp_min(_TINY)
        mean = self.total
        for _ in range(PASSES):
            before, mean, changed = mean / weight, torch.zeros_like(mean), 0.0
            for i, kept in enumerate(self._kept):
                sums, index = kept.sums, self._block_index(kept.corners)
                agreement = torch.linalg.vecdot(sums.flatten(1), before[index].flatten(1))
                size = agreement.abs()  # 0 where a patch shares no illuminated block with another
                unit = agreement / size.clamp_min(torch.finfo(size.dtype).tiny)
                last, rotations[i] = rotations[i], torch.where(size > 0, unit, 1)
                changed = max(changed, float((rotations[i] * last.conj()).angle().abs().max()))
                _add(mean, index, _rotated(sums, rotations[i]))
            if changed < TOLERANCE_RAD:
                break
        return rotations

    def _weights_at(self, corners: Tensor) -> Tensor:
        """Sums of the weights over the blocks that each patch touches -> (B, K, K)."""
        begin = corners % self.block
        return self._weight_sums[begin[:, 0] * self.block + begin[:, 1]]

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


def _add(canvas: Tensor, index: Tensor, values: Tensor) -> None:
    canvas.index_add_(0, index.flatten(), values.flatten().to(canvas.dtype))


def _complex_sums(images: Tensor, blocks: tuple[Tensor, Tensor]) -> Tensor:
    """Sum complex images (B, N, N) over the blocks -> (B, K, K): real and imaginary parts, side by side."""
    rows, columns = blocks
    count, side, n = rows.shape
    within = rows.bmm(torch.view_as_real(images).flatten(2)).view(count, side, n, 2)
    sums = within.permute(0, 3, 1, 2).reshape(count, 2 * side, n).bmm(columns.mT)
    return torch.complex(sums[:, :side], sums[:, side:])


def _rotated(images: Tensor, rotation: Tensor) -> Tensor:
    return images * rotation[:, None, None]
