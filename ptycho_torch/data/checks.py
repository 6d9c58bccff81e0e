"""Checks of a scan's parts, and the one pass over its patterns; each failure gives a remedy.

Shape legend: M scan positions, N x N detector pixels, P probe modes, H x W object canvas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.patterns import Domain, Patterns, blocks

SAMPLE_FRAMES = 24
"""So many patterns are looked at where one glance has to do."""
_EXPORT_FIX = "check the program that wrote the file, and export it again"


@dataclass(frozen=True, slots=True)
class PatternStatistics:
    """What one pass over the patterns finds, bad pixels left out; values as stored."""

    frame_sum: NDArray[np.float64]
    mean_pattern: NDArray[np.float64]
    maximum: float
    saturated: int


def check_numeric(dtype: np.dtype[Any], kinds: str, what: str, where: str) -> None:
    """Refuse strings, dates, records and, unless `kinds` has c, complex numbers."""
    if dtype.kind not in kinds or dtype.itemsize > (16 if dtype.kind == "c" else 8):
        wanted = "real or complex numbers" if "c" in kinds else "real numbers"
        raise DataError(
            f"{what} have dtype {dtype}", where=where, expected=f"{wanted}, at most double precision",
            fix="store the array with an ordinary numeric dtype",
        )  # fmt: skip


def check_stack(shape: tuple[int, ...], dtype: np.dtype[Any], count: int, where: str) -> None:
    """Refuse patterns that are no real numbers, or whose array has not three axes, or those of a raster."""
    check_numeric(dtype, "iuf", "the patterns", where)
    if len(shape) != 3 and not (len(shape) > 3 and math.prod(shape[:-2]) == count):
        raise DataError(
            f"the patterns have shape {shape}, {len(shape)} axes",
            where=where,
            expected=f"(M, N, N), (N, N, M) or (ny, nx, N, N), with M = ny * nx = {count} positions",
            fix="store one pattern per scan position, or positions for all patterns",
        )


def check_positions(
    positions: NDArray[Any], where: str, *, some_missing: bool = False
) -> NDArray[np.float64]:
    """Return (M, 2) float64 positions.

    Args:
        positions: (M, 2).
        where: they are, for messages.
        some_missing: whether some may be NaN or infinite.

    Raises:
        DataError: no positions, NaN or infinity, or every position the same.
    """
    check_numeric(positions.dtype, "iuf", "the positions", where)
    values = np.asarray(positions, dtype=np.float64)
    if len(values) == 0:
        raise DataError("the scan has no positions", where=where, expected="one or more", fix=_EXPORT_FIX)
    finite = np.isfinite(values).all(axis=1)
    if not (finite.all() or (some_missing and finite.any())):
        few = finite.any()
        raise DataError(
            f"{(~finite).sum()} positions are NaN or infinite, first at index {int(np.argmin(finite))}",
            where=where, expected="finite numbers",
            fix="--drop broken leaves them and their patterns out" if few else _EXPORT_FIX,
            options={"drop": "broken"} if few else None,
        )  # fmt: skip
    if len(values) > 1 and np.ptp(values[finite], axis=0).max() == 0:
        raise DataError(
            f"all {len(values)} positions are the same", where=where,
            expected="a scan with overlapping, different positions", fix=_EXPORT_FIX,
        )  # fmt: skip
    return values


def check_equal_lengths(lengths: dict[str, int], where: str) -> None:
    """Refuse per-pattern arrays of different lengths."""
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise DataError(
            f"the lengths differ: {listed}", where=where, expected="one entry per pattern in each",
            fix="export positions and patterns of the same scan",
        )  # fmt: skip


def check_probe(probe: NDArray[Any], N: int, where: str) -> NDArray[np.complex64]:
    """Return (P, N, N) complex64 from (N, N), (N, N, 1) or (P, N, N).

    Raises:
        DataError: another shape or size, real numbers that may be parts of complex ones, NaN or infinity,
            all zero.
    """
    check_numeric(probe.dtype, "iufc", "the probe values", where)
    modes = probe[None] if probe.ndim == 2 else probe
    last = modes.ndim == 3 and modes.shape[0] == modes.shape[1] != modes.shape[2]
    if last and modes.shape[-1] == 1:
        modes, last = np.moveaxis(modes, -1, 0), False
    check_two_parts(probe, "probe", "modes", where, "; --probe estimate leaves it out")
    if modes.ndim != 3 or len(modes) == 0 or modes.shape[1:] != (N, N):
        raise DataError(
            f"the probe has shape {probe.shape}, the patterns are {N} x {N}", where=where,
            expected=f"({N}, {N}), or (P, {N}, {N}) with P incoherent modes",
            fix="its modes are on the last axis: store numpy.moveaxis(probe, -1, 0); "
            "--probe estimate leaves it out"
            if last
            else _probe_remedy(modes.shape[-1] if modes.ndim == 3 else 0, N),
        )  # fmt: skip
    return _finite_complex(modes, "the probe", where, "--probe estimate leaves it out")


def _probe_remedy(n: int, N: int) -> str:
    """Return how a probe of another size comes to fit: nobody can tell from the sizes what its pixels are."""
    same = "--probe estimate leaves it out; "
    if not n:
        return same + "or store it as (N, N) or (P, N, N)"
    cut = f"--crop {n}" if n < N else f"--pad {n}"
    known = f"{same}if it belongs to patterns of {n} pixels of the same detector, {cut}"
    if n < N and N % n == 0:
        known += f"; if to patterns binned by {N // n}, --bin {N // n}"
    return known


def check_two_parts(array: NDArray[Any], what: str, layers: str, where: str, otherwise: str = "") -> None:
    """Refuse a real (2, N, N) or (N, N, 2), which may hold two parts of complex numbers."""
    if array.dtype.kind == "c" or array.ndim != 3 or 2 not in (array.shape[0], array.shape[-1]):
        return
    one, two = ("a[0]", "a[1]") if array.shape[0] == 2 else ("a[..., 0]", "a[..., 1]")
    raise DataError(
        f"the {what} is two arrays of real numbers, shape {array.shape}: real and imaginary part, amplitude "
        f"and phase, or two {layers}",
        where=where,
        expected="complex numbers",
        fix=f"store {one} + 1j * {two}, {one} * numpy.exp(1j * {two}), or, of two {layers}, "
        f"numpy.stack([{one}, {two}]).astype(complex)" + otherwise,
    )


def check_object(canvas: NDArray[Any], where: str) -> NDArray[np.complex64]:
    """Return the (H, W) complex64 object.

    Raises:
        DataError: wrong rank, empty, NaN or infinity, all zero.
    """
    check_numeric(canvas.dtype, "iufc", "the object values", where)
    flat = canvas[0] if canvas.ndim == 3 and len(canvas) == 1 else canvas
    if flat.ndim != 2 or flat.size == 0:
        raise DataError(
            f"the object has shape {canvas.shape}", where=where, expected="(H, W)",
            fix="store one object layer, or leave the object out",
        )  # fmt: skip
    return _finite_complex(flat, "the object", where, "replace them, or leave the array out")


def _finite_complex(values: NDArray[Any], what: str, where: str, fix: str) -> NDArray[np.complex64]:
    with np.errstate(over="ignore", invalid="ignore"):
        out = np.ascontiguousarray(values, dtype=np.complex64)
    count = int((~np.isfinite(out)).sum())
    if count:
        raise DataError(
            f"{what} has {count} NaN or infinite values", where=where, expected="finite numbers", fix=fix
        )  # fmt: skip
    if not out.any():
        raise DataError(
            f"{what} is zero everywhere", where=where, expected="a wave that is not zero", fix=fix
        )
    return out


def check_bad_pixels(
    mask: NDArray[Any] | None, shape: tuple[int, int], where: str, marks: str = "bad"
) -> NDArray[np.bool_]:
    """Return (h, w) bool, True where a pixel is good, from a mask that marks bad ones, if there is one.

    A mask for each pattern, (M, h, w), is one mask if all are the same. marks: "good" where it marks those.

    Raises:
        DataError: another shape, masks that differ, or no good pixel at all.
    """
    if mask is None:
        return np.ones(shape, dtype=np.bool_)
    check_numeric(mask.dtype, "biu", "the bad-pixel mask values", where)
    if mask.ndim > 2 and mask.size and mask.shape[-2:] == shape:
        every = mask.reshape(-1, *shape) != 0
        differ = int((every != every[0]).any(axis=0).sum())
        if differ:
            combine = "all" if marks == "good" else "any"
            raise DataError(
                f"the bad-pixel mask has shape {mask.shape}: one for each pattern; {differ} pixels differ",
                where=where, expected=f"one mask for all patterns, {shape}, True where a pixel is bad",
                fix=f"save numpy.{combine}(mask, axis=0), in which is bad what is bad in any pattern, as "
                "an NPY file, and name it: --map mask=FILE",
            )  # fmt: skip
        mask = every[0]
    if mask.shape != shape:
        raise DataError(
            f"the bad-pixel mask has shape {mask.shape}, the patterns are {shape[0]} x {shape[1]}",
            where=where, expected=f"{shape}, True where a pixel is bad", fix=_EXPORT_FIX,
        )  # fmt: skip
    good = np.asarray(mask != 0 if marks == "good" else mask == 0)
    if not good.any():
        other = "bad" if marks == "good" else "good"
        raise DataError(
            "every pixel is marked bad", where=where, expected="not 0 only where a pixel is bad",
            fix=f"--mask-marks {other}, if the mask marks {other} pixels", options={"mask_marks": other},
        )  # fmt: skip
    return good


_LARGEST = 2.0**64
"""No detector counts further, and float32 holds the square of anything below."""


FEW_PIXELS = 0.05
"""Part of the detector that may be masked because of single values."""


def _mend(
    all_negative: bool, level: float, frames: float, pixels: int, good: int, dtype: np.dtype[Any]
) -> dict[str, Any]:
    """Return fix and options for values that are no counts; `all_negative` is of counts alone."""
    if level < 0:
        fix = f"the dim pixels lie at {level:g}; --pedestal {level:g} --clip-negative true brings them to 0"
        return {"fix": fix, "options": {"pedestal": level, "clip_negative": True}}
    half = dtype == np.float16
    few = f"--mask-suspects true masks their {pixels} pixels"
    if all_negative:
        fix = "--clip-negative true sets them to 0, where a background was subtracted"
        few = f"; else {few}" if pixels <= FEW_PIXELS * good else ""
        return {"fix": fix + few, "options": {"clip_negative": True}}
    if pixels <= FEW_PIXELS * good:
        wider = "; half precision ends at 65504, so better export the patterns as float32" if half else ""
        return {"fix": few + wider, "options": {"mask_suspects": True}}
    if frames <= 0.5:
        fix = f"--drop broken leaves out these {frames:.0%} of the patterns"
        return {"fix": fix, "options": {"drop": "broken"}}
    return {"fix": "export the patterns as float32" if half else _EXPORT_FIX}


def negative_level(block: NDArray[Any], good: NDArray[np.bool_]) -> float:
    """Return the level of the dim pixels where it is negative by far more than they differ, else 0.

    block: (B, h, w), finite.
    """
    pixels = np.sort(np.median(block[:, good], axis=0).astype(np.float64))
    dim = pixels[: max(1, len(pixels) // 5)]
    level = float(np.median(dim))
    return float(f"{level:.4g}") if level < -3 * float(np.ptp(dim)) and level < 0 else 0.0


def is_wrong(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where values are negative, no number, or larger than any count."""
    wide = values.astype(np.float32) if values.dtype == np.float16 else values
    return np.asarray(~((wide >= 0) & (wide <= _LARGEST)))


