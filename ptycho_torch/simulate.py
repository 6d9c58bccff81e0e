"""Simulated scans with a known truth: an object, a curved probe, a jittered scan and Poisson counts.

The forward model is that of the measurement: I = sum over modes of |FFT(probe_p shifted * patch)|^2 with
the unitary FFT. Sub-pixel positions are exact for a band-limited probe: the patch starts at the nearest
whole pixel, and the probe is moved by the rest with a Fourier phase ramp.

Shape legend: M positions, n x n pixels, P modes, H x W object.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_exec.progress import counted
from ptycho_torch.data.assemble import fit_canvas, scan_from_arrays
from ptycho_torch.data.detect import bilinear_patch
from ptycho_torch.data.formats.npz import write_npz
from ptycho_torch.data.scan import HC_EV_M, ScanData

ObjectKind = Literal["dead_leaves", "siemens_star", "star_and_leaves"]
ScanKind = Literal["raster", "fermat"]

_CHUNK = 256
_GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))
_PHOTON_ENERGY_EV = 8333.0
_DETECTOR_DISTANCE_M = 1.0
_OBJECT_PIXEL_M = 20e-9


def simulate_scan(
    *,
    n: int = 64,
    patterns: int = 1000,
    photons: float = 1e6,
    object_kind: ObjectKind = "dead_leaves",
    scan_kind: ScanKind = "raster",
    seed: int = 0,
    step_px: float | None = None,
    jitter_px: float = 1.0,
    modes: int = 1,
    probe_radius_px: float | None = None,
    probe_curvature_rad: float = 3.0,
    probe_aberration_rad: float = 0.0,
    contrast: float = 1.0,
    bad_pixels: int = 0,
    noise: bool = True,
    with_labels: bool = False,
) -> ScanData:
    """Return a scan of counts whose `object_guess` is the truth (ValueError: an argument out of range).

    Args:
        n: side of a pattern in pixels.
        patterns: M, number of scan positions.
        photons: in the probe, per pattern.
        object_kind: leaves of many sizes lying over each other; a Siemens star; a star among leaves.
        scan_kind: snake raster, or Fermat spiral.
        seed: of object, jitter, noise and bad pixels; the same seed gives the same scan, bit by bit.
        step_px: distance of neighbors in object pixels; none takes 0.08 n, about 75 % overlap.
        jitter_px: each position is moved by up to this much in y and x, uniformly.
        modes: P, incoherent probe modes; each further one has 30 % of the power of the one before.
        probe_radius_px: radius of the soft disk; none takes 11 / 64 of n.
        probe_curvature_rad: phase at that radius that defocus adds.
        probe_aberration_rad: rms of a smooth phase error of the lens.
        contrast: 1 keeps the object's full absorption and phase, less makes both weaker in proportion.
        bad_pixels: number of detector pixels that read their maximum, and are masked.
        noise: Poisson counts as uint16 (uint32 where they need it); false gives exact float32 intensity.
        with_labels: add the true patch of each pattern.

    Examples:
        >>> from ptycho_torch import simulate_scan
        >>> scan = simulate_scan(n=32, patterns=9, photons=1e5, seed=0)
        >>> scan.patterns.shape, scan.positions_px.shape, scan.probe.shape, scan.domain
        ((9, 32, 32), (9, 2), (1, 32, 32), 'intensity')
    """
    _check_arguments(n, patterns, photons, modes, bad_pixels, jitter_px, step_px, contrast)
    object_rng, jitter_rng, noise_rng, pixel_rng = np.random.default_rng(seed).spawn(4)
    centers = scan_positions(patterns, 0.08 * n if step_px is None else step_px, scan_kind)
    centers += jitter_rng.uniform(-jitter_px, jitter_px, centers.shape)
    shape, shift = fit_canvas(centers, n)
    centers += shift
    truth = make_object(shape, object_kind, object_rng, contrast)
    probe = make_probe(n, photons, modes, probe_radius_px, probe_curvature_rad, probe_aberration_rad)
    bad = np.isin(np.arange(n * n), pixel_rng.choice(n * n, bad_pixels, replace=False)).reshape(n, n)
    intensity = diffract(truth, probe, centers)
    return scan_from_arrays(
        _count_photons(intensity, noise_rng, bad) if noise else intensity,
        centers,
        probe=probe,
        object_guess=truth,
        bad_pixels=bad if bad_pixels else None,
        labels=_label_patches(truth, centers, n) if with_labels else None,
        domain="intensity",
        format="simulated",
        geometry=_geometry(n, f"{object_kind}, seed {seed}"),
    )


def save(scan: ScanData, path: str | Path, *, domain: str = "intensity", compress: bool = False) -> Path:
    """Write a scan as NPZ under PtychoPINN's keys; see `ptycho_torch.data.formats.npz.write_npz`."""
    return write_npz(scan, Path(path), domain, compress=compress)


