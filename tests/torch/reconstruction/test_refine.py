"""Refinement: known objects, probes, modes, positions and backgrounds come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ptycho_exec.errors import DataError, UserError
from ptycho_torch.data.scan import ScanData
from ptycho_torch.evaluation.metrics import Evaluation, evaluate
from ptycho_torch.reconstruction import engine, probe_gauge, refine, waves
from ptycho_torch.reconstruction.refine import RefineOptions, refine_object
from ptycho_torch.reconstruction.stitch import probe_coverage
from ptycho_torch.simulate import simulate_scan

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=32, patterns=144, photons=1e7, seed=3)


def coverage(scan: ScanData) -> NDArray[np.float32]:
    assert scan.probe is not None
    positions, probe = torch.from_numpy(scan.positions_px), torch.from_numpy(scan.probe)
    return probe_coverage(positions, probe, scan.canvas_shape).numpy()


def score(scan: ScanData, obj: NDArray[Any]) -> Evaluation:
    assert scan.object_guess is not None
    return evaluate(obj, scan.object_guess, coverage=coverage(scan))


def test_from_a_flat_start_with_the_known_probe_the_object_comes_back(scan: ScanData) -> None:
    result = refine_object(scan, "flat", 30)
    result_score = score(scan, result.object)
    assert result.placement == "probe"
    assert len(result.losses) == 30
    assert result.losses[-1] < 0.1 * result.losses[0]
    assert result_score.amplitude_ssim > 0.95
    assert result_score.phase_ssim > 0.97
    assert result_score.nrmse < 0.05
    assert np.array_equal(result.probe, scan.probe)
    np.testing.assert_allclose(result.coverage, coverage(scan))


def test_a_better_start_needs_fewer_steps(scan: ScanData) -> None:
    assert scan.object_guess is not None
    blurred = gaussian_filter(scan.object_guess.real, 1.5) + 1j * gaussian_filter(scan.object_guess.imag, 1.5)
    from_blurred = refine_object(scan, blurred, 3, placement="probe")
    from_flat = refine_object(scan, torch.ones(*scan.canvas_shape), 3, placement="probe")
    assert from_blurred.losses[-1] < from_flat.losses[-1]
    assert score(scan, from_blurred.object).nrmse < 0.5 * score(scan, from_flat.object).nrmse
    assert score(scan, from_blurred.object).nrmse < 0.7 * score(scan, blurred).nrmse


def test_flat_is_a_start_of_ones(scan: ScanData) -> None:
    ones = np.ones(scan.canvas_shape, np.complex64)
    first, second = (refine_object(scan, start, 2, placement="probe") for start in ("flat", ones))
    assert np.array_equal(first.object, second.object)


def test_an_unknown_probe_is_found_together_with_the_object(scan: ScanData) -> None:
    assert scan.probe is not None
    rng = np.random.default_rng(5)
    noise = gaussian_filter(rng.normal(size=(2, 32, 32)), (0, 2, 2))
    noise = (noise[0] + 1j * noise[1]) * np.abs(scan.probe[0])
    frequency = np.fft.fftfreq(32)
    defocus = np.exp(6j * (frequency[:, None] ** 2 + frequency**2))
    guess = np.fft.ifft2(np.fft.fft2(scan.probe) * defocus)
    guess = guess + 0.2 * noise * np.linalg.norm(scan.probe) / np.linalg.norm(noise)
    fixed = refine_object(scan, "flat", 40, probe=guess)
    joint = refine_object(scan, "flat", 40, probe=guess, options=RefineOptions(refine_probe=True))
    result_score = score(scan, joint.object)
    assert result_score.amplitude_ssim > 0.9
    assert result_score.phase_ssim > 0.95
    assert result_score.nrmse < 0.6 * score(scan, fixed.object).nrmse
    overlap = (
        np.abs(np.vdot(joint.probe, scan.probe)) / np.linalg.norm(joint.probe) / np.linalg.norm(scan.probe)
    )
    assert overlap > 0.98
    assert np.array_equal(fixed.probe, guess.astype(np.complex64))


@pytest.mark.slow
def test_incoherent_modes_and_bad_pixels_are_part_of_the_model() -> None:
    scan = simulate_scan(n=32, patterns=144, photons=1e7, seed=4, modes=2, bad_pixels=6)
    assert scan.probe is not None
    whole = refine_object(scan, "flat", 25)
    single = refine_object(scan, "flat", 25, probe=scan.probe[:1])
    assert score(scan, whole.object).nrmse < 0.6 * score(scan, single.object).nrmse
    blind = replace(scan, good_pixels=np.ones((32, 32), bool))
    assert score(scan, whole.object).nrmse < 0.5 * score(scan, refine_object(blind, "flat", 25).object).nrmse


def test_equal_seeds_give_equal_bits_and_another_seed_does_not(scan: ScanData) -> None:
    runs = [refine_object(scan, "flat", 3, seed=seed) for seed in (7, 7, 8)]
    assert np.array_equal(runs[0].object, runs[1].object)
    assert runs[0].losses == runs[1].losses
    assert not np.array_equal(runs[0].object, runs[2].object)


def test_patterns_that_are_not_kept_in_memory_give_the_same_result(
    scan: ScanData, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = refine_object(scan, "flat", 2)
    monkeypatch.setattr(waves, "CACHE_BYTES", 0)
    assert np.array_equal(kept.object, refine_object(scan, "flat", 2).object)


def test_a_scan_split_into_regions_converges_to_the_same_object(
    scan: ScanData, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = refine_object(scan, "flat", 25, placement="probe")
    monkeypatch.setattr(engine, "REGION_PATTERNS", 80)
    split = refine_object(scan, "flat", 25, placement="probe")
    assert score(scan, whole.object).nrmse < 0.01
    assert score(scan, split.object).nrmse < 0.03


def test_a_dense_scan_is_reconstructed_in_a_few_epochs_by_small_minibatches() -> None:
    dense = simulate_scan(n=32, patterns=400, photons=1e8, step_px=1.0, seed=6)
    small, large = (
        score(dense, refine_object(dense, "flat", 3, options=RefineOptions(batch_size=size)).object)
        for size in (None, 32)
    )
    assert small.phase_ssim > 0.97
    assert small.nrmse < 0.5 * large.nrmse


def test_patches_that_overhang_the_canvas_are_refined_all_the_same(scan: ScanData) -> None:
    cut = (slice(6, -5), slice(4, -7))
    assert scan.object_guess is not None
    truth = np.ascontiguousarray(scan.object_guess[cut])
    small = replace(
        scan,
        object_guess=truth,
        canvas_shape=truth.shape,
        positions_px=scan.positions_px - np.array([6.0, 4.0]),
    )
    whole, inner = refine_object(scan, "flat", 4), refine_object(small, "flat", 4)
    assert inner.object.shape == truth.shape
    np.testing.assert_allclose(inner.object, whole.object[cut], atol=2e-5)


def test_the_number_of_threads_does_not_matter_and_is_restored(scan: ScanData) -> None:
    before = torch.get_num_threads()
    first = refine_object(scan, "flat", 2)
    try:
        torch.set_num_threads(3)
        second = refine_object(scan, "flat", 2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(first.object, second.object)


def test_progress_is_told_after_every_epoch(scan: ScanData) -> None:
    seen: list[tuple[int, int, float]] = []
    result = refine_object(scan, "flat", 3, progress=lambda *args: seen.append(args))
    assert [args[:2] for args in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1][2] == result.losses[-1]


def test_a_probe_of_another_power_is_scaled_with_a_notice(scan: ScanData) -> None:
    assert scan.probe is not None
    plain = refine_object(scan, "flat", 3)
    scaled = refine_object(scan, "flat", 3, probe=scan.probe * 1e-3)
    assert plain.notices == ()
    assert "probe was multiplied by" in scaled.notices[0]
    assert scaled.losses[-1] < 2 * plain.losses[-1]


@pytest.mark.parametrize("photons", [1e3, 1e4, 1e6])
def test_at_low_dose_the_likelihood_of_counts_is_right_and_amplitudes_are_not(photons: float) -> None:
    noisy = simulate_scan(n=32, patterns=100, photons=photons, seed=1)
    counts, amplitude = (
        refine_object(noisy, "flat", 20, options=RefineOptions(likelihood=likelihood))
        for likelihood in ("counts", "amplitude")
    )
    assert (counts.unit, amplitude.unit) == (1.0, None)
    ratio = score(noisy, counts.object).nrmse / score(noisy, amplitude.object).nrmse
    assert ratio < (0.85 if photons < 1e5 else 1.05)
    found = refine_object(noisy, "flat", 20)
    np.testing.assert_array_equal(found.object, (counts if photons < 1e5 else amplitude).object)


def test_few_patterns_follow_counts_only_when_asked() -> None:
    few, enough = (simulate_scan(n=32, patterns=number, photons=1e4, seed=1) for number in (63, 64))
    assert refine_object(few, "flat", 1).unit is None
    assert refine_object(few, "flat", 1, options=RefineOptions(likelihood="counts")).unit == 1.0
    assert refine_object(enough, "flat", 1).unit == 1.0


def test_detector_units_and_amplitudes() -> None:
    """The unit of a count is found, so that units change nothing; what holds no counts has no unit."""
    noisy = simulate_scan(n=32, patterns=100, photons=1e4, seed=1)
    assert noisy.probe is not None
    few = refine_object(noisy, "flat", 3)
    units = replace(
        noisy,
        patterns=np.asarray(noisy.patterns).astype(np.uint32) * 16,
        probe=4 * noisy.probe,
        report={**noisy.report, "count_quantum": 16.0, "units_per_count": 16.0},
    )
    np.testing.assert_allclose(refine_object(units, "flat", 3).object, few.object, atol=1e-5)
    roots = np.sqrt(np.asarray(noisy.patterns, np.float32))
    smooth = replace(
        noisy,
        patterns=roots,
        domain="amplitude",
        report={**noisy.report, "count_quantum": None, "units_per_count": None},
    )
    assert refine_object(smooth, "flat", 1).unit is None
    with pytest.raises(DataError, match="the patterns hold none"):
        refine_object(smooth, "flat", 1, options=RefineOptions(likelihood="counts"))


def test_the_last_steps_shrink_and_average_the_noise() -> None:
    noisy = simulate_scan(n=32, patterns=144, photons=3e4, seed=3)
    rough = refine_object(noisy, "flat", 20, options=RefineOptions(settle=0))
    smooth = refine_object(noisy, "flat", 20)
    assert score(noisy, smooth.object).nrmse < score(noisy, rough.object).nrmse
    assert [engine.settling(epoch, 10, 0.0) for epoch in range(10)] == [1.0] * 10
    steps = [engine.settling(epoch, 10, 0.5) for epoch in range(10)]
    assert steps[:5] == [1.0] * 5
    assert steps == sorted(steps, reverse=True)
    assert 0 < steps[-1] < 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "at least one step"),
        ({"start": np.ones((3, 3))}, r"the object to start from, \(3, 3\)"),
        ({"start": "round"}, 'unknown start "round"'),
        ({"options": RefineOptions(step_size=0)}, "step_size = 0"),
        ({"options": RefineOptions(momentum=1)}, "momentum = 1"),
        ({"probe": np.ones((5, 5))}, r"the probe \(1, 5, 5\)"),
        ({"probe": np.zeros((32, 32))}, "is empty"),
    ],
)
def test_what_cannot_be_refined_is_refused(scan: ScanData, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        refine_object(scan, **({"start": "flat", "steps": 1} | arguments))


def test_a_scan_without_a_probe_is_refused(scan: ScanData) -> None:
    with pytest.raises(DataError, match="needs a probe"):
        refine_object(replace(scan, probe=None), "flat", 1)


def test_divergence_is_an_error_not_a_picture(scan: ScanData) -> None:
    broken = replace(scan, patterns=np.full(scan.patterns.shape, np.inf, np.float32))
    with pytest.raises(UserError, match="diverged in epoch 1"):
        refine_object(broken, "flat", 2, placement="probe", probe=scan.probe)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the shared data folder ../shared is not there")
def test_the_semi_real_scan_is_reconstructed_in_ten_epochs() -> None:
    from ptycho_torch.data.read import read_scan

    semi_real = read_scan(SHARED / "semireal_run1084_sim.npz")
    result = refine_object(semi_real, "flat", 10)
    result_score = score(semi_real, result.object)
    assert result_score.amplitude_ssim > 0.99
    assert result_score.phase_ssim > 0.99
    assert result_score.nrmse < 0.03


def interpolated(scan: ScanData) -> ScanData:
    """Return the scan as a simulator gives it that interpolates the object and leaves the probe."""
    from ptycho_torch.data.assemble import scan_from_arrays
    from ptycho_torch.data.detect import bilinear_patch

    assert scan.object_guess is not None
    assert scan.probe is not None
    patches = np.stack([bilinear_patch(scan.object_guess, origin, 32) for origin in scan.origins_px])
    waves = np.fft.fft2(patches * scan.probe[0], norm="ortho")
    counts = np.fft.fftshift(np.abs(waves) ** 2, axes=(-2, -1)).astype(np.float32)
    given = {"probe": scan.probe, "object_guess": scan.object_guess, "domain": "intensity"}
    return scan_from_arrays(counts, scan.positions_px, **given)


def test_the_object_is_interpolated_where_the_file_shows_that_it_was(scan: ScanData) -> None:
    simulated = interpolated(scan)
    auto = refine_object(simulated, "flat", 12)
    other = refine_object(simulated, "flat", 12, placement="probe")
    assert auto.placement == "object"
    assert score(simulated, auto.object).nrmse < score(simulated, other.object).nrmse


def test_without_an_object_that_shows_it_the_probe_is_moved(scan: ScanData) -> None:
    assert refine.choose_placement(scan) == "probe"
    assert refine.choose_placement(replace(interpolated(scan), report={})) == "probe"


def test_a_probe_that_drifts_is_brought_back_with_its_object(
    scan: ScanData, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scan.probe is not None
    off = np.roll(scan.probe, 10, axis=-1)
    options = RefineOptions(refine_probe=True)
    result = refine_object(scan, "flat", 30, probe=off, options=options)
    assert abs(float(probe_gauge.center_px(torch.from_numpy(result.probe))[1])) < 4.6
    assert result.losses[-1] < 0.002
    monkeypatch.setattr(probe_gauge, "OFF_CENTER", 1.0)
    assert (
        float(
            probe_gauge.center_px(
                torch.from_numpy(refine_object(scan, "flat", 3, probe=off, options=options).probe)
            )[1]
        )
        > 9
    )


def test_the_probe_keeps_its_power(scan: ScanData) -> None:
    assert scan.probe is not None
    result = refine_object(scan, "flat", 8, probe=1.2 * scan.probe, options=RefineOptions(refine_probe=True))
    np.testing.assert_allclose(np.linalg.norm(result.probe), 1.2 * np.linalg.norm(scan.probe), rtol=1e-5)


@pytest.mark.slow
def test_modes_that_are_not_given_are_found(scan: ScanData) -> None:
    coherent = refine_object(scan, "flat", 1, options=RefineOptions(probe_modes=2))
    assert coherent.probe.shape == (2, 32, 32)
    blurred = simulate_scan(n=32, patterns=144, photons=1e7, seed=4, modes=2)
    assert blurred.probe is not None
    single, double = (
        refine_object(
            blurred,
            "flat",
            40,
            probe=blurred.probe[:1],
            options=RefineOptions(refine_probe=True, probe_modes=count),
        )
        for count in (1, 2)
    )
    assert double.losses[-1] < 0.5 * single.losses[-1]
    assert score(blurred, double.object).nrmse < 0.7 * score(blurred, single.object).nrmse
    assert single.mode_powers == (1.0,)
    first, second = double.mode_powers
    assert first > second > 0.1
    assert abs(np.vdot(double.probe[0], double.probe[1])) < 1e-3 * np.linalg.norm(double.probe) ** 2


def displaced(scan: ScanData, rms_px: float, linear: NDArray[np.float64] | None = None) -> ScanData:
    moves = np.random.default_rng(0).normal(size=(len(scan), 2)) * rms_px / np.sqrt(2)
    if linear is not None:
        moves += (scan.positions_px - scan.positions_px.mean(axis=0)) @ linear.T
    return replace(scan, positions_px=scan.positions_px + moves)


def rms_error(positions_px: Any, scan: ScanData) -> float:
    error = positions_px - scan.positions_px
    return float(np.sqrt(np.square(error - error.mean(axis=0)).sum(axis=1).mean()))


@pytest.mark.slow
@pytest.mark.parametrize("regions", [1, 3])
def test_positions_come_back(regions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = simulate_scan(n=64, patterns=100, photons=1e6, seed=3)
    wrong = displaced(truth, 2.0)
    monkeypatch.setattr(engine, "REGION_PATTERNS", 100 // regions + 1)
    options = RefineOptions(refine_positions=True)
    result = refine_object(wrong, "flat", 25, options=options)
    plain = refine_object(wrong, "flat", 25)
    assert plain.positions_px is None
    assert result.positions_px is not None
    assert rms_error(result.positions_px, truth) < rms_error(wrong.positions_px, truth) / 5
    assert result.losses[-1] < 0.3 * plain.losses[-1]
    np.testing.assert_allclose((result.positions_px - wrong.positions_px).mean(axis=0), 0, atol=0.1)


@pytest.mark.slow
def test_a_scan_of_another_scale_and_rotation_is_corrected_and_the_map_reported() -> None:
    truth = simulate_scan(n=32, patterns=196, photons=1e6, seed=3)
    linear = np.array([[0.03, 0.02], [-0.02, -0.02]])
    wrong = displaced(truth, 0.3, linear)
    result = refine_object(wrong, "flat", 20, options=RefineOptions(refine_positions=True))
    assert result.position_affine is not None
    assert rms_error(result.positions_px, truth) < rms_error(wrong.positions_px, truth) / 5
    expected = np.linalg.inv(np.eye(2) + linear) - np.eye(2)
    np.testing.assert_allclose(result.position_affine, expected, atol=0.008)


@pytest.mark.slow
def test_an_interpolated_object_corrects_positions_too_and_a_limit_holds(scan: ScanData) -> None:
    simulated = interpolated(scan)
    wrong = displaced(simulated, 0.7)
    options = RefineOptions(refine_positions=True)
    result = refine_object(wrong, "flat", 15, options=options, placement="object")
    assert rms_error(result.positions_px, simulated) < 0.4 * rms_error(wrong.positions_px, simulated)
    bound = replace(options, position_limit_px=0.2)
    bounded = refine_object(wrong, "flat", 15, options=bound, placement="object")
    assert bounded.positions_px is not None
    assert bounded.position_affine is not None
    at = wrong.positions_px - wrong.positions_px.mean(axis=0)
    alone = bounded.positions_px - wrong.positions_px - at @ bounded.position_affine.T
    assert np.linalg.norm(alone - np.median(alone, axis=0), axis=1).max() < 0.5


@pytest.mark.slow
def test_a_background_is_told_from_the_object(scan: ScanData) -> None:
    counts = np.asarray(scan.patterns).astype(np.int64)
    added = np.random.default_rng(1).poisson(20.0, counts.shape)
    dim = replace(scan, patterns=(counts + added).astype(np.uint32))
    plain = refine_object(dim, "flat", 30)
    result = refine_object(dim, "flat", 30, options=RefineOptions(background=True))
    assert plain.background is None
    assert result.background is not None
    assert abs(float(np.median(result.background)) - 20) < 3
    assert score(scan, result.object).nrmse < 0.5 * score(scan, plain.object).nrmse


def test_patterns_that_are_held_out_are_judged_and_take_no_part(scan: ScanData) -> None:
    result = refine_object(scan, "flat", 8, options=RefineOptions(held_out=0.05))
    rows = result.held_out
    assert rows is not None
    assert len(rows) == len(set(rows.tolist())) == 7
    assert len(result.held_out_losses) == 8
    assert result.held_out_losses[-1] < 0.2 * result.held_out_losses[0]
    patterns = np.asarray(scan.patterns).copy()
    patterns[rows] = 1
    other = refine_object(replace(scan, patterns=patterns), "flat", 8, options=RefineOptions(held_out=0.05))
    assert np.array_equal(result.object, other.object)
    assert refine_object(scan, "flat", 1).held_out is None
    spread = scan.positions_px[rows]
    assert (np.ptp(spread, axis=0) > 0.4 * np.ptp(scan.positions_px, axis=0)).all()


def test_a_probe_that_explains_the_patterns_is_kept_and_a_poor_one_is_refined(scan: ScanData) -> None:
    assert scan.probe is not None
    auto = RefineOptions(refine_probe="auto")
    kept = refine_object(scan, "flat", 12, options=auto)
    assert kept.probe_decision is not None
    assert not kept.probe_decision.refined
    assert kept.notices == ()
    assert np.array_equal(kept.object, refine_object(scan, "flat", 12).object)
    poor = np.abs(scan.probe).astype(np.complex64)
    moved = refine_object(scan, "flat", 12, probe=poor, options=auto)
    assert moved.probe_decision is not None
    assert moved.probe_decision.refined
    assert "the probe is refined: the given one explains the patterns poorly" in moved.notices[0]
    assert not np.array_equal(moved.probe, poor)


def test_patterns_held_out_may_be_dark(scan: ScanData) -> None:
    patterns = np.array(scan.patterns)
    patterns[8:] = 0
    found = refine_object(replace(scan, patterns=patterns), "flat", 1, options=RefineOptions(held_out=1 / 16))
    assert np.isfinite(found.object).all()
