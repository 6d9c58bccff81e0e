"""Open a file by its content, never by its extension; every way in which that can fail has its own words."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import h5py

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.archive import Archive
from ptycho_torch.data.storage.hdf5 import Hdf5Archive
from ptycho_torch.data.storage.npz import NpzArchive

_AS_NPZ = "write patterns, positions and probe into one file with numpy.savez"
_PICKLE = ("a Python pickle, which is never loaded (it can run code)", _AS_NPZ)


def _packed(program: str, command: str) -> tuple[str, str]:
    return f"a file that {program} compressed", f"unpack it first: {command} FILE"


_OTHER_KINDS = {
    b"\x93NUMPY": (
        "a single .npy array, not an archive",
        "put it beside its positions: numpy.savez('scan.npz', data=patterns, scan=positions), and read that "
        "with --map patterns=data --map positions=scan",
    ),
    **{bytes((0x80, protocol)): _PICKLE for protocol in range(2, 6)},
    b"MATLAB": (
        "a MATLAB file older than v7.3",
        "save it in MATLAB with save(..., '-v7.3') and name its arrays with --map, or read it with "
        "scipy.io.loadmat and write it with numpy.savez",
    ),
    b"\x1f\x8b": _packed("gzip", "gunzip --keep"),
    b"BZh": _packed("bzip2", "bunzip2 --keep"),
    b"\xfd7zXZ\0": _packed("xz", "unxz --keep"),
    b"\x28\xb5\x2f\xfd": _packed("zstd", "unzstd"),
    b"7z\xbc\xaf\x27\x1c": _packed("7-Zip", "7z x"),
    b"II*\0": ("a TIFF image", _AS_NPZ),
    b"MM\0*": ("a TIFF image", _AS_NPZ),
    b"###CBF": ("a single CBF frame", _AS_NPZ),
}
"""What other files begin with, what they are, and what to do."""

_UNREADABLE = {
    errno.EACCES: "your account may not read it: ls -l FILE says who may; its owner can chmod g+r or a+r it",
    errno.EPERM: "your account may not read it: ls -l FILE says who may; its owner can chmod g+r or a+r it",
    errno.ELOOP: "symbolic links on the way form a circle; name the file itself",
    errno.ENAMETOOLONG: "shorten the path",
    errno.ENOTDIR: "a part of the path is a file; check the path",
    errno.EMFILE: "too many files are open: ulimit -n 4096",
    errno.EIO: "the disk does not answer; copy the file to another one, or try again later",
    **dict.fromkeys(
        (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENODEV),
        "the network drive does not answer; mount it again, or copy the file to a local disk",
    ),
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
    unknown = (
        "neither an NPZ archive nor an HDF5 file",
        "check the path; an interrupted copy is often the reason",
    )
    kinds = (found for start, found in _OTHER_KINDS.items() if head.startswith(start))
    what, fix = next(kinds, unknown)
    raise DataError(
        f"this is {what}",
        where=str(path),
        expected="an NPZ archive, a Ptychodus product.h5 / diffraction.h5 pair, or a CXI file",
        fix=fix,
    )


def _read_head(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise DataError(
                "this is a directory without a scan",
                where=str(path),
                expected="a file, or a directory that holds product.h5 and diffraction.h5",
                fix="name the file itself",
            )
        if not stat.S_ISREG(mode):
            raise DataError("this is not a regular file", where=str(path), fix="name a file on disk")
        with path.open("rb") as handle:
            head = handle.read(16)
    except FileNotFoundError as error:
        raise _not_there(path) from error
    except OSError as error:
        raise DataError(
            f"cannot open the file: {error.strerror}",
            where=str(path),
            fix=_UNREADABLE.get(error.errno or 0, "check the path, its permissions (ls -l) and the disk"),
        ) from error
    if not head:
        raise DataError("the file is empty (0 bytes)", where=str(path), fix="copy or export it again")
    return head


def _not_there(path: Path) -> DataError:
    """Return the error for a path at which nothing is, with the part of it that is there."""
    if path.is_symlink():
        target = os.readlink(path)
        fix = "correct the link, or name the file itself"
        return DataError(f"this is a link to {target}, and nothing is there", where=str(path), fix=fix)
    there = next((parent for parent in path.absolute().parents if parent.is_dir()), None)
    fix = "check the path" if there == path.absolute().parent else f"check the path; it exists up to {there}"
    return DataError("there is no such file", where=str(path), fix=fix)
