"""Modulus updates: what they reach, and that the fast ones and their derivative are those of the formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ptycho_torch.physics import forward as physics
from ptycho_torch.physics.modulus import ModulusUpdates, modulus_update

N = 16


class TestModulusUpdate:
    def test_true_patches_stay(self, random: Callable[..., Tensor]) -> None:
        patches, probe = random(1, 2, N, N), random(2, N, N)
        measured = physics.forward_intensity(patches, probe).sqrt()
        change = modulus_update(patches, probe, measured)
        assert change.abs().max() < 1e-5

    def test_uniform_probe_reaches_the_modulus_in_one_step(self, random: Callable[..., Tensor]) -> None:
        probe = torch.exp(1j * random(1, N, N).real)
        measured = random(1, 1, N, N).abs() + 0.1
        start = random(1, 1, N, N)
        end = start + modulus_update(start, probe, measured)
        reached = physics.forward_intensity(end, probe).sqrt()
        torch.testing.assert_close(reached, measured, rtol=0, atol=1e-4)

    def test_bad_pixels_keep_their_modulus(self, random: Callable[..., Tensor]) -> None:
        patches, probe, good = random(1, 1, N, N), random(1, N, N), torch.ones(N, N, dtype=torch.bool)
        good[3, 5] = False
        measured = physics.forward_intensity(patches, probe).sqrt()
        measured[..., 3, 5] = 1e6
        assert modulus_update(patches, probe, measured, good).abs().max() < 1e-5


@pytest.mark.parametrize("modes", [1, 2])
@pytest.mark.parametrize("bad", [False, True])
class TestModulusUpdates:
    """In 64 bits the only difference from the formula is rounding."""

    def given(
        self, random: Callable[..., Tensor], modes: int, bad: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        good = torch.ones(N, N, dtype=torch.bool)
        good[2:5, 7] = not bad
        return random(20, 2, N, N), random(20, 2, modes, N, N), random(20, 2, N, N).abs() * 4, good

    @pytest.mark.parametrize("momentum", [0.0, 0.7])
    @pytest.mark.parametrize("learning", [False, True])
    def test_they_are_those_of_the_formula(
        self, random: Callable[..., Tensor], modes: int, bad: bool, momentum: float, learning: bool
    ) -> None:
        patches, probe, measured, good = self.given(random, modes, bad)
        want, velocity = patches, torch.zeros_like(patches)
        for _ in range(3):
            velocity = momentum * velocity + 0.7 * modulus_update(want, probe, measured, good)
            want = want + velocity
        start = patches.clone().requires_grad_(learning)
        got = ModulusUpdates(probe, measured, good)(start, 3, 0.7, momentum)
        assert got.requires_grad is learning
        torch.testing.assert_close(got.detach(), want)

    def test_patches_are_left_as_they_are(self, random: Callable[..., Tensor], modes: int, bad: bool) -> None:
        patches, probe, measured, good = self.given(random, modes, bad)
        before, updates = patches.clone(), ModulusUpdates(probe, measured, good)
        assert torch.equal(updates(patches, 0), before)
        updates(patches, 2)
        assert torch.equal(patches, before)

    def test_a_flat_object_needs_no_patches(
        self, random: Callable[..., Tensor], modes: int, bad: bool
    ) -> None:
        patches, probe, measured, good = self.given(random, modes, bad)
        got = ModulusUpdates(probe, measured, good).of_flat_object()
        torch.testing.assert_close(got, modulus_update(torch.ones_like(patches), probe, measured, good))

    def test_derivative(self, random: Callable[..., Tensor], modes: int, bad: bool) -> None:
        patches, probe, measured, good = self.given(random, modes, bad)
        updates = ModulusUpdates(probe, measured, good)
        towards = random(20, 2, N, N)
        gradients = []
        for end in (lambda x: updates(x, 2, 0.7, 0.5), lambda x: self.by_formula(x, probe, measured, good)):
            start = patches.clone().requires_grad_()
            (end(start) * towards).abs().sum().backward()
            gradients.append(start.grad)
        torch.testing.assert_close(*gradients)

    @staticmethod
    def by_formula(patches: Tensor, probe: Tensor, measured: Tensor, good: Tensor) -> Tensor:
        first = 0.7 * modulus_update(patches, probe, measured, good)
        second = 0.5 * first + 0.7 * modulus_update(patches + first, probe, measured, good)
        return patches + first + second
