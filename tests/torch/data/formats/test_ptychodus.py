"""Ptychodus files: the golden set in all its forms, pairing by index, old names, and the program itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.data.convert import convert
from ptycho_torch.data.formats import ptychodus
from ptycho_torch.data.formats.paired import match_indexes
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import simulate_scan

GOLDEN = Path(__file__).parents[5] / "shared" / "data" / "ptychodus170_golden"


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=16, patterns=25, photons=1e5, modes=2, seed=3, bad_pixels=2)


@pytest.fixture
def golden() -> Path:
    if not GOLDEN.exists():
        pytest.skip("needs ptychodus170_golden of the shared test data (../shared/data)")
    return GOLDEN


def assert_same_scan(one: ScanData, two: ScanData, *, position_tolerance_px: float = 1e-9) -> None:
    rows = np.arange(len(two))
    np.testing.assert_array_equal(one.amplitude(rows), two.amplitude(rows), strict=True)
    np.testing.assert_allclose(one.positions_px, two.positions_px, atol=position_tolerance_px, rtol=0)
    np.testing.assert_array_equal(one.probe, two.probe)
    np.testing.assert_array_equal(one.object_guess, two.object_guess)
    np.testing.assert_array_equal(one.good_pixels, two.good_pixels)
    assert one.canvas_shape == two.canvas_shape


@pytest.mark.parametrize("name", ["", "product.h5", "diffraction.h5", "training_data.h5"])
def test_golden_files_agree_bit_by_bit(golden: Path, name: str) -> None:
    read, npz = read_scan(golden / name), read_scan(golden / "train_data.npz")
    assert_same_scan(read, npz, position_tolerance_px=0.0)
    assert read.pixel_size_m == 2e-8
    assert read.photon_energy_eV == 8333.0
    assert read.report["patch_center"]["value"] == "half-pixel"
    assert read.report["warnings"] == []


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_round_trip_of_a_pair(scan: ScanData, tmp_path: Path, suffix: str) -> None:
    ptychodus.write_ptychodus(scan, tmp_path / "pair", suffix=suffix)
    assert sorted(f.name for f in (tmp_path / "pair").iterdir()) == [
        f"diffraction{suffix}",
        f"product{suffix}",
    ]
    read = read_scan(tmp_path / "pair")
    assert_same_scan(read, scan)
    assert read.patterns.dtype == np.uint16
    assert read.photon_energy_eV == scan.photon_energy_eV
    assert set(read.report["files"]) == {f"diffraction{suffix}", f"product{suffix}"}
    assert read.sha256 == read_scan(tmp_path / "pair" / f"product{suffix}").sha256


def test_round_trip_of_a_training_file(scan: ScanData, tmp_path: Path) -> None:
    assert_same_scan(read_scan(ptychodus.write_training(scan, tmp_path / "train.h5")), scan)


def test_names_of_halves_may_carry_a_prefix(scan: ScanData, tmp_path: Path) -> None:
    ptychodus.write_product(scan, tmp_path / "run7-product.h5")
    ptychodus.write_diffraction(scan, tmp_path / "run7-diffraction.npz")
    assert_same_scan(read_scan(tmp_path / "run7-product.h5"), scan)


@pytest.mark.parametrize(("half", "other"), [("product", "diffraction"), ("diffraction", "product")])
def test_a_lone_half_names_the_missing_one(scan: ScanData, tmp_path: Path, half: str, other: str) -> None:
    ptychodus.write_ptychodus(scan, tmp_path)
    (tmp_path / f"{other}.h5").unlink()
    with pytest.raises(DataError, match=f"its {other} half is not there"):
        read_scan(tmp_path / f"{half}.h5")


def test_old_attribute_names_are_read(scan: ScanData, tmp_path: Path) -> None:
    ptychodus.write_ptychodus(scan, tmp_path)
    with h5py.File(tmp_path / "product.h5", "a") as file:
        file.attrs["probe_energy_eV"] = file.attrs["photon_energy_eV"]
        file.attrs["mass_attenuation_m2_kg"] = 0.0
        for name in ("photon_energy_eV", "mass_attenuation_m2_per_kg", "tilt_angle_deg", "far_field"):
            del file.attrs[name]
        del file["object_layer_spacing_m"], file["loss_values"], file["loss_epochs"]
        file["costs"] = np.ones(3)
        file["probe"].attrs["opr_weights"] = np.ones(1)
    read = read_scan(tmp_path)
    assert_same_scan(read, scan)
    assert read.photon_energy_eV == scan.photon_energy_eV


def test_pairing_is_by_index_not_by_order(scan: ScanData, tmp_path: Path) -> None:
    ptychodus.write_ptychodus(scan, tmp_path)
    order = np.random.default_rng(0).permutation(25)
    with h5py.File(tmp_path / "product.h5", "a") as file:
        for name in ("probe_position_indexes", "probe_position_x_m", "probe_position_y_m"):
            file[name][...] = file[name][()][order]
    assert_same_scan(read_scan(tmp_path), scan)


def test_repeated_missing_and_unmatched_indexes_are_counted(scan: ScanData, tmp_path: Path) -> None:
    """As Ptychodus does it: repeats averaged, gaps interpolated, patterns beyond the ends left out."""
    ptychodus.write_ptychodus(scan, tmp_path)
    with h5py.File(tmp_path / "product.h5", "a") as file:
        kept = [3, 3, 4, 6, 7, 20, 30]
        for name, values in (
            ("probe_position_indexes", np.array(kept)),
            ("probe_position_y_m", np.array([1.0, 3.0, 5.0, 9.0, 10.0, 36.0, 40.0]) * 4e-9),
            ("probe_position_x_m", np.zeros(7)),
        ):
            del file[name]
            file[name] = values
    read = read_scan(tmp_path)
    assert read.scan_index is not None
    np.testing.assert_array_equal(read.scan_index, np.arange(3, 25))
    middle = (scan.canvas_shape[0] - 1) / 2
    np.testing.assert_allclose(read.positions_px[:5, 0] - middle, [0.4, 1.0, 1.4, 1.8, 2.0], atol=1e-9)
    np.testing.assert_array_equal(read.amplitude(range(22)), scan.amplitude(range(3, 25)))
    assert read.report["warnings"][:4] == [
        "1 repeated position indexes were averaged",
        "17 positions were missing and were interpolated",
        "3 patterns have no position and were left out",
        "1 positions have no pattern and were left out",
    ]


def test_pairing_without_a_common_index_is_refused() -> None:
    with pytest.raises(DataError, match="no pattern has a position"):
        match_indexes(np.arange(5), np.arange(10, 15), np.zeros((5, 2)), "here")


@pytest.mark.parametrize(
    "name",
    ["probe_position_indexes", "probe_position_x_m", "probe_position_y_m", "object", "probe"],
)
def test_a_missing_dataset_is_named(scan: ScanData, tmp_path: Path, name: str) -> None:
    ptychodus.write_ptychodus(scan, tmp_path)
    with h5py.File(tmp_path / "product.h5", "a") as file:
        del file[name]
    with pytest.raises(DataError, match=f"{name} is missing"):
        read_scan(tmp_path)


def test_a_product_without_pixel_size_is_refused(scan: ScanData, tmp_path: Path) -> None:
    ptychodus.write_ptychodus(scan, tmp_path)
    with h5py.File(tmp_path / "product.h5", "a") as file:
        del file["object"].attrs["pixel_width_m"]
    with pytest.raises(DataError, match="pixel_width_m is None"):
        read_scan(tmp_path)


def test_links_to_other_files_are_refused(scan: ScanData, tmp_path: Path) -> None:
    ptychodus.write_ptychodus(scan, tmp_path)
    shutil.move(tmp_path / "diffraction.h5", tmp_path / "elsewhere.h5")
    with h5py.File(tmp_path / "diffraction.h5", "w") as file:
        file["patterns"] = h5py.ExternalLink(str(tmp_path / "elsewhere.h5"), "/patterns")
    with pytest.raises(DataError, match="a link to another file"):
        read_scan(tmp_path)


def test_several_layers_and_probes_are_reported(scan: ScanData, tmp_path: Path) -> None:
    ptychodus.write_ptychodus(scan, tmp_path)
    with h5py.File(tmp_path / "product.h5", "a") as file:
        for name in ("object", "probe"):
            values, attributes = file[name][()], dict(file[name].attrs)
            del file[name]
            file[name] = np.concatenate([values, values])
            file[name].attrs.update(attributes)
    read = read_scan(tmp_path)
    assert_same_scan(read, scan)
    assert len(read.report["warnings"]) == 2


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


# The released program itself as the judge; `pip install ptychodus` (the extra of that name) enables these.


def positions_px(product: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    geometry = product.object_.get_geometry()
    points = product.probe_positions
    y = geometry.map_probe_positions_to_object_y_px(points)
    return np.stack([y, geometry.map_probe_positions_to_object_x_px(points)], axis=1)


def test_golden_pair_reads_as_in_the_program(golden: Path) -> None:
    io = pytest.importorskip("ptychodus.api.io", reason="needs the ptychodus extra")
    product, data = (
        io.load_product(golden / "product.h5"),
        io.load_diffraction_data(golden / "diffraction.h5"),
    )
    ours = read_scan(golden)
    np.testing.assert_array_equal(ours.positions_px, positions_px(product))
    np.testing.assert_array_equal(ours.patterns, data.get_patterns())
    np.testing.assert_array_equal(~ours.good_pixels, data.get_bad_pixels())


def test_the_program_pairs_as_we_do(scan: ScanData, tmp_path: Path) -> None:
    io = pytest.importorskip("ptychodus.api.io", reason="needs the ptychodus extra")
    reconstruct = pytest.importorskip("ptychodus.api.reconstruct")
    ptychodus.write_ptychodus(scan, tmp_path)
    rng = np.random.default_rng(1)
    chosen = rng.choice(np.arange(1, 24), 18)
    with h5py.File(tmp_path / "product.h5", "a") as file:
        for name in ("probe_position_indexes", "probe_position_x_m", "probe_position_y_m"):
            values = file[name][()][chosen]
            del file[name]
            file[name] = values
    product = io.load_product(tmp_path / "product.h5")
    data = io.load_diffraction_data(tmp_path / "diffraction.h5")
    theirs = reconstruct.prepare_reconstruct_input(data, product)
    ours = read_scan(tmp_path)
    np.testing.assert_allclose(ours.positions_px, positions_px(theirs.product), atol=1e-9)
    np.testing.assert_array_equal(ours.patterns[:], theirs.diffraction_patterns)


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_the_program_reads_what_we_write(scan: ScanData, tmp_path: Path, suffix: str) -> None:
    io = pytest.importorskip("ptychodus.api.io", reason="needs the ptychodus extra")
    ptychodus.write_ptychodus(scan, tmp_path, suffix=suffix)
    if suffix == ".h5":
        product = io.load_product(tmp_path / "product.h5")
        patterns = io.load_diffraction_data(tmp_path / "diffraction.h5").get_patterns()
    else:
        reader = pytest.importorskip("ptychodus.plugins.npz_product_file").NPZProductFileIO()
        product = reader.read(tmp_path / "product.npz")
        data = pytest.importorskip("ptychodus.plugins.npz_diffraction_file").NPZDiffractionFileIO()
        patterns = next(iter(data.read(tmp_path / "diffraction.npz"))).get_patterns()
    np.testing.assert_allclose(positions_px(product), scan.positions_px, atol=1e-9)
    np.testing.assert_array_equal(patterns, scan.patterns)
    np.testing.assert_array_equal(product.object_.get_layer(0), scan.object_guess)
    np.testing.assert_array_equal(product.probes.get_probe_no_opr().get_array(), scan.probe)
    assert product.metadata.photon_energy_eV == scan.photon_energy_eV


def test_the_program_reads_our_training_file(scan: ScanData, tmp_path: Path) -> None:
    plugin = pytest.importorskip("ptychodus.plugins.training_data_file", reason="needs the ptychodus extra")
    ptychodus.write_training(scan, tmp_path / "train.h5")
    product = plugin.TrainingDataProductFileReader().read(tmp_path / "train.h5")
    np.testing.assert_allclose(positions_px(product), scan.positions_px, atol=1e-9)
