"""Waves, objects and positions on another grid, as cropped, padded or binned patterns need them.

A detector of N pixels of size p at distance z samples the far field of a window of the object of side
W = wavelength z / p, in N object pixels of size dx = W / N = wavelength z / (N p).

* Cropping or padding the patterns from N to n keeps W: the object pixel becomes dx N / n, so that positions
  in pixels shrink by n / N, and the probe's far field is cropped or padded to the same n pixels.
* Binning by b makes detector pixels of b p: the window shrinks to W / b while dx stays, so that positions
  stay and the probe keeps its middle N / b pixels. It must lie within them, else binned patterns undersample.

Grids are aligned at the pixel that `fftshift` treats as the center, n // 2, of each.

Shape legend: P modes, N x N pixels, H x W object.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EDGE_PX = 32


def resample_wave(
    wave: NDArray[np.complex64], ratio: float, size: int, offset_px: float = 0.0
) -> NDArray[np.complex64]:
    """Return (P, size, size): the same field on pixels `ratio` times as large, with its power kept.

    Between its samples the field is what its Fourier coefficients say; beyond its window it is 0. With
    `ratio` = N / size this crops or pads the far field, with `ratio` = 1 the field itself.

    Args:
        wave: (P, N, N).
        ratio: new pixel over old pixel.
        size: new side in pixels.
        offset_px: far-field pixels by which the center of the new patterns lies beside pixel size // 2.
    """
    n = wave.shape[-1]
    if ratio == 1 and size == n and offset_px == 0:
        return wave
    at = (np.arange(size) - size // 2) * ratio  # in old pixels, from the center
    k = np.arange(n) - n // 2
    # The half-open band that the new pixels can hold, as the far field of even size has it.
    band = (k * ratio >= -n / 2 - 1e-9) & (k * ratio < n / 2 - 1e-9) if ratio > 1 else np.ones(n, dtype=bool)
    into = np.exp(2j * np.pi / n * at[:, None] * k[band])
    out_of = np.exp(-2j * np.pi / n * k[band][:, None] * (np.arange(n) - n // 2))
    matrix = into @ out_of / n
    matrix[(at < -n / 2 - 1e-9) | (at >= n / 2 - 1e-9)] = 0
    matrix *= np.exp(-2j * np.pi * offset_px * (np.arange(size) - size // 2) / size)[:, None]
    return np.asarray(ratio * (matrix @ wave.astype(np.complex128) @ matrix.T), dtype=np.complex64)


def resample_object(canvas: NDArray[np.complex64], old_side: int, new_side: int) -> NDArray[np.complex64]:
    """Return the object on pixels old_side / new_side times as large; index i becomes i new_side / old_side.

    Its Fourier coefficients are cropped or padded; at its edges it is continued as a mirror image.
    """
    if old_side == new_side:
        return canvas
    common = math.gcd(old_side, new_side)
    old, new = old_side // common, new_side // common
    before = math.ceil(_EDGE_PX / old) * old
    sides = [math.ceil((length + before + _EDGE_PX) / old) * old for length in canvas.shape]
    widths = [(before, side - before - length) for side, length in zip(sides, canvas.shape, strict=True)]
    spectrum = np.fft.fftshift(np.fft.fft2(np.pad(canvas.astype(np.complex128), widths, mode="symmetric")))
    for axis, side in enumerate(sides):
        spectrum = _resize_about_center(spectrum, side // old * new, axis)
    fine = np.fft.ifft2(np.fft.ifftshift(spectrum)) * (new / old) ** 2
    first = before // old * new
    height, width = (math.ceil(length * new / old) for length in canvas.shape)
    return np.asarray(fine[first : first + height, first : first + width], dtype=np.complex64)


def _resize_about_center(array: NDArray[Any], size: int, axis: int) -> NDArray[Any]:
    """Return the array cropped or padded with 0 along an axis; index n // 2 stays the center."""
    length = array.shape[axis]
    start = length // 2 - size // 2
    if size <= length:
        return np.take(array, np.arange(start, start + size), axis=axis)
    widths = [(0, 0)] * array.ndim
    widths[axis] = (-start, size - length + start)
    return np.pad(array, widths)


def move_positions(
    positions_px: NDArray[np.float64], old_side: int, new_side: int, ratio: float
) -> NDArray[np.float64]:
    """Return canvas indices of patch centers (side - 1) / 2, on pixels `ratio` times as large."""
    center = positions_px - (old_side - 1) / 2 + old_side // 2
    return np.asarray(center / ratio - new_side // 2 + (new_side - 1) / 2)


_ORIENTED = {"flip-y": (-1, 1), "flip-x": (1, -1), "flip-yx": (-1, -1)}


def orientation_matrix(name: str) -> NDArray[np.float64]:
    """Return the matrix that a name of `Preprocessing.orient` multiplies positions [y, x] with.

    Coordinates are exchanged first (transpose), then negated (flip); none and auto change nothing.
    """
    transpose, flip = name.startswith("transpose"), name.removeprefix("transpose").removeprefix("-")
    exchange = np.array([[0.0, 1.0], [1.0, 0.0]]) if transpose else np.eye(2)
    return np.asarray(np.diag(np.array(_ORIENTED.get(flip, (1, 1)), dtype=float)) @ exchange)


def raster(shape: tuple[int, int], step: tuple[float, float], rotation_deg: float) -> NDArray[np.float64]:
    """Return (ny nx, 2) positions [y, x] of a raster, row by row, turned from x towards y."""
    y, x = (axis.ravel() for axis in np.indices(shape) * np.array(step)[:, None, None])
    angle = math.radians(rotation_deg)
    sine, cosine = math.sin(angle), math.cos(angle)
    return np.stack([x * sine + y * cosine, x * cosine - y * sine], axis=1)
