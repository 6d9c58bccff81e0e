"""Cut the wire of every settings field in turn, and see which tests notice.

    python tests/wiring/cut.py            # cut all of them, and write docs/wiring.md if all were noticed
    python tests/wiring/cut.py seed drift # only these, and write nothing

For a field, a forked child process replaces its value by its default at every door through which settings
reach a consumer, then runs the field's tests of `tables.py`. All of them must be green uncut and red cut.
Nothing on disk is changed.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Plug-ins that other packages bring along warn when they are imported before pytest starts.
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"

import pytest
from tables import SILENT, WIRES, Wire

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "docs" / "wiring.md"
TIMEOUT_S = 240

DOORS = (
    "ptycho_exec.plan:resolve_plan",
    "ptycho_exec.trainer.process:process_flags",
    "ptycho_exec.trainer.process:seed_run",
    "ptycho_exec.trainer.drift:apply_drift_policy",
    "ptycho_exec.trainer.drift:requested_and_effective",
    "ptycho_exec.trainer.build:trainer_kwargs",
    "ptycho_exec.trainer.build:train_loader_kwargs",
    "ptycho_exec.trainer.build:inference_loader_kwargs",
    "ptycho_exec.trainer.build:build_trainer",
    "ptycho_torch.factory:execution_settings",
)
"""Functions that take settings to a consumer, or (the last) hand them to the workflows."""


# --- cutting ----------------------------------------------------------------------------------------------


def severed(value: Any, field: str | None) -> Any:
    """Return settings with the default in one field (in none: a plain copy), and anything else as it is."""
    from ptycho_exec.settings import ExecutionSettings

    if not isinstance(value, ExecutionSettings):
        return value
    change = {} if field is None else {field: ExecutionSettings.model_fields[field].default}
    cut = ExecutionSettings.model_construct(**{**value.__dict__, **change})
    cut._origins = dict(value.origins)
    return cut


def through(door: Callable[..., Any], field: str | None) -> Callable[..., Any]:
    """Wrap a door so that settings going in or coming out have the field's default."""

    @functools.wraps(door)
    def passed(*args: Any, **kwargs: Any) -> Any:
        cut = [severed(value, field) for value in args]
        named = {name: severed(value, field) for name, value in kwargs.items()}
        return severed(door(*cut, **named), field)

    return passed


def cut_wire(field: str | None) -> None:
    """Put the wrapped doors wherever a module of ours has bound the real ones. Tests are imported later.

    The uncut run passes the same wrapped doors, which then change nothing: what is red is red by the cut.
    """
    for place in DOORS:
        module, name = place.split(":")
        door = getattr(sys.modules[module], name)
        wrapped = through(door, field)
        for holder in [mod for key, mod in sys.modules.items() if key.startswith("ptycho_")]:
            for bound, value in list(vars(holder).items()):
                if value is door:
                    setattr(holder, bound, wrapped)


# --- running ----------------------------------------------------------------------------------------------


