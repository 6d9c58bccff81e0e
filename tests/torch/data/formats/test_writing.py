"""Writing arrays: the same bytes for the same scan, no stack in memory, geometry where it is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.data.convert import convert
from ptycho_torch.data.formats.npz import write_npz
from ptycho_torch.data.formats.writing import (
    StackOut,
    require_geometry,
    scan_indexes,
    write_hdf5_arrays,
    write_npz_arrays,
)
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import simulate_scan


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=16, patterns=30, photons=5e4, seed=8, bad_pixels=1)


def test_the_same_scan_gives_the_same_bytes(scan: ScanData, tmp_path: Path) -> None:
    one, two = (write_npz(scan, tmp_path / name).read_bytes() for name in ("a.npz", "b.npz"))
    assert one == two


def test_writing_needs_geometry(tmp_path: Path) -> None:
    """Without it, the message names what to pass; with it, the detector pixel is worked out."""
    scan = simulate_scan(n=16, patterns=9)
    plain = {"xcoords": scan.positions_px[:, 1], "ycoords": scan.positions_px[:, 0]}
    np.savez(tmp_path / "a.npz", diff3d=scan.patterns, probeGuess=scan.probe, **plain)
    with pytest.raises(DataError, match="needs photon_energy_eV, detector_distance_m, pixel_size_m"):
        convert(tmp_path / "a.npz", tmp_path / "pair", "ptychodus")
    given = {"photon_energy_eV": 8333.0, "detector_distance_m": 1.0, "pixel_size_m": 2e-8}
    convert(tmp_path / "a.npz", tmp_path / "pair2", "ptychodus", **given)
    read = read_scan(tmp_path / "pair2")
    assert read.detector_pixel_size_m == pytest.approx(scan.detector_pixel_size_m, rel=1e-6)


@pytest.mark.parametrize("compress", [False, True])
def test_numpy_and_h5py_read_what_is_written(scan: ScanData, tmp_path: Path, compress: bool) -> None:
    arrays = {"stack": StackOut(scan, "intensity"), "x": np.arange(3.0), "name": np.float32(2.5)}
    write_npz_arrays(tmp_path / "scan.npz", arrays, compress=compress)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        write_hdf5_arrays(file, arrays, compression="gzip" if compress else None)
    with np.load(tmp_path / "scan.npz") as npz, h5py.File(tmp_path / "scan.h5") as hdf5:
        for found in (npz, hdf5):
            assert sorted(found) == ["name", "stack", "x"]
            np.testing.assert_array_equal(found["stack"][()], np.asarray(scan.patterns), strict=True)
            np.testing.assert_array_equal(found["x"][()], [0, 1, 2])
            assert found["name"][()] == 2.5


def test_a_stack_is_written_in_the_domain_asked_for(scan: ScanData) -> None:
    counts = np.asarray(scan.patterns).astype(float)
    counts[:, ~scan.good_pixels] = 0

    def written(source: ScanData, domain: str, **options: bool) -> Any:
        out = StackOut(source, domain, **options)
        whole = np.concatenate([block for _, block in out.blocks()])
        assert (whole.shape, whole.dtype) == (out.shape, out.dtype)
        return whole

    roots = replace(scan, patterns=scan.amplitude(np.arange(30)), domain="amplitude")
    np.testing.assert_array_equal(written(scan, "intensity", zero_bad=True), counts)
    np.testing.assert_array_equal(written(scan, "amplitude"), np.sqrt(counts).astype(np.float32), strict=True)
    np.testing.assert_allclose(written(roots, "intensity"), counts, rtol=1e-6)
    assert np.asarray(scan.patterns)[:, ~scan.good_pixels].all(), "the source is untouched"


def test_missing_geometry_is_named(scan: ScanData) -> None:
    assert require_geometry(scan, "pixel_size_m") == [scan.pixel_size_m]
    with pytest.raises(DataError, match="needs photon_energy_eV, and"):
        require_geometry(replace(scan, photon_energy_eV=None), "pixel_size_m", "photon_energy_eV")
    np.testing.assert_array_equal(scan_indexes(scan), np.arange(30))
    np.testing.assert_array_equal(scan_indexes(replace(scan, scan_index=np.arange(30) + 7)), np.arange(7, 37))
