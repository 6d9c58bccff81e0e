"""Training throughput by batch size and grid size, with FLOPs, the machine's matrix peak and loader share.

Real fits through the workflow, in this process: patterns per second without the first step, the part of the
machine's matrix peak - a large product, timed between the fits - that the network's FLOPs reach, and the part
of fit spent waiting for batches. Then how the cost grows with patterns and with epochs; 1 is linear.

    python benchmarks/training.py [--batch-sizes 8 16 64] [--gridsizes 1 2] [--seconds 5] [--peer DIR]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
import peer
import torch
from torch.utils.flop_counter import FlopCounterMode

from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import DataConfig, ScienceConfig, TrainingConfig
from ptycho_torch.data.containers import dataset_of
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.factory import TRAINING_DEFAULTS
from ptycho_torch.workflows import components

PUBLISHED = {"upstream, 2 CPU cores, batch 16": 24.0}
"""Patterns per second that were measured elsewhere, for a ratio when no peer is there."""


class Fit(NamedTuple):
    """One fit: wall seconds, patterns/s after the first step, part spent waiting for data, FLOP/pattern."""

    seconds: float
    patterns_per_s: float
    loader_share: float
    flop_per_pattern: float


def fit(scan: ScanData, *, batch: int, gridsize: int, steps: int, epochs: int = 1, flops: bool = True) -> Fit:
    """Train `steps` steps per epoch as the workflow does, and count the FLOPs of one more."""
    settings = ExecutionSettings.from_values(
        {
            "batch_size": batch,
            "limit_train_batches": steps,
            "enable_progress_bar": False,
            "logger_backend": None,
            "early_stop_patience": None,
        }
    ).with_factory_defaults(**TRAINING_DEFAULTS)
    science = ScienceConfig(data=DataConfig(gridsize=gridsize), training=TrainingConfig(epochs=epochs))
    clock = components.Clock()
    results = components._train_with_lightning(scan, None, science, settings, clock=clock)
    trainer = results["models"]["trainer"]
    rate = next(cb.samples_per_second for cb in trainer.callbacks if hasattr(cb, "samples_per_second"))
    parts = results["times"].seconds
    spent = sum(parts.values())
    counted = flop_per_pattern(results, batch) if flops else float("nan")
    return Fit(clock.seconds["fit"], (rate or 0.0) * gridsize**2, parts.get("load", 0.0) / spent, counted)


def flop_per_pattern(results: dict[str, Any], batch: int) -> float:
    """Return the FLOPs of forward and backward per pattern; elementwise operations and FFTs do not count."""
    module = results["models"]["lightning_module"]
    science = results["science"]
    rows = dataset_of(results["train_container"], science.data, 0).__getitems__(range(batch))
    counter = FlopCounterMode(display=False)
    module.train()
    rows = {name: value.to(module.device) for name, value in rows.items()}
    with counter:
        module.loss(rows)[0].backward()
    module.zero_grad()
    patterns: int = batch * science.data.gridsize**2
    return float(counter.get_total_flops()) / patterns


def matrix_peak(side: int = 1536, rounds: int = 5) -> float:
    """Return FLOP/s of the fastest of a few float32 matrix products on the device that a fit would use."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 8192 if device == "cuda" else side
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    best = float("inf")
    for _ in range(rounds + 1):
        start = time.perf_counter()
        product = a @ b
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def steps_for(seconds: float, batch: int, gridsize: int, scan: ScanData, *, most: int) -> int:
    """Return how many steps take about `seconds`, from a short trial; at least 4, at most `most`."""
    trial = fit(scan, batch=batch, gridsize=gridsize, steps=3, flops=False)
    return int(min(most, max(4, seconds * trial.patterns_per_s / (batch * gridsize**2))))


