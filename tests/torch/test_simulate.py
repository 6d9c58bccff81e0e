"""The simulator: repeatable, physical, exact at sub-pixel positions, and quick."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.data.read import read_scan
from ptycho_torch.simulate import diffract, make_object, make_probe, save, scan_positions, simulate_scan


def test_same_seed_same_scan_bit_by_bit() -> None:
    one, two, other = (simulate_scan(n=32, patterns=20, seed=s) for s in (7, 7, 8))
    np.testing.assert_array_equal(one.patterns, two.patterns)
    np.testing.assert_array_equal(one.positions_px, two.positions_px)
    np.testing.assert_array_equal(one.object_guess, two.object_guess)
    assert not np.array_equal(one.patterns, other.patterns)


def test_intensity_is_that_of_the_forward_model() -> None:
    """Against plain numpy in double precision, with a probe shifted by its Fourier phase ramp."""
    scan = simulate_scan(n=32, patterns=12, modes=3, noise=False, seed=4)
    assert scan.probe is not None
    assert scan.object_guess is not None
    k = np.fft.fftfreq(32)
    for row in range(12):
        origin = scan.origins_px[row]
        start = np.round(origin).astype(int)
        patch = scan.object_guess[start[0] : start[0] + 32, start[1] : start[1] + 32]
        dy, dx = origin - start
        ramp = np.exp(-2j * np.pi * (dy * k[:, None] + dx * k[None, :]))
        expected = np.zeros((32, 32))
        for mode in scan.probe.astype(complex):
            moved = np.fft.ifft2(np.fft.fft2(mode) * ramp)
            expected += np.abs(np.fft.fftshift(np.fft.fft2(moved * patch, norm="ortho"))) ** 2
        error = np.linalg.norm(scan.patterns[row] - expected) / np.linalg.norm(expected)
        assert error < 1e-5


def test_sub_pixel_positions_are_exact_for_a_smooth_object() -> None:
    """Moving object and position together by a part of a pixel changes nothing but a tilt of the patch."""
    y, x = np.mgrid[:80, :80]

    def wave(dy: float, dx: float) -> Any:
        amplitude = 0.8 + 0.1 * np.cos(2 * np.pi * (3 * (y - dy) + 2 * (x - dx)) / 40)
        return (amplitude * np.exp(0.4j * np.sin(2 * np.pi * (y - dy + x - dx) / 20))).astype(np.complex64)

    probe = make_probe(64, 1e5)
    still = diffract(wave(0, 0), probe, np.array([[39.5, 39.5]]))
    moved = diffract(wave(0.3, -0.4), probe, np.array([[39.8, 39.1]]))
    assert np.linalg.norm(moved - still) / np.linalg.norm(still) < 1e-4
    rounded = diffract(wave(0.3, -0.4), probe, np.array([[39.5, 39.5]]))
    assert np.linalg.norm(rounded - still) / np.linalg.norm(still) > 1e-2


def test_probe_modes_are_orthogonal_and_carry_the_photons() -> None:
    probe = make_probe(48, 5e4, modes=3).astype(complex).reshape(3, -1)
    gram = probe.conj() @ probe.T
    power = np.real(np.diag(gram))
    assert power.sum() == pytest.approx(5e4, rel=1e-5)
    np.testing.assert_allclose(power[1:] / power[:-1], 0.3, rtol=1e-4)
    assert np.abs(gram - np.diag(power)).max() < 1e-3 * power.sum()
    assert np.ptp(np.angle(probe[0][np.abs(probe[0]) > 1])) > 1, "the probe is curved"


def test_energy_is_kept_and_counts_are_poisson() -> None:
    clean = simulate_scan(n=32, patterns=400, photons=1e5, noise=False, seed=3)
    noisy = simulate_scan(n=32, patterns=400, photons=1e5, seed=3)
    expected, counts = np.asarray(clean.patterns, dtype=float), np.asarray(noisy.patterns, dtype=float)
    assert expected.sum(axis=(1, 2)).max() <= 1.0e5 * 1.001
    bright = expected > 20
    ratio = ((counts - expected)[bright] ** 2 / expected[bright]).mean()
    assert ratio == pytest.approx(1.0, abs=0.02)
    assert noisy.patterns.dtype == np.uint16


def test_bright_scans_are_stored_as_uint32() -> None:
    scan = simulate_scan(n=16, patterns=4, photons=1e8, bad_pixels=2, seed=1)
    assert scan.patterns.dtype == np.uint32
    assert (np.asarray(scan.patterns)[:, ~scan.good_pixels] == 2**32 - 1).all()
    assert scan.amplitude([0]).max() < 2**16


@pytest.mark.parametrize("kind", ["raster", "fermat"])
def test_positions_cover_the_field_evenly(kind: Any) -> None:
    points = scan_positions(400, 5.0, kind)
    assert points.shape == (400, 2)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(400)
    nearest = distance.min(axis=1)
    assert nearest.min() > 2.5
    assert nearest.max() < 7.6
    assert np.ptp(points, axis=0) == pytest.approx([100, 100], rel=0.2)


@pytest.mark.parametrize("kind", ["dead_leaves", "siemens_star", "star_and_leaves"])
def test_objects_have_amplitude_and_phase_in_range(kind: Any) -> None:
    canvas = make_object((150, 180), kind, np.random.default_rng(0))
    amplitude, phase = np.abs(canvas), np.angle(canvas)
    assert amplitude.min() >= 0.4999
    assert amplitude.max() <= 1.0001
    assert 0.5 < np.abs(phase).max() < 1.6
    assert amplitude.std() > 0.1
    assert phase.std() > 0.3


def test_every_patch_lies_on_the_canvas_and_scans_overlap() -> None:
    scan = simulate_scan(n=64, patterns=100, seed=2)
    assert (scan.origins_px >= 0).all()
    assert (scan.origins_px + 64 <= np.array(scan.canvas_shape)).all()
    assert 0.6 < scan.report["overlap_ratio"] < 0.9
    assert scan.report["warnings"] == []


def test_saved_scan_reads_back(tmp_path: Path) -> None:
    scan = simulate_scan(n=16, patterns=16, modes=2, bad_pixels=1, seed=3)
    read = read_scan(save(scan, tmp_path / "scan.npz"))
    np.testing.assert_array_equal(read.amplitude(range(16)), scan.amplitude(range(16)))
    np.testing.assert_array_equal(read.probe, scan.probe)
    assert read.report["photons_per_pattern"] == pytest.approx(scan.report["photons_per_pattern"])


@pytest.mark.parametrize(
    "arguments",
    [
        {"n": 4}, {"patterns": 0}, {"photons": 0.0}, {"photons": float("nan")}, {"modes": 0},
        {"bad_pixels": -1}, {"jitter_px": -1.0}, {"step_px": 0.0},
    ],
)  # fmt: skip
def test_impossible_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} is"):
        simulate_scan(**arguments)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="object_kind"):
        simulate_scan(n=16, patterns=4, object_kind="tree")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scan_kind"):
        simulate_scan(n=16, patterns=4, scan_kind="zigzag")  # type: ignore[arg-type]


def test_a_thousand_patterns_take_about_a_second() -> None:
    start = time.perf_counter()
    simulate_scan(n=64, patterns=1000)
    # About 0.7 s on one quiet core.
    assert time.perf_counter() - start < 6


def test_contrast_weakens_absorption_and_phase_in_proportion() -> None:
    full = simulate_scan(n=32, patterns=9, seed=1).object_guess
    half = simulate_scan(n=32, patterns=9, seed=1, contrast=0.5).object_guess
    assert full is not None
    assert half is not None
    np.testing.assert_allclose(1 - np.abs(half), (1 - np.abs(full)) / 2, atol=1e-6)
    np.testing.assert_allclose(np.angle(half), np.angle(full) / 2, atol=1e-6)


def test_an_aberration_changes_the_phase_of_the_probe_and_not_its_power() -> None:
    plain, structured = (make_probe(32, 1e4, aberration_rad=value) for value in (0.0, 1.5))
    np.testing.assert_allclose(np.abs(structured), np.abs(plain), rtol=1e-4, atol=1e-4)
    assert np.std(np.angle(structured * plain.conj())[np.abs(plain) > 1]) > 0.3


def test_impossible_arguments_are_told() -> None:
    with pytest.raises(DataError, match="contrast is 2"):
        simulate_scan(n=32, patterns=9, contrast=2.0)
