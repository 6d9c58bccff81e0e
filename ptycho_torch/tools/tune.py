"""`ptycho-torch tune`: which settings are fastest for this scan on this machine, by short measured trials.

One knob after the other, each from the best found so far. A trial is a process of its own that works for a
few seconds on the user's data, so that one that fails or needs too much memory is a row of the table and
nothing else. A value replaces another only when it is clearly faster, twice. Knobs whose effect class is
`numerics` are left alone unless that is asked for: they can change results.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptycho_exec.cli.reference import toml_value
from ptycho_exec.errors import UserError
from ptycho_exec.fields.model import Effect
from ptycho_exec.fields.spec import field_specs, format_value
from ptycho_exec.files import write_atomically
from ptycho_exec.machine.children import run_limited
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.progress import steps
from ptycho_exec.record import values_of
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind
from ptycho_torch.config import ScienceConfig
from ptycho_torch.tools.tune_run import MARK

CLEARLY = 1.05
"""A value must be faster by this factor, in two trials, to replace another."""
SECONDS = 2
"""Of training in a trial."""
SLOW_START_SECONDS = 45
"""The same where the first step compiles."""
GRACE_SECONDS = 60.0
"""A trial that is not over so long after its seconds is stopped."""
QUIET: Mapping[str, Any] = {
    "logger_backend": None,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "early_stop_patience": None,
    "fast_dev_run": None,
    "limit_train_batches": None,
    "log_images_every_n_epochs": None,
}
"""A trial writes nothing and ends by its time."""
SPENT = "not tried: the budget is spent"
UNLIMITED_EPOCHS = 10**6


@dataclass(frozen=True)
class Knob:
    """A field, the values to try on a machine, and what is measured: `train` or `infer`."""

    name: str
    task: str
    values: Callable[[MachineFacts], list[Any]]
    caveat: str = ""

    @property
    def numerics(self) -> bool:
        return field_specs()[self.name].effect is Effect.NUMERICS


KNOBS = (
    Knob(
        "num_workers",
        "train",
        lambda facts: [n for n in (0, 1, 2, 4, 8) if n <= max(1, facts.usable_cpus - 1)],
    ),
    Knob("inference_batch_size", "infer", lambda _: [16, 64, 256]),
    Knob(
        "num_threads",
        "train",
        lambda facts: sorted({1, max(1, facts.usable_cpus // 2), facts.usable_cpus}),
        "the last digits can change",
    ),
    Knob(
        "precision",
        "train",
        lambda facts: ["32-true", "bf16-mixed" if all(gpu.bf16 for gpu in facts.gpus) else "16-mixed"],
        "results change within that precision",
    ),
    Knob(
        "matmul_precision",
        "train",
        lambda facts: ["highest", "high"] if facts.gpus else ["highest"],
        "results change within that precision",
    ),
    Knob(
        "batch_size",
        "train",
        lambda _: [4, 8, 16, 32, 64],
        "more patterns per second, but fewer optimizer steps per pattern: judge by the object",
    ),
    Knob(
        "compile",
        "train",
        lambda facts: [False, True] if facts.compiler or facts.gpus else [False],
        "the last digits can change; the first step is slow",
    ),
)
"""In the order in which they are tried: what a short budget should know first."""


@dataclass(frozen=True)
class Row:
    """One trial: what was set, patterns per second (None when it failed), peak memory, and a reason.

    peak_mib: of the process and its loaders, resident; gpu_mib: that torch held on the GPU.
    """

    knob: str
    value: Any
    task: str
    patterns_per_s: float | None
    peak_mib: float | None = None
    gpu_mib: float = 0.0
    reason: str = ""

    @property
    def rate(self) -> float:
        """Patterns per second; 0 when the trial failed."""
        return self.patterns_per_s or 0.0


@dataclass
class Choice:
    """The value that a knob ended at, and why."""

    name: str
    value: Any
    reason: str


@dataclass
class Tuning:
    """What is tuned, within which limits, and the results so far.

    budget_s, memory_mib: limits of all trials together, and of each one; None for the machine's memory.
    say, warn: take each row, and each line on what is odd about the scan, when it is known first.
    """

    scan: Path
    settings: ExecutionSettings
    science: ScienceConfig
    facts: MachineFacts
    budget_s: float = 60.0
    memory_mib: float | None = None
    numerics: bool = False
    say: Callable[[Row], None] = lambda _: None
    warn: Callable[[str], None] = lambda _: None
    odd: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    longest_s: float = 0.0
    tick: Callable[[float], None] = lambda _: None

    def left_s(self) -> float:
        return self.budget_s - (time.monotonic() - self.began)

    def add(self, row: Row) -> Row:
        self.rows.append(row)
        self.say(row)
        return row


def tune(tuning: Tuning) -> list[Choice]:
    """Try every knob that may be tried, and return where each of them ended, with its reason."""
    with steps("tuning", tuning.budget_s, unit="s") as tuning.tick:
        return _tune(tuning)


def _tune(tuning: Tuning) -> list[Choice]:
    best: dict[str, Any] = {}
    for knob in KNOBS:
        origin, reason = tuning.settings.origins[knob.name], ""
        if knob.numerics and not tuning.numerics:
            reason = "can change results; tried with --numerics"
        elif origin.kind not in (Kind.DEFAULT, Kind.FACTORY):
            reason = f"kept, set by {origin.describe()}"
        if reason:
            value = getattr(tuning.settings, knob.name)
            tuning.add(Row(knob.name, value, knob.task, None, reason=reason))
            continue
        choice = _tune_knob(knob, best, tuning)
        if choice is not None:
            best[knob.name] = choice.value
            tuning.choices.append(choice)
    return tuning.choices


def _tune_knob(knob: Knob, best: Mapping[str, Any], tuning: Tuning) -> Choice | None:
    """Return the knob's best value; None when nothing could be measured."""
    current = getattr(tuning.settings, knob.name)
    values = [current, *(value for value in knob.values(tuning.facts) if value != current)]
    rows = [_trial(knob, value, best, tuning) for value in values]
    measured = [row for row in rows if row.patterns_per_s is not None]
    if not measured:
        return None
    base, fastest = rows[0], max(measured, key=lambda row: row.rate)
    if fastest is base or base.patterns_per_s is None:
        return Choice(knob.name, fastest.value, _reason(knob, fastest, rows))
    doubt = "the difference is too small to count"
    if fastest.rate >= CLEARLY * base.rate:
        second = _trial(knob, fastest.value, best, tuning, "once more")
        if second.rate >= CLEARLY * base.rate:
            return Choice(knob.name, fastest.value, _reason(knob, fastest, rows))
        doubt = "the faster one could not be confirmed"
    return Choice(knob.name, base.value, _reason(knob, base, rows) + f"; {doubt}")


