"""A single array in a file of its own: a mask, a dark frame, positions, a probe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.archive import Archive, damage_as_data_error, list_names
from ptycho_torch.data.storage.open_file import open_archive

_TEXT = (".txt", ".csv", ".dat", ".tsv")


def file_of(text: str, beside: Path | None = None) -> tuple[Path, str] | None:
    """Return the existing file that FILE or FILE:NAME means, and NAME; None if there is no such file.

    Args:
        text: a path, from the working directory or from the folder of the scan.
        beside: the file of the scan.
    """
    head, colon, name = text.rpartition(":")
    for path, inner in [(text, ""), (head, name)] if colon else [(text, "")]:
        for folder in [Path(), *([beside.parent] if beside else [])]:
            if path and os.path.isfile(folder / path):
                return folder / path, inner
    return None


def is_matlab(archive: Archive, name: str) -> bool:
    """Return whether MATLAB wrote an array: v7.3 files have the axes of its arrays in reverse."""
    return archive.attribute(name, "MATLAB_class") is not None


def image(archive: Archive, name: str) -> NDArray[Any]:
    """Return an array (..., rows, columns) of a file; layers on MATLAB's last axis come first."""
    array = archive.array(name)
    return array.swapaxes(-1, -2) if array.ndim > 1 and is_matlab(archive, name) else array


def read_array(
    text: str, what: str, *, names: Sequence[str] = (), beside: Path | None = None
) -> NDArray[Any]:
    """Return the array of FILE, or NAME of FILE:NAME: from NPY, NPZ, HDF5 or a text file with columns.

    Args:
        text: FILE or FILE:NAME.
        what: the array is for, for a message.
        names: usual names; the first that the file has is taken where it holds several arrays.
        beside: the file of the scan, in whose folder the file may lie.

    Raises:
        DataError: no such file or array, several of which none is named, or a damaged file.
    """
    found = file_of(text, beside)
    if found is None:
        raise DataError(
            f"there is no file for {what}",
            where=text,
            expected="FILE, or FILE:NAME for one of its arrays: NPY, NPZ, HDF5 or text",
            fix="correct the path; it is looked for in the working directory and beside the scan",
        )
    path, name = found
    with path.open("rb") as stream:
        head = stream.read(6)
    with damage_as_data_error(str(path), "an array of numbers", f"write {what} again, with numpy.save"):
        if head.startswith(b"\x93NUMPY"):
            return np.asarray(np.load(path, allow_pickle=False))
        if path.suffix.lower() in _TEXT:
            first = path.read_text(encoding="utf-8").lstrip().splitlines()[0]
            return np.loadtxt(path, delimiter="," if "," in first else None, ndmin=2)
    archive = open_archive(path)
    try:
        every = [member.name for member in archive.members()]
        chosen = name or next((usual for usual in names if usual in archive), "")
        if not chosen and len(every) == 1:
            chosen = every[0]
        if not chosen or chosen not in archive:
            raise DataError(
                f"there is no array {chosen!r}" if chosen else f"it is not said which array is {what}",
                where=str(path),
                expected=f"FILE:NAME with one of {', '.join(every[:12]) or list_names(archive)}",
                fix=f"name it, as {path}:{every[0] if every else 'NAME'}",
            )
        return image(archive, chosen)
    finally:
        archive.close()
