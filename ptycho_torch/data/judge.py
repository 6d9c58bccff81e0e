"""What is odd about a scan that can be read: each finding with its code, and a remedy.

`judge` is asked once, when a scan is put together; `ScanData.findings` keeps the answer, and whoever begins
work on a scan says it (`lines`, `announce_scans`).

Shape legend: M scan positions, N x N detector pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataWarning, Finding
from ptycho_exec.plan import announce
from ptycho_torch.data.scan import ScanData


def judge(scan: ScanData, mean_pattern: NDArray[np.float64], report: dict[str, Any]) -> list[Finding]:
    """Return what is not wrong enough to refuse but is worth a look."""
    return [*_judge_positions(scan, report), *_judge_patterns(scan, mean_pattern, report)]


def _judge_positions(scan: ScanData, report: dict[str, Any]) -> Iterator[Finding]:
    repeated, overlap = report["duplicate_positions"], report["overlap_ratio"]
    if repeated:
        yield Finding(
            f"{repeated} positions repeat an earlier one exactly", level="note", code="repeated-positions"
        )
    if overlap is not None and overlap < 0.4:
        yield Finding(
            f"neighboring probes overlap by only {overlap:.0%} of their diameter",
            fix="check unit and order of the positions; a scan needs an overlap of 60 % or more",
            level="adapted",
            code="little-overlap",
        )
    below, above = -scan.origins_px, scan.origins_px + scan.n_pixels - np.array(scan.canvas_shape)
    reach = np.maximum(below, above).max(axis=1)
    if reach.max() > 0:
        count = int((reach > 0).sum())
        yield Finding(
            f"{count} patches reach beyond the canvas, by up to {reach.max():.1f} pixels",
            fix='set canvas = "positions" to make one that holds them all',
            level="adapted",
            code="beyond-canvas",
        )


def _judge_patterns(
    scan: ScanData, mean_pattern: NDArray[np.float64], report: dict[str, Any]
) -> Iterator[Finding]:
    if report["zero_patterns"]:
        yield Finding(
            f"{report['zero_patterns']} patterns are zero everywhere (closed shutter?)",
            fix="remove these patterns and their positions",
            level="adapted",
            code="dark-patterns",
        )
    if report["saturated_values"]:
        yield Finding(
            f"{report['saturated_values']} values are at the largest number of {report['dtype']}",
            fix="mark their pixels in bad_pixels",
            level="adapted",
            code="saturated",
        )
    quarter = scan.n_pixels // 4
    middle = (slice(quarter, scan.n_pixels - quarter),) * 2
    # An unshifted FFT has its zero frequency in the corners.
    if quarter and np.fft.fftshift(mean_pattern)[middle].sum() > 4 * mean_pattern[middle].sum():
        yield Finding(
            "the patterns are bright in the corners: their zero frequency is not at N/2",
            fix="store numpy.fft.fftshift(patterns, axes=(1, 2)), and the mask alike",
            level="adapted",
            code="corner-frequency",
        )


def line(finding: Finding) -> str:
    """Return a finding of a scan in one line."""
    return "; ".join(part for part in (finding.what, finding.fix) if part)


def lines(*scans: Any) -> list[str]:
    """Return the findings of some scans as lines, each once; other containers have none."""
    found = (finding for scan in scans if isinstance(scan, ScanData) for finding in scan.findings)
    return list(dict.fromkeys(map(line, found)))


def announce_scans(scans: Iterable[Any]) -> None:
    """Warn of each finding of some scans, with a `DataWarning`; in a run of several processes once."""
    found = (finding for scan in scans if isinstance(scan, ScanData) for finding in scan.findings)
    announce(dict.fromkeys(found), DataWarning)
