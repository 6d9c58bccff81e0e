"""Photon counts split at random in two: what one part teaches can be tested on the other.

Each photon goes to either part with probability 1/2. Of Poisson counts, both parts are Poisson counts again
and independent of each other (Kingman, Poisson Processes, 1993, section 5.1), so noise that is in one part
cannot be foretold from it for the other (Batson and Royer, Noise2Self, arXiv:1901.11365).

The draw is a function of a key, so it does not depend on batches, processes or devices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB
_FIRST, _SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""The constants of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), as signed numbers."""
_BITS = 64
_WORDS = 16
"""Counts up to 16 x 64 are split bit by bit, larger ones by the normal distribution, close to it there."""


def split_counts(counts: Tensor, key: Tensor) -> Tensor:
    """Draw how many of the counts go to the first part, Binomial(k, 1/2).

    Args:
        counts: (..., N, N) whole numbers of at least 0, of any type.
        key: (...) int64; equal keys draw equally.

    Returns:
        (..., N, N) float32 of 0 to `counts`.
    """
    whole = counts.round().to(torch.int64)
    pixels = torch.arange(whole.shape[-2] * whole.shape[-1], device=whole.device)
    state = _mixed(key.to(torch.int64) * _GOLDEN)[..., None, None] + (pixels * _GOLDEN).reshape(
        whole.shape[-2:]
    )
    flat, state = whole.reshape(-1), state.expand(whole.shape).reshape(-1)
    first = _heads(flat, state)
    more = (flat > _BITS).nonzero().squeeze(1)
    for word in range(1, _WORDS):
        if not len(more):
            break
        first[more] += _heads(flat[more] - word * _BITS, _mixed(state[more]) + word)
        more = more[flat[more] > (word + 1) * _BITS]
    if len(more):
        first[more] = _normal_heads(flat[more], _mixed(state[more]))
    return first.reshape(whole.shape).to(torch.float32)


def split_amplitude(amplitude: Tensor, unit: float, key: Tensor) -> tuple[Tensor, Tensor]:
    """Split the counts behind amplitudes, and return the amplitudes of both parts at the dose of the whole.

    Args:
        amplitude: (..., N, N), roots of intensities.
        unit: intensity of one count.
        key: (...) int64.

    Returns:
        Two (..., N, N) float32, independent of each other but for what they measured.
    """
    counts = (amplitude.square() / unit).round()
    first = split_counts(counts, key)
    return (2 * unit * first).sqrt(), (2 * unit * (counts - first)).sqrt()


def key_of(seed: int, epoch: int, index: Tensor) -> Tensor:
    """Return a key for each pattern of an epoch: that of its index within the scan, int64 of any shape."""
    start = torch.tensor([seed, epoch], dtype=torch.int64, device=index.device)
    return _mixed(_mixed(start[0] * _GOLDEN) + start[1]) + index.to(torch.int64)


def _heads(tosses: Tensor, state: Tensor) -> Tensor:
    """Count the ones among the first `tosses` of 64 random bits."""
    mask = torch.where(tosses >= _BITS, -1, (1 << tosses.clamp(0, _BITS - 1)) - 1)
    bits = _mixed(state) & mask
    bits = bits - (_shifted(bits, 1) & 0x5555555555555555)
    bits = (bits & 0x3333333333333333) + (_shifted(bits, 2) & 0x3333333333333333)
    bits = (bits + _shifted(bits, 4)) & 0x0F0F0F0F0F0F0F0F
    return _shifted(bits * 0x0101010101010101, 56)


def _normal_heads(tosses: Tensor, state: Tensor) -> Tensor:
    uniform = (_shifted(_mixed(state), 11).double() + 0.5) / 2**53
    normal = math.sqrt(2) * torch.erfinv(2 * uniform - 1)
    heads = (tosses.double() / 2 + tosses.double().sqrt() / 2 * normal).round().to(torch.int64)
    return torch.minimum(heads.clamp(min=0), tosses)


def _mixed(state: Tensor) -> Tensor:
    """Return random bits, a function of the state."""
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shift to the right and fill with zeros."""
    return (bits >> by) & ((1 << (_BITS - by)) - 1)
