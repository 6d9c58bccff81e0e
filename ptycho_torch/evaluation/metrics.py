"""How good is a reconstruction? Aligned comparison with the truth: SSIM, PSNR, NRMSE, ring correlation.

A ptychographic object is only determined up to a global phase, a linear phase ramp, an amplitude
scale and a translation, none of which changes the diffraction patterns. They are removed first;
what is left is error. Everything is scored on one rectangle that the scan covers well.

Arrays are numpy, (H, W); phases in radians; resolutions in object pixels (`_px`) or meters (`_m`).
References: SSIM - Wang et al., IEEE TIP 13, 600 (2004), as in scikit-image; ring correlation - van
Heel and Schatz, J. Struct. Biol. 151, 250 (2005); registration - Guizar-Sicairos, Thurman and Fienup,
Opt. Lett. 33, 156 (2008), as in scikit-image. Definitions: `specs/stitching_and_metrics.md`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.evaluation.registration import (
    MIN_FIELD_PX,
    Alignment,
    Complex,
    Field,
    Real,
    align,
    centered_phase,
    largest_rectangle,
    tapered,
)

WELL_COVERED = 0.25
"""A pixel is well covered when its coverage exceeds this part of what the best tenth of them has."""
NYQUIST_PX = 2.0
"""The finest period that pixels can hold; reported when the correlation never falls below a threshold."""
TAPER = 0.2
"""Part of each side that the ring correlation's Tukey window tapers, both ends together."""


@dataclass(frozen=True)
class RingCorrelation:
    """Fourier ring correlation of two images, from the ring next to zero frequency to Nyquist."""

    frequency_per_px: Real
    """Lower edge of each ring, in cycles per pixel."""
    correlation: Real
    half_bit: Real
    """The half-bit information threshold for each ring."""
    pixels: NDArray[np.int64]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return frequencies, correlation and threshold by name, for a file."""
        return {name: vars(self)[name] for name in ("frequency_per_px", "correlation", "half_bit")}

    def resolution_px(self, threshold: float | Real) -> float | None:
        """Return the full period, in pixels, at which the correlation first falls below a threshold.

        2 (Nyquist) when it never does; none when not even the first ring is above.
        """
        above = self.correlation - threshold
        below = np.flatnonzero(above < 0)
        if not below.size:
            return NYQUIST_PX
        first = int(below[0])
        if first == 0:
            return None
        part = above[first - 1] / (above[first - 1] - above[first])
        step = self.frequency_per_px[first] - self.frequency_per_px[first - 1]
        return float(1 / (self.frequency_per_px[first - 1] + part * step))


@dataclass(frozen=True)
class Evaluation:
    """Scores of one reconstruction; `to_json` holds all of them, the arrays stay in memory."""

    amplitude_ssim: float
    phase_ssim: float
    amplitude_psnr_db: float
    phase_psnr_db: float
    nrmse: float
    """Norm of the complex error over the norm of the truth."""
    frc_half_px: float | None
    """Full period at which the ring correlation falls below 0.5, in pixels; 2 is the limit of sampling."""
    frc_one_seventh_px: float | None
    frc_half_bit_px: float | None
    frc_half_nm: float | None
    """As above in nanometers; none when the pixel size is not known."""
    frc_one_seventh_nm: float | None
    frc_half_bit_nm: float | None
    coverage: float
    """Part of the canvas that the scan covers well, 0 to 1."""
    field: Field
    """The scored rectangle."""
    alignment: Alignment
    pixel_size_m: float | None
    rings: RingCorrelation = dataclasses.field(repr=False)
    truth: Complex = dataclasses.field(repr=False)
    """The truth on the scored rectangle, complex128 (h, w)."""
    reconstruction: Complex = dataclasses.field(repr=False)
    """The aligned reconstruction on the scored rectangle, complex128 (h, w)."""

    def to_json(self) -> dict[str, Any]:
        """Return every score, and how it was obtained, as JSON-native values (infinite becomes none)."""
        arrays = ("rings", "truth", "reconstruction")
        values = {name: value for name, value in vars(self).items() if name not in arrays}
        values["field"] = self.field._asdict()
        values["alignment"] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self.alignment).items()
        }
        infinite = {
            name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)
        }
        return {**values, **dict.fromkeys(infinite)}

    def dumps(self) -> str:
        """Return `to_json` as a string, as written to metrics.json."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"


