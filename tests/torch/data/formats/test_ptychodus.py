"""Ptychodus files: the golden set in all its forms, old names, and the program itself."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.formats import ptychodus
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import simulate_scan
from tests.torch.data.formats.same_scan import assert_same_scan, positions_px

GOLDEN = Path(__file__).parents[5] / "shared" / "data" / "ptychodus170_golden"


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=16, patterns=25, photons=1e5, modes=2, seed=3, bad_pixels=2)


@pytest.fixture
def golden() -> Path:
    if not GOLDEN.exists():
        pytest.skip("needs ptychodus170_golden of the shared test data (../shared/data)")
    return GOLDEN


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


def test_near_field_products_are_read_as_far_field_only_when_asked(scan: ScanData, tmp_path: Path) -> None:
    ptychodus.write_ptychodus(scan, tmp_path)
    with h5py.File(tmp_path / "product.h5", "a") as file:
        file.attrs["far_field"] = False
    with pytest.raises(DataError, match="declares near-field propagation") as caught:
        read_scan(tmp_path)
    assert "--propagation far" in caught.value.findings[0].fix
    assert len(read_scan(tmp_path, DataConfig(propagation="far"))) == len(scan)


def test_an_option_that_the_format_leaves_nothing_to_say_to_is_refused(
    scan: ScanData, tmp_path: Path
) -> None:
    ptychodus.write_ptychodus(scan, tmp_path)
    with pytest.raises(DataError, match="positions_unit = um has no effect"):
        read_scan(tmp_path, DataConfig(positions_unit="um"))
    assert scan.pixel_size_m is not None
    fine = read_scan(tmp_path, DataConfig(pixel_size_m=scan.pixel_size_m / 2, canvas="positions"))
    assert fine.pixel_size_m == scan.pixel_size_m / 2
    np.testing.assert_allclose(
        np.diff(fine.positions_px, axis=0), 2 * np.diff(scan.positions_px, axis=0), atol=1e-6
    )


def test_positions_of_a_product_in_another_unit_are_corrected_where_the_message_says(
    scan: ScanData, tmp_path: Path
) -> None:
    ptychodus.write_ptychodus(scan, tmp_path)
    columns = ("probe_position_y_m", "probe_position_x_m")
    with h5py.File(tmp_path / "product.h5", "a") as file:
        for name in columns:
            file[name][...] = file[name][()] * 1e6
    for canvas in ("auto", "positions"):
        with pytest.raises(DataError) as caught:
            read_scan(tmp_path, DataConfig(canvas=canvas))
        finding = caught.value.findings[0]
        assert "--positions-unit" not in finding.fix
        assert "multiply probe_position_y_m and probe_position_x_m in the file" in finding.fix
    with h5py.File(tmp_path / "product.h5", "a") as file:
        for name in columns:
            file[name][...] = file[name][()] * 1e-6
    assert_same_scan(read_scan(tmp_path), scan, position_tolerance_px=1e-6)


def test_positions_of_a_training_file_in_meters_are_corrected_where_the_message_says(
    scan: ScanData, tmp_path: Path
) -> None:
    path = ptychodus.write_training(scan, tmp_path / "train.h5")
    columns = ("probe_position_y_px", "probe_position_x_px")
    assert scan.pixel_size_m is not None
    with h5py.File(path, "a") as file:
        for name in columns:
            file[name][...] = file[name][()] * scan.pixel_size_m
    with pytest.raises(DataError, match="lie within") as caught:
        read_scan(path, DataConfig(canvas="positions"))
    finding = caught.value.findings[0]
    assert "--positions-unit" not in finding.fix
    assert "divide probe_position_y_px and probe_position_x_px in the file" in finding.fix
    assert not finding.options
    with h5py.File(path, "a") as file:
        for name in columns:
            file[name][...] = file[name][()] / scan.pixel_size_m
    assert_same_scan(read_scan(path), scan, position_tolerance_px=1e-6)


def test_an_object_pixel_in_another_unit_is_refused_and_can_be_given(scan: ScanData, tmp_path: Path) -> None:
    ptychodus.write_ptychodus(scan, tmp_path)
    assert scan.pixel_size_m is not None
    with h5py.File(tmp_path / "product.h5", "a") as file:
        for side in ("height", "width"):
            file["object"].attrs[f"pixel_{side}_m"] = scan.pixel_size_m * 1e9
    with pytest.raises(DataError, match=r"pixel_height_m is 20, taken in m, .* in um or nm or pm") as caught:
        read_scan(tmp_path)
    assert "--pixel-size-m METERS" in caught.value.findings[0].fix
    assert_same_scan(
        read_scan(tmp_path, DataConfig(pixel_size_m=scan.pixel_size_m)), scan, position_tolerance_px=1e-6
    )


# The released program itself as the judge; `pip install ptychodus` (the extra of that name) enables these.


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
