"""Losses against their formulas, with and without bad pixels."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import poisson

from ptycho_torch.physics import losses

N = 8


@pytest.fixture
def counts() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.poisson(torch.full((2, 3, N, N), 5.0), generator=generator).double()


@pytest.fixture
def good() -> torch.Tensor:
    good = torch.ones(N, N, dtype=torch.bool)
    good[2, 3] = False
    return good


class TestPoisson:
    def test_full_is_the_likelihood(self, counts: torch.Tensor) -> None:
        model = counts + 0.7
        want = -poisson.logpmf(counts.numpy(), model.numpy()).mean()
        assert float(losses.poisson_nll(model, counts, full=True)) == pytest.approx(want, rel=1e-7)

    def test_perfect_fit_is_zero_and_least(self, counts: torch.Tensor) -> None:
        assert float(losses.poisson_nll(counts, counts)) == pytest.approx(0, abs=1e-6)
        for factor in (0.5, 0.9, 1.1, 2.0):
            assert float(losses.poisson_nll(counts * factor, counts)) > 0.01

    def test_gradient_is_one_minus_counts_over_model(self, counts: torch.Tensor) -> None:
        model = (counts + 1).requires_grad_()
        losses.poisson_nll(model, counts).backward()
        want = (1 - counts / (counts + 1)) / counts.numel()
        torch.testing.assert_close(model.grad, want, rtol=1e-6, atol=1e-9)

    def test_dark_pixels_are_finite(self) -> None:
        model = torch.zeros(N, N, requires_grad=True)
        loss = losses.poisson_nll(model, torch.ones(N, N), floor=1e-3)
        assert float(loss.detach()) == pytest.approx(1e-3 - math.log(1e-3) - 1)


def test_amplitude_mae_is_the_mean_absolute_difference(counts: torch.Tensor) -> None:
    assert float(losses.amplitude_mae(counts + 0.25, counts)) == pytest.approx(0.25)
    assert float(losses.amplitude_mae(counts - 0.25, counts)) == pytest.approx(0.25)


@pytest.mark.parametrize("loss", [losses.poisson_nll, losses.amplitude_mae])
def test_bad_pixels_take_no_part(loss, counts: torch.Tensor, good: torch.Tensor) -> None:
    model = (counts + 0.5).requires_grad_()
    clean = loss(model, counts, good)
    broken = counts.clone()
    broken[..., 2, 3] = 65535
    saturated = loss(model, broken, good)
    assert float(saturated.detach()) == pytest.approx(float(clean.detach()), rel=1e-12)
    saturated.backward()
    assert model.grad is not None
    assert model.grad[..., 2, 3].abs().max() == 0
    assert float(loss(model.detach(), broken)) > 10 * float(clean.detach())


def test_masked_mean_counts_good_pixels_only(good: torch.Tensor) -> None:
    values = torch.where(good, 2.0, 1e9).expand(3, N, N)
    assert float(losses.masked_mean(values, good)) == pytest.approx(2)


class TestPenalties:
    def test_total_variation_of_a_step(self) -> None:
        patch = torch.zeros(1, 1, N, N, dtype=torch.complex64)
        patch[..., N // 2 :] = 3j
        assert float(losses.total_variation(patch)) == pytest.approx(3 / (N - 1))
        assert float(losses.total_variation(torch.ones(1, 1, N, N) * 1j)) == 0

    def test_mean_deviation_sees_amplitude_only(self) -> None:
        phase = torch.linspace(0, 3, N * N).reshape(N, N)
        waves = torch.polar(torch.ones(N, N), phase)
        assert float(losses.mean_deviation(waves)) == pytest.approx(0, abs=1e-6)
        checks = 1 + 0.5 * (-1) ** torch.arange(N * N).reshape(N, N)
        assert float(losses.mean_deviation(checks)) == pytest.approx(0.5)


class TestSupervised:
    def test_it_is_the_squared_error_over_the_square_of_the_truth(self) -> None:
        truth = torch.full((1, 1, N, N), 2.0, dtype=torch.complex64)
        assert float(losses.supervised(truth, truth)) == pytest.approx(0, abs=1e-6)
        assert float(losses.supervised(1.5 * truth, truth)) == pytest.approx(0.25)
        assert float(losses.supervised(torch.zeros_like(truth), truth)) == pytest.approx(1)

    def test_a_constant_phase_is_free_for_each_patch(self) -> None:
        truth = torch.randn(2, 3, N, N, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
        turn = torch.polar(torch.ones(2, 3, 1, 1), torch.arange(6.0).reshape(2, 3, 1, 1))
        assert float(losses.supervised(turn * truth, truth)) == pytest.approx(0, abs=1e-5)
        bent = truth * torch.polar(torch.ones(N, N), torch.linspace(0, 1, N).expand(N, N))
        assert float(losses.supervised(bent, truth)) > 0.02

    def test_weights_choose_where_it_counts(self) -> None:
        truth = torch.ones(1, 1, N, N, dtype=torch.complex64)
        wrong = truth.clone()
        wrong[..., 0] = 5
        illumination = torch.ones(N, N)
        illumination[:, 0] = 0
        assert float(losses.supervised(wrong, truth, illumination)) == pytest.approx(0, abs=1e-6)
        assert float(losses.supervised(wrong, truth)) == pytest.approx(16 / N)
