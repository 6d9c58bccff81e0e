"""Recognise near-field scans, which the far-field model here cannot explain, by what their patterns show.

Near the object a pattern is its shadow, and the shadow moves with the scan: by k detector pixels for each
object pixel. A beam that is w pixels wide on the detector is then w / k object pixels wide at the object.
That also holds for the far field of a strongly defocused probe - as long as the beam fits into the N object
pixels that a far-field pattern of N pixels can describe.

Shape legend: K pairs of patterns, N x N pixels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.patterns import Patterns

_PAIRS = 24
_FEWEST = 8
_EXPLAINED = 0.8
_MARGIN = 1.25


def refuse_near_field(
    patterns: Patterns, positions_px: NDArray[np.float64], good: NDArray[np.bool_], where: str
) -> None:
    """Refuse patterns whose shadows move with the scan as only a near field's can.

    Args:
        patterns: (M, N, N) counts.
        positions_px: (M, 2) [y, x] in object pixels of the far field.
        good: (N, N).
        where: the patterns are, for the message.

    Raises:
        DataError: with the width of the beam at the object, and how to go on.
    """
    width = beam_width_px(patterns, positions_px, good)
    N = patterns.shape[1]
    if width is not None and width > _MARGIN * N:
        raise DataError(
            "the patterns are shadows that move with the scan; read as far field, the beam would be "
            f"{width:.0f} object pixels wide at the object, and a pattern holds {N}: this is a near-field "
            "scan, or its geometry is wrong",
            where=where,
            expected="far-field patterns",
            fix="reconstruct a near-field scan with a near-field program; if distance, energy or pixel size "
            "in the file are wrong, give --pixel-size-m; --propagation far reads it as far field anyway",
        )


def beam_width_px(
    patterns: Patterns, positions_px: NDArray[np.float64], good: NDArray[np.bool_]
) -> float | None:
    """Return the width of the beam at the object in object pixels; None where no shadow moves along."""
    from scipy.spatial import cKDTree

    if len(positions_px) < _FEWEST:
        return None
    first = np.unique(np.linspace(0, len(positions_px) - 1, _PAIRS).astype(np.int64))
    _, nearest = cKDTree(positions_px).query(positions_px[first], k=2)
    second = np.asarray(nearest)[:, 1]
    moved = positions_px[first] - positions_px[second]
    left, right = (
        np.where(good, np.asarray(patterns[rows], dtype=np.float64), 0.0) for rows in (first, second)
    )
    mean = (left.mean(axis=0) + right.mean(axis=0)) / 2
    shifts = _shifts(_contrast(left, mean), _contrast(right, mean))
    matrix, *_ = np.linalg.lstsq(moved, shifts, rcond=None)
    explained = 1 - np.sum((shifts - moved @ matrix) ** 2) / max(float(np.sum(shifts**2)), 1e-300)
    k = math.sqrt(abs(float(np.linalg.det(matrix))))
    if explained < _EXPLAINED or k == 0:
        return None
    diameter = 2 * math.sqrt(float(mean.sum() ** 2 / np.sum(mean**2)) / math.pi)
    return diameter / k


def _contrast(frames: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[Any]:
    """Return (K, N, N) what differs from the mean pattern, weighed by how much light there is."""
    relative = frames / (mean + max(1e-3 * float(mean.max()), 1e-300)) - 1
    weighed = relative * np.sqrt(mean)
    return np.asarray(weighed - weighed.mean(axis=(1, 2), keepdims=True))


def _shifts(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (K, 2) whole pixels by which the left frames lie beside the right ones, by cross-correlation."""
    product = np.fft.fft2(left) * np.fft.fft2(right).conj()
    peaks = np.fft.ifft2(product).real.reshape(len(left), -1).argmax(axis=1)
    n = left.shape[-1]
    found = np.stack(np.unravel_index(peaks, left.shape[1:]), axis=1)
    return np.asarray((found + n // 2) % n - n // 2, dtype=np.float64)
