"""Where the seconds of a run go: its phases, from the start of the process to the last file."""

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


def process_age() -> float:
    """Return the seconds since this process was started, from /proc; 0 on systems without it."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, age)
    except (OSError, AttributeError, IndexError, ValueError):
        return 0.0
