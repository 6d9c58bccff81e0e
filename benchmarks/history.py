"""Is this tree slower than the last release? Figures of the last run beside those that a release left behind.

Each release leaves `benchmarks/history/VERSION.json`: the medians and quartiles of the figures that say how
fast it is, the machine, and how long a fixed piece of work took there at that time (the yardstick), by which
ratios are corrected. A figure is slower where even the better end of its spread is below 0.97. One that was
taken while others used the machine, or on another kind of machine, cannot say so.

    python benchmarks/suite.py --only startup training inference stitching refinement
    python benchmarks/history.py compare                 # exit code 1 where a figure is slower
    python benchmarks/history.py record                  # for a release: writes history/VERSION.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import common

from ptycho_exec.version import __version__

HISTORY = common.ROOT / "benchmarks" / "history"
LEAST = 0.97
"""A ratio to the last release that is lower, by more than its spread, is a slow-down."""
MACHINE = ("cpu", "cpus_affinity", "gpus")
"""What makes two machines different kinds."""
WAYS = ("startup", "training", "inference", "stitching", "refinement")
"""Benchmarks that leave figures, in the order of the table."""
Verdict = Literal["", "slower", "busy machine", "other machine", "not measured", "new"]


@dataclass(frozen=True)
class Figure:
    """A figure of one run: its spread, whether more is better, and the yardstick of that time."""

    spread: common.Spread
    more_is_better: bool
    yardstick_s: float

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Figure:
        """Return a figure from a file of the history."""
        return cls(common.Spread.read(row["spread"]), row["more_is_better"], row["yardstick_s"])


@dataclass(frozen=True)
class Row:
    """A figure beside that of the last release; `ratio` is above 1 where it is better now."""

    name: str
    before: common.Spread | None
    now: common.Spread | None
    verdict: Verdict
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


def _startup(results: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    for event, row in results["ours"].items():
        yield f"{event}, s", row["event_s"], False


def _training(results: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    for row in results["throughput"]:
        name = f"training, gridsize {row['gridsize']}, batch {row['batch_size']}, patterns/s"
        yield name, row["patterns_per_s"], True


def _inference(results: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    for grid, parts in results.items():
        if grid.startswith("gridsize"):
            for part in ("predict", "end to end"):
                yield f"inference, {grid}, {part}, patterns/s", parts[part]["per_s"], True


def _stitching(results: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    for kind, row in results["patches_per_second"].items():
        yield f"stitching, {kind}, patches/s", row, True


def _refinement(results: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    for name, row in results["patterns_per_cpu_s"].items():
        if name.startswith("ours"):
            yield f"refinement, {name}, patterns per processor s", row, True


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[tuple[str, Any, bool]]]] = {
    "startup": _startup,
    "training": _training,
    "inference": _inference,
    "stitching": _stitching,
    "refinement": _refinement,
}


def figures_in(folder: Path) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Return the figures of the last run of each benchmark in a folder of results, and the machine.

    Raises:
        SystemExit: there is none.
    """
    figures: dict[str, Figure] = {}
    machine: dict[str, Any] = {}
    for name in WAYS:
        file = folder / f"{name}.json"
        if file.is_file():
            found = json.loads(file.read_text())
            machine = {key: found["machine"].get(key) for key in MACHINE}
            for what, row, more in _READERS[name](found["results"]):
                figures[what] = Figure(common.Spread.read(row), more, found["yardstick_s"])
    if not figures:
        raise SystemExit(
            f"no figures to compare\n  where:    {folder}\n"
            f"  expected: {', '.join(f'{name}.json' for name in WAYS)}\n"
            f"  fix:      python benchmarks/suite.py --only {' '.join(WAYS)}"
        )
    return figures, machine


def record(results: Path, history: Path, version: str) -> Path:
    """Keep the figures of a release in one small file."""
    figures, machine = figures_in(results)
    kept = {name: asdict(figure) for name, figure in figures.items()}
    for row in kept.values():
        row["spread"] = {
            k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row["spread"].items()
        }
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in kept.items())
    file = history / f"{version}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    head = f'{{"version": {json.dumps(version)}, "machine": {json.dumps(machine)}, "figures": {{\n'
    file.write_text(f"{head}{lines}\n}}}}\n")
    return file


