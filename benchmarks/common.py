"""What the benchmarks share: machine facts, medians and quartiles, tables, JSON, child processes.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptycho_exec.machine.facts import MachineFacts

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHARED_SCAN = ROOT.parent / "shared" / "data" / "semireal_run1084_sim.npz"


# --- arguments and input ---------------------------------------------------------------------------------


def arguments(description: str | None, *, rounds: int = 5) -> argparse.ArgumentParser:
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


BUSY = 0.15
"""Part of the processors that others may take before a figure is marked."""


class Watch:
    """How much of the processors other programs, and other machines on them, took since a moment."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.began, self.at_start = time.perf_counter(), _processor_seconds()

    def others(self) -> float | None:
        """Return the part of all processors that was taken by others; None where the system does not tell."""
        now = _processor_seconds()
        seconds = (time.perf_counter() - self.began) * (os.cpu_count() or 1)
        if now is None or self.at_start is None:
            return None
        busy, stolen, own = (after - before for after, before in zip(now, self.at_start, strict=True))
        return max(0.0, busy - own + stolen) / max(seconds, 1e-9)

    def busy(self) -> bool:
        """Return whether others disturbed what was done since the last answer, and begin anew.

        An answer within half a second of the last one is the same: figures are often taken together.
        """
        if time.perf_counter() - self.began >= SOON_S:
            part = self.others()
            high_load = os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)
            self._last = high_load if part is None else part > BUSY
            self._start()
        return self._last

    _last = False


SOON_S = 0.5


def _processor_seconds() -> tuple[float, float, float] | None:
    """Return seconds of all processors since the start: in use, stolen, and our own with children's."""
    try:
        user, nice, system, _, _, irq, softirq, steal = map(
            int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
        )
    except (OSError, ValueError):
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / ticks, steal / ticks, sum(os.times()[:4])


_watch = Watch()


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated figures, and whether others used the machine meanwhile."""

    median: float
    q1: float
    q3: float
    n: int
    busy: bool = False

    def __str__(self) -> str:
        mark = ", busy machine" if self.busy else ""
        return f"{self.median:.4g} ({self.q1:.4g} .. {self.q3:.4g}{mark})"

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Spread:
        """Return a spread as `write_json` wrote it."""
        return cls(**{name: row[name] for name in ("median", "q1", "q3", "n", "busy")})


def spread(values: Iterable[float]) -> Spread:
    """Return the median and the quartiles of `values`, which were taken since the last call."""
    taken = sorted(values)
    q1, median, q3 = statistics.quantiles(taken, n=4, method="inclusive") if len(taken) > 1 else taken * 3
    return Spread(median, q1, q3, len(taken), _watch.busy())


def timed(call: Callable[[], object], rounds: int) -> list[float]:
    """Return the wall seconds of each of `rounds` calls, after one that is not counted."""
    call()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def yardstick_s(rounds: int = 9) -> float:
    """Return the seconds of a fixed piece of work on one thread: how fast this machine is just now."""
    import numpy as np

    waves = np.random.default_rng(0).normal(size=(32, 64, 64)).astype(np.complex64)

    def work() -> None:
        np.abs(np.fft.ifft2(np.fft.fft2(waves)) * waves)
        sum(i * i for i in range(50_000))

    return statistics.median(timed(work, rounds))


def in_turn(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the figures of each call, all of them taken once in each round, in alternating order."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            taken[name].append(calls[name]())
    return taken


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return theirs / ours, pair by pair: take both in turn, so that a busy machine slows both alike."""
    return spread(b / a for a, b in zip(ours, theirs, strict=True))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return p of cost ~ size^p, the slope of a straight line through both logarithms; 1 is linear."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


# --- child processes -------------------------------------------------------------------------------------

# A process remembers the memory of the one it was forked from; this small one stands between. Ten times a
# second it looks at the memory that belongs to no file, and in the end at the time that others took (steal).
_LAUNCHER = """
import json, os, sys, time
def anonymous(pid):
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(line.split()[1]) / 2**10 for line in file if line.startswith("RssAnon")), 0.0)
    except OSError:
        return 0.0
def stolen():
    try:
        with open("/proc/stat") as file:
            return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK") / os.cpu_count()
    except (OSError, IndexError, ValueError):
        return 0.0
began, stolen_before, most = time.time(), stolen(), 0.0
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
while True:
    most = max(most, anonymous(pid))
    ended, status, usage = os.wait4(pid, os.WNOHANG)
    if ended:
        break
    time.sleep(0.02 if time.time() - began < 2 else 0.1)
ended = time.time()
unit = 2**20 if sys.platform == "darwin" else 2**10
with open(sys.argv[1], "w") as file:
    json.dump({"code": os.waitstatus_to_exitcode(status), "began_at": began, "wall_s": ended - began,
               "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / unit,
               "anon_mib": most, "stolen": (stolen() - stolen_before) / (ended - began)}, file)
"""


@dataclass(frozen=True)
class Child:
    """A finished process: exit code, Unix time of its start, wall and processor seconds, peak memory, output.

    Processor seconds include its own children that it waited for; the peak is that of the largest single
    process among them, resident, in MiB, and `anon_mib` that of the process itself without what belongs to
    files, 0 where the system does not tell. `stolen`: the part of the time that other machines on the same
    processors took. Processor seconds change little on a busy machine.
    """

    code: int
    began_at: float
    wall_s: float
    cpu_s: float
    peak_mib: float
    anon_mib: float
    stolen: float
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
        return Child(process.returncode, began, time.time() - began, nothing, nothing, 0.0, 0.0, output)


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
    """Print the machine in one line; figures that were taken while others used it are marked."""
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
    found = {"benchmark": name, "machine": machine(), "yardstick_s": yardstick_s(), "results": results}
    target.write_text(json.dumps(found, indent=2, default=_plain) + "\n")
    print(f"wrote {target}")
    return target


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return asdict(value)
    return value.item() if hasattr(value, "item") else str(value)
