"""The progress of a task in a notebook: one line that is replaced, needs no widgets, and stays when saved."""

from __future__ import annotations

import time
from html import escape
from typing import Any

EVERY_S = 0.2
"""The line is replaced no more often."""


class NotebookBar:
    """What is used of `rich.progress.Progress`, for one task."""

    def __init__(self) -> None:
        self._what, self._notes = "", ""
        self._total: float | None = None
        self._done = self._began_with = 0.0
        self._began = time.monotonic()
        self._shown = 0.0
        self._handle: Any = None

    def add_task(
        self, description: str, *, total: float | None = None, completed: float = 0, **notes: str
    ) -> int:
        """Take the task; `notes` are shown after the bar."""
        self._what, self._total, self._done = description, total, completed
        self._began_with, self._notes = completed, " ".join(notes.values())
        return 0

    def start(self) -> None:
        """Show the line."""
        from IPython.display import display

        self._handle = display(self, display_id=True)  # type: ignore[no-untyped-call]

    def update(
        self,
        task: int,
        *,
        advance: float = 0,
        completed: float | None = None,
        total: float | None = None,
        description: str | None = None,
        **notes: str,
    ) -> None:
        """Go on, and show it where it is time to."""
        del task
        self._done = self._done + advance if completed is None else completed
        self._total = self._total if total is None else total
        self._what = description or self._what
        self._notes = " ".join(notes.values()) or self._notes
        if time.monotonic() - self._shown > EVERY_S:
            self._show()

    def stop(self) -> None:
        """Show where it ended."""
        self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        if self._handle is not None:
            self._handle.update(self)

    def _seconds(self) -> str:
        """Return how long it still takes, and in the end how long it took."""
        so_far, counted = time.monotonic() - self._began, self._done - self._began_with
        if self._total and self._done < self._total:
            return f"{so_far / counted * (self._total - self._done):.0f} s left" if counted else ""
        return f"{so_far:.1f} s"

    def __repr__(self) -> str:
        of = f"/{self._total:.0f}" if self._total else ""
        parts = (self._what, f"{self._done:.0f}{of}", self._notes, self._seconds())
        return "  ".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        value = f'value="{self._done}" max="{self._total}"' if self._total else ""
        bar = f'<progress {value} style="vertical-align: middle"></progress>'
        rest = repr(self).removeprefix(self._what)
        return f"<div>{escape(self._what)} {bar} {escape(rest)}</div>"
