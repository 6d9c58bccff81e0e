"""Metrics: what diffraction does not determine is removed, what is left is scored as others score it."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.evaluation.metrics import (
    comparable_phases,
    evaluate,
    half_bit_threshold,
    nrmse,
    psnr_db,
    ring_correlation,
    ssim,
)
from ptycho_torch.evaluation.registration import Field
from tests.torch.evaluation.disguises import SHAPE, coverage_map, disguised, make_truth, noisy, smooth


def test_a_disguise_does_not_change_the_scores_of_a_noisy_reconstruction() -> None:
    truth = make_truth()
    noise = noisy(np.zeros(SHAPE, complex), 0.02)
    plain = evaluate(truth + noise, truth, coverage=coverage_map())
    hidden = evaluate(
        disguised(truth + noise, scale=3, phase=1, ramp=(0.1, -0.2)), truth, coverage=coverage_map()
    )
    assert hidden.nrmse == pytest.approx(plain.nrmse, rel=1e-3)
    assert hidden.amplitude_ssim == pytest.approx(plain.amplitude_ssim, abs=1e-3)
    assert hidden.phase_psnr_db == pytest.approx(plain.phase_psnr_db, abs=0.01)


def test_more_noise_is_worse_in_every_score() -> None:
    truth = make_truth()
    results = [evaluate(noisy(truth, level), truth, coverage=coverage_map()) for level in (0.01, 0.05, 0.2)]
    for name in ("amplitude_ssim", "phase_ssim", "amplitude_psnr_db", "phase_psnr_db"):
        values = [getattr(result, name) for result in results]
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == 3
    for name in ("nrmse", "frc_half_px", "frc_one_seventh_px", "frc_half_bit_px"):
        values = [getattr(result, name) for result in results]
        assert values == sorted(values)
        assert values[0] < values[-1]


def test_nrmse_of_known_noise_is_its_level() -> None:
    truth = make_truth()
    result = evaluate(noisy(truth, 0.02), truth)
    expected = 0.02 * np.sqrt(2) / np.sqrt(np.mean(np.abs(truth) ** 2))
    assert result.nrmse == pytest.approx(expected, rel=0.02)


def test_an_equal_reconstruction_scores_perfectly_and_json_has_no_infinity() -> None:
    truth = make_truth()
    result = evaluate(truth, truth, pixel_size_m=7e-9)
    assert result.nrmse < 1e-12
    assert result.amplitude_ssim == pytest.approx(1)
    assert (result.frc_half_px, result.frc_half_nm) == (2.0, pytest.approx(14.0))
    assert (result.coverage, result.field) == (1.0, Field(0, 120, 0, 96))
    assert json.loads(result.dumps()) == result.to_json()


def test_json_holds_the_promised_names() -> None:
    truth = make_truth()
    record = evaluate(noisy(truth, 0.1), truth).to_json()
    promised = {
        *("amplitude_ssim", "phase_ssim", "amplitude_psnr_db", "phase_psnr_db"),
        *("nrmse", "frc_half_px", "coverage"),
    }
    assert promised <= set(record)
    assert record["frc_half_nm"] is None
    assert set(record["field"]) == {"top", "bottom", "left", "right"}


def test_only_the_well_covered_rectangle_is_scored() -> None:
    truth = make_truth()
    image = truth.copy()
    outside = np.ones(SHAPE, bool)
    outside[12:104, 9:88] = False
    image[outside] = np.nan
    coverage = coverage_map()
    coverage[outside] = 0.01
    result = evaluate(image, truth, coverage=coverage, trim_px=2)
    assert result.field == Field(14, 102, 11, 86)
    assert result.nrmse < 1e-12
    assert result.coverage == pytest.approx(92 * 79 / (120 * 96))
    assert result.truth.shape == result.reconstruction.shape == (88, 75)


def test_a_phase_that_wraps_is_not_counted_as_an_error() -> None:
    ramp = np.linspace(-6, 6, SHAPE[1])[None, :] ** 2 / 6 + np.zeros(SHAPE)
    truth = np.exp(1j * ramp)
    true_phase, phase = comparable_phases(truth, truth * np.exp(0.1j * smooth(3)))
    np.testing.assert_allclose(phase - true_phase, 0.1 * smooth(3), atol=1e-9)
    assert np.ptp(true_phase) == pytest.approx(np.ptp(ramp), rel=1e-6)
    assert np.abs(np.diff(true_phase, axis=1)).max() < np.pi / 2


@pytest.mark.parametrize(
    "image", [np.ones(SHAPE), np.exp(2j * smooth(8)), noisy(np.zeros(SHAPE, complex), 1)]
)
def test_a_bad_reconstruction_gets_bad_scores_without_a_crash(image: NDArray[np.complex128]) -> None:
    result = evaluate(image, make_truth(), coverage=coverage_map())
    assert result.phase_ssim < 0.5
    assert result.nrmse > 0.1
    assert result.frc_half_px is None or result.frc_half_px > 8
    json.dumps(result.to_json(), allow_nan=False)


def broken(value: complex) -> NDArray[np.complex128]:
    image = make_truth()
    image[50, 50] = value
    return image


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (broken(np.nan), {}, "reconstruction has 1 values that are not finite"),
        (broken(np.inf), {}, "reconstruction has 1 values that are not finite"),
        (np.zeros(SHAPE), {}, "reconstruction is zero everywhere"),
        (make_truth()[:-1], {}, r"reconstruction \(119, 96\) with a truth \(120, 96\)"),
        (make_truth(), {"coverage": np.zeros(SHAPE)}, "coverage map is zero everywhere"),
        (make_truth(), {"coverage": np.ones((3, 3))}, r"coverage map \(3, 3\)"),
        (make_truth(), {"trim_px": 45}, r"only 30 x 6 pixels are left"),
        (make_truth(), {"trim_px": 60}, r"only 0 x 0 pixels are left"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    image: NDArray[np.complex128], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(image, make_truth(), **options)


def test_rings_of_white_noise_are_uncorrelated_and_of_equal_images_are_one() -> None:
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(2, *SHAPE))
    rings = ring_correlation(first, second)
    assert abs(np.average(rings.correlation, weights=rings.pixels)) < 0.05
    assert rings.resolution_px(0.5) is None
    np.testing.assert_allclose(ring_correlation(first, first).correlation, 1)


def test_the_crossing_is_found_where_the_spectra_part() -> None:
    truth = make_truth()
    spectrum = np.fft.fft2(np.random.default_rng(0).normal(size=(256, 256)))
    other = np.fft.fft2(np.random.default_rng(1).normal(size=(256, 256)))
    radius = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256))
    mixed = np.fft.ifft2(np.where(radius < 0.2, spectrum, other))
    period = ring_correlation(np.fft.ifft2(spectrum), mixed).resolution_px(0.5)
    assert period == pytest.approx(5.0, rel=0.03)
    assert truth.shape == SHAPE


def test_half_bit_threshold_matches_the_printed_values() -> None:
    # (0.2071 + 1.9102/sqrt(n)) / (1.2071 + 0.9102/sqrt(n)): 1 for a single pixel, 0.1716 for very many.
    values = half_bit_threshold(np.array([1, 100, 10**10]))
    np.testing.assert_allclose(values, [1.0, 0.30662, 0.17158], rtol=1e-3)


def test_scores_agree_with_scikit_image() -> None:
    from skimage.metrics import normalized_root_mse, peak_signal_noise_ratio

    truth, image = np.abs(make_truth()), np.abs(noisy(make_truth(), 0.05))
    spread = np.ptp(truth)
    assert psnr_db(truth, image) == pytest.approx(
        peak_signal_noise_ratio(truth, image, data_range=spread), abs=1e-4
    )
    assert nrmse(truth + 0j, image + 0j) == pytest.approx(normalized_root_mse(truth, image), abs=1e-4)


def test_scores_and_rings_agree_with_ptychodus() -> None:
    reason = "the ptychodus extra is not installed"
    theirs = pytest.importorskip("ptychodus.api.metrics", reason=reason)
    truth, image = make_truth(), noisy(make_truth(), 0.08)
    amplitudes = np.abs(truth), np.abs(image)
    assert ssim(*amplitudes) == pytest.approx(theirs.compute_structural_similarity(*amplitudes), abs=1e-4)
    assert psnr_db(*amplitudes) == pytest.approx(
        theirs.compute_peak_signal_to_noise_ratio(*amplitudes), abs=1e-4
    )
    error = theirs.compute_root_mean_square_error(truth, image) / np.sqrt(np.mean(np.abs(truth) ** 2))
    assert nrmse(truth, image) == pytest.approx(error, abs=1e-4)
    rings = ring_correlation(truth, image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = theirs.compute_fourier_ring_correlation(truth, image, 1.0, 1.0)
    np.testing.assert_allclose(rings.correlation, reference.correlation[1:], atol=1e-4)
    np.testing.assert_allclose(rings.frequency_per_px, reference.spatial_frequency_per_m[1:], atol=1e-9)
    for ours, their in (
        (rings.resolution_px(0.5), reference.get_resolution_m(0.5)),
        (rings.resolution_px(1 / 7), reference.get_resolution_m(1 / 7)),
        (rings.resolution_px(rings.half_bit), reference.get_resolution_m_at_bit_threshold(0.5)),
    ):
        assert ours == pytest.approx(their, rel=1e-3)
