"""What the patterns leave open in a probe: where it is centered, how strong it is, how its modes are mixed.

Moving probe and object together, or making one stronger and the other weaker, changes no pattern. Left
alone, a probe that is refined uses that freedom: it drifts through its window and comes in again at the other
side. Here it is brought back, with the object, so that the patterns they give stay the same.

Shape legend: P incoherent modes, N x N pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

OFF_CENTER = 1 / 8
"""A given probe may be off the center of its window by this part of it; one farther off is brought in."""
RIM = 1 / 16
"""Width of the rim of a window, as a part of it."""
RIM_POWER = 0.02
"""A refined probe has at most this part of its power in the rim, or as much as the given one had."""
SEED_POWER = 0.03
"""Power that each further mode begins with, as a part of the first one's."""


def center_px(probe: Tensor) -> Tensor:
    """Return where the intensity of a probe (P, N, N) is centered, (2,) [y, x] from the window's center.

    The mean direction on the circle that the window's edges close to: a probe that wraps has a center, too.
    """
    illumination = probe.abs().square().sum(dim=0).double()
    n = illumination.shape[-1]
    angle = 2 * math.pi * (torch.arange(n, device=probe.device, dtype=torch.float64) - (n - 1) / 2) / n
    circle = torch.polar(torch.ones_like(angle), angle)
    turned = [(illumination.sum(dim=1 - axis) * circle).sum().angle() for axis in (0, 1)]
    return torch.stack(turned) * (n / (2 * math.pi))


def rim_of(probe: Tensor) -> Tensor:
    """Return where the rim of a probe's window (N, N) is, bool."""
    n = probe.shape[-1]
    index = torch.arange(n, device=probe.device)
    inner = torch.minimum(index, n - 1 - index) >= RIM * n
    return ~(inner[:, None] & inner)


def rim_part(probe: Tensor, rim: Tensor) -> float:
    """Return the part of the power of a probe (P, N, N) that is in the rim (N, N)."""
    illumination = probe.abs().square().sum(dim=0)
    return float(illumination[rim].sum() / illumination.sum())


def roll(image: Tensor, move: tuple[int, int]) -> Tensor:
    """Return an image (..., H, W) moved by whole pixels [y, x]; what comes in repeats the edge."""
    for dim, by in zip((-2, -1), move, strict=True):
        if by:
            size = image.shape[dim]
            at = (torch.arange(size, device=image.device) - by).clamp(0, size - 1)
            image = image.index_select(dim, at)
    return image


def mode_powers(probe: Tensor) -> Tensor:
    """Return the part of the power that each mode of a probe (P, N, N) has, (P,)."""
    power = probe.abs().square().sum(dim=(-2, -1)).double()
    return power / power.sum()


def orthogonal_modes(probe: Tensor) -> Tensor:
    """Return the unitary matrix (P, P) that makes the modes of a probe (P, N, N) orthogonal, strongest first.

    `torch.tensordot(matrix, probe, dims=1)` gives the same patterns: modes add their intensities. Each new
    mode has the phase of that old one that it is most like, so that it goes on from there.
    """
    flat = probe.flatten(1).to(torch.complex128)
    _, vectors = torch.linalg.eigh(flat @ flat.mH)
    mixing = vectors.mH.flip(0)
    largest = mixing.gather(1, mixing.abs().argmax(dim=1, keepdim=True))
    unitary: Tensor = (mixing * largest.conj() / largest.abs()).to(probe.dtype)
    return unitary


def with_modes(probe: Tensor, count: int) -> Tensor:
    """Return a probe (P, N, N) with further modes up to `count`, orthogonal and weak; at least P modes.

    The power stays. Further modes begin as the slopes of the first one, along y, x, and then higher
    derivatives: those are the modes of a source that is not quite a point.
    """
    given = len(probe)
    if given >= count:
        return probe
    first, n = probe[0], probe.shape[-1]
    frequency = torch.fft.fftfreq(n, device=probe.device, dtype=probe.real.dtype)
    spectrum = torch.fft.fft2(first)
    orders = sorted(
        ((i, j) for i in range(count) for j in range(count) if i + j), key=lambda order: (sum(order), order)
    )
    modes = [*probe.flatten(1)]
    for i, j in orders[: count - given]:
        mode = torch.fft.ifft2(spectrum * frequency[:, None] ** i * frequency**j).flatten()
        for other in modes:
            mode = mode - other * torch.vdot(other, mode) / torch.vdot(other, other)
        modes.append(mode * (SEED_POWER**0.5 * first.norm() / mode.norm()))
    stack = torch.stack(modes).reshape(count, n, n)
    scaled: Tensor = stack * (probe.norm() / stack.norm())
    return scaled
