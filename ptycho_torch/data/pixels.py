"""Detector pixels that do not measure: gaps, dead, hot and stuck ones, and a background under all of them.

Everything is judged by ranks and medians, in space or over patterns, so that one bad pixel hides nothing.

Shape legend: M patterns, K of them as a sample, N x N detector pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.checks import PatternStatistics

_NEARLY_ALL = 0.9
_FEWEST_PATTERNS = 8
_TYPE_LIMITS = [float(2**bits - 1) for bits in (8, 15, 16, 31, 32, 63, 64)]
_HOT = 8.0
"""A probe that fits its window makes patterns that vary over two pixels; none is so much brighter alone."""
_HOT_COUNTS, _DEAD_COUNTS = 30.0, 100.0
_FLAT = 1.2
_BACKGROUND_SHARE = 0.02


def find_gaps(sample: NDArray[Any], good: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], str]:
    """Return which good pixels, (N, N), hold what is no measurement in nearly every pattern, and what it is.

    That is: no number, the same negative number, or the largest number of any integer type, which detectors
    write into the gaps between their modules and where they are overexposed.

    Args:
        sample: (K, N, N) patterns as stored.
        good: (N, N), False where the file's mask says so already.
    """
    none = np.zeros_like(good)
    if len(sample) < _FEWEST_PATTERNS:
        return none, ""
    values = np.asarray(sample, dtype=np.float64)
    half = len(values) // 2
    typical = np.partition(values, half, axis=0)[half]  # of what is the same nearly always, that value
    limits = np.array(_TYPE_LIMITS)
    if sample.dtype.kind == "f":  # in which the largest numbers of wide integers are rounded up
        limits = limits.astype(sample.dtype).astype(np.float64) if sample.dtype != np.float16 else limits[:0]
    elif sample.dtype.kind in "iu":
        limits = np.append(limits, float(np.iinfo(sample.dtype).max))
    no_number = ~np.isfinite(values)
    same = (values == typical) & ((typical < 0) | np.isin(typical, limits))
    gap = np.asarray((no_number | same).mean(axis=0) >= _NEARLY_ALL) & good
    if not gap.any() or gap.sum() > good.sum() // 2:
        return none, ""
    held = sorted({"no number" if not np.isfinite(v) else f"{v:.0f}" for v in typical[gap]})
    return gap, ", ".join(held[:3])


@dataclass(frozen=True, slots=True)
class PixelFaults:
    """Suspect pixels, (N, N) each, and the background, in the units of intensity."""

    hot: NDArray[np.bool_]
    dead: NDArray[np.bool_]
    stuck: NDArray[np.bool_]
    background: float
    mean_intensity: NDArray[np.float64]
    """(N, N), with a plausible value at bad and suspect pixels."""

    @property
    def suspect(self) -> NDArray[np.bool_]:
        return self.hot | self.dead | self.stuck


def find_faults(
    intensity: NDArray[np.float64],
    good: NDArray[np.bool_],
    statistics: PatternStatistics,
    quantum: float | None,
    *,
    counts: bool,
) -> PixelFaults:
    """Return the pixels that look broken, and the background.

    Args:
        intensity: (K, N, N) of some patterns.
        good: (N, N) pixels that are not masked.
        statistics: of all patterns.
        quantum: intensity of one count, if known.
        counts: whether `statistics` are of intensity.
    """
    everywhere = statistics.mean_pattern if counts else intensity.mean(axis=0)
    total = float(everywhere.sum())
    unit = quantum or max(1e-6 * total, 1e-300)
    hot = _hot(intensity, good, unit)
    dead = _dead(np.where(good, everywhere, 0.0) * len(statistics.frame_sum) / unit, good)
    stuck = np.zeros_like(good)
    if quantum is not None and len(intensity) >= _FEWEST_PATTERNS:
        stuck = np.asarray((intensity == intensity[0]).all(axis=0) & (intensity[0] > 0)) & good & ~hot
        if stuck.sum() > 0.01 * good.sum():  # patterns that are alike, or a background that does not vary
            stuck[:] = False
    mean = _filled(everywhere, good & ~(hot | dead | stuck))
    return PixelFaults(hot, dead, stuck, _background(mean), mean)


def _filled(values: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (N, N) values with those that are not known taken from the nearest one that is."""
    from scipy.ndimage import distance_transform_edt

    if known.all() or not known.any():
        return values
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.asarray(values[tuple(nearest)])


