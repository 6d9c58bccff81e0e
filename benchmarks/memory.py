"""Does memory grow with the scan? Peak resident memory of training and inference at 1, 4 and 16 times a scan.

Every figure is the peak of a process of its own, as the operating system counted it. The longer scans repeat
the patterns of the first, stored three ways: as they are, compressed, and in HDF5.

python benchmarks/memory.py                # 1000 simulated patterns, or those of --scan, times 1, 4, 16
python benchmarks/memory.py --filters 24   # with the network that ptycho-torch trains by default
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import common
import numpy as np

from ptycho_torch.data.formats.ptychodus import write_training
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import save, simulate_scan

FORMATS = ("npz", "npz compressed", "hdf5")
LIMIT = 1.10
"""A longer scan may take this much of the memory of the first."""


def main() -> None:
    parser = common.arguments(__doc__, rounds=1)
    parser.add_argument("--filters", type=int, default=8, help="width of the network [8]")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16], help="lengths [1 4 16]")
    space = parser.parse_args()
    scan = simulate_scan(patterns=1087, seed=1) if space.scan is None else read_scan(space.scan)
    common.print_machine()
    print(
        f"{len(scan)} patterns of {scan.n_pixels} x {scan.n_pixels}, times {space.times}; peak MiB, resident"
    )
    rows, worst = [], 0.0
    for kind in FORMATS:
        peaks = [_peaks(scan, kind, times, space) for times in space.times]
        for task in ("train", "infer"):
            row = _row(kind, task, [len(scan) * times for times in space.times], [p[task] for p in peaks])
            worst = max(worst, row["growth"])
            rows.append(row)
    head = (
        "format, task",
        *(f"{times}x" for times in space.times),
        "largest / first",
        "MB per 1000 patterns",
    )
    common.print_table(head, [_cells(row) for row in rows])
    print(f"grows by at most {100 * (worst - 1):.1f} %; {100 * (LIMIT - 1):.0f} % are allowed")
    common.write_json("memory", {"rows": rows, "worst_growth": worst}, space.json)
    raise SystemExit(worst > LIMIT)


def _peaks(scan: ScanData, kind: str, times: int, space: argparse.Namespace) -> dict[str, float]:
    """Train one epoch and reconstruct, each in a process of its own; return the peaks in MiB."""
    with tempfile.TemporaryDirectory(prefix="bench_memory_") as name:
        folder = Path(name)
        file = _write(scan.subset(np.tile(np.arange(len(scan)), times)), kind, folder)
        network = [f"--n-filters={space.filters}", "--epochs=1", "--batch-size=16", "--logger-backend=none"]
        quiet = ["--enable-progress-bar=false"]
        train = [*common.ptycho_torch("train"), str(file), "--out", str(folder / "run"), *network, *quiet]
        infer = [*common.ptycho_torch("infer"), str(folder / "run"), str(file), "--out", str(folder / "out")]
        return {
            "train": common.run(train).check().peak_mib,
            "infer": common.run(infer + quiet).check().peak_mib,
        }


def _write(scan: ScanData, kind: str, folder: Path) -> Path:
    if kind == "hdf5":
        return write_training(scan, folder / "scan.h5")
    return save(scan, folder / "scan.npz", domain=scan.domain, compress=kind == "npz compressed")


def _row(kind: str, task: str, patterns: list[int], peaks: list[float]) -> dict[str, Any]:
    slope = (
        np.polyfit(np.array(patterns) / 1000, np.array(peaks) * 2**20 / 1e6, 1)[0] if len(peaks) > 1 else 0.0
    )
    return {
        "format": kind,
        "task": task,
        "patterns": patterns,
        "peak_mib": peaks,
        "growth": max(peaks) / peaks[0],
        "mb_per_1000_patterns": float(slope),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    peaks = [f"{peak:.0f}" for peak in row["peak_mib"]]
    return [
        f"{row['format']}, {row['task']}",
        *peaks,
        f"{row['growth']:.3f}",
        f"{row['mb_per_1000_patterns']:.2f}",
    ]


if __name__ == "__main__":
    main()
