"""Waves, objects and positions on other pixels: what physics says of cropped, padded and binned patterns."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from ptycho_torch.config import Orientation
from ptycho_torch.data.sampling import (
    move_positions,
    orientation_matrix,
    raster,
    resample_object,
    resample_wave,
)

RNG = np.random.default_rng(7)
N = 32
Y, X = np.mgrid[:N, :N] - N // 2
SPOT = np.exp(-((Y - 1.5) ** 2 + (X + 2) ** 2) / 18 + 0.02j * Y**2 - 0.03j * X * Y)


def far_field(wave: Any) -> Any:
    return np.fft.fftshift(np.fft.fft2(wave, norm="ortho"), axes=(-2, -1))


def middle(array: Any, n: int) -> Any:
    start = array.shape[-1] // 2 - n // 2
    return array[..., start : start + n, start : start + n]


def test_the_same_pixels_give_the_same_bits() -> None:
    wave = RNG.normal(size=(2, N, N, 2)).astype(np.float32).view(np.complex64)[..., 0]
    assert resample_wave(wave, 1.0, N) is wave


@pytest.mark.parametrize("n", [24, 16, 20])
def test_cropped_patterns_are_the_far_field_of_the_resampled_wave(n: int) -> None:
    wave = SPOT[None].astype(np.complex64)
    small = resample_wave(wave, N / n, n)
    np.testing.assert_allclose(abs(far_field(small)), middle(abs(far_field(wave)), n), atol=2e-6)


@pytest.mark.parametrize("n", [40, 64, 33])
def test_padding_keeps_what_was_measured_and_cropping_brings_the_wave_back(n: int) -> None:
    wave = SPOT[None].astype(np.complex64)
    wide = resample_wave(wave, N / n, n)
    assert np.sum(abs(wide) ** 2) == pytest.approx(np.sum(abs(wave) ** 2), rel=1e-4)
    np.testing.assert_allclose(resample_wave(wide, n / N, N), wave, atol=2e-3)
    if n % 2 == 0:
        np.testing.assert_allclose(middle(abs(far_field(wide)), N), abs(far_field(wave)), atol=2e-5)


@pytest.mark.parametrize("b", [2, 4])
def test_binned_patterns_see_the_middle_of_the_wave_between_the_pixels(b: int) -> None:
    wave = np.zeros((1, 64, 64), np.complex64)
    wave[0, 27:37, 27:37] = SPOT[11:21, 11:21]  # fits into the smaller window
    n, offset = 64 // b, (b - 1) / (2 * b)
    far = far_field(resample_wave(wave, 1.0, n, offset))
    # The far field at the middle of each bin, from the definition of the Fourier transform.
    k = b * np.arange(n) + (b - 1) / 2 - 32
    kernel = np.exp(-2j * np.pi * k[:, None] * (np.arange(64) - 32) / 64)
    expected = abs(kernel @ wave[0] @ kernel.T) / n
    np.testing.assert_allclose(abs(far[0]), expected, atol=1e-4)


def test_a_band_limited_object_is_sampled_anew() -> None:
    y, x = np.mgrid[:90, :70] / 8.0
    wave = (np.sin(y) + 1j * np.cos(0.7 * x)).astype(np.complex64)
    for old, new in ((4, 3), (64, 48), (2, 3)):
        found = resample_object(wave, old, new)
        assert found.shape == (np.ceil(90 * new / old), np.ceil(70 * new / old))
        v, u = np.mgrid[: found.shape[0], : found.shape[1]] * (old / new) / 8.0
        inside = (slice(6, -6), slice(6, -6))
        np.testing.assert_allclose(found[inside], (np.sin(v) + 1j * np.cos(0.7 * u))[inside], atol=0.02)
    assert resample_object(wave, 5, 5) is wave


def test_positions_shrink_with_larger_pixels_and_stay_with_binned_ones() -> None:
    positions = RNG.uniform(50, 90, (6, 2))
    cropped = move_positions(positions, 32, 24, 32 / 24)
    np.testing.assert_allclose(np.diff(cropped, axis=0), np.diff(positions, axis=0) * 24 / 32)
    np.testing.assert_allclose(move_positions(positions, 32, 16, 1.0), positions)
    # The pixel that the far field takes as center shows the same point of the object.
    np.testing.assert_allclose(cropped - 23 / 2 + 12, (positions - 31 / 2 + 16) * 0.75)


def test_the_eight_orientations_are_different_and_transpose_first() -> None:
    names = get_args(Orientation)
    matrices = [orientation_matrix(name) for name in names]
    assert len(names) == len({matrix.tobytes() for matrix in [*matrices, np.eye(2)]}) == 8
    y, x = 3.0, 5.0
    expected = {
        "none": (y, x),
        "flip-y": (-y, x),
        "flip-x": (y, -x),
        "flip-yx": (-y, -x),
        "transpose": (x, y),
        "transpose-flip-y": (-x, y),
        "transpose-flip-x": (x, -y),
        "transpose-flip-yx": (-x, -y),
    }
    for name, matrix in zip(names, matrices, strict=True):
        np.testing.assert_array_equal(matrix @ [y, x], expected[name])
    np.testing.assert_array_equal(orientation_matrix("auto"), np.eye(2))


def test_a_raster_is_turned_from_x_towards_y() -> None:
    points = raster((2, 3), (1.0, 2.0), 0.0)
    np.testing.assert_array_equal(points, [[0, 0], [0, 2], [0, 4], [1, 0], [1, 2], [1, 4]])
    np.testing.assert_allclose(raster((1, 2), (1.0, 1.0), 90.0), [[0, 0], [1, 0]], atol=1e-12)
