"""Corrected positions: the derivatives are those of the loss, and steps are bounded and without a mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_torch.physics import forward as physics
from ptycho_torch.reconstruction import positions, waves
from ptycho_torch.reconstruction.positions import PositionCorrection


def random_complex(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("modes", [1, 3])
def test_descent_and_curvature_are_those_of_the_amplitude_loss(modes: int) -> None:
    patches, probe = random_complex(3, 15, 15, seed=1), random_complex(modes, 15, 15, seed=2)
    amplitude = 3 * torch.rand(3, 15, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    good = torch.ones(15, 15, dtype=torch.float64)
    good[3, 4] = 0
    shift = torch.tensor([[0.3, -0.2], [0.0, 0.4], [-0.1, -0.1]], dtype=torch.float64, requires_grad=True)

    def model(shift: torch.Tensor) -> torch.Tensor:
        moved = physics.shift_subpixel(probe, shift[:, None])
        return waves.compare(patches, moved, amplitude, good).model

    loss = (good * (model(shift) - amplitude) ** 2).sum()
    loss.backward()
    with torch.no_grad():
        moved = physics.shift_subpixel(probe, shift[:, None])
        seen = waves.compare(patches, moved, amplitude, good)
        slopes = [torch.fft.ifft2(s) for s in positions.probe_slopes(torch.fft.fft2(moved))]
        changes = [slope * patches[:, None] for slope in slopes]
        descent = positions.descent(changes, seen.update)
        curvature = positions.curvature(changes, seen, good)
    assert shift.grad is not None
    torch.testing.assert_close(descent, -shift.grad / 2, rtol=1e-7, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(model, shift.detach())
    for row in range(3):
        own = (jacobian[row, :, :, row] * good[..., None]).reshape(-1, 2)
        torch.testing.assert_close(curvature[row], own.T @ own, rtol=1e-7, atol=1e-9)


def correction(limit_px: float = 4.0, held: int = 0) -> PositionCorrection:
    at = np.stack(np.meshgrid(np.arange(6.0), np.arange(5.0)), axis=-1).reshape(-1, 2) * 10
    made = PositionCorrection(at, np.arange(held, len(at)), limit_px)
    made.curvature[:] = 100 * torch.eye(2)
    return made


def test_all_patterns_together_do_not_move() -> None:
    made = correction()
    made.descent[:] = torch.tensor([50.0, -20.0])
    made.step(1.0)
    np.testing.assert_allclose(made.shift_px, 0, atol=1e-9)


def test_a_linear_map_is_found_and_taken_by_held_out_patterns_too() -> None:
    made = correction(held=3)
    linear = np.array([[0.004, 0.001], [-0.002, 0.003]])
    centered = made.given - made.given[3:].mean(axis=0)
    made.descent[:] = torch.from_numpy(100 * centered @ linear.T).float()
    made.step(1.0)
    ratio = made.linear / linear
    assert ratio.min() > 1
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)
    np.testing.assert_allclose(made.shift_px[:3], centered[:3] @ made.linear.T, atol=1e-3)


def test_what_belongs_to_a_pattern_alone_is_bounded() -> None:
    made = correction(limit_px=0.75)
    made.descent[7] = torch.tensor([1e6, 0.0])
    for _ in range(20):
        made.step(1.0)
    moved = np.linalg.norm(made.shift_px, axis=1)
    assert 0.5 < moved[7] < 1.0
    assert np.delete(moved, 7).max() < 0.4


def test_patterns_that_say_nothing_do_not_move() -> None:
    made = correction()
    made.descent[:] = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    made.curvature.zero_()
    made.descent.zero_()
    made.step(1.0)
    np.testing.assert_allclose(made.shift_px, 0, atol=1e-9)
