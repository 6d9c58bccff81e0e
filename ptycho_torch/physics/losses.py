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
    """Weighted mean of the amplitude error plus the phase error of predicted patches against the truth.

    The phase error is `|exp(i a) - exp(i b)|`, which does not jump where the phase wraps; it counts as much
    as the true amplitude, because the phase of a dark pixel means nothing.

    Args:
        patches: (B, C, N, N) complex prediction.
        labels: (B, C, N, N) complex truth.
        weights: (N, N) or (B, C, N, N) non-negative, such as the probe's intensity; none weighs all alike.
    """
    size, truth = patches.abs(), labels.abs()
    phase_gap = (patches / size.clamp_min(1e-6) - labels / truth.clamp_min(1e-6)).abs() * truth
    error = (size - truth).abs() + phase_gap
    if weights is None:
        return error.mean()
    trust = weights.expand(error.shape)
    return (error * trust).sum() / trust.sum().clamp_min(torch.finfo(trust.dtype).tiny)
