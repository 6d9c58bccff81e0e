"""A trial for `check --probe`: one real batch through fit and predict, in a process and directory of its own.

The program that trains is a module that an installed package names in an entry point of the group
`ptycho_exec.probe`. `python -m MODULE DIRECTORY` reads the pickled `Trial` from the file `REQUEST` in that
directory and reports there by `write_report`. It is started, not imported, so that a crash or a hang in a
driver, a compiler or a loader is one more line of the report. Nothing is left behind.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ptycho_exec.errors import Finding, UserError, redact
from ptycho_exec.files import write_atomically
from ptycho_exec.machine.children import Ended, run_limited
from ptycho_exec.progress import steps as counting
from ptycho_exec.settings import ExecutionSettings

GROUP = "ptycho_exec.probe"
"""Group of the entry points that name a program for the trial."""
LIMIT_S = 900.0
"""A trial takes seconds, or a minute with torch.compile; beyond this something waits for ever."""
REQUEST, REPORT, RUN = "request.pickle", "report.json", "run"
SIMULATED = "simulated"
"""Name of the simulated scan, where a file could be named."""
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "WANDB_CACHE_DIR", "MPLCONFIGDIR")
"""Variables that name the directories in which the packages of a training keep files between runs."""
_LEVELS = {"ok": "OK", "note": "note", "adapted": "note", "error": "FAIL"}


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial is to run: the resolved settings, and the paths of scans, or `SIMULATED`.

    `validation` is None for a training without validation.
    """

    settings: ExecutionSettings
    scan: str = SIMULATED
    validation: str | None = None

    def __repr__(self) -> str:
        """Leave the settings out: they are long, and shown elsewhere."""
        return f"Trial(scan={self.scan!r}, validation={self.validation!r})"


def line(step: Finding) -> str:
    """Return a step of a trial as a line of `check`: what was tried, its result, what to do."""
    place = f" ({step.where})" if step.where else ""
    remedy = f" -> {step.fix}" if step.fix else ""
    return f"{_LEVELS[step.level]:<4}  {step.what}{place}{remedy}"


def to_json(step: Finding) -> dict[str, str]:
    """Return a step as plain JSON data; credentials in it are hidden already."""
    subject, _, text = step.what.partition(": ")
    level, rest = _LEVELS[step.level], {"fix": step.fix, "where": step.where, "setting": step.field}
    return {"level": level, "subject": subject, "text": text, **rest}


def run_trial(
    trial: Trial, *, limit_s: float = LIMIT_S, say: Callable[[str], object] | None = None
) -> tuple[Finding, ...]:
    """Run the trial with every registered program; one that died or hung ends with an error.

    Args:
        limit_s: seconds after which a child is stopped.
        say: takes all that a child printed.

    Raises:
        UserError: no installed package registers a program.
    """
    programs = sorted({entry.value for entry in entry_points(group=GROUP)})
    if not programs:
        raise UserError(
            "--probe runs one batch through a program that trains, and no installed package registers one",
            expected=f"a package with an entry point in the group {GROUP}",
            fix="install it, or check without --probe",
        )
    steps: list[Finding] = []
    for program in programs:
        if len(programs) > 1:
            steps.append(Finding(f"probe program: {program}", level="ok", code="trial-step"))
        steps += _run_program(program, trial, limit_s, say)
    return tuple(steps)


def _run_program(
    program: str, trial: Trial, limit_s: float, say: Callable[[str], object] | None
) -> list[Finding]:
    with tempfile.TemporaryDirectory(prefix="ptycho_exec_trial_") as name:
        folder = Path(name)
        (folder / REQUEST).write_bytes(pickle.dumps(trial))
        # The child has caches of its own, and imports from where this process does.
        environ = {**os.environ, **{variable: str(folder / "cache") for variable in CACHES}}
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        argv = [sys.executable, "-m", program, str(folder)]
        with counting("trying one batch", unit="s") as tick:
            ended = run_limited(argv, limit_s=limit_s, cwd=folder, environ=environ, tick=tick)
        if say is not None:
            say(redact(ended.output))
        report: dict[str, Any] = {"doing": "start", "steps": []}
        if (folder / REPORT).is_file():
            report = json.loads((folder / REPORT).read_text("utf-8"))
    steps, doing = [Finding(**row) for row in report["steps"]], report["doing"]
    return steps if doing is None else [*steps, _unfinished(doing, ended, limit_s)]


def write_report(folder: Path, doing: str | None, steps: Sequence[Finding]) -> None:
    """Write the steps so far and what is being done now; None when all is done."""
    report = {"doing": doing, "steps": [step.to_json() for step in steps]}
    write_atomically(folder / REPORT, json.dumps(report))


def _unfinished(doing: str, ended: Ended, limit_s: float) -> Finding:
    last = f"; its last line: {ended.last_line}" if ended.last_line else ""
    if ended.code is None:
        what = f"it did not end within {limit_s:g} s and was stopped"
        fix = "look for what waits: a launcher, other nodes, loader workers; try devices=1 and num_workers=0"
    elif ended.code == -9:
        what, fix = "the process was killed", "most often memory ran out: try a smaller batch_size"
    elif ended.code < 0:
        what = f"the process died by {signal.Signals(-ended.code).name}"
        fix = "try compile=false, num_workers=0 or accelerator=cpu, one by one"
    else:
        what, fix = f"the process ended with code {ended.code}", "see all of its output with --debug"
    return Finding(f"probe {doing}: {what}{last}", fix=fix, code="trial-step")
