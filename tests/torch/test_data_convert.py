"""Conversion: every format to every other, with the identical tensor inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.data import patterns
from ptycho_torch.data.convert import WRITERS, convert
from ptycho_torch.data.npz import write_npz
from ptycho_torch.data.patterns import FilePatterns
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import simulate_scan


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=16, patterns=30, photons=5e4, seed=8, bad_pixels=1)


@pytest.mark.parametrize("first", WRITERS)
@pytest.mark.parametrize("second", WRITERS)
def test_every_format_to_every_other(scan: ScanData, tmp_path: Path, first: str, second: str) -> None:
    source = write_npz(scan, tmp_path / "source.npz")
    middle = convert(source, tmp_path / "middle", first)
    read = read_scan(convert(middle, tmp_path / "last", second))
    rows = np.arange(30)
    np.testing.assert_array_equal(read.amplitude(rows), scan.amplitude(rows), strict=True)
    np.testing.assert_allclose(read.positions_px, scan.positions_px, atol=1e-8)
    np.testing.assert_array_equal(read.probe, scan.probe)
    np.testing.assert_array_equal(read.object_guess, scan.object_guess)
    np.testing.assert_array_equal(read.good_pixels, scan.good_pixels)


@pytest.mark.parametrize("format", WRITERS)
def test_a_stack_that_stays_in_its_file_is_converted_too(
    scan: ScanData, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_npz(scan, tmp_path / "source.npz")
    monkeypatch.setattr(patterns, "MEMORY_BUDGET_BYTES", 0)
    read = read_scan(convert(source, tmp_path / "target", format))
    assert isinstance(read.patterns, FilePatterns)
    np.testing.assert_array_equal(read.amplitude([29, 0, 1, 2]), scan.amplitude([29, 0, 1, 2]))


def test_the_same_scan_gives_the_same_bytes(scan: ScanData, tmp_path: Path) -> None:
    one, two = (write_npz(scan, tmp_path / name).read_bytes() for name in ("a.npz", "b.npz"))
    assert one == two


def test_refusals(scan: ScanData, tmp_path: Path) -> None:
    source = write_npz(scan, tmp_path / "source.npz")
    with pytest.raises(DataError, match="unknown format 'tiff'"):
        convert(source, tmp_path / "x", "tiff")
    with pytest.raises(DataError, match="the target exists"):
        convert(source, source, "cxi")
    with pytest.raises(DataError, match="cannot write the file"):
        convert(source, tmp_path / "no" / "such" / "place.cxi", "cxi")
    with pytest.raises(DataError, match="unknown domain"):
        write_npz(scan, tmp_path / "x.npz", "energy")
    assert [file.name for file in tmp_path.iterdir()] == ["source.npz"]