def evaluate(
    reconstruction: NDArray[Any],
    truth: NDArray[Any],
    *,
    coverage: NDArray[Any] | None = None,
    pixel_size_m: float | None = None,
    trim_px: int = 0,
    well_covered: float = WELL_COVERED,
    max_shift_px: float = 8.0,
) -> Evaluation:
    """Compare a reconstruction with the truth, but for scale, global phase, phase ramp and translation.

    Args:
        reconstruction: complex (H, W).
        truth: complex (H, W), on the same canvas.
        coverage: float (H, W) from stitching; the scored rectangle is the largest one inside the pixels whose
            coverage exceeds `well_covered` times its 90th percentile; none scores the whole canvas.
        pixel_size_m: side of an object pixel, for resolutions in nanometers.
        trim_px: margin cut off each side of that rectangle.
        well_covered: part of the 90th percentile of the coverage, 0 to 1.
        max_shift_px: a translation larger than this is not believed and not removed.

    Examples:
        >>> import numpy as np
        >>> from ptycho_torch import evaluate, simulate_scan
        >>> truth = simulate_scan(n=32, patterns=9).object_guess
        >>> scores = evaluate(2j * truth, truth)  # scale and global phase are free
        >>> round(scores.amplitude_ssim, 3), round(scores.nrmse, 3)
        (1.0, 0.0)

    Raises:
        DataError: shapes differ, values are not finite, nothing is covered, or all is zero.
    """
    image, true = np.asarray(reconstruction), np.asarray(truth)
    if image.ndim != 2 or image.shape != true.shape:
        raise DataError(
            f"cannot compare a reconstruction {image.shape} with a truth {true.shape}",
            expected="two images (H, W) on the same canvas",
            fix="stitch onto the canvas of the truth's objectGuess",
        )
    image, true = image.astype(np.complex128), true.astype(np.complex128)
    mask = (
        np.ones(true.shape, bool) if coverage is None else _well_covered(coverage, true.shape, well_covered)
    )
    whole = largest_rectangle(mask).shrunk(trim_px)
    _check_field(image, true, whole)
    image = np.where(np.isfinite(image), image, 0)  # what lies outside must not leak in with a shift
    aligned, alignment, scored = align(image, true, whole, max_shift_px=max_shift_px)
    reference = true[scored.slices]
    rings = ring_correlation(reference, aligned)
    half, one_seventh, half_bit = (rings.resolution_px(level) for level in (0.5, 1 / 7, rings.half_bit))
    true_phase, phase = comparable_phases(reference, aligned)
    true_amplitude, amplitude = np.abs(reference), np.abs(aligned)
    return Evaluation(
        amplitude_ssim=ssim(true_amplitude, amplitude),
        phase_ssim=ssim(true_phase, phase),
        amplitude_psnr_db=psnr_db(true_amplitude, amplitude),
        phase_psnr_db=psnr_db(true_phase, phase),
        nrmse=nrmse(reference, aligned),
        frc_half_px=half,
        frc_one_seventh_px=one_seventh,
        frc_half_bit_px=half_bit,
        frc_half_nm=_nanometers(half, pixel_size_m),
        frc_one_seventh_nm=_nanometers(one_seventh, pixel_size_m),
        frc_half_bit_nm=_nanometers(half_bit, pixel_size_m),
        coverage=float(mask.mean()),
        field=scored,
        alignment=alignment,
        pixel_size_m=pixel_size_m,
        rings=rings,
        truth=reference,
        reconstruction=aligned,
    )


def ssim(truth: Real, image: Real) -> float:
    """Return the structural similarity of two real images (7 x 7 window, range of the truth)."""
    from skimage.metrics import structural_similarity

    score = structural_similarity(truth, image, data_range=_data_range(truth))  # type: ignore[no-untyped-call]
    return float(score)


def psnr_db(truth: Real, image: Real) -> float:
    """Return the peak signal-to-noise ratio in decibels; the peak is the range of the truth."""
    error = float(np.mean((truth - image) ** 2))
    return math.inf if error == 0 else 10 * math.log10(_data_range(truth) ** 2 / error)


def nrmse(truth: Complex, image: Complex) -> float:
    """Return the norm of the complex difference over the norm of the truth."""
    return float(np.linalg.norm(image - truth) / np.linalg.norm(truth))


def comparable_phases(truth: Complex, aligned: Complex) -> tuple[Real, Real]:
    """Return two phases in radians that can be subtracted: no jump of 2 pi is counted as an error.

    The truth's phase is centered on its mean and, if it still reaches the branch cut, unwrapped; the
    other is the truth's plus the phase of the ratio, which lies within -pi to pi.
    """
    true_phase = centered_phase(truth)
    if np.abs(true_phase).max() > 0.9 * np.pi:
        from skimage.restoration import unwrap_phase

        true_phase = np.asarray(unwrap_phase(true_phase))  # type: ignore[no-untyped-call]
    return true_phase, true_phase + np.angle(aligned * truth.conj())


