"""Checks of the parts of a scan."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.data.checks import negative_level, scan_patterns

GOOD = np.ones((4, 4), bool)


def test_half_precision_is_checked_without_overflow() -> None:
    """2^64, above which no detector counts, is no float16; the largest float16 is 65504."""
    patterns = np.full((3, 4, 4), 1000, np.float16)
    patterns[1, 2, 3] = 65504
    statistics = scan_patterns(patterns, GOOD, "here")
    assert statistics.maximum == 65504
    assert statistics.frame_sum.tolist() == [16000, 15000 + 65504, 16000]
    for bad, text in ((np.inf, "inf"), (np.nan, "nan"), (-1, "-1.0")):
        patterns[1, 2, 3] = bad
        with pytest.raises(DataError, match=rf"pattern 1, pixel \[2, 3\] is {text}"):
            scan_patterns(patterns, GOOD, "here")


def test_no_pedestal_is_advised_for_amplitudes_from_which_none_is_subtracted() -> None:
    below = np.full((3, 4, 4), -5.0)
    with pytest.raises(DataError) as caught:
        scan_patterns(below, GOOD, "here", "amplitude")
    assert "--" not in str(caught.value)
    with pytest.raises(DataError, match="--pedestal -5 --clip-negative true"):
        scan_patterns(below, GOOD, "here", "intensity")


@pytest.mark.parametrize(("pedestal", "noise"), [(-50, 0.0), (-50, 3.0), (-0.5, 0.01)])
def test_a_negative_pedestal_is_told_from_noise(pedestal: float, noise: float) -> None:
    rng = np.random.default_rng(0)
    good = np.ones((16, 16), bool)
    block = pedestal + noise * rng.normal(size=(20, 16, 16))
    block[:, 6:10, 6:10] += 1e4
    assert negative_level(block, good) == pytest.approx(pedestal, rel=0.1)
    assert negative_level(block - pedestal, good) == 0
