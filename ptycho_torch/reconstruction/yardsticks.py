"""What an object is held against: the mean pattern and the noise, which neither object nor probe can change.

    R = sum |a - s A| / sum a

over good pixels, with the measured amplitude a, the predicted amplitude A and the one scale s that fits
best: the residual factor of crystallography. Maiden and Rodenburg (Ultramicroscopy 109, 1256 (2009)) use its
squared form. R is what users know, but at low dose even the true object has an R above 1. So objects are
judged by the misfit

    L = mean (f(I) - f(s^2 A^2))^2,    f(I) = sqrt(I / gain + 3/8)

in amplitudes whose noise hardly depends on the intensity (Anscombe, Biometrika 35, 246 (1948)): 1/4 where
counts are many. What the mean pattern of all others leaves of a pattern, less what noise leaves, is what an
object can explain; the part q of it that is left over is 0 for the true object and 1 for one that explains
nothing.

Shape legend: K patterns, G good pixels of the detector, N x N pixels, P probe modes, object (H, W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage.patterns import at_once
from ptycho_torch.physics import forward as physics

Real = NDArray[np.float32]
NoiseSource = Literal["counts", "variance over mean", "unknown"]

SAMPLE = 128
"""Patterns that are compared, spread evenly over the scan."""
MOST_VALUES = 2**22
"""Fewer where their pixels are more than this, but never less than a quarter of `SAMPLE`."""
DRAWN = 16
"""Patterns that are drawn to find what noise leaves."""
_BINS, _DIM = 32, 20
_ILL_FITTED, _STRUCTURED = 0.2, 0.2
_NO_COUNTS = 2.0
_SMALL, _BELOW = 0.1, 0.05


@dataclass(frozen=True)
class Noise:
    """How the intensity scatters about its mean: counts of a detector with a gain, a pedestal, a read-out."""

    gain: float | None
    """Intensity of one count; None where it cannot be known."""
    source: NoiseSource
    pedestal: float = 0.0
    readout: float = 0.0
    """Standard deviation of what is read without light."""

    def stabilized(self, intensity: NDArray[Any]) -> Real:
        """Return amplitudes in which noise is nearly the same everywhere; plain ones without a gain."""
        counts = np.asarray(intensity, np.float32)
        if self.gain is not None:
            counts = counts / np.float32(self.gain) + np.float32(0.375)
        return np.asarray(np.sqrt(counts), np.float32)

    def draw(self, intensity: Real, seed: int = 0) -> tuple[Real, Real]:
        """Return true intensities, (DRAWN, G), such as patterns (K, G) may come from, and what is measured.

        The true ones follow, pixel by pixel, a gamma distribution with the mean that was measured and the
        variance that noise does not explain: that of speckle.
        """
        rng = np.random.default_rng(seed)
        mean = np.maximum(intensity.mean(axis=0, dtype=np.float64) - self.pedestal, 0)
        if self.gain is None:
            drawn = np.tile(mean, (DRAWN, 1)).astype(np.float32)
            return drawn, drawn
        variance = intensity.var(axis=0, ddof=1, dtype=np.float64) if len(intensity) > 1 else 0 * mean
        own = np.maximum(variance - self.gain * mean - self.readout**2, 1e-6 * mean**2 + 1e-30)
        true = rng.gamma(mean**2 / own, own / np.maximum(mean, 1e-30), size=(DRAWN, len(mean)))
        measured = self.gain * rng.poisson(np.minimum(true / self.gain, 1e15)) + self.pedestal
        measured = np.maximum(measured + self.readout * rng.standard_normal(true.shape), 0)
        return (true + self.pedestal).astype(np.float32), measured.astype(np.float32)


def noise_of(scan: ScanData, intensity: Real) -> Noise:
    """Return the noise of patterns (K, G): of counts where they are known, else from variance against mean.

    Whole numbers may be no counts, as those of an amplifier: where the variance of dim pixels is far above
    their mean, it tells.
    """
    quantum = scan.report.get("count_quantum", 1.0 if scan.holds_counts else None)
    quantum = scan.report.get("units_per_count") or quantum  # with read-out noise, no step is that of a count
    estimated = _variance_over_mean(intensity)
    gain = None if estimated is None else estimated.gain
    if quantum is not None and (gain is None or gain < _NO_COUNTS * quantum):
        return Noise(float(quantum), "counts")
    return estimated or Noise(None, "unknown")


def sample_of(scan: ScanData) -> tuple[Real, Noise]:
    """Return the intensities (K, G) of some patterns of a scan, and their noise."""
    measured = measured_intensity(scan, spread(np.arange(len(scan)), scan.n_pixels))
    noise = noise_of(scan, measured) if np.isfinite(measured).all() else Noise(None, "unknown")
    return measured, noise


def photons_at_peak(scan: ScanData, probe: NDArray[np.complex64]) -> float | None:
    """Return how many photons of a pattern fell on the pixel of the object where a probe is brightest.

    None where the patterns hold no counts.
    """
    measured, noise = sample_of(scan)
    illumination = np.square(np.abs(probe)).reshape(-1, *probe.shape[-2:]).sum(axis=0, dtype=np.float64)
    if noise.source != "counts" or noise.gain is None or not illumination.any():
        return None
    photons = float(measured.sum(axis=1, dtype=np.float64).mean()) / noise.gain
    return photons * float(illumination.max() / illumination.sum())


def error_of_counting(coverage: NDArray[Any], at_peak: float) -> NDArray[np.float64]:
    """Return the error that the noise of counts leaves at each pixel of an object near 1, (H, W).

    1 / sqrt(n), at most 1, with n photons on the pixel; NaN where none fell. Patterns tell the amplitude of
    a wave on the detector, not its phase, and so half of what n photons could tell of a complex number
    (Fisher information, on average over the pixels). Iteration comes to it, a denoised object below it.

    Args:
        coverage: (H, W); 1 is one pattern at the brightest pixel of the probe.
        at_peak: photons of a pattern on that pixel.
    """
    photons = np.asarray(coverage, np.float64) * at_peak
    return np.where(photons > 0, np.maximum(photons, 1.0) ** -0.5, np.nan)


def _variance_over_mean(intensity: Real) -> Noise | None:
    """Fit variance = readout^2 + gain (mean - pedestal) + c mean^2 to dim pixels; None where noise is hidden.

    The last term is the object's. Where it is not small in the dimmest pixels, or the curve fits badly, the
    variance does not tell the noise. Nor does it where many values lie far below the pedestal that was found:
    speckle looks like one.
    """
    if len(intensity) < 8:
        return None
    mean, variance = intensity.mean(axis=0, dtype=np.float64), intensity.var(axis=0, ddof=1, dtype=np.float64)
    seen = mean > 0
    if seen.sum() < 8 * _BINS:
        return None
    order = np.argsort(mean[seen])
    bins = np.array_split(order, _BINS)[:_DIM]
    x, y = (np.array([values[seen][rows].mean() for rows in bins]) for values in (mean, variance))
    if not (y > 0).all():
        return None
    terms = np.stack([np.ones_like(x), x, x**2], axis=1) / y[:, None]
    offset, gain, contrast = np.linalg.lstsq(terms, np.ones_like(x), rcond=None)[0]
    misfit = np.sqrt(np.mean((terms @ [offset, gain, contrast] - 1) ** 2))
    if gain <= 0 or misfit > _ILL_FITTED or abs(contrast) * x[0] ** 2 > _STRUCTURED * y[0]:
        return None
    pedestal, readout = max(-offset / gain, 0.0), float(np.sqrt(max(offset, 0.0)))
    dimmest = intensity[:, np.flatnonzero(seen)[bins[0]]]
    if pedestal > _SMALL * gain and np.mean(dimmest < pedestal / 2) > _BELOW:
        return None
    return Noise(float(gain), "variance over mean", float(pedestal), readout)


_MANY_COUNTS = 30.0


def noise_of_amplitude(expected: Tensor) -> Tensor:
    """Return the mean of (sqrt(n) - sqrt(k))^2 for Poisson counts n of expectation k, an array of any shape.

    A fourth for many counts; less where hardly any arrive.
    """
    few = expected.double().clamp(0, _MANY_COUNTS)
    term = torch.exp(-few)  # probability of n counts, n = 0, 1, ...
    mean_root = torch.zeros_like(few)
    for n in range(1, int(_MANY_COUNTS) * 3):
        term = term * few / n
        mean_root += term * n**0.5
    exact = 2 * few - 2 * few.sqrt() * mean_root
    return torch.where(expected > _MANY_COUNTS, 0.25, exact).to(expected.dtype)


@dataclass(frozen=True)
class Yardstick:
    """What the mean pattern and noise alone leave of some patterns, and how the noise was found."""

    noise: Noise
    mean: Real
    """(G,) mean intensity."""
    r_mean: float
    r_noise: float
    misfit_mean: float
    misfit_noise: float

    @property
    def contrast(self) -> float:
        """How much more than noise the mean pattern leaves, as a part of it; infinite without noise."""
        return self.misfit_mean / self.misfit_noise - 1 if self.misfit_noise else float("inf")


def yardstick_of(scan: ScanData, intensity: Real) -> Yardstick | None:
    """Return what to hold an object against, from patterns (K, G); None for fewer than two, or dark ones."""
    count = len(intensity)
    if count < 2 or not intensity.any():
        return None
    noise = noise_of(scan, intensity)
    mean = intensity.mean(axis=0, dtype=np.float64).astype(np.float32)
    others = np.maximum((count * mean - intensity) / np.float32(count - 1), 0)
    true, measured = noise.draw(intensity)
    return Yardstick(
        noise,
        mean,
        r_factor(np.sqrt(intensity), np.sqrt(others)),
        0.0 if noise.gain is None else r_factor(np.sqrt(measured), np.sqrt(true)),
        float(misfits(noise, intensity, others).mean()),
        0.0 if noise.gain is None else float(misfits(noise, measured, true).mean()),
    )


def r_factor(measured: Real, predicted: Real) -> float:
    """Return R of amplitudes (K, G) at the scale that fits best."""
    scaled = predicted * _scale(measured, predicted)
    return float(np.abs(measured - scaled).sum(dtype=np.float64) / measured.sum(dtype=np.float64))


def _scale(measured: Real, predicted: Real) -> np.float32:
    power = max(float(np.vdot(predicted, predicted)), 1e-30)
    return np.float32(np.vdot(predicted, measured) / power)


def misfits(noise: Noise, measured: Real, predicted: Real) -> Real:
    """Return the misfit L of each pattern; intensities (K, G)."""
    apart = noise.stabilized(measured) - noise.stabilized(predicted)
    return np.asarray(np.square(apart).mean(axis=1))


def scaled(
    noise: Noise, measured: Real, predicted: Real, background: Real | None = None
) -> tuple[Real, np.float32]:
    """Return predicted intensities (K, G) at the scale that fits best, with the background, and that scale.

    Two scales are tried: that of the amplitudes, which an object refined on amplitudes fits, and that of the
    power, which one trained on counts does.
    """
    beneath = np.float32(0) if background is None else background
    waves = np.maximum(measured - beneath, 0)
    scales = (
        _scale(np.sqrt(waves), np.sqrt(predicted)) ** 2,
        np.float32(waves.sum(dtype=np.float64) / max(predicted.sum(dtype=np.float64), 1e-30)),
    )
    best = min(scales, key=lambda scale: float(misfits(noise, measured, scale * predicted + beneath).mean()))
    return best * predicted + beneath, best


def inside(scan: ScanData, shape: tuple[int, ...], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return those rows whose patch lies on an object of a shape."""
    origin = np.round(scan.origins_px[rows])
    on_it = (origin >= 0) & (origin + scan.n_pixels <= np.asarray(shape))
    return np.asarray(rows[np.asarray(on_it).all(axis=1)])


