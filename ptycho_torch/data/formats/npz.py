"""NPZ scans as PtychoPINN and Ptychodus know them, and the same keys in an HDF5 file.

Keys: `xcoords`, `ycoords` (M,) in object pixels; `diff3d` or `diffraction`, (M, N, N) or (N, N, M);
`probeGuess`; optional `objectGuess`, `bad_pixels`, `Y` or `label_amp` and `label_phase`, `scan_index`,
`_metadata`. Files of this package also declare what they mean: `domain`, `pattern_axes`, `patch_center`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_exec.files import atomic_path
from ptycho_torch.config import DataConfig
from ptycho_torch.data import checks
from ptycho_torch.data.assemble import RawScan
from ptycho_torch.data.detect import PTYCHODUS_CENTER, PTYCHOPINN_CENTER, PatchCenter
from ptycho_torch.data.formats.contents import contents, hint
from ptycho_torch.data.formats.paired import positive
from ptycho_torch.data.formats.units import energy_j, length_m, stated, units_of_columns
from ptycho_torch.data.formats.writing import StackOut, write_npz_arrays
from ptycho_torch.data.geometry import JOULE_PER_EV
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage.archive import Archive, required
from ptycho_torch.data.storage.patterns import Patterns, blocks, in_one_row
from ptycho_torch.data.storage.scratch import unpack

STACK_NAMES = ("diff3d", "diffraction")
_DECLARATIONS = {
    "domain": ("amplitude", "intensity"),
    "pattern_axes": ("first", "last"),
    "patch_center": ("half-pixel", "pixel"),
}
_GEOMETRY = ("pixel_size_m", "photon_energy_eV", "detector_distance_m", "detector_pixel_size_m")


def is_npz_scan(archive: Archive) -> bool:
    """Return whether an archive looks like this format, complete or not."""
    return any(name in archive for name in (*STACK_NAMES, "xcoords", "ycoords", "probeGuess"))


def read_npz(archive: Archive, config: DataConfig) -> RawScan:
    """Collect the parts of an NPZ scan.

    Raises:
        DataError: a key is missing, pickled, or of the wrong rank.
    """
    where = str(archive.path)
    names = [name for name in STACK_NAMES if name in archive]
    if len(names) != 1:
        raise DataError(
            "both diff3d and diffraction are there" if names else "the patterns are missing",
            where=where,
            expected=f"one of the keys {' or '.join(STACK_NAMES)}; the file has {contents(archive)}",
            fix="name the one that holds the measurement: --map patterns=diff3d"
            if names
            else hint(archive) or "add the patterns under diff3d",
        )
    (name,) = names
    declared = {key: declaration(archive, key) for key in _DECLARATIONS}
    metadata, notes = _metadata(archive, config.allow_pickle)
    domain, why = declared["domain"], "declared in the file"
    if domain == "auto" and metadata.get("domain") in _DECLARATIONS["domain"]:
        domain, why = metadata["domain"], "declared in the file's _metadata"
    exported = "bad_pixels" in archive
    labeled = "Y" in archive or ("label_amp" in archive and "label_phase" in archive)
    geometry = geometry_of(archive)
    if config.pixel_size_m is not None:
        geometry["pixel_size_m"] = config.pixel_size_m
    return RawScan(
        path=archive.path,
        stack=archive.member(name),
        read_stack=lambda axis: read_rows(archive, name, axis),
        positions_px=_positions(archive, geometry.get("pixel_size_m"), config),
        domain=domain,
        domain_why=why,
        axes=declared["pattern_axes"],
        center=declared["patch_center"],
        default_center=default_center(archive),
        probe=archive.array("probeGuess") if "probeGuess" in archive else None,
        object_guess=archive.array("objectGuess") if "objectGuess" in archive else None,
        bad_pixels=archive.array("bad_pixels") if exported else None,
        read_labels=(lambda axis: _read_labels(archive, axis)) if labeled else None,
        geometry=geometry,
        notes=notes,
    )


def read_rows(archive: Archive, name: str, axis: int) -> Patterns:
    """Return (M, ky, kx) patterns of a stack.

    axis: 0 where the scan is first, (M, ky, kx) or (ny, nx, ky, kx); 2 for (ky, kx, M) or (ky, kx, ny, nx).
    """
    if len(archive.member(name).shape) == 3:
        return archive.stack(name, axis)
    stack = archive.stack(name, 0)
    if axis == 0:
        return in_one_row(stack)
    shape = (*stack.shape[:2], math.prod(stack.shape[2:]))
    if isinstance(stack, np.ndarray):
        return np.moveaxis(stack.reshape(shape), -1, 0)
    slabs = ((start, block.reshape(-1, *shape[1:])) for start, block in blocks(stack))
    return unpack(slabs, shape, stack.dtype, axis, False, archive.path)


def default_center(archive: Archive) -> tuple[PatchCenter, str]:
    """Return the convention of the program that wrote the file."""
    return PTYCHODUS_CENTER if "bad_pixels" in archive else PTYCHOPINN_CENTER


def geometry_of(archive: Archive) -> dict[str, float]:
    """Return the numbers of the geometry; their names say in what, unless the file states another unit."""
    found = {}
    for key in _GEOMETRY:
        if key in archive:
            energy = key == "photon_energy_eV"
            unit = energy_j(archive, key, JOULE_PER_EV) / JOULE_PER_EV if energy else length_m(archive, key)
            found[key] = positive(archive.array(key), key, str(archive.path)) * unit
    return found


def _positions(archive: Archive, pixel_size_m: float | None, config: DataConfig) -> NDArray[Any]:
    """Return (M, 2) [y, x] in pixels; a unit of length that the file states needs the size of a pixel."""
    columns = {}
    for name in ("ycoords", "xcoords"):
        if name not in archive and (likely := hint(archive)):
            raise DataError(
                f"{name} is missing",
                where=str(archive.path),
                expected=f"{name}: (M,) positions in object pixels; the file has {contents(archive)}",
                fix=likely,
            )
        column = required(archive, name, "(M,) positions in object pixels")
        if column.ndim != 1:
            raise DataError(
                f"{name} has shape {column.shape}",
                where=f"{archive.path}, {name}",
                expected="(M,), one number per pattern",
                fix="--map positions_y=ycoords --map positions_x=xcoords takes them row by row"
                if column.size
                else "store y and x as two flat arrays",
            )
        checks.check_numeric(column.dtype, "iuf", f"the values of {name}", f"{archive.path}, {name}")
        columns[name] = column.astype(np.float64)
    checks.check_equal_lengths({name: len(c) for name, c in columns.items()}, str(archive.path))
    points, units = np.stack(list(columns.values()), axis=1), units_of_columns(archive, list(columns), config)
    if None in units:
        return points
    if pixel_size_m is None:
        word = stated(archive, "ycoords") if config.positions_unit == "auto" else config.positions_unit
        raise DataError(
            f"ycoords has the unit {word!r}; the size of an object pixel is not known",
            where=f"{archive.path}, ycoords",
            expected="positions in object pixels, or pixel_size_m beside them",
            fix="add pixel_size_m to the file, or give --pixel-size-m: the side of an object pixel",
        )
    return points * (np.array(units, dtype=np.float64) / pixel_size_m)


def declaration(archive: Archive, key: str) -> str:
    """Return what the file declares, or auto."""
    if key not in archive:
        return "auto"
    value = archive.array(key)
    text = value.item() if value.ndim == 0 else ""
    word = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    if word not in _DECLARATIONS[key]:
        raise DataError(
            f"the file declares {key} = {word[:40]!r}",
            where=f"{archive.path}, {key}",
            expected=" or ".join(_DECLARATIONS[key]),
            fix="correct the key or remove it",
        )
    return word


def _metadata(archive: Archive, allow_pickle: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON of `_metadata` when pickle is allowed, and a note about it."""
    if "_metadata" not in archive:
        return {}, {}
    if archive.member("_metadata").dtype.hasobject and not allow_pickle:
        return {}, {"metadata": "_metadata is pickled and was not read (allow_pickle)"}
    text = archive.array("_metadata").item()
    try:
        parsed = json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        raise DataError(
            f"_metadata is not JSON: {error}", where=str(archive.path), fix="remove the key"
        ) from error
    return (parsed, {"metadata": parsed}) if isinstance(parsed, dict) else ({}, {})


