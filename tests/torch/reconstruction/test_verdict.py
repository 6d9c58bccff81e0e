"""A verdict without the true object: right ones pass, wrong ones do not, and the likely cause is named."""

from __future__ import annotations

import bz2
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch

from ptycho_torch import simulate_scan
from ptycho_torch.data.assemble import scan_from_arrays
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.evaluation.metrics import evaluate
from ptycho_torch.reconstruction.refine import RefineOptions, refine_object
from ptycho_torch.reconstruction.verdict import Verdict, judge_object
from ptycho_torch.reconstruction.yardsticks import error_of_counting, photons_at_peak, predicted_intensity


def simulated(**values: Any) -> ScanData:
    return simulate_scan(**{"n": 32, "patterns": 100, "photons": 1e5, **values})


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulated(modes=2, bad_pixels=2)


def truth(scan: ScanData) -> np.ndarray:
    assert scan.object_guess is not None
    return np.asarray(scan.object_guess, np.complex64)


def refined(scan: ScanData, epochs: int = 10, **options: Any) -> Verdict:
    """Refine from a flat object, and judge by patterns that were held out."""
    result = refine_object(scan, "flat", epochs, options=RefineOptions(held_out=1 / 16, **options))
    return judge_object(
        scan,
        result.object,
        result.probe,
        held_out=result.held_out,
        probe_refined=bool(options.get("refine_probe")),
    )


@pytest.mark.parametrize("photons", [1e3, 1e4, 1e6, 1e8])
def test_the_true_object_is_good_at_every_dose(photons: float) -> None:
    scan = simulated(photons=photons)
    verdict = judge_object(scan, truth(scan))
    assert verdict.status == "good"
    assert verdict.q is not None
    assert verdict.q < 0.1
    assert verdict.causes == ()


def test_what_a_network_predicts_must_leave_less_than_what_was_fitted() -> None:
    scan = simulated(photons=1e6)
    blurred = scipy.ndimage.gaussian_filter(truth(scan), 0.6)
    fitted, predicted = (judge_object(scan, blurred, fitted=fitted) for fitted in (True, False))
    assert fitted.q == predicted.q
    assert 0.08 < (fitted.q or 0) < 0.15
    assert (fitted.status, predicted.status) == ("good", "doubtful")
    assert predicted.causes[0].line().startswith("network: ")
    assert predicted.causes[0].options == ({"refine": 5},)
    again = refine_object(scan, blurred, 5)
    assert judge_object(scan, again.object).status == "good"
    assert judge_object(scan, again.object, fitted=False).status == "good"


@pytest.mark.parametrize("photons", [1e3, 1e5])
def test_junk_is_poor_whatever_the_dose(photons: float) -> None:
    scan = simulated(photons=photons)
    rng = np.random.default_rng(0)
    shape = scan.canvas_shape
    y, x = np.indices(shape) - np.array(shape)[:, None, None] / 2
    junk = {
        "flat": np.ones(shape),
        "noise": rng.normal(size=shape) + 1j * rng.normal(size=shape),
        "vortex": np.exp(3j * np.arctan2(y, x)),
    }
    for name, obj in junk.items():
        verdict = judge_object(scan, obj.astype(np.complex64))
        assert verdict.status == "poor", name
        assert verdict.warns


def test_a_probe_that_flattens_the_flat_objects_patterns_does_not_help(scan: ScanData) -> None:
    rng = np.random.default_rng(0)
    probe = rng.normal(size=(1, 32, 32)) + 1j * rng.normal(size=(1, 32, 32))
    assert judge_object(scan, np.ones(scan.canvas_shape, np.complex64), probe).status == "poor"


def test_an_object_shifted_by_two_pixels_is_not_good(scan: ScanData) -> None:
    assert judge_object(scan, np.roll(truth(scan), 2, axis=0)).status in ("doubtful", "poor")


def test_scale_and_global_phase_make_no_difference(scan: ScanData) -> None:
    plain = judge_object(scan, truth(scan))
    other = judge_object(scan, (7 * np.exp(1j) * truth(scan)).astype(np.complex64))
    assert other.r_factor == pytest.approx(plain.r_factor, rel=1e-4)
    assert other.q == pytest.approx(plain.q, abs=1e-3)


@pytest.mark.parametrize("photons", [1e3, 1e5])
def test_a_refined_object_is_good_by_patterns_held_out(photons: float) -> None:
    verdict = refined(simulated(photons=photons))
    assert verdict.status == "good"
    assert verdict.by == "held-out patterns"
    assert verdict.held_out >= 4
    assert verdict.gap is not None


def test_mirrored_positions_are_found_by_patterns_held_out_and_named() -> None:
    scan = simulated(n=64, patterns=144)
    mirrored = replace(scan, positions_px=scan.positions_px * [1, -1] + [0, scan.canvas_shape[1] - 1])
    verdict = refined(mirrored, 8)
    assert verdict.status in ("doubtful", "poor")
    assert "orientation" in [cause.name for cause in verdict.causes]
    assert "--orient auto" in "\n".join(verdict.lines())


