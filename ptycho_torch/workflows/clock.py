"""Where the seconds of a run go: its phases, from the start of the process to the last file, and parts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

OTHER = "other"


@dataclass
class Clock:
    """Seconds that each phase of a run took, one after the other, so that they add up to the whole.

    A phase inside another counts for the inner one, and what no phase takes for `other`.

    Attributes:
        seconds: phase -> wall seconds.
        begun: when the run began, as `time.perf_counter` counts.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    begun: float = field(default_factory=lambda: time.perf_counter())

    def __post_init__(self) -> None:
        self._until = self.begun
        self._open = [OTHER]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Give the time inside the block to a phase."""
        self.mark(self._open[-1])
        self._open.append(name)
        try:
            yield
        finally:
            self.mark(self._open.pop())

    def mark(self, name: str) -> None:
        """Give the time since a phase began or ended to this one."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._until
        self._until = now


class Parts:
    """Seconds of the parts of one phase; a part inside another counts for the inner one.

    On a GPU, which works while Python goes on, a part's seconds are those that Python spent or waited in it.

    Attributes:
        seconds: part -> wall seconds so far; what belongs to no part is not counted.
        first_step_at: Unix time at which the first training step ended; None before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self.first_step_at: float | None = None
        self._open: list[tuple[str | None, float]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Give the time inside the block to a part."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, part: str | None) -> None:
        """Give the time from now on to a part; to the one around it where that is None."""
        now = time.perf_counter()
        self._charge(now)
        self._open.append((part or (self._open[-1][0] if self._open else None), now))

    def leave(self) -> None:
        """Give the time from now on to what was open before; nothing where nothing is open."""
        now = time.perf_counter()
        self._charge(now)
        if self._open:
            self._open.pop()
        if self._open:
            self._open[-1] = (self._open[-1][0], now)

    def _charge(self, now: float) -> None:
        """Give the time since the innermost open part was last looked at to it."""
        if self._open:
            part, since = self._open[-1]
            if part is not None:
                self.seconds[part] = self.seconds.get(part, 0.0) + now - since


def process_age() -> float:
    """Return the seconds since this process was started, from /proc; 0 on systems without it."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, age)
    except (OSError, AttributeError, IndexError, ValueError):
        return 0.0