def in_the_middle(scan: ScanData, count: int) -> NDArray[np.int64]:
    """Return the rows of the patterns nearest the middle of a scan, sorted."""
    return np.sort(scan.middle_rows(count))


def spread(rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return as many of the rows as are compared, spread evenly."""
    count = min(len(rows), max(SAMPLE // 4, min(SAMPLE, MOST_VALUES // n**2)))
    return np.asarray(rows[np.unique(np.linspace(0, len(rows) - 1, num=count).astype(int))])


def measured_intensity(scan: ScanData, rows: NDArray[np.int64]) -> Real:
    """Return the intensities (K, G)."""
    return np.square(scan.amplitude(rows)[:, scan.good_pixels])


@torch.no_grad()
def predicted_intensity(
    scan: ScanData,
    obj: NDArray[np.complex64],
    probe: Tensor,
    rows: NDArray[np.int64],
    moved: tuple[int, int] = (0, 0),
) -> Real:
    """Return the intensities (K, G) that an object (H, W) and a probe (P, N, N) give, in the probe's units.

    The sub-pixel part of a position moves the probe. `moved`: pixels that every patch is taken away from its
    place; where it would leave the object, it stays in it.
    """
    n = probe.shape[-1]
    count = at_once(n)
    if len(rows) > count:  # large patterns in pieces, which take less memory
        pieces = np.split(rows, range(count, len(rows), count))
        return np.concatenate([predicted_intensity(scan, obj, probe, piece, moved) for piece in pieces])
    grid, rest = physics.split_position(torch.from_numpy(scan.positions_px[rows]), n)
    limits = torch.tensor(obj.shape) - n
    corners = torch.round(grid - (n - 1) / 2).long() + torch.tensor(moved)
    corners = torch.minimum(corners.clamp_min(0), limits)
    step = torch.arange(n)
    y, x = (corners[:, axis, None] + step for axis in (0, 1))
    patches = torch.from_numpy(obj)[y[:, :, None], x[:, None, :]].to(probe.dtype)
    shifted = physics.shift_subpixel(probe, rest.float().unsqueeze(1))
    intensity = physics.forward_intensity(patches.unsqueeze(1), shifted.unsqueeze(1))[:, 0]
    return np.asarray(intensity.numpy()[:, scan.good_pixels], dtype=np.float32)
