"""Grouping: valid, different, near, seeded, complete."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from ptycho_exec.errors import DataError
from ptycho_torch.data.grouping import Method, group_neighbors, inference_groups, select_patterns


def positions(count: int, seed: int = 0, span: float = 60.0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(0, span, (count, 2))


def assert_valid(groups: NDArray[np.int64], count: int) -> None:
    assert groups.dtype == np.int64
    assert groups.min() >= 0
    assert groups.max() < count
    ordered = np.sort(groups, axis=1)
    assert (np.diff(ordered, axis=1) > 0).all()


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(9, 60),
    gridsize=st.integers(1, 3),
    extra=st.integers(0, 5),
    n_groups=st.none() | st.integers(1, 200),
    method=st.sampled_from(["nearest", "distance", "quadrant"]),
    sequential=st.booleans(),
    clones=st.integers(0, 6),
)
def test_groups_are_valid_and_never_repeat_a_member(
    count: int,
    gridsize: int,
    extra: int,
    n_groups: int | None,
    method: Method,
    sequential: bool,
    clones: int,
) -> None:
    points = positions(count)
    points[: min(clones, count)] = points[0]
    groups = group_neighbors(
        points,
        gridsize=gridsize,
        neighbor_count=max(1, gridsize**2 - 1 + extra),
        n_groups=n_groups,
        method=method,
        sequential=sequential,
    )
    assert groups.shape == (count if n_groups is None else n_groups, gridsize**2)
    assert_valid(groups, count)


def test_gridsize_1_gives_each_pattern_once() -> None:
    np.testing.assert_array_equal(group_neighbors(positions(7), gridsize=1), np.arange(7)[:, None])


@pytest.mark.parametrize("gridsize", [1, 2])
def test_oversampling_repeats_every_seed_pattern_and_is_repeatable(gridsize: int) -> None:
    points = positions(30)
    groups = group_neighbors(points, gridsize=gridsize, n_groups=75, seed=4)
    counts = np.bincount(groups[:, 0], minlength=30)
    assert set(counts) == {2, 3}
    np.testing.assert_array_equal(groups, group_neighbors(points, gridsize=gridsize, n_groups=75, seed=4))
    other = group_neighbors(points, gridsize=gridsize, n_groups=75, seed=5)
    assert not np.array_equal(groups, other)


def test_fewer_groups_than_patterns() -> None:
    points = positions(30)
    drawn = group_neighbors(points, gridsize=1, n_groups=10, seed=1)[:, 0]
    assert len(set(drawn)) == 10
    first = group_neighbors(points, gridsize=1, n_groups=10, sequential=True)[:, 0]
    np.testing.assert_array_equal(first, np.arange(10))


def test_nearest_candidates_are_the_k_nearest() -> None:
    points = positions(50)
    groups = group_neighbors(points, gridsize=2, neighbor_count=5, n_groups=500)
    ranks = np.argsort(np.argsort(cdist(points, points), axis=1), axis=1)
    rank = np.take_along_axis(ranks[groups[:, 0]], groups[:, 1:], axis=1)
    assert set(np.unique(rank)) == {1, 2, 3, 4, 5}


def test_distance_window_is_kept() -> None:
    points = positions(200)
    groups = group_neighbors(
        points, gridsize=2, method="distance", neighbor_count=8, min_distance_px=6, max_distance_px=20
    )
    distance = np.linalg.norm(points[groups[:, 1:]] - points[groups[:, :1]], axis=2)
    assert distance.min() >= 6
    assert distance.max() <= 20
    # The candidates are the 8 nearest within the window, found by brute force.
    full = cdist(points, points)
    nearest = np.argsort(np.where(full < 6, np.inf, full), axis=1)[:, :8]
    assert all(set(group[1:]) <= set(nearest[group[0]]) for group in groups)


def test_quadrants_are_taken_in_turn() -> None:
    y, x = np.mgrid[:9, :9]
    points = np.stack([y.ravel(), x.ravel()], axis=1) + positions(81, span=0.3)
    groups = group_neighbors(points, gridsize=2, method="quadrant", neighbor_count=8)
    inner = groups[np.all((points[groups[:, 0]] > 1) & (points[groups[:, 0]] < 7.5), axis=1)]
    offset = points[inner[:, 1:]] - points[inner[:, :1]]
    quadrant = 2 * (offset[..., 0] >= 0) + (offset[..., 1] >= 0)
    assert all(len(set(row)) == 3 for row in quadrant)


def test_every_pattern_is_the_seed_of_one_inference_group() -> None:
    points = positions(40)
    groups = inference_groups(points, gridsize=2)
    np.testing.assert_array_equal(groups[:, 0], np.arange(40))
    assert_valid(groups, 40)
    nearest = np.argsort(cdist(points, points), axis=1)[:, 1:4]
    np.testing.assert_array_equal(np.sort(groups[:, 1:]), np.sort(nearest))


def test_too_few_patterns_or_neighbors_is_an_error() -> None:
    with pytest.raises(DataError, match="a group needs 4 patterns and the scan has 3"):
        group_neighbors(positions(3), gridsize=2)
    with pytest.raises(DataError, match="a group needs 9"):
        inference_groups(positions(8), gridsize=3)
    with pytest.raises(DataError, match="fewer than 3 neighbors"):
        group_neighbors(positions(20), gridsize=2, method="distance", max_distance_px=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"neighbor_count": 2}, "needs 3 neighbors"),
        ({"max_distance_px": 5.0}, "no effect"),
        ({"method": "distance", "min_distance_px": 5.0, "max_distance_px": 5.0}, "empty"),
        ({"method": "furthest"}, "unknown grouping method"),
    ],
)
def test_contradictory_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_neighbors(positions(20), gridsize=2, **arguments)  # type: ignore[arg-type]


def test_bounds_select_fractions_of_the_extent() -> None:
    points = np.stack([np.linspace(10, 20, 11), np.linspace(-5, 5, 11)], axis=1)
    np.testing.assert_array_equal(select_patterns(points), np.arange(11))
    np.testing.assert_array_equal(select_patterns(points, y_bounds=(0.1, 0.5)), [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(select_patterns(points, x_bounds=(0.8, 1), y_bounds=(0.9, 1)), [9, 10])
    drawn = select_patterns(points, n_patterns=4, seed=3)
    assert len(set(drawn)) == 4
    assert (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, select_patterns(points, n_patterns=4, seed=3))
    with pytest.raises(DataError, match="patterns lie within the bounds"):
        select_patterns(points, n_patterns=12)


def test_hundred_thousand_positions_take_about_a_second() -> None:
    points = positions(100_000, span=3000.0)
    start = time.perf_counter()
    groups = group_neighbors(points, gridsize=2)
    seconds = time.perf_counter() - start
    assert_valid(groups, 100_000)
    # About 0.4 s on one quiet core; a loop over groups would take a minute.
    assert seconds < 5
