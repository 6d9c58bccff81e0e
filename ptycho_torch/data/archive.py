"""Named arrays in a file, read safely: NPZ and HDF5 behind one small interface.

Nothing is allocated before the declared shape has been compared with what the file can hold, nothing is
unpickled unless asked for, and every failure is one `DataError`.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.data.patterns import MEMORY_BUDGET_BYTES, MappedPatterns, Patterns, ScratchFile

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_SMALL_LIMIT_BYTES = 4 * 2**30
_HEADER_LIMIT_BYTES = 10_000
_BLOCK_BYTES = 8 * 2**20

_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    RuntimeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


@contextmanager
def damage_as_data_error(where: str, expected: str, fix: str) -> Iterator[None]:
    """Turn what the file libraries raise on damaged input into one `DataError`."""
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot read: {reason}", where=where, expected=expected, fix=fix) from error


@dataclass(frozen=True, slots=True)
class Member:
    """Shape and dtype of an array in an archive, known before its data are read."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the uncompressed data."""
        return math.prod(self.shape) * self.dtype.itemsize


class Archive(Protocol):
    """What the readers of the file dialects need from a file."""

    path: Path

    def __contains__(self, name: str) -> bool: ...

    def names(self) -> list[str]:
        """Return the names at the top of the archive, sorted."""

    def member(self, name: str) -> Member:
        """Return shape and dtype of an array."""

    def array(self, name: str) -> NDArray[Any]:
        """Return a small array (positions, probe, object, mask) in full."""

    def stack(self, name: str, scan_axis: int) -> Patterns:
        """Return a 3-D array with its scan axis first, in memory up to the budget, else by the row."""

    def attribute(self, name: str, key: str) -> Any:
        """Return an attribute of an array ("" is the root), or none when there is none."""

    def close(self) -> None:
        """Release the file."""


