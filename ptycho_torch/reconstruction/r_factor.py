"""How well an object explains the patterns it was reconstructed from: the R factor, without a true object.

    R = sum |a - s A| / sum a

over the good pixels of a sample of patterns, with the measured amplitude a, the amplitude A that object and
probe predict, and the one scale s that fits best: the residual factor of crystallography. Maiden and
Rodenburg (Ultramicroscopy 109, 1256 (2009)) use its squared form, the Fourier error. Counting noise alone
gives R too, the more the weaker the patterns; where the file holds counts, that part is reported.

Shapes: M patterns of N x N, P probe modes, object (H, W).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ptycho_torch.data.scan import ScanData
from ptycho_torch.physics import forward as physics

SAMPLE = 128
"""Patterns that are compared, spread evenly over the scan."""
POOR = 0.3
"""Part of a flat object's misfit, noise apart, above which an object explains its patterns poorly."""


@dataclass(frozen=True)
class RFactor:
    """R factor of an object, and what to hold it against."""

    r_factor: float
    flat_r_factor: float
    """R of a flat object under the same probe: what knowing nothing gives."""
    noise_r_factor: float | None
    """R that counting noise alone gives; None where the file does not hold counts."""
    patterns: int
    """Patterns that were compared."""

    @property
    def unexplained(self) -> float:
        """Part of a flat object's misfit that is left, noise apart: 0 if perfect, 1 if no better."""
        floor = self.noise_r_factor or 0.0
        return max(self.r_factor - floor, 0.0) / max(self.flat_r_factor - floor, 1e-12)

    @property
    def poor(self) -> bool:
        """True where the object explains its patterns poorly."""
        return self.unexplained > POOR

    def line(self) -> str:
        """One line for the user."""
        known = [f"a flat object gives {self.flat_r_factor:.3f}"]
        if self.noise_r_factor is not None:
            known.append(f"counting noise alone {self.noise_r_factor:.3f}")
        return f"R factor {self.r_factor:.3f} over {self.patterns} patterns ({', '.join(known)})"


@torch.no_grad()
def r_factor(
    scan: ScanData,
    obj: NDArray[np.complex64],
    probe: ArrayLike | Tensor | None = None,
    background: NDArray[np.float32] | None = None,
) -> RFactor | None:
    """Compare an object (H, W) with a sample of a scan's patterns; None where nothing can be compared.

    Patterns whose patch leaves the canvas take no part. `probe` (P, N, N) is the scan's unless given;
    `background` (N, N) is an intensity under every pattern.
    """
    modes = scan.probe if probe is None else probe
    if modes is None:
        return None
    n = scan.n_pixels
    origin = np.round(scan.positions_px - (n - 1) / 2)
    inside = np.flatnonzero(((origin >= 0) & (origin + n <= np.asarray(obj.shape))).all(axis=1))
    if not len(inside):
        return None
    rows = inside[np.unique(np.linspace(0, len(inside) - 1, num=min(SAMPLE, len(inside))).astype(int))]
    good = torch.from_numpy(scan.good_pixels)
    measured = torch.from_numpy(scan.amplitude(rows))[:, good].double()
    fitted = []
    for image in (torch.from_numpy(obj), torch.ones(obj.shape, dtype=torch.complex64)):
        predicted = _predicted(image, torch.as_tensor(modes).detach().cpu(), scan.positions_px[rows])
        if background is not None:
            predicted = (predicted.square() + torch.from_numpy(background)).sqrt()
        amplitude = predicted[:, good].double()
        energy = amplitude.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
        fitted.append(amplitude * (amplitude * measured).sum() / energy)
    if not all(float(amplitude.sum()) for amplitude in (measured, *fitted)):
        return None
    own, flat = (float((measured - amplitude).abs().sum() / measured.sum()) for amplitude in fitted)
    noise = None
    if scan.holds_counts:  # one sample of Poisson noise around the object's own patterns
        noisy = torch.poisson(fitted[0].square(), generator=torch.Generator().manual_seed(0)).sqrt()
        noise = float((noisy - fitted[0]).abs().sum() / noisy.sum().clamp_min(1e-30))
    return RFactor(own, flat, noise, len(rows))


def _predicted(obj: Tensor, probe: Tensor, positions_px: NDArray[np.float64]) -> Tensor:
    """Amplitude (M, N, N) in the probe's units."""
    n = probe.shape[-1]
    grid, rest = physics.split_position(torch.from_numpy(positions_px), n)
    step = torch.arange(n)
    corners = torch.round(grid - (n - 1) / 2).long()
    rows, columns = (corners[:, axis, None] + step for axis in (0, 1))
    patches = obj[rows[:, :, None], columns[:, None, :]].to(probe.dtype)
    shifted = physics.shift_subpixel(probe, rest.float().unsqueeze(1))
    return physics.forward_intensity(patches.unsqueeze(1), shifted.unsqueeze(1))[:, 0].sqrt()
