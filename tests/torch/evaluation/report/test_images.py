"""Values on a page are right to what is stated, and what is not known stays so."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest

from ptycho_torch.evaluation.report.images import (
    BITS,
    FEWER_BITS,
    MOST_PIXELS,
    Quantity,
    Shown,
    averaged,
    bin_for,
    bits_for,
    limits_of,
    packed,
    phase_quantity,
    points_of,
    unpacked,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bits", [BITS, FEWER_BITS])
def test_values_come_back_to_half_a_step(bits: int) -> None:
    image = RNG.normal(size=(30, 41)) + 3
    data = packed(image, bits)
    assert data["shape"] == (30, 41)
    assert not data["clipped"]
    np.testing.assert_allclose(unpacked(data), image, rtol=0, atol=data["step"] / 2 + 1e-6)
    assert data["step"] == pytest.approx(np.ptp(image) / (2**bits - 2), rel=1e-5)


def test_intensities_are_right_to_less_than_their_noise() -> None:
    counts = RNG.poisson(RNG.uniform(0, 1e5, size=(64, 64))).astype(float)
    error = np.abs(unpacked(packed(counts, squared=True)) - counts)
    assert (error <= 0.1 * np.sqrt(counts) + 0.01).all()


def test_unknown_pixels_stay_unknown_and_extreme_ones_do_not_coarsen_the_others() -> None:
    image = RNG.uniform(0, 1, size=(100, 100))
    image[3, 4], image[5, 6] = np.nan, 1e6
    data = packed(image)
    back = unpacked(data)
    assert data["clipped"]
    assert np.argwhere(np.isnan(back)).tolist() == [[3, 4]]
    assert back[5, 6] == pytest.approx(2, abs=0.1), "the highest code, said to stand for more"
    inner = image <= 1
    np.testing.assert_allclose(back[inner], image[inner], atol=0.001)


@pytest.mark.parametrize("image", [np.full((3, 3), 7.0), np.zeros((2, 2)), np.full((2, 2), np.nan)])
def test_images_without_contrast_are_packed(image: np.ndarray) -> None:
    np.testing.assert_allclose(unpacked(packed(image)), image)


def test_a_page_with_many_pixels_has_shorter_codes_and_then_means() -> None:
    assert bits_for(2 * 512 * 512) == BITS
    assert bits_for(6 * 512 * 512) == FEWER_BITS
    assert bin_for(6 * 512 * 512) == 1
    assert bin_for(6 * 1024 * 1024) == 2
    for side in (700, 1000, 3000):
        assert side**2 / bin_for(side**2) ** 2 <= MOST_PIXELS
    image = np.arange(30.0).reshape(5, 6)
    np.testing.assert_array_equal(averaged(image, 2), [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]])
    assert averaged(image, 1) is image


def test_data_state_the_precision_of_every_quantity() -> None:
    quantities = [
        Quantity("amplitude", "gray", (0, 1)),
        Quantity("phase", "phase", (-3, 3), "rad"),
        Quantity("counts", "viridis", (1, 9), intensity=True),
    ]
    image = np.linspace(0, 4094, 64).reshape(8, 8)
    shown = Shown({"one": [image, image, image**2]}, quantities, [(0, None)], "object")
    assert shown.data(12)["precision"] == (
        "± 0.5 (amplitude), ± 0.5 rad (phase), ± 1 times the root of the counts"
    )


def test_positions_keep_their_order() -> None:
    at = RNG.uniform(0, 500, size=(20, 2))
    values = np.full(20, np.nan)
    values[3] = 1.5
    data = points_of(at, values=values, far=np.array([7]))
    assert (data["far"], data["moved"]) == ([7], None)
    for name, expected in (("at", at), ("values", values)):
        raw = zlib.decompress(base64.b64decode(data[name]))
        np.testing.assert_allclose(np.frombuffer(raw, "<f4").reshape(expected.shape), expected, rtol=1e-6)


def test_of_very_many_positions_those_that_matter_are_kept() -> None:
    at = np.stack([np.arange(100_001.0), np.zeros(100_001)], axis=1)
    values = np.full(len(at), np.nan)
    values[12_347] = 2.0
    data = points_of(at, values=values, far=np.array([77_777]))
    shown, rows, known = (
        np.frombuffer(zlib.decompress(base64.b64decode(data[name])), "<f4")
        for name in ("at", "rows", "values")
    )
    assert 10_000 < len(rows) <= 20_002
    np.testing.assert_array_equal(shown[::2], rows)
    assert rows[data["far"]] == [77_777]
    assert rows[known == 2.0] == [12_347]


def test_limits_ignore_a_few_extremes_and_exist_without_contrast() -> None:
    image = RNG.uniform(2, 3, size=(100, 100))
    image[0, :20] = 1e9
    low, high = limits_of(image)
    assert 2 <= low < 2.1
    assert 2.9 < high <= 3
    assert limits_of(np.ones((3, 3))) == (0.5, 1.5)
    assert limits_of(np.full((3, 3), np.nan)) == (0.0, 1.0)


def test_a_phase_that_goes_round_has_colors_of_a_circle() -> None:
    assert phase_quantity(RNG.uniform(-0.4, 0.3, size=(50, 50))).colors == "diverging"
    quantity = phase_quantity(RNG.uniform(-np.pi, np.pi, size=(50, 50)))
    assert (quantity.colors, quantity.limits) == ("phase", (-np.pi, np.pi))
