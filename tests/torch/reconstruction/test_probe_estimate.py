"""A probe is found from the patterns alone, with a word where it is in doubt."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho_exec.errors import DataError
from ptycho_torch.data.judge import neighbor_distance
from ptycho_torch.data.scan import ScanData
from ptycho_torch.evaluation.metrics import evaluate
from ptycho_torch.reconstruction import probe_estimate
from ptycho_torch.reconstruction.probe_estimate import (
    ProbeEstimate,
    centered,
    curved_probes,
    estimate_probe,
    mean_amplitude,
)
from ptycho_torch.reconstruction.probe_gauge import with_modes
from ptycho_torch.reconstruction.refine import RefineOptions, refine_object
from ptycho_torch.simulate import make_probe, simulate_scan

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "real"


def make_scan(curvature: float = 4.0, **other: object) -> ScanData:
    wanted = {"n": 32, "patterns": 81, "photons": 1e5, "step_px": 3.0, "probe_curvature_rad": curvature}
    scan = simulate_scan(**{**wanted, **other})  # type: ignore[arg-type]
    return replace(scan, probe=None)


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return make_scan()


@pytest.fixture(scope="module")
def found(scan: ScanData) -> ProbeEstimate:
    return estimate_probe(scan, patterns=48)


def phase_ssim(scan: ScanData, probe: np.ndarray) -> float:
    refined = refine_object(
        scan, "flat", 20, probe=probe, options=RefineOptions(refine_probe=True), placement="probe"
    )
    assert scan.object_guess is not None
    return evaluate(refined.object, scan.object_guess, coverage=refined.coverage).phase_ssim


def test_the_object_comes_out_as_with_the_true_probe(scan: ScanData, found: ProbeEstimate) -> None:
    true = make_probe(32, 1e5, curvature_rad=4.0)
    assert phase_ssim(scan, found.probe) > phase_ssim(scan, true) - 0.02
    assert found.certain
    assert found.chosen in found.line()
    assert "not certain" not in found.line()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_of_the_curvature_is_told(sign: int) -> None:
    found = estimate_probe(make_scan(4.0 * sign, seed=1), patterns=40, epochs=1)
    # A phase that rises with the radius in the window falls with the frequency.
    assert f"k = {'-' if sign > 0 else '+'}" in found.chosen
    assert found.certain


def test_the_probe_is_centered_and_has_the_power_of_the_patterns(
    scan: ScanData, found: ProbeEstimate
) -> None:
    weight = np.square(np.abs(found.probe)).sum(axis=0)
    middle = [float((weight.sum(axis=1 - axis) * np.arange(32)).sum() / weight.sum()) for axis in (0, 1)]
    assert found.probe.dtype == np.complex64
    assert np.abs(np.array(middle) - 15.5).max() < 1.5
    object_power = 0.6  # leaves absorb
    assert weight.sum() * object_power == pytest.approx(np.square(mean_amplitude(scan)).sum(), rel=0.5)


def test_starts_are_listed_best_first_and_rounds_are_told(scan: ScanData) -> None:
    told: list[str] = []
    found = estimate_probe(scan, patterns=30, epochs=2, say=told.append)
    assert found.candidates[0].name == found.chosen
    starts = curved_probes(mean_amplitude(scan), neighbor_distance(scan.positions_px))
    assert {row.name for row in found.candidates} == {name for name, _, _ in starts}
    assert len(told) == len(probe_estimate.ROUNDS) + 1
    assert all(row.seconds > 0 for row in found.candidates)


def test_equal_arguments_give_equal_probes_also_in_parallel(scan: ScanData) -> None:
    one, two = (estimate_probe(scan, patterns=16, epochs=1, jobs=jobs) for jobs in (1, 2))
    np.testing.assert_array_equal(one.probe, two.probe)
    assert [(c.name, c.loss) for c in one.candidates] == [(c.name, c.loss) for c in two.candidates]


def test_a_good_guess_wins(scan: ScanData) -> None:
    found = estimate_probe(scan, patterns=40, epochs=1, guess=make_probe(32, 1e5, curvature_rad=4.0)[0])
    assert found.chosen == "the given probe"
    assert found.certain


def test_a_guess_keeps_its_modes(scan: ScanData) -> None:
    guess = with_modes(torch.from_numpy(make_probe(32, 1e5, curvature_rad=4.0)), 2).numpy()
    found = estimate_probe(scan, patterns=40, epochs=1, guess=guess)
    assert (found.chosen, len(found.probe)) == ("the given probe", 2)


def test_bad_pixels_take_no_part(scan: ScanData) -> None:
    masked = make_scan(bad_pixels=12)
    amplitude = mean_amplitude(masked)
    assert amplitude.max() < 1.5 * mean_amplitude(scan).max()
    assert amplitude[~masked.good_pixels].min() > 0
    assert estimate_probe(masked, patterns=40, epochs=1).certain


def test_further_modes_join(scan: ScanData) -> None:
    found = estimate_probe(scan, modes=3, patterns=30, epochs=2)
    assert found.probe.shape == (3, 32, 32)
    powers = np.square(np.abs(found.probe)).sum(axis=(1, 2))
    assert powers[0] == powers.max()
    assert powers.min() > 0


def test_a_scan_without_overlap_is_not_certain() -> None:
    apart = make_scan(step_px=30.0, patterns=36)
    found = estimate_probe(apart, epochs=2)
    assert not found.certain
    assert "not certain" in found.line()


@pytest.mark.parametrize("patterns", [1, 2, 5, 16])
def test_a_tiny_scan_gives_a_probe(patterns: int) -> None:
    found = estimate_probe(make_scan(patterns=patterns), epochs=1)
    assert found.probe.shape == (1, 32, 32)
    assert np.isfinite(found.probe).all()


def test_dark_patterns_are_an_error(scan: ScanData) -> None:
    dark = replace(scan, patterns=np.zeros((len(scan), 32, 32), np.uint16))
    with pytest.raises(DataError, match="dark"):
        estimate_probe(dark)


def test_a_probe_cut_by_the_edge_is_centered_whole() -> None:
    probe = make_probe(32, 1.0)
    for shift in ((9, -14), (16, 0), (-3, 5)):
        back = centered(np.roll(probe, shift, axis=(1, 2)))
        np.testing.assert_array_equal(back, probe)


def test_curvatures_fit_the_window_and_the_step() -> None:
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2(make_probe(64, 1.0, radius_px=3.0)[0])))
    radii = []
    for _, probe, k in curved_probes(amplitude, step_px=8.0):
        weight = np.square(np.abs(np.asarray(probe[0], np.complex128)))
        y, x = np.mgrid[:64, :64] - 32
        radii.append((k, math.sqrt((weight * (y**2 + x**2)).sum() / weight.sum())))
    assert sum(k > 0 for k, _ in radii) == sum(k < 0 for k, _ in radii) >= 5
    curved = [radius for k, radius in radii if k]
    assert min(curved) == pytest.approx(4.0, rel=0.3)
    assert 13 < max(curved) < 32


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="needs the real scans of the shared data (../shared/data/real)")
def test_the_probe_of_a_defocused_electron_beam_is_found() -> None:
    from ptycho_torch.data.read import read_scan

    scan = read_scan(REAL / "cryo4dstem_ptychojl.npz")
    found = estimate_probe(scan)
    k = float(found.chosen.rpartition("k = ")[2])
    assert 60 < k < 130
    given = np.square(np.abs(scan.probe)).sum(axis=0)  # type: ignore[arg-type]
    own = np.square(np.abs(found.probe)).sum(axis=0)
    assert (given * own).sum() / np.linalg.norm(given) / np.linalg.norm(own) > 0.8
