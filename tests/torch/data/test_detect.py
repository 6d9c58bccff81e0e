"""Domain, scan axis and patch center are found from evidence, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.detect import bilinear_patch, find_quantum, fit_forward, shift_probe
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import simulate_scan
from tests.torch.data.scan_files import (
    keys,
    save_keys,
)


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=32, patterns=40, photons=2e4, seed=5, bad_pixels=3)


def test_axis_tie_is_refused_and_a_declaration_decides(tmp_path: Path) -> None:
    square = simulate_scan(n=16, patterns=16, seed=2)
    path = save_keys(tmp_path / "tie.npz", keys(square))
    with pytest.raises(DataError, match="ambiguous"):
        read_scan(path)
    first = read_scan(path, DataConfig(pattern_axes="first"))
    last = read_scan(path, DataConfig(pattern_axes="last"))
    np.testing.assert_array_equal(first.patterns[3], np.asarray(square.patterns)[3])
    np.testing.assert_array_equal(last.patterns[3], np.asarray(square.patterns)[:, :, 3])


def test_ambiguous_domain_is_refused_and_a_declaration_decides(scan: ScanData, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.random((len(scan), 32, 32)).astype(np.float32)
    path = save_keys(tmp_path / "noise.npz", keys(scan, diff3d=noise, bad_pixels=None))
    with pytest.raises(DataError, match=r"amplitude .* or intensity"):
        read_scan(path)
    read = read_scan(path, DataConfig(domain="intensity"))
    np.testing.assert_array_equal(read.amplitude([1])[0], np.sqrt(noise[1]))
    assert read.report["domain"] == {"value": "intensity", "why": "declared"}


def test_a_mask_beside_square_roots_of_counts_is_refused(scan: ScanData, tmp_path: Path) -> None:
    """The mask says Ptychodus, which stores counts; the numbers say amplitude: no guess."""
    path = save_keys(tmp_path / "scan.npz", keys(scan, diff3d=scan.amplitude(np.arange(len(scan)))))
    with pytest.raises(DataError, match="bad_pixels means counts"):
        read_scan(path)
    assert read_scan(path, DataConfig(domain="amplitude")).domain == "amplitude"


def test_center_is_measured_with_the_files_own_probe_and_object(tmp_path: Path) -> None:
    fine = simulate_scan(n=32, patterns=60, photons=1e6, seed=1)
    shifted = {"xcoords": fine.positions_px[:, 1] + 0.5, "ycoords": fine.positions_px[:, 0] + 0.5}
    for name, changes, expected in (("half", {}, "half-pixel"), ("pixel", shifted, "pixel")):
        read = read_scan(save_keys(tmp_path / f"{name}.npz", keys(fine, **changes)))
        assert read.report["patch_center"]["value"] == expected
        assert "measured" in read.report["patch_center"]["why"]
        np.testing.assert_allclose(read.positions_px, fine.positions_px)


@pytest.mark.parametrize("mask", [False, True])
def test_center_falls_back_to_the_convention_of_the_writing_program(
    scan: ScanData, tmp_path: Path, mask: bool
) -> None:
    flat = np.ones_like(scan.object_guess)
    path = save_keys(
        tmp_path / "scan.npz",
        keys(scan, objectGuess=flat, bad_pixels=~scan.good_pixels if mask else None),
    )
    center = read_scan(path).report["patch_center"]
    assert center["value"] == ("half-pixel" if mask else "pixel")
    assert "neither file nor settings declare it" in center["why"]


def test_the_quantum_of_scaled_counts_is_found() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(8, 5000).astype(float)
    assert find_quantum(0.37 * counts) == pytest.approx(0.37)
    assert find_quantum(rng.uniform(0, 30, 5000)) is None
    assert find_quantum(counts[:150]) is None


def test_a_sub_pixel_patch_of_a_plane_lies_on_the_plane() -> None:
    y, x = np.mgrid[:20, :20]
    patch = bilinear_patch((2.0 * y + 3j * x).astype(np.complex64), np.array([4.25, 7.5]), 6)
    expected = 2 * (4.25 + np.arange(6))[:, None] + 3j * (7.5 + np.arange(6))[None, :]
    np.testing.assert_allclose(patch, expected, rtol=1e-6)


def test_a_shifted_probe_is_the_probe_drawn_elsewhere() -> None:
    y, x = np.mgrid[:32, :32]

    def spot(dy: float, dx: float) -> NDArray[np.complex64]:
        return np.exp(-((y - 15 - dy) ** 2 + (x - 17 - dx) ** 2) / 8).astype(np.complex64)

    moved = shift_probe(spot(0, 0)[None], np.array([[0.4, -0.3], [2.0, 1.0]]))
    np.testing.assert_allclose(moved[:, 0], [spot(0.4, -0.3), spot(2, 1)], atol=1e-5)


def test_the_forward_model_explains_its_own_data_up_to_a_scale() -> None:
    clean = simulate_scan(n=32, patterns=20, noise=False, seed=4)
    assert clean.probe is not None
    assert clean.object_guess is not None
    amplitude = 3 * np.sqrt(np.asarray(clean.patterns, dtype=float))
    args = (clean.good_pixels, clean.probe, clean.object_guess, clean.origins_px)
    fit = fit_forward(amplitude, *args)
    assert fit is not None
    assert fit.scale == pytest.approx(3, rel=1e-4)
    assert fit.errors.max() < 1e-3
    wrong = fit_forward(amplitude[::-1], *args)
    assert wrong is not None
    assert wrong.error > 0.1
    assert fit_forward(amplitude[:7], *args[:3], clean.origins_px[:7]) is None
