"""From the parts of a file to a scan: what fits together, the canvas, the shift onto it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.assemble import RawScan, assemble, fit_canvas, scan_from_arrays
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage.archive import Member
from ptycho_torch.simulate import save, simulate_scan
from tests.torch.data.scan_files import (
    SCAN,
    P,
    X,
    assert_one_clear_error,
    keys,
    npz,
    save_keys,
)


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=32, patterns=40, photons=2e4, seed=5, bad_pixels=3)


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "more patterns than positions": (npz(diff3d=P[:-1]), "do not agree with 20 positions"),
    "positions outside": (npz(xcoords=X + 1000), "20 of 20 positions lie outside the object"),
    "positions in meters": (npz(xcoords=X * 1e6, objectGuess=None), "the positions span"),
    "labels of another size": (npz(Y=P[:, :8, :8]), "the labels have shape"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_clear_error(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_one_clear_error(*BAD[kind], tmp_path, monkeypatch)


def test_asked_size_must_be_the_files(tmp_path: Path) -> None:
    path = save(SCAN, tmp_path / "scan.npz")
    with pytest.raises(DataError, match="N = 32 was asked"):
        read_scan(path, DataConfig(N=32))
    assert read_scan(path, DataConfig(N=16)).n_pixels == 16


def test_an_object_that_does_not_fit_can_be_left_out(tmp_path: Path) -> None:
    path = npz(xcoords=X + 1000)(tmp_path)
    scan = read_scan(path, DataConfig(canvas="positions"))
    assert scan.object_guess is None
    assert (scan.origins_px >= 0).all()


def test_without_an_object_the_canvas_fits_every_patch(scan: ScanData, tmp_path: Path) -> None:
    path = save_keys(
        tmp_path / "scan.npz",
        keys(scan, objectGuess=None, xcoords=scan.positions_px[:, 1] - 400.25, patch_center="half-pixel"),
    )
    read = read_scan(path)
    assert (read.origins_px >= 0).all()
    assert (read.origins_px + 32 < np.array(read.canvas_shape)).all()
    moved = read.positions_px - np.stack([scan.positions_px[:, 0], scan.positions_px[:, 1] - 400.25], axis=1)
    np.testing.assert_allclose(moved, np.broadcast_to(read.position_shift_px, moved.shape), atol=1e-9)
    assert read.object_guess is None


def test_pixel_center_moves_positions_by_half_a_pixel(scan: ScanData, tmp_path: Path) -> None:
    path = save_keys(tmp_path / "scan.npz", keys(scan))
    read = read_scan(path, DataConfig(patch_center="pixel"))
    np.testing.assert_allclose(read.positions_px, scan.positions_px - 0.5)
    assert read.position_shift_px == (-0.5, -0.5)


def test_the_canvas_is_the_smallest_with_a_pixel_to_spare() -> None:
    """Patches of 8 pixels reach 3.5 pixels from their centers."""
    points = np.array([[0.0, 100.25], [10.5, 90.0]])
    shape, shift = fit_canvas(points, 8)
    np.testing.assert_array_equal(shift, [5, -85])
    low, high = points + shift - 3.5, points + shift + 3.5
    assert np.all((low.min(axis=0) >= 1) & (low.min(axis=0) < 2))
    spare = np.array(shape) - 1 - high.max(axis=0)
    assert np.all((spare >= 1) & (spare < 2))


def test_arrays_are_checked_as_files_are(scan: ScanData) -> None:
    stack, points = np.asarray(scan.patterns), scan.positions_px
    read = scan_from_arrays(stack, points, probe=scan.probe, bad_pixels=~scan.good_pixels)
    np.testing.assert_array_equal(read.amplitude([3]), scan.amplitude([3]))
    assert (read.domain, read.report["format"]) == ("intensity", "arrays")
    with pytest.raises(DataError, match=r"the positions have shape \(2, 40\)"):
        scan_from_arrays(stack, points.T)
    with pytest.raises(DataError, match="do not agree"):
        scan_from_arrays(stack, points[1:])


def test_a_new_canvas_keeps_the_stage_where_it_was(scan: ScanData) -> None:
    """With another canvas, a pixel has another index and the same place in meters."""
    old = np.array(scan.canvas_shape)
    raw = RawScan(
        path=None,
        stack=Member("patterns", scan.patterns.shape, scan.patterns.dtype),
        read_stack=lambda _: scan.patterns,
        positions_px=scan.positions_px - 33,
        center="half-pixel",
        bad_pixels=~scan.good_pixels,
        geometry={"pixel_size_m": 2e-8, "object_center_m": (1e-6, -3e-6)},
        center_px=((old[0] - 1) / 2, (old[1] - 1) / 2),
    )
    read = assemble(raw, DataConfig())
    before = (scan.positions_px - 33 - (old - 1) / 2) * 2e-8 + np.array([1e-6, -3e-6])
    middle = (np.array(read.canvas_shape) - 1) / 2
    np.testing.assert_allclose((read.positions_px - middle) * 2e-8 + read.object_center_m, before, atol=1e-15)
