"""The orientation of positions against patterns is found, up to the twin that no data can tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.data.scan import ScanData
from ptycho_torch.reconstruction.orientation import (
    CLASSES,
    ORIENTATIONS,
    find_orientation,
    orient_positions,
)
from ptycho_torch.simulate import simulate_scan

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "real"
INVERSE = {name: name for name in ORIENTATIONS} | {
    "transpose-flip-y": "transpose-flip-x",
    "transpose-flip-x": "transpose-flip-y",
}


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(
        n=32, patterns=81, photons=1e5, step_px=3.0, probe_curvature_rad=4.0, probe_aberration_rad=0.5, seed=2
    )


def turned(scan: ScanData, name: str) -> ScanData:
    positions = orient_positions(scan.positions_px, name)
    return replace(scan, positions_px=positions, object_guess=None, probe=None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", (1, 2)),
        ("flip-y", (-1, 2)),
        ("flip-x", (1, -2)),
        ("flip-yx", (-1, -2)),
        ("transpose", (2, 1)),
        ("transpose-flip-y", (-2, 1)),
        ("transpose-flip-x", (2, -1)),
        ("transpose-flip-yx", (-2, -1)),
    ],
)
def test_axes_are_swapped_first_then_negated(name: str, expected: tuple[int, int]) -> None:
    np.testing.assert_array_equal(orient_positions(np.array([[1.0, 2.0]]), name), [expected])
    back = orient_positions(orient_positions(np.array([[1.0, 2.0]]), name), INVERSE[name])
    np.testing.assert_array_equal(back, [[1.0, 2.0]])


def test_classes_hold_each_orientation_once_with_its_negation() -> None:
    point = np.array([[1.0, 2.0]])
    assert sorted(name for pair in CLASSES for name in pair) == sorted(ORIENTATIONS)
    for one, other in CLASSES:
        np.testing.assert_array_equal(orient_positions(point, one), -orient_positions(point, other))


def test_an_unknown_orientation_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of none, flip-y"):
        orient_positions(np.zeros((1, 2)), "rotate")


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_with_a_probe_all_eight_are_told(scan: ScanData, name: str) -> None:
    found = find_orientation(turned(scan, name), probe=scan.probe, patterns=40)
    assert found.chosen == INVERSE[name]
    assert found.clear
    assert found.by_probe
    assert [row[0] for row in found.rows] == list(ORIENTATIONS)
    assert min(found.rows, key=lambda row: row[1])[0] == found.chosen


@pytest.mark.parametrize(
    "name", ["transpose-flip-x", *(pytest.param(name, marks=pytest.mark.slow) for name in ("none", "flip-x"))]
)
def test_without_a_probe_the_class_is_told(scan: ScanData, name: str) -> None:
    found = find_orientation(turned(scan, name), patterns=40)
    pair = next(pair for pair in CLASSES if INVERSE[name] in pair)
    assert found.chosen == pair[0]
    assert found.twin == pair[1]
    assert found.clear
    loss = dict(found.rows)
    assert loss[pair[0]] == loss[pair[1]]
    assert f"{pair[1]} fits as well" in found.line()
    assert "sign of the phase cannot be told" in found.line()


def test_a_poor_probe_does_not_stand_in_the_way(scan: ScanData) -> None:
    y, x = np.mgrid[:32, :32] - 15.5
    narrow = np.exp(-(y**2 + x**2) / 4).astype(np.complex64)
    found = find_orientation(turned(scan, "transpose"), probe=narrow, patterns=40)
    assert found.clear
    assert found.chosen == "transpose"  # by convention: a probe without curvature tells nothing
    assert not found.by_probe


def test_a_probe_can_be_kept_as_it_is(scan: ScanData) -> None:
    found = find_orientation(turned(scan, "flip-y"), probe=scan.probe, refine_probe=False)
    assert found.chosen == "flip-y"
    assert found.clear


def test_equal_arguments_give_equal_rows_also_in_parallel(scan: ScanData) -> None:
    one, two = (find_orientation(scan, patterns=16, epochs=1, jobs=jobs) for jobs in (1, 2))
    assert one.rows == two.rows


def test_a_scan_without_overlap_is_not_clear() -> None:
    apart = simulate_scan(n=32, patterns=36, photons=1e5, step_px=30.0)
    found = find_orientation(apart, epochs=3)
    assert not found.clear
    assert "not clear" in found.line()


@pytest.mark.parametrize("patterns", [1, 4])
def test_a_tiny_scan_is_no_error(patterns: int) -> None:
    tiny = simulate_scan(n=32, patterns=patterns, photons=1e5)
    found = find_orientation(tiny, probe=tiny.probe, epochs=2)
    assert len(found.rows) == 8


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="needs the real scans of the shared data (../shared/data/real)")
@pytest.mark.parametrize("name", [pytest.param("none", marks=pytest.mark.thorough), "transpose-flip-y"])
def test_a_real_scan_at_low_dose(name: str) -> None:
    from ptycho_torch.data.read import read_scan

    found = find_orientation(turned(read_scan(REAL / "cryo4dstem_ptychojl.npz"), name))
    assert found.clear
    assert INVERSE[name] in (found.chosen, found.twin)


def test_patterns_of_which_none_is_held_back_are_never_clear(scan: ScanData) -> None:
    few = scan.subset(np.arange(3))
    assert not find_orientation(few, probe=scan.probe).clear
