"""The R factor distinguishes a right object from a wrong one without the truth, and noise from error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho_torch import simulate_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.reconstruction.r_factor import r_factor


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=32, patterns=100, photons=1e5, modes=2, bad_pixels=2)


def truth(scan: ScanData) -> np.ndarray:
    assert scan.object_guess is not None
    return np.asarray(scan.object_guess, np.complex64)


def test_the_true_object_leaves_nothing_but_noise(scan: ScanData) -> None:
    result = r_factor(scan, truth(scan))
    assert result is not None
    assert result.noise_r_factor == pytest.approx(result.r_factor, rel=0.05)
    assert result.unexplained < 0.02
    assert not result.poor
    assert result.patterns == 100


def test_a_flat_object_explains_nothing(scan: ScanData) -> None:
    result = r_factor(scan, np.ones(scan.canvas_shape, np.complex64))
    assert result is not None
    assert result.r_factor == pytest.approx(result.flat_r_factor)
    assert result.poor
    assert "a flat object gives" in result.line()


def test_an_object_shifted_by_two_pixels_is_result_poor(scan: ScanData) -> None:
    result = r_factor(scan, np.roll(truth(scan), 2, axis=0))
    assert result is not None
    assert result.poor


def test_scale_and_global_phase_make_no_difference(scan: ScanData) -> None:
    plain = r_factor(scan, truth(scan))
    other = r_factor(scan, (7 * np.exp(1j) * truth(scan)).astype(np.complex64))
    assert plain is not None
    assert other is not None
    assert other.r_factor == pytest.approx(plain.r_factor, rel=1e-4)


def test_amplitudes_have_no_known_noise(scan: ScanData) -> None:
    amplitudes = scan.amplitude(np.arange(len(scan)))
    result = r_factor(replace(scan, patterns=amplitudes, domain="amplitude"), truth(scan))
    assert result is not None
    assert result.noise_r_factor is None


def test_nothing_to_compare_is_said_as_such(scan: ScanData) -> None:
    assert r_factor(replace(scan, probe=None), truth(scan)) is None
    assert r_factor(scan, np.ones((8, 8), np.complex64)) is None
    assert r_factor(scan, np.zeros(scan.canvas_shape, np.complex64)) is None


def test_patches_beyond_the_canvas_take_no_part(scan: ScanData) -> None:
    moved = scan.positions_px.copy()
    moved[:10] -= 1000
    result = r_factor(replace(scan, positions_px=moved), truth(scan))
    assert result is not None
    assert result.patterns == 90