def _reason(knob: Knob, chosen: Row, rows: list[Row]) -> str:
    """Return the result of each value, the chosen one first: the reason that goes beside the value."""
    others = [row for row in rows if row is not chosen]
    results = [
        f"{format_value(row.value)}: {row.reason if row.patterns_per_s is None else f'{row.rate:.0f}'}"
        for row in (chosen, *others)
    ]
    task = "training" if knob.task == "train" else "inference"
    caveat = f"; {knob.caveat}" if knob.caveat and any(row.patterns_per_s for row in others) else ""
    return f"patterns/s in {task}: {', '.join(results)}{caveat}"


# --- one trial -------------------------------------------------------------------------------------------


def _trial(knob: Knob, value: Any, best: Mapping[str, Any], tuning: Tuning, note: str = "") -> Row:
    """Measure one value in a process of its own; what goes wrong is the row's reason."""
    seconds = SLOW_START_SECONDS if value is True and knob.name == "compile" else SECONDS
    needed = max(tuning.longest_s, seconds)
    if tuning.rows and tuning.left_s() < needed:
        return tuning.add(Row(knob.name, value, knob.task, None, reason=SPENT))
    began = time.monotonic()
    result = _run(_request(knob, value, best, tuning, seconds), tuning, seconds + GRACE_SECONDS)
    if seconds == SECONDS:
        tuning.longest_s = max(tuning.longest_s, time.monotonic() - began)
    for text in result.get("odd", ()):
        if text not in tuning.odd:
            tuning.odd.append(text)
            tuning.warn(text)
    rate, memory, gpu = result.get("patterns_per_s"), result.get("peak_mib"), result.get("gpu_peak_mib", 0.0)
    reason = result.get("error", note if rate else f"no second step within {seconds} s")
    peak, limit = max(memory or 0.0, gpu), tuning.memory_mib
    if rate is not None and limit is not None and peak > limit:
        rate, reason = None, f"needs {peak:.0f} MiB, more than {limit:.0f}"
    return tuning.add(Row(knob.name, value, knob.task, rate, memory, gpu, reason))