_NEIGHBORS = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)


def _hot(intensity: NDArray[np.float64], good: NDArray[np.bool_], unit: float) -> NDArray[np.bool_]:
    """Return pixels much brighter than the third brightest of their neighbors, in both halves of a sample.

    What happens in one pattern only, such as a cosmic ray, is in one half. Diffraction beyond one edge comes
    back at the other one, so that the neighbors of an edge are there.
    """
    from scipy.ndimage import rank_filter

    hot = good.copy() if len(intensity) > 1 else np.zeros_like(good)
    for half in (intensity[0::2], intensity[1::2]) if len(intensity) > 1 else ():
        sums = _filled(half.sum(axis=0), good)
        around = rank_filter(sums, rank=-3, footprint=_NEIGHBORS, mode="wrap")
        hot &= sums > _HOT * around + _HOT_COUNTS * unit
    return hot


def _dead(counts: NDArray[np.float64], good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return pixels that never counted although those around them did: rows, columns, and any other shape."""
    from scipy.ndimage import binary_dilation, find_objects, label

    silent = (counts == 0) & good
    dead = np.zeros_like(good)
    if not silent.any():
        return dead
    for axis in (0, 1):
        lines = counts.sum(axis=1 - axis)
        empty = ~(counts > 0).any(axis=1 - axis) & good.any(axis=1 - axis)
        known = np.flatnonzero(lines > 0)
        if not empty.any() or not len(known):
            continue
        above = np.searchsorted(known, np.arange(len(lines)))  # the next one that counts
        inside = empty & (above > 0) & (above < len(known))
        next_to = np.clip(np.stack([above - 1, above]), 0, len(known) - 1)
        between = inside & (lines[known[next_to]].min(axis=0) > _DEAD_COUNTS)
        dead |= silent & (between[:, None] if axis == 0 else between[None, :])
    parts, _ = label(silent & ~dead)
    boxes, bright = find_objects(parts), binary_dilation(counts > _DEAD_COUNTS)
    for part in np.unique(parts[bright & (parts > 0)]):
        rows, columns = boxes[part - 1]
        box = (_wider(rows), _wider(columns))
        here = parts[box] == part
        ring = binary_dilation(here) & good[box] & ~here & ~dead[box]
        if ring.any() and np.quantile(counts[box][ring], 0.25) > _DEAD_COUNTS:
            dead[box] |= here
    return dead


def _wider(part: slice) -> slice:
    return slice(max(0, part.start - 1), part.stop + 1)


def _background(mean: NDArray[np.float64]) -> float:
    """Return the level that the dimmest fifth of the pixels has in common; 0 where they differ.

    What an object scatters falls off towards wide angles; a pedestal or stray light does not.
    """
    dim = np.sort(mean, axis=None)
    level, fifth = float(np.median(dim[: max(1, dim.size // 10)])), float(dim[dim.size // 5])
    flat = 0 < fifth < _FLAT * level
    beam = float(dim[-max(1, dim.size // 100)]) > 3 * level
    return level if flat and beam and level * dim.size > _BACKGROUND_SHARE * float(dim.sum()) else 0.0


def center_of(faults: PixelFaults) -> list[float]:
    """Return [y, x], the center of mass of the mean pattern above its background."""
    return center_of_mass(np.maximum(faults.mean_intensity - faults.background, 0.0))


def center_of_mass(image: NDArray[np.float64]) -> list[float]:
    """Return [y, x] in pixels; the middle of an image that is zero."""
    total, index = float(image.sum()), np.arange(len(image))
    if total <= 0:
        return [len(image) // 2] * 2
    return [float(image.sum(axis=axis) @ index / total) for axis in (1, 0)]
