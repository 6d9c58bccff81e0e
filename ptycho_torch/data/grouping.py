"""Groups of neighboring patterns: C = gridsize^2 patterns that overlap become the channels of one sample.

Neighbors come from a k-d tree; everything is vectorized over the groups.

Shape legend: M positions, G groups, C members of a group, K candidates per seed pattern.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_exec.errors import DataError

Method = Literal["nearest", "distance", "quadrant"]

_DEFAULT_CANDIDATES = 6


def group_neighbors(
    positions_px: ArrayLike,
    *,
    gridsize: int,
    neighbor_count: int | None = None,
    n_groups: int | None = None,
    seed: int = 0,
    method: Method = "nearest",
    min_distance_px: float = 0.0,
    max_distance_px: float | None = None,
    sequential: bool = False,
) -> NDArray[np.int64]:
    """Return (G, C) indices of the patterns of each training group; the seed pattern comes first.

    Every pattern is the seed of one group, unless `n_groups` asks for fewer (a random choice, or the first
    ones when sequential) or for more (whole rounds over all patterns plus a random choice). The other C - 1
    members are chosen at random, without repetition, from K candidates, so that groups of one seed differ.

    Args:
        positions_px: (M, 2) [y, x].
        gridsize: g, C = g * g.
        neighbor_count: K; none takes the larger of 6 and C - 1.
        n_groups: G; none makes one group per pattern.
        seed: of every random choice.
        method: candidates are the K nearest; the K nearest in a distance window; or the K nearest taken
            in turn from the four quadrants around the seed pattern.
        min_distance_px: lower end of the window, for method "distance" only.
        max_distance_px: upper end of the window, for method "distance" only.
        sequential: take seed patterns in scan order.

    Raises:
        DataError: fewer patterns than members, or too few candidates around a pattern.
        ValueError: arguments that contradict each other.
    """
    positions = np.asarray(positions_px, dtype=np.float64)
    size = gridsize * gridsize
    count = max(_DEFAULT_CANDIDATES, size - 1) if neighbor_count is None else neighbor_count
    if count < size - 1:
        raise ValueError(f"a group of {size} needs {size - 1} neighbors; neighbor_count is {count}")
    if method not in ("nearest", "distance", "quadrant"):
        raise ValueError(f"unknown grouping method {method!r}; choose nearest, distance or quadrant")
    low, high = min_distance_px, np.inf if max_distance_px is None else max_distance_px
    if method != "distance" and (low > 0 or high < np.inf):
        raise ValueError(f"a distance window has no effect with method {method!r}; choose 'distance'")
    if high <= low:
        raise ValueError(f"the distance window is empty: from {low} to {high} pixels")
    _check_enough(len(positions), size)
    rng = np.random.default_rng(seed)
    seeds = _choose_seeds(len(positions), n_groups, sequential, rng)
    if size == 1:
        return seeds[:, None]
    if method == "quadrant":
        members = _quadrant_members(positions, seeds, size, count, rng)
    else:
        candidates = _candidates(positions, count, low, high, size - 1)[seeds]
        keys = np.where(candidates >= 0, rng.random(candidates.shape), np.inf)
        chosen = np.sort(np.argsort(keys, axis=1)[:, : size - 1], axis=1)  # candidates stay nearest first
        members = np.take_along_axis(candidates, chosen, axis=1)
    return np.concatenate([seeds[:, None], members], axis=1)


def inference_groups(positions_px: ArrayLike, *, gridsize: int) -> NDArray[np.int64]:
    """Return (M, C) groups: pattern i is the seed of group i, with its C - 1 nearest neighbors.

    Nothing is random: the same scan always gives the same groups, and every pattern is predicted.

    Raises:
        DataError: fewer patterns than members of a group.
    """
    positions = np.asarray(positions_px, dtype=np.float64)
    size = gridsize * gridsize
    _check_enough(len(positions), size)
    seeds = np.arange(len(positions), dtype=np.int64)[:, None]
    if size == 1:
        return seeds
    return np.concatenate([seeds, _candidates(positions, size - 1, 0.0, np.inf, size - 1)], axis=1)


def select_patterns(
    positions_px: ArrayLike,
    *,
    x_bounds: tuple[float, float] = (0.0, 1.0),
    y_bounds: tuple[float, float] = (0.0, 1.0),
    n_patterns: int | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return the sorted indices of the patterns within fractions of the scan's extent, thinned at random.

    Raises:
        DataError: nothing is left, or fewer patterns are there than asked.
    """
    positions = np.asarray(positions_px, dtype=np.float64)
    kept = np.flatnonzero(_within(positions, np.array([y_bounds, x_bounds]))).astype(np.int64)
    if len(kept) == 0 or (n_patterns is not None and n_patterns > len(kept)):
        raise DataError(
            f"{len(kept)} of {len(positions)} patterns lie within the bounds",
            where=f"x_bounds {x_bounds}, y_bounds {y_bounds}",
            expected=f"at least {n_patterns or 1}",
            fix="widen the bounds or ask for fewer patterns",
        )
    if n_patterns is None or n_patterns == len(kept):
        return kept
    return np.sort(np.random.default_rng(seed).choice(kept, n_patterns, replace=False))


