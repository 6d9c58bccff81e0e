"""HDF5 files: datasets in groups, often in compressed chunks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.storage.archive import MOST_LISTED, Member, damage_as_data_error, refuse_large
from ptycho_torch.data.storage.hdf5_files import Hdf5Files
from ptycho_torch.data.storage.hdf5_limits import is_matlab_complex
from ptycho_torch.data.storage.patterns import FilePatterns, Patterns, fits_in_memory
from ptycho_torch.data.storage.scratch import BLOCK_BYTES, scan_first, unpack


def _plain_complex(array: NDArray[Any]) -> NDArray[Any]:
    """Return complex numbers of records with the fields real and imag, as MATLAB writes them."""
    return array["real"] + 1j * array["imag"] if is_matlab_complex(array.dtype) else array


class Hdf5Archive:
    """Datasets of an HDF5 file; an uncompressed contiguous stack is read where it lies."""

    def __init__(self, path: Path, *, allow_links: bool = False) -> None:
        self.path, self._allow_links = path, allow_links
        self.linked: dict[str, Path] = {}
        with self._guard():
            self._files = Hdf5Files(path, allow_links=allow_links)

    def _guard(self, name: str = "") -> Any:
        where = f"{self.path}, dataset {name!r}" if name else str(self.path)
        return damage_as_data_error(
            where,
            "a complete HDF5 file",
            "copy or export the file again",
        )

    def __contains__(self, name: str) -> bool:
        with self._guard(name):
            found = self._files.find(name)
            return found is not None and isinstance(found.item, h5py.Dataset)

    def names(self) -> list[str]:
        """Return the names at the root, sorted."""
        with self._guard():
            return sorted(self._files.first.file)

    def members(self, below: str = "") -> list[Member]:
        """Return all datasets, or those below a group, in order of their names.

        Links within the file lead to what is listed anyway; those to other files are followed where allowed.
        """
        found: list[Member] = []
        with self._guard(below):
            start = self._files.find(below)
            if start is not None and isinstance(start.item, h5py.Group):
                self._collect(start.item, below, found)
        return found

    def _collect(self, group: h5py.Group, path: str, found: list[Member]) -> None:
        for key in sorted(group):
            name, kind = f"{path}/{key}".lstrip("/"), group.id.links.get_info(os.fsencode(key)).type
            outside = kind == h5py.h5l.TYPE_EXTERNAL
            followed = kind == h5py.h5l.TYPE_HARD or (outside and self._allow_links)
            if len(found) >= MOST_LISTED or not followed:
                continue
            item = group.get(key)
            if isinstance(item, h5py.Dataset) and item.shape is not None:
                found.append(Member(name, tuple(item.shape), item.dtype))
            elif isinstance(item, h5py.Group) and not outside:
                self._collect(item, name, found)

    def member(self, name: str) -> Member:
        """Return shape and dtype of a dataset."""
        with self._guard(name):
            return self._describe(self._dataset(name))

    def _dataset(self, name: str) -> h5py.Dataset:
        found = self._files.find(name)
        if found is None or not isinstance(found.item, h5py.Dataset):
            raise KeyError(f"no dataset {name!r}")
        self.linked |= self._files.check(found)
        return found.item

    def _describe(self, dataset: h5py.Dataset) -> Member:
        if dataset.shape is None:
            raise ValueError("the dataset is empty")
        return Member(str(dataset.name), tuple(dataset.shape), dataset.dtype)

    def array(self, name: str) -> NDArray[Any]:
        """Return a small dataset in full."""
        with self._guard(name):
            dataset = self._dataset(name)
            refuse_large(self._describe(dataset), self.path)
            return _plain_complex(np.asarray(dataset[()]))

    def stack(self, name: str, scan_axis: int) -> Patterns:
        """Return a 3-D dataset with its scan axis first; chunked data are unpacked once, block by block."""
        with self._guard(name):
            dataset = self._dataset(name)
            member = self._describe(dataset)
            if fits_in_memory(member.nbytes):
                return scan_first(np.asarray(dataset[()]), scan_axis, swap=False)
            offset = dataset.id.get_offset()
            as_it_is = dataset.id.get_type() == h5py.h5t.py_create(member.dtype)  # else libhdf5 converts it
            if offset is not None and scan_axis == 0 and dataset.chunks is None and as_it_is:
                return FilePatterns(Path(dataset.file.filename), int(offset), member.shape, member.dtype)
            row_bytes, chunk = member.nbytes // member.shape[0], dataset.chunks[0] if dataset.chunks else 1
            step = max(1, BLOCK_BYTES // max(1, row_bytes) // chunk) * chunk  # whole chunks
            starts = range(0, member.shape[0], step)
            slabs = ((start, np.asarray(dataset[start : start + step])) for start in starts)
            return unpack(slabs, member.shape, member.dtype, scan_axis, False, self.path)

    def attribute(self, name: str, key: str) -> Any:
        """Return an attribute of a dataset ("" is the root), or none when there is none."""
        with self._guard(name):
            owner = self._files.find(name)
            if owner is None or key not in owner.item.attrs:
                return None
            value = owner.item.attrs[key]
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def close(self) -> None:
        """Release the file.

        Raises:
            DataError: libhdf5 cannot release a damaged file.
        """
        with self._guard():
            self._files.close()
