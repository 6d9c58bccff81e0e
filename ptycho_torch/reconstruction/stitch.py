"""Stitching: predicted patches, placed at sub-pixel positions and averaged, become one object.

Shapes: B patches at a time, N side of a patch, n side of the part that is kept, (H, W) canvas.
Convention: patch pixel k lies at canvas index `position - (N - 1)/2 + k`.

A patch is first interpolated onto the canvas's pixel grid; then `sum(weight * patch) / sum(weight)`.
Since the weight is applied after the interpolation, weights that vary (probe intensity, a window)
add no error of their own: whatever the weights, equal patches give back what they agree on. The
interpolation is separable, eight taps of a Kaiser-windowed sinc (Kaiser, beta = 6; see e.g. Oppenheim
and Schafer, Discrete-Time Signal Processing, 7.5), and is the identity at whole-pixel shifts.
Its error, and why not bilinear, cubic or Fourier: `specs/stitching_and_metrics.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.patterns import at_once

TAPS = 8
"""Width of the interpolation kernel; a patch's outermost pixels lack neighbors for it."""
KAISER_BETA = 6.0
MIN_WEIGHT = 1e-9
"""A canvas pixel with less than this part of one patch's full weight counts as uncovered."""
_CENTER = 4
"""Row of the undisplaced weights among their nine neighbors."""


@dataclass(frozen=True)
class StitchResult:
    """The stitched object, how well it is covered, and what happened at the canvas's edge."""

    object: Tensor
    """complex64 (H, W); 0 where nothing was placed."""
    coverage: Tensor
    """float32 (H, W): sum of weights; 1 is one patch at its full weight, 0 is uncovered."""
    n_patches: int
    """Number of patches that were added."""
    n_cropped: int
    """Patches of which a part (or all) lay outside the canvas and was cut off."""
    n_outside: int
    """Patches that lay outside the canvas altogether."""

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences for the run's record; empty when every patch lies inside the canvas."""
        if not self.n_cropped:
            return ()
        height, width = self.object.shape
        return (
            f"{self.n_cropped} of {self.n_patches} patches reach outside the {height} x {width} canvas "
            f"and were cropped; {self.n_outside} of them lie outside it altogether",
        )


