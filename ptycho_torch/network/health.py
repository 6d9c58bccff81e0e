"""Distinguish a training that learns from one that does not, so that a failed run never ends as a success."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ptycho_exec.errors import UserError

REFERENCE_STEPS = 10
"""The mean loss of the first steps is taken as that of the untrained network."""
PLATEAU_PATTERNS = 10_000
"""Patterns after which a training must have learned something."""
PLATEAU_RATIO = 0.95
"""A loss above this part of the untrained loss is a plateau; learning runs reach 0.5 and less."""
MOST_NOISE = 0.9
"""Part of the untrained loss that counting noise is taken for at most: its estimate is not exact."""
COLLAPSE_STD = 1e-3
"""Spread of the predicted amplitude, relative to its mean, below which it is a constant."""
COLLAPSE_RATIO = 0.8
"""A constant amplitude is right for a pure phase object; with a loss above this part it is a collapse."""

_REMEDIES = "gradient_clip_val=1, scheduler=WarmupCosine, a smaller learning_rate, or another seed"


class TrainingHealth:
    """Checks the loss, the weights and the spread of the predicted amplitude of one training.

    noise_floor: loss that counting noise alone leaves. At low dose it is most of the loss, and what a
    network learns only shows above it.
    """

    def __init__(self, noise_floor: float = 0.0) -> None:
        self.noise_floor = noise_floor
        self.reference = 0.0
        self._steps = 0
        self._patterns = 0
        self._epoch_loss = 0.0
        self._epoch_steps = 0

    def begin_trained(self, untrained_loss: float) -> None:
        """Take the loss of an untrained network as given, where a training begins with a trained one."""
        self.reference, self._steps = untrained_loss, REFERENCE_STEPS

    def after_step(self, loss: float, patterns: int) -> None:
        """Count one optimizer micro-step.

        Raises:
            UserError: the loss is NaN or infinite.
        """
        if not math.isfinite(loss):
            raise UserError(
                f"training diverged: the loss became {loss}",
                where=f"training step {self._steps}",
                expected="a finite loss",
                fix=f"check the data with `ptycho-torch inspect`; then try {_REMEDIES}",
            )
        if self._steps < REFERENCE_STEPS:
            self.reference += (loss - self.reference) / (self._steps + 1)
        self._steps += 1
        self._patterns += patterns
        self._epoch_loss += loss
        self._epoch_steps += 1

    def after_epoch(self, amplitude_spread: float) -> None:
        """Check one epoch.

        Args:
            amplitude_spread: standard deviation of the predicted amplitude divided by its mean.

        Raises:
            UserError: the amplitude collapsed to a constant, or the loss stays where it began.
        """
        loss = self._epoch_loss / max(self._epoch_steps, 1)
        self._epoch_loss, self._epoch_steps = 0.0, 0
        if self._patterns < PLATEAU_PATTERNS:
            return
        floor = min(self.noise_floor, MOST_NOISE * self.reference)
        ratio = (loss - floor) / max(self.reference - floor, 1e-30)
        seen = (
            f"after {self._patterns} patterns the loss is {loss:.4g}, untrained it was {self.reference:.4g}"
        )
        if amplitude_spread < COLLAPSE_STD and ratio > COLLAPSE_RATIO:
            raise UserError(
                "training collapsed: the network predicts the same amplitude everywhere",
                where=seen,
                expected=f"an amplitude whose spread is above {COLLAPSE_STD:g} of its mean",
                fix=f"try {_REMEDIES}",
            )
        if ratio > PLATEAU_RATIO:
            raise UserError(
                "training is stuck: the network still predicts a flat object",
                where=seen,
                expected=f"a loss below {floor + PLATEAU_RATIO * (self.reference - floor):.4g}"
                + (f", of which counting noise is {floor:.4g}" if floor else ""),
                fix=f"check positions and probe with `ptycho-torch inspect`; then try {_REMEDIES}",
            )

    def state_dict(self) -> dict[str, float]:
        """What a resumed training needs to go on checking."""
        return {"reference": self.reference, "steps": self._steps, "patterns": self._patterns}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up the counts of an interrupted training."""
        self.reference = float(state["reference"])
        self._steps, self._patterns = int(state["steps"]), int(state["patterns"])


def check_weights(named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        UserError: naming the first tensors that are.
    """
    broken = [name for name, weight in named if not torch.isfinite(weight).all()]
    if broken:
        raise UserError(
            f"training diverged: {len(broken)} weight tensors hold NaN or infinite values",
            where=", ".join(broken[:3]),
            expected="finite weights",
            fix=f"try {_REMEDIES}",
        )
