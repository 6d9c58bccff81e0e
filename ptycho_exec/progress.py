"""How far long work is: a bar on a terminal, a line now and then in a log; nothing unless a program asks.

A program says once that progress is to be seen (`show`); whatever takes long counts its steps (`steps`). Of
work within work only the outer one is shown. Everything goes to standard error, so results stay alone on
standard output.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

    from ptycho_exec.notebook_bar import NotebookBar

ItemT = TypeVar("ItemT")
Size = Callable[[Any], float]

DELAY_S = 0.5
"""Work that ends within this time shows no bar."""
LINE_S, LINE_PART = 10.0, 0.1
"""Lines in a log are at least so many seconds apart, and this part of the time so far."""


class _State(threading.local):
    """What this thread shows: threads that work for it show nothing."""

    shown = False
    busy = False


_state = _State()


@contextmanager
def show(enabled: bool = True) -> Iterator[None]:
    """Show, or do not show, the progress of what this thread does inside."""
    before, _state.shown = _state.shown, enabled
    try:
        yield
    finally:
        _state.shown = before


def hide() -> None:
    """Show no progress until the end of the surrounding `show`."""
    _state.shown = False


class Meter:
    """The progress of one piece of work.

    Args:
        what: it does, in a word or two.
        total: number of its steps; None where nobody knows.
        done: steps that were done before.
        unit: of the steps, for lines: "patterns", say.
        stays: the full bar is left on the terminal.
    """

    def __init__(
        self, what: str, total: float | None = None, *, done: float = 0, unit: str = "", stays: bool = False
    ) -> None:
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self._note, self._stays, self._began_with = "", stays, done
        self._began = self._last_line = time.monotonic()
        self._bar: Progress | NotebookBar | None = None
        self._task: Any = None
        self._lines = False

    def step(self, count: float = 1, *, what: str = "", note: str = "", total: float | None = None) -> None:
        """Count steps, and show it where it is time to."""
        self.what, self._note, self.total = what or self.what, note, total or self.total
        self.done = min(self.done + count, self.total or math.inf)
        now = time.monotonic()
        if self._bar is None and not self._lines and now - self._began >= DELAY_S:
            self._open()
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, completed=self.done, total=self.total, description=self.what, note=self._note
            )
        elif self._lines and now - self._last_line >= max(LINE_S, LINE_PART * (now - self._began)):
            self._last_line = now
            print(self.line(now - self._began), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """Return one line for a log, after so many seconds of work."""
        counted, words = self.done - self._began_with, f"{self.done:.0f}"
        if self.total:
            words = f"{words} of {self.total:.0f}"
        words = f"{words} {self.unit}".strip()
        parts = [words, self._note] if self._note else [words]
        if self.total and counted > 0:
            left = max(self.total - self.done, 0) * seconds / counted
            parts[0] += f" ({min(self.done / self.total, 1):.0%})"
            parts.append(f"{clock(left)} left")
        else:
            parts.append(f"{clock(seconds)} so far")
        return f"{self.what}: {', '.join(parts)}"

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _open(self) -> None:
        bar = _bar(self._stays)
        self._lines = bar is None
        if bar is not None:
            self._bar, self._task = (
                bar,
                bar.add_task(self.what, total=self.total, completed=int(self._began_with), note=self._note),
            )
            bar.start()


@contextmanager
def steps(what: str, total: float | None = None, *, unit: str = "") -> Iterator[Any]:
    """Give a function that counts steps of the work inside: `step(count=1, what=, note=, total=)`."""
    if not _state.shown or _state.busy:
        yield _nothing
        return
    meter, _state.busy = Meter(what, total, unit=unit), True
    try:
        yield meter.step
    finally:
        _state.busy = False
        meter.close()


def counted(
    items: Iterable[ItemT], what: str, total: float | None = None, *, unit: str = "", size: Size = lambda _: 1
) -> Iterator[ItemT]:
    """Yield the items and count each, when the next one is asked for, as so many steps as `size` says."""
    with steps(what, total if total is not None else _length(items), unit=unit) as step:
        for item in items:
            yield item
            step(size(item))


def _length(items: Iterable[Any]) -> int | None:
    return len(items) if isinstance(items, Sized) else None


def _nothing(*_: Any, **__: Any) -> None:
    """Count nothing."""


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _bar(stays: bool) -> Progress | NotebookBar | None:
    """Return a bar; None where standard error is neither a terminal nor a notebook."""
    if not _is_terminal(sys.stderr) and "IPython" not in sys.modules:
        return None  # without the import of rich
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_jupyter:
        from ptycho_exec.notebook_bar import NotebookBar

        return NotebookBar()
    if not _is_terminal(sys.stderr) or not console.is_terminal or console.is_dumb_terminal:
        return None  # rich believes FORCE_COLOR, which kernels of notebooks and CI set, also of a log
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TextColumn("remaining"),
        TimeRemainingColumn(),
        console=console,
        transient=not stays,
        redirect_stdout=_is_terminal(sys.stdout),  # then printed lines appear above the bar
    )


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()
