"""Detector pixels that do not measure: gaps, dead, hot and stuck ones, and a background under all of them.

Everything is judged by ranks and medians, in space or over patterns, so that one bad pixel hides nothing.

Shape legend: M patterns, K of them as a sample, N x N detector pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.data.checks import PatternStatistics, is_wrong
from ptycho_torch.data.detect import find_quantum

_NEARLY_ALL = 0.9
_MOST_GAPS = 0.9
"""Part of the good pixels; the detectors of some are round, in a square frame."""
_FEWEST_TOGETHER = 3
_FEWEST_PATTERNS = 8
_TYPE_LIMITS = [float(2**bits - 1) for bits in (8, 15, 16, 31, 32, 63, 64)]
_HOT = 8.0
"""A probe that fits its window makes patterns that vary over two pixels; none is so much brighter alone."""
_HOT_COUNTS, _DEAD_COUNTS = 30.0, 100.0
_FLAT = 1.2
_BACKGROUND_SHARE = 0.02
_HARDLY_ANY = 1e-3


def find_gaps(sample: NDArray[Any], good: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], str]:
    """Return which good pixels, (N, N), hold what is no measurement, and what it is.

    That is, in nearly every pattern, no number, or one negative number that no other pixel holds; in most,
    the largest number of any integer type; in all, and at several pixels side by side, a number that is
    larger than what any pixel that varies holds in most. Detectors write such numbers into the gaps between
    their modules and where they are overexposed.

    Args:
        sample: (K, N, N) patterns as stored.
        good: (N, N), False where the file's mask says so already.
    """
    gap = np.zeros_like(good)
    if len(sample) < _FEWEST_PATTERNS:
        return gap, ""
    limits = _limits(sample.dtype)
    # What most patterns hold, at least one of the first half of them does.
    few = sample[: 1 + len(sample) // 2]
    alike = (few == few[0]).all(axis=0) & (few[0] > 0)
    places = np.nonzero((_no_count(few, limits).any(axis=0) | alike) & good)
    if not len(places[0]):
        return gap, ""
    values = sample[:, places[0], places[1]].astype(np.float64)
    half = len(values) // 2
    typical = np.partition(values, half, axis=0)[half]  # of what is the same mostly, that value
    share = np.asarray((values == typical).mean(axis=0))
    unread = np.asarray((~np.isfinite(values)).mean(axis=0) >= _NEARLY_ALL)
    least = np.where(typical < 0, _NEARLY_ALL, 0.5)
    same = (share >= least) & _no_count(typical, limits) & np.isfinite(typical)
    gap[places] = unread | same
    rest = sample[:, good & ~gap]
    for level in np.unique(typical[same & (typical < 0)]):
        if not rest.size or (rest == level).mean() > _HARDLY_ANY:  # the level of what did not count
            same &= typical != level
    gap[places] = unread | same
    varies = good & ~gap & (sample != sample[0]).any(axis=0)
    if varies.any():
        top = np.partition(sample[:, varies].astype(np.float64), half, axis=0)[half].max()
        bright = np.zeros_like(good)
        bright[places] = (share == 1) & (typical > top)
        same |= _several(bright & ~gap)[places]
    gap[places] = found = unread | same
    if found.sum() > _MOST_GAPS * good.sum():
        return np.zeros_like(good), ""
    return gap, ", ".join(sorted({_in_words(value) for value in typical[found]})[:3])


def _several(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels that touch so many others of a mask that they are no hot pixels, which are single."""
    if not mask.any():
        return mask
    from scipy.ndimage import label

    parts, _ = label(mask, structure=np.ones((3, 3)))
    return np.asarray((np.bincount(parts.ravel()) >= _FEWEST_TOGETHER)[parts] & mask)


def _in_words(value: float) -> str:
    if not np.isfinite(value):
        return "no number"
    return f"{value:.0f}" if value == round(value) else f"{value:.6g}"


def _limits(dtype: np.dtype[Any]) -> list[float]:
    """Return the largest numbers of integer types that an array of this type can hold, as it holds them."""
    if dtype.kind in "iu":
        top = np.iinfo(dtype).max
        return [float(top), *(limit for limit in _TYPE_LIMITS if limit < top)]
    # Wide integers are rounded up in narrow floats; half precision holds none of them but 255.
    return [] if dtype == np.float16 else [float(dtype.type(limit)) for limit in _TYPE_LIMITS]


def _no_count(values: NDArray[Any], limits: list[float]) -> NDArray[np.bool_]:
    """Return where values are no number, negative, or one of some limits."""
    found = np.zeros(values.shape, bool) if values.dtype.kind == "u" else ~(values >= 0)
    if values.dtype.kind == "f":
        found |= np.isinf(values)
    if values.size and limits and not (values.max() < min(limits)):
        for limit in limits:
            found |= values == limit
    return found


