"""Shadows that move with the scan are told from far-field patterns, defocused ones too."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.data.near_field import beam_width_px, refuse_near_field
from ptycho_torch.simulate import simulate_scan

ALL_GOOD = np.ones((64, 64), bool)


def shadows(k: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return patterns of a smooth beam of 30 pixels through an absorber that moves k pixels a step pixel."""
    from scipy.ndimage import gaussian_filter, shift

    rng = np.random.default_rng(seed)
    absorber = np.exp(0.4 * gaussian_filter(rng.normal(size=(160, 160)), 2, mode="wrap") * 4)
    positions = np.stack(np.divmod(np.arange(36), 6), axis=1) * 9.0 + rng.uniform(-1, 1, (36, 2))
    y, x = np.mgrid[:64, :64] - 32
    beam = 400 * np.exp(-(y**2 + x**2) / 150)
    views = [shift(absorber, -k * p, order=1, mode="wrap")[48:112, 48:112] for p in positions]
    return rng.poisson(beam * np.stack(views)), positions


@pytest.mark.parametrize("k", [0.2, -0.15])
def test_a_near_field_is_refused_with_the_width_of_its_beam(k: float) -> None:
    patterns, positions = shadows(k)
    width = beam_width_px(patterns, positions, ALL_GOOD)
    assert width == pytest.approx(2 * np.sqrt(300) / abs(k), rel=0.25)
    with pytest.raises(DataError, match="this is a near-field scan") as caught:
        refuse_near_field(patterns, positions, ALL_GOOD, "here")
    assert "--propagation far" in caught.value.findings[0].fix


@pytest.mark.parametrize("curvature", [0.0, 3.0, 12.0, 30.0])
def test_a_far_field_passes_however_its_probe_is_defocused(curvature: float) -> None:
    scan = simulate_scan(n=64, patterns=100, photons=1e5, seed=1, probe_curvature_rad=curvature)
    refuse_near_field(scan.patterns, scan.positions_px, scan.good_pixels, "here")
    width = beam_width_px(scan.patterns, scan.positions_px, scan.good_pixels)
    assert width is None or width < 40


def test_few_patterns_say_nothing() -> None:
    patterns, positions = shadows(0.2)
    assert beam_width_px(patterns[:5], positions[:5], ALL_GOOD) is None
