"""Preprocessing: the same measurement, whatever detour it took; each remedy of a refusal is carried out."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.assemble import scan_from_arrays
from ptycho_torch.data.convert import WRITERS, convert
from ptycho_torch.data.preprocess import find_center
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage import patterns as storage
from ptycho_torch.data.storage.patterns import ComputedPatterns
from ptycho_torch.simulate import simulate_scan
from tests.torch.data.scan_files import keys, save_keys

N = 32
SCAN: ScanData = simulate_scan(n=N, patterns=60, photons=1e5, seed=5)
COUNTS = np.asarray(SCAN.patterns)
assert COUNTS.dtype == np.uint16


def prepared(patterns: Any, bad: Any = None, probe: Any = SCAN.probe, **options: Any) -> ScanData:
    config = DataConfig(**options)
    return scan_from_arrays(patterns, SCAN.positions_px, probe=probe, bad_pixels=bad, config=config)


def values(scan: ScanData) -> Any:
    return np.asarray(scan.patterns)


def odd_mask() -> Any:
    mask = np.zeros((N, N), bool)
    mask[3, 20:25] = mask[11, 2] = True
    return mask


def test_what_is_not_asked_for_is_not_done(tmp_path: Path) -> None:
    scan = read_scan(save_keys(tmp_path / "scan.npz", keys(SCAN)))
    assert values(scan).tobytes() == COUNTS.tobytes()
    assert scan.positions_px.tobytes() == SCAN.positions_px.tobytes()
    assert scan.probe is not None
    assert scan.probe.tobytes() == SCAN.probe.tobytes()  # type: ignore[union-attr]
    assert "preprocessing" not in scan.report


@pytest.mark.parametrize(
    ("spoil", "options"),
    [
        (lambda p: np.fft.ifftshift(p, axes=(-2, -1)), {"zero_frequency": "corner"}),
        (lambda p: np.fft.ifftshift(p, axes=-2), {"zero_frequency": "first-row"}),
        (lambda p: np.fft.ifftshift(p, axes=-1), {"zero_frequency": "first-column"}),
        (lambda p: p.swapaxes(-1, -2), {"transpose_patterns": True}),
        (lambda p: np.roll(np.flip(p, -2), 1, -2), {"flip_patterns": "y"}),
        (lambda p: np.roll(np.flip(p, -1), 1, -1), {"flip_patterns": "x"}),
        (lambda p: np.roll(np.flip(p, (-2, -1)), 1, (-2, -1)), {"flip_patterns": "yx"}),
        (
            lambda p: np.roll(np.flip(p.swapaxes(-1, -2), -2), 1, -2),
            {"flip_patterns": "y", "transpose_patterns": True},
        ),
    ],
    ids=[
        "corner",
        "first row",
        "first column",
        "transpose",
        "flip y",
        "flip x",
        "flip yx",
        "flip, then transpose",
    ],
)
def test_turned_patterns_and_their_mask_come_back(spoil: Any, options: dict[str, Any]) -> None:
    scan = prepared(spoil(COUNTS), spoil(odd_mask()), **options)
    assert scan.patterns.dtype == COUNTS.dtype
    np.testing.assert_array_equal(values(scan), COUNTS)
    np.testing.assert_array_equal(~scan.good_pixels, odd_mask())
    assert scan.report["preprocessing"] == options


def test_counts_come_back_from_detector_units_a_dark_frame_and_a_pedestal(tmp_path: Path) -> None:
    dark = np.random.default_rng(0).integers(0, 9, (N, N))
    np.save(tmp_path / "dark.npy", np.stack([dark - 1, dark + 1]))
    adu = COUNTS.astype(np.float32) * 37 + dark + 100
    scan = prepared(adu, dark_file=str(tmp_path / "dark.npy"), pedestal=100.0, gain=37.0)
    np.testing.assert_allclose(values(scan), COUNTS, atol=1e-3)
    assert len(scan.report["other_files"]["dark_file"]["sha256"]) == 64
    whole = prepared((COUNTS + dark + 100).astype(np.uint16), clip_negative=True, pedestal=100.0,
                     dark_file=str(tmp_path / "dark.npy"))  # fmt: skip
    assert whole.holds_counts
    np.testing.assert_array_equal(values(whole), COUNTS)


def test_negative_values_are_refused_or_clipped_and_counted() -> None:
    noise = np.random.default_rng(1).normal(0, 0.4, COUNTS.shape)
    shifted = (COUNTS + noise).astype(np.float32)
    with pytest.raises(DataError, match="negative") as caught:
        prepared(shifted, domain="intensity")
    assert "--clip-negative true" in caught.value.findings[0].fix
    scan = prepared(shifted, domain="intensity", clip_negative=True)
    np.testing.assert_array_equal(values(scan), np.maximum(shifted, 0))
    assert scan.report["preprocessing"]["negative_values_set_to_0"] == (shifted < 0).sum() > 100
    scan = prepared(shifted, domain="intensity", threshold=1.5)
    np.testing.assert_array_equal(values(scan), np.where(shifted < 1.5, 0, shifted))
    done = scan.report["preprocessing"]
    assert done["values_below_threshold"] == ((shifted >= 0) & (shifted < 1.5)).sum()


def test_amplitudes_have_no_background_to_subtract() -> None:
    root = np.sqrt(COUNTS.astype(np.float32))
    with pytest.raises(DataError, match="pedestal act on counts, and the patterns are amplitudes") as caught:
        prepared(root, pedestal=1.0)
    assert "--domain intensity" in caught.value.findings[0].fix


def test_a_mask_file_and_suspect_pixels_join_the_mask(tmp_path: Path) -> None:
    np.savez(tmp_path / "masks.npz", other=np.zeros(3), mask=odd_mask().astype(np.uint8))
    hot = COUNTS.copy()
    hot[:, 6, 7] = 60000
    first = np.zeros((N, N), bool)
    first[30, 30] = True
    for text in ("masks.npz", "masks.npz:mask"):
        scan = prepared(hot, first, mask_file=str(tmp_path / text), mask_suspects=True)
        expected = odd_mask() | first
        expected[6, 7] = True
        np.testing.assert_array_equal(~scan.good_pixels, expected)
        assert scan.report["preprocessing"]["suspect_pixels_masked"] == 1
        assert [row.code for row in scan.findings if "pixels" in row.code] == []


@pytest.mark.parametrize("place", ["in the scan", "in a file"])
def test_a_mask_that_marks_the_good_pixels_is_refused_and_taken_as_told(place: str, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", ~odd_mask())
    own, options = (
        (~odd_mask(), {}) if place == "in the scan" else (None, {"mask_file": str(tmp_path / "mask.npy")})
    )
    with pytest.raises(DataError, match="the mask leaves out 99% of the pixels, and 100%") as caught:
        prepared(COUNTS, own, **options)
    (finding,) = caught.value.findings
    assert "--mask-marks good" in finding.fix
    scan = prepared(COUNTS, own, **options, **finding.options)
    np.testing.assert_array_equal(~scan.good_pixels, odd_mask())
    scan = prepared(COUNTS, own, **options, mask_marks="bad")
    np.testing.assert_array_equal(scan.good_pixels, odd_mask())


@pytest.mark.parametrize("marks", ["bad", "good"])
def test_what_no_mask_marks_is_said(marks: str) -> None:
    scan = prepared(COUNTS, None, mask_marks=marks)
    assert scan.good_pixels.all()
    (finding,) = scan.findings
    assert (finding.code, finding.level) == ("idle", "adapted")
    assert finding.what == f"mask_marks = {marks} has no effect: there is no mask"
    assert prepared(COUNTS, odd_mask(), mask_marks="bad").findings == ()


def test_a_mask_of_all_that_is_far_from_the_beam_is_taken() -> None:
    y, x = np.indices((N, N)) - N // 2
    far = np.hypot(y, x) > 0.35 * N
    assert far.mean() > 0.5
    np.testing.assert_array_equal(~prepared(COUNTS, far).good_pixels, far)


def test_a_mask_of_every_pixel_is_refused_and_taken_as_told() -> None:
    with pytest.raises(DataError, match="every pixel is marked bad") as caught:
        prepared(COUNTS, np.ones((N, N), bool))
    assert prepared(COUNTS, np.ones((N, N), bool), **caught.value.findings[0].options).good_pixels.all()


@pytest.mark.parametrize(
    ("array", "words"), [(np.zeros((N, 8)), "the mask has shape"), (None, "no file for")]
)
def test_a_mask_that_does_not_fit_is_refused(tmp_path: Path, array: Any, words: str) -> None:
    path = tmp_path / "mask.npy"
    if array is not None:
        np.save(path, array)
    with pytest.raises(DataError, match=words):
        prepared(COUNTS, mask_file=str(path))


@pytest.mark.parametrize("shift", [(6, -4), (-3, 5)])
def test_the_beam_is_moved_by_whole_pixels_and_what_is_rolled_in_is_masked(shift: tuple[int, int]) -> None:
    moved = np.roll(COUNTS, shift, axis=(1, 2))
    given = prepared(moved, center=(16 + shift[0], 16 + shift[1]))
    found = prepared(moved, center="auto")
    np.testing.assert_array_equal(given.good_pixels, found.good_pixels)
    np.testing.assert_array_equal(values(given), values(found))
    good = given.good_pixels
    assert (~good).sum() == N * N - (N - abs(shift[0])) * (N - abs(shift[1]))
    np.testing.assert_array_equal(values(given)[:, good], COUNTS[:, good])
    assert not values(given)[:, ~good].any()


def test_the_center_of_patterns_that_reach_their_edge_is_found() -> None:
    y, x = np.mgrid[:64, :64]
    wide = np.exp(-((y - 41.0) ** 2 + (x - 20.0) ** 2) / 800)
    assert find_center(wide, "here") == pytest.approx((41, 20), abs=1)
    with pytest.raises(DataError, match="in the corners") as caught:
        prepared(np.fft.fftshift(COUNTS, axes=(1, 2)), center="auto")
    assert caught.value.findings[0].fix == "--zero-frequency corner"


def test_cropped_patterns_belong_to_larger_object_pixels() -> None:
    scan = prepared(COUNTS, odd_mask(), crop=24)
    np.testing.assert_array_equal(values(scan), COUNTS[:, 4:28, 4:28])
    np.testing.assert_array_equal(~scan.good_pixels, odd_mask()[4:28, 4:28])
    ratio = np.diff(scan.positions_px, axis=0) / np.diff(SCAN.positions_px, axis=0)
    np.testing.assert_allclose(ratio, 24 / 32)
    assert scan.report["preprocessing"]["object_pixel_grows_by"] == pytest.approx(32 / 24)


def test_padded_pixels_are_not_measured() -> None:
    scan = prepared(COUNTS, pad=48)
    assert scan.n_pixels == 48
    np.testing.assert_array_equal(values(scan)[:, 8:40, 8:40], COUNTS)
    assert scan.good_pixels.sum() == N * N


def test_bins_add_up_counts_in_a_type_that_holds_them_and_hide_masked_pixels() -> None:
    scan = prepared(COUNTS, odd_mask(), bin=2)
    sums = COUNTS.reshape(-1, 16, 2, 16, 2).sum(axis=(2, 4))
    assert scan.patterns.dtype == np.uint32
    np.testing.assert_array_equal(values(scan), sums)
    np.testing.assert_array_equal(~scan.good_pixels, odd_mask().reshape(16, 2, 16, 2).any(axis=(1, 3)))
    root = prepared(np.sqrt(COUNTS.astype(np.float64)), bin=2)
    assert root.domain == "amplitude"
    np.testing.assert_allclose(values(root) ** 2, sums, rtol=1e-6)
    np.testing.assert_allclose(np.diff(scan.positions_px, axis=0), np.diff(SCAN.positions_px, axis=0))


def error_of_own_model(scan: ScanData) -> float:
    return float((scan.report["forward_check"] or {}).get("relative_error", np.nan))


@pytest.mark.parametrize("options", [{"crop": 48}, {"pad": 80}, {"bin": 2}, {"crop": 48, "bin": 2}], ids=str)
def test_probe_object_and_positions_of_the_file_follow(tmp_path: Path, options: dict[str, int]) -> None:
    """The file's own probe and object explain the prepared patterns, nearly as well as the stored ones."""
    whole = simulate_scan(n=64, patterns=60, photons=1e8, seed=4, probe_radius_px=8, contrast=0.5)
    path = save_keys(tmp_path / "scan.npz", keys(whole, pixel_size_m=1e-8, bad_pixels=None))
    before, scan = read_scan(path), read_scan(path, DataConfig(**options))
    assert error_of_own_model(before) < 0.03
    assert error_of_own_model(scan) < 0.06
    ratio = 64 / options.get("crop", options.get("pad", 64))
    assert scan.pixel_size_m == pytest.approx(1e-8 * ratio)
    assert scan.object_guess is not None
    assert scan.object_guess.shape == scan.canvas_shape


