"""Writing arrays: the same bytes for the same scan, no stack in memory, geometry where it is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.data.convert import convert
from ptycho_torch.data.formats.npz import write_npz
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
