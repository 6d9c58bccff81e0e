"""What reaches the window of Ptychodus while a child process works for it.

The window moves its bar, shows messages and looks whether somebody pressed Stop only when the child reports
progress, which Ptychodus's own part of the child does once, at the end. This module reports as often as there
is news, on the queue on which the child's log records travel. It is loaded in both processes: what travels
is unpickled in that of the window, and there it does what no message can ask for (`_in_window`, `_raised`).
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from ptycho_exec.errors import SettingsError, UserError
from ptycho_torch.ptychodus.keywords import LOGGER

logger = logging.getLogger(LOGGER)

FIRST_RELEASE = (1, 7)


def result_queue() -> Any | None:
    """Return the queue to the window's process; None where another program calls."""
    queues = (getattr(handler, "_result_queue", None) for handler in logging.getLogger().handlers)
    return next((queue for queue in queues if queue is not None), None)


def require_release() -> None:
    """Refuse a Ptychodus that calls and is older than 1.7.

    Raises:
        SettingsError: with what would be wrong.
    """
    version = str(getattr(sys.modules.get("ptychodus"), "__version__", ""))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is not None and tuple(map(int, numbers.groups())) < FIRST_RELEASE:
        raise SettingsError(
            f"Ptychodus {version} cannot use this package",
            where="the Ptychodus that calls",
            expected="1.7 or later: before, positions count from another point, half a pixel away",
            fix="pip install -U 'ptychodus[gui]>=1.7'",
        )


# --- from the child ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How far a training is; unpickled, it is Ptychodus's `TrainOutput`.

    Attributes:
        done: epochs that have ended.
        kept: the model that the window has after a Stop, in words.
    """

    done: int
    kept: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _in_window, (self.done, self.kept)


def report(progress: Progress, model: Path | None = None) -> None:
    """Move the bar, show what was logged, let a Stop act; with a model, *Infer* takes it from now on."""
    queue = result_queue()
    if queue is None:
        return
    if model is not None:
        queue.put(("model_saved", str(model)))
    queue.put(("train_output", pickle.dumps(progress)))


def is_shown(error: Exception) -> bool:
    """Return whether `show_error` has shown it."""
    return getattr(error, "shown_in_the_window", False) is True


@dataclass(frozen=True)
class _Raised:
    error: UserError

    def __reduce__(self) -> tuple[Any, ...]:
        return _raised, (self.error,)


def show_error(error: Exception) -> None:
    """Log an error once, where the window shows it.

    One that is meant for the user then ends the window's task without a traceback of two processes.
    """
    if is_shown(error):
        return
    error.shown_in_the_window = True  # type: ignore[attr-defined]
    if not isinstance(error, UserError):
        kind = type(error).__name__
        logger.error("%s: %s; where it happened is in the terminal of Ptychodus", kind, error)
        return
    logger.error("%s", error)
    queue = result_queue()
    if queue is not None:
        first = str(error).partition("\n")[0]
        queue.put(("error", f"{first} (see above)", type(error).__name__, pickle.dumps(_Raised(error))))


def end_with_window() -> None:
    """Have this process asked to stop as soon as the window that started it is gone."""
    if result_queue() is not None:
        end_with_parent()


def end_with_parent() -> None:
    """Have this process asked to stop as soon as the one that started it is gone."""
    parent = parent_process()
    if parent is None or any(thread.name == _WATCH for thread in threading.enumerate()):
        return
    threading.Thread(target=_wait_for_the_end, args=(parent.sentinel,), name=_WATCH, daemon=True).start()


_WATCH = "ends-with-parent"


def _wait_for_the_end(sentinel: int) -> None:
    wait([sentinel])
    queue = result_queue()
    if queue is not None:
        queue.cancel_join_thread()  # nobody reads it any more
    os.kill(os.getpid(), signal.SIGTERM)


# --- in the process of the window -------------------------------------------------------------------------


def _in_window(done: int, kept: str) -> Any:
    """Show what was logged until now, and return Ptychodus's own report.

    The task of a closed window would run on, where nobody sees or stops it: closing is taken for a Stop. What
    the window calls its parts is looked up in the functions that called; a Ptychodus with other names does
    without.
    """
    from ptychodus.api.reconstruct import TrainOutput

    monitor, tasks = _of_callers("monitor", "stop_processing"), _of_callers("self", "put_background_task")
    if monitor is not None:
        if getattr(tasks, "is_stopping", False):
            monitor.stop_processing()
        if getattr(monitor, "is_stopping", False):
            logger.info("stopped %s; %s", f"after epoch {done}" if done else "within the first epoch", kept)
        getattr(monitor, "_notify_observers_foreground", lambda: None)()
    return TrainOutput(progress=done)


def _of_callers(name: str, method: str) -> Any:
    """Return the variable of that name, in the nearest calling function, whose value has the method."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if hasattr(value := frame.f_locals.get(name), method):
            return value
        frame = frame.f_back
    return None


def _raised(error: UserError) -> UserError:
    """Return the error, and have the terminal show its block without the traceback of two processes."""
    logging.getLogger("ptychodus.model.task_manager").addFilter(_without_traceback)
    return error


def _without_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(getattr(error, "child_exception", None), UserError):
        record.msg, record.args, record.exc_info = "the task ended with the error above", (), None
    return True
