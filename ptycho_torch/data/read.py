"""Read a scan, whatever the file: by its content, never by its extension."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ptycho_exec.errors import DataError
from ptycho_exec.files import file_sha256
from ptycho_torch.config import DataConfig
from ptycho_torch.data.assemble import RawScan, assemble
from ptycho_torch.data.formats import cxi, npz, ptychodus
from ptycho_torch.data.formats.paired import Diffraction, Product, pair
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage.archive import Archive
from ptycho_torch.data.storage.open_file import open_archive

_SUFFIXES = (".h5", ".hdf5", ".npz", ".cxi")


def read_scan(path: str | Path, config: DataConfig | None = None) -> ScanData:
    """Read a scan, check it, and bring it to this package's conventions.

    Args:
        path: NPZ file, Ptychodus training file, or CXI file; a Ptychodus product or diffraction file, whose
            other half lies beside it; or a directory with both halves.
        config: declarations that win over what is detected; none detects everything.

    Returns:
        The scan, with a report of what was found and why. Its `sha256` is that of the file; of a pair, that
        of the two files' names and hashes.

    Raises:
        DataError: the file is missing, damaged, incomplete, ambiguous or physically impossible.
    """
    settings = config or DataConfig()
    with ExitStack() as stack:
        archives = [_open(file, settings, stack) for file in _files(Path(path))]
        if len(archives) == 1:
            archives += _partner(archives[0], settings, stack)
        scan = assemble(_collect(archives, settings), settings)
    return _with_hashes(scan, [archive.path for archive in archives])


def _open(path: Path, config: DataConfig, stack: ExitStack) -> Archive:
    archive = open_archive(path, allow_pickle=config.allow_pickle)
    stack.callback(archive.close)
    return archive


def _files(path: Path) -> list[Path]:
    """Return the file itself, or both halves of a pair in a directory."""
    if not path.is_dir():
        return [path]
    halves = [_first_existing(path, [half]) for half in ("diffraction", "product")]
    found = [half for half in halves if half is not None]
    return found or [path]


def _first_existing(directory: Path, stems: list[str]) -> Path | None:
    candidates = (directory / f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES)
    return next((file for file in candidates if file.is_file()), None)


def _is_diffraction_half(archive: Archive) -> bool:
    if cxi.is_cxi(archive):
        return cxi.has_patterns(archive) and not cxi.has_positions(archive)
    return ptychodus.is_diffraction(archive)


def _is_product_half(archive: Archive) -> bool:
    if cxi.is_cxi(archive):
        return cxi.has_positions(archive) and not cxi.has_patterns(archive)
    return ptychodus.is_product(archive)


def _partner(archive: Archive, config: DataConfig, stack: ExitStack) -> list[Archive]:
    """Open the other half of a pair, found beside the one that was named; nothing for a single file."""
    if npz.is_npz_scan(archive):
        return []
    if _is_diffraction_half(archive):
        mine, other = "diffraction", "product"
    elif _is_product_half(archive):
        mine, other = "product", "diffraction"
    else:
        return []
    stems = [archive.path.stem.replace(mine, other), other]
    found = _first_existing(archive.path.parent, [stem for stem in stems if stem != archive.path.stem])
    if found is None:
        raise DataError(
            f"this is the {mine} half of a scan, and its {other} half is not there",
            where=str(archive.path),
            expected=f"{' or '.join(dict.fromkeys(stems))} with one of {', '.join(_SUFFIXES)} beside it",
            fix=f"copy the {other} file into {archive.path.parent}",
        )
    return [_open(found, config, stack)]


def _collect(archives: list[Archive], config: DataConfig) -> RawScan:
    """Return the parts of a scan from one file, or from the two halves in either order."""
    first = archives[0]
    if len(archives) == 1 and npz.is_npz_scan(first):
        return npz.read_npz(first, config)
    if len(archives) == 1 and ptychodus.is_training(first):
        return ptychodus.read_training(first)
    if len(archives) == 1 and cxi.is_cxi(first) and cxi.has_patterns(first) and cxi.has_positions(first):
        return _pair(first, first, config)
    product = next((archive for archive in archives if _is_product_half(archive)), None)
    diffraction = next((archive for archive in archives if _is_diffraction_half(archive)), None)
    if product is None or diffraction is None:
        listed = "; ".join(f"{a.path.name} has {', '.join(a.names()[:12]) or 'no arrays'}" for a in archives)
        raise DataError(
            "no scan is in here",
            where=" and ".join(str(archive.path) for archive in archives),
            expected=f"patterns, positions and a probe as in PtychoPINN, Ptychodus or CXI files; {listed}",
            fix="name the file of the scan, or add what is missing",
        )
    return _pair(product, diffraction, config)


def _pair(product: Archive, diffraction: Archive, config: DataConfig) -> RawScan:
    right: Diffraction = (
        cxi.read_cxi_diffraction(diffraction)
        if cxi.is_cxi(diffraction)
        else ptychodus.read_diffraction(diffraction)
    )
    left: Product = (
        cxi.read_cxi_product(product, diffraction, config)
        if cxi.is_cxi(product)
        else ptychodus.read_product(product)
    )
    return pair(left, right, "CXI" if cxi.is_cxi(product) else "Ptychodus product and diffraction")


def _with_hashes(scan: ScanData, files: list[Path]) -> ScanData:
    hashes = {file.name: file_sha256(file) for file in dict.fromkeys(files)}
    lines = "".join(f"{name}:{value}\n" for name, value in sorted(hashes.items()))
    whole = next(iter(hashes.values())) if len(hashes) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    return replace(scan, sha256=whole, report={**scan.report, "files": hashes})
