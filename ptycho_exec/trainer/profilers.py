"""The profiler of the settings, beside the caller's; it writes into the run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import profilers
from lightning.pytorch.profilers import Profiler

PROFILE_FOLDER = "profile"
KINDS = {"simple": "SimpleProfiler", "advanced": "AdvancedProfiler", "pytorch": "PyTorchProfiler"}
"""The settings' words and Lightning's classes."""


class SideBySide(Profiler):
    """Measure with the profiler of a word, into a folder, and with the caller's, if there is one."""

    def __init__(self, word: str, run_dir: Path, callers: Profiler | None) -> None:
        super().__init__()
        kind = getattr(profilers, KINDS[word])
        self.word, self.callers = word, callers
        self.ours: Profiler = kind(dirpath=run_dir / PROFILE_FOLDER, filename=word)
        self.parts = [self.ours] if callers is None else [callers, self.ours]

    def start(self, action_name: str) -> None:
        for part in self.parts:
            part.start(action_name)

    def stop(self, action_name: str) -> None:
        for part in reversed(self.parts):
            part.stop(action_name)

    def summary(self) -> str:
        return "\n".join(part.summary() for part in self.parts)

    def describe(self) -> None:
        for part in self.parts:
            part.describe()

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        for part in self.parts:
            part._lightning_module = getattr(self, "_lightning_module", None)
            part.setup(stage, local_rank, log_dir)

    def teardown(self, stage: str | None) -> None:
        for part in self.parts:
            part.teardown(stage)

    def __reduce__(self) -> tuple[Any, ...]:
        return SideBySide, (self.word, Path(str(self.ours.dirpath)).parent, self.callers)
