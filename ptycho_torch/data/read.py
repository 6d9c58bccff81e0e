"""Read a scan, whatever the file: by its content, never by its extension."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ptycho_exec.errors import DataError
from ptycho_exec.files import file_sha256
from ptycho_torch.config import DataConfig
from ptycho_torch.data.assemble import assemble
from ptycho_torch.data.formats.paired import pair
from ptycho_torch.data.formats.table import FORMATS, Format, Halves
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage.archive import Archive, list_names
from ptycho_torch.data.storage.open_file import open_archive

_SUFFIXES = (".h5", ".hdf5", ".npz", ".cxi")
_MASTER = "entry/data/data_000001"
_STEMS = {"patterns": "diffraction", "positions": "product"}
"""What the two files of a pair are called, by the part that each holds."""


@dataclass(frozen=True, slots=True)
class ScanFile:
    """An open file that holds a scan or a part of one."""

    archive: Archive
    format: Format


def read_scan(path: str | Path, config: DataConfig | None = None) -> ScanData:
    """Read a scan, check it, bring it to this package's conventions, and report how that was decided.

    Args:
        path: NPZ file, Ptychodus training file, or CXI file; a Ptychodus product or diffraction file, whose
            other half lies beside it; or a directory with both halves.
        config: declarations that win over what is detected; none detects everything.

    Raises:
        DataError: the file is missing, damaged, incomplete, ambiguous or physically impossible.
    """
    settings = config or DataConfig()
    with open_scan(Path(path), settings) as files:
        positions, patterns = files["positions"], files["patterns"]
        left, right = positions.format.read, patterns.format.read
        if isinstance(left, Halves):
            assert isinstance(right, Halves)
            product = left.positions(positions.archive, patterns.archive, settings)
            raw = pair(product, right.patterns(patterns.archive))
        else:
            raw = left(positions.archive, settings)
        raw.format = positions.format.name
        scan = assemble(raw, settings)
    return _with_hashes(scan, patterns.archive.path, positions.archive.path)


def _with_hashes(scan: ScanData, *files: Path) -> ScanData:
    """Add the SHA-256 of the file; of a pair, that of the two files' names and hashes."""
    hashes = {file.name: file_sha256(file) for file in dict.fromkeys(files)}
    lines = "".join(f"{name}:{value}\n" for name, value in sorted(hashes.items()))
    whole = next(iter(hashes.values())) if len(hashes) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    return replace(scan, sha256=whole, report={**scan.report, "files": hashes})


@contextmanager
def open_scan(path: Path, config: DataConfig | None = None) -> Iterator[dict[str, ScanFile]]:
    """Open the file of a scan, or both files of a pair, and recognise their formats.

    Args:
        path: of either file, or of a directory with both.
        config: says what may be read: pickles, and data in other files.

    Yields:
        the file with the "patterns" and the file with the "positions", often the same.

    Raises:
        DataError: a file is missing or damaged, or there is no scan in it.
    """
    may = config or DataConfig()
    opened: dict[Path, str] = {}
    parts: dict[str, ScanFile] = {}
    with ExitStack() as stack:

        def add(file: Path, *, alone: bool) -> None:
            archive = open_archive(file, allow_pickle=may.allow_pickle, allow_links=may.allow_links)
            stack.callback(archive.close)
            opened[file] = list_names(archive)
            for row in FORMATS:
                if held := row.parts(archive):
                    if alone or isinstance(row.read, Halves):
                        parts.update(dict.fromkeys(held, ScanFile(archive, row)))
                    return
            _refuse_master(archive)

        halves = [half for stem in _STEMS.values() if (half := _with_any_suffix(path / stem))]
        for file in halves or [path]:
            add(file, alone=len(halves) < 2)
        if len(opened) == len(parts) == 1:
            add(_partner(file, next(iter(parts))), alone=False)
        if len(parts) < 2:
            raise DataError(
                "no scan is in here",
                where=" and ".join(map(str, opened)),
                expected="patterns, positions and a probe as in PtychoPINN, Ptychodus or CXI files; "
                + "; ".join(f"{file.name} has {names}" for file, names in opened.items()),
                fix="name the file of the scan, or add what is missing",
            )
        yield parts


def _refuse_master(archive: Archive) -> None:
    """Refuse the master file of a DECTRIS detector: links to files of frames, and no positions."""
    try:
        master = _MASTER in archive
    except DataError:  # a link to another file, which is not followed
        master = True
    if master:
        raise DataError(
            "this is the master file of a detector, without positions; its patterns lie in other files",
            where=str(archive.path),
            expected="patterns, positions and a probe in one file",
            fix=f"with h5py, write the patterns of {_MASTER} and those that follow it as diffraction, and "
            "xcoords, ycoords and probeGuess, into one file",
        )


def _with_any_suffix(path: Path) -> Path | None:
    files = (path.with_name(path.name + suffix) for suffix in _SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _partner(file: Path, part: str) -> Path:
    """Return the other half of a pair, which lies beside the one that was named."""
    mine = _STEMS[part]
    (other,) = set(_STEMS.values()) - {mine}
    stems = [stem for stem in (file.stem.replace(mine, other), other) if stem != file.stem]
    for stem in stems:
        if (partner := _with_any_suffix(file.with_name(stem))) is not None:
            return partner
    raise DataError(
        f"this is the {mine} half of a scan, and its {other} half is not there",
        where=str(file),
        expected=f"{' or '.join(dict.fromkeys(stems))} with one of {', '.join(_SUFFIXES)} beside it",
        fix=f"copy the {other} file into {file.parent}",
    )