def test_a_bin_that_cuts_the_probe_is_said(tmp_path: Path) -> None:
    np.save(tmp_path / "probe.npy", SCAN.probe)
    for own, word in ((SCAN.probe, "auto"), (None, str(tmp_path / "probe.npy"))):
        for sizes in ({"bin": 4}, {"crop": 24}):
            config = DataConfig(probe=word, **sizes)
            scan = scan_from_arrays(COUNTS, SCAN.positions_px, probe=own, config=config)
            assert ("cut-probe" in [row.code for row in scan.findings]) is ("bin" in sizes)


REMEDIES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "wide frames": (COUNTS[:, :, :24], {}, "--crop 24"),
    "wide frames, padded": (COUNTS[:, :, :24], {}, "--pad 32"),
    "crop too large": (COUNTS, {"crop": 48}, "--pad 48"),
    "pad too small": (COUNTS, {"pad": 16}, "--crop 16"),
    "bins that do not fit": (COUNTS, {"bin": 5}, "--crop 30"),
    "another N": (COUNTS, {"N": 24}, "--crop 24"),
    "a larger N": (COUNTS, {"N": 48}, "--pad 48"),
}


@pytest.mark.parametrize("kind", REMEDIES)
def test_sizes_that_do_not_fit_name_an_option_that_works(kind: str) -> None:
    patterns, options, remedy = REMEDIES[kind]
    with pytest.raises(DataError) as caught:
        prepared(patterns, probe=None, **options)
    assert remedy in caught.value.findings[0].fix
    name, number = re.fullmatch(r"--(\w+) (\d+)", remedy).groups()  # type: ignore[union-attr]
    kept = {key: value for key, value in options.items() if key not in ("crop", "pad")}
    scan = prepared(patterns, probe=None, **kept, **{name: int(number)})
    assert scan.n_pixels == int(number) // options.get("bin", 1)


