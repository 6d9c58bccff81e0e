"""Domain, scan axis and patch center are found from evidence, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
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
