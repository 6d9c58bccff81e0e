"""Correct scan positions: the step that the loss asks of each pattern, split into a smooth part and the rest.

Each epoch of a refinement gives, for every pattern, the derivative g (2,) of half the amplitude loss
sum (|Psi| - A)^2 with respect to its position, with the sign of descent, and its curvature H (2, 2). The
Gauss-Newton step H^-1 g is bounded and damped where a pattern says little. The correction of all patterns is
then split in two: a smooth part - a linear map of the positions, that is scale, rotation and shear, by least
squares - and the rest, which belongs to each pattern alone and is bounded. The mean is taken out: moving all
positions changes nothing.

Shape legend: M patterns, b patterns of a minibatch, P probe modes, N x N pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.reconstruction.waves import Comparison

LARGEST_STEP_PX = 1.0
"""How far a position moves in one epoch at most."""
DAMPING = 0.05
"""Curvature that is added to that of each pattern, as a part of the median pattern's."""
SMOOTH_FACTOR = 3.0
"""The smooth part of a step is taken so many times."""
MOMENTUM = 0.5
"""Part of the last step that is repeated."""


def probe_slopes(spectrum: Tensor) -> list[Tensor]:
    """Return the spectra of a probe's derivatives with respect to its shift along y and x.

    spectrum: transform of the shifted probes, complex (..., N, N). The Nyquist frequency has no derivative.
    """
    n = spectrum.shape[-1]
    frequency = torch.fft.fftfreq(n, device=spectrum.device, dtype=spectrum.real.dtype)
    if n % 2 == 0:
        frequency[n // 2] = 0
    factor = -2j * math.pi * frequency
    return [spectrum * factor[:, None], spectrum * factor]


def descent(waves: Sequence[Tensor], update: Tensor) -> Tensor:
    """Return g, (b, 2): what a small move of each pattern takes off half its amplitude loss.

    waves: derivatives of the exit waves along y and x, complex (b, P, N, N). update: see `Comparison`.
    """
    return torch.stack(
        [(wave.real * update.real + wave.imag * update.imag).sum(dim=(1, 2, 3)) for wave in waves], dim=1
    )


def curvature(waves: Sequence[Tensor], seen: Comparison, good: Tensor) -> Tensor:
    """Return H, (b, 2, 2): that of half the amplitude loss, without second derivatives of the model."""
    slopes = []
    for wave in waves:
        change = torch.fft.fft2(wave, norm="ortho")
        slope = (seen.detector.real * change.real + seen.detector.imag * change.imag).sum(dim=1)
        slopes.append(good * slope / (seen.model + seen.floor))
    (y, x) = slopes
    cross = (y * x).sum(dim=(1, 2))
    rows = [(y * y).sum(dim=(1, 2)), cross, cross, (x * x).sum(dim=(1, 2))]
    return torch.stack(rows, dim=1).reshape(-1, 2, 2)


class PositionCorrection:
    """The correction of every position, and how it grows from epoch to epoch."""

    def __init__(self, positions_px: NDArray[np.float64], rows: NDArray[np.int64], limit_px: float) -> None:
        """Start from the given positions (M, 2); `rows` are refined, the others follow the smooth part."""
        self.given, self.rows, self.limit_px = positions_px, rows, limit_px
        self.shift_px = np.zeros_like(positions_px)
        self.velocity = np.zeros_like(positions_px)
        self.linear = np.zeros((2, 2))
        self.at_limit = np.zeros(len(rows), dtype=bool)
        self.descent = torch.zeros(len(positions_px), 2)
        self.curvature = torch.zeros(len(positions_px), 2, 2)

    @property
    def positions_px(self) -> NDArray[np.float64]:
        """(M, 2), corrected."""
        return self.given + self.shift_px

    def step(self, part: float) -> None:
        """Move by `part` of the step that the collected derivatives ask for."""
        rows = self.rows
        g, h = self.descent[rows].double().numpy(), self.curvature[rows].double().numpy()
        weight = np.trace(h, axis1=1, axis2=2) / 2
        ridge = DAMPING * np.median(weight) + 1e-30
        asked = np.linalg.solve(h + ridge * np.eye(2), g[:, :, None])[:, :, 0]
        asked *= np.minimum(1, LARGEST_STEP_PX / np.maximum(np.linalg.norm(asked, axis=1), 1e-12))[:, None]
        self.velocity[rows] = MOMENTUM * self.velocity[rows] + part * asked
        # A pattern at its limit is wrong for a reason of its own, and takes no part in what is common.
        weight = np.where(self.at_limit, 0, weight) + ridge
        # The object follows a common move of the patterns, so that each epoch shows little of it.
        together = self._smooth(self.velocity[rows], weight)[rows]
        moved = self.shift_px[rows] + self.velocity[rows] + (SMOOTH_FACTOR - 1) * together
        smooth = self._smooth(moved, weight)
        alone = moved - smooth[rows]
        far = self.limit_px / np.maximum(np.linalg.norm(alone, axis=1), 1e-12)
        alone *= np.minimum(1, far)[:, None]
        self.at_limit = far < 1
        self.velocity[rows[self.at_limit]] = 0
        self.shift_px = smooth
        self.shift_px[rows] += alone
        self.shift_px -= np.average(self.shift_px[rows], axis=0, weights=weight)

    def _smooth(self, shift_px: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the linear map of the positions that fits the shifts of the refined rows, for all (M, 2)."""
        at = self.given - np.average(self.given[self.rows], axis=0, weights=weight)
        centered = shift_px - np.average(shift_px, axis=0, weights=weight)
        root = np.sqrt(weight / weight.mean())[:, None]
        self.linear = np.linalg.lstsq(root * at[self.rows], root * centered, rcond=None)[0].T
        return np.asarray(at @ self.linear.T)
