"""Large detectors and scans: is the time linear in patterns and nearly so in pixels, and memory bounded?

Scans are simulated into files a block at a time, so they may be larger than the memory, and are removed at
once. Each figure is that of a real command, a process of its own on one thread: the seconds of its phase as
the manifest has them, and its peak of memory without pages of files.

    python benchmarks/large.py                                      # small scans of 64 to 512 pixels
    python benchmarks/large.py --scans 64x25000 64x100000 --tasks infer
    python benchmarks/large.py --scans 256x2500 256x10000

A time per pattern may grow with the side N as N^2 log N^2, a time with the patterns as they do. The exit code
is 1 where a process takes more memory than allowed, or a time grows faster by more than a tenth.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.assemble import fit_canvas
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage.patterns import ComputedPatterns
from ptycho_torch.simulate import diffract, make_object, make_probe, save, scan_positions

MOST_MIB = 700.0
"""Memory without pages of files that a process may take, up to `MOST_N` pixels."""
MOST_N = 256
SLACK = 1.1
"""Times may grow by this factor faster than they should before the exit code says so."""
TASKS = ("train", "infer", "refine")
PHASES = {"train": "fit", "infer": "predict and stitch", "refine": "refine"}
STEPS, BATCH = 40, 8
"""Optimizer steps of a training and their batch; refinement makes two epochs."""


@dataclass(frozen=True)
class Size:
    """Patterns of a scan, and their side in pixels; written as 64x1000."""

    n: int
    patterns: int

    @classmethod
    def parse(cls, text: str) -> Size:
        n, _, patterns = text.partition("x")
        return cls(int(n), int(patterns))

    def __str__(self) -> str:
        return f"{self.n}x{self.patterns}"


@dataclass(frozen=True)
class Row:
    """What one task took on one scan."""

    n: int
    patterns: int
    task: str
    seconds: float
    """Of the phase; the median of the rounds."""
    worked: int
    """Patterns that it worked on: of a training, only those of its steps; in a refinement, each twice."""
    anon_mib: float

    @property
    def ms_per_pattern(self) -> float:
        return 1e3 * self.seconds / self.worked


@dataclass(frozen=True)
class Diffraction:
    """Counts of the patterns with these numbers: the same ones whenever they are asked for."""

    truth: NDArray[np.complex64]
    probe: NDArray[np.complex64]
    positions_px: NDArray[np.float64]

    def __call__(self, numbers: NDArray[np.int64]) -> NDArray[np.uint16]:
        rows = numbers.reshape(-1)
        counts = np.random.default_rng(int(rows[0])).poisson(
            diffract(self.truth, self.probe, self.positions_px[rows])
        )
        return np.minimum(counts, 2**16 - 2).astype(np.uint16)


def write_scan(size: Size, path: Path) -> Path:
    """Simulate a scan into a file; only a block of its patterns is in memory at any time.

    Its object is left out, as measured scans have none: scores of a large one take much memory.
    """
    rng = np.random.default_rng(size.patterns)
    centers = scan_positions(size.patterns, 0.08 * size.n, "raster")
    centers += rng.uniform(-1, 1, centers.shape)
    shape, shift = fit_canvas(centers, size.n)
    truth, probe = make_object(shape, "dead_leaves", rng), make_probe(size.n, 1e6)
    numbers = np.arange(size.patterns).reshape(-1, 1, 1)
    compute = Diffraction(truth, probe, centers + shift)
    scan = ScanData(
        patterns=ComputedPatterns(numbers, compute, (size.n, size.n), np.dtype(np.uint16)),
        domain="intensity",
        positions_px=centers + shift,
        probe=probe,
        object_guess=None,
        good_pixels=np.ones((size.n, size.n), bool),
        canvas_shape=shape,
    )
    return save(scan, path)


def measure(size: Size, tasks: Sequence[str], rounds: int, filters: int) -> list[Row]:
    """Run each task on a scan of this size; a training comes first, since inference needs its network."""
    with tempfile.TemporaryDirectory(prefix="bench_large_") as name:
        folder = Path(name)
        file = write_scan(size, folder / "scan.npz")
        run = folder / "run"
        quiet = ["--num-threads=1", "--enable-progress-bar=false"]
        words = {
            "train": ["train", str(file), f"--max-steps={STEPS}", f"--batch-size={BATCH}",
                      f"--n-filters={filters}", "--logger-backend=none"],
            "infer": ["infer", str(run), str(file)],
            "refine": ["infer", str(file), "--start=flat", "--refine=2"],
        }  # fmt: skip
        worked = {
            "train": STEPS * min(BATCH, size.patterns),
            "infer": size.patterns,
            "refine": 2 * size.patterns,
        }
        rows = []
        for task in TASKS:
            if task not in tasks and not (task == "train" and "infer" in tasks):
                continue
            made = [
                _run(
                    [*words[task], *quiet], run if (task, turn) == ("train", 0) else folder / f"{task}_{turn}"
                )
                for turn in range(rounds)
            ]
            seconds = statistics.median(seconds_of[PHASES[task]] for _, seconds_of in made)
            most = max(child.anon_mib for child, _ in made)
            rows.append(Row(size.n, size.patterns, task, seconds, worked[task], most))
        return [row for row in rows if row.task in tasks]


def _run(words: list[str], out: Path) -> tuple[common.Child, dict[str, float]]:
    """Run a command on one thread; return the process, and the seconds of its phases."""
    verb, *more = words
    threads = {"OMP_NUM_THREADS": "1"}
    child = common.run([*common.ptycho_torch(verb), *more, "--out", str(out)], env=threads).check()
    return child, json.loads((out / "manifest.json").read_text())["timings"]


def growth_with_patterns(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return, for each side and task with several lengths, p of seconds ~ patterns^p, and the memory added.

    The steps of a training do not depend on the length, so only its memory is measured.
    """
    found = []
    for n, task in sorted({(row.n, row.task) for row in rows}, key=lambda key: (key[0], TASKS.index(key[1]))):
        same = sorted((row for row in rows if (row.n, row.task) == (n, task)), key=lambda row: row.patterns)
        if len(same) < 2:
            continue
        counts = [row.patterns for row in same]
        power = common.exponent(counts, [row.seconds for row in same]) if task != "train" else None
        added = (same[-1].anon_mib - same[0].anon_mib) / (counts[-1] - counts[0]) * 1e3
        found.append(
            {"n": n, "task": task, "patterns": counts, "exponent": power, "mib_per_1000_patterns": added}
        )
    return found


