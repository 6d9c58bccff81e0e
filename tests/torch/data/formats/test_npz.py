"""NPZ scans: every dialect gives one tensor, and what is written reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.formats.npz import write_npz
from ptycho_torch.data.read import pattern_size, read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage import patterns
from ptycho_torch.simulate import diffract, simulate_scan
from tests.torch.data.scan_files import keys, save_keys

SHARED = Path(__file__).parents[5] / "shared" / "data"


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=32, patterns=40, photons=2e4, seed=5, bad_pixels=3)


def dialects(scan: ScanData) -> dict[str, dict[str, Any]]:
    counts = np.where(scan.good_pixels, np.asarray(scan.patterns), 0)
    amplitude = np.sqrt(counts.astype(np.float32))
    last = np.moveaxis(np.sqrt(counts.astype(np.float64)), 0, -1)
    return {
        "float amplitude": keys(scan, diff3d=amplitude, bad_pixels=None),
        "counts under diff3d": keys(scan, diff3d=counts.astype(np.float32), bad_pixels=None),
        "Ptychodus uint16": keys(scan),
        "legacy (N, N, M)": keys(scan, diff3d=None, diffraction=np.ascontiguousarray(last), bad_pixels=None),
        "Fortran order": keys(scan, diff3d=np.asfortranarray(amplitude), bad_pixels=None),
        "legacy counts": keys(
            scan, diff3d=None, diffraction=np.moveaxis(counts.astype(float), 0, -1), bad_pixels=None
        ),
    }


@pytest.mark.parametrize("name", dialects(simulate_scan(n=16, patterns=10)))
@pytest.mark.parametrize("streamed", [False, True])
def test_dialects_give_the_identical_tensor(
    scan: ScanData, tmp_path: Path, name: str, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if streamed:
        monkeypatch.setattr(patterns, "MEMORY_BUDGET_BYTES", 0)
    read = read_scan(save_keys(tmp_path / "scan.npz", dialects(scan)[name]))
    expected = scan.amplitude(np.arange(len(scan)))
    np.testing.assert_array_equal(read.amplitude(np.arange(len(scan))), expected, strict=True)
    np.testing.assert_array_equal(read.positions_px, scan.positions_px)
    assert read.domain == ("intensity" if "ount" in name or "uint16" in name else "amplitude")
    assert isinstance(read.patterns, np.ndarray) is not streamed


def test_uint16_stays_uint16(scan: ScanData, tmp_path: Path) -> None:
    read = read_scan(save_keys(tmp_path / "scan.npz", keys(scan)))
    assert read.patterns.dtype == np.uint16
    assert read.report["dtype"] == "uint16"
    assert not read.amplitude([0])[0][~scan.good_pixels].any()


def test_metadata_needs_allow_pickle(scan: ScanData, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random((len(scan), 32, 32))
    note = np.array(json.dumps({"domain": "amplitude", "nphotons": 1e5}), dtype=object)
    path = save_keys(tmp_path / "meta.npz", keys(scan, diff3d=noise, bad_pixels=None, _metadata=note))
    with pytest.raises(DataError, match="cannot decide"):
        read_scan(path)
    read = read_scan(path, DataConfig(allow_pickle=True))
    assert read.domain == "amplitude"
    assert read.report["metadata"]["nphotons"] == 1e5


@pytest.mark.parametrize("layout", ["(N, N)", "(N, N, 1)", "(P, N, N)"])
def test_probe_layouts(scan: ScanData, tmp_path: Path, layout: str) -> None:
    assert scan.probe is not None
    single = scan.probe[0]
    probe = {"(N, N)": single, "(N, N, 1)": single[..., None], "(P, N, N)": np.stack([single, single])}[
        layout
    ]
    read = read_scan(save_keys(tmp_path / "scan.npz", keys(scan, probeGuess=probe.astype(complex))))
    assert read.probe is not None
    assert read.probe.shape == (2 if layout == "(P, N, N)" else 1, 32, 32)
    np.testing.assert_array_equal(read.probe[-1], single, strict=True)


@pytest.mark.parametrize("domain", ["intensity", "amplitude"])
@pytest.mark.parametrize("compress", [False, True])
def test_round_trip(scan: ScanData, tmp_path: Path, domain: str, compress: bool) -> None:
    path = write_npz(scan, tmp_path / "copy.npz", domain, compress=compress)
    read = read_scan(path)
    rows = np.arange(len(scan))
    np.testing.assert_array_equal(read.amplitude(rows), scan.amplitude(rows), strict=True)
    np.testing.assert_array_equal(read.positions_px, scan.positions_px)
    np.testing.assert_array_equal(read.probe, scan.probe)
    np.testing.assert_array_equal(read.object_guess, scan.object_guess)
    np.testing.assert_array_equal(read.good_pixels, scan.good_pixels)
    assert read.pixel_size_m == scan.pixel_size_m
    assert read.domain == domain
    assert [child.name for child in tmp_path.iterdir()] == ["copy.npz"]


def test_labels_are_read(tmp_path: Path) -> None:
    labeled = simulate_scan(n=16, patterns=9, seed=1, with_labels=True)
    assert labeled.labels is not None
    truth = np.asarray(labeled.labels)
    complex_labels = read_scan(save_keys(tmp_path / "Y.npz", keys(labeled, Y=truth)))
    polar = keys(labeled, label_amp=np.abs(truth), label_phase=np.angle(truth))
    polar_labels = read_scan(save_keys(tmp_path / "polar.npz", polar))
    np.testing.assert_array_equal(complex_labels.label_patches([2, 0]), truth[[2, 0]])
    np.testing.assert_allclose(polar_labels.label_patches([2]), truth[[2]], atol=1e-6)


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {name} of the shared test data (../shared/data)")
    return path


def test_semi_real_scan_is_amplitude_with_pixel_centers() -> None:
    scan = read_scan(shared("semireal_run1084_sim.npz"))
    assert (scan.domain, scan.report["patch_center"]["value"]) == ("amplitude", "pixel")
    check = scan.report["forward_check"]
    assert check["relative_error"] < 2e-3
    assert check["scale"] == pytest.approx(1.0, abs=1e-3)
    assert scan.canvas_shape == (227, 226)


def test_golden_training_file_is_counts_with_half_pixel_centers() -> None:
    scan = read_scan(shared("ptychodus170_golden/train_data.npz"))
    assert (scan.domain, scan.report["patch_center"]["value"]) == ("intensity", "half-pixel")
    assert scan.report["bad_pixels"] == 1
    assert scan.patterns.dtype == np.uint16
    assert scan.report["photons_per_pattern"] == pytest.approx(133957.64, rel=1e-6)


def test_golden_model_agrees_with_noiseless_intensities() -> None:
    scan = read_scan(shared("ptychodus170_golden/train_data.npz"))
    ideal: NDArray[np.float32] = np.load(shared("ptychodus170_golden/noiseless_first16.npz"))["ideal"]
    assert scan.object_guess is not None
    assert scan.probe is not None
    model = diffract(scan.object_guess, scan.probe, scan.positions_px[:16])
    assert np.linalg.norm(model - ideal) / np.linalg.norm(ideal) < 1e-3


def test_positions_on_a_grid_are_read_as_is_proposed(tmp_path: Path) -> None:
    scan = simulate_scan(n=16, patterns=30, photons=1e4, seed=1)
    y, x = scan.positions_px.T.reshape(2, 5, 6)
    path = save_keys(tmp_path / "scan.npz", keys(scan, ycoords=y, xcoords=x))
    with pytest.raises(DataError, match=r"ycoords has shape \(5, 6\)") as caught:
        read_scan(path)
    assert caught.value.findings[0].fix.startswith("--map positions_y=ycoords --map positions_x=xcoords")
    read = read_scan(path, DataConfig(map={"positions_y": "ycoords", "positions_x": "xcoords"}))
    np.testing.assert_array_equal(read.positions_px, scan.positions_px)
    np.testing.assert_array_equal(read.probe, scan.probe)


def test_a_geometry_in_other_units_is_read_and_doubted(scan: ScanData, tmp_path: Path) -> None:
    odd = {"pixel_size_m": 12.5, "photon_energy_eV": 8.8, "detector_distance_m": 2000.0}
    read = read_scan(save_keys(tmp_path / "odd.npz", keys(scan, **odd, detector_pixel_size_m=75.0)))
    said = [row for row in read.findings if "it would be plausible in" in row.what]
    assert [row.what.split(",")[0] for row in said] == [
        "photon_energy_eV is 8.8",
        "detector_distance_m is 2000",
        "detector_pixel_size_m is 75",
        "pixel_size_m is 12.5",
    ]
    assert {row.level for row in said} == {"adapted"}
    given = read_scan(tmp_path / "odd.npz", DataConfig(pixel_size_m=12.5e-9))
    assert not any(row.what.startswith("pixel_size_m") for row in given.findings)


@pytest.mark.parametrize("budget", [patterns.MEMORY_BUDGET_BYTES, 0], ids=["in memory", "in its file"])
def test_four_axes_are_read_as_they_are_declared(budget: int, tmp_path: Path, monkeypatch: Any) -> None:
    """16 x 16 patterns of 16 x 16 pixels: nothing shows which axes are the scan's."""
    monkeypatch.setattr(patterns, "MEMORY_BUDGET_BYTES", budget)
    scan = simulate_scan(n=16, patterns=256, photons=1e4, seed=2)
    stack = np.asarray(scan.patterns).reshape(16, 16, 16, 16)
    first = save_keys(tmp_path / "first.npz", keys(scan, diff3d=stack, bad_pixels=None))
    last = save_keys(
        tmp_path / "last.npz", keys(scan, diff3d=stack.transpose(2, 3, 0, 1).copy(), bad_pixels=None)
    )
    for axes, path in (("first", first), ("last", last)):
        with pytest.raises(DataError, match="the scan axes are ambiguous") as caught:
            read_scan(path)
        assert f"--pattern-axes {axes} for" in caught.value.findings[0].fix
        read = read_scan(path, DataConfig(pattern_axes=axes))
        np.testing.assert_array_equal(np.asarray(read.patterns), np.asarray(scan.patterns))
        assert read.report["pattern_axes"] == {"value": axes, "why": "declared"}
        assert pattern_size(path, DataConfig(pattern_axes=axes)) == 16


def test_four_axes_of_which_one_reading_fits_need_no_declaration(tmp_path: Path) -> None:
    scan = simulate_scan(n=16, patterns=30, photons=1e4, seed=2)
    stack = np.asarray(scan.patterns).reshape(5, 6, 16, 16).transpose(2, 3, 0, 1).copy()
    path = save_keys(tmp_path / "scan.npz", keys(scan, diff3d=stack, bad_pixels=None))
    read = read_scan(path)
    np.testing.assert_array_equal(np.asarray(read.patterns), np.asarray(scan.patterns))
    assert read.report["pattern_axes"]["value"] == "last"
    with pytest.raises(DataError, match="scan axes declared first") as caught:
        read_scan(path, DataConfig(pattern_axes="first"))
    assert "--pattern-axes auto" in caught.value.findings[0].fix
