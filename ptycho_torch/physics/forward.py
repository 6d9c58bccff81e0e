"""The forward model of ptychography: pure functions from object patches to measured intensity.

Shape legend: B samples, C patterns of a group, P incoherent probe modes, N x N pixels of a patch and of the
detector, S x S pixels of a group's common canvas. Everything complex is complex64 or complex128.

    canvas, coverage = merge_patches(patches, offsets_px, weights)       -> (B, S, S)
    patches          = extract_patches(canvas, offsets_px, N)            -> (B, C, N, N)
    waves            = exit_wave(patches, shift_subpixel(probe, shift))  -> (B, C, P, N, N)
    counts           = intensity(far_field(waves)) * scale**2            -> (B, C, N, N)

Patches are placed by separable interpolation matrices and shifted by Fourier ramps: both are matrix products,
so forward and backward pass repeat bit for bit on CPU and GPU (scatter and grid sampling do not on a GPU).
Conventions and references: specs/forward_model.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_IMAGE = (-2, -1)
FLOOR = 1e-8


def far_field(exit_wave: Tensor) -> Tensor:
    """Propagate exit waves to the detector by the unitary Fourier transform (Fraunhofer limit).

    Args:
        exit_wave: (..., N, N) complex.

    Returns:
        (..., N, N) complex, zero frequency at index N // 2; the energy is that of the exit wave (Parseval).

    Examples:
        >>> import torch
        >>> from ptycho_torch.physics.forward import far_field
        >>> detector = far_field(torch.ones(1, 4, 4, dtype=torch.complex64))
        >>> detector[0, 2].abs().tolist()  # a flat wave arrives at zero frequency
        [0.0, 0.0, 4.0, 0.0]
    """
    centered: Tensor = torch.fft.fftshift(torch.fft.fft2(exit_wave, norm="ortho"), dim=_IMAGE)
    return centered


def far_field_adjoint(detector_wave: Tensor) -> Tensor:
    """Propagate (..., N, N) detector waves back; adjoint and inverse of `far_field`."""
    exit_wave: Tensor = torch.fft.ifft2(torch.fft.ifftshift(detector_wave, dim=_IMAGE), norm="ortho")
    return exit_wave


def exit_wave(patches: Tensor, probe: Tensor) -> Tensor:
    """Multiply each object patch with each probe mode (thin-object approximation).

    Args:
        patches: (B, C, N, N) complex.
        probe: (P, N, N), or (B, C, P, N, N) when each pattern has its own (sub-pixel shifted) probe.

    Returns:
        (B, C, P, N, N) complex.
    """
    return patches.unsqueeze(-3) * probe


def exit_wave_adjoint(waves: Tensor, probe: Tensor) -> Tensor:
    """Adjoint of `exit_wave` in the patches: (B, C, P, N, N) -> (B, C, N, N)."""
    return over_modes(waves * probe.conj())


def over_modes(values: Tensor) -> Tensor:
    """Sum (..., P, N, N) over the modes; a single one is returned as it is, without a copy."""
    return values.squeeze(-3) if values.shape[-3] == 1 else values.sum(dim=-3)


def intensity(detector_wave: Tensor) -> Tensor:
    """Add the modes' intensities: incoherent modes never interfere. (..., P, N, N) -> (..., N, N) real."""
    if torch.is_grad_enabled() and detector_wave.requires_grad:
        return over_modes(detector_wave.real.square() + detector_wave.imag.square())
    squares = torch.view_as_real(detector_wave.resolve_conj()).square()  # one pass over memory: half the time
    return over_modes(squares[..., 0] + squares[..., 1])


def amplitude(counts: Tensor, floor: float = FLOOR) -> Tensor:
    """Square root of an intensity; `floor` keeps the gradient finite where a pixel is dark."""
    return (counts + floor).sqrt()


def forward_intensity(patches: Tensor, probe: Tensor) -> Tensor:
    """Intensity that patches give under a probe: `intensity(far_field(exit_wave(patches, probe)))`, faster.

    Args:
        patches: (B, C, N, N) complex.
        probe: (P, N, N) or (B, C, P, N, N) complex.

    Returns:
        (B, C, N, N) real, in the probe's units; it can be differentiated once.
    """
    counts: Tensor = _ForwardIntensity.apply(patches, probe)  # type: ignore[no-untyped-call]
    return counts


