"""Waves beside measured amplitudes: the hand-written gradient is the model's; patches are placed exactly."""

from __future__ import annotations

import pytest
import torch

from ptycho_torch.physics import forward as physics
from ptycho_torch.reconstruction import waves


def random_complex(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def test_the_update_towards_counts_is_the_gradient_of_their_likelihood() -> None:
    patches = random_complex(4, 16, 16, seed=1).requires_grad_()
    probe = random_complex(2, 16, 16, seed=2)
    good = torch.ones(16, 16, dtype=torch.bool)
    good[3, 5] = False
    counts = physics.forward_intensity(patches[:, None], probe)[:, 0].detach()
    counts = counts * (0.5 + torch.rand(counts.shape, dtype=torch.float64))
    model = physics.forward_intensity(patches[:, None], probe)[:, 0] + waves.BARE
    (good * (model - (counts + waves.BARE) * model.log())).sum().backward()  # (k - I) / (I + BARE)
    ours, mask = (torch.fft.ifftshift(x, dim=(-2, -1)) for x in (counts.sqrt(), good.double()))
    with torch.no_grad():
        seen = waves.compare(patches, probe[None], ours, mask, unit=1.0)
        toward = (seen.update * probe.conj()).sum(dim=1)
    torch.testing.assert_close(-4 * toward, patches.grad, rtol=1e-9, atol=1e-9)


def test_one_count_where_none_is_expected_moves_no_further_than_the_limit() -> None:
    dark = torch.full((1, 8, 8), 1e-6, dtype=torch.complex64)
    seen = waves.compare(dark, dark[None], torch.full((1, 8, 8), 100.0), torch.ones(8, 8), unit=1.0)
    assert float(seen.update.abs().max()) <= 1.01 * waves.MOST * float(seen.detector.abs().max())


@pytest.mark.parametrize(("modes", "background"), [(1, 0.0), (3, 0.0), (2, 5.0)])
def test_the_hand_written_gradient_is_that_of_the_forward_model(modes: int, background: float) -> None:
    patches = random_complex(4, 16, 16, seed=1).requires_grad_()
    probe = random_complex(modes, 16, 16, seed=2).requires_grad_()
    amplitude = torch.rand(4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    good = torch.ones(16, 16, dtype=torch.bool)
    good[3, 5] = good[8:10, 8:12] = False

    lies_under = background * torch.rand(
        16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
    )
    model = (physics.forward_intensity(patches[:, None], probe)[:, 0] + lies_under).sqrt()
    loss = (good * (model - amplitude) ** 2).sum()
    loss.backward()

    ours, mask, under = (torch.fft.ifftshift(x, dim=(-2, -1)) for x in (amplitude, good.double(), lies_under))
    with torch.no_grad():
        seen = waves.compare(patches, probe[None], ours, mask, under)
        toward_object = (seen.update * probe.conj()).sum(dim=1)
        toward_probe = (seen.update * patches.conj()[:, None]).sum(dim=0)
    torch.testing.assert_close(seen.error, loss.detach())
    torch.testing.assert_close(-2 * toward_object, patches.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(-2 * toward_probe, probe.grad, rtol=1e-9, atol=1e-9)


def test_linear_interpolation_and_its_adjoint_are_adjoint_and_exact_on_planes() -> None:
    fraction = torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block, patches = random_complex(5, 9, 9, seed=1), random_complex(5, 8, 8, seed=2)
    forth = (waves.lerp(block, fraction) * patches.conj()).sum()
    back = (block * waves.lerp_adjoint(patches, fraction).conj()).sum()
    torch.testing.assert_close(forth, back)
    y, x = (axis.double() for axis in torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"))
    plane = (2 * y - 3j * x).expand(5, 9, 9)
    expected = plane[:, :8, :8] + (2 * fraction[:, 0] - 3j * fraction[:, 1])[:, None, None]
    torch.testing.assert_close(waves.lerp(plane.contiguous(), fraction), expected)


def test_blocks_are_cut_where_they_are_asked_for() -> None:
    canvas = random_complex(20, 17)
    corners = torch.tensor([[0, 0], [12, 9], [3, 7]])
    for (y, x), block in zip(corners.tolist(), waves.cut(canvas, corners, 8), strict=True):
        assert torch.equal(block, canvas[y : y + 8, x : x + 8])


def test_the_slopes_of_an_interpolation_are_its_derivatives() -> None:
    fraction = torch.full((3, 2), 0.4, dtype=torch.float64)
    block = random_complex(3, 9, 9)
    for axis, slope in enumerate(waves.lerp_slopes(block, fraction)):
        moved = fraction.clone()
        moved[:, axis] += 0.25
        torch.testing.assert_close(waves.lerp(block, moved), waves.lerp(block, fraction) + 0.25 * slope)


def test_patches_add_up_where_they_overlap() -> None:
    canvas = torch.zeros(5, 6)
    waves.add(canvas, [[0, 0], [1, 2]], torch.ones(2, 3, 3))
    assert (canvas[1:3, 2] == 2).all()
    assert float(canvas.sum()) == 18
