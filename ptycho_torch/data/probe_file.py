"""The probe that `--probe FILE` names: a result of ours, a product, another scan, or an array.

Shape legend: P modes, n x n pixels in the file, N x N in the scan that it is for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.data import checks
from ptycho_torch.data.sampling import resample_wave
from ptycho_torch.data.storage.archive import Archive
from ptycho_torch.data.storage.array_file import file_of, image, read_array
from ptycho_torch.data.storage.open_file import open_archive

WORDS = ("auto", "file", "estimate")
"""What `Preprocessing.probe` says besides a path."""
_RESULTS = ("reconstruction.npz", "product.h5", "product.npz")
"""What a directory with a probe holds, most wanted first."""


class StoredProbe(NamedTuple):
    """A probe as it lies in a file, with its pixel size in meters where the file gives it.

    `array` is its name where that was given.
    """

    wave: NDArray[np.complex64]
    pixel_size_m: float | None
    path: Path
    array: str | None = None


class Target(NamedTuple):
    """The scan that a probe is for.

    Attributes:
        N: side of its prepared patterns.
        pixel_size_m: side of its object pixel, where it is known.
        side: of its patterns as stored.
        ratio: its object pixel over that of the patterns as stored.
        offset_px: of the center of binned patterns from N // 2.
    """

    N: int
    pixel_size_m: float | None
    side: int
    ratio: float = 1.0
    offset_px: float = 0.0


def probe_from_file(
    text: str, target: Target, beside: Path | None = None
) -> tuple[NDArray[np.complex64], dict[str, Any]]:
    """Return (P, N, N) for a scan, and what to report.

    With both pixel sizes known the same field is sampled anew, its power kept; the window of the scan shows
    what it holds of it. Otherwise a probe of N pixels is taken as it is, and one with as many pixels as the
    stored patterns follows crop, pad and bin as the file's own does.

    Raises:
        DataError: no such file, no probe in it, or another size with a pixel size unknown.
    """
    found = read_probe(text, beside)
    n, N = found.wave.shape[-1], target.N
    report = {"value": "path", "why": str(found.path)}
    offset = 0.0 if n == N else target.offset_px  # one of N pixels comes from patterns that are binned alike
    if found.pixel_size_m and target.pixel_size_m:
        ratio = target.pixel_size_m / found.pixel_size_m
        ratio = 1.0 if abs(ratio - 1) < 1e-6 else ratio
        sizes = f"{n} pixels of {found.pixel_size_m:.4g} m"
    elif n in (N, target.side):
        ratio, sizes = 1.0 if n == N else target.ratio, f"{n} pixels"
    else:
        unknown = "that file" if not found.pixel_size_m else "this scan"
        raise DataError(
            f"the probe has {n} pixels on a side, the patterns {N}; the pixel size of {unknown} is not known",
            where=str(found.path),
            expected="the same number of pixels, or both pixel sizes, to resample it",
            fix="add pixel_size_m to that file"
            if not found.pixel_size_m
            else "give --pixel-size-m, the side of an object pixel for the patterns as they are stored",
        )
    wave = resample_wave(found.wave, ratio, N, offset)
    if wave is found.wave:
        return wave, report
    kept = float(np.sum(np.abs(wave) ** 2) / np.sum(np.abs(found.wave) ** 2))
    if kept < 0.5:
        raise DataError(
            f"of this probe only {kept:.0%} of the power reach the window of the scan: {sizes} there, {N} of "
            f"{target.pixel_size_m or 0:.4g} m here",
            where=str(found.path),
            expected="pixel sizes of the same kind of measurement, and a window that holds the probe",
            fix="correct pixel_size_m in that file, or give --pixel-size-m for this scan; or choose less bin",
        )
    return wave, report | {"why": f"{found.path}, {sizes}, resampled", "power_kept": kept}


def read_probe(text: str, beside: Path | None = None) -> StoredProbe:
    """Return the probe of a result directory, `reconstruction.npz`, product, scan, or file with an array.

    Args:
        text: a path, or FILE:NAME for one of several arrays.
        beside: the file of the scan, in whose folder the path may lie.

    Raises:
        DataError: no such path, or no probe there.
    """
    folder = _directory(text, beside)
    inside = result_with_probe(text, beside)
    if folder is not None and inside is None:
        raise DataError(
            "this directory holds no probe",
            where=str(folder),
            expected=f"one of {', '.join(_RESULTS)}",
            fix="name a result of `ptycho-torch reconstruct`, or a file",
        )
    place = file_of(text if inside is None else str(inside), beside)
    if place is None:
        raise DataError(
            "there is no such probe",
            where=text,
            expected=f"{', '.join(WORDS)}, or a path to a result, a product, a scan or an array",
            fix="correct the path; it is looked for in the working directory and beside the scan",
        )
    path, name = place
    with path.open("rb") as stream:
        single = stream.read(6).startswith(b"\x93NUMPY")
    if single or name:
        return _checked(read_array(text, "the probe", beside=beside), None, path)._replace(array=name)
    archive = open_archive(path)
    try:
        for names, pixel in _KINDS:
            found = next((key for key in names if key in archive), None)
            if found is not None:
                return _checked(image(archive, found), pixel(archive), path)
    finally:
        archive.close()
    if path.name in _RESULTS:
        raise DataError(
            "this result holds no probe: it was not refined",
            where=str(path),
            expected="an array named probe",
            fix="reconstruct with --refine-probe true",
        )
    return _checked(read_array(text, "the probe", beside=beside), None, path)


def result_with_probe(text: str, beside: Path | None = None) -> Path | None:
    """Return the file with the probe in a result directory; None where there is none."""
    folder = _directory(text, beside)
    names = () if folder is None else (folder / name for name in _RESULTS)
    return next((path for path in names if path.is_file()), None)


def _directory(text: str, beside: Path | None) -> Path | None:
    folders = (Path(text), *([beside.parent / text] if beside else []))
    return next((path for path in folders if os.path.isdir(path)), None)


def _checked(probe: NDArray[Any], pixel_size_m: float | None, path: Path) -> StoredProbe:
    """Return the probe as (P, n, n); of further leading axes, as relaxation makes them, the first entry."""
    first = probe[(0,) * max(0, probe.ndim - 3)]
    return StoredProbe(
        checks.check_probe(first, first.shape[-2] if first.ndim > 1 else 0, str(path)), pixel_size_m, path
    )


def _own_key(archive: Archive) -> float | None:
    return _number(archive.array("pixel_size_m")) if "pixel_size_m" in archive else None


def _attribute(archive: Archive) -> float | None:
    """Return the side of a product's pixels, those of its probe or of its object; of a training file, too."""
    for owner in ("probe", "object"):
        if value := _number(archive.attribute(owner, "pixel_width_m")):
            return value
    for key in ("object_pixel_width_m", "pixel_size_m"):
        if key in archive and (value := _number(archive.array(key))):
            return value
    return None


def _cxi_pixel(archive: Archive) -> float | None:
    key = "entry_1/ptychodus/probe_pixel_width_m"
    return _number(archive.array(key)) if key in archive else None


def _number(value: Any) -> float | None:
    array = np.asarray(value) if value is not None else np.empty(0)
    ok = array.size == 1 and array.dtype.kind in "iuf" and 0 < float(array.reshape(())) < np.inf
    return float(array.reshape(())) if ok else None


_KINDS: tuple[tuple[tuple[str, ...], Callable[[Archive], float | None]], ...] = (
    (("probeGuess",), _own_key),
    (("entry_1/image_1/data", "entry_1/instrument_1/source_1/illumination"), _cxi_pixel),
    (("probe",), _attribute),
)
"""Where the probe of a kind of file is, and what gives the side of its pixels."""
