"""What training minimizes: pure functions, all of them means, so that no weight depends on N or B.

Shape legend: B samples, C patterns of a group, N x N pixels. `good_pixels` is (N, N) bool, True where the
detector can be trusted; bad pixels take no part. Formulas and references: specs/forward_model.md.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, good_pixels: Tensor | None) -> Tensor:
    """Mean over all dimensions of (..., N, N), over the good pixels only. Scalar."""
    if good_pixels is None:
        return values.mean()
    good = good_pixels.to(values.device).expand(values.shape)
    return torch.where(good, values, 0).sum() / good.sum().clamp_min(1)


def poisson_nll(
    expected: Tensor,
    measured: Tensor,
    good_pixels: Tensor | None = None,
    *,
    full: bool = False,
    floor: float = 1e-8,
) -> Tensor:
    """Negative log likelihood per pixel of measured counts under Poisson noise of the expected intensity.

    L = I - k log I, minus its value at I = k unless `full`; so a perfect fit is 0 and the gradient is
    that of the likelihood. `full` adds the constant log k! instead: the likelihood itself.

    Args:
        expected: (..., N, N) intensity I in counts.
        measured: (..., N, N) counts k.
        floor: smallest intensity in counts, so that a dark pixel has a finite logarithm.
    """
    model = expected.clamp_min(0) + floor
    loss = model - measured * model.log()
    if full:
        return masked_mean(loss + torch.lgamma(measured + 1), good_pixels)
    return masked_mean(loss - measured + torch.xlogy(measured, measured), good_pixels)


def amplitude_mae(expected: Tensor, measured: Tensor, good_pixels: Tensor | None = None) -> Tensor:
    """Mean absolute difference of expected and measured amplitude, both (..., N, N)."""
    return masked_mean((expected - measured).abs(), good_pixels)


def total_variation(patches: Tensor) -> Tensor:
    """Mean step between neighboring pixels of (..., N, N), anisotropic (Rudin, Osher and Fatemi 1992)."""
    rows = (patches[..., 1:, :] - patches[..., :-1, :]).abs().mean()
    columns = (patches[..., :, 1:] - patches[..., :, :-1]).abs().mean()
    return rows + columns


def mean_deviation(patches: Tensor) -> Tensor:
    """Mean absolute deviation of the amplitude of each patch (..., N, N) from its own mean."""
    size = patches.abs()
    return (size - size.mean(dim=(-2, -1), keepdim=True)).abs().mean()


def supervised(patches: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Squared error of the patches over the square of the truth, weighted; a constant phase is no error.

    Each patch is turned by the constant phase that brings it closest to its truth, since its pattern does not
    determine that: the least of ``sum w |e^(ia) p - t|^2`` over a is
    ``sum w |p|^2 + sum w |t|^2 - 2 |sum w t* p|``.

    Args:
        patches: (B, C, N, N) complex prediction.
        labels: (B, C, N, N) complex truth.
        weights: (N, N) or (B, C, N, N) non-negative, such as the probe's intensity; none weighs all alike.
    """
    trust = torch.ones_like(labels.real) if weights is None else weights.expand(labels.shape)
    sizes = [
        (trust * (wave.real.square() + wave.imag.square())).sum(dim=(-2, -1)) for wave in (patches, labels)
    ]
    agreement = (trust * labels.conj() * patches).sum(dim=(-2, -1)).abs()
    return ((sizes[0] + sizes[1] - 2 * agreement) / sizes[1].clamp_min(torch.finfo(trust.dtype).tiny)).mean()
