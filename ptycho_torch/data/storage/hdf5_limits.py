"""What an HDF5 file declares, compared with what it can hold, before anything is read or allocated.

libhdf5 believes the shapes, chunks and external parts that a header names: a damaged one makes it allocate
until memory runs out, a hostile one makes it read other files of the user.
"""

from __future__ import annotations

import math
from pathlib import Path

import h5py

from ptycho_exec.errors import DataError

_UNCHECKED_BYTES = 64 * 2**20
"""Up to here a dataset may be larger than its storage: parts that were never written read as fill value."""

_BOUNDED_FILTERS = frozenset({h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32,
                              h5py.h5z.FILTER_LZF})  # fmt: skip
_BOUNDED_RATIO = 1032
"""Deflate codes at most 258 bytes in 2 bits; LZF less."""

_ANY_RATIO = 2**20
"""For filters that can code a constant chunk in a few bytes (Blosc, Zstandard, scale-offset)."""


def check_storage(dataset: h5py.Dataset, path: Path) -> None:
    """Refuse a dataset whose data lie in other files, or whose header cannot be true.

    Raises:
        DataError: external or virtual parts in other files; anything but numbers; chunks of another rank;
            more data than the bytes in the file can unpack to.
    """
    where = f"{path}, dataset {str(dataset.name)!r}, shape {dataset.shape}"
    others = [name for name, _, _ in dataset.external or ()]
    if dataset.is_virtual:
        others += [source.file_name for source in dataset.virtual_sources() if source.file_name != "."]
    if others:
        raise DataError(
            f"the data lie in another file, {others[0]!r}",
            where=where,
            expected="data inside the file itself",
            fix="read the arrays with h5py and write them to one file",
        )
    shape, chunks = dataset.shape or (), dataset.chunks
    # libhdf5 writes damaged members of records over its own heap.
    ragged = dataset.dtype.hasobject and math.prod(shape) > 1
    if dataset.dtype.kind not in "biufcSUO" or ragged or not _members_fit(dataset.id.get_type()):
        raise DataError(
            f"the values have dtype {dataset.dtype}{', of variable length' if ragged else ''}", where=where,
            expected="an array of numbers", fix="export the array with an ordinary numeric dtype",
        )  # fmt: skip
    problem = None
    if chunks is not None and len(chunks) != len(shape):
        problem = f"the chunks {chunks} have {len(chunks)} axes, the dataset {len(shape)}"
    declared = max(math.prod(shape), math.prod(chunks or (0,))) * dataset.dtype.itemsize
    if problem is None and declared > _UNCHECKED_BYTES:
        size = path.stat().st_size
        # A virtual dataset has no bytes of its own; a damaged chunk index can name more bytes than there are.
        stored = size if dataset.is_virtual else min(size, dataset.id.get_storage_size())
        creation = dataset.id.get_create_plist()
        filters = {creation.get_filter(index)[0] for index in range(creation.get_nfilters())}
        ratio = _BOUNDED_RATIO if filters <= _BOUNDED_FILTERS else _ANY_RATIO
        whole = chunks is None and not dataset.is_virtual
        # Chunks that were never written count in the ratio, too.
        if declared > stored * (1 if whole else ratio):
            problem = f"the header declares {declared / 2**20:.0f} MiB; the file has {stored} bytes for them"
    if problem is not None:
        raise DataError(
            problem,
            where=where,
            expected="as many bytes as shape, dtype and compression need",
            fix="copy or export the file again; its header is damaged, or the data were never written",
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
