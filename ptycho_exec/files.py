"""Files that are there whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ptycho_exec.errors import UserError
from ptycho_exec.progress import steps

_BLOCK_BYTES = 2**20


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which is flushed to disk and renamed when the block ends well.

    What an earlier process that was killed left behind is removed.

    Raises:
        UserError: the directory is missing or cannot be written, or the disk is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with writing(target):
            for left_by_a_kill in target.parent.glob(f".{target.name}.*.part"):
                left_by_a_kill.unlink(missing_ok=True)
            yield temporary
            with temporary.open("r+b") as written:  # Windows flushes only what may be written
                os.fsync(written.fileno())
            os.replace(temporary, target)
    finally:
        with suppress(OSError):  # as where the path cannot be; what went wrong is raised already
            temporary.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says of a place that cannot be written into one `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the file: {error.strerror or error}",
            where=str(path),
            expected="an existing directory that you may write to, with free space for the file",
            fix="choose another place or a shorter name, or free some space",
        ) from error


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Write a file by way of a temporary one that is renamed; see `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as a hexadecimal string, read one block at a time."""
    digest, file = hashlib.sha256(), Path(path)
    with (
        file.open("rb") as stream,
        steps(f"hashing {file.name}", _mib(file.stat().st_size), unit="MiB") as step,
    ):
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            step(_mib(len(block)))
    return digest.hexdigest()


def _mib(size: int) -> float:
    return size / 2**20
