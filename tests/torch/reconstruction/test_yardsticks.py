"""Mean pattern and noise: what an object is held against, at every dose and for every kind of numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch import simulate_scan
from ptycho_torch.data.assemble import scan_from_arrays
from ptycho_torch.data.scan import ScanData
from ptycho_torch.reconstruction.yardsticks import (
    Yardstick,
    measured_intensity,
    misfits,
    noise_of,
    noise_of_amplitude,
    predicted_intensity,
    r_factor,
    scaled,
    yardstick_of,
)


def simulated(**values: Any) -> ScanData:
    return simulate_scan(**{"n": 32, "patterns": 100, "photons": 1e4, **values})


def intensities(scan: ScanData) -> np.ndarray:
    return measured_intensity(scan, np.arange(len(scan)))


def yardstick(scan: ScanData) -> Yardstick:
    made = yardstick_of(scan, intensities(scan))
    assert made is not None
    return made


def true_prediction(scan: ScanData) -> np.ndarray:
    assert scan.object_guess is not None
    assert scan.probe is not None
    return predicted_intensity(scan, scan.object_guess, torch.from_numpy(scan.probe), np.arange(len(scan)))


def as_floats(scan: ScanData, values: np.ndarray, domain: Any = "intensity") -> ScanData:
    return replace(scan, patterns=values.astype(np.float32), domain=domain, report={})


@pytest.mark.parametrize("photons", [300, 1e3, 1e4, 1e6])
def test_the_true_object_leaves_as_much_as_noise_at_every_dose(photons: float) -> None:
    scan = simulated(photons=photons)
    held = yardstick(scan)
    measured = intensities(scan)
    predicted, _ = scaled(held.noise, measured, true_prediction(scan))
    own = float(misfits(held.noise, measured, predicted).mean())
    assert own == pytest.approx(held.misfit_noise, rel=0.1)
    assert (own - held.misfit_noise) / (held.misfit_mean - held.misfit_noise) < 0.1
    assert held.noise.source == "counts"


def test_r_of_noise_is_that_of_the_true_object() -> None:
    scan = simulated(photons=1e5)
    own = r_factor(np.sqrt(intensities(scan)), np.sqrt(true_prediction(scan)))
    assert yardstick(scan).r_noise == pytest.approx(own, rel=0.1)


def test_neither_scale_nor_unit_of_the_patterns_matters() -> None:
    scan = simulated()
    scale = 37.5
    other = as_floats(scan, scale * np.asarray(scan.patterns))
    other = replace(other, report={"count_quantum": scale})
    one, two = yardstick(scan), yardstick(other)
    assert one.misfit_mean == pytest.approx(two.misfit_mean, rel=1e-3)
    assert one.r_mean == pytest.approx(two.r_mean, rel=1e-3)
    assert one.r_noise == pytest.approx(two.r_noise, rel=1e-3)


@pytest.mark.parametrize("domain", ["intensity", "amplitude"])
def test_the_gain_of_an_unknown_unit_is_found_from_variance_and_mean(domain: str) -> None:
    scan = simulated(photons=3e3)
    values = 0.01 * np.asarray(scan.patterns, np.float64)
    other = as_floats(scan, values if domain == "intensity" else np.sqrt(values), domain)
    noise = noise_of(other, intensities(other))
    assert noise.source == "variance over mean"
    assert noise.gain == pytest.approx(0.01, rel=0.3)


def test_an_amplifier_with_readout_noise_is_no_counter() -> None:
    rng = np.random.default_rng(0)
    mean = np.geomspace(0.02, 30, 4096)
    counts = rng.poisson(rng.gamma(3, mean / 3, size=(128, len(mean))))
    read = np.clip(np.round(37 * counts + rng.normal(0, 5, counts.shape)), 0, None).astype(np.float32)
    scan = replace(simulated(), report={"count_quantum": 1.0})
    noise = noise_of(scan, read)
    assert noise.source == "variance over mean"
    assert noise.gain == pytest.approx(37, rel=0.3)
    assert noise_of(scan, counts.astype(np.float32)).source == "counts"


def test_peaks_of_an_amplifier_tell_its_gain_where_variance_does_not() -> None:
    rng = np.random.default_rng(0)
    scan = simulated()
    counts = np.asarray(scan.patterns, np.float64)
    units = np.clip(np.round(37 * counts + rng.normal(0, 4, counts.shape)), 0, None).astype(np.float32)
    read = scan_from_arrays(units, scan.positions_px, probe=scan.probe, domain="intensity")
    assert read.report["units_per_count"] == pytest.approx(37, rel=0.03)
    too_few_for_a_variance = intensities(read)[:7]
    assert noise_of(read, too_few_for_a_variance).gain == pytest.approx(37, rel=0.03)


def test_speckle_that_is_stronger_in_dim_pixels_is_no_amplifier() -> None:
    rng = np.random.default_rng(0)
    mean = np.geomspace(3, 3000, 1024)
    shape = np.sqrt(mean / 3)
    counts = rng.poisson(rng.gamma(shape, mean / shape, size=(128, len(mean)))).astype(np.float32)
    noise = noise_of(replace(simulated(), report={"count_quantum": 1.0}), counts)
    assert (noise.gain, noise.source) == (1.0, "counts")


def test_bright_counts_whose_noise_is_hidden_stay_counts() -> None:
    scan = replace(simulated(photons=1e8), report={})
    assert noise_of(scan, intensities(scan)).gain == 1


def test_without_noise_none_is_made_up() -> None:
    scan = simulated(noise=False)
    other = as_floats(scan, np.asarray(scan.patterns, np.float64) * np.pi)
    held = yardstick(other)
    assert held.noise.source == "unknown"
    assert held.r_noise == held.misfit_noise == 0
    assert held.contrast == float("inf")


def test_nothing_to_hold_against() -> None:
    scan = simulated()
    assert yardstick_of(scan, intensities(scan)[:1]) is None
    assert yardstick_of(scan, np.zeros((5, 9), np.float32)) is None


@pytest.mark.parametrize("expected", [0.01, 0.5, 3.0, 20.0, 200.0])
def test_the_noise_of_an_amplitude_is_that_of_poisson_counts(expected: float) -> None:
    counts = np.random.default_rng(0).poisson(expected, 400_000)
    measured = np.square(np.sqrt(counts) - np.sqrt(expected)).mean()
    assert float(noise_of_amplitude(torch.tensor([expected]))) == pytest.approx(measured, rel=0.03)
