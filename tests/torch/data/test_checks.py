"""Checks of the parts of a scan."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.data.checks import check_bad_pixels, check_probe, negative_level, scan_patterns

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


WAVE = np.random.default_rng(0).normal(size=(2, 8, 8))


@pytest.mark.parametrize("last", [False, True])
def test_a_probe_in_two_real_parts_is_asked_about(last: bool) -> None:
    a = np.moveaxis(WAVE, 0, -1) if last else WAVE
    with pytest.raises(DataError, match="the probe is two arrays of real numbers") as caught:
        check_probe(a, 8, "here")
    fix = caught.value.findings[0].fix
    assert "--probe estimate" in fix
    ways = fix.removeprefix("store ").split(";")[0].replace("or, of two modes, ", "").replace("..., ", "...,")
    expected = [WAVE[:1] + 1j * WAVE[1:], WAVE[:1] * np.exp(1j * WAVE[1:]), WAVE]
    for way, wave in zip(ways.split(", ", 2), expected, strict=True):
        stored = eval(way, {"numpy": np, "a": a})
        np.testing.assert_allclose(check_probe(stored, 8, "here"), wave.astype(np.complex64), atol=1e-6)


def test_a_real_probe_of_one_mode_or_three_is_none_in_parts() -> None:
    three = np.concatenate([WAVE, WAVE[:1]])
    assert check_probe(three[0], 8, "here").shape == (1, 8, 8)
    assert check_probe(three, 8, "here").shape == (3, 8, 8)


@pytest.mark.parametrize("modes", [2, 3])
def test_modes_on_the_last_axis_are_told_how_to_come_first(modes: int) -> None:
    probe = np.random.default_rng(1).normal(size=(8, 8, modes)) + 1j
    with pytest.raises(DataError, match=rf"shape \(8, 8, {modes}\)") as caught:
        check_probe(probe, 8, "here")
    fix = caught.value.findings[0].fix
    assert "--crop" not in fix
    assert "--bin" not in fix
    assert "store numpy.moveaxis(probe, -1, 0);" in fix
    assert check_probe(np.moveaxis(probe, -1, 0), 8, "here").shape == (modes, 8, 8)


def test_masks_of_each_pattern_are_one_mask_or_are_asked_about() -> None:
    mask = np.zeros((5, 4, 4), np.uint8)
    mask[:, 1, 2] = 7
    assert np.argwhere(~check_bad_pixels(mask, (4, 4), "here")).tolist() == [[1, 2]]
    mask[3, 0, 0] = 1
    with pytest.raises(DataError, match="one for each pattern; 1 pixels differ") as caught:
        check_bad_pixels(mask, (4, 4), "here")
    assert "numpy.any(mask, axis=0)" in caught.value.findings[0].fix
    assert np.argwhere(~check_bad_pixels(np.any(mask, axis=0), (4, 4), "here")).tolist() == [[0, 0], [1, 2]]