def growth_with_pixels(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return, for each task, the time per pattern against that of the smallest side, over N^2 log N^2.

    Of several lengths of one side the longest counts; 1 and less grows no faster than it should.
    """
    found = []
    for task in TASKS:
        longest = {row.n: row for row in sorted(rows, key=lambda row: row.patterns) if row.task == task}
        if len(longest) < 2:
            continue
        smallest = longest[min(longest)]
        for n in sorted(longest):
            work = (n / smallest.n) ** 2 * math.log(n) / math.log(smallest.n)
            ratio = longest[n].ms_per_pattern / smallest.ms_per_pattern
            found.append({"n": n, "task": task, "times": ratio, "of_pixels_log_pixels": ratio / work})
    return found


def faults(rows: Sequence[Row], by_patterns: Sequence[Any], by_pixels: Sequence[Any]) -> list[str]:
    """Return a sentence for each figure beyond its limit."""
    return [
        *(
            f"{row.task} of {row.n}x{row.patterns} takes {row.anon_mib:.0f} MiB, {MOST_MIB:.0f} are allowed"
            for row in rows
            if row.anon_mib > MOST_MIB and row.n <= MOST_N
        ),
        *(
            f"{row['task']} at {row['n']} pixels grows with patterns^{row['exponent']:.2f}"
            for row in by_patterns
            if (row["exponent"] or 0) > 1 + math.log10(SLACK)
        ),
        *(
            f"{row['task']} at {row['n']} pixels takes {row['of_pixels_log_pixels']:.2f} times what pixels x "
            "log(pixels) give"
            for row in by_pixels
            if row["of_pixels_log_pixels"] > SLACK
        ),
    ]


def report(rows: Sequence[Row]) -> dict[str, Any]:
    """Print the tables, and return what they say."""
    head = ("scan, task", "seconds", "ms per pattern", "MiB without files")
    common.print_table(
        head,
        [
            (
                f"{row.n}x{row.patterns}, {row.task}",
                f"{row.seconds:.2f}",
                f"{row.ms_per_pattern:.3f}",
                f"{row.anon_mib:.0f}",
            )
            for row in rows
        ],
    )
    by_patterns, by_pixels = growth_with_patterns(rows), growth_with_pixels(rows)
    for row in by_patterns:
        grows = "" if row["exponent"] is None else f"seconds grow with patterns^{row['exponent']:.2f}, "
        added = row["mib_per_1000_patterns"]
        print(f"{row['task']}, {row['n']} pixels: {grows}{added:.2f} MiB more per 1000 patterns")
    if by_pixels:
        common.print_table(
            ("task, N", "times the smallest N", "of pixels x log(pixels)"),
            [
                (f"{r['task']}, {r['n']}", f"{r['times']:.2f}", f"{r['of_pixels_log_pixels']:.2f}")
                for r in by_pixels
            ],
        )
    wrong = faults(rows, by_patterns, by_pixels)
    print("\n".join(wrong) or "all within the limits")
    return {
        "rows": [asdict(row) for row in rows],
        "with_patterns": by_patterns,
        "with_pixels": by_pixels,
        "beyond_limits": wrong,
    }


def arguments() -> argparse.ArgumentParser:
    parser = common.arguments(__doc__, rounds=1)
    standard = ["64x1000", "64x4000", "128x512", "256x128", "512x32"]
    parser.add_argument(
        "--scans", nargs="+", type=Size.parse, default=[Size.parse(text) for text in standard], metavar="NxM",
        help=f"side and number of patterns of each scan [{' '.join(standard)}]",
    )  # fmt: skip
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, metavar="TASK", help=str(TASKS))
    parser.add_argument("--filters", type=int, default=24, help="width of the network [24]")
    return parser


def main() -> int:
    space = arguments().parse_args()
    common.print_machine()
    rows = []
    for size in space.scans:
        rows += measure(size, space.tasks, space.rounds, space.filters)
    found = report(rows)
    common.write_json("large", found, space.json)
    return int(bool(found["beyond_limits"]))


if __name__ == "__main__":
    raise SystemExit(main())
