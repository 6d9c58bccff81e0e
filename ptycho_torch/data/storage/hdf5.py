"""HDF5 files: datasets in groups, often in compressed chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.archive import MOST_LISTED, Member, damage_as_data_error, refuse_large
from ptycho_torch.data.storage.hdf5_limits import check_storage, elsewhere, is_matlab_complex
from ptycho_torch.data.storage.patterns import FilePatterns, Patterns, fits_in_memory
from ptycho_torch.data.storage.scratch import BLOCK_BYTES, scan_first, unpack


def _plain_complex(array: NDArray[Any]) -> NDArray[Any]:
    """Return complex numbers of records with the fields real and imag, as MATLAB writes them."""
    return array["real"] + 1j * array["imag"] if is_matlab_complex(array.dtype) else array


class Hdf5Archive:
    """Datasets of an HDF5 file; an uncompressed contiguous stack is read where it lies."""

    def __init__(self, path: Path, *, allow_links: bool = False) -> None:
        self.path, self._allow_links = path, allow_links
        with self._guard():
            self._file = h5py.File(path, "r")

    def _guard(self, name: str = "") -> Any:
        where = f"{self.path}, dataset {name!r}" if name else str(self.path)
        return damage_as_data_error(
            where,
            "a complete HDF5 file",
            "copy or export the file again",
        )

    def __contains__(self, name: str) -> bool:
        with self._guard(name):
            return self._lookup(name) is not None

    def _lookup(self, name: str) -> h5py.Dataset | None:
        link = self._link_on_the_way(name)
        # A hostile file must not include another file that the user can read.
        if link is not None and not self._allow_links:
            raise elsewhere(link.filename, f"{self.path}, dataset {name!r}")
        dataset = self._file.get(name)
        if link is not None and dataset is None:
            raise DataError(
                f"the data are in another file, {link.filename!r}, and are not there",
                where=f"{self.path}, dataset {name!r}",
                expected=f"{link.path} in that file, which is looked for beside this one",
                fix="copy that file, too, or write all into one file",
            )
        return dataset if isinstance(dataset, h5py.Dataset) else None

    def _link_on_the_way(self, name: str) -> h5py.ExternalLink | None:
        """Return the first link to another file on the way to a dataset."""
        parts = name.strip("/").split("/")
        links = (self._file.get("/".join(parts[:end]), getlink=True) for end in range(1, len(parts) + 1))
        return next((link for link in links if isinstance(link, h5py.ExternalLink)), None)

    def names(self) -> list[str]:
        """Return the names at the root, sorted."""
        with self._guard():
            return sorted(self._file)

    def members(self, below: str = "") -> list[Member]:
        """Return all datasets, or those below a group, in order of their names.

        Links within the file lead to what is listed anyway; those to other files are followed where allowed.
        """
        found: list[Member] = []
        with self._guard(below):
            start = self._file.get(below) if below else self._file
            if isinstance(start, h5py.Group):
                self._collect(start, below, found)
        return found

    def _collect(self, group: h5py.Group, path: str, found: list[Member]) -> None:
        for key in sorted(group):
            name, link = f"{path}/{key}".lstrip("/"), group.get(key, getlink=True)
            outside = isinstance(link, h5py.ExternalLink)
            if (
                len(found) >= MOST_LISTED
                or isinstance(link, h5py.SoftLink)
                or (outside and not self._allow_links)
            ):
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
        dataset = self._lookup(name)
        if dataset is None:
            raise KeyError(f"no dataset {name!r}")
        check_storage(dataset, Path(dataset.file.filename), allow_links=self._allow_links)
        return dataset

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
            if offset is not None and scan_axis == 0 and dataset.chunks is None:
                return FilePatterns(Path(dataset.file.filename), int(offset), member.shape, member.dtype)
            row_bytes, chunk = member.nbytes // member.shape[0], dataset.chunks[0] if dataset.chunks else 1
            step = max(1, BLOCK_BYTES // max(1, row_bytes) // chunk) * chunk  # whole chunks
            starts = range(0, member.shape[0], step)
            slabs = ((start, np.asarray(dataset[start : start + step])) for start in starts)
            return unpack(slabs, member.shape, member.dtype, scan_axis, False, self.path)

    def attribute(self, name: str, key: str) -> Any:
        """Return an attribute of a dataset ("" is the root), or none when there is none."""
        with self._guard(name):
            owner = self._file if not name else self._file.get(name)
            if owner is None or key not in owner.attrs:
                return None
            value = owner.attrs[key]
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def close(self) -> None:
        """Release the file.

        Raises:
            DataError: libhdf5 cannot release a damaged file.
        """
        with self._guard():
            self._file.close()
