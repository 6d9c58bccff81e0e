"""Stacks of diffraction patterns that need not fit in memory.

A stack is either a plain array (small scans) or `FilePatterns`, rows of a file that are read on demand.
Both answer `stack[rows]` with an ordinary array in the stored dtype, scan axis first.

Shape legend: M patterns, N x N pixels, B rows of a batch.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_exec.errors import DataError
from ptycho_exec.progress import counted

Domain = Literal["amplitude", "intensity"]

MEMORY_BUDGET_BYTES = 32 * 2**20
"""A stack up to this size is held in memory; of a larger one, each batch is read from its file."""

_BLOCK_BYTES = 2 * 2**20
_AT_ONCE_PIXELS = 64 * 64**2
_FREE_RESERVE_BYTES = 64 * 2**20


class FilePatterns:
    """Rows of an uncompressed stack inside a file, read on access.

    Rows are read rather than mapped: the resident memory of a process then holds the batch and nothing
    else, a damaged disk or a truncated file is an error and not the end of the process, and for patterns
    of a few kilobytes it is also faster. Neighboring rows are read together. Pickling carries the path,
    never the data; a worker opens the file again.

    Args:
        path: file that holds the stack.
        offset: byte at which pattern 0 begins.
        shape: (M, ...) of the stack in the file, C order.
        dtype: stored dtype.
        rows: the rows of the file that make up this stack; none means all in order.
        keep: object that lives as long as this stack (the owner of a temporary file).

    Raises:
        DataError: when the file was changed or truncated since it was first opened.
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        rows: NDArray[np.int64] | None = None,
        keep: object = None,
        identity: tuple[int, int] | None = None,
    ) -> None:
        self.path, self.offset, self.dtype = Path(path), offset, np.dtype(dtype)
        self._file_shape, self._rows, self._keep = shape, rows, keep
        self._row_bytes = math.prod(shape[1:]) * self.dtype.itemsize
        flags = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)  # the one here, the other on Windows
        self._descriptor = os.open(self.path, os.O_RDONLY | flags)
        weakref.finalize(self, os.close, self._descriptor)
        stat = os.fstat(self._descriptor)
        self._identity = (stat.st_size, stat.st_mtime_ns)
        changed = identity is not None and identity != self._identity
        if changed or self.offset + shape[0] * self._row_bytes > stat.st_size:
            raise self._changed()

    def _changed(self) -> DataError:
        return DataError(
            "the file was changed or truncated while it was in use",
            where=str(self.path),
            expected="a file that stays as it is from the start to the end of a run",
            fix="copy the file to a place where nothing writes to it, and start again",
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, ...) of the rows in use."""
        count = self._file_shape[0] if self._rows is None else len(self._rows)
        return (count, *self._file_shape[1:])

    @property
    def ndim(self) -> int:
        """Number of axes, the scan axis included."""
        return len(self._file_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in use, in the stored dtype."""
        return self.shape[0] * self._row_bytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | ArrayLike) -> NDArray[Any]:
        """Return the chosen rows as an array; a single integer gives one row without the scan axis."""
        chosen = np.arange(len(self))[key] if isinstance(key, slice) else np.asarray(key)
        rows = self._rows_in_file(chosen)
        out = np.empty((len(rows), *self._file_shape[1:]), dtype=self.dtype)
        self._read_into(out, rows)
        return out.reshape(*chosen.shape, *self._file_shape[1:])

    def _rows_in_file(self, chosen: NDArray[Any]) -> NDArray[np.int64]:
        """Return the flat rows of the file for rows of this stack; negative ones count from its end."""
        if chosen.dtype.kind not in "iu" and chosen.size:
            raise TypeError(f"rows are chosen by integers, not by {chosen.dtype}")
        flat = chosen.reshape(-1).astype(np.int64)
        flat = np.where(flat < 0, flat + len(self), flat)
        if flat.size and (flat.min() < 0 or flat.max() >= len(self)):
            raise IndexError(f"a row is outside 0 to {len(self) - 1}")
        return flat if self._rows is None else self._rows[flat]

    def _read_into(self, out: NDArray[Any], rows: NDArray[np.int64]) -> None:
        """Read runs of neighboring rows, one system call each."""
        buffer = memoryview(out.reshape(-1).view(np.uint8).data)
        ends = np.append(np.flatnonzero(np.diff(rows) != 1) + 1, len(rows)).tolist()
        begin = 0
        for end in ends:
            if end == begin:
                continue
            place = buffer[begin * self._row_bytes : end * self._row_bytes]
            at = self.offset + int(rows[begin]) * self._row_bytes
            while place.nbytes:
                count = _read_at(self._descriptor, place, at)
                if count == 0:
                    raise self._changed()
                place, at = place[count:], at + count
            begin = end

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def select(self, indices: ArrayLike) -> FilePatterns:
        """Return the stack of the given rows, still in the file."""
        rows = self._rows_in_file(np.asarray(indices))
        return FilePatterns(
            self.path, self.offset, self._file_shape, self.dtype, rows, self._keep, self._identity
        )

    def in_one_row(self) -> FilePatterns:
        """Return a stack with several scan axes, (ny, nx, ky, kx), as one with a single axis in front."""
        assert self._rows is None
        shape = (math.prod(self._file_shape[:-2]), *self._file_shape[-2:])
        return FilePatterns(self.path, self.offset, shape, self.dtype, None, self._keep, self._identity)

    def __reduce__(self) -> tuple[Any, ...]:
        args = (self.path, self.offset, self._file_shape, self.dtype, self._rows, None, self._identity)
        return (FilePatterns, args)


