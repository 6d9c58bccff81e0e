"""Pixels that do not measure: what is found, on scans that have nothing else wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import maximum_filter

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.assemble import scan_from_arrays
from ptycho_torch.data.pixels import find_gain, find_gaps
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import simulate_scan

SCAN = simulate_scan(n=32, patterns=64, photons=1e5, seed=3)
COUNTS = np.asarray(SCAN.patterns)
GAP = np.zeros((32, 32), bool)
GAP[:, 13:15] = True


def scan_of(patterns: Any, **parts: Any) -> ScanData:
    """A scan of positions and probe as they should be; parts win."""
    given = {"probe": SCAN.probe, "positions_px": SCAN.positions_px, **parts}
    return scan_from_arrays(patterns, **given)


def codes(scan: ScanData) -> list[str]:
    return [finding.code for finding in scan.findings]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("uint32", 2**32 - 2), ("uint16", 65534), ("uint32", 2**24 - 1), ("uint16", 4095), ("float64", 1e9)],
)
def test_any_number_that_stays_above_all_that_vary_is_a_gap(dtype: str, value: float) -> None:
    patterns = np.minimum(COUNTS, 2000).astype(dtype)
    patterns[:, GAP] = value
    scan = scan_of(patterns)
    np.testing.assert_array_equal(scan.good_pixels, ~GAP)
    assert codes(scan) == ["gaps"]


@pytest.mark.parametrize("value", [2**16 - 1, 2**32 - 1])
def test_gaps_of_amplitudes_are_found(value: int) -> None:
    patterns = np.sqrt(np.minimum(COUNTS, 2000).astype(np.float32))
    patterns[:, GAP] = np.sqrt(np.float32(value))
    scan = scan_of(patterns)
    assert scan.domain == "amplitude"
    np.testing.assert_array_equal(scan.good_pixels, ~GAP)


def test_what_is_overexposed_in_most_patterns_is_masked() -> None:
    patterns = np.minimum(COUNTS, 2000).astype(np.uint16)
    patterns[:, GAP] = 2**16 - 1
    patterns[::7, GAP] = 0
    np.testing.assert_array_equal(scan_of(patterns).good_pixels, ~GAP)


@pytest.mark.parametrize("value", [-1, np.nan, 65535])
def test_of_a_round_detector_less_than_half_of_the_frame_measures(value: float) -> None:
    y, x = np.indices((32, 32)) - 15.5
    outside = np.hypot(y, x) > 12
    assert outside.mean() > 0.5
    patterns = np.minimum(COUNTS, 2000).astype(np.float32)
    patterns[:, outside] = value
    scan = scan_of(patterns)
    np.testing.assert_array_equal(scan.good_pixels, ~outside)
    assert codes(scan) == ["gaps"]


def test_a_negative_level_that_pixels_leave_when_they_count_is_no_gap() -> None:
    """Minus one is what a pixel without a count holds after one was subtracted everywhere."""
    dim = np.random.default_rng(0).poisson(0.01, (64, 32, 32))
    patterns = dim.astype(np.int32)
    patterns[:, 8:24, 8:24] = np.minimum(COUNTS, 2000)[:, 8:24, 8:24]
    assert find_gaps(patterns - 1, np.ones((32, 32), bool))[1] == ""
    mended = scan_of(patterns - 1, config=DataConfig(pedestal=-1, clip_negative=True))
    np.testing.assert_allclose(mended.amplitude(np.arange(64)) ** 2, patterns, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        ("uint32", 2**32 - 1, "4294967295"),
        ("uint16", 2**16 - 1, "65535"),
        ("int32", 2**31 - 1, "2147483647"),
        ("int64", 2**63 - 1, "9223372036854775808"),
        ("uint64", 2**64 - 1, "18446744073709551616"),
        ("uint64", 2**32 - 1, "4294967295"),
        ("float32", 2**32 - 1, "4294967296"),
        ("float64", 2**32 - 1, "4294967295"),
        ("int32", -1, "-1"),
        ("float32", np.nan, "no number"),
        ("float16", np.inf, "no number"),
    ],
)
def test_what_detectors_write_into_gaps_is_masked_with_a_word(dtype: str, value: float, text: str) -> None:
    patterns = np.minimum(COUNTS, 2000).astype(dtype)
    patterns[:, GAP] = value
    patterns[3, 5, 13] = 7  # one pattern that has a number there changes nothing
    scan = scan_of(patterns)
    np.testing.assert_array_equal(scan.good_pixels, ~GAP)
    (finding,) = scan.findings
    assert (finding.code, finding.level) == ("gaps", "adapted")
    assert finding.what == f"64 pixels hold {text} in most patterns, which is no count; they are masked"
    masked = scan_of(np.where(GAP, 0, np.minimum(COUNTS, 2000)).astype(dtype), bad_pixels=GAP)
    np.testing.assert_array_equal(scan.amplitude(range(64)), masked.amplitude(range(64)))


def test_now_and_then_is_no_gap() -> None:
    patterns = COUNTS.astype(np.float32)
    patterns[::3, 4, 5] = np.nan
    with pytest.raises(DataError, match=r"22 pattern values .* NaN") as caught:
        scan_of(patterns)
    assert caught.value.findings[0].fix == "--mask-suspects true masks their 1 pixels"
    patterns[::3, 4, 5] = 65535
    assert find_gaps(patterns, np.ones((32, 32), bool))[1] == ""
    assert find_gaps(patterns[:4], np.ones((32, 32), bool))[1] == ""


def test_noise_around_zero_is_told_apart_from_pixels_without_a_number() -> None:
    patterns = COUNTS + np.random.default_rng(0).normal(0, 0.3, COUNTS.shape)
    with pytest.raises(DataError, match="negative") as caught:
        scan_of(patterns, domain="intensity")
    assert caught.value.findings[0].fix.startswith("--clip-negative true sets them to 0")
    assert codes(scan_of(np.maximum(patterns, 0), domain="intensity")) == []


def test_hot_pixels_are_found_whatever_their_value() -> None:
    places = np.array([[3, 4], [9, 30], [16, 16], [25, 8], [31, 0]])
    around = maximum_filter(COUNTS.mean(axis=0), 3, mode="wrap")
    for value in (600, 30000, 65534):
        patterns = COUNTS.astype(np.uint32)
        patterns[:, places[:, 0], places[:, 1]] += np.uint32(value)
        scan = scan_of(patterns)
        found = {(int(y), int(x)) for y, x in scan.report["suspect_pixels"]}
        bright = {(int(y), int(x)) for y, x in places if around[y, x] < value / 20}
        assert bright <= found <= {(int(y), int(x)) for y, x in places}
        assert len(bright) >= 3
        assert codes(scan) == ["hot-pixels"]


def test_one_bright_event_is_no_hot_pixel_and_hides_nothing() -> None:
    patterns = np.fft.fftshift(COUNTS, axes=(1, 2))
    patterns[5, 3, 3] = 65000
    assert codes(scan_of(patterns)) == ["corner-frequency"]
    patterns = COUNTS.copy()
    patterns[5, 3, 3] = 65000
    assert codes(scan_of(patterns)) == []
    hot = np.fft.fftshift(COUNTS, axes=(1, 2))
    hot[:, 16, 16] = 65000
    assert "corner-frequency" in codes(scan_of(hot))


def test_dead_pixels_rows_blocks_and_a_beam_stop_are_found() -> None:
    y, x = np.mgrid[:32, :32] - 16
    rows, columns, single = np.zeros((3, 32, 32), bool)
    rows[12:15], columns[:, 20], single[[14, 18], [15, 13]] = True, True, True
    for silent in (rows, columns, rows | columns, single, np.hypot(y, x) < 4):
        scan = scan_of(np.where(silent, 0, COUNTS))
        (finding,) = [row for row in scan.findings if row.code == "dead-pixels"]
        found = np.zeros((32, 32), bool)
        found[tuple(np.array(scan.report["suspect_pixels"]).T)] = True
        assert not (found & ~silent).any()
        assert (found & silent).sum() > 0.9 * (silent & (COUNTS.sum(axis=0) > 0)).sum()
        assert codes(scan_of(np.where(silent, 0, COUNTS), bad_pixels=found)) == []
        assert "bad_pixels" in finding.fix


def test_a_stuck_pixel_is_found() -> None:
    patterns = COUNTS.copy()
    patterns[:, 16, 15] = 500
    assert codes(scan_of(patterns)) == ["stuck-pixels"]
    assert scan_of(patterns).report["suspect_pixels"] == [[16, 15]]


@pytest.mark.parametrize("level", [3.0, 100.0])
def test_a_background_is_found_and_measured(level: float) -> None:
    noise = np.random.default_rng(1).poisson(level, COUNTS.shape)
    scan = scan_of(COUNTS + noise)
    assert codes(scan) == ["background"]
    assert scan.report["background"] == pytest.approx(level + np.quantile(COUNTS.mean(axis=0), 0.05), rel=0.1)
    assert codes(scan_of(np.maximum(COUNTS + noise - round(scan.report["background"]), 0))) == []


def test_the_gain_is_told_from_dim_pixels_with_and_without_readout_noise() -> None:
    counts = np.asarray(simulate_scan(n=64, patterns=60, photons=1e5, seed=2).patterns).astype(float)
    rng = np.random.default_rng(0)
    good = np.ones((64, 64), bool)
    assert find_gain(counts[:24], good) == (pytest.approx(1), 0)
    assert find_gain(37 * counts[:24] + 100, good) == (pytest.approx(37), 100)
    noisy = np.round(37.3 * counts[:24] + 100 + rng.normal(0, 3, counts[:24].shape))
    gain, pedestal = find_gain(noisy, good)
    assert gain == pytest.approx(37.3, rel=0.05)
    assert pedestal == pytest.approx(100, abs=3)
    smooth = rng.gamma(2.0, 50.0, (24, 64, 64))
    assert find_gain(smooth, good)[0] is None  # varies for another reason than counting


def test_detector_units_are_named_with_their_remedy() -> None:
    scan = scan_of((COUNTS * 37 + 100).astype(np.uint32))
    assert {row.code: dict(row.options) for row in scan.findings} == {
        "background": {"pedestal": pytest.approx(100, abs=2), "clip_negative": True},
        "gain": {"gain": 37.0},
    }
    assert codes(scan_of(COUNTS.astype(np.float32) * 0.37)) == []  # floats of any scale are whole multiples


def test_what_masking_suspects_covers_is_read() -> None:
    patterns = COUNTS.astype(np.float32)
    patterns[[3, 9, 40], [5, 6, 20], [7, 30, 16]] = np.nan, np.inf, -1e30
    with pytest.raises(DataError, match="3 pattern values") as caught:
        scan_of(patterns)
    assert caught.value.findings[0].options == {"mask_suspects": True}
    scan = scan_of(patterns, config=DataConfig(mask_suspects=True))
    assert np.argwhere(~scan.good_pixels).tolist() == [[5, 7], [6, 30], [20, 16]]
    full = COUNTS.astype(np.uint16)
    full[8, 2, 3] = 65535
    assert codes(scan_of(full)) == ["saturated"]
    assert codes(scan_of(full, config=DataConfig(mask_suspects=True))) == []
    patterns[:] = COUNTS
    patterns[4:6] = np.nan
    with pytest.raises(DataError) as caught:
        scan_of(patterns)
    assert caught.value.findings[0].options == {"drop": "broken"}
    assert len(scan_of(patterns, config=DataConfig(drop="broken"))) == 62


def test_patterns_that_are_all_the_same_are_named() -> None:
    scan = SCAN
    same = scan_of(np.repeat(COUNTS[:1], len(COUNTS), axis=0))
    assert "same-patterns" in codes(same)
    assert "gain" not in codes(same)
    assert "same-patterns" not in codes(scan)


@pytest.mark.parametrize("photons", [1, 3, 10, 50])
def test_hardly_any_photons_are_counts_and_no_fault_of_the_detector(photons: float) -> None:
    few = simulate_scan(n=32, patterns=200, photons=photons, seed=4)
    scan = scan_of(np.asarray(few.patterns), probe=few.probe, positions_px=few.positions_px)
    assert scan.report["count_quantum"] == 1
    assert not {"dead-pixels", "hot-pixels", "dark-patterns"} & set(codes(scan))
    assert (scan.report["zero_patterns"] > 20) == (photons < 10)


def test_closed_shutters_among_few_photons_are_told() -> None:
    few = simulate_scan(n=32, patterns=200, photons=20, seed=4)
    patterns = np.asarray(few.patterns).copy()
    patterns[50:60] = 0
    scan = scan_of(patterns, probe=few.probe, positions_px=few.positions_px)
    assert "dark-patterns" in codes(scan)


@pytest.mark.parametrize("photons", [0, 1000])
def test_patterns_of_one_bright_pixel_are_read(photons: int) -> None:
    patterns = np.zeros_like(COUNTS)
    patterns[:, 16, 16] = 1000 + np.random.default_rng(0).poisson(photons, len(COUNTS))
    assert scan_of(patterns, domain="intensity").report["zero_patterns"] == 0


@pytest.mark.parametrize("fault", [np.nan, 0.0])
def test_a_probe_that_is_none_is_left_out_as_its_message_says(fault: float) -> None:
    probe = SCAN.probe * np.complex64(fault)
    with pytest.raises(DataError, match="--probe estimate leaves it out"):
        scan_of(COUNTS, probe=probe)
    assert scan_of(COUNTS, probe=probe, config=DataConfig(probe="estimate")).probe is None


def test_a_level_below_one_count_is_no_background_of_whole_counts() -> None:
    few = np.random.default_rng(0).poisson(COUNTS * 1e-4).astype(np.uint8)
    assert "background" not in codes(scan_of(few))