def test_few_patterns_that_are_fitted_below_the_noise_are_not_praised() -> None:
    scan = simulated(patterns=12, photons=2e3)
    rows = np.arange(len(scan))
    assert scan.probe is not None
    fitted = predicted_intensity(scan, truth(scan), torch.from_numpy(scan.probe), rows)
    followed = replace(scan, patterns=fitted.reshape(len(scan), 32, 32), report={"count_quantum": 1.0})
    verdict = judge_object(followed, truth(scan))
    assert verdict.status == "cannot-judge"
    assert "follows the noise" in verdict.line()


def test_without_patterns_held_out_hardly_any_photons_cannot_be_judged() -> None:
    scan = simulated(patterns=256, photons=200)
    right, junk = judge_object(scan, truth(scan)), judge_object(scan, truth(scan)[::-1, ::-1].copy())
    assert right.status == "cannot-judge"
    assert "R cannot judge" in right.line()
    assert junk.warns


@pytest.mark.parametrize("wrong", [False, True])
def test_where_r_cannot_judge_patterns_held_out_do(wrong: bool) -> None:
    scan = simulated(patterns=256, photons=200)
    order = np.random.default_rng(0).permutation(len(scan)) if wrong else np.arange(len(scan))
    mixed = replace(scan, patterns=np.asarray(scan.patterns)[order])
    verdict = judge_object(mixed, truth(scan), held_out=np.arange(3, 256, 4))
    assert verdict.status == ("poor" if wrong else "good")
    assert "mean pattern" in verdict.reason
    if not wrong:
        assert "R cannot judge" in verdict.reason
        assert verdict.by == "held-out patterns and two halves"
        assert verdict.frc_px is not None
        assert 0.3 < (verdict.halves_apart or 0) < 1
        assert (
            f"halves agree to {verdict.frc_px:.1f} px and differ by {verdict.halves_apart:.0%}"
            in verdict.line()
        )


@pytest.mark.parametrize(
    ("photons", "kind"), [(300, "dead_leaves"), (3e3, "dead_leaves"), (3e3, "star_and_leaves")]
)
def test_the_error_that_counting_leaves_is_that_of_iteration(photons: float, kind: Any) -> None:
    scan = simulate_scan(n=32, patterns=400, photons=photons, object_kind=kind, seed=2)
    result = refine_object(scan, "flat", 20)
    found = evaluate(result.object, truth(scan), coverage=result.coverage).nrmse
    verdict = judge_object(scan, result.object)
    assert verdict.counting == pytest.approx(found, rel=0.4)
    assert (f"error of about {verdict.counting:.0%}" in verdict.line()) == (verdict.counting > 0.1)
    at_peak = photons_at_peak(scan, np.asarray(scan.probe))
    assert at_peak is not None
    each = error_of_counting(result.coverage, at_peak)
    assert np.isnan(each[result.coverage == 0]).all()
    assert np.nanmax(each) <= 1
    well = result.coverage > 0.5 * result.coverage.max()
    assert np.sqrt(np.square(each[well]).mean()) == pytest.approx(verdict.counting, rel=0.4)


def test_patterns_that_are_no_counts_have_no_error_of_counting(scan: ScanData) -> None:
    roots = replace(scan, patterns=0.1 * scan.amplitude(np.arange(len(scan))), domain="amplitude", report={})
    assert judge_object(roots, truth(scan)).counting is None
    assert photons_at_peak(roots, np.asarray(scan.probe)) is None


def test_amplitudes_of_unknown_scale_are_judged_too() -> None:
    scan = simulated(photons=3e3)
    roots = 0.1 * scan.amplitude(np.arange(len(scan)))
    roots_of = replace(scan, patterns=roots, domain="amplitude", report={})
    good, bad = judge_object(roots_of, truth(scan)), judge_object(roots_of, np.roll(truth(scan), 6, axis=1))
    assert good.status == "good"
    assert good.noise_source == "variance over mean"
    assert bad.warns


def test_a_background_that_is_known_is_no_misfit() -> None:
    scan = simulated()
    dark = np.full((32, 32), 20.0, np.float32)
    raised = np.asarray(scan.patterns) + np.random.default_rng(0).poisson(20, scan.patterns.shape)
    foggy = replace(scan, patterns=raised.astype(np.uint16))
    unknown, known = judge_object(foggy, truth(scan)), judge_object(foggy, truth(scan), background=dark)
    assert known.status == "good"
    assert unknown.q is not None
    assert known.q is not None
    assert unknown.q > 2 * known.q


def test_what_cannot_be_compared_is_said(scan: ScanData) -> None:
    for verdict in (
        judge_object(replace(scan, probe=None), truth(scan)),
        judge_object(scan, np.ones((8, 8), np.complex64)),
        judge_object(scan, np.zeros(scan.canvas_shape, np.complex64)),
        judge_object(scan, np.full(scan.canvas_shape, np.nan, np.complex64)),
        judge_object(scan.subset([0]), truth(scan)),
    ):
        assert verdict.status == "cannot-judge"
        assert verdict.reason in verdict.line()
        assert verdict.r_factor is None


