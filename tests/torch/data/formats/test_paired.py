"""Patterns and product are paired by scan index, meters become pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.data.formats import ptychodus
from ptycho_torch.data.formats.paired import match_indexes, to_meters, to_pixels
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import simulate_scan
from tests.torch.data.formats.same_scan import assert_same_scan, positions_px


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=16, patterns=25, photons=1e5, modes=2, seed=3, bad_pixels=2)


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


def test_meters_become_pixels_around_the_middle_of_the_object() -> None:
    """An object of 5 x 8 pixels has its middle at pixel (2, 3.5)."""
    meters = np.array([[1e-6, -2e-6], [1e-6 + 3e-8, -2e-6 - 8e-8]])
    pixels = to_pixels(meters, (1e-8, 4e-8), (1e-6, -2e-6), (5, 8))
    np.testing.assert_allclose(pixels, [[2, 3.5], [5, 1.5]], atol=1e-9)
    square = to_pixels(meters, (2e-8, 2e-8), (1e-6, -2e-6), (5, 8))
    np.testing.assert_allclose(to_meters(square, 2e-8, (1e-6, -2e-6), (5, 8)), meters, atol=1e-18)


@pytest.mark.parametrize(
    ("file", "name", "spoil"),
    [
        ("product", "probe_position_x_m", lambda values: values + 1.0),
        ("product", "probe_position_x_m", lambda values: values * np.nan),
        ("product", "probe", lambda values: values * np.nan),
        ("product", "object", lambda values: values * np.nan),
        ("diffraction", "patterns", lambda values: values * 0),
        ("diffraction", "bad_pixels", lambda values: np.ones_like(values)),
    ],
)
def test_a_fault_is_placed_in_the_file_that_has_it(
    file: str, name: str, spoil: Callable[[Any], Any], scan: ScanData, tmp_path: Path
) -> None:
    ptychodus.write_ptychodus(scan, tmp_path / "pair")
    with h5py.File(tmp_path / "pair" / f"{file}.h5", "a") as archive:
        archive[name][...] = spoil(archive[name][...])
    with pytest.raises(DataError) as caught:
        read_scan(tmp_path / "pair")
    assert f"{file}.h5" in caught.value.findings[0].where
    assert sum(f"{half}.h5" in str(caught.value) for half in ("product", "diffraction")) == 1
