"""Removal of what diffraction does not determine: global phase, phase ramp, amplitude scale, translation.

Arrays are numpy, (H, W); phases in radians, shifts in pixels as (y, x). The coarse translation comes from
registration in Fourier space (Guizar-Sicairos, Thurman and Fienup, Opt. Lett. 33, 156 (2008), as in
scikit-image); all unknowns are then refined together by least squares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Complex = NDArray[np.complex128]
Real = NDArray[np.float64]

MIN_FIELD_PX = 16
"""Smallest side of a scored rectangle: below it neither SSIM's window nor the rings make sense."""
_BEYOND = 12
"""Pixels of edge around an image, so that its splines do not see where it ends."""
MAX_STEPS = 8
"""Gauss-Newton steps; it converges in two or three."""


class Field(NamedTuple):
    """A rectangle of the canvas; the stop is exclusive, as in slices."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index that cuts the rectangle out of an array (H, W)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left

    def shrunk(self, margin: int) -> Field:
        """Return the rectangle without a margin on each side."""
        return Field(self.top + margin, self.bottom - margin, self.left + margin, self.right - margin)

    def grown(self, margin: int, shape: tuple[int, ...]) -> Field:
        """Return the rectangle with a margin on each side, as far as an array of this shape reaches."""
        rows = max(self.top - margin, 0), min(self.bottom + margin, shape[0])
        return Field(*rows, max(self.left - margin, 0), min(self.right + margin, shape[1]))


@dataclass(frozen=True)
class Alignment:
    """What was removed: aligned = scale * exp(i (phase + ramp . r)) * reconstruction moved by shift."""

    amplitude_scale: float
    phase_rad: float
    """Global phase at the center of the scored rectangle."""
    ramp_rad_per_px: tuple[float, float]
    """Phase ramp along y and x."""
    shift_px: tuple[float, float]
    """Translation of the reconstruction along y and x, in pixels."""


def align(
    reconstruction: Complex, truth: Complex, area: Field, *, max_shift_px: float = 8.0
) -> tuple[Complex, Alignment, Field]:
    """Remove scale, phase, ramp and shift -> aligned reconstruction on a field, what was removed, field.

    A coarse estimate (registration and phase differences in turn) is refined by Gauss-Newton steps on all
    unknowns at once, because a ramp left over looks like a shift and the other way round. The field
    is `area` less the margin that moved in from outside.
    """
    image = Splines(reconstruction)
    unknowns = _coarse_alignment(image, truth, area, max_shift_px)
    misfit = _misfit(image, truth, area, unknowns)
    for _ in range(MAX_STEPS):
        trial = unknowns + _gauss_newton_step(image, truth, area, unknowns)
        trial_misfit = _misfit(image, truth, area, trial)
        if np.abs(trial[2:]).max() > max_shift_px or trial_misfit >= misfit:
            break
        unknowns, misfit = trial, trial_misfit
    model, factor = _model(image, truth, area, unknowns)
    margin = math.ceil(np.abs(unknowns[2:]).max() - 1e-6)
    if min(area.shape) <= 2 * margin + MIN_FIELD_PX:
        margin = 0
    inner = tuple(slice(margin, side - margin) for side in area.shape)
    alignment = Alignment(
        amplitude_scale=float(abs(factor)),
        phase_rad=float(np.angle(factor)),
        ramp_rad_per_px=(float(unknowns[0]), float(unknowns[1])),
        shift_px=(float(unknowns[2]), float(unknowns[3])),
    )
    return model[inner], alignment, area.shrunk(margin)


def alike(image: NDArray[Any], reference: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
    """Return an image (H, W), complex, times the factor and phase ramp that bring it near a reference (H, W).

    For showing two side by side: quick, on the whole canvas, and without a translation. weights: (H, W), at
    least 0, how much each pixel counts.
    """
    ratio = reference * image.conj() * weights
    slope = [float(np.angle(np.sum(ratio[1:] * ratio[:-1].conj()))), 0.0]
    slope[1] = float(np.angle(np.sum(ratio[:, 1:] * ratio[:, :-1].conj())))
    turned = image * np.exp(1j * _ramp((image.shape[0], image.shape[1]), np.array(slope)))
    power = float(np.vdot(turned, turned * weights).real)
    return np.asarray(turned * (np.vdot(turned * weights, reference) / power) if power > 0 else image)


def _model(image: Splines, truth: Complex, area: Field, unknowns: Real) -> tuple[Complex, complex]:
    """Return the moved, deramped reconstruction times the best complex factor, and that factor."""
    moved = image.shifted(unknowns[2:], area) * np.exp(1j * _ramp(area.shape, unknowns[:2]))
    power = float(np.vdot(moved, moved).real)
    factor = complex(np.vdot(moved, truth[area.slices]) / power) if power > 0 else 1.0 + 0j
    return moved * factor, factor


def _misfit(image: Splines, truth: Complex, area: Field, unknowns: Real) -> float:
    model, _ = _model(image, truth, area, unknowns)
    return float(np.linalg.norm(model - truth[area.slices]))


def _ramp(shape: tuple[int, int], slope: Real) -> Real:
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in shape)
    return np.asarray(slope[0] * rows[:, None] + slope[1] * columns[None, :])


def shifted(image: Complex, shift_px: Real) -> Complex:
    """Move the content of an image (H, W) by (y, x) pixels with quintic splines; none at zero shift."""
    return Splines(image).shifted(shift_px, Field(0, image.shape[0], 0, image.shape[1]))


class Splines:
    """An image (H, W), complex, as quintic splines, whose coefficients are computed once for many shifts."""

    def __init__(self, image: Complex) -> None:
        self.image = image
        self._coefficients: Complex | None = None
        self._last: tuple[Any, Complex] | None = None

    def shifted(self, shift_px: Real, area: Field) -> Complex:
        """Return an area of the image with its content moved by (y, x) pixels; outside, its edge goes on."""
        if not np.any(shift_px):
            return self.image[area.slices]
        wanted = tuple(map(float, shift_px)), area
        if self._last is not None and self._last[0] == wanted:
            return self._last[1]
        if self._coefficients is None:
            from scipy.ndimage import spline_filter

            beyond = np.pad(self.image, _BEYOND, mode="edge")
            self._coefficients = np.asarray(spline_filter(beyond, order=5, mode="nearest", output=complex))
        (top, bottom, left, right), (down, across) = area, shift_px
        rows = _values_at(self._coefficients, np.arange(top, bottom) + _BEYOND - down)
        moved = _values_at(rows.T, np.arange(left, right) + _BEYOND - across).T
        self._last = wanted, moved
        return moved


def _values_at(coefficients: Complex, places: Real) -> Complex:
    """Return quintic splines (n, K) at places (m,) along the first axis -> (m, K); their edge goes on."""
    last = len(coefficients) - 1
    places = np.clip(places, 0, last)
    first = np.floor(places).astype(np.int64) - 2
    values = np.zeros((len(places), coefficients.shape[1]), dtype=coefficients.dtype)
    for index in (first + tap for tap in range(6)):
        mirrored = last - np.abs(last - np.abs(index))
        values += _quintic(places - index)[:, None] * coefficients[mirrored]
    return values


def _quintic(x: Real) -> Real:
    """Return the B-spline of degree five, which is zero from a distance of 3 on."""
    powers = (np.clip(3 - np.abs(x) - k, 0, None) ** 5 for k in range(3))
    return np.asarray(sum(n * power for n, power in zip((1, -6, 15), powers, strict=True)) / 120)


def _coarse_alignment(image: Splines, truth: Complex, area: Field, max_shift_px: float) -> Real:
    """Return (ramp y, ramp x, shift y, shift x), good to a part of a pixel."""
    from skimage.registration import phase_cross_correlation

    reference = truth[area.slices]
    window = np.outer(*(np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 for side in area.shape))
    unknowns = np.zeros(4)
    best = unknowns
    for step in range(4):
        moved = image.shifted(unknowns[2:], area)
        ratio = reference * moved.conj()
        # Phase differences of neighbors give the ramp without unwrapping.
        down = np.sum(ratio[1:] * ratio[:-1].conj())
        across = np.sum(ratio[:, 1:] * ratio[:, :-1].conj())
        unknowns = np.array([np.angle(down), np.angle(across), *unknowns[2:]])
        if _misfit(image, truth, area, unknowns) <= _misfit(image, truth, area, best):
            best = unknowns
        # The first comparison is blind to the ramp, which is not known well while the images are displaced.
        pair = (
            (_variation(reference), _variation(moved))
            if step == 0
            else (reference, moved * np.exp(1j * _ramp(area.shape, unknowns[:2])))
        )
        tapered_pair = [tapered(part, window) for part in pair]
        if min(float(np.abs(part).max()) for part in tapered_pair) < 1e-9 * float(np.abs(reference).max()):
            break  # an image without any structure has no position
        extra, _, _ = phase_cross_correlation(  # type: ignore[no-untyped-call]
            *tapered_pair, upsample_factor=20, normalization=None
        )
        total = unknowns[2:] + extra
        if not np.all(np.isfinite(total)) or np.abs(total).max() > max_shift_px:
            break
        unknowns = np.concatenate((unknowns[:2], total))
    return best


def _variation(image: Complex) -> Real:
    """Return a ramp-invariant image of an object: how much it changes from pixel to pixel."""
    amplitude = np.abs(image)
    down, across = np.gradient(amplitude)
    phase_steps = [np.angle(np.roll(image, -1, axis) * image.conj()) * amplitude for axis in (0, 1)]
    phase_change = np.hypot(*(steps - np.median(steps) for steps in phase_steps))
    return np.asarray(np.hypot(np.hypot(down, across), phase_change))


def _gauss_newton_step(image: Splines, truth: Complex, area: Field, unknowns: Real) -> Real:
    """Return the step of (ramp, shift) that best explains what is left, scale and phase free."""
    model, factor = _model(image, truth, area, unknowns)
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in area.shape)
    around = area.grown(1, image.image.shape)
    inside = tuple(
        slice(first - outer, last - outer)
        for first, last, outer in ((area.top, area.bottom, around.top), (area.left, area.right, around.left))
    )
    slopes = [np.asarray(slope)[inside] for slope in np.gradient(image.shifted(unknowns[2:], around))]
    rotated = factor * np.exp(1j * _ramp(area.shape, unknowns[:2]))
    derivatives = [
        1j * model * rows[:, None],
        1j * model * columns[None, :],
        -slopes[0] * rotated,
        -slopes[1] * rotated,
        model,
        1j * model,
    ]
    design = np.stack([np.concatenate((d.real.ravel(), d.imag.ravel())) for d in derivatives], axis=1)
    left = (truth[area.slices] - model).ravel()
    scale = np.linalg.norm(design, axis=0)
    scale[scale == 0] = 1
    step, *_ = np.linalg.lstsq(design / scale, np.concatenate((left.real, left.imag)), rcond=1e-8)
    return np.asarray((step / scale)[:4])


def centered_phase(image: NDArray[Any]) -> Real:
    """Return the phase of an image (H, W) about its mean, -pi to pi."""
    return np.asarray(np.angle(image * np.exp(-1j * np.angle(np.sum(image)))))


def tapered(image: NDArray[Any], window: Real) -> NDArray[Any]:
    """Subtract the window-weighted mean and taper, so that zero frequency vanishes exactly."""
    return np.asarray((image - (image * window).sum() / window.sum()) * window)


def largest_rectangle(mask: NDArray[np.bool_]) -> Field:
    """Return the largest rectangle of true pixels; an empty field when there is none.

    A canvas beyond 512 pixels is first reduced in blocks, so the result may be a block short of it.
    """
    block = -(-max(mask.shape) // 512)
    rows, columns = (side // block for side in mask.shape)
    coarse = mask[: rows * block, : columns * block].reshape(rows, block, columns, block).all(axis=(1, 3))
    number = np.arange(1, rows + 1)[:, None]
    heights = number - np.maximum.accumulate(np.where(coarse, 0, number), axis=0)  # true pixels up from here
    best, best_area = Field(0, 0, 0, 0), 0
    most = heights.sum(axis=1)  # no rectangle that ends in a row is larger than this
    for row in np.argsort(-most, kind="stable").tolist():
        if most[row] < max(best_area, 1):
            break
        area, height, left, right = _widest_bar(heights[row].tolist())
        if (area, -row) > (best_area, 1 - best.bottom):
            best, best_area = Field(row + 1 - height, row + 1, left, right), area
    return Field(*(edge * block for edge in best))


def _widest_bar(heights: list[int]) -> tuple[int, int, int, int]:
    """Return area, height, left, right of the largest rectangle under a histogram."""
    best = (0, 0, 0, 0)
    open_bars: list[tuple[int, int]] = []  # (left edge, height), heights rising
    for column, height in enumerate([*heights, 0]):
        left = column
        while open_bars and open_bars[-1][1] >= height:
            left, closed = open_bars.pop()
            best = max(best, (closed * (column - left), closed, left, column))
        open_bars.append((left, height))
    return best
