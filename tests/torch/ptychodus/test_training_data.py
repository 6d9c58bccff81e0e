"""Training data as Ptychodus leaves them: files, labels, several scans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig as ScienceData
from ptycho_torch.data.formats.npz import write_npz
from ptycho_torch.data.formats.ptychodus import write_ptychodus, write_training
from ptycho_torch.data.scan import ScanData
from ptycho_torch.physics import forward as physics
from ptycho_torch.ptychodus.training_data import find_sources, joined, read_training_data, with_labels
from ptycho_torch.simulate import simulate_scan


def test_exported_files_come_before_the_pair(tmp_path: Path) -> None:
    scan = simulate_scan(n=16, patterns=25, photons=1e5, seed=3)
    with pytest.raises(DataError, match="nothing to learn from"):
        find_sources(tmp_path)
    write_ptychodus(scan, tmp_path)
    assert find_sources(tmp_path) == [tmp_path]
    write_training(scan, tmp_path / "training_data.h5")
    assert find_sources(tmp_path) == [tmp_path / "training_data.h5"]
    np.savez(tmp_path / "noise.npz", ideal=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    write_npz(scan, tmp_path / "b.npz")
    write_npz(scan, tmp_path / "a.npz")
    assert find_sources(tmp_path) == [tmp_path / "a.npz", tmp_path / "b.npz"]


def test_labels_are_the_object_under_each_pattern() -> None:
    """As the network sees them: on whole pixels, after the training's own sub-pixel shift."""
    scan = simulate_scan(n=16, patterns=25, photons=1e5, seed=3)
    truth = scan.object_guess
    assert truth is not None
    labeled = with_labels(scan, phase_free=False)
    grid, rest = physics.split_position(torch.from_numpy(scan.positions_px), 16)
    seen = physics.shift_subpixel(torch.from_numpy(np.asarray(labeled.labels)), rest).numpy()
    corners = torch.round(grid - 7.5).int().tolist()
    true = np.stack([truth[y : y + 16, x : x + 16] for y, x in corners])
    assert np.linalg.norm(seen - true) < 0.04 * np.linalg.norm(true)
    beside = np.stack([truth[y : y + 16, x + 1 : x + 17] for y, x in corners])
    assert np.linalg.norm(seen - beside) > 0.1 * np.linalg.norm(true)


def test_phase_subtraction_takes_the_mean_phase_out_of_each_label() -> None:
    scan = simulate_scan(n=16, patterns=25, photons=1e5, seed=3)
    kept, free = (np.asarray(with_labels(scan, phase_free=flag).labels) for flag in (False, True))
    assert scan.probe is not None
    light = (np.abs(scan.probe) ** 2).sum(axis=0)
    assert np.abs(np.angle((kept * light).sum(axis=(1, 2)))).max() > 0.05
    np.testing.assert_allclose(np.angle((free * light).sum(axis=(1, 2))), 0, atol=1e-5)
    np.testing.assert_allclose(np.abs(free), np.abs(kept), rtol=1e-5)


def test_a_flat_object_is_no_label(tmp_path: Path) -> None:
    scan = simulate_scan(n=16, patterns=25, photons=1e5, seed=3)
    flat = replace(scan, object_guess=np.ones(scan.canvas_shape, np.complex64))
    write_npz(flat, tmp_path / "a.npz")
    write_ptychodus(flat, tmp_path / "pair")
    with pytest.raises(DataError, match=r"product\.h5"):
        read_training_data(tmp_path / "pair", ScienceData(), labeled=True, phase_free=False)
    with pytest.raises(DataError, match="a flat one"):
        read_training_data(tmp_path, ScienceData(), labeled=True, phase_free=True)
    assert read_training_data(tmp_path, ScienceData(), labeled=False, phase_free=True).labels is None


def test_several_scans_are_one_training_without_common_groups(tmp_path: Path) -> None:
    scans = [simulate_scan(n=16, patterns=36, photons=1e5, seed=seed) for seed in (1, 2)]
    for scan, name in zip(scans, "ab", strict=True):
        write_npz(scan, tmp_path / f"{name}.npz")
    from ptycho_torch.data.containers import dataset_of

    both = read_training_data(tmp_path, ScienceData(gridsize=2), labeled=True, phase_free=False)
    assert len(both) == 72
    amplitude = np.concatenate([scan.amplitude(np.arange(36)) for scan in scans])
    np.testing.assert_array_equal(both.amplitude(np.arange(72)), amplitude)
    groups = dataset_of(both, ScienceData(gridsize=2), 0).__getitems__(range(72))["index"] // 36
    assert bool((groups == groups[:, :1]).all())
    lone = with_labels(scans[1], phase_free=False)
    np.testing.assert_array_equal(both.label_patches([40]), lone.label_patches([4]))


