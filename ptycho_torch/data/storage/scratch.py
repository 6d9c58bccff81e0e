"""Bring a stack that is compressed, transposed or in chunks into a form of which single rows can be read.

A small one stays in memory; a large one is written once to a scratch file, a slab at a time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.progress import counted
from ptycho_torch.data.storage.patterns import FilePatterns, ScratchFile

BLOCK_BYTES = 8 * 2**20


def read_exactly(stream: IO[bytes], nbytes: int) -> bytearray:
    """Read block by block, so that memory is taken only as data really arrive."""
    data = bytearray()
    while len(data) < nbytes:
        piece = stream.read(min(BLOCK_BYTES, nbytes - len(data)))
        if not piece:
            raise EOFError(f"{len(data)} of {nbytes} bytes are there")
        data += piece
    return data


def scan_first(array: NDArray[Any], axis: int, swap: bool) -> NDArray[Any]:
    """View with the scan axis first; `swap` undoes the reversed order of the other axes of Fortran order."""
    view = np.moveaxis(array, axis, 0)
    return _reversed_rest(view) if swap else view


def _reversed_rest(view: NDArray[Any]) -> NDArray[Any]:
    """Return a view with all axes but the first in reverse order."""
    return view.transpose(0, *range(view.ndim - 1, 0, -1))


def slabs_of_stream(
    stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (start, slab) along the first axis of a stream in C order."""
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, shape[0], step):
        count = min(step, shape[0] - start)
        data = read_exactly(stream, count * row_bytes)
        yield start, np.frombuffer(data, dtype=dtype).reshape(count, *shape[1:])


def unpack(
    slabs: Iterator[tuple[int, NDArray[Any]]],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    axis: int,
    swap: bool,
    source: Path,
) -> FilePatterns:
    """Write a stack once to a scratch file, scan axis first, holding one slab in memory at a time."""
    rest = tuple(n for i, n in enumerate(shape) if i != axis)
    target = (shape[axis], *(rest[::-1] if swap else rest))
    scratch = ScratchFile(math.prod(shape) * dtype.itemsize, source)
    os.truncate(scratch.path, math.prod(shape) * dtype.itemsize)
    for start, slab in counted(slabs, "unpacking", shape[0], unit="rows", size=lambda item: len(item[1])):
        # Opened anew for each slab: dirty pages of a long-lived map would count as resident memory.
        out = np.memmap(scratch.path, dtype=dtype, mode="r+", shape=target)
        place = np.moveaxis(_reversed_rest(out) if swap else out, 0, axis)
        place[start : start + len(slab)] = slab
        del place, out
    return FilePatterns(scratch.path, 0, target, dtype, keep=scratch)
