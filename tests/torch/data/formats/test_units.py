"""Quantities with a unit are read with it; without one, as the format says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
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


def two_columns(path: Path, y: Any, x: Any) -> Path:
    """Write positions in two arrays, each with the unit that is given and its own factor."""
    with h5py.File(path, "w") as file:
        file["data"], file["probeGuess"], file["pixel_size_m"] = np.asarray(SCAN.patterns), SCAN.probe, PIXEL
        for name, column, (unit, size_m) in (
            ("y", SCAN.positions_px[:, 0], y),
            ("x", SCAN.positions_px[:, 1], x),
        ):
            file[name] = column * PIXEL / size_m
            if unit is not None:
                file[name].attrs["units"] = unit
    return path


NAMES = {"patterns": "data", "positions_y": "y", "positions_x": "x"}


@pytest.mark.parametrize(
    ("y", "x"),
    [
        (("um", 1e-6), ("mm", 1e-3)),
        ((np.array([b"um"]), 1e-6), (np.array(["nm"], dtype=object), 1e-9)),
    ],
    ids=["two units", "units in arrays of one string"],
)
def test_each_coordinate_is_read_with_its_unit(y: Any, x: Any, tmp_path: Path) -> None:
    read = read_scan(two_columns(tmp_path / "scan.h5", y, x), DataConfig(map=NAMES))
    steps = np.diff(SCAN.positions_px, axis=0)
    np.testing.assert_allclose(np.diff(read.positions_px, axis=0), steps, atol=1e-6)


def test_a_length_beside_a_number_without_unit_is_asked_about(tmp_path: Path) -> None:
    path = two_columns(tmp_path / "scan.h5", ("um", 1e-6), (None, 1e-6))
    with pytest.raises(DataError, match="y has the unit 'um', x none that is a length") as caught:
        read_scan(path, DataConfig(map=NAMES))
    assert "--positions-unit" in caught.value.findings[0].fix
    read = read_scan(path, DataConfig(map=NAMES, positions_unit="um"))
    steps = np.diff(SCAN.positions_px, axis=0)
    np.testing.assert_allclose(np.diff(read.positions_px, axis=0), steps, atol=1e-6)
