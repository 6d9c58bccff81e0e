"""The report of a scan: numbers known beforehand, and a word on what looks odd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.config import DataConfig
from ptycho_torch.data.assemble import scan_from_arrays
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan_report import probe_diameter_px
from ptycho_torch.simulate import simulate_scan
from tests.torch.data.scan_files import (
    SCAN,
    P,
    X,
    changed,
    npz,
)


def test_what_is_odd_but_readable_is_a_warning(tmp_path: Path) -> None:
    patterns = changed(P.astype(np.uint16), 7, 0)
    patterns[:, ~SCAN.good_pixels] = 0
    patterns[2, 3, 4] = 65535
    path = npz(
        diff3d=np.fft.fftshift(patterns, axes=(1, 2)),
        xcoords=changed(X, 1, X[0]),
        ycoords=changed(SCAN.positions_px[:, 0], 1, SCAN.positions_px[0, 0]),
        objectGuess=SCAN.object_guess[:-4] if SCAN.object_guess is not None else None,
        bad_pixels=None,
    )(tmp_path)
    warnings = "\n".join(read_scan(path, DataConfig(patch_center="half-pixel")).report["warnings"])
    for words in (
        "1 positions repeat an earlier one",
        "1 patterns are zero everywhere (closed shutter?), index 7;",
        "1 values are at the largest number of uint16",
        "patches reach beyond the canvas",
        "bright in the corners",
    ):
        assert words in warnings


def test_the_diameter_of_a_disk_is_its_diameter() -> None:
    y, x = np.mgrid[:128, :128] - 63.5
    disk = (np.hypot(y, x) < 40).astype(np.complex64)
    assert probe_diameter_px(disk[None]) == pytest.approx(80, rel=1e-2)
    assert probe_diameter_px(np.stack([disk, 1j * disk])) == pytest.approx(80, rel=1e-2)


def test_the_numbers_of_a_regular_scan_are_reported() -> None:
    """A grid of 6 x 5 positions, 3 pixels apart: one bright square beside a dim one, on a background."""
    y, x = np.mgrid[:6, :5]
    stack = np.zeros((30, 16, 16), np.uint16)
    stack[:, 8:10, 6:8], stack[:, 8:10, 10:12] = 300, 100
    stack += (np.arange(30, dtype=np.uint16) % 8 + 1)[:, None, None]
    positions = 3.0 * np.stack([y.ravel(), x.ravel()], axis=1)
    disk = (np.hypot(*(np.mgrid[:16, :16] - 7.5)) < 5).astype(np.complex64)
    report = scan_from_arrays(stack, positions, probe=disk).report
    assert report["scan_extent_px"] == [15, 12]
    assert report["neighbor_distance_px"] == pytest.approx(3)
    assert report["probe_diameter_px"] == pytest.approx(10, rel=0.05)
    assert report["overlap_ratio"] == pytest.approx(1 - 3 / report["probe_diameter_px"])
    assert report["photons_per_pattern"] == pytest.approx(1600 + 4.3 * 256)
    assert report["max_intensity"] == 308
    assert report["background"] == pytest.approx(4.3)
    assert report["brightest_px"] == pytest.approx([8.5, 7.5])
    assert (report["N"], report["patterns"], report["duplicate_positions"]) == (16, 30, 0)
    assert [row["code"] for row in report["findings"]] == ["background"]


def test_a_value_far_below_the_pedestal_does_not_hide_it() -> None:
    rng = np.random.default_rng(0)
    made = simulate_scan(n=32, patterns=100, photons=6e3)
    counts = np.asarray(made.patterns, np.float64)
    units = np.round(37 * counts + 100 + rng.normal(0, 4, counts.shape)).astype(np.float32)
    units[3, 4, 5] = 60
    scan = scan_from_arrays(units, made.positions_px, probe=made.probe, domain="intensity")
    assert scan.report["background"] in range(97, 104)  # a value that was measured, not a mean
    options = {name: value for finding in scan.findings for name, value in finding.options.items()}
    assert (options["pedestal"], options["gain"]) == pytest.approx((100, 37), rel=0.06)
