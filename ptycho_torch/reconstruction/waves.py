"""What one minibatch of a refinement needs: exit waves compared with measured amplitudes, and patches placed.

Shape legend: M patterns, b patterns of a minibatch, P probe modes, N x N pixels of a patch and of the
detector, H x W object canvas, n = N or N + 1 canvas pixels that a patch touches. The zero frequency of what
lies on the detector is at index 0, to spare the model a shift.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ptycho_torch.data.storage.patterns import at_once
from ptycho_torch.physics.forward import intensity

if TYPE_CHECKING:
    from ptycho_torch.data.scan import ScanData

CACHE_BYTES = 64 * 2**20
"""Measured amplitudes are kept in memory up to this size, and read again in every epoch beyond it."""


class Amplitudes:
    """Measured amplitudes on the device, zero frequency at index 0."""

    def __init__(self, scan: ScanData, device: torch.device) -> None:
        self.scan, self.device = scan, device
        self.good = torch.fft.ifftshift(torch.from_numpy(scan.good_pixels)).float().to(device)
        n = scan.n_pixels
        self.cache: Tensor | None = None
        if len(scan) * n * n * 4 <= CACHE_BYTES:
            self.cache = torch.empty(len(scan), n, n, device=device)
            for rows in torch.split(torch.arange(len(scan)), at_once(n)):
                self.cache[rows[0] : rows[-1] + 1] = self._read(rows)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return (b, N, N) float32."""
        return self._read(rows) if self.cache is None else self.cache.index_select(0, rows.to(self.device))

    def _read(self, rows: Tensor) -> Tensor:
        amplitude = torch.from_numpy(self.scan.amplitude(rows.numpy())).to(self.device)
        shifted: Tensor = torch.fft.ifftshift(amplitude, dim=(-2, -1))
        return shifted


BARE = 0.1
"""Counts that are added to the expected ones where they divide: few are expected, and some came."""
MOST = 8.0
"""Largest step of a wave, as a part of it, towards counts."""


class Comparison(NamedTuple):
    """Waves on the detector beside the measured amplitudes."""

    detector: Tensor
    """(b, P, N, N) complex."""
    model: Tensor
    """(b, N, N): the amplitude that the waves, and a background, give."""
    excess: Tensor
    """(b, N, N): measured less model amplitude, 0 at bad pixels."""
    floor: Tensor
    """The smallest amplitude to divide by."""
    unit: float | None = None
    """Intensity of one count, where the likelihood of the counts is followed; None for amplitudes."""

    @property
    def error(self) -> Tensor:
        """Sum of (|Psi| - A)^2 over the good pixels."""
        excess = self.excess.flatten()
        return torch.dot(excess, excess)

    @property
    def update(self) -> Tensor:
        """The change of each exit wave, complex (b, P, N, N), that brings it to what was measured.

        Minus half the gradient, in the sense of autograd, of the error with respect to the exit wave. For
        counts, minus a fourth of that of sum I - k log I: where many are expected, both are the same.
        """
        if self.unit is None:
            ratio = (self.model + self.floor).reciprocal_().mul_(self.excess)
        else:  # (k - I) / 2 I, with k - I as a product, which is 0 at bad pixels
            missing = self.excess * (self.model + self.excess / 2)
            ratio = (missing / (self.model.square() + BARE * self.unit)).clamp_(max=MOST)
        update: Tensor = torch.fft.ifft2(self.detector * ratio[:, None], norm="ortho")
        return update


def compare(
    patches: Tensor,
    probes: Tensor,
    amplitude: Tensor,
    good: Tensor,
    background: Tensor | None = None,
    unit: float | None = None,
) -> Comparison:
    """Propagate the exit waves of patches under probes and compare them with measured amplitudes.

    patches: complex (b, N, N). probes: complex (b or 1, P, N, N). amplitude: (b, N, N) with zero frequency
    at index 0. good: (N, N), 1 where the detector can be trusted and 0 elsewhere, likewise.
    background: (N, N) intensity that is added to that of the waves, likewise.
    unit: intensity of one count, to follow the likelihood of counts.
    """
    detector = torch.fft.fft2(patches[:, None] * probes, norm="ortho")
    if background is None and detector.shape[1] == 1:
        model = _modulus(detector[:, 0])
    else:
        counts = intensity(detector)
        model = (counts if background is None else counts + background).sqrt_()
    floor = torch.finfo(model.dtype).eps * model.amax()
    return Comparison(detector, model, (amplitude - model).mul_(good), floor, unit)