class Outcomes:
    """A pytest plug-in: test -> outcome of its call; skipped and broken set-ups are told as such."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.said: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            word = report.outcome if report.when == "call" or report.skipped else f"broken {report.when}"
            self.found.setdefault(report.nodeid, word)
        crash = getattr(report.longrepr, "reprcrash", None)
        if crash is not None:
            self.said.append(crash.message.splitlines()[0][:100])


def import_once() -> None:
    """Load what every child needs, before any of them is forked."""
    import lightning.pytorch  # noqa: F401

    import ptycho_torch.cli
    import ptycho_torch.simulate
    import ptycho_torch.workflows.runs  # noqa: F401


def start(field: str | None, tests: Sequence[str], answer: Path) -> int:
    """Fork a child that cuts the wire and runs the tests; return its process number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with answer.with_suffix(".log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            cut_wire(field)
            outcomes = Outcomes()
            options = ["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "--tb=line"]
            pytest.main([*options, *tests], plugins=[outcomes])
            answer.write_text(json.dumps({"found": outcomes.found, "said": outcomes.said}))
            code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_all(
    jobs: Sequence[tuple[str | None, Sequence[str]]], folder: Path
) -> dict[str | None, dict[str, str]]:
    """Run the jobs, as many at once as there are CPUs, and return test -> outcome of each."""
    waiting, running, found = list(jobs), dict[int, tuple[str | None, float]](), {}
    while waiting or running:
        while waiting and len(running) < len(os.sched_getaffinity(0)):
            field, tests = waiting.pop(0)
            child = start(field, tests, folder / f"{field}.json")
            running[child] = (field, time.monotonic() + TIMEOUT_S)
        for child in list(running):
            field, deadline = running[child]
            ended, _ = os.waitpid(child, os.WNOHANG)
            if not ended and time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            elif ended:
                del running[child]
                told = read_answer(folder / f"{field}.json")
                found[field] = told["found"]
                words = ", ".join(sorted(set(found[field].values())))
                print("\n    ".join([f"{field or 'uncut'}: {words}", *told["said"]]), flush=True)
        time.sleep(0.05)
    return found


def read_answer(answer: Path) -> dict[str, Any]:
    """Return what a child found, or, where it left no answer, the last lines it printed."""
    if answer.exists():
        return dict(json.loads(answer.read_text()))
    last = answer.with_suffix(".log").read_text().splitlines()[-10:]
    return {"found": {}, "said": ["no answer", *last]}


def faults(wires: Iterable[Wire], found: dict[str | None, dict[str, str]]) -> list[str]:
    """Return a line for every test that is not green uncut, or not red when its wire is cut."""
    lines = []
    for wire in wires:
        for test in wire.tests:
            uncut, cut = found[None].get(test, "not run"), found[wire.field].get(test, "not run")
            lines += [f"{wire.field}: {uncut} before the cut: {test}"] if uncut != "passed" else []
            lines += [f"{wire.field}: {cut} with the wire cut: {test}"] if cut != "failed" else []
    return lines


# --- the report -------------------------------------------------------------------------------------------


def report() -> str:
    """Return the text of docs/wiring.md; `main` writes it only after every cut was noticed."""
    from ptycho_exec.fields.spec import field_specs

    specs = field_specs()
    lines = [
        "# Does every setting do what it says?",
        "",
        "Written by `make wiring`, which cuts the wire of each field in turn: it replaces the field by its",
        "default on the way to its consumer and runs the tests below. All are green with the wire whole and",
        "red with it cut; otherwise `make wiring`, and with it CI, fails.",
        f"{len(WIRES)} fields of {len(specs)} are covered.",
        "",
        "| field | effect | what can be seen | tests that go red when the wire is cut |",
        "|---|---|---|---|",
    ]
    for wire in WIRES:
        tests = "<br>".join(f"`{short(test)}`" for test in wire.tests)
        lines.append(f"| `{wire.field}` | {specs[wire.field].effect.value} | {wire.observed} | {tests} |")
    lines += [
        "",
        "## What Lightning would do in silence",
        "",
        f"{len(SILENT)} inputs that Lightning ignores, changes, or refuses late or without a reason, and",
        "what becomes of them here. Each has a test; none is left unreported.",
        "",
        "| asked | what Lightning does | here | shown by |",
        "|---|---|---|---|",
    ]
    for row in SILENT:
        tests = "<br>".join(f"`{short(test)}`" for test in row.tests)
        lines.append(f"| {row.asked} | {row.lightning} | {row.here} | {tests} |")
    return "\n".join(lines) + "\n"


def short(test: str) -> str:
    """A test's file and name, without the folder all tests are in."""
    return test.removeprefix("tests/").replace("|", "\\|")


def main(fields: Sequence[str]) -> int:
    """Cut the wires of `fields`, or of all, and tell what nobody noticed."""
    began = time.monotonic()
    unknown = set(fields) - {wire.field for wire in WIRES}
    if unknown:
        print(f"no such field: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    import_once()
    wires = [wire for wire in WIRES if not fields or wire.field in fields]
    every = list(dict.fromkeys(test for wire in wires for test in wire.tests))
    with tempfile.TemporaryDirectory() as folder:
        found = run_all([(None, every), *((wire.field, wire.tests) for wire in wires)], Path(folder))
    wrong = faults(wires, found)
    print("\n".join(wrong))
    print(f"{len(wires)} wires cut in {time.monotonic() - began:.0f} s, {len(wrong)} faults")
    if not wrong and not fields:
        REPORT.write_text(report())
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
