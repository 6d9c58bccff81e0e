"""The table of formats: every row is written, recognised, read back, and trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.cli import main
from ptycho_torch.data.formats.table import FORMATS, WRITERS, Writer
from ptycho_torch.data.read import open_scan, read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.factory import infer_probe_size
from ptycho_torch.simulate import simulate_scan
from ptycho_torch.workflows.runs import has_truth

TINY = ["--n-filters=4", "--depth=1", "--epochs=1", "--batch-size=8", "--num-threads=1"]
SAMPLES: dict[str, Writer] = {**WRITERS}
"""Writers of a scan; a format that this package only reads needs one here."""


@pytest.fixture(scope="module", params=[1, 2], ids=["one mode", "two modes"])
def scan(request: pytest.FixtureRequest) -> ScanData:
    return simulate_scan(n=16, patterns=24, photons=1e5, modes=request.param, seed=3, bad_pixels=2)


def ways_to_name(written: Path) -> list[Path]:
    """A file; or a directory, and either of the files in it."""
    return [written, *sorted(written.iterdir())] if written.is_dir() else [written]


def test_every_row_has_a_sample_that_it_recognises(scan: ScanData, tmp_path: Path) -> None:
    recognised = set()
    for name, write in SAMPLES.items():
        with open_scan(write(scan, tmp_path / name)) as files:
            assert {file.format.name for file in files.values()} == {files["positions"].format.name}
            recognised.add(files["positions"].format.name)
    assert recognised == {row.name for row in FORMATS}


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_sample_reads_back_equal(scan: ScanData, tmp_path: Path, sample: str) -> None:
    for path in ways_to_name(SAMPLES[sample](scan, tmp_path / "scan")):
        read = read_scan(path)
        rows = np.arange(len(scan))
        np.testing.assert_array_equal(read.amplitude(rows), scan.amplitude(rows), strict=True)
        np.testing.assert_allclose(read.positions_px, scan.positions_px, atol=1e-8)
        np.testing.assert_array_equal(read.probe, scan.probe)
        np.testing.assert_array_equal(read.object_guess, scan.object_guess)
        np.testing.assert_array_equal(read.good_pixels, scan.good_pixels)


@pytest.mark.parametrize("sample", SAMPLES)
def test_size_and_truth_are_known_before_the_patterns_are_read(
    scan: ScanData, tmp_path: Path, sample: str
) -> None:
    for path in ways_to_name(SAMPLES[sample](scan, tmp_path / "scan")):
        assert infer_probe_size(path) == 16, path
        assert has_truth(path), path


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_file_without_a_known_object_has_no_truth(scan: ScanData, tmp_path: Path, sample: str) -> None:
    """Formats that require an object are given ones, which are nothing to compare with."""
    for path in ways_to_name(SAMPLES[sample](replace(scan, object_guess=None), tmp_path / "scan")):
        assert not has_truth(path), path


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.slow
def test_the_command_trains_on_every_format(tmp_path: Path, sample: str) -> None:
    scan = simulate_scan(n=16, patterns=24, photons=1e5, seed=3)
    for number, path in enumerate(ways_to_name(SAMPLES[sample](scan, tmp_path / "scan"))):
        run = tmp_path / f"run{number}"
        assert main(["train", str(path), "--out", str(run), *TINY]) == 0, path
        assert (run / "model.ckpt").is_file()
