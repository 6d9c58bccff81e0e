"""Modulus updates: steps that bring patches closer to the amplitude that was measured of them.

Shape legend: B samples, C patterns of a group, P incoherent probe modes, N x N pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ptycho_torch.physics.forward import (
    FLOOR,
    amplitude,
    exit_wave,
    exit_wave_adjoint,
    far_field,
    far_field_adjoint,
    intensity,
    over_modes,
)

_IMAGE = (-2, -1)
_AT_ONCE_ON_CPU = 16
"""Patterns worked on at once where a loop goes over the same ones again and again: they stay in the cache."""
_AT_ONCE_ON_GPU = 256
"""The same there: enough to keep it busy, in bounded memory."""


def modulus_update(
    patches: Tensor, probe: Tensor, measured: Tensor, good_pixels: Tensor | None = None, damping: float = 0.1
) -> Tensor:
    """Change of each patch that brings its far field to the measured amplitude, regularized where it is dark.

    The far field takes the measured modulus and keeps its phase; the change of the exit wave goes back to
    the object with the weight of the regularized ptychographic engine (rPIE; Maiden, Johnson and Li,
    Optica 4, 736 (2017), eq. 7), summed over modes: `P* dpsi / ((1 - damping) |P|^2 + damping max |P|^2)`.

    Args:
        patches: (B, C, N, N) complex.
        probe: (P, N, N) or (B, C, P, N, N) complex.
        measured: (B, C, N, N) amplitude in the units of the probe.
        good_pixels: (N, N) bool; a bad pixel keeps its modulus.
        damping: 0 divides by the probe, 1 is a plain gradient step.

    Returns:
        (B, C, N, N) complex change.
    """
    detector = far_field(exit_wave(patches, probe))
    excess = measured / amplitude(intensity(detector)) - 1
    if good_pixels is not None:
        excess = torch.where(good_pixels, excess, 0)
    back = exit_wave_adjoint(far_field_adjoint(detector * excess.unsqueeze(-3)), probe)
    illumination = intensity(probe)
    return back / ((1 - damping) * illumination + damping * illumination.amax(dim=_IMAGE, keepdim=True))


class ModulusUpdates:
    """Many modulus updates of the same patterns, in half the time of `modulus_update`.

    What does not change is computed once, the detector is kept in the order of the Fourier transform, and the
    derivative is written by hand. Arguments as `modulus_update`; nothing has a gradient but the patches.
    """

    @torch.no_grad()
    def __init__(
        self, probe: Tensor, measured: Tensor, good_pixels: Tensor | None = None, damping: float = 0.1
    ) -> None:
        # The transforms here are not scaled: their scale, N each way, is in `measured` and `back`.
        n = measured.shape[-1]
        self.floor = n**2 * FLOOR
        self.measured = torch.fft.ifftshift(measured, dim=_IMAGE).mul_(n)
        self.good = None if good_pixels is None else torch.fft.ifftshift(good_pixels, dim=_IMAGE)
        if self.good is not None and bool(self.good.all()):
            self.good = None
        self.probe = probe.expand(*measured.shape[:2], *probe.shape[-3:])
        illumination = intensity(self.probe)
        peak = illumination.amax(dim=_IMAGE, keepdim=True)
        damped = illumination.mul_(n**2 * (1 - damping)).add_(peak, alpha=n**2 * damping)
        self.back = self.probe.conj() * damped.reciprocal_().unsqueeze(-3)
        self.at_once = _AT_ONCE_ON_CPU if measured.device.type == "cpu" else _AT_ONCE_ON_GPU

    @torch.no_grad()
    def of_flat_object(self) -> Tensor:
        """Change (B, C, N, N) of patches that are 1 everywhere."""
        changes = []
        for probe, back, measured in self._parts(self.probe, self.back, self.measured):
            wave, _, _ = self._to_modulus(torch.fft.fft2(probe), measured)
            changes.append(over_modes(wave.mul_(back)))
        return torch.cat(changes)

    def _parts(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield so many rows of each tensor as stay in the cache."""
        return zip(*(torch.split(tensor, self.at_once) for tensor in tensors), strict=True)

    def __call__(self, patches: Tensor, count: int, step: float = 1.0, momentum: float = 0.0) -> Tensor:
        """Return patches (B, C, N, N) after `count` updates.

        Each one repeats `momentum` of the last change and adds `step * modulus_update(...)`: the heavy-ball
        method (Polyak, USSR Comput. Math. Math. Phys. 4, 1 (1964)).
        """
        if torch.is_grad_enabled() and patches.requires_grad:
            velocity: Tensor | None = None
            for _ in range(count):
                change: Tensor = _Change.apply(patches, self)  # type: ignore[no-untyped-call]
                velocity = step * change if velocity is None else momentum * velocity + step * change
                patches = patches + velocity
            return patches
        patches = patches.clone()
        for some, probe, back, measured in self._parts(patches, self.probe, self.back, self.measured):
            velocity = torch.zeros_like(some)
            for _ in range(count):
                wave, _, _ = self._to_modulus(torch.fft.fft2(exit_wave(some, probe)), measured)
                some += velocity.mul_(momentum).add_(over_modes(wave.mul_(back)), alpha=step)
        return patches

    def _to_modulus(self, detector: Tensor, measured: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the change of the exit waves (B, C, P, N, N), times N^2, that brings them to the modulus.

        With it, for each detector pixel, the relative excess of the measured amplitude, and 1 / amplitude.
        """
        inverse = intensity(detector).add_(self.floor).rsqrt_()
        excess = (measured * inverse).sub_(1)
        if self.good is not None:
            excess.mul_(self.good)
        return torch.fft.ifft2(detector * excess.unsqueeze(-3), norm="forward"), excess, inverse


class _Change(torch.autograd.Function):
    """The change by one whole modulus update, with its derivative in the patches."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, updates: ModulusUpdates) -> Tensor:
        detector = torch.fft.fft2(exit_wave(patches, updates.probe))
        wave, excess, inverse = updates._to_modulus(detector, updates.measured)
        ctx.save_for_backward(detector, excess, inverse)
        ctx.updates = updates
        return over_modes(wave.mul_(updates.back))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        detector, excess, inverse = ctx.saved_tensors
        wave = torch.fft.fft2(gradient.unsqueeze(-3) * ctx.updates.back.conj())
        # The excess falls as the wave grows: by measured / amplitude^3 times the part along the wave.
        fall = inverse.pow(3).mul_(ctx.updates.measured).mul_(over_modes((detector.conj() * wave).real))
        if ctx.updates.good is not None:
            fall.mul_(ctx.updates.good)
        wave.mul_(excess.unsqueeze(-3)).sub_(detector * fall.unsqueeze(-3))
        return exit_wave_adjoint(torch.fft.ifft2(wave, norm="forward"), ctx.updates.probe), None
