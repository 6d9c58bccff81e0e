"""Quantities with a unit are read with it; without one, as the format says."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.data.convert import convert
from ptycho_torch.data.read import read_scan
from ptycho_torch.simulate import save, simulate_scan
from tests.torch.data.scan_files import keys

SCAN = simulate_scan(n=16, patterns=20, photons=1e5, seed=1)
PIXEL = SCAN.pixel_size_m or 0.0


@pytest.mark.parametrize(
    ("unit", "size_m"),
    [("m", 1), (b"mm", 1e-3), ("\u00b5m", 1e-6), ("Micron", 1e-6), ("nm", 1e-9), ("\u00c5", 1e-10)],
)
def test_cxi_and_plain_keys_are_read_with_their_units(
    unit: str | bytes, size_m: float, tmp_path: Path
) -> None:
    source = save(SCAN, tmp_path / "scan.npz")
    path = convert(source, tmp_path / "scan.cxi", "cxi")
    plain, lengths = read_scan(path), ("distance", "x_pixel_size", "y_pixel_size")
    with h5py.File(path, "a") as file:
        detector = file["entry_1/instrument_1/detector_1"]
        for data in (*(detector[name] for name in lengths), file["entry_1/sample_1/geometry_1/translation"]):
            data[...] = data[()] / size_m
            data.attrs["units"] = unit
        energy = file["entry_1/instrument_1/source_1/energy"]
        energy[...] = energy[()] / 1.602176634e-16
        energy.attrs["unit"] = "keV"
    read = read_scan(path)
    np.testing.assert_allclose(read.positions_px, plain.positions_px, atol=1e-6)
    assert read.photon_energy_eV == pytest.approx(plain.photon_energy_eV)
    assert read.detector_distance_m == pytest.approx(plain.detector_distance_m)
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        for name, value in keys(SCAN, bad_pixels=None, objectGuess=None).items():
            file[name] = value
        for name in ("xcoords", "ycoords"):
            file[name][...] = file[name][()] * PIXEL / size_m
            file[name].attrs["units"] = unit
        with pytest.raises(DataError, match="the size of an object pixel is not known"):
            read_scan(tmp_path / "plain.h5")
        file["pixel_size_m"] = PIXEL / 1e-9
        file["pixel_size_m"].attrs["units"] = "nm"
        file["photon_energy_eV"] = 8.333
        file["photon_energy_eV"].attrs["units"] = "keV"
    read = read_scan(tmp_path / "plain.h5")
    differences = read.positions_px - SCAN.positions_px
    np.testing.assert_allclose(differences - differences[0], 0, atol=1e-6)
    assert read.pixel_size_m == pytest.approx(PIXEL)
    assert read.photon_energy_eV == pytest.approx(8333)


def test_pixels_and_no_unit_stay_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        for name, value in keys(SCAN, bad_pixels=None, objectGuess=None).items():
            file[name] = value
    plain = read_scan(path).positions_px
    for unit in ("px", "Pixels", ""):
        with h5py.File(path, "a") as file:
            file["xcoords"].attrs["units"] = file["ycoords"].attrs["units"] = unit
        np.testing.assert_array_equal(read_scan(path).positions_px, plain)
    with h5py.File(path, "a") as file:
        file["ycoords"].attrs["units"] = "furlongs"
        file["pixel_size_m"] = PIXEL
    with pytest.raises(DataError, match="ycoords has the unit 'furlongs'") as caught:
        read_scan(path)
    assert "nm" in caught.value.findings[0].expected