def ring_correlation(truth: NDArray[Any], image: NDArray[Any]) -> RingCorrelation:
    """Return the Fourier ring correlation of two images (h, w), real or complex.

    Each is freed of its mean and tapered by a Tukey window; rings are one step of the shorter side wide.
    The signed real part is used, so that uncorrelated rings scatter about zero.
    """
    height, width = truth.shape
    window = np.outer(_tukey(height), _tukey(width))
    spectra = [np.fft.fft2(tapered(array, window)) for array in (truth, image)]
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    ring_width = 1 / min(height, width)
    inside: NDArray[np.bool_] = np.asarray((radius > 0) & (radius <= 0.5 + 1e-9))
    ring = np.floor(radius[inside] / ring_width + 1e-9).astype(np.int64)
    first, second = (spectrum[inside] for spectrum in spectra)
    cross, power_1, power_2 = (
        np.bincount(ring, weights=weights)[1:]
        for weights in ((first * second.conj()).real, np.abs(first) ** 2, np.abs(second) ** 2)
    )
    pixels = np.bincount(ring)[1:]
    norm = np.sqrt(power_1 * power_2)
    correlation = np.divide(cross, norm, out=np.zeros_like(cross), where=norm > 0)
    frequency = np.arange(1, len(pixels) + 1) * ring_width
    return RingCorrelation(frequency, np.clip(correlation, -1, 1), half_bit_threshold(pixels), pixels)


def _tukey(count: int) -> Real:
    """Return a Tukey window with `TAPER` of it in the two cosine flanks; SciPy's takes 0.7 s to import."""
    flank = (1 - np.cos(2 * np.pi / TAPER * np.linspace(0, 1, count))) / 2
    side = np.where(np.linspace(0, 1, count) < TAPER / 2, flank, 1.0)
    return np.asarray(np.minimum(side, side[::-1]))


def half_bit_threshold(pixels: NDArray[np.int64]) -> Real:
    """Return the half-bit threshold for rings of so many pixels (van Heel and Schatz 2005, eq. 17)."""
    root = 1 / np.sqrt(np.maximum(pixels, 1))
    return np.asarray((0.2071 + 1.9102 * root) / (1.2071 + 0.9102 * root))


def _data_range(truth: Real) -> float:
    # A truth without contrast has no range of its own; 1 (amplitude, radian) is the natural unit.
    spread = float(np.ptp(truth))
    return spread if spread > 1e-6 else 1.0


def _nanometers(period_px: float | None, pixel_size_m: float | None) -> float | None:
    return None if period_px is None or pixel_size_m is None else period_px * pixel_size_m * 1e9


def _well_covered(coverage: NDArray[Any], shape: tuple[int, int], part: float) -> NDArray[np.bool_]:
    weight = np.asarray(coverage, dtype=np.float64)
    if weight.shape != shape or not np.all(np.isfinite(weight)):
        raise DataError(f"the coverage map {weight.shape} is not finite or not of the shape {shape}")
    if not np.any(weight > 0):
        raise DataError(
            "the coverage map is zero everywhere", expected="the coverage that stitching returned"
        )
    from scipy.ndimage import binary_fill_holes

    often = weight > part * np.percentile(weight[weight > 0], 90)
    # A pixel between the scan points of a coarse grid is seen less often, but it does belong to the field.
    return np.asarray(binary_fill_holes(often) & (weight > 0))


def _check_field(reconstruction: Complex, true: Complex, area: Field) -> None:
    if min(area.shape) < MIN_FIELD_PX:
        raise DataError(
            f"only {max(area.shape[0], 0)} x {max(area.shape[1], 0)} pixels are left to compare",
            expected=f"a well covered rectangle of at least {MIN_FIELD_PX} x {MIN_FIELD_PX} pixels",
            fix="trim less, or scan a larger area",
        )
    for name, image in (("reconstruction", reconstruction), ("truth", true)):
        inside = image[area.slices]
        if not np.all(np.isfinite(inside)):
            bad = int(np.count_nonzero(~np.isfinite(inside)))
            raise DataError(f"the {name} has {bad} values that are not finite in the field that is compared")
        if not np.any(inside):
            raise DataError(f"the {name} is zero everywhere in the field that is compared")
