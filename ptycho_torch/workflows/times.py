"""Where the seconds of `fit` and `predict` go: their parts, by Lightning's profiler."""

from __future__ import annotations

import time

from lightning.pytorch.profilers import Profiler

from ptycho_torch.workflows.clock import Parts

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


class PartTimes(Parts, Profiler):
    """The parts of a fit or prediction, from Lightning's actions: a few microseconds each."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: dict[str, str | None] = {}

    def start(self, action_name: str) -> None:
        if action_name not in self._parts:
            found = (part for part, words in PARTS if any(word in action_name for word in words))
            self._parts[action_name] = next(found, None)
        self.enter(self._parts[action_name])

    def stop(self, action_name: str) -> None:
        self.leave()
        if self.first_step_at is None and action_name == "run_training_batch":
            self.first_step_at = time.time()