class _ForwardIntensity(torch.autograd.Function):
    """The forward model and its derivative in as few passes as there are; transforms are not scaled."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, probe: Tensor) -> Tensor:
        waves = torch.fft.fft2(exit_wave(patches, probe))
        ctx.save_for_backward(patches, probe, waves)
        counts: Tensor = torch.fft.fftshift(intensity(waves), dim=_IMAGE)
        return counts.div_(waves.shape[-2] * waves.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        patches, probe, waves = ctx.saved_tensors
        weight = torch.fft.ifftshift(gradient, dim=_IMAGE) * (2 / (waves.shape[-2] * waves.shape[-1]))
        back = torch.fft.ifft2(waves * weight.unsqueeze(-3), norm="forward")
        of_patches, of_probe = ctx.needs_input_grad
        return (
            exit_wave_adjoint(back, probe) if of_patches else None,
            (back * patches.conj().unsqueeze(-3)).sum_to_size(probe.shape) if of_probe else None,
        )


def from_polar(size: Tensor, phase: Tensor) -> Tensor:
    """Complex numbers from their amplitude and phase in radians: `torch.polar`, in half the time."""
    values: Tensor = _FromPolar.apply(size, phase)  # type: ignore[no-untyped-call]
    return values


class _FromPolar(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, size: Tensor, phase: Tensor) -> Tensor:
        cosine, sine = phase.cos(), phase.sin()
        ctx.save_for_backward(size, cosine, sine)
        return torch.complex(size * cosine, size * sine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        size, cosine, sine = ctx.saved_tensors
        along = gradient.real * cosine + gradient.imag * sine
        across = gradient.imag * cosine - gradient.real * sine
        return along, across * size


def shift_subpixel(image: Tensor, shift_px: Tensor) -> Tensor:
    """Shift images by the Fourier shift theorem; exact for periodic band-limited images.

    Args:
        image: (..., N, N) complex.
        shift_px: (..., 2) as [y, x] in pixels; a positive shift moves content to higher indices. Its leading
            dimensions broadcast with those of the image.

    Returns:
        (..., N, N) complex.
    """
    ramp = fourier_ramp(shift_px, image.shape[-2:], image.real.dtype)
    shifted: Tensor = torch.fft.ifft2(torch.fft.fft2(image) * ramp)
    return shifted


def fourier_ramp(shift_px: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Phase ramp exp(-2 pi i f.s) that shifts an image of `shape` by `shift_px` (..., 2): (..., H, W).

    The row and column of the Nyquist frequency take the real part, so that a real image stays real.
    """
    axes = []
    for axis, size in enumerate(shape):
        frequency = torch.fft.fftfreq(size, dtype=dtype, device=shift_px.device)
        angle = -2 * math.pi * frequency * shift_px[..., axis, None].to(dtype)
        factor = torch.polar(torch.ones_like(angle), angle)
        if size % 2 == 0:
            nyquist = (torch.arange(size, device=shift_px.device) == size // 2).expand_as(angle)
            factor = torch.where(nyquist, factor.real.to(factor.dtype), factor)
        axes.append(factor)
    return axes[0].unsqueeze(-1) * axes[1].unsqueeze(-2)


def canvas_size(offsets_px: Tensor, n: int) -> int:
    """Side S of the smallest canvas that holds every patch of side n at its offset, with a pixel to spare."""
    reach = math.ceil(float(offsets_px.detach().abs().max())) if offsets_px.numel() else 0
    return n + 2 * (reach + 1)


def placement_matrices(offsets_px: Tensor, n: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Linear interpolation from a patch to a canvas, one matrix per axis: two of (B, C, S, N).

    Patch pixel k lies at canvas index (S - N)/2 + offset + k and is shared between the two nearest canvas
    pixels (tent kernel); whole-pixel offsets copy exactly.
    """
    canvas_index = torch.arange(size, device=offsets_px.device, dtype=dtype).unsqueeze(-1)
    patch_index = torch.arange(n, device=offsets_px.device, dtype=dtype)
    origin = (size - n) / 2 + offsets_px.to(dtype)
    distance = canvas_index - patch_index - origin[..., None, None]  # -> (B, C, 2, S, N)
    tent = (1 - distance.abs()).clamp_min(0)
    return tent[..., 0, :, :], tent[..., 1, :, :]


def place_patches(patches: Tensor, offsets_px: Tensor, size: int) -> Tensor:
    """Add the patches of each group onto one canvas.

    Args:
        patches: (B, C, N, N) real or complex.
        offsets_px: (B, C, 2) [y, x] of each patch's center from the canvas center, sub-pixel.
        size: side S of the canvas; parts of patches outside are cut off (see `canvas_size`).

    Returns:
        (B, S, S) sum of the placed patches.
    """
    rows, columns = _matrices_like(patches, offsets_px, patches.shape[-1], size)
    return torch.matmul(torch.matmul(rows, patches), columns.mT).sum(dim=1)


def extract_patches(canvas: Tensor, offsets_px: Tensor, n: int) -> Tensor:
    """Cut patches of side n out of each canvas at sub-pixel offsets; adjoint of `place_patches`.

    Args:
        canvas: (B, S, S) real or complex.
        offsets_px: (B, C, 2) [y, x] of each patch's center from the canvas center.

    Returns:
        (B, C, n, n).
    """
    rows, columns = _matrices_like(canvas, offsets_px, n, canvas.shape[-1])
    return torch.matmul(torch.matmul(rows.mT, canvas.unsqueeze(1)), columns)


def _matrices_like(image: Tensor, offsets_px: Tensor, n: int, size: int) -> tuple[Tensor, Tensor]:
    real = image.real.dtype if image.is_complex() else image.dtype
    rows, columns = placement_matrices(offsets_px, n, size, real)
    return rows.to(image.dtype), columns.to(image.dtype)


def merge_patches(
    patches: Tensor, offsets_px: Tensor, weights: Tensor | None = None, size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Average the overlapping patches of each group on a common canvas: the real-space constraint.

    Args:
        patches: (B, C, N, N) complex.
        offsets_px: (B, C, 2) [y, x] of each patch's center from the canvas center.
        weights: (N, N) or (B, C, N, N) non-negative trust in each pixel, such as the probe's intensity;
            none trusts all alike.
        size: side S of the canvas; none takes the smallest that holds all patches.

    Returns:
        canvas (B, S, S) complex, zero where nothing was placed; coverage (B, S, S), the sum of weights.
    """
    n = patches.shape[-1]
    size = size or canvas_size(offsets_px, n)
    trust = torch.ones_like(patches.real) if weights is None else weights.expand(patches.shape)
    coverage = place_patches(trust, offsets_px, size)
    total = place_patches(patches * trust, offsets_px, size)
    tiny = torch.finfo(coverage.dtype).tiny
    return total / coverage.clamp_min(tiny), coverage


def overlap_constraint(patches: Tensor, offsets_px: Tensor, weights: Tensor | None = None) -> Tensor:
    """Replace each patch (B, C, N, N) by its part of the group's merged object."""
    canvas, _ = merge_patches(patches, offsets_px, weights)
    return extract_patches(canvas, offsets_px, patches.shape[-1])


def common_phase(patches: Tensor, offsets_px: Tensor, weights: Tensor | None = None) -> Tensor:
    """Rotate each patch of a group by the constant phase that brings it closest to the group's average.

    A pattern does not determine the constant phase of its patch, so a merger that is to test agreement must
    not test that. The phases themselves have no gradient. (B, C, N, N) complex -> (B, C, N, N).
    """
    with torch.no_grad():
        mean = overlap_constraint(patches, offsets_px, weights)
        trust = torch.ones_like(patches.real) if weights is None else weights
        agreement = (trust * patches.conj() * mean).sum(dim=_IMAGE, keepdim=True)
        rotation = torch.polar(torch.ones_like(agreement.real), agreement.angle())
    return patches * rotation


def split_position(positions_px: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Split positions into the nearest whole-pixel patch origin and the sub-pixel rest.

    Args:
        positions_px: (..., 2) canvas index of each patch's center (N-1)/2.

    Returns:
        grid positions (..., 2), whose patch origins `position - (N-1)/2` are whole numbers, and the rest
        (..., 2) within [-0.5, 0.5]: the shift of the probe against the patch.

    Examples:
        >>> import torch
        >>> from ptycho_torch.physics.forward import split_position
        >>> grid, rest = split_position(torch.tensor([40.75, 31.5]), 64)
        >>> grid.tolist(), rest.tolist()
        ([40.5, 31.5], [0.25, 0.0])
    """
    half = (n - 1) / 2
    grid = torch.round(positions_px - half) + half
    return grid, positions_px - grid
