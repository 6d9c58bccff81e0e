"""Ctrl-C in a command: it ends with one line that says what is kept, and with exit code 130.

Python's own `KeyboardInterrupt` is caught by libraries, which then print lines of their own and exit in
their way; `Interrupted` passes through them.
"""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

EXIT_CODE = 130
NOTHING = "nothing was written"
RESUME = "the same command with --resume auto continues the run"
"""How an interrupted training goes on, for a user of the command line."""


class Interrupted(SystemExit):
    """A command that somebody interrupted.

    Attributes:
        kept: what is kept, and how to go on, in words.
    """

    def __init__(self, when: str = "", kept: str = "") -> None:
        super().__init__(EXIT_CODE)
        self.when, self.kept = when, kept

    def __str__(self) -> str:
        return f"interrupted{self.when}; {self.kept or NOTHING}"


class _Asked:
    """Whether somebody interrupted the command that runs."""

    now = False


def leave(number: int, frame: Any) -> None:
    """Leave the command: the handler of SIGINT.

    Raises:
        Interrupted: always.
    """
    del number, frame
    _Asked.now = True
    raise Interrupted


def interrupted() -> bool:
    """Return whether the command that runs was interrupted, whatever came of it."""
    return _Asked.now


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the command inside by `Interrupted`, unless a program around it handles it already."""
    _Asked.now = False
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_program(name: str, module: str) -> int:
    """Run the `main` of a program's module as the last thing its process does; Ctrl-C ends it in order.

    While the module is imported, too.
    """
    try:
        main = import_module(module).main
    except KeyboardInterrupt:
        print(f"{name}: {Interrupted()}", file=sys.stderr)
        return EXIT_CODE
    code = int(main())
    gc.freeze()  # what is still there ends with the process: no search for garbage among a million objects
    return code
