"""What the first process of a run hands to those that Lightning starts by running the command again.

They take its plan as it is, rather than resolve settings once more from files that may have changed.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptycho_exec.errors import SettingsError
from ptycho_exec.machine.ranks import detect_launcher
from ptycho_exec.plan import Plan

VARIABLE = "RUN_HANDOVER"
"""Names the file, for the time in which the processes are started."""


@dataclass(frozen=True)
class Handed:
    """The plan of a run, and what else its program resolved for it, such as the science.

    Attributes:
        checkpoint: where the run goes on from.
    """

    plan: Plan
    more: Any = None
    checkpoint: str | Path | None = None


_taken: Handed | None = None


def handed_over() -> Handed | None:
    """Return what the first process of this run resolved; None in that process, and where nobody did."""
    global _taken
    path = os.environ.get(VARIABLE)
    child = detect_launcher(os.environ).kind == "lightning"
    if _taken is None and path and child and _is_own(path):
        _taken = pickle.loads(Path(path).read_bytes())
    return _taken


def _is_own(path: str) -> bool:
    """Return whether a file is this user's; Windows keeps temporary files apart by itself."""
    return not hasattr(os, "getuid") or os.stat(path).st_uid == os.getuid()


def _packed(handed: Handed) -> bytes:
    try:
        return pickle.dumps(handed)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise SettingsError(
            f"what this run was given cannot be handed to its other processes: {error}",
            expected="classes that another process can import",
            fix="define the settings class at the top of a module, not in a function; or set devices=1",
        ) from error


@contextmanager
def handing_over(plan: Plan, more: Any = None, checkpoint: str | Path | None = None) -> Iterator[None]:
    """Hand a plan to the processes that are started inside; afterwards another run can hand over its own.

    Raises:
        SettingsError: the plan cannot be written to a file, as of a settings class made in a function.
    """
    global _taken
    started = plan.facts.launcher.kind == "none" and plan.totals.world_size > 1
    if not started or VARIABLE in os.environ:
        try:
            yield
        finally:
            if _taken is not None:
                os.environ.pop(VARIABLE, None)
            _taken = None
        return
    number, name = tempfile.mkstemp(prefix="run-handover-")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(_packed(Handed(plan, more, checkpoint)))
        os.environ[VARIABLE] = name
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        Path(name).unlink(missing_ok=True)