def test_positions_are_oriented_and_multiplied() -> None:
    turned = prepared(COUNTS, orient="transpose-flip-y")
    np.testing.assert_allclose(np.diff(turned.positions_px[:, 0]), -np.diff(SCAN.positions_px[:, 1]))
    np.testing.assert_allclose(np.diff(turned.positions_px[:, 1]), np.diff(SCAN.positions_px[:, 0]))
    stretched = prepared(COUNTS, position_affine=(1.0, 0.5, 0.0, 2.0))
    steps = np.diff(SCAN.positions_px, axis=0)
    expected = np.stack([steps[:, 0] + 0.5 * steps[:, 1], 2 * steps[:, 1]], axis=1)
    np.testing.assert_allclose(np.diff(stretched.positions_px, axis=0), expected)
    assert prepared(COUNTS, orient="auto").positions_px.tobytes() == prepared(COUNTS).positions_px.tobytes()


def test_a_large_stack_stays_in_its_file_and_is_computed_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_keys(tmp_path / "scan.npz", keys(SCAN))
    config = DataConfig(crop=24, pedestal=1.0, clip_negative=True, bin=2)
    kept = read_scan(path, config)
    monkeypatch.setattr(storage, "MEMORY_BUDGET_BYTES", 0)
    lazy = read_scan(path, config)
    assert isinstance(lazy.patterns, ComputedPatterns)
    assert isinstance(kept.patterns, np.ndarray)
    rows = np.array([[3, 1], [-1, 3]])
    np.testing.assert_array_equal(lazy.patterns[rows], kept.patterns[rows])
    np.testing.assert_array_equal(lazy.patterns[7], kept.patterns[7])
    np.testing.assert_array_equal(lazy.patterns[2:5], kept.patterns[2:5])
    part = pickle.loads(pickle.dumps(lazy.subset([5, 2])))
    np.testing.assert_array_equal(part.amplitude([0, 1]), kept.amplitude([5, 2]))


@pytest.mark.parametrize("format", WRITERS)
def test_what_convert_writes_is_read_without_options(tmp_path: Path, format: str) -> None:
    shifted = (np.roll(COUNTS, (4, -3), axis=(1, 2)) + 20).astype(np.uint16)
    source = save_keys(tmp_path / "s.npz", keys(SCAN, diff3d=shifted, pixel_size_m=1e-8, photon_energy_eV=8e3,
                                               detector_distance_m=2.0))  # fmt: skip
    config = DataConfig(center="auto", pedestal=20.0, clip_negative=True, crop=24, mask_suspects=True)
    direct = read_scan(source, config)
    read = read_scan(convert(source, tmp_path / "t", format, config))
    np.testing.assert_array_equal(read.amplitude(np.arange(60)), direct.amplitude(np.arange(60)))
    np.testing.assert_array_equal(read.good_pixels, direct.good_pixels)
    np.testing.assert_allclose(read.positions_px, direct.positions_px, atol=1e-8)
    np.testing.assert_array_equal(read.probe, direct.probe)
