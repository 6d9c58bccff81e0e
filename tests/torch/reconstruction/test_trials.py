"""Starts are compared by patterns that are held back, against the mean pattern and noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho_torch.data.scan import ScanData
from ptycho_torch.reconstruction.trials import FEW, Start, Trial, agreement, compact_part
from ptycho_torch.simulate import simulate_scan


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=32, patterns=100, photons=1e4, step_px=3.0, seed=3)


@pytest.mark.parametrize("patterns", [40, FEW, FEW - 1])
def test_no_pattern_is_fitted_and_held_back_where_there_are_enough(scan: ScanData, patterns: int) -> None:
    part = compact_part(scan, patterns)
    shared = {image.tobytes() for image in part.held.patterns} & {
        image.tobytes() for image in part.fitted.patterns
    }
    assert bool(shared) == (patterns < FEW)
    assert part.held.canvas_shape == part.fitted.canvas_shape


def test_moved_positions_belong_to_the_same_patterns(scan: ScanData) -> None:
    plain, moved = compact_part(scan, 40), compact_part(scan, 40, move=np.negative)
    np.testing.assert_array_equal(plain.held.patterns, moved.held.patterns)
    apart = [part.fitted.positions_px - part.fitted.positions_px[0] for part in (plain, moved)]
    np.testing.assert_allclose(apart[0], -apart[1], atol=1e-9)


def test_noise_leaves_what_drawn_counts_leave(scan: ScanData) -> None:
    part = compact_part(scan, 40)
    mean = np.sqrt(np.square(scan.amplitude(np.arange(len(scan))), dtype=np.float64).mean(axis=0))
    mean_loss, noise_loss = part.yardsticks(mean)
    drawn = np.sqrt(np.random.default_rng(0).poisson(mean**2, (200, *mean.shape)))
    assert noise_loss == pytest.approx(np.square(drawn - mean).sum() / np.square(drawn).sum(), rel=0.01)
    assert mean_loss > noise_loss
    amplitudes = replace(
        part.held, patterns=part.held.amplitude(np.arange(len(part.held))), domain="amplitude"
    )
    assert replace(part, held=amplitudes).yardsticks(mean)[1] == 0


def test_objects_agree_up_to_phase_and_ramp(scan: ScanData) -> None:
    part = compact_part(scan, 40)
    rng = np.random.default_rng(1)
    shape = part.fitted.canvas_shape
    obj = np.exp(1j * rng.random(shape)).astype(np.complex64)
    assert scan.probe is not None
    one = Trial(Start("one", part, scan.probe), obj, scan.probe, 0.1, 0.0)
    ramp = np.exp(1j * (0.3 + 0.02 * np.indices(shape)[0])).astype(np.complex64)
    assert agreement(one, replace(one, object=obj * ramp)) == pytest.approx(1, abs=0.01)
    other = np.exp(1j * rng.random(shape)).astype(np.complex64)
    assert agreement(one, replace(one, object=other)) < 0.3
