"""The pixels of a prepared pattern: the arithmetic on their values, and which stored pixels they come from.

Shape legend: B patterns of a block, h x w pixels as stored, n x n at their new places, N x N once binned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config import Preprocessing
from ptycho_torch.data.storage.patterns import Domain


@dataclass(frozen=True, eq=False)
class Values:
    """The arithmetic on stored values; called with (B, h, w) of them."""

    dark: NDArray[Any] | None = None
    pedestal: float = 0.0
    gain: float = 1.0
    clip_negative: bool = False
    threshold: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing is asked for."""
        return not (self._shifts or self.clip_negative or self.threshold)

    @property
    def _shifts(self) -> bool:
        return self.dark is not None or self.pedestal != 0 or self.gain != 1

    def dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype of the results: whole numbers stay such, so that counts remain counts."""
        if self._stays_whole(stored):
            return stored if not self._shifts or self.clip_negative else np.promote_types(stored, np.int8)
        return _working(stored)

    def _stays_whole(self, stored: np.dtype[Any]) -> bool:
        whole = self.dark is None or bool(np.all(self.dark == np.round(self.dark)))
        return stored.kind in "iu" and self.gain == 1 and self.pedestal.is_integer() and whole

    def shifted(self, block: NDArray[Any]) -> NDArray[Any]:
        """Return values after dark frame, pedestal and gain."""
        if not self._shifts:
            return block
        values = block.astype(_working(block.dtype))
        if self.dark is not None:
            values -= self.dark.astype(values.dtype)
        if self.pedestal:
            values -= self.pedestal
        if self.gain != 1:
            values /= self.gain
        return values

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        values = self.shifted(block)
        if self.clip_negative and values.dtype.kind != "u":
            values = np.maximum(values, 0)
        if self.threshold:
            values = np.where(values < self.threshold, 0, values)
        return values.astype(self.dtype(block.dtype), copy=False)


def _working(stored: np.dtype[Any]) -> np.dtype[Any]:
    """Return the floating-point dtype that holds the stored numbers."""
    wide = stored.itemsize > 4 or (stored.kind in "iu" and stored.itemsize == 4)
    return np.dtype(np.float64 if wide else np.float32)


@dataclass(frozen=True, eq=False)
class Frame:
    """Where the pixels of a prepared pattern come from.

    Attributes:
        rows, columns: (n,) indices into the stored frame, once transposed; -1 where nothing was measured.
        transpose: whether rows and columns are exchanged first.
        bin: side of the squares that are added up.
    """

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    transpose: bool = False
    bin: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """(N, N) of a prepared pattern."""
        return len(self.rows) // self.bin, len(self.columns) // self.bin

    def is_whole(self, stored: Sequence[int]) -> bool:
        """Return whether a frame of that (h, w) is left as it is."""
        same = [
            np.array_equal(i, np.arange(n)) for i, n in zip((self.rows, self.columns), stored, strict=True)
        ]
        return all(same) and not self.transpose and self.bin == 1

    def dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype of sums over a bin: the smallest of its kind that holds them."""
        if self.bin == 1:
            return stored
        if stored.kind == "f":
            return _working(stored) if stored.itemsize < 4 else stored
        most = int(np.iinfo(stored).max) * self.bin**2
        types = [np.dtype(f"{stored.kind}{size}") for size in (1, 2, 4, 8)]
        return next((dtype for dtype in types if np.iinfo(dtype).max >= most), types[-1])

    def place(self, block: NDArray[Any], fill: Any = 0) -> NDArray[Any]:
        """Return (B, n, n) pixels of (B, h, w) frames at their new places, not binned."""
        if _are_neighbors(self.rows) and _are_neighbors(self.columns):
            turned = block.swapaxes(1, 2) if self.transpose else block
            return turned[:, self.rows[0] : self.rows[-1] + 1, self.columns[0] : self.columns[-1] + 1]
        width = block.shape[2]
        down, right = (1, width) if self.transpose else (width, 1)
        index = self.rows[:, None] * down + self.columns[None, :] * right
        out = np.take(block.reshape(len(block), -1), index, axis=1, mode="clip")
        outside: NDArray[np.bool_] = (self.rows < 0)[:, None] | (self.columns < 0)[None, :]
        if outside.any():
            out[:, outside] = fill
        return out

    def squares(self, block: NDArray[Any]) -> NDArray[Any]:
        """Return (B, N, bin, N, bin) of (B, n, n)."""
        height, width = self.shape
        return block.reshape(len(block), height, self.bin, width, self.bin)

    def good(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the (N, N) good pixels: where all that make them up are good and measured."""
        placed = self.place(mask[None], fill=False)
        whole: NDArray[np.bool_] = np.asarray(self.squares(placed).all(axis=(2, 4)))
        first: NDArray[np.bool_] = whole[0]
        return first


def _are_neighbors(index: NDArray[np.intp]) -> bool:
    return bool(index[0] >= 0 and (np.diff(index) == 1).all())


@dataclass(frozen=True, eq=False)
class Compute:
    """From stored to prepared patterns; sums of a bin are sums of intensity."""

    values: Values
    frame: Frame
    domain: Domain

    def dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype of prepared patterns."""
        return self.frame.dtype(self.values.dtype(stored))

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        placed = self.frame.place(self.values(block))
        if self.frame.bin == 1:
            return placed
        dtype = self.dtype(block.dtype)
        squares = self.frame.squares(placed.astype(dtype, copy=False))
        if self.domain == "intensity":
            return np.asarray(squares.sum(axis=(2, 4), dtype=dtype))
        return np.asarray(np.sqrt((squares * squares).sum(axis=(2, 4), dtype=dtype)))


def turned(shape: tuple[int, int], config: Preprocessing) -> Frame:
    """Return the frame with its zero frequency at N/2, flipped and transposed."""
    rows, columns = (np.arange(length) for length in shape)
    if config.zero_frequency in ("corner", "first-row"):
        rows = np.fft.fftshift(rows)
    if config.zero_frequency in ("corner", "first-column"):
        columns = np.fft.fftshift(columns)
    if "y" in config.flip_patterns:
        rows = _mirrored(rows)
    if "x" in config.flip_patterns:
        columns = _mirrored(columns)
    if config.transpose_patterns:
        rows, columns = columns, rows
    return Frame(rows, columns, config.transpose_patterns)


def _mirrored(index: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the index in reverse about n // 2, which stays; the far side of an even length comes from 0."""
    n = len(index)
    return index[(2 * (n // 2) - np.arange(n)) % n]


def shifted(frame: Frame, center: tuple[float, float]) -> Frame:
    """Return the frame moved by whole pixels, so that `center` comes to N/2; nothing is there at its edge."""
    moved = []
    for index, at in zip((frame.rows, frame.columns), center, strict=True):
        n = len(index)
        source = np.arange(n) + round(at) - n // 2
        inside = (source >= 0) & (source < n)
        moved.append(np.where(inside, index[source % n], -1))
    return replace(frame, rows=moved[0], columns=moved[1])


def resized(index: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """Return `size` entries about the center n // 2; -1 beyond the ends."""
    at = np.arange(size) + len(index) // 2 - size // 2
    inside = (at >= 0) & (at < len(index))
    return np.where(inside, index[at % len(index)], -1)
