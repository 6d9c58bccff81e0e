"""Random objects: repeatable, of unit intensity, and of many kinds."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_torch.pretraining import textures

SIDE = 80


def drawn(number: int) -> np.ndarray:
    return textures.random_object(np.random.default_rng([0, number]), SIDE)


@pytest.mark.parametrize("kind", sorted(set(textures.KINDS), key=lambda kind: kind.__name__))
def test_a_texture_goes_from_0_to_1_and_differs_with_the_seed(kind: textures.Texture) -> None:
    one, again, other = (kind(np.random.default_rng(seed), SIDE) for seed in (1, 1, 2))
    assert one.shape == (SIDE, SIDE)
    assert -1e-6 <= one.min() <= one.max() <= 1 + 1e-6
    assert np.array_equal(one, again)
    assert np.std(one) > 0.01
    assert not np.allclose(one, other)


def test_an_object_has_a_mean_intensity_of_1() -> None:
    for number in range(12):
        found = drawn(number)
        assert found.dtype == np.complex64
        assert np.isfinite(found).all()
        assert np.mean(np.abs(found) ** 2) == pytest.approx(1, rel=1e-5)


def test_objects_differ_in_absorption_phase_and_how_they_go_together() -> None:
    objects = [drawn(number) for number in range(60)]
    absorption = [float(np.std(np.abs(found)) / np.mean(np.abs(found))) for found in objects]
    phase = [float(np.std(np.angle(found * found.mean().conj()))) for found in objects]
    assert min(absorption) < 0.02 < 0.2 < max(absorption)
    assert min(phase) < 0.2 < 1 < max(phase)
    assert abs(np.corrcoef(absorption, phase)[0, 1]) < 0.6


def test_objects_have_details_of_several_sizes() -> None:
    def reach(image: np.ndarray) -> float:
        """Distance at which an object is half like itself, in pixels."""
        power = np.abs(np.fft.fft2(image - image.mean())) ** 2
        likeness = np.fft.ifft2(power).real[0, : SIDE // 2]
        return float(np.argmax(likeness < likeness[0] / 2))

    reaches = [reach(drawn(number)) for number in range(40)]
    assert min(reaches) <= 3
    assert max(reaches) >= 6
