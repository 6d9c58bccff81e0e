"""Read a scan, whatever the file: by its content, never by its extension."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data import npz
from ptycho_torch.data.archive import Archive, open_archive
from ptycho_torch.data.assemble import RawScan, assemble
from ptycho_torch.data.scan import ScanData


def read_scan(path: str | Path, config: DataConfig | None = None) -> ScanData:
    """Read a scan, check it, and bring it to this package's conventions.

    Args:
        path: NPZ, HDF5 or CXI file.
        config: declarations that win over what is detected; none detects everything.

    Returns:
        The scan, with a report of what was found and why.

    Raises:
        DataError: the file is missing, damaged, incomplete, ambiguous or physically impossible.
    """
    settings = config or DataConfig()
    archive = open_archive(Path(path), allow_pickle=settings.allow_pickle)
    try:
        scan = assemble(_collect(archive, settings), settings)
    finally:
        archive.close()
    return replace(scan, sha256=file_sha256(Path(path)))


def _collect(archive: Archive, config: DataConfig) -> RawScan:
    if npz.is_npz_scan(archive):
        return npz.read_npz(archive, config)
    raise DataError(
        "no scan is in this file",
        where=str(archive.path),
        expected="diffraction patterns, positions and a probe under known names",
        fix=f"the file has {', '.join(archive.names()[:12]) or 'nothing'}",
    )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read by the block."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
