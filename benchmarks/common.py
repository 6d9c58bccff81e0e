"""What the benchmarks share: machine facts, medians, tables, JSON, and child processes measured from outside.

A benchmark is a script with one `main()`:

    parser = common.arguments(__doc__)            # --json FILE, --scan FILE, --rounds N
    space = parser.parse_args()
    rows = {name: common.spread(common.timed(call, space.rounds)) for name, call in calls.items()}
    common.print_machine()
    common.print_table(("what", "seconds"), [(name, str(row)) for name, row in rows.items()])
    common.write_json("name", {...}, space.json)  # benchmarks/results/name.json without --json

Import torch only after children were measured, or not at all: they share the machine with this process.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptycho_exec.machine.facts import MachineFacts

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHARED_SCAN = ROOT.parent / "shared" / "data" / "semireal_run1084_sim.npz"


# --- arguments and input ---------------------------------------------------------------------------------


def arguments(description: str | None, *, rounds: int = 3) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes: `--json`, `--scan`, `--rounds`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="results [benchmarks/results/NAME.json]")
    parser.add_argument(
        "--scan",
        type=Path,
        metavar="FILE",
        help="scan with a known object [a simulated one of 1000 patterns]",
    )
    parser.add_argument("--rounds", type=int, default=rounds, help=f"repetitions of each figure [{rounds}]")
    return parser


def scan_file(given: Path | None, folder: Path) -> Path:
    """Return the scan to measure on: `given`, else the semi-real one where it lies, else a simulated one."""
    if given is not None:
        return given.resolve()
    if SHARED_SCAN.is_file():
        return SHARED_SCAN
    made = folder / "scan.npz"
    if not made.exists():
        run([*ptycho_torch("simulate"), "--out", str(made), "--patterns", "1000"]).check()
    return made


def ptycho_torch(verb: str) -> list[str]:
    """Return the words that start `ptycho-torch VERB` with this Python."""
    return [sys.executable, "-m", "ptycho_torch", verb]


# --- numbers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of repeated figures."""

    median: float
    min: float
    max: float
    n: int

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.min:.4g} .. {self.max:.4g})"


def spread(values: Iterable[float]) -> Spread:
    """Return the median, smallest and largest of `values`."""
    taken = list(values)
    return Spread(statistics.median(taken), min(taken), max(taken), len(taken))


def timed(call: Callable[[], object], rounds: int) -> list[float]:
    """Return the wall seconds of each of `rounds` calls, after one that is not counted."""
    call()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return theirs / ours, pair by pair: take both in turn, so that a busy machine slows both alike."""
    return spread(b / a for a, b in zip(ours, theirs, strict=True))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return p of cost ~ size^p, the slope of a straight line through both logarithms; 1 is linear."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


# --- child processes -------------------------------------------------------------------------------------

# A process remembers the memory of the one it was forked from; this small one stands between.
_LAUNCHER = """
import json, os, sys, time
began = time.time()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
ended = time.time()
unit = 2**20 if sys.platform == "darwin" else 2**10
with open(sys.argv[1], "w") as file:
    json.dump({"code": os.waitstatus_to_exitcode(status), "began_at": began, "wall_s": ended - began,
               "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / unit}, file)
"""


@dataclass(frozen=True)
class Child:
    """A finished process: exit code, Unix time of its start, wall and processor seconds, peak memory, output.

    Processor seconds include its own children that it waited for; the peak is that of the largest single
    process among them, resident, in MiB. Processor seconds change little on a busy machine.
    """

    code: int
    began_at: float
    wall_s: float
    cpu_s: float
    peak_mib: float
    output: str

    def check(self) -> Child:
        """Return self; stop the benchmark with the end of the output when the process failed."""
        if self.code:
            raise SystemExit(f"a measured process failed with exit code {self.code}:\n{self.output[-4000:]}")
        return self


def run(
    words: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float | None = None,
) -> Child:
    """Run a command to its end and measure it; one that takes longer than `timeout_s` is killed (code -9)."""
    with tempfile.TemporaryDirectory(prefix="bench_") as folder:
        report = Path(folder) / "usage.json"
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(report), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        ) as process:
            began = time.time()
            try:
                output, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if report.is_file():
            return Child(**json.loads(report.read_text()), output=output)
        nothing = float("nan")
        return Child(process.returncode, began, time.time() - began, nothing, nothing, output)


# --- what is printed and written -------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Return what the figures depend on: CPUs, memory, GPUs, versions, thread variables, load, time."""
    facts = MachineFacts.probe().model_dump(mode="json")
    kept = ("platform", "python", "cpus_logical", "cpus_affinity", "cpus_cgroup", "memory_mb", "gpus")
    versions = {name: facts["packages"].get(name) for name in ("torch", "lightning", "numpy")}
    return {
        "cpu": _cpu_name(),
        **{name: facts[name] for name in kept},
        "packages": versions,
        "threads": {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")},
        "load": round(os.getloadavg()[0], 2),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def print_machine() -> None:
    """Print the machine in one line; a load well above 0 at the start says that it was busy."""
    print("machine: " + ", ".join(f"{name} {value}" for name, value in machine().items() if value))


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under a head: first column to the left, the others to the right."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        print("  ".join(cells), flush=True)


def write_json(name: str, results: Mapping[str, Any], path: Path | None) -> Path:
    """Write results with the machine's facts to `path`, or to benchmarks/results/NAME.json."""
    target = path or RESULTS / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    found = {"benchmark": name, "machine": machine(), "results": results}
    target.write_text(json.dumps(found, indent=2, default=_plain) + "\n")
    print(f"wrote {target}")
    return target


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return {"median": value.median, "min": value.min, "max": value.max, "n": value.n}
    return value.item() if hasattr(value, "item") else str(value)