def test_scans_that_cannot_be_one_training_are_refused(tmp_path: Path) -> None:
    write_npz(simulate_scan(n=16, patterns=36, photons=1e5, seed=1), tmp_path / "a.npz")
    write_npz(simulate_scan(n=32, patterns=36, photons=1e5, seed=2), tmp_path / "b.npz")
    with pytest.raises(DataError, match="patterns of 16 and of 32 pixels"):
        read_training_data(tmp_path, ScienceData(), labeled=False, phase_free=True)
    other = simulate_scan(n=16, patterns=36, photons=1e5, seed=2, probe_curvature_rad=-2.0)
    write_npz(other, tmp_path / "b.npz")
    with pytest.raises(DataError, match="the probes of these training files differ"):
        read_training_data(tmp_path, ScienceData(), labeled=False, phase_free=True)
    write_npz(simulate_scan(n=16, patterns=4, photons=1e5, seed=2), tmp_path / "b.npz")
    for grouping, keyword in (("nearest", "lower K,"), ("quadrant", "lower K_quadrant,")):
        data = ScienceData(gridsize=2, grouping=grouping)
        with pytest.raises(DataError, match="too few beside others") as caught:
            read_training_data(tmp_path, data, labeled=False, phase_free=True)
        assert keyword in str(caught.value)


def counted(seed: int, *, dtype: Any = np.uint16, patterns: int = 36) -> ScanData:
    """Return a scan whose patterns are stored as counts."""
    scan = simulate_scan(n=16, patterns=patterns, photons=1e4, seed=seed)
    counts = np.round(scan.amplitude(np.arange(patterns)) ** 2).astype(dtype)
    return replace(scan, patterns=counts, domain="intensity")


def test_counts_of_several_scans_stay_counts(tmp_path: Path) -> None:
    """Training judges its loss above the noise of counts, and knows that noise of counts only."""
    scans = [counted(1), counted(2, dtype=np.int32)]
    for scan, name in zip(scans, "ab", strict=True):
        write_npz(scan, tmp_path / f"{name}.npz")
    both = read_training_data(tmp_path, ScienceData(), labeled=False, phase_free=True)
    assert both.holds_counts
    np.testing.assert_array_equal(both.patterns, np.concatenate([scan.patterns for scan in scans]))
    measured = counted(3).amplitude(np.arange(36))
    write_npz(replace(counted(3), patterns=measured, domain="amplitude"), tmp_path / "c.npz")
    three = read_training_data(tmp_path, ScienceData(), labeled=False, phase_free=True)
    assert (three.domain, three.holds_counts, three.patterns.dtype) == ("amplitude", False, np.float32)
    np.testing.assert_array_equal(three.amplitude(np.arange(72)), both.amplitude(np.arange(72)))


def test_counts_without_a_common_integer_stay_counts() -> None:
    both = joined([counted(1, dtype=np.uint64), counted(2, dtype=np.int16)], Path())
    assert both.holds_counts


def test_a_pixel_that_is_bad_in_one_scan_is_bad_in_all() -> None:
    scans = []
    for seed, flat in ((1, 3), (2, 77)):
        scan, good = counted(seed), np.ones((16, 16), dtype=bool)
        good.flat[flat] = False
        scan.patterns[:, 0, 3] = scan.patterns[:, 77 // 16, 77 % 16] = 9
        scans.append(replace(scan, good_pixels=good))
    both = joined(scans, Path())
    assert both.bad_flat.tolist() == [3, 77]
    assert not both.amplitude(np.arange(72)).reshape(72, -1)[:, [3, 77]].any()


def test_joined_scans_are_too_far_apart_to_be_neighbors() -> None:
    """Scans that are wide beside a pattern, so that the margin of a canvas alone would not do."""
    scans = [counted(seed, patterns=144) for seed in (1, 2)]
    both = joined(scans, Path())
    first, second = both.positions_px[:144], both.positions_px[144:]
    apart = second[:, 0].min() - first[:, 0].max()
    reach = max(np.ptp(scan.positions_px, axis=0).max() for scan in scans)
    assert apart > np.sqrt(2) * reach, "every pattern of the own scan is nearer"
    np.testing.assert_allclose(second - second[0], scans[1].positions_px - scans[1].positions_px[0])
