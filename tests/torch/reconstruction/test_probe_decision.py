"""Whether the given probe explains the patterns: the yardstick needs neither object nor probe."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_torch.reconstruction.probe_decision import decide, epoch_of_decision
from ptycho_torch.reconstruction.waves import Amplitudes
from ptycho_torch.simulate import simulate_scan


def test_the_mean_pattern_explains_nothing_and_noise_is_no_fault() -> None:
    scan = simulate_scan(n=32, patterns=100, photons=1e5, seed=2)
    data = Amplitudes(scan, torch.device("cpu"))
    amplitude = scan.amplitude(np.arange(100))
    mean = float(np.square(amplitude - amplitude.mean(axis=0)).sum() / np.square(amplitude).sum())
    poor = decide(data, mean, 3)
    assert poor.mean_pattern_loss == pytest.approx(mean, rel=1e-4)
    assert poor.refined
    assert poor.unexplained == pytest.approx(1, rel=1e-3)
    assert 0 < poor.noise_loss < mean / 2
    good = decide(data, poor.noise_loss, 3)
    assert (good.refined, good.unexplained) == (False, 0)
    assert "the probe is kept (loss" in good.line()


def test_at_low_dose_a_loss_near_that_of_noise_is_no_reason() -> None:
    scan = simulate_scan(n=32, patterns=100, photons=500, seed=2)
    data = Amplitudes(scan, torch.device("cpu"))
    noise = decide(data, 1.0, 3).noise_loss
    assert not decide(data, 1.2 * noise, 3).refined
    assert decide(data, 2.0 * noise, 3).refined


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"), [(30, 40, 3), (30, 5, 10), (10, 5, 5), (4, 40, 2), (3, 40, None)]
)
def test_it_is_decided_after_some_steps_and_within_half_of_the_run(
    epochs: int, steps: int, expected: int | None
) -> None:
    assert epoch_of_decision(epochs, steps) == expected