def _request(knob: Knob, value: Any, best: Mapping[str, Any], tuning: Tuning, seconds: int) -> dict[str, Any]:
    own = {name: value for name, value in values_of(tuning.settings).items() if name in field_specs()}
    values = {**own, **QUIET, **best, knob.name: value}
    if "batch_size" in values:  # what was measured takes the place of the total
        values["global_batch_size"] = None
    if knob.task == "train":
        values["max_time"] = f"00:00:{seconds // 60:02}:{seconds % 60:02}"
    training = tuning.science.training.model_copy(update={"epochs": UNLIMITED_EPOCHS, "val_fraction": 0.0})
    science = tuning.science.model_copy(update={"training": training})
    return {
        "task": knob.task,
        "scan": str(tuning.scan.resolve()),
        "settings": values,
        "science": science.model_dump(mode="json"),
    }


def _run(request: Mapping[str, Any], tuning: Tuning, timeout_s: float) -> dict[str, Any]:
    """Start a trial and return its result, or `error`: what went wrong."""
    with tempfile.TemporaryDirectory(prefix="ptycho_tune_") as name:
        file = Path(name) / "request.json"
        file.write_text(json.dumps(request), "utf-8")
        argv = [sys.executable, "-m", "ptycho_torch.tools.tune_run", str(file)]
        ended = run_limited(argv, limit_s=timeout_s, memory_mib=tuning.memory_mib, tick=tuning.tick)
    results = [line.removeprefix(MARK) for line in ended.output.splitlines() if line.startswith(MARK)]
    if results and not ended.stopped:
        result: dict[str, Any] = json.loads(results[-1])
        return result
    last = ended.last_line[:200] or "it printed nothing"
    return {"error": ended.stopped or f"failed with exit code {ended.code}: {last}"}


# --- what is written and printed -------------------------------------------------------------------------


def profile_text(tuning: Tuning) -> str:
    """Return a settings file with every value that was measured, and its reason beside it."""
    lines = [
        f"# Measured by ptycho-torch tune with {tuning.scan.name} on {tuning.facts.hostname or 'a machine'}.",
        "# Use it with --settings FILE. Only values that were measured are here.",
    ]
    for choice in tuning.choices:
        lines += ["", f"# {choice.reason}", f"{choice.name} = {toml_value(choice.value)}"]
    return "\n".join(lines) + "\n"


def refuse_existing(path: Path) -> None:
    """Raise an error where there is such a file already."""
    if path.exists():
        raise UserError(f"{path} exists already", expected="a new file", fix="choose another --out")


def write_profile(path: Path, text: str) -> None:
    """Write a new settings file.

    Raises:
        UserError: there is such a file already, or its directory cannot be written.
    """
    refuse_existing(path)
    write_atomically(path, text)


def seconds_of(text: str) -> float:
    """Return the seconds that `90`, `60s`, `5m` or `1h` mean.

    Raises:
        UserError: none of these.
    """
    return _amount(text, {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}, "--budget", "60s, 5m or 1h")


def mib_of(text: str) -> float:
    """Return the MiB that `800M`, `2G` or `2GB` mean.

    Raises:
        UserError: none of these.
    """
    return _amount(text, {"m": 1.0, "g": 2.0**10}, "--memory", "800M or 2G")


def _amount(text: str, units: Mapping[str, float], flag: str, expected: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]?)(?:ib|b)?", text.strip().lower())
    if not match or match[2] not in units or float(match[1]) <= 0:
        raise UserError(
            f"{flag} = {text!r} is not allowed", expected=expected, fix="write a number and its unit"
        )
    return float(match[1]) * units[match[2]]


def table_row(row: Row) -> tuple[str, ...]:
    """Return a trial as cells of text: knob, value, task, patterns per second, MiB, reason."""
    rate = "-" if row.patterns_per_s is None else f"{row.patterns_per_s:.0f}"
    memory = "-" if row.peak_mib is None else f"{row.peak_mib:.0f}"
    gpu = f" + {row.gpu_mib:.0f} GPU" if row.gpu_mib else ""
    return (row.knob, format_value(row.value), row.task, rate, memory + gpu, row.reason)


def line(cells: tuple[str, ...]) -> str:
    """Return cells as a line of the table, which is printed while the trials run."""
    knob, value, task, rate, memory, reason = cells
    return f"{knob:21}{value:>11}  {task:6}{rate:>11}{memory:>7}  {reason}".rstrip()