def open_archive(path: Path, *, allow_pickle: bool = False) -> NpzArchive | Hdf5Archive:
    """Open a file by its content: NPZ or HDF5.

    Raises:
        DataError: missing, unreadable, empty or truncated file, or a file of another kind.
    """
    head = _read_head(path)
    if head.startswith(b"PK"):
        return NpzArchive(path, allow_pickle=allow_pickle)
    if h5py.is_hdf5(str(path)):
        return Hdf5Archive(path)
    raise DataError(
        _name_content(head),
        where=str(path),
        expected="an NPZ archive, a Ptychodus product.h5 / diffraction.h5 pair, or a CXI file",
        fix="check the path; an interrupted copy is often the reason",
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


def _name_content(head: bytes) -> str:
    if head.startswith(b"\x93NUMPY"):
        return "this is a single .npy array, not an archive"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "this is a Python pickle, which is never loaded (it can run code)"
    if head.startswith(b"MATLAB"):
        return "this is a MATLAB file"
    if head.startswith(b"\x1f\x8b"):
        return "this is a gzip file"
    return "this is neither an NPZ archive nor an HDF5 file"


class NpzArchive:
    """Arrays of an .npz file; an uncompressed stack is mapped where it lies."""

    def __init__(self, path: Path, *, allow_pickle: bool = False) -> None:
        self.path, self._allow_pickle = path, allow_pickle
        with self._guard():
            self._zip = zipfile.ZipFile(path)
            self._infos = {
                info.filename.removesuffix(".npy"): info
                for info in self._zip.infolist()
                if info.filename.endswith(".npy")
            }

    def _guard(self, name: str = "") -> Any:
        where = f"{self.path}, key {name!r}" if name else str(self.path)
        return damage_as_data_error(
            where,
            "a complete NPZ archive as numpy.savez writes it",
            "copy or export the file again; it is truncated or damaged",
        )

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def names(self) -> list[str]:
        """Return the keys of the archive, sorted."""
        return sorted(self._infos)

    def member(self, name: str) -> Member:
        """Return shape and dtype of a key, checked against the size of its member."""
        with self._guard(name), self._zip.open(self._infos[name]) as stream:
            return self._header(name, stream)[0]

    def _header(self, name: str, stream: IO[bytes]) -> tuple[Member, bool, int]:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"npy format version {version} is unknown")
        shape, fortran, dtype = read(stream, max_header_size=_HEADER_LIMIT_BYTES)
        member = Member(name, tuple(int(n) for n in shape), dtype)
        offset = stream.tell()
        stored = self._infos[name].file_size - offset
        if not dtype.hasobject and (min(member.shape, default=0) < 0 or member.nbytes != stored):
            raise DataError(
                f"the header declares {member.shape} {dtype}, {member.nbytes} bytes; {stored} are there",
                where=f"{self.path}, key {name!r}",
                expected="as many bytes as shape and dtype say",
                fix="export the file again; it is truncated, or its header was altered",
            )
        return member, fortran, offset

    def array(self, name: str) -> NDArray[Any]:
        """Return a small array in full.

        Raises:
            DataError: an object array (pickle) that was not asked for, or more than 4 GiB.
        """
        with self._guard(name), self._zip.open(self._infos[name]) as stream:
            member, fortran, _ = self._header(name, stream)
            if member.dtype.hasobject:
                return self._pickled(name)
            _refuse_large(member, self.path)
            data = _read_exactly(stream, member.nbytes)
            flat = np.frombuffer(data, dtype=member.dtype)
            return flat.reshape(member.shape, order="F" if fortran else "C")

    def _pickled(self, name: str) -> NDArray[Any]:
        if not self._allow_pickle:
            raise DataError(
                "this key holds Python objects (a pickle), which can run code when it is read",
                where=f"{self.path}, key {name!r}",
                expected="a plain array of numbers",
                fix="save it as numbers, or set allow_pickle if you trust the file",
            )
        try:
            with self._zip.open(self._infos[name]) as stream:
                return np.lib.format.read_array(stream, allow_pickle=True)
        except Exception as error:
            raise DataError(
                f"the pickled key cannot be read: {error}", where=f"{self.path}, key {name!r}"
            ) from error

    def stack(self, name: str, scan_axis: int) -> Patterns:
        """Return a 3-D array with its scan axis first; an uncompressed one is mapped where it lies."""
        with self._guard(name), self._zip.open(self._infos[name]) as stream:
            member, fortran, offset = self._header(name, stream)
            shape = member.shape[::-1] if fortran else member.shape
            axis = len(shape) - 1 - scan_axis if fortran else scan_axis
            swap = fortran
            if member.nbytes <= MEMORY_BUDGET_BYTES:
                flat = np.frombuffer(_read_exactly(stream, member.nbytes), dtype=member.dtype)
                return _scan_first(flat.reshape(shape), axis, swap)
            info = self._infos[name]
            if info.compress_type == zipfile.ZIP_STORED and axis == 0 and not swap:
                return MappedPatterns(self.path, self._data_start(info) + offset, shape, member.dtype)
            return _unpack(_slabs(stream, shape, member.dtype), shape, member.dtype, axis, swap, self.path)

    def _data_start(self, info: zipfile.ZipInfo) -> int:
        """Return the byte at which a stored member begins: behind its local header, name and extra field."""
        with self.path.open("rb") as handle:
            handle.seek(info.header_offset)
            local = handle.read(30)
        if local[:4] != b"PK\x03\x04":
            raise ValueError("the archive's directory points to no member")
        name_length, extra_length = struct.unpack("<HH", local[26:30])
        return info.header_offset + 30 + int(name_length) + int(extra_length)

    def attribute(self, name: str, key: str) -> Any:
        """NPZ files hold attributes as keys of their own: `probe_pixel_width_m` for that of `probe`."""
        full = f"{name}_{key}" if name else key
        return self.array(full)[()] if full in self else None

    def close(self) -> None:
        """Release the file."""
        self._zip.close()


