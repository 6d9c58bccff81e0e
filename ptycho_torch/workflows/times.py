"""Where the seconds of `fit` and `predict` go: their parts, by Lightning's profiler."""

from __future__ import annotations

import time

from lightning.pytorch.profilers import Profiler

PARTS = (
    ("load", ("train_dataloader_next", "predict_next")),
    ("validate", ("val_next", ".validation_step")),
    ("transfer", (".batch_to_device",)),
    ("compute", ("run_training_batch", ".predict_step")),
    ("stitch", ("[Callback]StitchWriter",)),
    ("checkpoint", ("[Callback]BestCheckpoints", "[Callback]ResumePoint", "save_checkpoint")),
    ("images", ("[Callback]Images",)),
)
"""Part of a run, and what the names of Lightning's actions contain that belong to it."""


class PartTimes(Profiler):
    """Seconds of each part of a fit or prediction; an action inside another counts for the inner one.

    A few microseconds per action. On a GPU, which works while Python goes on, a part's seconds are those that
    Python spent or waited in it.

    Attributes:
        seconds: part -> wall seconds so far; what belongs to no part is not counted.
        first_step_at: Unix time at which the first training step ended; None before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self.first_step_at: float | None = None
        self._open: list[tuple[str | None, float]] = []
        self._parts: dict[str, str | None] = {}

    def start(self, action_name: str) -> None:
        now = time.perf_counter()
        self._charge(now)
        if action_name not in self._parts:
            found = (part for part, words in PARTS if any(word in action_name for word in words))
            self._parts[action_name] = next(found, None)
        outer = self._open[-1][0] if self._open else None
        self._open.append((self._parts[action_name] or outer, now))

    def stop(self, action_name: str) -> None:
        now = time.perf_counter()
        if not self._open:
            return
        self._charge(now)
        self._open.pop()
        if self._open:
            self._open[-1] = (self._open[-1][0], now)
        if self.first_step_at is None and action_name == "run_training_batch":
            self.first_step_at = time.time()

    def _charge(self, now: float) -> None:
        """Give the time since the innermost open action was last looked at to its part."""
        if self._open:
            part, since = self._open[-1]
            if part is not None:
                self.seconds[part] = self.seconds.get(part, 0.0) + now - since