def scan_positions(count: int, step_px: float, kind: ScanKind) -> NDArray[np.float64]:
    """Return (count, 2) [y, x] positions around (0, 0), in the order of the scan."""
    k = np.arange(count)
    if kind == "fermat":
        # Area per point pi c^2 = step^2, as on a square grid of that step.
        radius, angle = step_px * np.sqrt((k + 0.5) / math.pi), k * _GOLDEN_ANGLE
        return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
    if kind != "raster":
        raise ValueError(f"unknown scan_kind {kind!r}; choose raster or fermat")
    columns = math.ceil(math.sqrt(count))
    row, column = np.divmod(k, columns)
    column = np.where(row % 2 == 0, column, columns - 1 - column)
    grid = np.stack([row, column], axis=1) * step_px
    return np.asarray(grid - grid.mean(axis=0), dtype=np.float64)


def make_probe(
    n: int,
    photons: float,
    modes: int = 1,
    radius_px: float | None = None,
    curvature_rad: float = 3.0,
    aberration_rad: float = 0.0,
) -> NDArray[np.complex64]:
    """Return (P, n, n) orthogonal modes of a defocused soft disk; the sum of |probe|^2 is `photons`.

    `aberration_rad` is the rms of a smooth phase error, as of an imperfect lens or a diffuser; it is the
    same for every seed. With such structure in the probe, different objects give different patterns.
    Further modes are the first one times Hermite-like polynomials, as for partial coherence.
    """
    y, x = (np.mgrid[:n, :n] - (n - 1) / 2) / (11 / 64 * n if radius_px is None else radius_px)
    rr = y * y + x * x
    first = np.exp(-(rr**2)) * np.exp(1j * (curvature_rad * rr + aberration_rad * _smooth_noise(n)))
    orders = sorted((i + j, j, i) for i in range(modes) for j in range(modes))[:modes]
    stack = np.stack([first * y**i * x**j for _, j, i in orders]).reshape(modes, -1)
    orthogonal = np.linalg.qr(stack.T)[0].T.reshape(modes, n, n)
    # QR leaves a free sign; the first mode keeps the phase of its own definition.
    orthogonal[0] *= np.exp(1j * np.angle(np.vdot(orthogonal[0], first)))
    power = 0.3 ** np.arange(modes)
    weights = np.sqrt(photons * power / power.sum())
    return np.asarray(orthogonal * weights[:, None, None], dtype=np.complex64)


def _smooth_noise(n: int, cutoff: float = 3.8) -> NDArray[np.float64]:
    """Return an (n, n) field of unit rms that varies over about n / cutoff pixels, always the same."""
    frequency = np.fft.fftfreq(n, 1 / n)
    low_pass = np.exp(-(frequency[:, None] ** 2 + frequency[None, :] ** 2) / cutoff**2)
    noise = np.random.default_rng(5).standard_normal((n, n))
    field: NDArray[np.float64] = np.fft.ifft2(np.fft.fft2(noise) * low_pass).real
    return np.asarray(field / field.std())


