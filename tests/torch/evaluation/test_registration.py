"""What diffraction does not determine is found and removed; the rectangle that is scored is the largest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray

from ptycho_torch.evaluation.metrics import evaluate
from ptycho_torch.evaluation.registration import Field, Splines, align, largest_rectangle, shifted
from tests.torch.evaluation.disguises import coverage_map, disguised, make_truth, noisy

DISGUISES: list[dict[str, Any]] = [
    {"scale": 2.5},
    {"phase": 2.9},
    {"ramp": (0.05, -0.11)},
    {"ramp": (-0.9, 0.6)},
    {"shift": (2, -3)},
    {"shift": (0.37, -1.62)},
    {"scale": 0.4, "phase": -2, "ramp": (0.2, 0.3), "shift": (-4.25, 3.5)},
]


@pytest.mark.parametrize("disguise", DISGUISES, ids=str)
def test_what_diffraction_cannot_tell_is_removed(disguise: dict[str, Any]) -> None:
    truth = make_truth()
    result = evaluate(disguised(truth, **disguise), truth, coverage=coverage_map())
    assert result.nrmse < 2e-3
    assert result.amplitude_ssim > 0.9995
    assert result.phase_ssim > 0.9995
    assert result.alignment.amplitude_scale == pytest.approx(1 / disguise.get("scale", 1), rel=2e-3)
    np.testing.assert_allclose(result.alignment.shift_px, -np.array(disguise.get("shift", (0, 0))), atol=5e-3)
    np.testing.assert_allclose(
        result.alignment.ramp_rad_per_px, -np.array(disguise.get("ramp", (0, 0))), atol=1e-4
    )


def slow_largest_area(mask: NDArray[np.bool_]) -> int:
    rows, columns = mask.shape
    return max(
        (
            (bottom - top) * (right - left)
            for top in range(rows)
            for bottom in range(top + 1, rows + 1)
            for left in range(columns)
            for right in range(left + 1, columns + 1)
            if mask[top:bottom, left:right].all()
        ),
        default=0,
    )


@pytest.mark.parametrize("seed", range(6))
def test_largest_rectangle_equals_a_search_over_all_of_them(seed: int) -> None:
    mask = np.random.default_rng(seed).random((9, 7)) < 0.75
    area = largest_rectangle(mask)
    assert mask[area.slices].all()
    assert area.shape[0] * area.shape[1] == slow_largest_area(mask)


def test_largest_rectangle_of_a_huge_canvas_is_inside_the_mask() -> None:
    mask = np.zeros((1500, 1300), bool)
    mask[101:1402, 203:1204] = True
    area = largest_rectangle(mask)
    assert mask[area.slices].all()
    assert area.shape[0] * area.shape[1] > 0.98 * mask.sum()
    assert largest_rectangle(np.zeros((5, 5), bool)).shape == (0, 0)


def as_product(array: NDArray[np.complex128]) -> Any:
    """Wrap an object in the smallest product that ptychodus accepts."""
    from ptychodus.api.geometry import PixelGeometry
    from ptychodus.api.object import Object, ObjectCenter
    from ptychodus.api.probe import Probe, ProbeSequence
    from ptychodus.api.probe_positions import ProbePositionSequence
    from ptychodus.api.product import Product, ProductMetadata

    pixel = PixelGeometry(width_m=1.0, height_m=1.0)
    probe = Probe(array=np.ones((1, 8, 8), complex), pixel_geometry=pixel)
    return Product(
        metadata=ProductMetadata("", "", 1.0, 8000.0, 1.0, 1.0, 0.0, 0.0),
        probe_positions=ProbePositionSequence([]),
        probes=ProbeSequence.from_probe(probe),
        object_=Object(array[None], pixel_geometry=pixel, center=ObjectCenter(0.0, 0.0)),
        losses=[],
    )


def test_the_alignment_agrees_with_ptychodus() -> None:
    theirs = pytest.importorskip("ptychodus.api.metrics", reason="the ptychodus extra is not installed")
    truth = make_truth()
    image = disguised(noisy(truth, 0.01), scale=2, phase=1, ramp=(0.02, -0.03))
    pair = theirs.compute_object_comparison(as_product(truth), as_product(image))
    ours = evaluate(image, truth)
    known = pair.ambiguities
    assert ours.alignment.amplitude_scale == pytest.approx(1 / known.object_scale_factor, rel=1e-3)
    np.testing.assert_allclose(
        ours.alignment.ramp_rad_per_px,
        (-known.phase_ramp_y_rad_per_m, -known.phase_ramp_x_rad_per_m),
        atol=1e-4,
    )
    reference = pair.reference_complex
    assert ours.nrmse <= np.linalg.norm(pair.test_complex - reference) / np.linalg.norm(reference) + 1e-6


def test_a_shift_moves_the_content_down_and_right_and_by_parts_of_a_pixel() -> None:
    y, x = np.mgrid[:64, :48]
    wave = np.exp(2j * np.pi * (y / 16 + x / 24))
    inner = np.s_[8:-8, 8:-8]
    np.testing.assert_allclose(
        shifted(wave, np.array([3.0, -2.0]))[inner], np.roll(wave, (3, -2), (0, 1))[inner], atol=1e-9
    )
    turned = wave * np.exp(-2j * np.pi * (0.37 / 16 - 1.62 / 24))
    np.testing.assert_allclose(shifted(wave, np.array([0.37, -1.62]))[inner], turned[inner], atol=5e-4)
    np.testing.assert_array_equal(shifted(wave, np.zeros(2)), wave)


def test_splines_of_an_area_are_those_of_scipy_of_the_whole_image() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(40, 50)) + 1j * rng.normal(size=(40, 50))
    edge = scipy.ndimage.spline_filter(
        np.pad(image, 12, mode="edge"), order=5, mode="nearest", output=complex
    )
    for move in ((0.3, -0.7), (5.2, -7.9), (2, 0)):
        wanted = scipy.ndimage.shift(edge, move, order=5, mode="nearest", prefilter=False)
        wanted = wanted[12:-12, 12:-12]
        np.testing.assert_allclose(shifted(image, np.array(move)), wanted, atol=1e-9)
        area = Field(0, 21, 30, 50)
        np.testing.assert_allclose(
            Splines(image).shifted(np.array(move), area), wanted[area.slices], atol=1e-9
        )


def test_the_field_loses_the_margin_that_moved_in_from_outside() -> None:
    truth = make_truth()
    area = Field(10, 110, 8, 90)
    moved = disguised(truth, shift=(2.0, -3.0))
    aligned, removed, field = align(moved, truth, area)
    margin = int(np.ceil(max(np.abs(removed.shift_px))))
    assert field == Field(10 + margin, 110 - margin, 8 + margin, 90 - margin)
    assert margin in (3, 4)
    assert aligned.shape == field.shape
    np.testing.assert_allclose(aligned, truth[field.slices], atol=5e-3)
