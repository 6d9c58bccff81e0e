"""Open a file by its content, never by its extension."""

from __future__ import annotations

from pathlib import Path

import h5py

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.archive import Archive
from ptycho_torch.data.storage.hdf5 import Hdf5Archive
from ptycho_torch.data.storage.npz import NpzArchive

_PICKLE = "a Python pickle, which is never loaded (it can run code)"
_ARRAY, _OLD_MATLAB = "a single .npy array, not an archive", "a MATLAB file older than v7.3"
_OTHER_KINDS = {
    b"\x93NUMPY": _ARRAY,
    **{bytes((0x80, protocol)): _PICKLE for protocol in range(2, 6)},
    b"MATLAB": _OLD_MATLAB,
    b"\x1f\x8b": "a gzip file",
}
"""What other files begin with."""
_REMEDIES = {
    _ARRAY: "put it beside its positions: numpy.savez('scan.npz', data=patterns, scan=positions), and read "
    "that with --map patterns=data --map positions=scan",
    _OLD_MATLAB: "save it in MATLAB with save(..., '-v7.3'), and name its arrays with --map",
}


def open_archive(path: Path, *, allow_pickle: bool = False, allow_links: bool = False) -> Archive:
    """Open a file by its content: NPZ or HDF5; pickles and data in other files are read where allowed.

    Raises:
        DataError: missing, unreadable, empty or truncated file, or a file of another kind.
    """
    head = _read_head(path)
    if head.startswith(b"PK"):
        return NpzArchive(path, allow_pickle=allow_pickle)
    if h5py.is_hdf5(str(path)):
        return Hdf5Archive(path, allow_links=allow_links)
    kinds = (kind for start, kind in _OTHER_KINDS.items() if head.startswith(start))
    kind = next(kinds, "neither an NPZ archive nor an HDF5 file")
    raise DataError(
        f"this is {kind}",
        where=str(path),
        expected="an NPZ archive, a Ptychodus product.h5 / diffraction.h5 pair, or a CXI file",
        fix=_REMEDIES.get(kind, "check the path; an interrupted copy is often the reason"),
    )


def _read_head(path: Path) -> bytes:
    if not path.exists():
        raise DataError("there is no such file", where=str(path), fix="check the path")
    if path.is_dir():
        raise DataError(
            "this is a directory without a scan",
            where=str(path),
            expected="a file, or a directory that holds product.h5 and diffraction.h5",
            fix="name the file itself",
        )
    if not path.is_file():
        raise DataError("this is not a regular file", where=str(path), fix="name a file on disk")
    try:
        with path.open("rb") as handle:
            head = handle.read(16)
    except OSError as error:
        raise DataError(
            f"cannot open the file: {error.strerror}",
            where=str(path),
            fix="check its permissions (ls -l) and who you are",
        ) from error
    if not head:
        raise DataError("the file is empty (0 bytes)", where=str(path), fix="copy or export it again")
    return head
