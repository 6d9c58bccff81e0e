"""What callers hand over as data: scans, paths and plain containers of rows mean the same samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.containers import dataset_of, optics_of, scan_of, selected
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import save, simulate_scan


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=16, patterns=25, photons=1e5, seed=3, bad_pixels=2)


def test_a_path_means_the_scan_in_its_file(scan: ScanData, tmp_path: Path) -> None:
    read = scan_of(str(save(scan, tmp_path / "scan.npz")), DataConfig())
    np.testing.assert_array_equal(read.amplitude([24, 3]), scan.amplitude([24, 3]))
    assert scan_of(scan, DataConfig()) is scan


def test_rows_with_positions_get_a_canvas_of_their_own() -> None:
    """Coordinates are x before y; the canvas holds every patch, and the shift onto it is recorded."""
    amplitude = np.random.default_rng(0).random((5, 8, 8), dtype=np.float32)
    x, y = np.array([-50.25, -47, -44, -41, -38]), np.array([3.5, 5, 6, 7, 9])
    read = scan_of({"X": amplitude, "coords_nominal": np.stack([x, y], axis=1)}, DataConfig())
    np.testing.assert_array_equal(read.amplitude(range(5)), amplitude)
    moved = read.positions_px - np.array(read.position_shift_px)
    np.testing.assert_allclose(moved, np.stack([y, x], axis=1))
    corners = np.concatenate([read.positions_px - 3.5, read.positions_px + 3.5])
    assert corners.min() >= 0
    assert (corners <= np.array(read.canvas_shape) - 1).all()
    assert read.good_pixels.all()


def test_rows_without_positions_cannot_be_a_scan() -> None:
    with pytest.raises(DataError, match="no scan positions"):
        scan_of({"X": np.ones((2, 8, 8))}, DataConfig())
    with pytest.raises(DataError, match="cannot read data from a list"):
        scan_of([1, 2], DataConfig())


def test_a_scan_becomes_groups_within_the_bounds(scan: ScanData) -> None:
    config = DataConfig(gridsize=2, x_bounds=(0.0, 0.6))
    x = scan.positions_px[:, 1]
    inside = np.flatnonzero(x <= x.min() + 0.6 * np.ptp(x))
    assert 4 <= len(inside) < len(scan)
    data = dataset_of(scan, config, seed=0)
    batch = data.__getitems__(range(len(data)))
    assert batch["amplitude"].shape == (len(inside), 4, 16, 16)
    np.testing.assert_allclose(
        np.unique(batch["positions_px"].reshape(-1, 2), axis=0),
        np.unique(scan.positions_px[inside].astype(np.float32), axis=0),
    )
    assert dataset_of(data, config, seed=0) is data


def test_a_part_of_a_scan_keeps_the_canvas(scan: ScanData) -> None:
    part = selected(scan, DataConfig(n_patterns=7), seed=1)
    assert (len(part), part.canvas_shape) == (7, scan.canvas_shape)
    assert selected(scan, DataConfig(), seed=1) is scan


def test_optics_are_those_of_scan_mapping_or_object(scan: ScanData) -> None:
    probe, good = optics_of(scan)
    assert probe is not None
    assert good is not None
    np.testing.assert_array_equal(probe, scan.probe)
    np.testing.assert_array_equal(good, scan.good_pixels)
    mode = np.full((8, 8), 1 + 2j)
    for container in ({"X": 0, "probeGuess": mode}, SimpleNamespace(X=0, probe=mode)):
        probe, good = optics_of(container)
        assert probe is not None
        assert good is None
        assert probe.dtype == torch.complex64
        np.testing.assert_array_equal(probe, mode)
    with pytest.raises(DataError, match="this scan has no probe"):
        optics_of(replace(scan, probe=None))
