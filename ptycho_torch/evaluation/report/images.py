"""Images as data of a page: quantised, compressed, with what is needed to show them and to read values.

A value is `low + step * (code - 1)`, squared where `squared`: of intensities the root is kept, whose noise is
the same everywhere. Code 0 is a pixel of which nothing is known. Where `clipped`, the first and the last code
also stand for what lies beyond.

Shape legend: H x W pixels of an image, M positions.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.floating[Any]]

BITS, FEWER_BITS = 12, 10
"""Bits of a code; the fewer where there are many pixels."""
MANY_PIXELS, MOST_PIXELS = 2**20, 13 * 2**17
"""Pixels of all images of a page above which codes have fewer bits; and above which pixels are averaged."""
OUTER = 0.0002
"""Part of the values on either side that may be clipped, where they lie far from the others."""
SHOWN = 0.003
"""Part of the values on either side that has the color of the next."""


MOST_POINTS = 20_000
"""Positions that are shown at most, beside those that something is known of."""
SMALL_PX = 256
"""Sides of images up to this are not shown in the whole width."""


@dataclass(frozen=True)
class Quantity:
    """What the numbers of images are, and how they are shown."""

    name: str
    colors: str
    """`gray`, `phase` for values on a circle, `diverging` or `viridis`."""
    limits: tuple[float, float]
    unit: str = ""
    intensity: bool = False
    """Not below 0, shown on a logarithmic scale."""

    def said_precision(self, images: Sequence[Mapping[str, Any]]) -> str:
        """Return by how much a value of packed images may be wrong at most."""
        half = max(image["step"] for image in images) / 2
        root = f" times the root of the {self.name}" if self.intensity else ""
        return f"± {2 * half if root else half:.1g} {self.unit}".rstrip() + (root or f" ({self.name})")


@dataclass(frozen=True)
class Shown:
    """Images of several things, each a list with an image (H, W) for each quantity, on the same pixels.

    `panes` says what is shown: quantity and thing, None for the one that the reader chooses. Not finite
    values are shown as unknown.
    """

    things: Mapping[str, Sequence[Real]]
    quantities: Sequence[Quantity]
    panes: Sequence[tuple[int | None, int | None]]
    label: str
    origin_px: tuple[int, int] = (0, 0)
    """[y, x] of the first pixel on the canvas."""
    binned: int = 1
    """Side of the square of canvas pixels that a pixel is the mean of."""
    pixel_size_m: float | None = None
    divided: bool = False
    """Whether two things are shown in one pane, on either side of a line."""
    points: Mapping[str, Any] | None = field(default=None, repr=False)
    """Scan positions, of `points_of`, which lie over the images."""
    always_points: bool = False
    """Whether the positions are shown from the start."""

    @property
    def small(self) -> bool:
        """Whether the images are too small to be shown large."""
        first = next(iter(self.things.values()))[0]
        return max(first.shape) <= SMALL_PX and not self.divided

    def data(self, bits: int = BITS) -> dict[str, Any]:
        """Return what the page's script needs, and by how much a value may be wrong at most."""
        things = [
            {
                "name": name,
                "images": [
                    packed(image, bits, squared=quantity.intensity)
                    for image, quantity in zip(images, self.quantities, strict=True)
                ],
            }
            for name, images in self.things.items()
        ]
        columns = zip(*(thing["images"] for thing in things), strict=True)
        said = [quantity.said_precision(row) for quantity, row in zip(self.quantities, columns, strict=True)]
        return {
            "things": things,
            "precision": ", ".join(said),
            "quantities": [vars(quantity) for quantity in self.quantities],
            "panes": self.panes,
            "origin": self.origin_px,
            "binned": self.binned,
            "pixel_m": self.pixel_size_m,
            "divided": self.divided,
            "points": self.points,
            "always_points": self.always_points,
        }


def bits_for(pixels: int) -> int:
    """Return the bits of a code on a page with so many pixels in all."""
    return BITS if pixels <= MANY_PIXELS else FEWER_BITS


def bin_for(pixels: int) -> int:
    """Return the side of the squares to average so that a page does not become large."""
    return max(1, int(np.ceil(np.sqrt(pixels / MOST_PIXELS))))