def _modulus(wave: Tensor) -> Tensor:
    """Return |wave|, on the CPU by numpy, which takes a fifth of the time."""
    if wave.device.type != "cpu" or wave.requires_grad:
        return wave.abs()
    return torch.from_numpy(np.abs(wave.numpy()))


def cut(canvas: Tensor, corners: Tensor, side: int) -> Tensor:
    """Return the blocks (b, side, side) of a contiguous canvas (H, W) that start at `corners` (b, 2)."""
    if canvas.requires_grad:  # the derivative of overlapping windows takes hundreds of times as long
        along = torch.arange(side, device=canvas.device)
        y, x = corners.to(canvas.device).unsqueeze(-1).add(along).unbind(dim=1)
        return canvas[y[:, :, None], x[:, None, :]]
    if canvas.device.type == "cpu":  # numpy slices cost less than an index
        source, blocks = canvas.numpy(), canvas.new_empty(len(corners), side, side)
        for block, (y, x) in zip(blocks.numpy(), corners.tolist(), strict=True):
            block[:] = source[y : y + side, x : x + side]
        return blocks
    height, width = canvas.shape
    windows = canvas.as_strided((height - side + 1, width - side + 1, side, side), (width, 1, width, 1))
    at = corners.to(canvas.device)
    return windows[at[:, 0], at[:, 1]]


def add(canvas: Tensor, corners: list[list[int]], patches: Tensor) -> None:
    """Add patches (b, n, n) at whole-pixel corners, one after the other: the same sum every time."""
    side = patches.shape[-1]
    target: Any = canvas.numpy() if canvas.device.type == "cpu" else canvas  # numpy slices cost less
    source: Any = patches.numpy() if canvas.device.type == "cpu" else patches
    for (y, x), patch in zip(corners, source, strict=True):
        target[y : y + side, x : x + side] += patch


def lerp(block: Tensor, fraction: Tensor) -> Tensor:
    """Interpolate blocks (b, N + 1, N + 1) linearly at `fraction` (b, 2) of a pixel -> (b, N, N)."""
    y, x = _weights(fraction, block)
    pairs = torch.view_as_real(block).flatten(2)  # real parts and imaginary parts in turn: one pixel is two
    rows = torch.lerp(pairs[:, :-1], pairs[:, 1:], y)
    return _complex(torch.lerp(rows[:, :, :-2], rows[:, :, 2:], x))


def lerp_slopes(block: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivatives of `lerp` with respect to both parts of `fraction`, each (b, N, N)."""
    y, x = _weights(fraction, block)
    down, right = block[:, 1:] - block[:, :-1], block[:, :, 1:] - block[:, :, :-1]
    return (
        down[:, :, :-1] + x * (down[:, :, 1:] - down[:, :, :-1]),
        right[:, :-1] + y * (right[:, 1:] - right[:, :-1]),
    )


def lerp_adjoint(patches: Tensor, fraction: Tensor) -> Tensor:
    """Spread patches (b, N, N) over the pixels they were interpolated from -> (b, N + 1, N + 1)."""
    y, x = _weights(fraction, patches)
    pairs = F.pad(torch.view_as_real(patches).flatten(2), (2, 2, 1, 1))  # a pixel of zeros on every side
    rows = torch.lerp(pairs[:, 1:], pairs[:, :-1], y)
    return _complex(torch.lerp(rows[:, :, 2:], rows[:, :, :-2], x))


def _weights(fraction: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    parts = fraction.to(image.real.dtype)
    return parts[:, 0, None, None], parts[:, 1, None, None]


def _complex(pairs: Tensor) -> Tensor:
    return torch.view_as_complex(pairs.contiguous().unflatten(2, (-1, 2)))  # type: ignore[no-untyped-call]
