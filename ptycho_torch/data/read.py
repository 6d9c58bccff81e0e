"""Read a scan, whatever the file: by its content, never by its extension."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_exec.files import file_sha256
from ptycho_torch.config import DataConfig
from ptycho_torch.data import checks
from ptycho_torch.data.assemble import RawScan, assemble, frame_size, read_patterns
from ptycho_torch.data.formats.contents import contents, hint
from ptycho_torch.data.formats.mapped import is_asked, with_images
from ptycho_torch.data.formats.paired import pair
from ptycho_torch.data.formats.table import FORMATS, Format, Halves, mapped_format, with_map
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage.archive import Archive
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
        raw = _read_raw(files, settings)
        scan = assemble(raw, settings)
    return _with_hashes(scan, patterns.archive, positions.archive)


def _read_raw(files: dict[str, ScanFile], config: DataConfig) -> RawScan:
    """Collect the parts of a scan; its patterns are not read yet."""
    positions, patterns = files["positions"], files["patterns"]
    left, right = positions.format.read, patterns.format.read
    if isinstance(left, Halves):
        assert isinstance(right, Halves)
        product = left.positions(positions.archive, patterns.archive, config)
        raw = pair(product, right.patterns(patterns.archive))
    else:
        raw = left(positions.archive, config)
    raw.format = positions.format.name
    if config.positions_unit != "auto" and raw.format.startswith("Ptychodus"):
        raise DataError(
            f"positions_unit = {config.positions_unit} has no effect: the format says what its positions are",
            where=str(positions.archive.path),
            expected="meters in products, object pixels in training files",
            fix="leave it out; --pixel-size-m corrects the size of an object pixel",
        )
    return with_images(raw, positions.archive, config)


def pattern_size(path: str | Path, config: DataConfig | None = None) -> int:
    """Return N, the side of a pattern after preprocessing, without reading the patterns.

    Raises:
        DataError: as `read_scan`, of what can be known without the patterns.
    """
    settings = config or DataConfig()
    with open_scan(Path(path), settings) as files:
        raw = _read_raw(files, settings)
        count = len(raw.positions_px) if raw.pattern_rows is None else raw.stack.shape[0]
        return frame_size(raw, count, settings)


def sample_patterns(path: str | Path, config: DataConfig | None = None) -> NDArray[Any]:
    """Return (K, h, w), some patterns of a scan as they are stored, before any preprocessing."""
    settings = config or DataConfig()
    with open_scan(Path(path), settings) as files:
        raw = _read_raw(files, settings)
        stored, *_ = read_patterns(raw, len(raw.positions_px), settings)
        return np.asarray(stored[checks.sample_rows(len(stored))])


def _with_hashes(scan: ScanData, *archives: Archive) -> ScanData:
    """Add the SHA-256 of the file; where several take part, that of their names and hashes."""
    hashes = {file.name: file_sha256(file) for file in dict.fromkeys(archive.path for archive in archives)}
    linked = {
        f"allow_links.{name}": {"path": os.path.abspath(file), "sha256": file_sha256(file)}
        for name, file in {
            name: file for archive in archives for name, file in archive.linked.items()
        }.items()
    }
    others = {**scan.report.get("other_files", {}), **linked}
    every = {**hashes, **{option: row["sha256"] for option, row in others.items()}}
    lines = "".join(f"{name}:{value}\n" for name, value in sorted(every.items()))
    whole = next(iter(every.values())) if len(every) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    known = {"files": hashes, **({"other_files": others} if others else {})}
    return replace(scan, sha256=whole, report={**scan.report, **known})


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
    likely: dict[Path, str] = {}
    parts: dict[str, ScanFile] = {}
    with ExitStack() as stack:

        def add(file: Path, *, alone: bool) -> None:
            archive = open_archive(file, allow_pickle=may.allow_pickle, allow_links=may.allow_links)
            stack.callback(archive.close)
            opened[file] = contents(archive)
            for row in FORMATS:
                if held := row.parts(archive):
                    if alone or isinstance(row.read, Halves):
                        parts.update(dict.fromkeys(held, ScanFile(archive, with_map(row, may))))
                    return
            _refuse_master(archive)
            likely[file] = hint(archive)

        if is_asked(may):
            archive = open_archive(path, allow_pickle=may.allow_pickle, allow_links=may.allow_links)
            stack.callback(archive.close)
            yield dict.fromkeys(("patterns", "positions"), ScanFile(archive, mapped_format(may)))
            return
        halves = [half for stem in _STEMS.values() if (half := _with_any_suffix(path / stem))]
        for file in halves or [path]:
            add(file, alone=len(halves) < 2)
        if len(opened) == len(parts) == 1:
            ((part, found),) = parts.items()
            add(_partner(file, part, found.archive), alone=False)
        if len(parts) < 2:
            raise DataError(
                "no scan is in here",
                where=" and ".join(map(str, opened)),
                expected="patterns, positions and a probe as in PtychoPINN, Ptychodus or CXI files; "
                + "; ".join(f"{file.name} has {names}" for file, names in opened.items()),
                fix=next(filter(None, likely.values()), "name the file of the scan, or add what is missing"),
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
            expected="patterns and positions",
            fix=f"if you trust it: --allow-links true --map patterns={_MASTER.rpartition('/')[0]} "
            "--map positions=FILE, an array of (M, 2), or --scan-step STEP --scan-shape ROWS,COLUMNS",
        )


def _with_any_suffix(path: Path) -> Path | None:
    files = (path.with_name(path.name + suffix) for suffix in _SUFFIXES)
    return next((file for file in files if os.path.isfile(file)), None)


def _partner(file: Path, part: str, archive: Archive) -> Path:
    """Return the other half of a pair, which lies beside the one that was named."""
    mine = _STEMS[part]
    (other,) = set(_STEMS.values()) - {mine}
    stems = [stem for stem in (file.stem.replace(mine, other), other) if stem != file.stem]
    for stem in stems:
        if (partner := _with_any_suffix(file.with_name(stem))) is not None:
            return partner
    likely = hint(archive)
    whole = bool(likely) and "=FILE" not in likely
    raise DataError(
        f"this is the {mine} half of a scan, and its {other} half is not there",
        where=str(file),
        expected=f"{' or '.join(dict.fromkeys(stems))} with one of {', '.join(_SUFFIXES)} beside it"
        + (f"; the file has {contents(archive)}" if whole else ""),
        fix=f"copy the {other} file into {file.parent}"
        + (f"; or, if it is a whole scan, {likely}" if whole else ""),
    )
