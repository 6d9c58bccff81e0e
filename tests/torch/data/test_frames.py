"""Prepared pixels come from where they should, in a type that holds them."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_torch.config import Preprocessing
from ptycho_torch.data.frames import Compute, Frame, Values, resized, shifted, turned


@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize("flip", ["y", "x", "yx"])
def test_two_flips_leave_a_pattern_and_one_keeps_its_zero_frequency(n: int, flip: str) -> None:
    frame = turned((n, n), Preprocessing(flip_patterns=flip))  # type: ignore[arg-type]
    pattern = np.arange(n * n).reshape(1, n, n)
    once = frame.place(pattern)
    assert once[0, n // 2, n // 2] == pattern[0, n // 2, n // 2]
    np.testing.assert_array_equal(frame.place(once), pattern)


def test_what_is_moved_in_was_not_measured() -> None:
    frame = shifted(Frame(np.arange(4), np.arange(4)), (3.0, 2.0))
    good = frame.good(np.ones((4, 4), bool))
    np.testing.assert_array_equal(good.all(axis=1), [True, True, True, False])
    assert frame.place(np.arange(16).reshape(1, 4, 4))[0, 2, 2] == 14


@pytest.mark.parametrize(("size", "expected"), [(2, [1, 2]), (4, [0, 1, 2, 3]), (6, [-1, 0, 1, 2, 3, -1])])
def test_the_middle_stays_the_middle(size: int, expected: list[int]) -> None:
    np.testing.assert_array_equal(resized(np.arange(4), size), expected)


def test_sums_of_whole_numbers_are_exact() -> None:
    frame = Frame(np.arange(4), np.arange(4), bin=2)
    stored = np.full((1, 4, 4), 255, np.uint8)
    summed = Compute(Values(), frame, "intensity")(stored)
    assert summed.dtype == np.uint16
    np.testing.assert_array_equal(summed, np.full((1, 2, 2), 1020))
    below = Compute(Values(pedestal=256.0), frame, "intensity")(stored)
    np.testing.assert_array_equal(below, np.full((1, 2, 2), -4))
