"""Find out what a file holds - domain, scan axis, patch center - from evidence, or refuse.

Every decision carries its reason, which ends up in the detection report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.patterns import Domain

PatchCenter = Literal["half-pixel", "pixel"]

PTYCHODUS_CENTER: tuple[PatchCenter, str] = (
    "half-pixel",
    "neither file nor settings declare it; files with bad_pixels come from Ptychodus, which means (N-1)/2",
)
PTYCHOPINN_CENTER: tuple[PatchCenter, str] = (
    "pixel",
    "neither file nor settings declare it; N/2 is the convention of PtychoPINN files",
)

_FAR_BETTER = 0.5
"""Interpolating the object is taken as what was done where its error is lower by this factor."""
_LATTICE_DIVISORS = (1, 2, 3, 4, 5, 6)
_LATTICE_TOLERANCE = 0.02
_LATTICE_MAX_COUNT = 4096
_LATTICE_MIN_VALUES = 200
_LATTICE_VALUES = 100_000
_LATTICE_MIN_DISTINCT = 8
_DECLARE_DOMAIN = 'set domain = "amplitude" or domain = "intensity" (--domain on the command line)'


@dataclass(frozen=True, slots=True)
class ForwardFit:
    """How well |FFT(probe * object patch)| explains the data, per pattern.

    `errors` is relative, (K,) for K patterns tried; `scale` is the fitted factor on the model. `placement`
    says what the sub-pixel part of a position moves: the object only where that explains the data far better.
    """

    errors: NDArray[np.float64]
    scale: float
    placement: Literal["object", "probe"] = "probe"

    @property
    def error(self) -> float:
        """Mean relative error."""
        return float(np.mean(self.errors))


def find_scan_axis(shape: tuple[int, ...], count: int, declared: str, where: str) -> tuple[int, str]:
    """Return the scan axis, as long as the positions, and the reason for it; square patterns come first.

    Raises:
        DataError: wrong rank, no such axis, or more than one.
    """
    sides = {0: shape[1:], 2: shape[:2]}
    fits = [axis for axis, (y, x) in sides.items() if shape[axis] == count and y > 0 < x]
    # Where positions and pixels are as many, only one reading may give square patterns.
    fits = [axis for axis in fits if sides[axis][0] == sides[axis][1]] or fits
    if declared in ("first", "last"):
        axis = 0 if declared == "first" else 2
        if axis not in fits:
            raise _axis_mismatch(shape, count, where, f"a scan axis declared {declared} and ")
        return axis, "declared"
    if len(fits) == 1:
        name = "first" if fits[0] == 0 else "last"
        return fits[0], f"the {name} axis is as long as the {count} positions"
    if fits:
        raise DataError(
            f"the scan axis is ambiguous: all axes of {shape} are as long as the {count} positions",
            where=where,
            expected="a declaration, because a wrong guess ruins the result in silence",
            fix='set pattern_axes = "first" for (M, N, N) or "last" for (N, N, M)',
        )
    raise _axis_mismatch(shape, count, where)


def _axis_mismatch(shape: tuple[int, ...], count: int, where: str, what: str = "") -> DataError:
    return DataError(
        f"patterns of shape {shape} do not agree with {what}{count} positions",
        where=where,
        expected=f"({count}, N, N) or (N, N, {count}), one pattern per position",
        fix="make positions and patterns the same length; name the right arrays with --map patterns=NAME "
        "--map positions=NAME",
    )


def find_quantum(values: NDArray[np.float64]) -> float | None:
    """Return q when the values are whole multiples of q (counts times a scale), else none.

    Dark parts of a detector hold single photons, so q is the smallest value or a small fraction of it.
    """
    positive = values[values > 0]
    if positive.size < _LATTICE_MIN_VALUES:
        return None
    smallest = float(positive.min())
    for divisor in _LATTICE_DIVISORS:
        quantum = smallest / divisor
        low = positive[positive < quantum * _LATTICE_MAX_COUNT]
        low = low[:: 1 + low.size // _LATTICE_VALUES]
        counts = low / quantum
        whole = np.round(counts)
        distinct = np.count_nonzero(np.bincount(whole.astype(np.int64)))
        if counts.size < _LATTICE_MIN_VALUES or distinct < _LATTICE_MIN_DISTINCT:
            continue
        if np.mean(np.abs(counts - whole) < _LATTICE_TOLERANCE) > 0.999:
            return float(np.median(low / whole))
    return None


def find_domain(
    *,
    declared: tuple[str, str],
    dtype: np.dtype[Any],
    has_bad_pixels: bool,
    sample: NDArray[np.float64],
    fit: Callable[[Domain], ForwardFit | None],
    where: str,
    counts_because: str = "",
) -> tuple[Domain, str]:
    """Return the domain and the reason for it; `declared` is such a pair, or begins with "auto".

    Order: declaration; integer dtype means counts; whole multiples of a quantum in x (intensity) or in x
    squared (amplitude); a bad-pixel mask means counts; the one domain that the file's probe and object
    explain; the reason `counts_because`, if there is one.

    Raises:
        DataError: when none of these decides, or mask and values contradict each other.
    """
    if declared[0] in ("amplitude", "intensity"):
        return cast(Domain, declared[0]), declared[1] or "declared"
    if dtype.kind in "iu":
        return "intensity", f"{dtype} numbers are counts"
    if find_quantum(sample) is not None:
        return "intensity", "the values are whole multiples of one number: counts"
    roots_of_counts = find_quantum(sample * sample) is not None
    if roots_of_counts and has_bad_pixels:
        raise DataError(
            "bad_pixels means counts (Ptychodus export), but the values are square roots of counts",
            where=where,
            expected="evidence that agrees, or a declaration",
            fix=_DECLARE_DOMAIN,
        )
    if roots_of_counts:
        return "amplitude", "the squared values are whole multiples of one number: counts"
    if has_bad_pixels:
        return "intensity", "a file with bad_pixels holds counts (Ptychodus export)"
    amplitude, intensity = fit("amplitude"), fit("intensity")
    if amplitude is not None and intensity is not None:
        best: Domain = "amplitude" if amplitude.error < intensity.error else "intensity"
        low, high = sorted((amplitude.error, intensity.error))
        if low < 0.3 and low < 0.5 * high:
            share = f"{low:.1%} against {high:.1%}"
            return best, f"probe and object of the file explain the data as {best} ({share} error)"
    if counts_because:
        return "intensity", counts_because
    raise DataError(
        "cannot decide whether the patterns are amplitude (square root of counts) or intensity",
        where=where,
        expected="whole counts, or their square roots, or a declaration",
        fix=_DECLARE_DOMAIN,
    )


def fit_forward(
    amplitude: NDArray[np.float64],
    good: NDArray[np.bool_],
    probe: NDArray[np.complex64],
    canvas: NDArray[np.complex64],
    origins_px: NDArray[np.float64],
) -> ForwardFit | None:
    """Compare (K, N, N) measured amplitudes with the model of a probe and an object.

    Programs place a patch at its sub-pixel origin in two ways: by interpolating the object, or by shifting
    the probe against the whole-pixel patch. Both are tried; the one that explains the data better counts.
    None when fewer than 8 patches lie on the canvas, or when there is nothing to compare.
    """
    N = amplitude.shape[-1]
    inside = np.all((origins_px >= 0) & (origins_px + N < np.array(canvas.shape)), axis=1)
    if inside.sum() < 8:
        return None
    measured, origins = (amplitude[inside] * good).astype(np.float32), origins_px[inside]
    patches = np.stack([bilinear_patch(canvas, origin, N) for origin in origins])
    start = np.round(origins).astype(np.int64)
    whole = np.stack([canvas[y : y + N, x : x + N] for y, x in start])
    waves = (patches[:, None] * probe, whole[:, None] * shift_probe(probe, origins - start))
    by_object, by_probe = (_fit_waves(wave, measured, good) for wave in waves)
    if by_object is None or by_probe is None:
        return by_object or by_probe
    if by_object.error < _FAR_BETTER * by_probe.error:
        return replace(by_object, placement="object")
    return min(by_object, by_probe, key=lambda fit: fit.error)


def _fit_waves(
    waves: NDArray[Any], measured: NDArray[np.float32], good: NDArray[np.bool_]
) -> ForwardFit | None:
    """Fit one scale to (K, P, N, N) exit waves against (K, N, N) measured amplitudes."""
    far_field = np.fft.fft2(waves, norm="ortho")
    intensity = np.sum(far_field.real**2 + far_field.imag**2, axis=1)
    model = np.sqrt(np.fft.fftshift(intensity, axes=(-2, -1))) * good
    power = float(np.sum(model * model, dtype=np.float64))
    energy = np.sum(measured * measured, axis=(1, 2), dtype=np.float64)
    if power <= 0 or not np.all(energy > 0):
        return None
    scale = float(np.sum(model * measured, dtype=np.float64)) / power
    residual = np.sum((scale * model - measured) ** 2, axis=(1, 2), dtype=np.float64)
    return ForwardFit(np.sqrt(residual / energy), scale)


def shift_probe(probe: NDArray[np.complex64], shift_px: NDArray[np.float64]) -> NDArray[Any]:
    """Return (K, P, N, N) probes moved by (K, 2) [y, x] pixels with Fourier phase ramps (band-limited)."""
    ramp = np.exp(-2j * np.pi * shift_px[:, :, None] * np.fft.fftfreq(probe.shape[-1])).astype(probe.dtype)
    kernel = (ramp[:, 0, :, None] * ramp[:, 1, None, :])[:, None]
    return np.asarray(np.fft.ifft2(np.fft.fft2(probe) * kernel), dtype=probe.dtype)


def bilinear_patch(canvas: NDArray[np.complex64], origin_px: NDArray[np.float64], N: int) -> NDArray[Any]:
    """Return the (N, N) patch whose pixel [0, 0] lies at a sub-pixel canvas index."""
    y, x = np.floor(origin_px).astype(int)
    fy, fx = origin_px - np.floor(origin_px)
    block = canvas[y : y + N + 1, x : x + N + 1]
    fy, fx = canvas.real.dtype.type(fy), canvas.real.dtype.type(fx)
    rows = (1 - fy) * block[:-1] + fy * block[1:]
    return np.asarray((1 - fx) * rows[:, :-1] + fx * rows[:, 1:])


def find_patch_center(
    declared: str, default: tuple[PatchCenter, str], half: ForwardFit | None, pixel: ForwardFit | None
) -> tuple[PatchCenter, str]:
    """Return which patch index a position of the file means, and why.

    A declaration wins. Otherwise the file is asked: with its own probe and object, the right convention
    explains the data better in nearly every pattern (a sign test). Without such evidence the convention
    of the program that wrote the file decides.
    """
    if declared in ("half-pixel", "pixel"):
        return cast(PatchCenter, declared), "declared"
    if half is not None and pixel is not None and len(half.errors) == len(pixel.errors):
        better = np.mean(half.errors < pixel.errors)
        best: PatchCenter = "half-pixel" if better > 0.5 else "pixel"
        share = max(better, np.mean(pixel.errors < half.errors))
        if share >= 0.9 and min(half.error, pixel.error) < 0.3:
            errors = f"{half.error:.2%} with half-pixel, {pixel.error:.2%} with pixel"
            return best, f"measured with the file's probe and object: error {errors}"
    return default