def last_release(history: Path) -> Path:
    """Return the file of the latest version.

    Raises:
        SystemExit: there is none.
    """
    files = sorted(history.glob("*.json"), key=lambda file: [_number(part) for part in file.stem.split(".")])
    if not files:
        raise SystemExit(
            f"no release left figures\n  where:    {history}\n"
            "  expected: VERSION.json of an earlier release\n"
            "  fix:      run the suite in a checkout of that release, and python benchmarks/history.py record"
        )
    return files[-1]


def _number(part: str) -> tuple[int, str]:
    digits = "".join(c for c in part if c.isdigit())
    return int(digits or -1), part


def compare(before: Mapping[str, Figure], now: Mapping[str, Figure], same_machine: bool) -> list[Row]:
    """Return a row for each figure of either."""
    rows = []
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name), now.get(name)
        if old is None or new is None:
            missing: Verdict = "not measured" if new is None else "new"
            rows.append(Row(name, old and old.spread, new and new.spread, missing))
            continue
        ratio, low, high = _ratio(old, new)
        verdict: Verdict = ""
        if not same_machine:
            verdict = "other machine"
        elif old.spread.busy or new.spread.busy:
            verdict = "busy machine"
        elif high < LEAST:
            verdict = "slower"
        rows.append(Row(name, old.spread, new.spread, verdict, ratio, low, high))
    return rows


def _ratio(old: Figure, new: Figure) -> tuple[float, float, float]:
    """Return how many times as good as before, and both ends, at equal speed of the machine."""
    faster = old.yardstick_s / new.yardstick_s
    a, b = (old.spread, new.spread) if old.more_is_better else (new.spread, old.spread)
    (a_low, a_high), (b_low, b_high) = _ends(a), _ends(b)
    return b.median / a.median / faster, b_low / a_high / faster, b_high / a_low / faster


def _ends(spread: common.Spread) -> tuple[float, float]:
    """Return the ends of a spread: twice as far from the median as the quartiles.

    With them, of five rounds each, noise of 3 % is taken for a slow-down once in a thousand times, noise of
    10 % once in seventy, and a real one of 15 % is seen 97 of 100 times where the noise is 3 %.
    """
    low, high = (spread.median + 2 * (end - spread.median) for end in (spread.q1, spread.q3))
    return max(low, 1e-3 * spread.median), high


def print_rows(version: str, rows: list[Row]) -> None:
    """Print the table."""

    def ratio(row: Row) -> str:
        return "" if row.ratio is None else f"{row.ratio:.2f} ({row.low:.2f} .. {row.high:.2f})"

    head = ("figure", f"release {version}", "now", "times as good", "")
    common.print_table(head, [(r.name, r.before or "", r.now or "", ratio(r), r.verdict) for r in rows])
    slower = [row.name for row in rows if row.verdict == "slower"]
    unsure = sum(row.verdict in ("busy machine", "other machine") for row in rows)
    print(f"slower than release {version}: {', '.join(slower) or 'none'}")
    if unsure:
        print(f"{unsure} figures cannot tell: repeat both on one machine, while nothing else runs there")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("action", choices=["compare", "record"])
    parser.add_argument("--results", type=Path, default=common.RESULTS, metavar="DIR", help="of the last run")
    parser.add_argument("--history", type=Path, default=HISTORY, metavar="DIR", help="[benchmarks/history]")
    parser.add_argument("--version", default=__version__, help=f"of the release to record [{__version__}]")
    space = parser.parse_args()
    if space.action == "record":
        print(f"wrote {record(space.results, space.history, space.version)}")
        return 0
    release = json.loads(last_release(space.history).read_text())
    now, machine = figures_in(space.results)
    before = {name: Figure.read(row) for name, row in release["figures"].items()}
    rows = compare(before, now, machine == release["machine"])
    print_rows(release["version"], rows)
    return int(any(row.verdict == "slower" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
