"""NPZ files: a zip archive of .npy members, each a header and the plain bytes of an array."""

from __future__ import annotations

import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.archive import MOST_LISTED, Member, damage_as_data_error, refuse_large
from ptycho_torch.data.storage.patterns import FilePatterns, Patterns, fits_in_memory
from ptycho_torch.data.storage.scratch import read_exactly, scan_first, slabs_of_stream, unpack

_HEADER_LIMIT_BYTES = 10_000


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return (shape, Fortran order, dtype) of an .npy stream, left at the first byte of the data.

    Raises:
        ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError: not such a header.
    """
    assert isinstance(stream, zipfile.ZipExtFile)
    start = stream.peek(12)
    major = start[6] if start[6:8] in (b"\x01\x00", b"\x02\x00", b"\x03\x00") else 0
    # numpy would read the whole header before it compares its length with the limit.
    if not major or (major > 1 and int.from_bytes(start[8:12], "little") > _HEADER_LIMIT_BYTES):
        raise ValueError(f"no .npy header of version 1.0, 2.0 or 3.0 and at most {_HEADER_LIMIT_BYTES} bytes")
    np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream, max_header_size=_HEADER_LIMIT_BYTES)
    if min(shape, default=0) < 0:
        raise ValueError("the shape in the header has negative sizes")
    return shape, fortran, dtype


class NpzArchive:
    """Arrays of an .npz file; an uncompressed stack is read where it lies."""

    def __init__(self, path: Path, *, allow_pickle: bool = False) -> None:
        self.path, self._allow_pickle = path, allow_pickle
        self.linked: dict[str, Path] = {}
        with self._guard():
            self._zip = zipfile.ZipFile(path)
            self._infos = {
                info.filename.removesuffix(".npy"): info
                for info in self._zip.infolist()
                if info.filename.endswith(".npy")
            }
            packed = next(iter(self._zip.namelist()), "")
        if not self._infos and packed:
            raise DataError(
                f"this is a ZIP file with {packed[:60]!r}, not an NPZ archive",
                where=str(path),
                expected="arrays as numpy.savez writes them",
                fix="unpack it first: unzip FILE",
            )

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

    def members(self, below: str = "") -> list[Member]:
        """Return all arrays that can be read; an NPZ file has no groups, so none are below one."""
        found = []
        for name in [] if below else self.names()[:MOST_LISTED]:
            with suppress(DataError):
                found.append(self.member(name))
        return found

    def member(self, name: str) -> Member:
        """Return shape and dtype of a key, checked against the size of its member."""
        with self._guard(name), self._zip.open(self._infos[name]) as stream:
            return self._header(name, stream)[0]

    def _header(self, name: str, stream: IO[bytes]) -> tuple[Member, bool, int]:
        shape, fortran, dtype = read_npy_header(stream)
        member = Member(name, shape, dtype)
        offset = stream.tell()
        stored = self._infos[name].file_size - offset
        if not dtype.hasobject and member.nbytes != stored:
            raise DataError(
                f"the header declares {member.shape} {dtype}, {member.nbytes} bytes; {stored} are there",
                where=f"{self.path}, key {name!r}",
                expected="as many bytes as shape and dtype need",
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
            if not member.dtype.hasobject:
                refuse_large(member, self.path)
                flat = np.frombuffer(read_exactly(stream, member.nbytes), dtype=member.dtype)
                return flat.reshape(member.shape, order="F" if fortran else "C")
        where = f"{self.path}, key {name!r}"
        if not self._allow_pickle:
            raise DataError(
                "this key holds Python objects (a pickle), which can run code when it is read",
                where=where,
                expected="a plain array of numbers",
                fix="save it as numbers, or set allow_pickle if you trust the file",
            )
        try:
            with self._zip.open(self._infos[name]) as stream:
                return np.lib.format.read_array(stream, allow_pickle=True)
        except Exception as error:
            raise DataError(f"the pickled key cannot be read: {error}", where=where) from error

    def stack(self, name: str, scan_axis: int) -> Patterns:
        """Return a 3-D array with its scan axis first; an uncompressed one is read where it lies."""
        with self._guard(name), self._zip.open(self._infos[name]) as stream:
            member, fortran, offset = self._header(name, stream)
            shape = member.shape[::-1] if fortran else member.shape
            axis = len(shape) - 1 - scan_axis if fortran else scan_axis
            swap = fortran
            info = self._infos[name]
            stored = info.compress_type == zipfile.ZIP_STORED
            if fits_in_memory(member.nbytes):
                data = self._stored_bytes(info, offset) if stored else read_exactly(stream, member.nbytes)
                return scan_first(np.frombuffer(data, dtype=member.dtype).reshape(shape), axis, swap)
            if stored and axis == 0 and not swap:
                return FilePatterns(self.path, self._data_start(info) + offset, shape, member.dtype)
            return unpack(
                slabs_of_stream(stream, shape, member.dtype), shape, member.dtype, axis, swap, self.path
            )

    def _stored_bytes(self, info: zipfile.ZipInfo, offset: int) -> NDArray[np.uint8]:
        """Return the bytes of an uncompressed member behind its header, after checking its checksum."""
        with self.path.open("rb") as handle:
            handle.seek(self._data_start(info))
            data = np.fromfile(handle, dtype=np.uint8, count=info.file_size)
        if len(data) < info.file_size or zlib.crc32(data.data) != info.CRC:
            raise zipfile.BadZipFile(f"the bytes of {info.filename} do not agree with their checksum")
        return data[offset:]

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
