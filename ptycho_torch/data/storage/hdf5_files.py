"""An HDF5 file and the others that it leads to, by external links and by the sources of virtual datasets.

libhdf5 opens any file that a link names, takes parts of a virtual dataset that are not there as zeros, and
ends the process at one that is made of itself. So every link on the way to the data is looked at before
libhdf5 follows it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.hdf5_limits import check_storage

_MOST_LINKS = 16
"""So many links on the way to an object are followed; libhdf5 has the same limit."""

_REASONS = (
    (
        "unable to lock file",
        "another program has the file open for writing",
        "wait until it has closed the file; or copy the file and read the copy",
    ),
    (
        "file is already open for write",
        "a program writes the file, or was killed while it did",
        "wait until it has closed the file; if it was killed, h5clear --status FILE removes its mark",
    ),
    (
        "truncated file",
        "the file is truncated",
        "copy or export the file again; its end is missing",
    ),
    (
        "Too many open files",
        "too many files are open",
        "ulimit -n 4096",
    ),
)
"""Words of libhdf5, what they mean, and what to do."""


class OpenFile(NamedTuple):
    """An open file; `name` is what those on the way to it call it, "" for the first."""

    file: h5py.File
    path: Path
    name: str


class Found(NamedTuple):
    """A group or a dataset, and the files on the way to it; it is in the last of them."""

    item: Any
    way: tuple[OpenFile, ...]


class Hdf5Files:
    """An HDF5 file, and those that it leads to as far as they were needed, each opened once.

    Args:
        path: of the first file.
        allow_links: whether data in other files are read.

    Raises:
        DataError: libhdf5 cannot open the file.
    """

    def __init__(self, path: Path, *, allow_links: bool) -> None:
        self._allow_links = allow_links
        self.first = OpenFile(_opened(path), path, "")
        self._every = {path.resolve(): self.first}

    def find(self, name: str, start: OpenFile | None = None) -> Found | None:
        """Return what has a name in the first file, or in another; None where there is nothing.

        Raises:
            DataError: it is in another file, and that is not allowed, or it is not there.
        """
        way = [start or self.first]
        where = f"{way[0].path}, dataset {name!r}"
        item: Any = way[0].file
        target, links = os.fsencode(name), 0
        keys = _keys(target)
        while keys:
            key = keys.pop(0)
            if not isinstance(item, h5py.Group) or not item.id.links.exists(key) or links > _MOST_LINKS:
                if len(way) > 1:
                    raise _not_there(way[-1].name, where, os.fsdecode(target))
                return None
            kind = item.id.links.get_info(key).type
            if kind == h5py.h5l.TYPE_HARD:
                item = item[key]
                continue
            target, links = item.id.links.get_val(key), links + 1
            if kind == h5py.h5l.TYPE_EXTERNAL:
                named, target = target
                file = self._open(os.fsdecode(named), way[-1], "HDF5_EXT_PREFIX", where)
                if file is None:
                    raise _not_there(os.fsdecode(named), where)
                way.append(file)
            if kind == h5py.h5l.TYPE_EXTERNAL or target.startswith(b"/"):
                item = way[-1].file
            keys = _keys(target) + keys
        return Found(item, tuple(way))

    def check(self, found: Found) -> dict[str, Path]:
        """Check a dataset and all that it is made of; return the other files with its data, by their names.

        Raises:
            DataError: as `check_storage`; parts in other files that are not allowed, or parts not there.
        """
        files = self._check(found, {})
        return {file.name: file.path for file in files if file is not self.first}

    def close(self) -> None:
        """Release all files."""
        for file in self._every.values():
            file.file.close()

    def _check(self, found: Found, known: dict[h5py.Dataset, list[OpenFile]]) -> list[OpenFile]:
        """Return the files with the data of a dataset; `known` has those of the datasets seen before."""
        dataset, file = found.item, found.way[-1]
        if dataset not in known:
            known[dataset] = []  # until its sources are checked
            others = [
                other
                for source in (self._sources(dataset, file) if dataset.is_virtual else ())
                for other in self._check(source, known)
            ]
            check_storage(dataset, file.path, whole=all(other is file for other in others))
            known[dataset] = [file, *dict.fromkeys(others)]
        if not known[dataset]:
            raise DataError(
                "the virtual dataset is made of itself",
                where=f"{file.path}, dataset {dataset.name!r}",
                expected="a virtual dataset of other datasets",
                fix="write the array into an ordinary dataset",
            )
        return [*found.way, *known[dataset]]

    def _sources(self, dataset: h5py.Dataset, file: OpenFile) -> Iterator[Found]:
        """Yield the datasets that a virtual dataset is made of, all of those that are numbered with %b."""
        where = f"{file.path}, dataset {dataset.name!r}"
        for names in dict.fromkeys((part.file_name, part.dset_name) for part in dataset.virtual_sources()):
            for number in count():
                named, name = (_numbered(text, number) for text in names)
                source = file if named == "." else self._open(named, file, "HDF5_VDS_PREFIX", where)
                found = self.find(name, source) if source else None
                if found is None or not isinstance(found.item, h5py.Dataset):
                    if number == 0:
                        raise _not_there(named, where, name if source else None)
                    break
                yield found
                if all(_numbered(text, 0) == _numbered(text, 1) for text in names):
                    break

    def _open(self, named: str, by: OpenFile, variable: str, where: str) -> OpenFile | None:
        """Return the file that another one names; None where it is not there."""
        path = _place(named, by.path, variable)
        known = None if path is None else self._every.get(path.resolve())
        if known is self.first:  # a file may call itself by its name
            return known
        # A hostile file must not include another file that the user can read.
        if not self._allow_links:
            raise _elsewhere(named, where)
        if path is None or known is not None:
            return known
        known = OpenFile(_opened(path), path, f"{by.name}:{named}" if by.name else named)
        return self._every.setdefault(path.resolve(), known)


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        words = str(error)
        what, fix = next(
            (row[1:] for row in _REASONS if row[0] in words),
            (f"cannot read: {words.splitlines()[0][:160]}", "copy or export the file again"),
        )
        raise DataError(
            what, where=str(path), expected="a complete HDF5 file that nobody writes", fix=fix
        ) from error


def _place(named: str, by: Path, variable: str) -> Path | None:
    """Return where libhdf5 finds a file that another one names: it looks in these places, in this order."""
    prefixes = os.environ.get(variable, "").replace("${ORIGIN}", str(by.parent)).split(os.pathsep)
    folders = [*map(Path, filter(None, prefixes)), by.parent, Path(), by.resolve().parent]
    whole = [Path(named)] if os.path.isabs(named) else []
    relative = Path(named).name if whole else named
    places = (*whole, *(folder / relative for folder in folders))
    return next((Path(os.path.abspath(place)) for place in places if os.path.isfile(place)), None)


def _keys(name: bytes) -> list[bytes]:
    return [key for key in name.split(b"/") if key not in (b"", b".")]


def _numbered(name: str, number: int) -> str:
    """Return the name of a source of a virtual dataset: %b is a number that counts up, %% is %."""
    return re.sub("%[b%]", lambda match: str(number) if match[0] == "%b" else "%", name)


def _elsewhere(file: str, where: str) -> DataError:
    return DataError(
        f"the data lie in another file, {file!r}",
        where=where,
        expected="data inside the file itself",
        fix="set allow_links = true (--allow-links true) if you trust the file, or read the array with h5py "
        "and write it into one file",
    )


def _not_there(file: str, where: str, name: str | None = None) -> DataError:
    """Return the error for a file with data that is not there, or for one that has no such dataset."""
    if name is None:
        return DataError(
            f"the data lie in another file, {file!r}, and it is not there",
            where=where,
            expected="that file beside this one",
            fix="copy that file, too, or write all into one file",
        )
    place = "this file" if file == "." else f"another file, {file!r}"
    return DataError(
        f"the data lie in {place}, and it has no dataset {name!r}",
        where=where,
        expected="all datasets that the data are made of",
        fix="copy or export that file again; its program did not write all of it",
    )
