"""What is done to patterns between file and work, in a fixed order; `Preprocessing` says how.

1. values: minus dark frame, minus pedestal, divided by gain, negative ones set to 0, small ones set to 0
2. mask: the file's own, gaps, the mask file, suspect pixels
3. frame: zero frequency to N/2, flip, transpose, beam to N/2, crop, pad, bin

Values and frames are computed as patterns are read; only stacks that fit are kept in memory.

Shape legend: M patterns, h x w pixels as stored, N x N pixels of a prepared pattern, K patterns of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError, Finding
from ptycho_torch.config import DataConfig, Preprocessing
from ptycho_torch.data import checks
from ptycho_torch.data.detect import find_quantum
from ptycho_torch.data.frames import Compute, Frame, Values, resized, shifted, turned
from ptycho_torch.data.pixels import (
    far_field_center,
    find_faults,
    misplaced_zero_frequency,
    refuse_inverted,
    where_bright,
)
from ptycho_torch.data.storage.array_file import read_array
from ptycho_torch.data.storage.patterns import ComputedPatterns, Domain, Patterns, blocks, fits_in_memory

_OF_VALUES = ("dark_file", "pedestal", "gain", "clip_negative", "threshold")
_OF_MASK = ("mask_file", "mask_marks", "mask_suspects")
_OF_FRAME = ("zero_frequency", "flip_patterns", "transpose_patterns", "center", "crop", "pad", "bin")


@dataclass
class Prepared:
    """Patterns that are ready, and what has to follow them.

    Attributes:
        patterns: (M, N, N).
        good: (N, N).
        side: of the stored patterns whose object pixel the file means.
        ratio: new object pixel over that one.
        offset_px: of the center of binned patterns from N // 2.
        report: which options acted and what they did.
    """

    patterns: Patterns
    good: NDArray[np.bool_]
    side: int
    ratio: float = 1.0
    offset_px: float = 0.0
    report: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def prepare(
    stored: Patterns,
    good: NDArray[np.bool_],
    domain: Domain,
    config: DataConfig,
    path: Path | None,
    where: str,
    probe: NDArray[np.complex64] | None = None,
) -> Prepared:
    """Return the patterns after everything that the config asks for; as they are where it asks for nothing.

    Args:
        stored: (M, h, w), scan axis first.
        good: (h, w) pixels that neither the file's mask nor a gap excludes.
        domain: of the stored values.
        config: what to do.
        path: of the scan, beside which other files may lie.
        where: the patterns are, for messages.
        probe: (P, N, N) of the file; center = auto brings the beam to where its far field is.

    Raises:
        DataError: frames that are not square, options that do not fit the patterns, or nothing left.
    """
    shape = (int(stored.shape[1]), int(stored.shape[2]))
    asked = changed_options(config, (*_OF_VALUES, *_OF_MASK, *_OF_FRAME))
    if not asked:
        require_square(shape, where)
        return Prepared(stored, good, shape[0])
    values = _values(config, shape, path)
    if domain == "amplitude" and not values.idle:
        names = ", ".join(changed_options(config, _OF_VALUES))
        raise DataError(
            f"{names} act on counts, and the patterns are amplitudes",
            where=where,
            expected="counts, of which a background can be subtracted",
            fix="leave them out; or, if the numbers are counts, --domain intensity",
        )
    report: dict[str, Any] = {**asked}
    if "mask_file" in asked:
        good = good & _good_of_mask_file(stored, config, path)
    if config.clip_negative or config.threshold:
        report |= _counted(stored, values, good)
    frame = turned(shape, config)
    if config.mask_suspects or config.center == "auto":
        bad, mean = _suspects(stored, values, good, domain, where)
        if config.mask_suspects:
            good = good & ~bad
            report["suspect_pixels_masked"] = int(bad.sum())
        if config.center == "auto":
            found = find_center(frame.place(mean[None])[0], where)
            report["center"] = list(found)
            y, x = _off_center(probe, frame.shape)
            frame = shifted(frame, (found[0] - y, found[1] - x))
    if isinstance(config.center, tuple):
        frame = shifted(frame, config.center)
    frame, side, ratio = _sized(frame, shape, config, where)
    compute = Compute(values, frame, domain)
    good = frame.good(good)
    if not good.any():
        raise DataError(
            "no good pixel is left",
            where=where,
            expected="a mask that is not 0 only where a pixel is bad, and a center within the patterns",
            fix="--mask-marks good, if the mask marks good pixels; check mask_suspects, center, crop and bin",
        )
    # The middle of the bin around the zero frequency is rarely the pixel that has it.
    b, n = config.bin, len(frame.rows)
    offset = (b * (n // b // 2) + (b - 1) / 2 - n // 2) / b
    if values.idle and frame.is_whole(shape):
        return Prepared(stored, good, side, ratio, offset, report)
    patterns = ComputedPatterns(stored, compute, frame.shape, compute.dtype(stored.dtype))
    kept: Patterns = patterns[:] if fits_in_memory(patterns.nbytes) else patterns
    return Prepared(kept, good, side, ratio, offset, report)


def changed_options(config: Preprocessing, names: Sequence[str]) -> dict[str, Any]:
    """Return the named options that are not their defaults, as JSON-able values."""
    changed = {
        name: value
        for name in names
        if (value := getattr(config, name)) != Preprocessing.model_fields[name].default
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


def why_counts(config: Preprocessing) -> str:
    """Return the options by which the stored numbers must be counts; nothing where there are none."""
    names = changed_options(config, _OF_VALUES)
    return f"{', '.join(names)} act on counts" if names else ""


def side_after(shape: Sequence[int], config: Preprocessing, where: str) -> tuple[int, int, float]:
    """Return the side of prepared patterns, that of the patterns whose pixel the file means, and the ratio.

    Stored frames that are not square have no object pixel of their own: positions in pixels and pixel_size_m
    are then those of the square that crop or pad makes of them.

    Raises:
        DataError: frames that are not square after all, and sizes that do not fit.
    """
    height, width = shape
    if config.crop is not None and config.crop > min(height, width):
        raise DataError(
            f"crop = {config.crop} is more than the patterns of {height} x {width} have",
            where=where,
            expected=f"at most {min(height, width)}",
            fix=f"--pad {config.crop} surrounds them with masked pixels; or choose a smaller crop",
        )
    sides = [config.crop, config.crop] if config.crop else [height, width]
    if config.pad is not None and config.pad < max(sides):
        raise DataError(
            f"pad = {config.pad} is less than the patterns of {sides[0]} x {sides[1]} have",
            where=where,
            expected=f"at least {max(sides)}",
            fix=f"--crop {config.pad} keeps their middle; or choose a larger pad"
            if config.pad <= min(height, width)
            else f"--pad {max(sides)}",
        )
    square = [config.pad, config.pad] if config.pad else sides
    require_square((square[0], square[1]), where)
    if square[0] % config.bin:
        whole = square[0] - square[0] % config.bin
        raise DataError(
            f"{square[0]} pixels cannot be divided into bins of {config.bin}",
            where=where,
            expected=f"a multiple of {config.bin}",
            fix=f"--crop {whole} beside --bin {config.bin}" if whole else "choose a smaller bin",
        )
    side = height if height == width else (config.crop or square[0])
    return square[0] // config.bin, side, side / square[0]


def require_square(shape: tuple[int, int], where: str) -> None:
    """Refuse patterns that are not square, and say how they become so."""
    height, width = shape
    if height != width or not height:
        raise DataError(
            f"the patterns are {height} x {width} pixels, not square",
            where=where,
            expected="square patterns",
            fix=f"--crop {min(shape)} keeps their middle; --pad {max(shape)} surrounds them by masked pixels"
            if min(shape)
            else "check the file; it holds no pixels",
        )


def _values(config: DataConfig, shape: tuple[int, int], path: Path | None) -> Values:
    dark = None
    if config.dark_file is not None:
        dark = read_array(config.dark_file, "the dark frame", names=("dark",), beside=path)
        checks.check_numeric(dark.dtype, "iuf", "the dark frame's values", config.dark_file)
        dark = dark.mean(axis=0) if dark.ndim == 3 else dark
        _require_shape(dark, shape, "the dark frame", config.dark_file)
        if not np.isfinite(dark).all():
            raise DataError(
                "the dark frame has values that are no finite numbers",
                where=config.dark_file,
                expected="the signal without a beam",
                fix="set them to 0, and mark their pixels in a mask file",
            )
    return Values(dark, config.pedestal, config.gain, config.clip_negative, config.threshold)


def _good_of_mask_file(stored: Patterns, config: DataConfig, path: Path | None) -> NDArray[np.bool_]:
    """Return the (h, w) pixels that the mask file leaves."""
    text, shape = str(config.mask_file), (int(stored.shape[1]), int(stored.shape[2]))
    marked = _mask(text, shape, path)
    if config.mask_marks == "auto":
        refuse_inverted(~marked, np.asarray(stored[checks.sample_rows(len(stored))]), text)
    return marked if config.mask_marks == "good" else ~marked


def _mask(text: str, shape: tuple[int, int], path: Path | None) -> NDArray[np.bool_]:
    """Return (h, w), True where the mask is not 0."""
    names = ("bad_pixels", "mask", "pixel_mask")
    mask = read_array(text, "the mask", names=names, beside=path)
    checks.check_numeric(mask.dtype, "biuf", "the mask's values", text)
    _require_shape(mask, shape, "the mask", text)
    return np.asarray(mask != 0)


def _require_shape(array: NDArray[Any], shape: tuple[int, int], what: str, where: str) -> None:
    if array.shape != shape:
        raise DataError(
            f"{what} has shape {array.shape}, the patterns as stored {shape}",
            where=where,
            expected="one value for each pixel of a stored pattern, before it is cropped, turned or binned",
            fix=f"cut or turn {what} as the stored patterns are",
        )


def _counted(stored: Patterns, values: Values, good: NDArray[np.bool_]) -> dict[str, int]:
    """Count the values at good pixels that are set to 0."""
    negative = below = 0
    for _, block in blocks(stored):
        found = values.shifted(block)[:, good]
        negative += int((found < 0).sum())
        below += int(((found >= 0) & (found < values.threshold)).sum())
    return {"negative_values_set_to_0": negative, "values_below_threshold": below}


def _with_wrong_values(stored: Patterns, corrected: Patterns, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return pixels with a value that is no count, or the largest of its type; none where they are many."""
    wrong = checks.wrong_pixels(corrected, good)
    if stored.dtype.kind in "iu":
        limit = np.iinfo(stored.dtype).max
        wrong |= np.any([(block == limit).any(axis=0) for _, block in blocks(stored)], axis=0) & good
    return wrong if wrong.sum() <= checks.FEW_PIXELS * good.sum() else np.zeros_like(good)


