"""How well an object explains the patterns it was made from: the R factor, which needs no true object.

    R = sum |a - s A| / sum a

over the good pixels of a sample of patterns, with the measured amplitude a, the amplitude A that object and
probe predict, and the one scale s that fits best: the residual factor of crystallography. Maiden and
Rodenburg (Ultramicroscopy 109, 1256 (2009)) use its squared form, the Fourier error. Counting noise alone
gives R too, the more the weaker the patterns; where the file holds counts, that part is told.

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
class Consistency:
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
def consistency(
    scan: ScanData, obj: NDArray[np.complex64], probe: ArrayLike | Tensor | None = None
) -> Consistency | None:
    """Compare an object (H, W) with a sample of a scan's patterns; None where nothing can be compared.

    Patterns whose patch leaves the canvas take no part. `probe` (P, N, N) is the scan's unless given.
    """
    modes = scan.probe if probe is None else probe
    if modes is None:
        return None
    rows = _inside(scan, obj.shape)
    if not len(rows):
        return None
    good = torch.from_numpy(scan.good_pixels)
    measured = torch.from_numpy(scan.amplitude(rows))[:, good].double()
    light = torch.as_tensor(modes).detach().cpu()
    object_, flat = (
        _fitted(_predicted(image, light, scan.positions_px[rows])[:, good].double(), measured)
        for image in (torch.from_numpy(obj), torch.ones(obj.shape, dtype=torch.complex64))
    )
    if not (float(measured.sum()) and float(object_.sum()) and float(flat.sum())):
        return None
    noise = _noise(object_) if scan.holds_counts else None
    return Consistency(_misfit(object_, measured), _misfit(flat, measured), noise, len(rows))


def _fitted(predicted: Tensor, measured: Tensor) -> Tensor:
    """Predicted amplitudes times the one scale that fits best."""
    energy = predicted.square().sum()
    return predicted * (predicted * measured).sum() / energy.clamp_min(torch.finfo(energy.dtype).tiny)


def _misfit(predicted: Tensor, measured: Tensor) -> float:
    return float((measured - predicted).abs().sum() / measured.sum())


def _inside(scan: ScanData, canvas: tuple[int, ...]) -> NDArray[np.intp]:
    n = scan.n_pixels
    origin = np.round(scan.positions_px - (n - 1) / 2)
    fits = ((origin >= 0) & (origin + n <= np.asarray(canvas))).all(axis=1)
    rows = np.flatnonzero(fits)
    chosen = np.linspace(0, max(len(rows) - 1, 0), num=min(SAMPLE, len(rows)))
    sample: NDArray[np.intp] = rows[np.unique(chosen.astype(int))]
    return sample


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


def _noise(amplitude: Tensor) -> float:
    """R that Poisson noise alone gives patterns of this amplitude (in root counts), drawn once."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.poisson(amplitude.square(), generator=generator).sqrt()
    return float((drawn - amplitude).abs().sum() / drawn.sum().clamp_min(1e-30))
