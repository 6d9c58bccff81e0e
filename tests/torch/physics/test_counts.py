"""Counts are split as photons are: each to either side with probability 1/2, reproducibly."""

from __future__ import annotations

import pytest
import torch

from ptycho_torch.physics.counts import key_of, split_amplitude, split_counts


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 200, 1024, 1025, 5000])
def test_halves_have_the_mean_and_variance_of_tosses(count: int) -> None:
    counts = torch.full((100, 32, 32), float(count))
    first = split_counts(counts, torch.arange(100))
    assert float(first.min()) >= 0
    assert float(first.max()) <= count
    assert torch.equal(first, first.round())
    many = first.numel()
    assert abs(float(first.mean()) - count / 2) < 5 * (count / 4 / many) ** 0.5
    assert abs(float(first.var()) / (count / 4) - 1) < 5 * (2 / many) ** 0.5 + 1e-6


def test_parts_of_poisson_counts_are_independent() -> None:
    counts = torch.poisson(torch.full((400, 32, 32), 3.0), generator=torch.Generator().manual_seed(0))
    first, second = (
        part.square() / 2 for part in split_amplitude(counts.sqrt(), 1.0, key_of(1, 2, torch.arange(400)))
    )
    assert torch.allclose(first + second, counts)
    covariance = float(((first - first.mean()) * (second - second.mean())).mean())
    assert abs(covariance) < 5 * 1.5 / counts.numel() ** 0.5


def test_patterns_pixels_and_epochs_draw_apart_and_batches_do_not_matter() -> None:
    counts = torch.full((6, 32, 32), 9.0)
    keys = key_of(7, 1, torch.arange(6))
    whole = split_counts(counts, keys)
    assert torch.equal(
        whole, torch.cat([split_counts(counts[:2], keys[:2]), split_counts(counts[2:], keys[2:])])
    )
    others = [split_counts(counts, key_of(*other, torch.arange(6))) for other in ((7, 2), (8, 1), (1, 7))]
    for other in [*others, whole.roll(1, 0), whole.roll(1, 1), whole.roll(1, 2)]:
        both = ((whole - 4.5) * (other - 4.5)).mean() / (9 / 4)
        assert abs(float(both)) < 5 / counts.numel() ** 0.5


def test_a_count_of_several_units_keeps_its_unit() -> None:
    amplitude = torch.tensor([[[0.0, 2.0], [20.0, 200.0]]])
    first, second = split_amplitude(amplitude, 4.0, torch.tensor([5]))
    assert torch.allclose((first.square() + second.square()) / 2, amplitude.square())
    assert torch.equal((first.square() / 8).round() * 8, first.square().round())