class Stitcher:
    """Accumulates patches on a canvas; memory depends on the canvas, not on the number of patches.

    Args:
        canvas_shape: (H, W) in pixels.
        n: N, the side of a patch.
        weights: float (N, N), non-negative, any scale; none weighs all pixels alike.
        middle_trim: keep only the central `middle_trim` x `middle_trim` pixels of a patch; 0 keeps all.
        pad_eval: False drops the outermost pixels of a sub-pixel shifted patch, for which the interpolation
            would need samples from beyond the patch; True continues the patch by its edge value and
            keeps them, and accepts patches that overhang the canvas, as if the canvas were padded and
            the result cropped. It has no effect on a patch whose kept part is at least four pixels
            inside the patch and wholly inside the canvas.
        window: "hann" tapers the kept part of a patch towards its edge.
        out_of_canvas: "error" refuses a patch that reaches outside the canvas, "crop" cuts and counts.
        device: where the canvas lies.

    Examples:
        >>> import torch
        >>> from ptycho_torch import Stitcher
        >>> stitcher = Stitcher((6, 6), 4, pad_eval=True)
        >>> patches = torch.ones(2, 4, 4, dtype=torch.complex64)
        >>> stitcher.add(patches, torch.tensor([[1.5, 1.5], [3.5, 3.5]]))
        >>> found = stitcher.result()
        >>> found.object[0, 0].item(), found.coverage[2, 2].item(), found.coverage[0, 5].item()
        ((1+0j), 2.0, 0.0)

    Raises:
        DataError: sizes, weights or patches that cannot be stitched.
    """

    def __init__(
        self,
        canvas_shape: tuple[int, int],
        n: int,
        *,
        weights: Tensor | None = None,
        middle_trim: int = 0,
        pad_eval: bool = False,
        window: Literal["none", "hann"] = "none",
        out_of_canvas: Literal["error", "crop"] = "error",
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= middle_trim <= n:
            raise DataError(
                f"middle_trim = {middle_trim} does not fit a patch of {n} x {n} pixels",
                expected=f"0 (keep all) or 1 to {n} central pixels",
            )
        self.canvas_shape = canvas_shape
        self.n = n
        self.kept = middle_trim or n
        self.pad_eval = pad_eval
        self.crop = out_of_canvas == "crop" or pad_eval
        self.device = torch.device(device)
        weights = torch.ones(n, n) if weights is None else weights.detach().float()
        self.weight_neighbors = _weight_neighbors(weights, n, self.kept, window).to(self.device)
        self.canvas = torch.zeros((3, *canvas_shape), device=self.device)
        self.n_patches = self.n_cropped = self.n_outside = 0

    @torch.no_grad()
    def add(self, patches: Tensor, positions_px: Tensor) -> None:
        """Place patches, complex (B, N, N), at positions_px (B, 2) as [y, x] in canvas pixels."""
        if patches.shape != (len(positions_px), self.n, self.n) or positions_px.shape[1:] != (2,):
            raise DataError(
                f"cannot place patches {tuple(patches.shape)} at positions {tuple(positions_px.shape)}",
                expected=f"patches (B, {self.n}, {self.n}) and positions (B, 2)",
            )
        count = at_once(self.n)
        for some, positions in zip(
            torch.split(patches, count), torch.split(positions_px, count), strict=True
        ):
            self._add_chunk(some, positions)

    @torch.no_grad()
    def add_weights(self, positions_px: Tensor) -> None:
        """Add to the coverage alone what patches at positions_px (B, 2) would, whatever they show."""
        for part in torch.split(positions_px, at_once(self.n)):
            self._add_chunk(None, part)

    def result(self) -> StitchResult:
        """Return the weighted mean so far; more patches may be added afterwards."""
        total = self.canvas[2]
        covered = total > MIN_WEIGHT
        mean = torch.empty((*self.canvas_shape, 2), device=self.device)
        coverage = torch.where(covered, total, 0.0)
        for part in range(2):
            torch.div(self.canvas[part], total, out=mean[..., part]).masked_fill_(~covered, 0)
        return StitchResult(
            object=torch.view_as_complex(mean),
            coverage=coverage,
            n_patches=self.n_patches,
            n_cropped=self.n_cropped,
            n_outside=self.n_outside,
        )

    @torch.no_grad()
    def rotate_phase(self, factor: Tensor, rows: slice = slice(None)) -> None:
        """Multiply some rows of what was stitched so far by a unit complex factor, (rows, W) or a scalar."""
        canvas = self.canvas[:, rows]
        rotated = torch.complex(canvas[0], canvas[1]) * factor.to(self.device)
        canvas[0], canvas[1] = rotated.real, rotated.imag

    def _add_chunk(self, patches: Tensor | None, positions_px: Tensor) -> None:
        """Add weighted patches (B, N, N) to the canvas; without them, to its weights alone."""
        if not torch.isfinite(positions_px).all():
            raise DataError("a patch's position is not a finite number", expected="[y, x] in canvas pixels")
        trim = (self.n - self.kept) // 2
        # float64: a float32 position of a large canvas is only good to 1e-4 px.
        origin = positions_px.double().cpu() - (self.n - 1) / 2 + trim
        whole = torch.round(origin)
        corners = whole.long().tolist()
        self._check_inside(corners)
        shift_px = (origin - whole).to(self.device)
        weight = self._weights_at(shift_px)
        if patches is None:
            weighted, planes = weight[:, None], self.canvas[2:]
        else:
            weighted, planes = self._weighted(patches.to(self.device), shift_px, weight, trim), self.canvas
            finite = torch.isfinite(weighted.sum(dim=(1, 2, 3)))
            if not finite.all():
                bad = self.n_patches + int(torch.nonzero(~finite)[0, 0])
                raise DataError(
                    f"patch {bad} holds values that are not finite", expected="finite complex values"
                )
        height, width = self.canvas_shape
        on_cpu = self.device.type == "cpu"
        canvas: Any = planes.numpy() if on_cpu else planes  # numpy slices cost less
        for (y, x), patch in zip(corners, weighted.numpy() if on_cpu else weighted, strict=True):
            top, left = max(-y, 0), max(-x, 0)
            bottom, right = min(self.kept, height - y), min(self.kept, width - x)
            self.n_cropped += bool(top or left or bottom < self.kept or right < self.kept)
            if top >= bottom or left >= right:
                self.n_outside += 1
                continue
            canvas[:, y + top : y + bottom, x + left : x + right] += patch[:, top:bottom, left:right]
        self.n_patches += len(corners)

    def _weighted(self, patches: Tensor, shift_px: Tensor, weight: Tensor, trim: int) -> Tensor:
        """Return weighted real part, weighted imaginary part, weight on the canvas's grid -> (B, 3, n, n)."""
        count, kept = len(patches), self.kept
        patches = patches.to(torch.complex64)
        if shift_px.any():
            # The kept part with the samples its interpolation needs, (B, n + TAPS, n + TAPS). Where the patch
            # ends earlier its edge value is continued; those samples only count with `pad_eval`.
            start, stop = trim - TAPS // 2, trim + kept + TAPS // 2
            if start >= 0 and stop <= self.n:
                source = patches[:, start:stop, start:stop].contiguous()
            else:
                index = torch.arange(start, stop, device=patches.device).clamp(0, self.n - 1)
                source = patches.index_select(1, index).index_select(2, index)
            rows, columns = (_sinc_matrix(shift_px[:, axis], kept) for axis in (0, 1))
            shifted = rows.bmm(torch.view_as_real(source).flatten(2)).view(count, kept, -1, 2)
            shifted = shifted.permute(0, 3, 1, 2).reshape(count, 2 * kept, -1).bmm(columns.mT)
            parts = shifted.view(count, 2, kept, kept)
        else:  # on whole pixels, as a network predicts them: nothing to interpolate
            part = slice(trim, trim + kept)
            parts = torch.view_as_real(patches)[:, part, part].permute(0, 3, 1, 2)
        weighted = torch.empty(count, 3, kept, kept, device=self.device)
        torch.mul(parts, weight[:, None], out=weighted[:, :2])
        weighted[:, 2] = weight
        return weighted

    def _weights_at(self, shift_px: Tensor) -> Tensor:
        """Return the weights, linearly interpolated, so that they stay non-negative -> (B, n, n).

        0 for canvas pixels whose interpolation needs a sample beyond the patch, unless `pad_eval` keeps them.
        """
        if not shift_px.any():
            return self.weight_neighbors[_CENTER].expand(len(shift_px), -1).view(-1, self.kept, self.kept)
        toward = torch.stack((shift_px.clamp(min=0), 1 - shift_px.abs(), (-shift_px).clamp(min=0)), dim=2)
        mix = (toward[:, 0, :, None] * toward[:, 1, None, :]).flatten(1).float()
        weight = mix.matmul(self.weight_neighbors).view(-1, self.kept, self.kept)
        if self.kept < self.n or self.pad_eval:
            return weight
        first = torch.arange(self.n, device=shift_px.device) + torch.floor(-shift_px)[..., None]  # (B, 2, n)
        inside = (first >= TAPS // 2 - 1) & (first + TAPS // 2 <= self.n - 1) | (shift_px == 0)[..., None]
        return weight * (inside[:, 0, :, None] & inside[:, 1, None, :])

    def _check_inside(self, corners: list[list[int]]) -> None:
        height, width = self.canvas_shape
        for offset, (y, x) in enumerate(corners):
            if 0 <= y <= height - self.kept and 0 <= x <= width - self.kept:
                continue
            if not self.crop:
                raise DataError(
                    f"patch {self.n_patches + offset} reaches outside the object canvas",
                    where=f"rows {y} to {y + self.kept - 1}, columns {x} to {x + self.kept - 1}",
                    expected=f"inside a canvas of {height} x {width} pixels",
                    fix="check the scan positions and their unit; or set pad_eval = true, a middle_trim, or "
                    'out_of_canvas = "crop"',
                )


def probe_weights(probe: Tensor) -> Tensor:
    """Return the intensity of a probe, complex (P, N, N) or (N, N), as weights float32 (N, N).

    Pixels that the probe illuminates more are known better: with Poisson noise the information on an
    object pixel is proportional to the intensity that reaches it.
    """
    return probe.abs().square().reshape(-1, *probe.shape[-2:]).sum(dim=0).float()


def probe_coverage(positions_px: Tensor, probe: Tensor, canvas_shape: tuple[int, int]) -> Tensor:
    """Return how well a scan illuminates the canvas, float32 (H, W), as stitching with its probe would.

    positions_px: (M, 2) [y, x]; probe: complex (P, N, N). 1 is one pattern at the probe's brightest pixel.
    """
    n = probe.shape[-1]
    stitcher = Stitcher(canvas_shape, n, weights=probe_weights(probe), pad_eval=True)
    stitcher.add_weights(positions_px)
    return stitcher.result().coverage


def _weight_neighbors(weights: Tensor, n: int, kept: int, window: str) -> Tensor:
    """Return the kept weights displaced by -1, 0, 1 pixel along each axis, tapered -> (9, kept * kept).

    The largest weight (n, n) becomes 1.
    """
    if weights.shape != (n, n):
        raise DataError(f"patch weights have shape {tuple(weights.shape)}", expected=f"({n}, {n})")
    peak = float(weights.max())
    if not (torch.isfinite(weights).all() and float(weights.min()) >= 0 and peak > 0):
        raise DataError(
            "patch weights must be finite, not negative, and not all zero",
            where=f"smallest {float(weights.min()):g}, largest {peak:g}",
        )
    if window not in ("none", "hann"):
        raise DataError(f'unknown stitching window "{window}"', expected='"none" or "hann"')
    taper = torch.ones(kept, kept)
    if window == "hann":  # at pixel centers, so never quite zero
        side = torch.sin(torch.pi * (torch.arange(kept) + 0.5) / kept).square()
        taper = side[:, None] * side[None, :]
    trim = (n - kept) // 2
    padded = F.pad((weights / peak)[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    steps = [slice(trim + step, trim + step + kept) for step in range(3)]
    return torch.stack([(padded[y, x] * taper).flatten() for y in steps for x in steps])


def _sinc_matrix(shift_px: Tensor, kept: int) -> Tensor:
    """Return the interpolation along one axis as banded matrices -> (B, n, n + TAPS).

    `shift_px` (B,) is how far the patch's grid lies beyond the canvas's, -1/2 to 1/2 pixel. Each row of a
    matrix holds the weights of the samples -TAPS/2 .. TAPS/2 around a canvas pixel.
    """
    distance = torch.arange(-TAPS // 2, TAPS // 2 + 1, device=shift_px.device) + shift_px[:, None]
    within = (1 - (2 * distance / TAPS) ** 2).clamp(min=0)
    kernel = torch.sinc(distance) * torch.special.i0(KAISER_BETA * within.sqrt()) * (within > 0)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).float()  # a constant comes back exactly
    width = kept + TAPS
    matrix = torch.zeros(len(shift_px), kept, width, device=shift_px.device)
    bands = matrix.as_strided((len(shift_px), kept, TAPS + 1), (kept * width, width + 1, 1))
    bands.copy_(kernel[:, None, :].expand_as(bands))
    return matrix