def _suspects(
    stored: Patterns, values: Values, good: NDArray[np.bool_], domain: Domain, where: str
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return pixels that look broken, and the mean intensity above its background with them filled in."""
    corrected: Patterns = stored
    if not values.idle:
        shape = (int(stored.shape[1]), int(stored.shape[2]))
        corrected = ComputedPatterns(stored, values, shape, values.dtype(stored.dtype))
    wrong = _with_wrong_values(stored, corrected, good)
    good = good & ~wrong
    statistics = checks.scan_patterns(corrected, good, where)
    rows = checks.sample_rows(len(stored))
    sample = np.where(good, np.asarray(corrected[rows], dtype=np.float64), 0.0)
    intensity = sample if domain == "intensity" else sample * sample
    quantum = find_quantum(intensity[:, good])
    faults = find_faults(intensity, good, statistics, quantum, counts=domain == "intensity")
    return faults.suspect | wrong, np.maximum(faults.mean_intensity - faults.background, 0.0)


def find_center(mean: NDArray[np.float64], where: str) -> tuple[float, float]:
    """Return [y, x] of the beam: the center of mass of the mean pattern in a window around itself.

    What the window cuts off on one side it cuts off on the other, so that wide scattering does not pull.

    Raises:
        DataError: the beam is in the corners, or at an edge.
    """
    if place := misplaced_zero_frequency(mean):
        raise DataError(
            f"center = auto finds the beam {where_bright(place)} of the patterns",
            where=where,
            expected="the zero frequency near the middle",
            fix=f"--zero-frequency {place}",
        )
    center = np.array([n // 2 for n in mean.shape], dtype=float)
    y, x = np.indices(mean.shape)
    for step in range(20):
        whole = np.round(center)
        reach = np.minimum(whole, np.array(mean.shape) - 1 - whole).clip(min=1)
        inside = (abs(y - whole[0]) <= reach[0]) & (abs(x - whole[1]) <= reach[1])
        weight = mean if step == 0 else np.where(inside, mean, 0.0)
        total = weight.sum()
        if total <= 0:
            break
        before, center = center, np.array([(weight * y).sum(), (weight * x).sum()]) / total
        if step and np.abs(center - before).max() < 1e-3:
            break
    return float(center[0]), float(center[1])


def _off_center(probe: NDArray[np.complex64] | None, shape: tuple[int, int]) -> tuple[float, float]:
    """Return [y, x] by which the far field of a probe of that size lies beside N/2; 0 without one."""
    if probe is None or probe.shape[1:] != shape:
        return 0.0, 0.0
    y, x = far_field_center(probe)
    return y - shape[0] // 2, x - shape[1] // 2


def _sized(
    frame: Frame, stored: tuple[int, int], config: Preprocessing, where: str
) -> tuple[Frame, int, float]:
    """Return the frame cropped, padded and binned; the side whose pixel the file means; the ratio to it."""
    _, side, ratio = side_after(stored, config, where)
    indices = [frame.rows, frame.columns]
    for size in (config.crop, config.pad):
        indices = [resized(index, size) for index in indices] if size else indices
    return replace(frame, rows=indices[0], columns=indices[1], bin=config.bin), side, ratio