_seek_and_read = threading.Lock()


def _read_at(descriptor: int, place: memoryview, at: int) -> int:
    """Read bytes of a file from an offset into a buffer; return how many, 0 at its end."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [place], at)
    with _seek_and_read:  # Windows: its threads share the position, its processes have their own descriptors
        os.lseek(descriptor, at, os.SEEK_SET)
        data = os.read(descriptor, place.nbytes)
    place[: len(data)] = data
    return len(data)


class ComputedPatterns:
    """Rows that are computed from those of another stack whenever they are read; none of them is kept.

    Args:
        stored: (M, ...) stack that is read.
        compute: from (B, ...) stored rows to (B, *frame_shape); it can be pickled.
        frame_shape: of a computed pattern.
        dtype: of what is computed.
    """

    ndim = 3

    def __init__(
        self,
        stored: Patterns,
        compute: Callable[[NDArray[Any]], NDArray[Any]],
        frame_shape: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> None:
        self.stored, self.compute, self._frame_shape, self.dtype = stored, compute, frame_shape, dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, N, N)."""
        return (self.stored.shape[0], *self._frame_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, if they were kept."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.stored.shape[0]

    def __getitem__(self, key: slice | ArrayLike) -> NDArray[Any]:
        """Return the chosen rows as an array; a single integer gives one row without the scan axis."""
        chosen = np.arange(len(self))[key] if isinstance(key, slice) else np.asarray(key)
        flat = chosen.reshape(-1)
        out = np.empty((len(flat), *self._frame_shape), dtype=self.dtype)
        step = max(1, _BLOCK_BYTES // max(1, math.prod(self.stored.shape[1:]) * self.stored.dtype.itemsize))
        for start in range(0, len(flat), step):
            out[start : start + step] = self.compute(self.stored[flat[start : start + step]])
        return out.reshape(*chosen.shape, *self._frame_shape)

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def select(self, indices: ArrayLike) -> ComputedPatterns:
        """Return the stack of the given rows, computed as these are."""
        rows = select_rows(self.stored, indices)
        return ComputedPatterns(rows, self.compute, self._frame_shape, self.dtype)


Patterns = NDArray[Any] | FilePatterns | ComputedPatterns


def at_once(n: int, most: int = 64) -> int:
    """Return how many patterns of n x n pixels to work on at once, so that they fit the processor's cache.

    64 of 64 x 64 pixels, one of 512 x 512; of small ones not more than `most`.
    """
    return max(1, min(most, _AT_ONCE_PIXELS // n**2))


def fits_in_memory(nbytes: int) -> bool:
    """Return whether a stack is small enough to be held in memory."""
    return nbytes <= MEMORY_BUDGET_BYTES


def select_rows(patterns: Patterns, indices: ArrayLike) -> Patterns:
    """Return the given patterns as a stack of the same kind."""
    if isinstance(patterns, (FilePatterns, ComputedPatterns)):
        return patterns.select(indices)
    return patterns[np.asarray(indices, dtype=np.int64)]


def exchange_rows_and_columns(block: NDArray[Any]) -> NDArray[Any]:
    """Return (B, kx, ky) of (B, ky, kx)."""
    return block.swapaxes(-1, -2)


def transposed(patterns: Patterns) -> Patterns:
    """Return the stack with rows and columns of each pattern exchanged."""
    if isinstance(patterns, np.ndarray):
        return exchange_rows_and_columns(patterns)
    height, width = patterns.shape[1:]
    return ComputedPatterns(patterns, exchange_rows_and_columns, (width, height), patterns.dtype)


def in_one_row(patterns: Patterns) -> Patterns:
    """Return a stack with several scan axes as one with a single axis in front."""
    if isinstance(patterns, FilePatterns):
        return patterns.in_one_row()
    return np.asarray(patterns).reshape(-1, *patterns.shape[-2:])


def to_amplitude(raw: NDArray[Any], domain: Domain, bad_flat: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return (B, N, N) float32 amplitude, the square root of counts, with bad pixels set to 0.

    One rounding only, whatever the stored dtype: the square root of a value that float32 holds exactly
    is the same number whether it is taken in float32 or in float64, so counts stored as uint16, float32
    or float64 and amplitudes stored as float32 or float64 give bitwise equal tensors.
    """
    wide = raw.dtype.itemsize > 4 or (raw.dtype.kind in "iu" and raw.dtype.itemsize == 4)
    values = raw.astype(np.float64 if wide else np.float32, order="C")  # so that its pixels lie in a row
    if bad_flat.size:
        values.reshape(len(values), -1)[:, bad_flat] = 0
    if domain == "intensity":
        np.sqrt(values, out=values)
    return values.astype(np.float32, copy=False)


def blocks(
    patterns: Patterns, block_bytes: int = _BLOCK_BYTES, *, what: str = "reading"
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (first row, rows as an array) over the whole stack in pieces of about `block_bytes`.

    what: is done with them, for the user who watches.
    """
    frame_bytes = max(1, int(np.prod(patterns.shape[1:])) * patterns.dtype.itemsize)
    step = max(1, block_bytes // frame_bytes)
    starts = range(0, patterns.shape[0], step)
    for start in counted(starts, what, patterns.shape[0], unit="patterns", size=lambda _: step):
        yield start, patterns[start : start + step]


class ScratchFile:
    """A temporary file for one unpacked stack; removed with its last user or at exit."""

    def __init__(self, nbytes: int, source: Path) -> None:
        directory = Path(tempfile.gettempdir())
        free = shutil.disk_usage(directory).free
        if nbytes + _FREE_RESERVE_BYTES > free:
            raise DataError(
                f"the patterns unpack to {nbytes / 2**30:.2f} GiB and only {free / 2**30:.2f} GiB are free",
                where=f"{source}, unpacked to {directory}",
                expected="space for one uncompressed copy of the patterns",
                fix="set TMPDIR to a larger disk, or store the patterns uncompressed (np.savez)",
            )
        descriptor, name = tempfile.mkstemp(prefix="ptycho-", suffix=".patterns", dir=directory)
        os.close(descriptor)
        self.path = Path(name)
        self._finalizer = weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        with suppress(OSError):  # Windows keeps a file that is still open
            path.unlink(missing_ok=True)