class Hdf5Archive:
    """Datasets of an HDF5 file; an uncompressed contiguous stack is mapped where it lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._guard():
            self._file = h5py.File(path, "r")

    def _guard(self, name: str = "") -> Any:
        where = f"{self.path}, dataset {name!r}" if name else str(self.path)
        return damage_as_data_error(
            where,
            "a complete HDF5 file with filters that h5py knows",
            "copy or export the file again; for a filter plug-in, install hdf5plugin",
        )

    def __contains__(self, name: str) -> bool:
        with self._guard(name):
            return self._lookup(name) is not None

    def _lookup(self, name: str) -> h5py.Dataset | None:
        self._refuse_links_outside(name)
        found = self._file.get(name)
        return found if isinstance(found, h5py.Dataset) else None

    def _refuse_links_outside(self, name: str) -> None:
        """A crafted file must not pull in another file that the user can read."""
        parts = name.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            link = self._file.get("/".join(parts[:depth]), getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise DataError(
                    f"the data are a link to another file, {link.filename!r}",
                    where=f"{self.path}, dataset {name!r}",
                    expected="data inside the file itself",
                    fix="export the scan to one file (h5repack keeps links; h5copy -p resolves them)",
                )

    def names(self) -> list[str]:
        """Return the names at the root, sorted."""
        with self._guard():
            return sorted(self._file)

    def member(self, name: str) -> Member:
        """Return shape and dtype of a dataset."""
        with self._guard(name):
            return self._describe(self._dataset(name))

    def _dataset(self, name: str) -> h5py.Dataset:
        dataset = self._lookup(name)
        if dataset is None:
            raise KeyError(f"no dataset {name!r}")
        return dataset

    def _describe(self, dataset: h5py.Dataset) -> Member:
        if dataset.shape is None:
            raise ValueError("the dataset is empty")
        return Member(str(dataset.name), tuple(dataset.shape), dataset.dtype)

    def array(self, name: str) -> NDArray[Any]:
        """Return a small dataset in full."""
        with self._guard(name):
            dataset = self._dataset(name)
            _refuse_large(self._describe(dataset), self.path)
            return np.asarray(dataset[()])

    def stack(self, name: str, scan_axis: int) -> Patterns:
        """Return a 3-D dataset with its scan axis first; chunked data are unpacked once, by the block."""
        with self._guard(name):
            dataset = self._dataset(name)
            member = self._describe(dataset)
            if member.nbytes <= MEMORY_BUDGET_BYTES:
                return _scan_first(np.asarray(dataset[()]), scan_axis, swap=False)
            offset = dataset.id.get_offset()
            if offset is not None and scan_axis == 0 and dataset.chunks is None:
                return MappedPatterns(self.path, int(offset), member.shape, member.dtype)
            slabs = _dataset_slabs(dataset)
            return _unpack(slabs, member.shape, member.dtype, scan_axis, False, self.path)

    def attribute(self, name: str, key: str) -> Any:
        """Return an attribute of a dataset ("" is the root), or none when there is none."""
        with self._guard(name):
            owner = self._file if not name else self._file.get(name)
            value = None if owner is None else owner.attrs.get(key)
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def _refuse_large(member: Member, path: Path) -> None:
    if member.nbytes > _SMALL_LIMIT_BYTES:
        raise DataError(
            f"the array has {member.nbytes / 2**30:.1f} GiB",
            where=f"{path}, {member.name!r}, shape {member.shape}",
            expected="positions, probe, object and mask of at most 4 GiB each",
            fix="check the file; such a size is usually a damaged header",
        )


def _read_exactly(stream: IO[bytes], nbytes: int) -> bytearray:
    """Read by the block, so that memory is taken only as data really arrive."""
    data = bytearray()
    while len(data) < nbytes:
        piece = stream.read(min(_BLOCK_BYTES, nbytes - len(data)))
        if not piece:
            raise EOFError(f"{len(data)} of {nbytes} bytes are there")
        data += piece
    return data


def _scan_first(array: NDArray[Any], axis: int, swap: bool) -> NDArray[Any]:
    """View with the scan axis first; `swap` undoes the exchange of rows and columns of Fortran order."""
    view = np.moveaxis(array, axis, 0)
    return view.swapaxes(1, 2) if swap else view


def _slabs(
    stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (start, slab) along the first axis of a stream in C order."""
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, shape[0], step):
        count = min(step, shape[0] - start)
        data = _read_exactly(stream, count * row_bytes)
        yield start, np.frombuffer(data, dtype=dtype).reshape(count, *shape[1:])


def _dataset_slabs(dataset: h5py.Dataset) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (start, slab) along the first axis, whole chunks at a time."""
    row_bytes = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    chunk = dataset.chunks[0] if dataset.chunks else 1
    step = max(1, _BLOCK_BYTES // max(1, row_bytes) // chunk) * chunk
    for start in range(0, dataset.shape[0], step):
        yield start, np.asarray(dataset[start : start + step])


def _unpack(
    slabs: Iterator[tuple[int, NDArray[Any]]],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    axis: int,
    swap: bool,
    source: Path,
) -> MappedPatterns:
    """Write a stack once to a scratch file, scan axis first, holding one slab in memory at a time."""
    rest = tuple(n for i, n in enumerate(shape) if i != axis)
    target = (shape[axis], *(rest[::-1] if swap else rest))
    scratch = ScratchFile(math.prod(shape) * dtype.itemsize, source)
    os.truncate(scratch.path, math.prod(shape) * dtype.itemsize)
    for start, slab in slabs:
        # Opened anew for each slab: dirty pages of a long-lived map would count as resident memory.
        out = np.memmap(scratch.path, dtype=dtype, mode="r+", shape=target)
        place = np.moveaxis(out.swapaxes(1, 2) if swap else out, 0, axis)
        place[start : start + len(slab)] = slab
        del place, out
    return MappedPatterns(scratch.path, 0, target, dtype, keep=scratch)
