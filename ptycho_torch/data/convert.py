"""Convert a scan from any readable format to any writable one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ptycho_exec.errors import DataError
from ptycho_exec.files import writing
from ptycho_torch.config import DataConfig
from ptycho_torch.data.formats.table import WRITERS
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData


def convert(
    src: str | Path,
    dst: str | Path,
    format: str,
    config: DataConfig | None = None,
    *,
    photon_energy_eV: float | None = None,
    detector_distance_m: float | None = None,
    pixel_size_m: float | None = None,
    prepare: Callable[[ScanData], ScanData] = lambda scan: scan,
) -> Path:
    """Read a scan and write it in another format; patterns, positions, probe and object stay the same.

    Args:
        src: file or directory that `read_scan` reads.
        dst: target file, or directory for a format of two files.
        format: one of `WRITERS`.
        config: declarations for reading.
        photon_energy_eV: of the beam, where the source does not have it.
        detector_distance_m: from sample to detector, where the source does not have it.
        pixel_size_m: side of an object pixel, where the source does not have it.
        prepare: what to do to the scan in between, such as to find its orientation; reading does not.

    Raises:
        DataError: unknown format, unreadable source, geometry that the target needs, target exists or
            cannot be written.
    """
    if format not in WRITERS:
        raise DataError(
            f"unknown format {format!r}", expected=", ".join(WRITERS), fix="choose one of these formats"
        )
    target = Path(dst)
    with writing(target):
        taken = target.exists() and not (target.is_dir() and not any(target.iterdir()))
    if taken:
        raise DataError("the target exists", where=str(target), fix="choose another name, or remove it first")
    scan = prepare(read_scan(src, config))
    scan = replace(
        scan,
        photon_energy_eV=photon_energy_eV or scan.photon_energy_eV,
        detector_distance_m=detector_distance_m or scan.detector_distance_m,
        pixel_size_m=pixel_size_m or scan.pixel_size_m,
        # A new pixel size makes the stored detector pixel wrong; it is worked out again.
        detector_pixel_size_m=None if pixel_size_m else scan.detector_pixel_size_m,
    )
    with suppress(OSError):  # whoever writes says what is wrong with the place
        target.parent.mkdir(exist_ok=True)
    with writing(target):
        return WRITERS[format](complete_geometry(scan), target)


def complete_geometry(scan: ScanData) -> ScanData:
    """Work out the one of object pixel and detector pixel that is unknown: dx = wavelength z / (N dd)."""
    if not scan.wavelength_m or not scan.detector_distance_m:
        return scan
    product = scan.wavelength_m * scan.detector_distance_m / scan.n_pixels
    if scan.pixel_size_m and not scan.detector_pixel_size_m:
        return replace(scan, detector_pixel_size_m=product / scan.pixel_size_m)
    if scan.detector_pixel_size_m and not scan.pixel_size_m:
        return replace(scan, pixel_size_m=product / scan.detector_pixel_size_m)
    return scan
