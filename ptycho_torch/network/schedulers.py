"""Learning-rate schedules: each a formula in the optimizer step t = 0, 1, ... of T, or in a monitored metric.

With learning rate r:

    Default            r
    Exponential        r * 0.01 ** (t / T)
    WarmupCosine       r * (t + 1) / W                              for t < W
                       r * (1 + cos(pi * (t - W) / (T - W))) / 2    afterwards
    MultiStage         r * 0.3 ** (number of 0.5, 0.75, 0.9 that t / T has reached)
    ReduceLROnPlateau  halved after 5 epochs in which the metric did not improve by 0.1 %, down to r / 100
    Adaptive           after each epoch * 1.05 if the metric improved, else * 0.7; within r / 100 and 2 r
                       (the bold driver of Battiti, Neural Computation 4, 141 (1992))

W is 2,000 patterns' worth of steps, at most a tenth of T. The first four change with every optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

WARMUP_PATTERNS = 2000
STEP_DRIVEN = frozenset({"Exponential", "WarmupCosine", "MultiStage"})
_STAGES = (0.5, 0.75, 0.9)


def exponential(step: int, total: int) -> float:
    """Factor of the learning rate that falls evenly on a logarithmic scale, to 1 % at the end."""
    return float(0.01 ** (step / max(total, 1)))


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Factor that rises linearly over `warmup` steps and falls along half a cosine to 0 at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return (1 + math.cos(math.pi * progress)) / 2


def multi_stage(step: int, total: int) -> float:
    """Factor that drops to 0.3 of its value after 50, 75 and 90 % of the steps."""
    return float(0.3 ** sum(step >= stage * total for stage in _STAGES))


def warmup_steps(total: int, patterns_per_step: int) -> int:
    """Steps of the warm-up: 2,000 patterns, at most a tenth of the training, at least one step."""
    return max(1, min(math.ceil(WARMUP_PATTERNS / max(patterns_per_step, 1)), total // 10))


class BoldDriver(LRScheduler):
    """Speed up while the monitored metric improves, slow down when it does not (`Adaptive`)."""

    def __init__(self, optimizer: Optimizer, mode: Literal["min", "max"] = "min") -> None:
        self.sign = 1.0 if mode == "min" else -1.0
        self.best = math.inf
        self.factor = 1.0
        super().__init__(optimizer)

    def step(self, metric: Any = None) -> None:
        """Change the learning rate by what the metric did; the base class calls it once with none."""
        if metric is not None:
            value = self.sign * float(metric)
            self.factor *= 1.05 if value < self.best else 0.7
            self.factor = min(max(self.factor, 0.01), 2.0)
            self.best = min(self.best, value)
        super().step()

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each parameter group."""
        return [base * self.factor for base in self.base_lrs]


def build_scheduler(
    name: str, optimizer: Optimizer, *, total_steps: int, patterns_per_step: int, mode: Literal["min", "max"]
) -> LRScheduler | ReduceLROnPlateau | None:
    """Return the schedule of that name, or none for a constant learning rate.

    Args:
        total_steps: T, the optimizer steps of the whole training.
        patterns_per_step: diffraction patterns that one optimizer step sees, for the warm-up.
        mode: whether a smaller or a larger monitored metric is better.

    Raises:
        ValueError: an unknown name.
    """
    warmup = warmup_steps(total_steps, patterns_per_step)
    factors: dict[str, Callable[[int], float]] = {
        "Exponential": lambda step: exponential(step, total_steps),
        "WarmupCosine": lambda step: warmup_cosine(step, total_steps, warmup),
        "MultiStage": lambda step: multi_stage(step, total_steps),
    }
    if name in factors:
        return LambdaLR(optimizer, factors[name])
    if name == "ReduceLROnPlateau":
        floor = [group["lr"] / 100 for group in optimizer.param_groups]
        return ReduceLROnPlateau(optimizer, mode, factor=0.5, patience=5, threshold=1e-3, min_lr=floor)
    if name == "Adaptive":
        return BoldDriver(optimizer, mode)
    if name == "Default":
        return None
    raise ValueError(f"unknown scheduler {name!r}")