def _within(positions: NDArray[np.float64], bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which positions lie within [y, x] bounds, (2, 2) fractions of their extent."""
    low, span = positions.min(axis=0), np.ptp(positions, axis=0)
    # The ends of the extent belong to it, whatever the rounding.
    slack = 1e-9 * np.maximum(span, 1.0)
    first, last = low + bounds[:, 0] * span - slack, low + bounds[:, 1] * span + slack
    return np.asarray(((positions >= first) & (positions <= last)).all(axis=1))


def _check_enough(count: int, size: int) -> None:
    if count < size:
        raise DataError(
            f"a group needs {size} patterns and the scan has {count}",
            where="grouping",
            expected=f"at least {size} patterns",
            fix="use a smaller gridsize, or more of the scan",
        )


def _choose_seeds(
    count: int, n_groups: int | None, sequential: bool, rng: np.random.Generator
) -> NDArray[np.int64]:
    total = count if n_groups is None else n_groups
    if sequential:
        return np.arange(total, dtype=np.int64) % count
    rounds, rest = divmod(total, count)
    whole = np.tile(np.arange(count, dtype=np.int64), rounds)
    random = np.sort(rng.choice(count, rest, replace=False)).astype(np.int64)
    return np.concatenate([whole, random])


def _candidates(
    positions: NDArray[np.float64], count: int, low: float, high: float, needed: int
) -> NDArray[np.int64]:
    """Return (M, K) candidates of every pattern, nearest first; -1 where the window holds fewer than K."""
    from scipy.spatial import cKDTree

    tree, total = cKDTree(positions), len(positions)
    candidates = np.full((total, count), -1, dtype=np.int64)
    rows, width = np.arange(total, dtype=np.int64), min(count, total - 1)
    while len(rows):
        away, near = (np.asarray(values) for values in tree.query(positions[rows], k=width + 1))
        own = near == rows[:, None]
        # Among repeated positions the pattern itself may be listed late, or not at all: drop the last then.
        own[~own.any(axis=1), -1] = True
        distance, index = (values[~own].reshape(len(rows), width) for values in (away, near))
        fits = (distance >= low) & (distance <= high)
        order = np.argsort(~fits, axis=1, kind="stable")[:, :count]
        candidates[rows, : order.shape[1]] = np.take_along_axis(np.where(fits, index, -1), order, axis=1)
        # Look further where the window is not full yet and its far end was not reached.
        open_ended = (fits.sum(axis=1) < count) & (distance[:, -1] <= high)
        if width >= total - 1:
            break
        rows, width = rows[open_ended], min(2 * width, total - 1)
    _check_full(candidates, needed, low, high)
    return candidates


def _check_full(candidates: NDArray[np.int64], needed: int, low: float, high: float) -> None:
    short = (candidates >= 0).sum(axis=1) < needed
    if short.any():
        raise DataError(
            f"{int(short.sum())} of {len(short)} patterns have fewer than {needed} neighbors in the window",
            where=f"grouping, from {low} to {'any number of' if high == np.inf else high} pixels; "
            f"the first is pattern {int(np.argmax(short))}",
            expected=f"{needed} neighbors within the distance window for each pattern",
            fix="widen the window, or use a smaller gridsize",
        )


def _quadrant_members(
    positions: NDArray[np.float64],
    seeds: NDArray[np.int64],
    size: int,
    count: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Take neighbors in turn from the quadrants around each seed pattern, in a random order of quadrants.

    At the border of a scan, where a quadrant is empty, the others fill in.
    """
    candidates = _candidates(positions, min(count, len(positions) - 1), 0.0, np.inf, size - 1)[seeds]
    offset = positions[candidates] - positions[seeds][:, None]
    quadrant = 2 * (offset[..., 0] >= 0) + (offset[..., 1] >= 0)
    member = quadrant[..., None] == np.arange(4)
    rank = np.take_along_axis(np.cumsum(member, axis=1), quadrant[..., None], axis=2)[..., 0] - 1
    turn = np.argsort(rng.random((len(seeds), 4)), axis=1)
    key = 4 * rank + np.take_along_axis(turn, quadrant, axis=1)
    order = np.argsort(key, axis=1, kind="stable")[:, : size - 1]
    return np.take_along_axis(candidates, order, axis=1)
