"""The detection report of a scan: what was detected, why, and what looks odd. Plain JSON-able values."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import Finding
from ptycho_torch.data.checks import PatternStatistics
from ptycho_torch.data.detect import ForwardFit, find_quantum
from ptycho_torch.data.judge import different_positions, judge, line, neighbor_distance
from ptycho_torch.data.pixels import center_of, find_faults
from ptycho_torch.data.scan import ScanData

MOST_LISTED = 4096
"""At most so many suspect pixels are listed."""
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
    masked: list[Finding],
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
        masked: what was masked on reading.
        notes: further facts of the format.
    """
    extent, spacing = np.ptp(scan.positions_px, axis=0), neighbor_distance(scan.positions_px)
    diameter = None if scan.probe is None else probe_diameter_px(scan.probe)
    overlap = None if spacing is None or diameter is None else max(0.0, 1.0 - spacing / diameter)
    counts = _counts(scan, statistics, sample)
    intensity = sample if scan.domain == "intensity" else sample * sample
    faults = find_faults(
        intensity, scan.good_pixels, statistics, counts["count_quantum"], counts=scan.domain == "intensity"
    )
    counts["brightest_px"] = center_of(faults)
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
        "neighbor_distance_px": spacing,
        "probe_diameter_px": diameter,
        "overlap_ratio": overlap,
        "duplicate_positions": len(scan) - len(different_positions(scan.positions_px)),
        **counts,
        "units_per_count": faults.gain,
        "background": faults.background,
        "suspect_pixels": np.argwhere(faults.suspect)[:MOST_LISTED].tolist(),
        "geometry": {name: getattr(scan, name) for name in _GEOMETRY},
        "forward_check": None
        if fit is None
        else {"relative_error": fit.error, "scale": fit.scale, "placement": fit.placement},
        **notes,
    }
    findings = [Finding(text, level="note", code="reading") for text in warnings]
    findings += [*masked, *judge(replace(scan, report=report), statistics, faults, report)]
    report["warnings"] = [line(finding) for finding in findings]
    report["findings"] = [finding.to_json() for finding in findings]
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
    values = sample if scan.good_pixels.all() else sample[:, scan.good_pixels]
    quantum = find_quantum(values if scan.domain == "intensity" else values * values)
    whole = bool((values == np.round(values)).all())
    if quantum is None and whole and scan.domain == "intensity" and _hardly_any(values):
        quantum = 1.0
    if scan.domain == "intensity":
        mean_sum, peak = float(statistics.frame_sum.mean()), statistics.maximum
    else:
        mean_sum, peak = float(np.sum(values * values) / len(sample)), statistics.maximum**2
    return {
        "mean_intensity_per_pattern": mean_sum,
        "max_intensity": peak,
        "whole_numbers": whole,
        "count_quantum": quantum,
        "photons_per_pattern": None if quantum is None else mean_sum / quantum,
        "zero_patterns": int((statistics.frame_sum == 0).sum()),
        "saturated_values": statistics.saturated,
    }


def _hardly_any(counts: NDArray[np.float64]) -> bool:
    """Return whether most counts above 0 are 1: too few photons to show the step from a count to the next."""
    return bool(2 * np.count_nonzero(counts == 1) > np.count_nonzero(counts > 0))
