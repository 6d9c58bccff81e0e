"""An intensity that every pattern has on top of what the object scatters: estimated with the object.

Each epoch compares the measured intensity I with what waves and background give together, J, and takes
the step of Fisher scoring for Poisson counts, sum (I / J - 1) / sum (1 / J), summed over patterns and, by a
wide Gaussian, over pixels: dark pixels count most, and what is sharp on the detector is the object's.

Shape legend: b patterns of a minibatch, N x N pixels, zero frequency at index 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptycho_torch.reconstruction.waves import Amplitudes, Comparison

SMOOTH = 1 / 4
"""Width of the Gaussian that smooths the background, as a part of the pattern."""
START = 0.5
"""Part of the darkest tenth of the mean pattern that a background begins with."""
MOST = 2.0
"""The background changes by this factor per epoch at most."""
SAMPLE = 256
"""Patterns whose mean is looked at for the start."""


class Background:
    """The background (N, N) and what an epoch has collected so far."""

    def __init__(self, data: Amplitudes) -> None:
        count = len(data.scan)
        rows = torch.linspace(0, count - 1, min(count, SAMPLE)).long()
        good = data.good
        mean = torch.stack([data[part].square().sum(dim=0) for part in torch.split(rows, 32)]).sum(dim=0)
        seen = (mean / len(rows))[good > 0]
        dark = seen.quantile(0.1) if len(seen) else seen.new_zeros(())
        least = 1e-6 * seen.mean() if len(seen) else dark
        self.intensity = torch.full_like(good, float(torch.maximum(START * dark, least)))
        self.good = good
        n = good.shape[-1]
        frequency = torch.fft.fftfreq(n, device=good.device)
        width = SMOOTH * n
        axis = torch.exp(-2 * (torch.pi * width * frequency).square())
        self.kernel = axis[:, None] * axis
        self._begin()

    def _begin(self) -> None:
        self.missing = torch.zeros_like(self.good)
        self.weight = torch.zeros_like(self.good)

    def collect(self, seen: Comparison) -> None:
        """Take a minibatch into account."""
        model = seen.model + seen.floor
        weight = model.square().reciprocal()
        self.missing += ((seen.excess + seen.model).square() * weight - 1).sum(dim=0) * self.good
        self.weight += weight.sum(dim=0) * self.good

    def step(self) -> None:
        """Change the background by what the epoch has shown, and begin anew."""
        change = self._blurred(self.missing) / self._blurred(self.weight).clamp_min(1e-30)
        raised = torch.minimum(self.intensity + change, self.intensity * MOST)
        self.intensity = torch.maximum(raised, self.intensity / MOST)
        self._begin()

    def _blurred(self, image: Tensor) -> Tensor:
        blurred: Tensor = torch.fft.ifft2(torch.fft.fft2(image) * self.kernel).real
        return blurred