@dataclass(frozen=True, slots=True)
class PixelFaults:
    """Suspect pixels, (N, N) each, and the background, in the units of intensity."""

    hot: NDArray[np.bool_]
    dead: NDArray[np.bool_]
    stuck: NDArray[np.bool_]
    background: float
    gain: float | None
    """Detector units of one count; None where counts cannot be told apart."""
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
        alike = (intensity[1] == intensity[0]) & (intensity[0] > 0) & good & ~hot
        stuck[alike] = (intensity[:, alike] == intensity[0, alike]).all(axis=0)
        if stuck.sum() > 0.01 * good.sum():  # patterns that are alike, or a background that does not vary
            stuck[:] = False
    known = good & ~(hot | dead | stuck)
    mean = _filled(everywhere, known)
    background = background_of(mean)
    gain, pedestal = find_gain(intensity, known) if counts else (None, 0.0)
    if gain is not None and gain > 1.5 and pedestal > 0:
        # The pedestal is the lowest of the peaks that whole counts make.
        below = np.mean(intensity[:, known] < pedestal - gain / 2)
        background = pedestal if below < _HARDLY_ANY else background
    return PixelFaults(hot, dead, stuck, background, gain, mean)


def _filled(values: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (N, N) values with those that are not known grown inwards from the known ones around them."""
    if known.all() or not known.any():
        return values
    out, known = np.where(known, values, 0.0), known.copy()
    while not known.all():
        count, total = (
            np.sum([np.pad(part, 1)[box] for box in _windows(known)], axis=0) for part in (known * 1.0, out)
        )
        edge = ~known & (count > 0)
        out[edge], known[edge] = total[edge] / count[edge], True
    return out


def _windows(image: NDArray[Any]) -> list[tuple[slice, slice]]:
    """Return where each of the 3 x 3 neighbors, itself included, lies in an image with a border of one."""
    return [(slice(y, y + image.shape[0]), slice(x, x + image.shape[1])) for y in range(3) for x in range(3)]


_AROUND = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)])


def _hot(intensity: NDArray[np.float64], good: NDArray[np.bool_], unit: float) -> NDArray[np.bool_]:
    """Return pixels much brighter than the third brightest of their neighbors, in both halves of a sample.

    What happens in one pattern only, such as a cosmic ray, is in one half. Diffraction beyond one edge comes
    back at the other one, so that the neighbors of an edge are there.
    """
    hot = np.zeros_like(good)
    if len(intensity) < 2:
        return hot
    halves = [_filled(half.sum(axis=0), good) for half in (intensity[0::2], intensity[1::2])]
    least = _HOT_COUNTS * unit
    # The third brightest is no less than the least of any three of them.
    few = np.minimum(
        np.minimum(np.roll(halves[0], 1, 0), np.roll(halves[0], -1, 0)), np.roll(halves[0], 1, 1)
    )
    places = np.argwhere(good & (halves[0] > _HOT * few + least))
    around = (places[:, None] + _AROUND) % np.array(good.shape)
    bright = np.ones(len(places), bool)
    for sums in halves:
        third = np.partition(sums[around[..., 0], around[..., 1]], -3, axis=1)[:, -3]
        bright &= sums[places[:, 0], places[:, 1]] > _HOT * third + least
    hot[tuple(places[bright].T)] = True
    return hot


def _dead(counts: NDArray[np.float64], good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return pixels that never counted although those around them did: rows, columns, and any other shape."""
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
    return dead | _dead_parts(silent & ~dead, counts, good & ~dead)


def _dead_parts(
    silent: NDArray[np.bool_], counts: NDArray[np.float64], good: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return the connected parts of silent pixels, three quarters of whose neighbors are bright."""
    dead, bright = np.zeros_like(silent), np.pad(counts > _DEAD_COUNTS, 1)
    next_to = silent & np.any([bright[box] for box in _windows(silent)[1::2]], axis=0)
    if not next_to.any():
        return dead
    from scipy.ndimage import binary_dilation, find_objects, label

    parts, _ = label(silent)
    boxes = find_objects(parts)
    for part in np.unique(parts[next_to]):
        rows, columns = boxes[part - 1]
        box = (_wider(rows), _wider(columns))
        here = parts[box] == part
        ring = binary_dilation(here) & good[box] & ~here
        if ring.any() and np.quantile(counts[box][ring], 0.25) > _DEAD_COUNTS:
            dead[box] |= here
    return dead


def _wider(part: slice) -> slice:
    return slice(max(0, part.start - 1), part.stop + 1)


def background_of(mean: NDArray[np.float64]) -> float:
    """Return the level that the dimmest fifth of the pixels has in common; 0 where they differ.

    What an object scatters falls off towards wide angles; a pedestal or stray light does not.
    """
    size = mean.size
    places = size // 20, size // 5, size - max(1, size // 100)
    level, fifth, beam = (float(value) for value in np.partition(mean, places, axis=None)[list(places)])
    flat = 0 < fifth < _FLAT * level and beam > 3 * level
    return level if flat and level * size > _BACKGROUND_SHARE * float(mean.sum()) else 0.0


_MANY = 200


def find_gain(intensity: NDArray[np.float64], good: NDArray[np.bool_]) -> tuple[float | None, float]:
    """Return the detector units of one count, None where counts cannot be told apart, and the pedestal.

    At dim pixels the most frequent value is the pedestal, without a count. Counts above it are whole
    multiples of the gain; with readout noise, their variance over their mean tells it roughly, and the place
    of the first peak above the pedestal precisely.

    Args:
        intensity: (K, N, N) of some patterns.
        good: (N, N) pixels that are not masked.
    """
    pixels = np.flatnonzero(good)
    if not len(pixels):
        return None, 0.0
    flat = intensity.reshape(len(intensity), -1)
    mean = flat.mean(axis=0)[pixels]
    order = pixels[np.argpartition(mean, [len(mean) // 5, len(mean) // 2])]
    values = flat[:, order[: max(1, len(mean) // 2)]]
    pedestal = _most_frequent(values[:, : max(1, len(mean) // 5)])
    above = values - pedestal
    counts = above[above > 0]
    if len(intensity) < _FEWEST_PATTERNS or counts.size < _MANY or pedestal < 0:
        return None, pedestal
    exact = find_quantum(counts)
    if exact is not None and abs(exact - 1) > 0.02:
        return exact, pedestal
    variance = above.var(axis=0, ddof=1).sum() / max(float(above.mean(axis=0).sum()), 1e-300)
    for _ in range(3 if variance > 0 else 0):
        share = counts / variance
        first = counts[(share > 0.6) & (share < 1.4)]
        if first.size < _MANY or np.count_nonzero((share > 0.28) & (share < 0.72)) > 0.2 * first.size:
            return None, pedestal
        variance = float(np.median(first))
    return variance or None, pedestal


def _most_frequent(values: NDArray[np.float64]) -> float:
    different, count = np.unique(values, return_counts=True)
    return float(different[np.argmax(count)])


def center_of(faults: PixelFaults) -> list[float]:
    """Return [y, x], the center of mass of the mean pattern above its background."""
    return center_of_mass(np.maximum(faults.mean_intensity - faults.background, 0.0))


def center_of_mass(image: NDArray[np.float64]) -> list[float]:
    """Return [y, x] in pixels; the middle of an image that is zero."""
    total, index = float(image.sum()), np.arange(len(image))
    if total <= 0:
        return [len(image) // 2] * 2
    return [float(image.sum(axis=axis) @ index / total) for axis in (1, 0)]


def far_field_center(probe: NDArray[np.complex64]) -> list[float]:
    """Return [y, x] in pixels, the center of mass of the far field of a probe (P, N, N)."""
    spectrum = np.abs(np.fft.fftshift(np.fft.fft2(probe.astype(np.complex128)), axes=(1, 2))) ** 2
    return center_of_mass(spectrum.sum(axis=0))


_ZERO_FREQUENCY = {"first-row": (0,), "first-column": (1,), "corner": (0, 1)}
"""Places of the zero frequency, and the axes along which it has to be moved."""


def misplaced_zero_frequency(mean: NDArray[np.float64]) -> str | None:
    """Return where a mean pattern (h, w) has its zero frequency where that is not the middle.

    An unshifted FFT has it in the corner; one that was shifted along one axis, in the first row or column.
    """
    if min(mean.shape) < 4:
        return None
    inner = tuple(slice(n // 4, n - n // 4) for n in mean.shape)
    moved = {place: np.fft.fftshift(mean, axes)[inner].sum() for place, axes in _ZERO_FREQUENCY.items()}
    place = max(moved, key=lambda name: float(moved[name]))
    if moved[place] < 2 * moved["corner"]:  # the usual one, if it is hardly less
        place = "corner"
    return place if moved[place] > 4 * mean[inner].sum() else None


def where_bright(place: str) -> str:
    """Return in words where patterns are bright whose zero frequency is at a place of the setting."""
    return "in the corners" if place == "corner" else f"along the {place.replace('-', ' ')}"


def refuse_inverted(good: NDArray[np.bool_], sample: NDArray[Any], where: str) -> None:
    """Refuse a mask that leaves out most pixels and most of what they measured.

    Args:
        good: (N, N) that the mask leaves.
        sample: (K, N, N) patterns as stored.
        where: the mask is, for the message.

    Raises:
        DataError: it seems to mark the good pixels.
    """
    if good.mean() >= 0.5:
        return
    gaps, _ = find_gaps(sample, np.ones_like(good))
    measured = np.where(gaps | is_wrong(sample), 0, sample).sum(axis=0, dtype=np.float64)
    lost = float(measured[~good].sum()) / max(float(measured.sum()), 1e-300)
    if lost > 0.5:
        raise DataError(
            f"the mask leaves out {1 - good.mean():.0%} of the pixels, and {lost:.0%} of what they measured",
            where=where,
            expected="a mask that is not 0 where a pixel is bad",
            fix="if it marks the good pixels, --mask-marks good; if it is right as it is, --mask-marks bad",
            options={"mask_marks": "good"},
        )
