"""Inference part by part - load, group, predict, stitch, save - then end to end, with and without start-up.

A network is trained for a few steps first; its weights do not change the speed. Each part is timed alone, in
this process; `end to end` is one call of the workflow on the file plus saving; `ptycho-torch infer` is the
real process from its start. Last, how the cost grows with the number of patterns; 1 is linear.

    python benchmarks/inference.py [--gridsizes 1 2] [--batch-size 64] [--peer DIR]
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import peer
import torch

from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import DataConfig
from ptycho_torch.data.dataset import PtychoDataset
from ptycho_torch.data.grouping import inference_groups
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.factory import INFERENCE_DEFAULTS
from ptycho_torch.model import load_model
from ptycho_torch.reconstruction.stitch import Stitcher, probe_weights
from ptycho_torch.workflows import components
from ptycho_torch.workflows.artifacts import write_reconstruction

PUBLISHED = {
    "upstream, 2 CPU cores": (28.7, ("end to end",)),
    "published, GPU": (52.0, ("end to end",)),
    "published, GPU, predict + stitch": (184.0, ("predict", "stitch, full patch")),
    "published, GPU, predict only": (4553.0, ("predict",)),
}
"""Patterns per second that were measured elsewhere, and our parts that do the same."""
STITCH_LIMITS = {"stitch, central crop": 20_000.0, "stitch, full patch": 5_000.0}
"""Patches of 64 x 64 per second that are asked for."""


def train_briefly(scan: Path, out: Path, gridsize: int) -> Path:
    """Leave a run whose network has seen two batches."""
    words = ["train", str(scan), "--out", str(out), f"--gridsize={gridsize}", "--fast-dev-run=2"]
    common.run([sys.executable, "-m", "ptycho_torch", *words]).check()
    return out


def settings_for(batch: int) -> ExecutionSettings:
    values = {"inference_batch_size": batch, "enable_progress_bar": False, "logger_backend": None}
    return ExecutionSettings.from_values(values).with_factory_defaults(**INFERENCE_DEFAULTS)


def parts(run: Path, scan_file: Path, batch: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return each part of an inference as a call, the earlier parts' results at hand."""
    module, science = load_model(run)
    module.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    scan = read_scan(scan_file, science.data)
    gridsize = science.data.gridsize
    rows = PtychoDataset(scan, inference_groups(scan.positions_px, gridsize=gridsize))
    predicted = predict(module, rows, batch)
    numbers = itertools.count()
    obj, coverage = stitch(scan, predicted, module, 0)
    return {
        "load scan": lambda: read_scan(scan_file, science.data),
        "load network": lambda: load_model(run),
        "group": lambda: PtychoDataset(scan, inference_groups(scan.positions_px, gridsize=gridsize)),
        "predict": lambda: predict(module, rows, batch),
        "stitch, full patch": lambda: stitch(scan, predicted, module, 0),
        "stitch, central crop": lambda: stitch(scan, predicted, module, scan.n_pixels // 3 & ~1),
        "save": lambda: _save(folder / f"saved_{next(numbers)}", obj, coverage, scan),
    }


def predict(module: Any, rows: PtychoDataset, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return patches (B, N, N) and positions (B, 2) of each batch, on the CPU."""
    made = []
    with torch.inference_mode():
        for first in range(0, len(rows), batch):
            given = rows.__getitems__(range(first, min(first + batch, len(rows))))
            out = module.predict_step({name: value.to(module.device) for name, value in given.items()})
            n = out["patches"].shape[-1]
            made.append((out["patches"].reshape(-1, n, n).cpu(), out["positions_px"].reshape(-1, 2).cpu()))
    return made


def stitch(
    scan: ScanData, predicted: list[tuple[torch.Tensor, torch.Tensor]], module: Any, trim: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return object and coverage (H, W) of all patches."""
    weights = probe_weights(module.probe.detach()).cpu()
    stitcher = Stitcher(scan.canvas_shape, scan.n_pixels, weights=weights, middle_trim=trim)
    for patches, positions in predicted:
        stitcher.add(patches, positions)
    found = stitcher.result()
    return found.object.numpy(), found.coverage.numpy()


def _save(out: Path, obj: np.ndarray[Any, Any], coverage: np.ndarray[Any, Any], scan: ScanData) -> None:
    out.mkdir()
    write_reconstruction(out, obj, coverage, scan)
    shutil.rmtree(out)


def end_to_end(run: Path, scan_file: Path, batch: int, out: Path) -> None:
    """Load, group, predict, stitch and save the object, through the workflow."""
    made = components.run_inference_with_lightning(run, scan_file, None, settings_for(batch))
    _save(out, made["object"], made["coverage"], made["scan"])


def measure(run: Path, scan_file: Path, space: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return seconds of every part, and patterns or patches per second."""
    scan = read_scan(scan_file, DataConfig())
    _, science = load_model(run)
    calls = parts(run, scan_file, space.batch_size, folder)
    calls["end to end"] = lambda: end_to_end(run, scan_file, space.batch_size, folder / "whole")
    seconds = {name: common.timed(call, space.rounds) for name, call in calls.items()}
    seconds["`ptycho-torch infer`"] = [_command(run, scan_file, folder) for _ in range(space.rounds)]
    per_pattern = science.data.gridsize**2
    units = {name: len(scan) * (per_pattern if name.startswith("stitch") else 1) for name in seconds}
    return {
        name: {
            "seconds": common.spread(taken),
            "per_s": common.spread(units[name] / value for value in taken),
            "unit": "patches" if name.startswith("stitch") else "patterns",
        }
        for name, taken in seconds.items()
    }


def _command(run: Path, scan_file: Path, folder: Path) -> float:
    out = folder / "command"
    words = ["infer", str(run), str(scan_file), "--out", str(out)]
    child = common.run([sys.executable, "-m", "ptycho_torch", *words]).check()
    shutil.rmtree(out)
    return child.wall_s


def growth(run: Path, scan_file: Path, batch: int, rounds: int) -> dict[str, Any]:
    """Return seconds of prediction and stitching by number of patterns, and the exponent of their growth."""
    module, science = load_model(run)
    scan = read_scan(scan_file, science.data)
    counts = [len(scan) // 4, len(scan) // 2, len(scan)]
    taken = {}
    for count in counts:
        part = scan.subset(np.arange(count))
        taken[count] = min(
            common.timed(
                lambda part=part: components.run_inference_with_lightning(  # type: ignore[misc]
                    module, part, science, settings_for(batch)
                ),
                rounds,
            )
        )
    return {"seconds": taken, "exponent": common.exponent(counts, list(taken.values()))}


def beside(
    other: peer.Peer, run: Path, scan_file: Path, rounds: int, patterns: int
) -> dict[str, common.Spread] | None:
    """Return patterns/s from process start of the peer and ours, taken in turn, and the ratio.

    The peer trains for one epoch first.
    """
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(prefix="peer_") as name:
        folder = Path(name)
        if other.train(scan_file, folder / "model", batch=16, patterns=64) is None:
            return None
        for turn in range(rounds):
            made = other.infer(folder / "model", scan_file, folder / f"out_{turn}", patterns=patterns)
            if made is None:
                return None
            theirs.append(patterns / made.child.wall_s)
            ours.append(patterns / _command(run, scan_file, folder))
    return {
        "ours": common.spread(ours),
        "peer": common.spread(theirs),
        "ratio": common.ratios(theirs, ours),
    }


def print_ratios(found: dict[str, Any]) -> None:
    for name, limit in STITCH_LIMITS.items():
        rate = found[name]["per_s"].median
        print(f"{name}: {rate:.0f} patches/s, {rate / limit:.1f} times the {limit:.0f} that are asked")
    for name, (rate, ours) in PUBLISHED.items():
        seconds = sum(found[part]["seconds"].median for part in ours)
        ratio = found["end to end"]["per_s"].median * found["end to end"]["seconds"].median / seconds / rate
        print(f"{' + '.join(ours)}: {ratio:.2f} times {name} ({rate:g} patterns/s)")


def main() -> int:
    parser = common.arguments(__doc__)
    peer.add_arguments(parser)
    parser.add_argument("--gridsizes", type=int, nargs="+", default=[1, 2], metavar="G")
    parser.add_argument("--batch-size", type=int, default=INFERENCE_DEFAULTS["inference_batch_size"][0])
    space = parser.parse_args()
    other = peer.Peer(space)
    common.print_machine()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="inference_") as name:
        folder = Path(name)
        scan_file = common.scan_file(space.scan, folder)
        patterns = len(read_scan(scan_file, DataConfig()))
        for gridsize in space.gridsizes:
            run = train_briefly(scan_file, folder / f"run_{gridsize}", gridsize)
            found = measure(run, scan_file, space, folder)
            print(f"\ngridsize {gridsize}, {patterns} patterns, {torch.get_num_threads()} threads")
            rows = [(part, row["seconds"], row["per_s"], row["unit"]) for part, row in found.items()]
            common.print_table(("part", "seconds", "per second", "of"), rows)
            print_ratios(found)
            results[f"gridsize {gridsize}"] = found
        first = folder / f"run_{space.gridsizes[0]}"
        compared = beside(other, first, scan_file, space.rounds, patterns)
        grown = growth(first, scan_file, space.batch_size, space.rounds)
    print(f"\nseconds grow with patterns^{grown['exponent']:.2f}")
    if compared:
        print(
            f"from process start: {compared['ratio']} times the peer in this run ({compared['peer']} per s)"
        )
    if other.note:
        print(other.note)
    results |= {"growth": grown, "beside_peer": compared, "published": PUBLISHED}
    common.write_json("inference", results, space.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
