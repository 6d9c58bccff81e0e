"""Mutation test of the settings: `pytest --cut` shows that every field acts.

A test that sees what a field does is marked `@pytest.mark.acts("batch_size", "what it sees")`; a third
argument limits the mark to some of the test's parameters, by their ids. `--cut` runs only marked tests, each
in a forked process in which the field has its default at every function that takes settings to a consumer,
as many at once as there are processors. A test that fails there has noticed, and is reported as passed; one
that passes is reported as failed, and a field without a marked test stops the run. `--cut=seed,drift` is
about these fields only.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import pytest
from _pytest.runner import runtestprotocol

TIMEOUT_S = 240

CARRIERS = (
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
    "ptycho_torch.workflows.components:_configs",
)
"""Functions that take settings to a consumer, or (the last two) hand them to the workflows."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cut", nargs="?", const="", help="settings fields, separated by commas; none means all"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "acts(field, observed, ids): the test sees what a settings field does")


def fields_of(item: pytest.Item) -> list[str]:
    """Return the fields that a test is marked to see."""
    case = getattr(getattr(item, "callspec", None), "id", None)
    marks = (mark.args for mark in item.iter_markers("acts"))
    return [field for field, _, *ids in marks if not ids or case in ids[0]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --cut, keep the marked tests; refuse fields that no test is marked to see."""
    if config.option.cut is None:
        return
    from ptycho_exec import ExecutionSettings
    from ptycho_torch.settings import ScienceSettings

    every = {*ExecutionSettings.model_fields, *ScienceSettings.model_fields}
    wanted = set(config.option.cut.split(",")) if config.option.cut else every
    seen = {field for item in items for field in fields_of(item)}
    if wanted - seen:
        raise pytest.UsageError(f"no test is marked to see what these do: {', '.join(sorted(wanted - seen))}")
    config.stash[CUT] = wanted
    items[:] = [item for item in items if wanted & set(fields_of(item))]


CUT = pytest.StashKey[set[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """With --cut, run each test once for each field that it sees, with that field cut; one per processor."""
    wanted = session.config.stash.get(CUT, None)
    if wanted is None or session.config.option.collectonly:
        return None
    waiting = [(item, field) for item in session.items for field in sorted(wanted & set(fields_of(item)))]
    session.testscollected, running = len(waiting), dict[int, Running]()
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            started = _start(*waiting.pop(0))
            running[started.answer] = started
        first = min(run.deadline for run in running.values())
        ready, _, _ = select.select(list(running), [], [], max(0.0, first - time.monotonic()))
        late = [run.answer for run in running.values() if run.deadline <= time.monotonic()]
        for answer in ready or late:
            run = running.pop(answer)
            report = _report(run.item, run.field, _outcome(run, answered=bool(ready)))
            run.item.ihook.pytest_runtest_logreport(report=report)
    return True


def _report(item: pytest.Item, field: str, outcome: str) -> pytest.TestReport:
    noticed = outcome == "failed"
    message = "" if noticed else f"{outcome}, although {field} had its default instead of the asked value"
    return pytest.TestReport(
        nodeid=f"{item.nodeid} without {field}",
        location=item.location,
        keywords={},
        outcome="passed" if noticed else "failed",
        longrepr=message or None,
        when="call",
    )


class Running(NamedTuple):
    """A forked process that runs a test with a field cut, and the pipe to which it writes how that ended."""

    item: pytest.Item
    field: str
    process: int
    answer: int
    deadline: float


def _start(item: pytest.Item, field: str) -> Running:
    """Fork, cut the field, and run the test."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            cut(field)
            reports = runtestprotocol(item, nextitem=None, log=False)
            call = [report.outcome for report in reports if report.when == "call"]
            broken = [f"broken {report.when}" for report in reports if not report.passed]
            os.write(write, json.dumps((call or broken)[0]).encode())
        finally:
            os._exit(0)
    os.close(write)
    return Running(item, field, child, read, time.monotonic() + TIMEOUT_S)


def _outcome(run: Running, *, answered: bool) -> str:
    """Return how the call of a test ended."""
    if not answered:
        os.kill(run.process, signal.SIGKILL)
    answer = os.read(run.answer, 1000) if answered else b""
    os.close(run.answer)
    os.waitpid(run.process, 0)
    return str(json.loads(answer)) if answer else f"no answer within {TIMEOUT_S} s, or a crash"


def cut(field: str) -> None:
    """Put wrapped carriers wherever a module of ours has bound the real ones."""
    for place in CARRIERS:
        module, name = place.split(":")
        carrier = getattr(import_module(module), name)
        for holder, bound in list(_bindings(carrier)):
            setattr(holder, bound, without(field, carrier))


def _bindings(function: Any) -> Iterator[tuple[Any, str]]:
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()) if hasattr(module, "__dict__") else ():
            if value is function:
                yield module, name


def without(field: str, carrier: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that settings going in or coming out have the field's default."""

    @functools.wraps(carrier)
    def passed(*args: Any, **kwargs: Any) -> Any:
        named = {name: severed(value, field) for name, value in kwargs.items()}
        return severed(carrier(*(severed(value, field) for value in args), **named), field)

    return passed


def severed(value: Any, field: str) -> Any:
    """Return settings or configs with the default in one field, and anything else as it is."""
    from ptycho_exec import ExecutionSettings
    from ptycho_torch.config import ScienceConfig

    if type(value) is tuple:
        return tuple(severed(part, field) for part in value)
    if isinstance(value, ScienceConfig):
        parts = {name: part for name, part in value if field in type(part).model_fields}
        defaults = {
            name: part.model_copy(update={field: type(part).model_fields[field].default})
            for name, part in parts.items()
        }
        return value.model_copy(update=defaults)
    if not isinstance(value, ExecutionSettings) or field not in type(value).model_fields:
        return value
    default = ExecutionSettings.model_fields[field].default
    return value.with_effective({field: default})
