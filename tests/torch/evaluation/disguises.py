"""A truth, and reconstructions of it that differ in what diffraction does not determine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ptycho_torch.evaluation.registration import shifted

SHAPE = (120, 96)


def smooth(seed: int, sigma: float = 2.0) -> NDArray[np.float64]:
    image = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), sigma, mode="wrap")
    return np.asarray(image / np.abs(image).max())


def make_truth() -> NDArray[np.complex128]:
    return (0.8 + 0.2 * smooth(1)) * np.exp(1.2j * smooth(2))


def noisy(image: NDArray[np.complex128], level: float, seed: int = 9) -> NDArray[np.complex128]:
    rng = np.random.default_rng(seed)
    return image + level * (rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE))


def disguised(
    truth: NDArray[np.complex128],
    *,
    scale: float = 1.0,
    phase: float = 0.0,
    ramp: tuple[float, float] = (0, 0),
    shift: tuple[float, float] = (0, 0),
) -> NDArray[np.complex128]:
    """Return the truth with everything added that diffraction patterns does not determine."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    twist = np.exp(1j * (phase + ramp[0] * y + ramp[1] * x))
    return scale * shifted(truth, np.array(shift)) * twist


def coverage_map() -> NDArray[np.float32]:
    coverage = np.zeros(SHAPE, np.float32)
    coverage[12:104, 9:88] = 3
    return coverage