def sample_rows(count: int) -> NDArray[np.int64]:
    """Return the rows of some patterns, spread over the scan."""
    return np.unique(np.linspace(0, count - 1, SAMPLE_FRAMES).astype(np.int64))


def frame_figures(
    patterns: Patterns, good: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return sums (M,), mean pattern (h, w), and the number of wrong values (M,), which count as 0."""
    sums, mean = np.zeros(patterns.shape[0]), np.zeros(patterns.shape[1:])
    wrong = np.zeros(patterns.shape[0], np.int64)
    for start, block in blocks(patterns):
        bad = is_wrong(block) & good
        values = np.where(good & ~bad, block, 0)
        rows = slice(start, start + len(block))
        sums[rows], wrong[rows] = values.sum(axis=(1, 2), dtype=np.float64), bad.sum(axis=(1, 2))
        mean += values.sum(axis=0, dtype=np.float64)
    return sums, mean / len(sums), wrong


def wrong_pixels(patterns: Patterns, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the (h, w) good pixels with a value that is none in one pattern or more."""
    wrong = np.zeros(good.shape, bool)
    for _, block in blocks(patterns):
        wrong |= is_wrong(block).any(axis=0)
    return wrong & good


def scan_patterns(
    patterns: Patterns, good: NDArray[np.bool_], where: str, domain: Domain = "intensity"
) -> PatternStatistics:
    """Pass once over the patterns, a block at a time.

    Raises:
        DataError: NaN, infinite, negative or absurdly large values at good pixels, or nothing but zeros.
    """
    sums, mean, maximum, saturated = np.zeros(patterns.shape[0]), np.zeros(patterns.shape[1:]), 0.0, 0
    wrong, first_wrong, all_negative, level = 0, "", True, 0.0
    wrong_frames, wrong_pixels_ = 0, np.zeros(good.shape, bool)
    whole = patterns.dtype.kind in "iu"
    limit = np.iinfo(patterns.dtype).max if whole else None
    for start, block in blocks(patterns):
        values = np.where(good, block, 0) if not good.all() else block
        if values.dtype == np.float16:  # in which the limits below are infinite
            values = values.astype(np.float32)
        # The minimum of an array with a NaN is NaN, which is not >= 0.
        with np.errstate(invalid="ignore"):
            low = 0 if values.dtype.kind == "u" else values.min(initial=np.inf if not whole else 0)
            top = float(values.max(initial=0))
        if not (low >= 0 and top <= _LARGEST):
            where_wrong = is_wrong(values)
            places = np.argwhere(where_wrong)
            wrong += len(places)
            wrong_frames += int(where_wrong.any(axis=(1, 2)).sum())
            wrong_pixels_ |= where_wrong.any(axis=0)
            all_negative &= bool(np.isfinite(values).all()) and top <= _LARGEST
            row, y, x = (int(i) for i in places[0])
            if not first_wrong and all_negative:
                level = negative_level(values, good)
            first_wrong = first_wrong or f"pattern {start + row}, pixel [{y}, {x}] is {values[row, y, x]}"
        if not wrong:
            maximum = max(maximum, top)
            saturated += int((values == limit).sum()) if top == limit else 0
            # Sums of small whole numbers fit into a type that is faster, and are exact in both.
            wide = np.uint32 if whole and top * max(len(block), mean.size) < 2**32 else np.float64
            sums[start : start + len(block)] = values.sum(axis=(1, 2), dtype=wide)
            mean += values.sum(axis=0, dtype=wide)
    if wrong:
        all_negative &= domain == "intensity"  # nothing is subtracted from amplitudes
        raise DataError(
            f"{wrong} pattern values are negative, NaN, infinite or above 2^64; {first_wrong}",
            where=where,
            expected="counts, or their square roots, at good pixels",
            **_mend(
                all_negative,
                level if all_negative else 0.0,
                wrong_frames / len(sums),
                int(wrong_pixels_.sum()),
                int(good.sum()),
                patterns.dtype,
            ),
        )
    if not sums.any():
        raise DataError(
            "all patterns are zero", where=where, expected="counts at the good pixels", fix=_EXPORT_FIX
        )
    return PatternStatistics(sums, mean / len(sums), maximum, saturated)
