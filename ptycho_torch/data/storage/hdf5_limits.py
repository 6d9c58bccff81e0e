"""What an HDF5 file declares, compared with what it can hold, before anything is read or allocated.

libhdf5 believes the shapes, chunks and external parts that a header names: a damaged one makes it allocate
until memory runs out, a hostile one makes it read other files of the user.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ptycho_exec.errors import DataError

_UNCHECKED_BYTES = 64 * 2**20
"""Up to here a dataset may be larger than its storage: parts that were never written read as fill value."""

_BOUNDED_FILTERS = frozenset({h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32,
                              h5py.h5z.FILTER_LZF})  # fmt: skip
_BOUNDED_RATIO = 1032
"""Deflate codes at most 258 bytes in 2 bits; LZF less."""

_FILTERS = {307: "bzip2", 32001: "Blosc", 32004: "LZ4", 32008: "bitshuffle", 32013: "ZFP", 32015: "Zstandard",
            32017: "SZ", 32024: "SZ3", 32026: "Blosc2", 32028: "SPERR"}  # fmt: skip
"""Filters of plug-ins by their registered number; files often do not hold the name."""

_ANY_RATIO = 2**20
"""For filters that can code a constant chunk in a few bytes (Blosc, Zstandard, scale-offset)."""


def check_storage(dataset: h5py.Dataset, path: Path, *, whole: bool = True) -> None:
    """Refuse a dataset whose data are raw bytes of other files, or whose header cannot be true.

    Args:
        dataset: to be checked; of a virtual one, its sources are datasets to be checked on their own.
        path: the file that it is in.
        whole: whether all of its data are in this file.

    Raises:
        DataError: raw data in other files; anything but numbers; chunks of another rank; more data than the
            bytes in the file can unpack to; a filter that is not installed.
    """
    where = f"{path}, dataset {str(dataset.name)!r}, shape {dataset.shape}"
    raw = [name for name, _, _ in dataset.external or ()]
    if raw:
        raise DataError(
            f"the data are raw bytes of another file, {raw[0]!r}", where=where,
            expected="data inside an HDF5 file", fix="read the array with h5py and write it into one file",
        )  # fmt: skip
    _require_filters(dataset, where)
    shape, chunks = dataset.shape or (), dataset.chunks
    # libhdf5 writes damaged members of records over its own heap.
    ragged = dataset.dtype.hasobject and math.prod(shape) > 1
    plain = dataset.dtype.kind in "biufcSUO" or is_matlab_complex(dataset.dtype)
    if not plain or ragged or not _members_fit(dataset.id.get_type()):
        raise DataError(
            f"the values have dtype {dataset.dtype}{', of variable length' if ragged else ''}", where=where,
            expected="an array of numbers", fix="export the array with an ordinary numeric dtype",
        )  # fmt: skip
    problem = None
    if chunks is not None and len(chunks) != len(shape):
        problem = f"the chunks {chunks} have {len(chunks)} axes, the dataset {len(shape)}"
    declared = max(math.prod(shape), math.prod(chunks or (0,))) * dataset.dtype.itemsize
    if problem is None and declared > _UNCHECKED_BYTES and whole:
        size = path.stat().st_size
        # A virtual dataset has no bytes of its own; a damaged chunk index can name more bytes than there are.
        stored = size if dataset.is_virtual else min(size, dataset.id.get_storage_size())
        creation = dataset.id.get_create_plist()
        filters = {creation.get_filter(index)[0] for index in range(creation.get_nfilters())}
        ratio = _BOUNDED_RATIO if filters <= _BOUNDED_FILTERS else _ANY_RATIO
        packed = chunks is not None or dataset.is_virtual
        # Chunks that were never written count in the ratio, too.
        if declared > stored * (ratio if packed else 1):
            problem = f"the header declares {declared / 2**20:.0f} MiB; the file has {stored} bytes for them"
    if problem is not None:
        raise DataError(
            problem,
            where=where,
            expected="as many bytes as shape, dtype and compression need",
            fix="copy or export the file again; its header is damaged, or the data were never written",
        )


def is_matlab_complex(dtype: np.dtype[Any]) -> bool:
    """Return whether values are records of a real and an imaginary part, as MATLAB stores complex numbers."""
    parts = [dtype[name].kind for name in dtype.names or ()]
    return dtype.names == ("real", "imag") and parts == ["f", "f"]


def _require_filters(dataset: h5py.Dataset, where: str) -> None:
    """Refuse data behind a filter that HDF5 does not have, after looking for the package hdf5plugin."""
    creation = dataset.id.get_create_plist()
    needed = [creation.get_filter(index) for index in range(creation.get_nfilters())]
    if all(h5py.h5z.filter_avail(code) for code, *_ in needed):
        return
    try:
        import hdf5plugin  # noqa: F401  (importing it registers its filters)

        fix = "write the data without this filter, where it is installed: h5repack -f NONE OLD NEW"
    except ImportError:
        fix = "pip install hdf5plugin; it is used where it is installed"
    missing = [(code, name) for code, _, _, name in needed if not h5py.h5z.filter_avail(code)]
    if missing:
        code, name = missing[0]
        known = _FILTERS.get(code) or name.decode("utf-8", "replace").partition(";")[0] or "unknown"
        raise DataError(
            f"the data are compressed with the filter {known} ({code}), which is not installed here",
            where=where,
            expected="filters of HDF5 itself, or of the package hdf5plugin",
            fix=fix,
        )


def _members_fit(kind: h5py.h5t.TypeID) -> bool:
    """Return whether real and imaginary part lie inside the complex number that they make up."""
    if not isinstance(kind, h5py.h5t.TypeCompoundID):
        return True
    members = range(kind.get_nmembers())
    return bool(
        max(kind.get_member_offset(i) + kind.get_member_type(i).get_size() for i in members)
        <= kind.get_size()
    )
