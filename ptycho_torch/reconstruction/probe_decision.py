"""Does the given probe explain the patterns? Asked early in a refinement, at hardly any cost.

The yardstick needs neither object nor probe: the loss of the mean pattern, if every pattern was like it.
Counting noise gives a loss, too, where the file holds counts. After a few epochs with the probe fixed, the
part of the misfit between the two that is left tells:

    unexplained = (loss - noise) / max(loss of the mean pattern - noise, noise)

At low dose the mean pattern is no worse than noise, and only a loss well above both speaks against the probe.

Shapes: M patterns of N x N pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ptycho_torch.reconstruction.waves import Amplitudes
from ptycho_torch.reconstruction.yardsticks import noise_of_amplitude

UNEXPLAINED = 0.4
"""With more than this left, the probe is refined."""
SAMPLE = 128
"""Patterns that the yardstick is taken from, spread over the scan."""
EPOCHS = 3
STEPS = 48
"""Epochs, and minibatches, with the probe fixed before it is decided; half of the run, if that is less."""
LEAST = 2
"""A run of which half is fewer epochs keeps the probe."""


@dataclass(frozen=True)
class ProbeDecision:
    """Whether the probe was refined because the given one explains the patterns poorly, and the evidence."""

    refined: bool
    epoch: int
    """Epochs with the given probe before it was decided."""
    loss: float
    mean_pattern_loss: float
    noise_loss: float

    @property
    def unexplained(self) -> float:
        """Part of the mean pattern's misfit that is left, noise apart."""
        yardstick = max(self.mean_pattern_loss - self.noise_loss, self.noise_loss, 1e-12)
        return max(self.loss - self.noise_loss, 0) / yardstick

    def line(self) -> str:
        """One line for the user."""
        what = "is refined: the given one explains the patterns poorly" if self.refined else "is kept"
        return (
            f"the probe {what} (loss {self.loss:.4f} after {self.epoch} epochs with it; one mean pattern for "
            f"all gives {self.mean_pattern_loss:.4f}, noise alone {self.noise_loss:.4f})"
        )


def epoch_of_decision(epochs: int, steps_per_epoch: int) -> int | None:
    """Return after which epoch of a run to decide; None keeps the probe."""
    enough = min(max(EPOCHS, -(-STEPS // steps_per_epoch)), epochs // 2)
    return enough if enough >= LEAST else None


def decide(data: Amplitudes, loss: float, epoch: int) -> ProbeDecision:
    """Judge the loss after some epochs with the given probe."""
    count = len(data.scan)
    rows = torch.linspace(0, count - 1, min(count, SAMPLE)).long()
    power = torch.zeros((), device=data.device)
    mean, counts = torch.zeros_like(data.good), torch.zeros_like(data.good)
    for part in torch.split(rows, 32):
        amplitude = data[part] * data.good
        power = power + amplitude.square().sum()
        mean, counts = mean + amplitude.sum(dim=0), counts + amplitude.square().sum(dim=0)
    # sum over patterns of (a - mean)^2 is sum a^2 - M mean^2
    missed = float(power - mean.square().sum() / len(rows)) / float(power)
    noise = 0.0
    if data.scan.holds_counts:
        noise = float((noise_of_amplitude(counts / len(rows)) * data.good).sum()) * len(rows) / float(power)
    judged = ProbeDecision(False, epoch, loss, missed, min(noise, loss))
    return ProbeDecision(judged.unexplained > UNEXPLAINED, epoch, loss, missed, judged.noise_loss)
