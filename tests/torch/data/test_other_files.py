"""Mask, dark frame and probe in files of their own belong to the data of a run, wherever it is read again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_exec.errors import DataError, SettingsError
from ptycho_exec.files import file_sha256
from ptycho_torch.cli import main
from ptycho_torch.config import DataConfig, ScienceConfig
from ptycho_torch.data.other_files import from_here
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.settings import ScienceSettings
from ptycho_torch.tools.rerun import repeated, rerun, same_data, verify

TINY = ["--n-filters=4", "--depth=1", "--epochs=2", "--seed=5", "--enable-progress-bar=false"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a scan, another probe for it and a mask."""
    (tmp_path / "scans").mkdir()
    scan = tmp_path / "scans" / "scan.npz"
    assert main(["simulate", "--out", str(scan), "--n=32", "--patterns=40", "--photons=1e5"]) == 0
    here = tmp_path / "here"
    (here / "result").mkdir(parents=True)
    with np.load(scan) as arrays:
        np.savez(here / "result" / "reconstruction.npz", probe=1.1 * arrays["probeGuess"])
        np.savez(here / "masks.npz", bad=np.eye(32, dtype=bool), other=np.zeros(3))
    monkeypatch.chdir(here)
    return tmp_path


def test_a_file_in_the_working_directory_is_found_from_anywhere(place: Path) -> None:
    given = DataConfig(
        probe="result", mask_file="masks.npz:bad", map={"positions": "scan", "mask": "masks.npz:bad"}
    )
    science = ScienceSettings.from_config(ScienceConfig(data=given)).config
    assert from_here(science).origins == science.origins
    data = from_here(science).data
    assert from_here(ScienceConfig(data=DataConfig(probe="a" * 300))).data.probe == "a" * 300
    assert data.probe == str(place / "here" / "result")
    assert data.mask_file == data.map["mask"] == f"{place / 'here' / 'masks.npz'}:bad"
    assert data.map["positions"] == "scan"


def test_what_lies_beside_the_scan_goes_with_it(place: Path) -> None:
    np.save(place / "scans" / "dark.npy", np.zeros((32, 32)))
    science = ScienceConfig(data=DataConfig(dark_file="dark.npy", probe="estimate"))
    assert from_here(science) is science
    report = read_scan(place / "scans" / "scan.npz", DataConfig(dark_file="dark.npy")).report
    assert report["other_files"]["dark_file"]["path"] == str(place / "scans" / "dark.npy")


def test_the_hash_of_a_scan_is_that_of_all_its_files(place: Path) -> None:
    scan = place / "scans" / "scan.npz"
    assert read_scan(scan).sha256 == file_sha256(scan)
    assert "other_files" not in read_scan(scan).report
    before = read_scan(scan, DataConfig(mask_file="masks.npz:bad")).sha256
    np.savez("masks.npz", bad=np.eye(32, k=1, dtype=bool))
    assert before != read_scan(scan, DataConfig(mask_file="masks.npz:bad")).sha256


@pytest.mark.parametrize("kind", ["link", "virtual"])
def test_a_file_that_the_scan_leads_to_belongs_to_it(place: Path, kind: str) -> None:
    scan, other = place / "scans" / "scan.h5", place / "scans" / "patterns.h5"
    with np.load(place / "scans" / "scan.npz") as arrays:
        stack = arrays["diff3d"]
        with h5py.File(scan, "w") as file:
            file.update({name: arrays[name] for name in ("xcoords", "ycoords", "probeGuess")})
            layout = h5py.VirtualLayout(stack.shape, stack.dtype)
            layout[:] = h5py.VirtualSource("patterns.h5", "data", stack.shape)
            if kind == "link":
                file["diff3d"] = h5py.ExternalLink("patterns.h5", "/data")
            else:
                file.create_virtual_dataset("diff3d", layout)

    def read(values: NDArray[Any]) -> ScanData:
        other.unlink(missing_ok=True)
        with h5py.File(other, "w") as file:
            file["data"] = values
        return read_scan(scan, DataConfig(allow_links=True))

    first = read(stack)
    recorded = {"allow_links.patterns.h5": {"path": str(other), "sha256": file_sha256(other)}}
    assert first.report["other_files"] == recorded
    record = {"source": str(scan), "report": first.report}
    assert same_data(record, None, "--data") == scan
    second = read(stack[::-1])
    assert first.sha256 != second.sha256
    with pytest.raises(DataError, match=r"the contents of allow_links\.patterns\.h5 have changed"):
        same_data(record, None, "--data")
    (place / "moved").mkdir()
    for file in (scan, other):
        shutil.move(file, place / "moved")
    again = {"source": str(scan), "report": second.report}
    assert same_data(again, place / "moved" / "scan.h5", "--data") == place / "moved" / "scan.h5"
    assert read_scan(place / "moved" / "scan.h5", DataConfig(allow_links=True)).sha256 == second.sha256


@pytest.mark.slow
def test_a_found_probe_reaches_a_training_and_all_that_comes_after(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, run, result = str(place / "scans" / "scan.npz"), place / "run", place / "here" / "result"
    words = ["train", scan, "--probe", "result", "--mask-file", "masks.npz:bad", *TINY, "--out", str(run)]
    assert main([*words, "--resume", "auto"]) == 0
    manifest = json.loads((run / "manifest.json").read_text())
    recorded = manifest["data"]["train"]["report"]["other_files"]
    assert recorded["probe"]["sha256"] == file_sha256(result / "reconstruction.npz")
    assert manifest["science"]["data"]["probe"] == str(result)
    away = place / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    again = rerun(run, away / "again")
    assert repeated(verify(run, again.folder))
    shutil.copy(result / "reconstruction.npz", away)
    np.savez(result / "reconstruction.npz", probe=np.ones((32, 32), np.complex64))
    with pytest.raises(DataError, match="the contents of probe have changed"):
        rerun(run, away / "another")
    monkeypatch.chdir(place / "here")
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    capsys.readouterr()
    assert main([*words, "--resume", "auto"]) == SettingsError.exit_code
    assert "SHA-256 of the train scan" in capsys.readouterr().err
    shutil.copy(away / "reconstruction.npz", result)
    assert main([*words, "--resume", "auto"]) == 0
    shutil.rmtree(result)
    monkeypatch.chdir(away)
    assert main(["infer", str(run), scan, "--out", str(away / "out"), "--middle-trim=16"]) == 0