def test_patches_beyond_the_canvas_take_no_part(scan: ScanData) -> None:
    moved = scan.positions_px.copy()
    moved[:10] -= 1000
    assert judge_object(replace(scan, positions_px=moved), truth(scan)).patterns == 90


def test_a_verdict_is_plain_data(scan: ScanData) -> None:
    verdict = judge_object(scan, np.ones(scan.canvas_shape, np.complex64))
    plain = json.loads(json.dumps(verdict.to_json()))
    assert plain["status"] == "poor"
    assert all(cause["options"][0] for cause in plain["causes"])


CRYO = Path(__file__).parents[4] / "shared" / "data" / "real" / "cryo4dstem_ptychojl.npz"


@pytest.mark.slow
@pytest.mark.skipif(not CRYO.is_file(), reason="needs the cryo scan of the shared data (../shared/data/real)")
@pytest.mark.parametrize("right", [True, False])
def test_the_orientation_of_the_cryo_scan_is_told_by_patterns_held_out(right: bool) -> None:
    scan = read_scan(CRYO)
    if not right:
        scan = replace(scan, positions_px=scan.positions_px * [1, -1] + [0, scan.canvas_shape[1] - 1])
    result = refine_object(scan, "flat", 12, options=RefineOptions(refine_probe=True, held_out=1 / 20))
    verdict = judge_object(scan, result.object, result.probe, held_out=result.held_out, probe_refined=True)
    assert "mean pattern" in verdict.reason
    assert (verdict.status == "good") == right


STAR = CRYO.with_name("siemens-star-small.npz.bz2")


@pytest.mark.slow
@pytest.mark.skipif(
    not STAR.is_file(), reason="needs the Siemens star of the shared data (../shared/data/real)"
)
@pytest.mark.parametrize("right", [True, False])
def test_the_siemens_star_is_good_with_a_good_probe_only(right: bool) -> None:
    with bz2.open(STAR) as file, np.load(file) as archive:
        patterns = np.fft.fftshift(archive["data"][0], axes=(1, 2))
        scan_px, guess = archive["scan"][0].astype(float), archive["probe"][0, 0, 0]
    with np.load(STAR.with_name("siemens_star_refined_probe.npz")) as archive:
        probe = archive["probe"] if right else guess[:1]
    scan = scan_from_arrays(patterns.astype(np.uint16), scan_px, probe=probe)
    verdict = refined(scan, 8)
    assert verdict.status == ("good" if right else "poor")
    if not right:
        assert verdict.causes[0].options[0] == {"refine_probe": True}


def test_no_object_of_patterns_that_are_all_the_same_is_good(scan: ScanData) -> None:
    same = replace(scan, patterns=np.repeat(np.asarray(scan.patterns[:1]), len(scan), axis=0))
    assert refined(same, refine_probe=True).status == "cannot-judge"
    assert judge_object(same, truth(scan)).status == "cannot-judge"


def test_two_patterns_do_not_make_an_object_good(scan: ScanData) -> None:
    two = simulated(photons=1e6).subset([0, 1])
    result = refine_object(two, "flat", 60, options=RefineOptions(refine_probe=True))
    verdict = judge_object(two, result.object, result.probe, probe_refined=True)
    assert verdict.status == "cannot-judge"
    assert verdict.by == "nothing"


def test_the_patterns_that_are_explained_worst_are_kept_beside_their_prediction(scan: ScanData) -> None:
    wrong = np.array(truth(scan))
    wrong[:24, :24] *= np.exp(0.9j * np.random.default_rng(0).normal(size=(24, 24)))
    fits = judge_object(scan, wrong).fits
    assert fits is not None
    assert fits.in_noise
    assert set(fits.worst) <= set(fits.rows)
    ordered = dict(zip(fits.rows.tolist(), fits.misfit.tolist(), strict=True))
    kept = [ordered[row] for row in fits.worst.tolist()]
    assert kept == sorted(ordered.values(), reverse=True)[: len(kept)]
    assert (scan.origins_px[fits.worst] < 24).all(), "they lie on what is wrong"
    measured = np.square(scan.amplitude(fits.worst))
    np.testing.assert_array_equal(np.isnan(fits.measured[0]), ~scan.good_pixels)
    np.testing.assert_allclose(np.nan_to_num(fits.measured), measured, rtol=1e-6)
    right = judge_object(scan, truth(scan)).fits
    assert right is not None
    assert np.median(right.misfit) == pytest.approx(1, abs=0.1), "in units of noise"
    good = ~np.isnan(right.predicted[0])
    ratio = right.predicted[:, good].sum() / right.measured[:, good].sum()
    assert ratio == pytest.approx(1, abs=0.02)


def test_a_verdict_shows_itself_escaped_and_without_arrays(scan: ScanData) -> None:
    verdict = judge_object(scan, truth(scan))
    html = replace(verdict, reason="<because>")._repr_html_()
    assert "verdict: good" in html
    assert "&lt;because&gt;" in html
    assert "fits" not in verdict.to_json()
    assert "array" not in repr(verdict)
    assert verdict == replace(verdict, fits=None)