def diffract(
    canvas: NDArray[np.complex64], probe: NDArray[np.complex64], positions_px: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return (M, n, n) noise-free intensities, zero frequency at n/2, in the units of |probe|^2."""
    n = probe.shape[-1]
    origin = positions_px - (n - 1) / 2
    start = np.round(origin).astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(canvas, (n, n))
    spectrum = scipy.fft.fft2(probe)
    frequency = scipy.fft.fftfreq(n)
    out = np.empty((len(start), n, n), dtype=np.float32)
    starts = range(0, len(start), _CHUNK)
    for low in counted(starts, "simulating", len(start), unit="patterns", size=lambda _: _CHUNK):
        rows = slice(low, low + _CHUNK)
        rest = (origin[rows] - start[rows])[:, :, None] * frequency
        ramp = np.exp(-2j * np.pi * rest).astype(np.complex64)
        patch = windows[start[rows, 0], start[rows, 1]]
        total = np.zeros(patch.shape, dtype=np.float32)
        for mode in spectrum:
            moved = scipy.fft.ifft2(mode * ramp[:, 0, :, None] * ramp[:, 1, None, :])
            wave = scipy.fft.fft2(moved * patch, norm="ortho", overwrite_x=True)
            total += wave.real**2 + wave.imag**2
        out[rows] = np.fft.fftshift(total, axes=(-2, -1))
    return out


def make_object(
    shape: tuple[int, int], kind: ObjectKind, rng: np.random.Generator, contrast: float = 1.0
) -> NDArray[np.complex64]:
    """Return an (H, W) object with |O| between 0.5 and 1 and a phase between about -1 and 1 rad.

    A `contrast` below 1 makes absorption and phase weaker in proportion.
    """
    if kind == "siemens_star":
        amplitude, phase = np.full(shape, 0.95), np.full(shape, -0.3)
        _paint_star(amplitude, phase, 0.47 * min(shape))
    elif kind in ("dead_leaves", "star_and_leaves"):
        amplitude, phase = np.full(shape, 0.75), np.zeros(shape)
        _paint_leaves(amplitude, phase, rng)
        if kind == "star_and_leaves":
            _paint_star(amplitude, phase, 0.22 * min(shape), disk=True)
    else:
        raise ValueError(f"unknown object_kind {kind!r}; choose dead_leaves, siemens_star or star_and_leaves")
    full = np.asarray(amplitude * np.exp(1j * phase), dtype=np.complex64)
    if contrast == 1:
        return full
    weaker = (1 - contrast * (1 - np.abs(full))) * np.exp(1j * contrast * np.angle(full))
    return np.asarray(weaker, dtype=np.complex64)


def _paint_leaves(
    amplitude: NDArray[np.float64], phase: NDArray[np.float64], rng: np.random.Generator
) -> None:
    """Drop pointed leaves, many small and few large, until the ground is covered several times over."""
    H, W = amplitude.shape
    longest = 0.22 * min(H, W)
    shortest = max(5.0, 0.2 * longest)
    covered = 0.0
    while covered < 6.0 * H * W:
        # Half-lengths follow a power law with exponent -3, cut off at both ends.
        u = rng.random()
        length = (shortest**-2 + u * (longest**-2 - shortest**-2)) ** -0.5
        width = length * rng.uniform(0.3, 0.55)
        center = rng.uniform((0, 0), (H, W))
        values = (rng.uniform(0.5, 1.0), rng.uniform(-1.0, 1.0))
        _paint_leaf(amplitude, phase, center, length, width, rng.uniform(0, 2 * math.pi), values)
        covered += 2.0 * length * width


def _paint_leaf(
    amplitude: NDArray[np.float64],
    phase: NDArray[np.float64],
    center: NDArray[np.float64],
    length: float,
    width: float,
    angle: float,
    values: tuple[float, float],
) -> None:
    """Blend one leaf in: a lens outline with a soft edge, a darker midrib, and a gentle bend in phase."""
    reach = math.ceil(length) + 2
    y0, x0 = (int(c) - reach for c in center)
    rows = slice(max(0, y0), min(amplitude.shape[0], y0 + 2 * reach))
    columns = slice(max(0, x0), min(amplitude.shape[1], x0 + 2 * reach))
    y = np.arange(rows.start, rows.stop)[:, None] - center[0]
    x = np.arange(columns.start, columns.stop)[None, :] - center[1]
    along = (x * math.cos(angle) + y * math.sin(angle)) / length
    across = y * math.cos(angle) - x * math.sin(angle)
    outline = width * (1.0 - along**2)
    cover = np.clip(outline - np.abs(across) + 0.5, 0.0, 1.0)
    rib = np.exp(-((across / 0.9) ** 2)) * (length > 8)
    leaf_amplitude = values[0] * (1.0 - 0.2 * rib)
    leaf_phase = values[1] * (1.0 - 0.25 * along) - 0.25 * rib * math.copysign(1.0, values[1])
    amplitude[rows, columns] += cover * (np.clip(leaf_amplitude, 0.5, 1.0) - amplitude[rows, columns])
    phase[rows, columns] += cover * (leaf_phase - phase[rows, columns])


def _paint_star(
    amplitude: NDArray[np.float64],
    phase: NDArray[np.float64],
    radius: float,
    *,
    spokes: int = 18,
    disk: bool = False,
) -> None:
    """Blend a Siemens star into the middle; `disk` lays a clear disk under it."""
    H, W = amplitude.shape
    y, x = np.mgrid[:H, :W].astype(np.float64)
    y, x = y - (H - 1) / 2, x - (W - 1) / 2
    r = np.hypot(y, x)
    inside = np.clip(radius - r + 0.5, 0.0, 1.0)
    if disk:
        amplitude += np.clip(radius + 3.5 - r, 0.0, 1.0) * (0.95 - amplitude)
        phase += np.clip(radius + 3.5 - r, 0.0, 1.0) * (-0.3 - phase)
    # Distance from the edge of a spoke in pixels, so that every edge is one pixel soft.
    edge = np.cos(spokes * np.arctan2(y, x)) * np.maximum(r, 1e-9) / spokes
    cover = inside * np.clip(edge + 0.5, 0.0, 1.0) * np.clip(r - 2.0, 0.0, 1.0)
    amplitude += cover * (0.55 - amplitude)
    phase += cover * (0.9 - phase)


def _count_photons(
    intensity: NDArray[np.float32], rng: np.random.Generator, bad: NDArray[np.bool_]
) -> NDArray[Any]:
    """Return Poisson counts in the smallest of uint16 and uint32 that holds them."""
    counts = rng.poisson(intensity)
    stored: type[np.unsignedinteger[Any]] = np.uint16 if counts.max() < 2**16 - 1 else np.uint32
    out = counts.astype(stored)
    out[:, bad] = np.iinfo(stored).max
    return out


def _label_patches(
    truth: NDArray[np.complex64], centers: NDArray[np.float64], n: int
) -> NDArray[np.complex64]:
    patches = [bilinear_patch(truth, center - (n - 1) / 2, n) for center in centers]
    return np.stack(patches).astype(np.complex64)


def _geometry(n: int, name: str) -> dict[str, Any]:
    wavelength = HC_EV_M / _PHOTON_ENERGY_EV
    return {
        "pixel_size_m": _OBJECT_PIXEL_M,
        "photon_energy_eV": _PHOTON_ENERGY_EV,
        "detector_distance_m": _DETECTOR_DISTANCE_M,
        "detector_pixel_size_m": wavelength * _DETECTOR_DISTANCE_M / (n * _OBJECT_PIXEL_M),
        "name": name,
    }


def _check_arguments(
    n: int,
    patterns: int,
    photons: float,
    modes: int,
    bad_pixels: int,
    jitter_px: float,
    step_px: float | None,
    contrast: float,
) -> None:
    rules = (
        (n >= 8, f"n is {n}; patterns need at least 8 x 8 pixels"),
        (patterns >= 1, f"patterns is {patterns}; a scan needs at least one"),
        (photons > 0 and math.isfinite(photons), f"photons is {photons}; a positive number is needed"),
        (1 <= modes <= n, f"modes is {modes}; from 1 to n = {n} are possible"),
        (0 <= bad_pixels < n * n, f"bad_pixels is {bad_pixels}; from 0 to n * n - 1 are possible"),
        (jitter_px >= 0, f"jitter_px is {jitter_px}; zero or more is needed"),
        (step_px is None or step_px > 0, f"step_px is {step_px}; a positive number is needed"),
        (0 < contrast <= 1, f"contrast is {contrast}; above 0 and at most 1 is needed"),
    )
    for holds, message in rules:
        if not holds:
            raise DataError(message, where="simulation", fix="change that value")
