"""Conversion: every format to every other, with the identical tensor inside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptycho_exec.errors import DataError, UserError
from ptycho_torch.data.convert import WRITERS, convert
from ptycho_torch.data.formats.npz import write_npz
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage import patterns
from ptycho_torch.data.storage.patterns import FilePatterns
from ptycho_torch.simulate import simulate_scan


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=16, patterns=30, photons=5e4, seed=8, bad_pixels=1)


@pytest.fixture(scope="module")
def lopsided(scan: ScanData) -> ScanData:
    """No two axes alike: a wide canvas, a probe and a bad pixel that a transposition would move."""
    assert scan.probe is not None
    assert scan.object_guess is not None
    ramp = np.arange(16, dtype=np.float32) / 16
    probe = scan.probe * (1 + ramp[:, None] + 2j * ramp[None, :] ** 2).astype(np.complex64)
    good = scan.good_pixels.copy()
    good[3, 11] = False
    wide = np.pad(scan.object_guess, ((0, 0), (0, 7)), constant_values=0.5 + 0.25j)
    height, width = wide.shape
    return replace(scan, probe=probe, good_pixels=good, object_guess=wide, canvas_shape=(height, width))


@pytest.mark.parametrize("format", WRITERS)
def test_no_format_swaps_or_mirrors_an_axis(lopsided: ScanData, tmp_path: Path, format: str) -> None:
    source = write_npz(lopsided, tmp_path / "source.npz")
    read = read_scan(convert(source, tmp_path / "target", format))
    assert read.canvas_shape == lopsided.canvas_shape
    np.testing.assert_array_equal(
        read.amplitude(np.arange(30)), lopsided.amplitude(np.arange(30)), strict=True
    )
    np.testing.assert_allclose(read.positions_px, lopsided.positions_px, atol=1e-8)
    np.testing.assert_array_equal(read.probe, lopsided.probe)
    np.testing.assert_array_equal(read.object_guess, lopsided.object_guess)
    np.testing.assert_array_equal(read.good_pixels, lopsided.good_pixels)


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


def test_refusals(scan: ScanData, tmp_path: Path) -> None:
    source = write_npz(scan, tmp_path / "source.npz")
    with pytest.raises(DataError, match="unknown format 'tiff'"):
        convert(source, tmp_path / "x", "tiff")
    with pytest.raises(DataError, match="the target exists"):
        convert(source, source, "cxi")
    with pytest.raises(UserError, match="cannot write the file"):
        convert(source, tmp_path / "no" / "such" / "place.cxi", "cxi")
    with pytest.raises(DataError, match="unknown domain"):
        write_npz(scan, tmp_path / "x.npz", "energy")
    assert [file.name for file in tmp_path.iterdir()] == ["source.npz"]


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("name", ["a" * 300, "source.npz/x"])
def test_a_place_that_cannot_be_is_one_error(scan: ScanData, tmp_path: Path, format: str, name: str) -> None:
    source = write_npz(scan, tmp_path / "source.npz")
    with pytest.raises(UserError, match="cannot write the file") as caught:
        convert(source, tmp_path / name, format)
    assert "choose another place or a shorter name" in caught.value.findings[0].fix
    assert [file.name for file in tmp_path.iterdir()] == ["source.npz"]
