"""A probe from elsewhere: every file of ours and of others that holds one, on the pixels of the scan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.formats.cxi import write_cxi
from ptycho_torch.data.formats.npz import write_npz
from ptycho_torch.data.formats.ptychodus import write_product, write_training
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.sampling import resample_wave
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import simulate_scan
from ptycho_torch.workflows.artifacts import write_reconstruction
from tests.torch.data.scan_files import keys, save_keys

GEOMETRY = {"pixel_size_m": 1e-8, "photon_energy_eV": 8e3, "detector_distance_m": 2.0}
SCAN: ScanData = simulate_scan(n=32, patterns=30, photons=1e5, seed=2, modes=2)
assert SCAN.probe is not None
PROBE = SCAN.probe


@pytest.fixture
def scan_file(tmp_path: Path) -> Path:
    return save_keys(tmp_path / "scan.npz", keys(SCAN, probeGuess=None, **GEOMETRY))


def result(folder: Path) -> Path:
    scan = read_scan(save_keys(folder / "whole.npz", keys(SCAN, **GEOMETRY)))
    (folder / "out").mkdir()
    coverage = np.ones(scan.canvas_shape, np.float32)
    assert scan.object_guess is not None
    write_reconstruction(folder / "out", scan.object_guess, coverage, scan, scan.probe)
    return folder / "out"


def whole(folder: Path) -> ScanData:
    return read_scan(save_keys(folder / "whole.npz", keys(SCAN, **GEOMETRY)))


def array(folder: Path, value: Any = PROBE) -> Path:
    np.save(folder / "probe.npy", value)
    return folder / "probe.npy"


def hdf5(folder: Path) -> Path:
    with h5py.File(folder / "p.h5", "w") as file:
        file["a/guess"], file["a/other"] = PROBE, np.zeros(3)
    return folder / "p.h5"


def matlab(folder: Path) -> Path:
    with h5py.File(folder / "m.mat", "w") as file:
        file["probe"] = PROBE.swapaxes(-1, -2)
        file["probe"].attrs["MATLAB_class"] = np.bytes_("double")
    return folder / "m.mat"


FILES: dict[str, Callable[[Path], str]] = {
    "a result": lambda folder: str(result(folder)),
    "its file": lambda folder: str(result(folder) / "reconstruction.npz"),
    "its product": lambda folder: str(result(folder) / "product.h5"),
    "a product in NPZ": lambda folder: str(write_product(whole(folder), folder / "p.npz")),
    "a training file": lambda folder: str(write_training(whole(folder), folder / "t.h5")),
    "a scan": lambda folder: str(write_npz(whole(folder), folder / "s.npz")),
    "a CXI file": lambda folder: str(write_cxi(whole_with_detector(folder), folder / "s.cxi")),
    "an array": lambda folder: str(array(folder)),
    "an array with more axes": lambda folder: str(array(folder, PROBE[None, None])),
    "a file of MATLAB": lambda folder: str(matlab(folder)),
    "one of several arrays": lambda folder: f"{hdf5(folder)}:a/guess",
    "the only array": lambda folder: str(save_keys(folder / "one.npz", {"anything": PROBE})),
}


def whole_with_detector(folder: Path) -> ScanData:
    from ptycho_torch.data.convert import complete_geometry

    return complete_geometry(whole(folder))


@pytest.mark.parametrize("kind", FILES)
def test_a_probe_is_taken_from_every_kind_of_file(kind: str, scan_file: Path, tmp_path: Path) -> None:
    scan = read_scan(scan_file, DataConfig(probe=FILES[kind](tmp_path)))
    np.testing.assert_array_equal(scan.probe, PROBE)
    assert scan.report["probe"]["value"] == "path"
    assert len(scan.report["other_files"]["probe"]["sha256"]) == 64


@pytest.mark.parametrize("options", [{"crop": 24}, {"pad": 48}, {"bin": 2}], ids=str)
def test_it_is_resampled_as_the_pixels_of_the_scan_are(
    scan_file: Path, tmp_path: Path, options: dict[str, int]
) -> None:
    scan = read_scan(scan_file, DataConfig(probe=str(result(tmp_path)), **options))
    n = scan.n_pixels
    ratio = 1.0 if "bin" in options else 32 / n
    expected = resample_wave(PROBE, ratio, n, 0.25 if "bin" in options else 0.0)
    np.testing.assert_allclose(scan.probe, expected, atol=1e-4 * abs(PROBE).max())
    assert "resampled" in scan.report["probe"]["why"]


@pytest.mark.parametrize("options", [{"crop": 24}, {"pad": 48}, {"bin": 2}], ids=str)
def test_one_for_the_stored_patterns_follows_as_the_own_probe_does(
    tmp_path: Path, options: dict[str, int]
) -> None:
    own = read_scan(save_keys(tmp_path / "own.npz", keys(SCAN)), DataConfig(**options))
    bare = save_keys(tmp_path / "bare.npz", keys(SCAN, probeGuess=None))
    scan = read_scan(bare, DataConfig(probe=str(array(tmp_path)), **options))
    np.testing.assert_array_equal(scan.probe, own.probe)


def test_which_probe_is_taken(scan_file: Path, tmp_path: Path) -> None:
    both = save_keys(tmp_path / "both.npz", keys(SCAN))
    for word, file, there in (("auto", both, True), ("file", both, True), ("estimate", both, False),
                              ("auto", scan_file, False), ("estimate", scan_file, False)):  # fmt: skip
        assert (read_scan(file, DataConfig(probe=word)).probe is not None) is there
    with pytest.raises(DataError, match="the file has no probe, and probe = file asks for it") as caught:
        read_scan(scan_file, DataConfig(probe="file"))
    assert "--probe estimate" in caught.value.findings[0].fix


def test_a_probe_that_is_too_wrong_to_read_can_be_left_out(tmp_path: Path) -> None:
    for wrong, remedy in ((np.full((32, 32), np.nan), ""), (PROBE[:, :16, :16], "--crop 16")):
        path = save_keys(tmp_path / "scan.npz", keys(SCAN, probeGuess=wrong))
        with pytest.raises(DataError, match="probe") as caught:
            read_scan(path)
        assert remedy in caught.value.findings[0].fix
        assert read_scan(path, DataConfig(probe="estimate")).probe is None
        path.unlink()


@pytest.mark.parametrize("option", [{"crop": 16}, {"bin": 2}], ids=str)
def test_a_probe_of_fewer_pixels_fits_after_what_is_proposed(tmp_path: Path, option: dict[str, int]) -> None:
    path = save_keys(tmp_path / "scan.npz", keys(SCAN, probeGuess=PROBE[:, 8:24, 8:24]))
    with pytest.raises(DataError, match="the patterns are 32 x 32") as caught:
        read_scan(path)
    ((name, value),) = option.items()
    assert f"--{name} {value}" in caught.value.findings[0].fix
    scan = read_scan(path, DataConfig(**option))
    np.testing.assert_array_equal(scan.probe, PROBE[:, 8:24, 8:24])


def test_what_holds_no_probe_or_cannot_be_resampled_is_refused(scan_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "reconstruction.npz", object=np.ones((4, 4)), coverage=np.ones((4, 4)))
    np.save(tmp_path / "small.npy", PROBE[:, :16, :16])
    far = save_keys(tmp_path / "far.npz", {"probeGuess": PROBE, "pixel_size_m": 1e-6})
    for text, words in (
        ("nowhere.h5", "there is no such probe"),
        ("a" * 300, "there is no such probe"),
        ("empty", "this directory holds no probe"),
        ("reconstruction.npz", "it was not refined"),
        ("small.npy", "the pixel size of that file is not known"),
        (far.name, "of the power reach the window"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            read_scan(scan_file, DataConfig(probe=text if text == "nowhere.h5" else str(tmp_path / text)))
        assert caught.value.findings[0].fix
