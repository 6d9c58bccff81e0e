"""Named arrays in a file: what the formats ask for, whatever holds the arrays.

Nothing is allocated before the declared shape has been compared with what the file can hold, nothing is
unpickled unless asked for, and every failure is one `DataError`.
"""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.patterns import Patterns

_SMALL_LIMIT_BYTES = 4 * 2**30
MOST_LISTED = 500
"""So many arrays of a file are looked at where its names are not known."""

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
    tokenize.TokenError,
    zlib.error,
    lzma.LZMAError,
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
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
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
    """What a format needs from a file.

    `linked` has the other files that its data were found in, by the names that it has for them.
    """

    path: Path
    linked: dict[str, Path]

    def __contains__(self, name: str) -> bool: ...

    def names(self) -> list[str]:
        """Return the names at the top of the archive, sorted."""

    def members(self, below: str = "") -> list[Member]:
        """Return all arrays, or those below a group, in order of their names; at most `MOST_LISTED`."""

    def member(self, name: str) -> Member:
        """Return shape and dtype of an array."""

    def array(self, name: str) -> NDArray[Any]:
        """Return a small array (positions, probe, object, mask) in full."""

    def stack(self, name: str, scan_axis: int) -> Patterns:
        """Return a 3-D array with its scan axis first, in memory up to the budget, else read on demand."""

    def attribute(self, name: str, key: str) -> Any:
        """Return an attribute of an array ("" is the root), or none when there is none."""

    def close(self) -> None:
        """Release the file."""


def first_present(archive: Archive, *names: str) -> str | None:
    """Return the first of some names that the archive has."""
    return next((name for name in names if name in archive), None)


def list_names(archive: Archive) -> str:
    """Return the first names of an archive, for a message."""
    names = archive.names()
    shown = ", ".join(name[:40] for name in names[:12])
    return (shown + ", ..." if len(names) > 12 else shown) or "no arrays"


def required(archive: Archive, name: str, meaning: str) -> NDArray[Any]:
    """Return a small array.

    Raises:
        DataError: it is missing or damaged.
    """
    if name not in archive:
        raise DataError(
            f"{name} is missing",
            where=str(archive.path),
            expected=f"{name}: {meaning}; the file has {list_names(archive)}",
            fix=f"add {name} to the file, or export it again",
        )
    return archive.array(name)


def refuse_large(member: Member, path: Path) -> None:
    if member.nbytes > _SMALL_LIMIT_BYTES:
        raise DataError(
            f"the array has {member.nbytes / 2**30:.1f} GiB",
            where=f"{path}, {member.name!r}, shape {member.shape}",
            expected="positions, probe, object and mask of at most 4 GiB each",
            fix="check the file; such a size is usually a damaged header",
        )