def averaged(image: NDArray[Any], side: int) -> NDArray[Any]:
    """Return the means of squares of pixels; what does not fill a square at the end is left out."""
    if side == 1:
        return image
    rows, columns = (length // side for length in image.shape)
    squares = image[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return np.asarray(squares.mean(axis=(1, 3)))


def packed(image: Real, bits: int = BITS, *, squared: bool = False) -> dict[str, Any]:
    """Return an image as codes, low bytes before high bytes, compressed, in base64."""
    values = np.asarray(image, np.float32)
    values = np.sqrt(np.maximum(values, 0)) if squared else values
    known = np.isfinite(values)
    low, high, clipped = _range(values[known])
    most = 2**bits - 2
    step = (high - low) / most or 1.0
    codes = np.zeros(values.shape, "<u2")
    codes[known] = 1 + np.clip(np.rint((values[known] - low) / step), 0, most)
    pairs = codes.view(np.uint8).reshape(-1, 2)
    return {
        "shape": values.shape,
        "low": low,
        "step": step,
        "bits": bits,
        "clipped": clipped,
        "squared": squared,
        "codes": text_of(pairs.T.tobytes()),
    }


def unpacked(image: Mapping[str, Any]) -> Real:
    """Return the image (H, W) that `packed` made data of, NaN where nothing is known."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(image["codes"])), np.uint8)
    codes = raw.reshape(2, -1).T.copy().view("<u2").reshape(image["shape"])
    values = image["low"] + image["step"] * (codes.astype(np.float64) - 1)
    return np.where(codes > 0, values**2 if image["squared"] else values, np.nan)


def text_of(data: bytes) -> str:
    """Return bytes, compressed, in base64."""
    return base64.b64encode(zlib.compress(data, 1)).decode("ascii")


def points_of(
    positions_px: Real,
    *,
    moved_px: Real | None = None,
    values: Real | None = None,
    value_name: str = "",
    far: NDArray[np.integer[Any]] | None = None,
) -> dict[str, Any]:
    """Return positions (M, 2) [y, x] as data of a page.

    moved_px: (M, 2), where each one was corrected to. values: (M,), NaN where there is none. far: indices of
    those that lie far from all others. Of very many, some are left out; `rows` says which are there.
    """

    far = np.empty(0, np.int64) if far is None else far
    rows = np.arange(0, len(positions_px), max(1, math.ceil(len(positions_px) / MOST_POINTS)))
    if values is not None:
        rows = np.union1d(rows, np.flatnonzero(np.isfinite(values)))
    rows = np.union1d(rows, far)

    def numbers(array: Real | None) -> str | None:
        return None if array is None else text_of(np.asarray(array[rows], "<f4").tobytes())

    return {
        "at": numbers(positions_px),
        "moved": numbers(moved_px),
        "values": numbers(values),
        "value_name": value_name,
        "rows": None if len(rows) == len(positions_px) else text_of(rows.astype("<f4").tobytes()),
        "far": np.flatnonzero(np.isin(rows, far)).tolist(),
    }


def limits_of(*images: Real) -> tuple[float, float]:
    """Return limits for the colors of images that a few extreme pixels do not dominate."""
    values = np.concatenate([image[np.isfinite(image)].ravel() for image in images])
    if not values.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.quantile(values, (SHOWN, 1 - SHOWN)))
    return (low, high) if high - low > 1e-9 * max(abs(high), 1e-30) else (low - 0.5, high + 0.5)


def phase_quantity(*images: Real) -> Quantity:
    """Return a phase on the circle if it goes round it, else about zero."""
    reach = max(map(abs, limits_of(*images)))
    if reach > 0.8 * np.pi:
        return Quantity("phase", "phase", (-float(np.pi), float(np.pi)), "rad")
    return Quantity("phase", "diverging", (-reach, reach), "rad")


def _range(values: Real) -> tuple[float, float, bool]:
    """Return the lowest and highest value that codes are for, and whether values lie beyond."""
    if not values.size:
        return 0.0, 1.0, False
    lowest, highest = float(values.min()), float(values.max())
    inner_low, inner_high = (float(value) for value in np.quantile(values, (OUTER, 1 - OUTER)))
    reach = inner_high - inner_low
    low, high = max(lowest, inner_low - reach), min(highest, inner_high + reach)
    return low, high, (low, high) != (lowest, highest)
