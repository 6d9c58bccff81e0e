"""The detection report of a scan: what was detected, why, and what looks odd. Plain JSON-able values."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.checks import PatternStatistics
from ptycho_torch.data.detect import ForwardFit, find_quantum
from ptycho_torch.data.scan import ScanData

_GEOMETRY = (
    "pixel_size_m",
    "wavelength_m",
    "photon_energy_eV",
    "detector_distance_m",
    "detector_pixel_size_m",
)


def describe_scan(
    scan: ScanData,
    statistics: PatternStatistics,
    sample: NDArray[np.float64],
    decisions: dict[str, Any],
    fit: ForwardFit | None,
    warnings: list[str],
    notes: dict[str, Any],
) -> ScanData:
    """Return the scan with its report.

    Args:
        scan: the scan, without a report.
        statistics: of one pass over the patterns.
        sample: (K, N, N) some patterns as stored.
        decisions: format, domain, axes and patch center, each with its reason.
        fit: how well the file's own probe and object explain its patterns, when it has both.
        warnings: what the reader of the format noticed.
        notes: further facts of the format.
    """
    from scipy.spatial import cKDTree

    extent, spacing = np.ptp(scan.positions_px, axis=0), None
    if len(scan) > 1:
        distances, _ = cKDTree(scan.positions_px).query(scan.positions_px, k=2)
        spacing = float(np.mean(np.asarray(distances)[:, 1]))
    diameter = None if scan.probe is None else probe_diameter_px(scan.probe)
    overlap = None if spacing is None or diameter is None else max(0.0, 1.0 - spacing / diameter)
    report: dict[str, Any] = {
        "source": str(scan.source) if scan.source else "",
        **decisions,
        "dtype": str(scan.patterns.dtype),
        "N": scan.n_pixels,
        "patterns": len(scan),
        "in_memory": isinstance(scan.patterns, np.ndarray),
        "probe_modes": 0 if scan.probe is None else len(scan.probe),
        "bad_pixels": int((~scan.good_pixels).sum()),
        "canvas_px": list(scan.canvas_shape),
        "position_shift_px": list(scan.position_shift_px),
        "scan_extent_px": [float(extent[0]), float(extent[1])],
        "mean_neighbor_distance_px": spacing,
        "probe_diameter_px": diameter,
        "overlap_ratio": overlap,
        "duplicate_positions": len(scan) - len(np.unique(scan.positions_px, axis=0)),
        **_counts(scan, statistics, sample),
        "geometry": {name: getattr(scan, name) for name in _GEOMETRY},
        "forward_check": None if fit is None else {"relative_error": fit.error, "scale": fit.scale},
        **notes,
        "warnings": [],
    }
    report["warnings"] = warnings + _oddities(scan, statistics.mean_pattern, report)
    return replace(scan, report=report)


def probe_diameter_px(probe: NDArray[np.complex64]) -> float:
    """Return the diameter of a disk with the area (sum I)^2 / sum I^2 of the probe intensity I.

    For a uniform disk this is its diameter; it needs no threshold.
    """
    intensity = np.sum(np.abs(probe.astype(np.complex128)) ** 2, axis=0)
    area = float(intensity.sum() ** 2 / np.sum(intensity**2))
    return 2.0 * math.sqrt(area / math.pi)


def _counts(scan: ScanData, statistics: PatternStatistics, sample: NDArray[np.float64]) -> dict[str, Any]:
    """Photons per pattern are known when the values are whole multiples of one count."""
    values = sample[:, scan.good_pixels]
    quantum = find_quantum(values if scan.domain == "intensity" else values * values)
    if scan.domain == "intensity":
        mean_sum, peak = float(statistics.frame_sum.mean()), statistics.maximum
    else:
        mean_sum, peak = float(np.sum(values * values) / len(sample)), statistics.maximum**2
    mean = statistics.mean_pattern
    index = np.arange(len(mean))
    center_of_mass = [float(mean.sum(axis=axis) @ index / mean.sum()) for axis in (1, 0)]
    return {
        "mean_intensity_per_pattern": mean_sum,
        "max_intensity": peak,
        "count_quantum": quantum,
        "photons_per_pattern": None if quantum is None else mean_sum / quantum,
        "zero_patterns": int((statistics.frame_sum == 0).sum()),
        "saturated_values": statistics.saturated,
        "brightest_px": center_of_mass,
    }


def _oddities(scan: ScanData, mean_pattern: NDArray[np.float64], report: dict[str, Any]) -> list[str]:
    """Return what is not wrong enough to refuse but is worth a look."""
    warnings = []
    if report["duplicate_positions"]:
        warnings.append(f"{report['duplicate_positions']} positions repeat an earlier one exactly")
    if report["zero_patterns"]:
        warnings.append(f"{report['zero_patterns']} patterns are zero everywhere (closed shutter?)")
    if report["saturated_values"]:
        count = report["saturated_values"]
        warnings.append(f"{count} values are at the largest number of {report['dtype']}: mark bad pixels")
    if report["overlap_ratio"] is not None and report["overlap_ratio"] < 0.4:
        warnings.append(f"neighboring probes overlap by only {report['overlap_ratio']:.0%} of their diameter")
    below, above = -scan.origins_px, scan.origins_px + scan.n_pixels - np.array(scan.canvas_shape)
    reach = np.maximum(below, above).max(axis=1)
    if reach.max() > 0:
        count = int((reach > 0).sum())
        warnings.append(f"{count} patches reach beyond the canvas, by up to {reach.max():.1f} pixels")
    quarter = scan.n_pixels // 4
    middle = (slice(quarter, scan.n_pixels - quarter),) * 2
    # An unshifted FFT has its zero frequency in the corners.
    if quarter and np.fft.fftshift(mean_pattern)[middle].sum() > 4 * mean_pattern[middle].sum():
        warnings.append(
            "the patterns are bright in the corners: their zero frequency is not at N/2 (fftshift them)"
        )
    return warnings