def _read_labels(archive: Archive, axis: int) -> Patterns:
    """Return the true patches, stored as complex numbers or as amplitude and phase."""
    stacks = []
    for name in ("Y",) if "Y" in archive else ("label_amp", "label_phase"):
        shape = archive.member(name).shape
        if len(shape) != 3:
            raise DataError(
                f"{name} has shape {shape}",
                where=f"{archive.path}, {name}",
                expected="three axes, as the patterns",
                fix="leave the labels out unless the training is supervised",
            )
        stacks.append(archive.stack(name, axis))
    if len(stacks) == 1:
        return stacks[0]
    amplitude, phase = (stack[:] for stack in stacks)
    if amplitude.shape != phase.shape:
        raise DataError(
            f"label_amp has shape {amplitude.shape}, label_phase {phase.shape}",
            where=str(archive.path),
            expected="equal shapes",
            fix="export both labels of the same scan",
        )
    return np.asarray(amplitude * np.exp(1j * phase), dtype=np.complex64)


def write_npz(scan: ScanData, path: Path, domain: str = "intensity", *, compress: bool = False) -> Path:
    """Write a scan under PtychoPINN's keys, by way of a temporary file that is renamed.

    Domain "intensity" keeps counts as they are stored, "amplitude" writes float32 square roots. A file that
    is compressed is smaller, but must be unpacked before use.
    """
    arrays: dict[str, Any] = {
        "xcoords": scan.positions_px[:, 1],
        "ycoords": scan.positions_px[:, 0],
        "xcoords_start": scan.positions_px[:, 1],
        "ycoords_start": scan.positions_px[:, 0],
        "diff3d": StackOut(scan, domain),
        "bad_pixels": ~scan.good_pixels,
        "scan_index": np.zeros(len(scan), dtype=np.int64),
        "domain": np.array(domain),
        "pattern_axes": np.array("first"),
        "patch_center": np.array("half-pixel"),
    }
    optional = {"probeGuess": scan.probe, "objectGuess": scan.object_guess, "Y": scan.labels}
    optional |= {key: getattr(scan, key) for key in _GEOMETRY}
    arrays |= {key: np.asarray(value) for key, value in optional.items() if value is not None}
    with atomic_path(path) as temporary:
        write_npz_arrays(temporary, arrays, compress=compress)
    return path
