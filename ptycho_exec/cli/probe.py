"""A trial for `check --probe`: one real batch through fit and predict, in a process and folder of its own.

The program that trains is started by name, not imported: this package stays light, and a crash or a hang
in a driver, a compiler or a loader is one more line of the report. Nothing is left behind.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ptycho_exec.errors import Finding, UserError, redact
from ptycho_exec.files import write_atomically
from ptycho_exec.settings import ExecutionSettings

PROGRAM = "ptycho_torch.tools.probe_run"
LIMIT_S = 900.0
"""A trial takes seconds, or a minute with torch.compile; beyond this something waits for ever."""
REQUEST, REPORT, RUN = "request.pickle", "report.json", "run"
SIMULATED = "simulated"
"""The name of the scan that is made up, where a file could be named."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial is to run: the resolved settings, and the paths of scans, or `SIMULATED`.

    `validation` is None for a training without validation.
    """

    settings: ExecutionSettings
    scan: str = SIMULATED
    validation: str | None = None

    def __repr__(self) -> str:
        """Leave the settings out: they are long, and said elsewhere."""
        return f"Trial(scan={self.scan!r}, validation={self.validation!r})"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a trial tried, as a line of `check`; `setting` is the field it is about, if any."""

    level: Literal["OK", "note", "FAIL"]
    subject: str
    text: str
    fix: str = ""
    where: str = ""
    setting: str = ""

    @property
    def failed(self) -> bool:
        return self.level == "FAIL"

    def finding(self) -> Finding:
        return Finding(f"{self.subject}: {self.text}", where=self.where, fix=self.fix)

    def line(self) -> str:
        """Return the step as a line of `check`: what was tried, what came of it, what to do."""
        place = f" ({self.where})" if self.where else ""
        remedy = f" -> {self.fix}" if self.fix else ""
        return str(redact(f"{self.level:<4}  {self.subject}: {self.text}{place}{remedy}"))

    def to_json(self) -> dict[str, str]:
        """Return plain JSON data with credentials hidden."""
        return {name: str(redact(value)) for name, value in asdict(self).items()}


def run_trial(
    trial: Trial, *, limit_s: float = LIMIT_S, say: Callable[[str], object] | None = None
) -> tuple[Step, ...]:
    """Run the trial in a child process and return its steps; one that died or hung ends with a failure.

    Args:
        trial: what to run.
        limit_s: seconds after which the child is stopped.
        say: takes all that the child printed.

    Raises:
        UserError: the package that trains is not installed.
    """
    spec = find_spec(PROGRAM.partition(".")[0])
    if spec is None or spec.origin is None:
        raise UserError(
            "--probe runs one batch through ptycho_torch, which is not installed",
            fix="install it, or check without --probe",
        )
    with tempfile.TemporaryDirectory(prefix="ptycho_exec_trial_") as name:
        folder = Path(name)
        (folder / REQUEST).write_bytes(pickle.dumps(trial))
        environ = _environ(folder, Path(spec.origin).parents[1])
        ended = _run([sys.executable, "-m", PROGRAM, str(folder)], folder, environ, limit_s)
        if say is not None:
            say(redact(ended.output))
        doing, steps = _read_report(folder / REPORT)
        return steps if doing is None else (*steps, _unfinished(doing, ended, limit_s))


CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "WANDB_CACHE_DIR", "MPLCONFIGDIR")
"""Variables that name the folders in which the packages of a training keep files between runs."""


def _environ(folder: Path, home: Path) -> dict[str, str]:
    """Return the variables of the child: those of this process, with caches in the trial's own folder."""
    environ = {**os.environ, **{name: str(folder / "cache") for name in CACHES}}
    if not {"site-packages", "dist-packages"} & set(home.parts):  # a checkout, which need not be installed
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH"))))
    return environ


@dataclass(frozen=True, slots=True)
class _Ended:
    """How the child ended; `code` None when it had to be stopped."""

    code: int | None
    output: str


def _run(words: Sequence[str], folder: Path, environ: Mapping[str, str], limit_s: float) -> _Ended:
    """Run a program, and end it with all that it started when it takes too long or we are interrupted."""
    with (folder / "output").open("w+b") as output:
        child = subprocess.Popen(
            words,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        output.seek(0)
        return _Ended(code, output.read().decode("utf-8", "replace"))


def write_report(folder: Path, doing: str | None, steps: Sequence[Step]) -> None:
    """Write what was done so far and what is being done now; None when all is done."""
    write_atomically(folder / REPORT, json.dumps({"doing": doing, "steps": [s.to_json() for s in steps]}))


def _read_report(path: Path) -> tuple[str | None, tuple[Step, ...]]:
    try:
        report: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except OSError:
        return "start", ()
    return report["doing"], tuple(Step(**row) for row in report["steps"])


def _unfinished(doing: str, ended: _Ended, limit_s: float) -> Step:
    said = [line for line in ended.output.splitlines() if line.strip()]
    last = f"; it last said: {said[-1].strip()}" if said else ""
    if ended.code is None:
        what = f"it did not end within {limit_s:g} s and was stopped"
        fix = "look for what waits: a launcher, other nodes, loader workers; try devices=1 and num_workers=0"
    elif ended.code == -signal.SIGKILL:
        what, fix = "the process was killed", "most often memory ran out: try a smaller batch_size"
    elif ended.code < 0:
        what = f"the process died by {signal.Signals(-ended.code).name}"
        fix = "try compile=false, num_workers=0 or accelerator=cpu, one by one"
    else:
        what, fix = f"the process ended with code {ended.code}", "see all that it said with --debug"
    return Step("FAIL", f"probe {doing}", redact(what + last), fix)
