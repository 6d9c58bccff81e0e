"""CXI files: raw ones in meters, those of Ptychodus, and the direction that translations mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.formats.cxi import write_cxi
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import simulate_scan

PETRA = Path(__file__).parents[5] / "shared" / "data" / "PETRAIII_P25_Near_Field_Ptycho.cxi"


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=16, patterns=25, photons=1e5, modes=2, seed=3, bad_pixels=2)


def raw_file(path: Path, scan: ScanData, **changes: Any) -> Path:
    """Write what a beamline writes: detector data, geometry and translations of the sample, no images."""
    detector, source = "entry_1/instrument_1/detector_1", "entry_1/instrument_1/source_1"
    assert scan.pixel_size_m is not None
    assert scan.photon_energy_eV is not None
    meters = -scan.positions_px * scan.pixel_size_m
    values: dict[str, Any] = {
        "entry_1/sample_1/geometry_1/translation": np.stack(
            [meters[:, 1], meters[:, 0], np.zeros(len(scan))], axis=1
        ),
        f"{detector}/data": np.asarray(scan.patterns),
        f"{detector}/distance": scan.detector_distance_m,
        f"{detector}/x_pixel_size": scan.detector_pixel_size_m,
        f"{detector}/y_pixel_size": scan.detector_pixel_size_m,
        f"{detector}/mask": (~scan.good_pixels).astype(np.uint32),
        f"{source}/energy": scan.photon_energy_eV * 1.602176634e-19,
    }
    values |= {f"{detector}/{name}": value for name, value in changes.items()}
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            if value is not None:
                file[name] = value
    return path


def test_round_trip(scan: ScanData, tmp_path: Path) -> None:
    read = read_scan(write_cxi(scan, tmp_path / "scan.cxi"))
    rows = np.arange(25)
    np.testing.assert_array_equal(read.amplitude(rows), scan.amplitude(rows), strict=True)
    np.testing.assert_allclose(read.positions_px, scan.positions_px, atol=1e-9)
    np.testing.assert_array_equal(read.probe, scan.probe)
    np.testing.assert_array_equal(read.object_guess, scan.object_guess)
    assert read.photon_energy_eV == pytest.approx(scan.photon_energy_eV, rel=1e-12)
    assert read.pixel_size_m == pytest.approx(scan.pixel_size_m)


def test_raw_file_gives_positions_in_pixels(scan: ScanData, tmp_path: Path) -> None:
    read = read_scan(raw_file(tmp_path / "raw.cxi", scan))
    assert read.probe is None
    assert read.pixel_size_m == pytest.approx(scan.pixel_size_m, rel=1e-6)
    offset = read.positions_px - scan.positions_px
    np.testing.assert_allclose(offset, np.broadcast_to(offset[0], offset.shape), atol=1e-4)
    np.testing.assert_array_equal(read.amplitude([3]), scan.amplitude([3]))
    assert any("move the sample" in warning for warning in read.report["warnings"])
    # The canvas moved, and the center in meters with it: the same point of the stage is the same point.
    assert read.pixel_size_m is not None
    middle = (np.array(read.canvas_shape) - 1) / 2
    stage = (read.positions_px - middle) * read.pixel_size_m + np.array(read.object_center_m)
    np.testing.assert_allclose(stage, scan.positions_px * read.pixel_size_m, atol=1e-12)


def test_without_basis_vectors_it_is_said_how_rows_and_columns_are_taken(
    scan: ScanData, tmp_path: Path
) -> None:
    read = read_scan(raw_file(tmp_path / "raw.cxi", scan))
    (finding,) = [row for row in read.findings if "basis_vectors" in row.what]
    assert (finding.code, finding.level) == ("reading", "note")
    assert "rows are taken to run along +y and columns along +x" in finding.what
    other = read_scan(tmp_path / "raw.cxi", DataConfig(orient="flip-yx"))  # what other programs take
    total = read.positions_px + other.positions_px
    np.testing.assert_allclose(total, np.broadcast_to(total[0], total.shape), atol=1e-6)
    basis = np.array([[0.0, 1e-4], [1e-4, 0.0], [0.0, 0.0]])
    known = read_scan(raw_file(tmp_path / "b.cxi", scan, basis_vectors=basis))
    assert not any("basis_vectors" in row.what for row in known.findings)


def test_frames_that_are_not_square_have_the_object_pixel_of_the_square(
    scan: ScanData, tmp_path: Path
) -> None:
    path = raw_file(tmp_path / "raw.cxi", scan, data=np.asarray(scan.patterns)[:, :, 2:14], mask=None)
    with pytest.raises(DataError, match="16 x 12 pixels, not square") as caught:
        read_scan(path)
    assert "--crop 12" in caught.value.findings[0].fix
    assert "--pad 16" in caught.value.findings[0].fix
    padded, cropped = read_scan(path, DataConfig(pad=16)), read_scan(path, DataConfig(crop=12))
    assert padded.pixel_size_m == pytest.approx(scan.pixel_size_m)
    assert cropped.pixel_size_m == pytest.approx((scan.pixel_size_m or 0) * 16 / 12)
    for read, factor in ((padded, 1.0), (cropped, 12 / 16)):
        steps = np.diff(read.positions_px, axis=0)
        np.testing.assert_allclose(steps, np.diff(scan.positions_px, axis=0) * factor, atol=1e-4)


def test_units_and_pixel_size_that_are_given_win(scan: ScanData, tmp_path: Path) -> None:
    assert scan.pixel_size_m is not None
    path = raw_file(tmp_path / "raw.cxi", scan, distance=None)
    with pytest.raises(DataError, match="without distance") as caught:
        read_scan(path)
    assert "--pixel-size-m" in caught.value.findings[0].fix
    read = read_scan(path, DataConfig(pixel_size_m=scan.pixel_size_m))
    steps = np.diff(scan.positions_px, axis=0)
    np.testing.assert_allclose(np.diff(read.positions_px, axis=0), steps, atol=1e-4)
    read = read_scan(path, DataConfig(pixel_size_m=scan.pixel_size_m / 2e3, positions_unit="mm"))
    np.testing.assert_allclose(np.diff(read.positions_px, axis=0), 2 * steps, atol=1e-4)


@pytest.mark.parametrize(
    ("entry", "factor", "unit"),
    [
        ("source_1/energy", 1 / 1.602176634e-19, "eV"),
        ("source_1/energy", 1 / 1.602176634e-16, "keV"),
        ("detector_1/x_pixel_size", 1e6, "um"),
        ("detector_1/distance", 1e3, "mm"),
    ],
)
def test_a_number_in_another_unit_is_named_with_the_unit_that_fits(
    entry: str, factor: float, unit: str, scan: ScanData, tmp_path: Path
) -> None:
    path, name = raw_file(tmp_path / "raw.cxi", scan), f"entry_1/instrument_1/{entry}"
    right = read_scan(path)
    with h5py.File(path, "a") as file:
        file[name][...] = file[name][()] * factor
    with pytest.raises(DataError, match=rf"{name} is .* it would be plausible in .*\b{unit}\b") as caught:
        read_scan(path, DataConfig(positions_unit="um"))
    fix = caught.value.findings[0].fix
    given = read_scan(path, DataConfig(pixel_size_m=scan.pixel_size_m))
    np.testing.assert_allclose(given.positions_px, right.positions_px, atol=1e-4)
    assert any(", taken in " in row.what for row in given.findings)
    with h5py.File(path, "a") as file:
        assert f"['{name}'].attrs['units'] = 'UNIT'" in fix
        file[name].attrs["units"] = unit
    read = read_scan(path)
    np.testing.assert_allclose(read.positions_px, right.positions_px, atol=1e-6)
    assert read.photon_energy_eV == pytest.approx(right.photon_energy_eV)
    assert not any(", taken in " in row.what for row in read.findings)


def test_an_object_pixel_that_no_experiment_has_is_named_with_what_it_comes_from(
    scan: ScanData, tmp_path: Path
) -> None:
    path = raw_file(tmp_path / "raw.cxi", scan)
    with h5py.File(path, "a") as file:
        energy = file["entry_1/instrument_1/source_1/energy"]
        energy[...], energy.attrs["units"] = 8333.0, "J"  # it is eV
    with pytest.raises(DataError, match=r"the object's pixel size is .*; energy 5.201e\+22 eV") as caught:
        read_scan(path)
    assert "--pixel-size-m" in caught.value.findings[0].fix
    assert read_scan(path, DataConfig(pixel_size_m=scan.pixel_size_m)).pixel_size_m == scan.pixel_size_m


def test_translations_can_be_object_pixels(scan: ScanData, tmp_path: Path) -> None:
    path = raw_file(tmp_path / "raw.cxi", scan)
    meters = read_scan(path).positions_px
    with h5py.File(path, "a") as file:
        translation = file["entry_1/sample_1/geometry_1/translation"]
        translation[...] = translation[()] / scan.pixel_size_m
    with pytest.raises(DataError, match="the positions span") as caught:
        read_scan(path)
    assert "--positions-unit (m, mm, um, nm, angstrom or px)" in caught.value.findings[0].fix
    pixels = read_scan(path, DataConfig(positions_unit="px")).positions_px
    np.testing.assert_allclose(pixels, meters, atol=1e-3)
    with h5py.File(path, "a") as file:
        file["entry_1/sample_1/geometry_1/translation"].attrs["units"] = "pixels"
    np.testing.assert_allclose(read_scan(path).positions_px, meters, atol=1e-3)


def test_translation_of_the_probe_is_the_mirror_image(scan: ScanData, tmp_path: Path) -> None:
    path = raw_file(tmp_path / "raw.cxi", scan)
    sample, probe = read_scan(path), read_scan(path, DataConfig(translation="probe"))
    total = sample.positions_px + probe.positions_px
    np.testing.assert_allclose(total, np.broadcast_to(total[0], total.shape), atol=1e-6)


def test_basis_vectors_turn_the_axes(scan: ScanData, tmp_path: Path) -> None:
    """A detector whose rows run along -x and columns along +y: (y, x) on it is (-x, y) in the lab."""
    basis = np.array([[-1e-4, 0.0], [0.0, 1e-4], [0.0, 0.0]])
    plain = read_scan(raw_file(tmp_path / "a.cxi", scan))
    turned = read_scan(raw_file(tmp_path / "b.cxi", scan, basis_vectors=basis))
    centered = [s.positions_px - s.positions_px.mean(axis=0) for s in (plain, turned)]
    np.testing.assert_allclose(centered[1][:, 0], -centered[0][:, 1], atol=1e-6)
    np.testing.assert_allclose(centered[1][:, 1], centered[0][:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distance": None}, "without distance"),
        ({"x_pixel_size": None}, "without x_pixel_size"),
        ({"x_pixel_size": -1.0}, "x_pixel_size is -1.0"),
        ({"distance": np.nan}, "distance is"),
        ({"mask": np.zeros((3, 3), np.uint32)}, "bad-pixel mask has shape"),
        ({"basis_vectors": np.zeros((3, 2))}, "basis vectors"),
        ({"data": np.ones((25, 16))}, "without a stack of patterns"),
        ({"data": np.full((25, 16, 16), -1, np.int32)}, "negative"),
        ({"data": None}, "diffraction half is not there"),
    ],
)
def test_bad_raw_files_are_refused(
    scan: ScanData, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_scan(raw_file(tmp_path / "raw.cxi", scan, **changes))


def test_negative_values_at_masked_pixels_are_no_problem(scan: ScanData, tmp_path: Path) -> None:
    patterns = np.asarray(scan.patterns).astype(np.int32)
    patterns[:, ~scan.good_pixels] = -1
    read = read_scan(raw_file(tmp_path / "raw.cxi", scan, data=patterns))
    np.testing.assert_array_equal(read.amplitude([0]), scan.amplitude([0]))


def test_petra_file() -> None:
    if not PETRA.exists():
        pytest.skip("needs the PETRA III file of the shared test data (../shared/data)")
    with pytest.raises(DataError, match="this is a near-field scan"):
        read_scan(PETRA)
    read = read_scan(PETRA, DataConfig(propagation="far"))
    assert (len(read), read.n_pixels, read.report["bad_pixels"]) == (200, 100, 5)
    assert read.wavelength_m == pytest.approx(9.794912e-11, rel=1e-6)
    assert read.pixel_size_m == pytest.approx(9.794912e-11 * 1.12 / (100 * 55e-6), rel=1e-5)
    # Detector rows run along -y and columns along -x, and the sample moves against the probe.
    with h5py.File(PETRA) as file:
        translation = file["entry_1/sample_1/geometry_1/translation"][()].astype(float)
    offset = read.positions_px - translation[:, 1::-1] / read.pixel_size_m
    np.testing.assert_allclose(offset, np.broadcast_to(offset[0], offset.shape), atol=1e-3)


def test_the_program_reads_what_we_write(scan: ScanData, tmp_path: Path) -> None:
    plugin = pytest.importorskip("ptychodus.plugins.cxi_file", reason="needs the ptychodus extra")
    path = write_cxi(scan, tmp_path / "scan.cxi")
    product = plugin.CXIProductFileIO().read(path)
    dataset = plugin.CXIDiffractionFileReader().read(path)
    np.testing.assert_array_equal(next(iter(dataset)).get_patterns(), scan.patterns)
    np.testing.assert_array_equal(dataset.get_bad_pixels(), ~scan.good_pixels)
    np.testing.assert_array_equal(product.probes.get_probe_no_opr().get_array(), scan.probe)
    geometry = product.object_.get_geometry()
    y = geometry.map_probe_positions_to_object_y_px(product.probe_positions)
    np.testing.assert_allclose(y, scan.positions_px[:, 0], atol=1e-9)


def test_split_files_of_the_program_are_paired(scan: ScanData, tmp_path: Path) -> None:
    plugin = pytest.importorskip("ptychodus.plugins.cxi_file", reason="needs the ptychodus extra")
    combined = write_cxi(scan, tmp_path / "scan.cxi")
    pair = tmp_path / "pair"
    pair.mkdir()
    program = plugin.CXIProductFileIO()
    program.write(pair / "product.cxi", program.read(combined))
    dataset = plugin.CXIDiffractionFileReader().read(combined)
    plugin.CXIDiffractionFileWriter().write(pair / "diffraction.cxi", dataset)
    read = read_scan(pair / "product.cxi")
    np.testing.assert_allclose(read.positions_px, scan.positions_px, atol=1e-9)
    np.testing.assert_array_equal(read.amplitude([7]), scan.amplitude([7]))