def throughput(scan: ScanData, space: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each grid size and batch size; the peak is taken anew in each round."""
    for gridsize in space.gridsizes:
        for batch in space.batch_sizes:
            steps = steps_for(space.seconds, batch, gridsize, scan, most=len(scan) // batch)
            fits, reached = [], []
            for _ in range(space.rounds):
                peak = matrix_peak()
                fits.append(fit(scan, batch=batch, gridsize=gridsize, steps=steps))
                reached.append(fits[-1].patterns_per_s * fits[-1].flop_per_pattern / peak)
            yield {
                "gridsize": gridsize,
                "batch_size": batch,
                "steps": steps,
                "patterns_per_s": common.spread(row.patterns_per_s for row in fits),
                "flop_per_pattern": fits[-1].flop_per_pattern,
                "part_of_peak": common.spread(reached),
                "loader_share": common.spread(row.loader_share for row in fits),
            }


def growth(scan: ScanData, batch: int) -> dict[str, Any]:
    """Return seconds of a fit by patterns and by epochs, and the exponents of their growth."""
    counts = [len(scan) // 8, len(scan) // 4, len(scan) // 2]
    by_patterns = [
        fit(scan.subset(np.arange(n)), batch=batch, gridsize=1, steps=max(1, n // batch), flops=False).seconds
        for n in counts
    ]
    epochs, steps = [1, 2, 4], max(4, len(scan) // 8 // batch)
    by_epochs = [
        fit(scan, batch=batch, gridsize=1, steps=steps, epochs=n, flops=False).seconds for n in epochs
    ]
    return {
        "patterns": dict(zip(counts, by_patterns, strict=True)),
        "exponent_patterns": common.exponent(counts, by_patterns),
        "epochs": dict(zip(epochs, by_epochs, strict=True)),
        "exponent_epochs": common.exponent(epochs, by_epochs),
    }


def beside(
    other: peer.Peer, path: Path, scan: ScanData, rounds: int, patterns: int
) -> dict[str, common.Spread] | None:
    """Return patterns/s of the peer and ours at batch size 16 and grid size 1, taken in turn, and ratios."""
    ours, theirs = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="peer_") as folder:
            run = other.train(path, Path(folder) / "out", batch=16, patterns=patterns)
        if run is None or run.steps_per_s is None:
            return None
        theirs.append(16 * run.steps_per_s)
        ours.append(fit(scan, batch=16, gridsize=1, steps=max(1, patterns // 16), flops=False).patterns_per_s)
    return {
        "ours": common.spread(ours),
        "peer": common.spread(theirs),
        "ratio": common.ratios(theirs, ours),
    }


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    head = ("gridsize, batch", "patterns/s", "MFLOP/pattern", "% of matrix peak", "loader %")
    common.print_table(
        head,
        (
            (
                f"{row['gridsize']}, {row['batch_size']}",
                row["patterns_per_s"],
                f"{row['flop_per_pattern'] / 1e6:.0f}",
                _percent(row["part_of_peak"]),
                _percent(row["loader_share"]),
            )
            for row in rows
        ),
    )


def _percent(part: common.Spread) -> str:
    return f"{100 * part.median:.1f} ({100 * part.q1:.1f} .. {100 * part.q3:.1f})"


def main() -> int:
    parser = common.arguments(__doc__)
    peer.add_arguments(parser)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 64], metavar="B")
    parser.add_argument("--gridsizes", type=int, nargs="+", default=[1, 2], metavar="G")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each fit, about [3]")
    space = parser.parse_args()
    other = peer.Peer(space)
    common.print_machine()
    with tempfile.TemporaryDirectory(prefix="training_") as folder:
        path = common.scan_file(space.scan, Path(folder))
        scan = read_scan(path, DataConfig())
        compared = beside(other, path, scan, space.rounds, min(256, len(scan)))
        rows = list(throughput(scan, space))
    print_rows(rows)
    print(f"threads {torch.get_num_threads()}, matrix peak {matrix_peak() / 1e9:.0f} GFLOP/s")
    if compared:
        print(f"batch 16: {compared['ratio']} times the peer in this run ({compared['peer']} patterns/s)")
    best = max(row["patterns_per_s"].median for row in rows if row["gridsize"] == rows[0]["gridsize"])
    for name, rate in () if compared else PUBLISHED.items():
        print(f"{best / rate:.1f} times the patterns/s of {name} ({rate:.1f})")
    if other.note:
        print(other.note)
    grown = growth(scan, space.batch_sizes[0])
    print(
        f"seconds grow with patterns^{grown['exponent_patterns']:.2f}, epochs^{grown['exponent_epochs']:.2f}"
    )
    results = {"throughput": rows, "growth": grown, "beside_peer": compared, "published": PUBLISHED}
    common.write_json("training", results, space.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
