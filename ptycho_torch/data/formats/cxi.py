"""CXI files: raw ones of beamlines, and those of Ptychodus (diffraction, product, or both in one).

The CXI standard stores translations of the sample; the probe then moves the other way over the object.
Ptychodus stores translations of the probe. `DataConfig.translation` decides where the file does not.

Shape legend: M patterns, N x N pixels, P probe modes, H x W object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_exec.files import atomic_path
from ptycho_torch.config import DataConfig
from ptycho_torch.data.formats.paired import Diffraction, Product, finite, first_of, positive, to_meters
from ptycho_torch.data.formats.units import energy_j, in_pixels, length_m, position_unit_m, stated
from ptycho_torch.data.formats.writing import StackOut, require_geometry, scan_indexes, write_hdf5_arrays
from ptycho_torch.data.geometry import JOULE_PER_EV, doubt
from ptycho_torch.data.preprocess import side_after
from ptycho_torch.data.scan import HC_EV_M, ScanData
from ptycho_torch.data.storage.archive import Archive, first_present

_ENTRY = "entry_1"
_DETECTOR = "entry_1/instrument_1/detector_1"
_SOURCE = "entry_1/instrument_1/source_1"
_DATA = ("entry_1/data_1/data", f"{_DETECTOR}/data")
_TRANSLATION = ("entry_1/sample_1/geometry_1/translation", "entry_1/data_1/translation")
_PROBE = ("entry_1/image_1/data", f"{_SOURCE}/illumination")
_OBJECT = "entry_1/image_2/data"
_PTYCHODUS = "entry_1/ptychodus"
_INDEXES = f"{_PTYCHODUS}/probe_position_indexes"
_CXI_VERSION = 160
_GEOMETRY = {
    f"{_SOURCE}/energy": ("photon_energy_eV", "J"),
    f"{_SOURCE}/wavelength": ("wavelength_m", "m"),
    f"{_DETECTOR}/distance": ("detector_distance_m", "m"),
    f"{_DETECTOR}/y_pixel_size": ("detector_pixel_size_m", "m"),
    f"{_DETECTOR}/x_pixel_size": ("detector_pixel_size_m", "m"),
}
"""Entries of the geometry, what they are, and their unit where the file states none."""
_UNIT_FIX = (
    "check the unit of the translations: --positions-unit (m, mm, um, nm, angstrom or px) names it, and "
    "--pixel-size-m gives another size of an object pixel"
)


def parts(archive: Archive) -> set[str]:
    """Return which of "patterns" and "positions" a CXI file holds; nothing for another file."""
    if _ENTRY not in archive.names():
        return set()
    names = {"patterns": _DATA, "positions": _TRANSLATION}
    return {part for part, of_part in names.items() if first_present(archive, *of_part)}


def probe_name(archive: Archive) -> str | None:
    """Return where the probe is; only Ptychodus stores it as an image."""
    return first_present(archive, *(_PROBE if _INDEXES in archive else _PROBE[1:]))


def object_name(archive: Archive) -> str | None:
    """Return where the object is; which image that would be is known in Ptychodus files only."""
    return _OBJECT if _INDEXES in archive and _OBJECT in archive else None


def read_diffraction(archive: Archive) -> Diffraction:
    """Locate the patterns of a CXI file and its mask, in which 0 means good."""
    mask = f"{_DETECTOR}/mask"
    return Diffraction(
        archive=archive,
        stack_name=next(path for path in _DATA if path in archive),
        bad_pixels=archive.array(mask) != 0 if mask in archive else None,
        detector_pixel_size_m=_positive(archive, f"{_DETECTOR}/x_pixel_size"),
    )


def read_product(archive: Archive, detector: Archive, config: DataConfig) -> Product:
    """Collect positions, probe, object and geometry.

    Args:
        archive: file with the translations.
        detector: file with the patterns, often the same; its detector geometry completes a product's.
        config: declares what the translations move.

    Raises:
        DataError: translations of another shape, or a pixel size that cannot be worked out.
    """
    translation, translation_unit_m = _translation(archive, config)
    ptychodus = _INDEXES in archive
    moved, why = ("probe", "a Ptychodus file") if ptychodus else ("sample", "the CXI standard")
    if config.translation != "auto":
        moved, why = config.translation, "declared"
    sign = 1.0 if moved == "probe" else -1.0
    rows, columns = _axes(detector)
    positions = sign * np.stack([translation @ rows, translation @ columns], axis=1)

    def first(name: str, read: Callable[[Archive, str], float | None]) -> float | None:
        return next(filter(None, (read(file, name) for file in (archive, detector))), None)

    joule, wavelength = first(f"{_SOURCE}/energy", _positive), first(f"{_SOURCE}/wavelength", _positive)
    energy = joule / JOULE_PER_EV if joule else (HC_EV_M / wavelength if wavelength else None)
    distance = first(f"{_DETECTOR}/distance", _number)
    geometry = {"photon_energy_eV": energy, "detector_distance_m": abs(distance) if distance else None}
    probe, canvas = None, None
    warnings: list[str] = []
    if (name := probe_name(archive)) is not None:
        probe, warnings = first_of(archive.array(name), 3, "probes (orthogonal relaxation)")
    if (name := object_name(archive)) is not None:
        canvas, layers = first_of(archive.array(name), 2, "object layers")
        warnings += layers
    center = [_number(archive, f"{_PTYCHODUS}/object_center_{axis}_m") or 0.0 for axis in "yx"]
    pixel = _pixel_size(archive, detector, geometry, config)
    if f"{_DETECTOR}/basis_vectors" not in detector and not ptychodus:
        warnings.append(_NO_BASIS)
    return Product(
        path=archive.path,
        indexes=archive.array(_INDEXES) if ptychodus else np.arange(len(positions)),
        positions_m=positions * (pixel if translation_unit_m is None else translation_unit_m),
        pixel_size_m=pixel,
        center_m=(center[0], center[1]),
        probe=probe,
        object_guess=canvas,
        geometry=geometry,
        may_be_near_field=not ptychodus,
        unit_fix=_UNIT_FIX,
        warnings=[*warnings, f"the translations are taken to move the {moved} ({why})"],
    )


def _translation(archive: Archive, config: DataConfig) -> tuple[NDArray[np.float64], float | None]:
    """Return (M, 3) translations [x, y, z] and their unit in meters; None where it is an object pixel."""
    name = next(path for path in _TRANSLATION if path in archive)
    values = archive.array(name)
    if values.ndim != 2 or values.shape[1] not in (2, 3) or values.dtype.kind not in "iuf":
        raise DataError(
            f"the translations have shape {values.shape} and dtype {values.dtype}",
            where=f"{archive.path}, {name}",
            expected="(M, 3) meters, [x, y, z]",
            fix="export the scan again",
        )
    out = np.zeros((len(values), 3))
    out[:, : values.shape[1]] = values
    return out, None if in_pixels(archive, name, config) else position_unit_m(archive, name, config) or 1.0


def _axes(archive: Archive) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the unit vectors [x, y, z] along the rows' and columns' index of the detector."""
    name = f"{_DETECTOR}/basis_vectors"
    if name not in archive:
        return np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
    vectors = np.asarray(archive.array(name))
    vectors = vectors.T if vectors.shape == (3, 2) else vectors
    if vectors.shape != (2, 3) or vectors.dtype.kind not in "iuf":
        vectors = np.zeros((2, 3))
    length = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(length).all() or length.min() <= 0:
        raise DataError(
            "the basis vectors of the detector are not two vectors of three components",
            where=f"{archive.path}, {name}",
            expected="(3, 2) or (2, 3), none of them zero",
            fix="correct the file, or remove basis_vectors to take rows along y and columns along x",
        )
    unit = vectors / length
    return unit[0], unit[1]


def _pixel_size(
    archive: Archive, detector: Archive, geometry: dict[str, Any], config: DataConfig
) -> tuple[float, float]:
    """Return the object pixel (height, width): given, stored, or wavelength * distance / (N detector pixels).

    For frames that are not square, N is the side of the square that preprocessing makes of them.
    """
    if config.pixel_size_m is not None:
        return config.pixel_size_m, config.pixel_size_m
    of_object = [f"{_PTYCHODUS}/object_pixel_{side}_m" for side in ("height", "width")]
    stored = [_positive(archive, name) for name in of_object]
    if stored[0] and stored[1]:
        _refuse_doubtful(archive, dict.fromkeys(of_object, ("pixel_size_m", "m")))
        return stored[0], stored[1]
    name = next(path for path in _DATA if path in detector)
    shape = detector.member(name).shape
    sizes = [_positive(detector, f"{_DETECTOR}/{axis}_pixel_size") for axis in "yx"]
    for file in (archive, detector):
        _refuse_doubtful(file, _GEOMETRY)
    energy, distance = geometry["photon_energy_eV"], geometry["detector_distance_m"]
    if len(shape) != 3 or not (sizes[0] and sizes[1] and energy and distance):
        known = {"energy": energy, "distance": distance, "y_pixel_size": sizes[0], "x_pixel_size": sizes[1]}
        missing = ", ".join(name for name, value in known.items() if not value) or "a stack of patterns"
        raise DataError(
            f"positions are in meters and the object's pixel size cannot be worked out; without {missing}",
            where=str(detector.path),
            expected="photon energy or wavelength, detector distance, detector pixel sizes",
            fix="add them to the file, or give --pixel-size-m, the side of an object pixel",
        )
    reach, sides = HC_EV_M / energy * distance, shape[1:]
    if sides[0] != sides[1]:
        sides = (side_after(sides, config, f"{detector.path}, {name}")[1],) * 2
    pixel = reach / (sides[0] * sizes[0]), reach / (sides[1] * sizes[1])
    if text := doubt("pixel_size_m", max(pixel), "m", "the object's pixel size"):
        raise DataError(
            f"{text}; energy {energy:.4g} eV, distance {distance:.4g} m, detector pixels of {sizes[0]:.4g} m",
            where=str(detector.path),
            expected="wavelength * distance / (pixels of a side * detector pixel)",
            fix="correct what is wrong in the file, or give --pixel-size-m, the side of an object pixel",
        )
    return pixel


def _refuse_doubtful(archive: Archive, entries: Mapping[str, tuple[str, str]]) -> None:
    """Refuse a number without a unit that no experiment has in the unit that the format gives it."""
    for name, (quantity, unit) in entries.items():
        number = _number(archive, name)
        if number and not stated(archive, name) and (text := doubt(quantity, number, unit, name)):
            raise DataError(
                text,
                where=str(archive.path),
                expected="SI units, or an attribute units of the entry",
                fix="give --pixel-size-m, the side of an object pixel; or state the unit in the file: "
                f"h5py.File('{archive.path.name}', 'a')['{name}'].attrs['units'] = 'UNIT'",
            )


_NO_BASIS = (
    "the file has no basis_vectors: rows are taken to run along +y and columns along +x of the translations; "
    "programs that take -y and -x get the object turned by 180 degrees, its phase reversed (--orient flip-yx)"
)


def _positive(archive: Archive, name: str) -> float | None:
    """Return a positive number; none when it is 0 or not there."""
    value = _number(archive, name)
    return positive(value, name, str(archive.path)) if value else None


def _number(archive: Archive, name: str) -> float | None:
    if name not in archive:
        return None
    unit = energy_j(archive, name) if name.endswith("energy") else length_m(archive, name)
    return finite(archive.array(name), name, str(archive.path)) * unit


def write_cxi(scan: ScanData, path: Path) -> Path:
    """Write patterns, positions, probe and object in one CXI file that Ptychodus reads too.

    Raises:
        DataError: geometry is unknown, or the target cannot be written.
    """
    names = ("photon_energy_eV", "detector_distance_m", "pixel_size_m", "detector_pixel_size_m")
    energy, distance, pixel, detector_pixel = require_geometry(scan, *names)
    positions = to_meters(scan.positions_px, pixel, scan.object_center_m, scan.canvas_shape)
    translation = np.stack([positions[:, 1], positions[:, 0], np.zeros(len(scan))], axis=1)
    canvas = np.ones(scan.canvas_shape, np.complex64) if scan.object_guess is None else scan.object_guess
    values: dict[str, Any] = {
        "cxi_version": _CXI_VERSION,
        "number_of_entries": 1,
        f"{_SOURCE}/energy": energy * JOULE_PER_EV,
        f"{_DETECTOR}/distance": distance,
        f"{_DETECTOR}/x_pixel_size": detector_pixel,
        f"{_DETECTOR}/y_pixel_size": detector_pixel,
        f"{_DETECTOR}/mask": (~scan.good_pixels).astype(np.uint32),
        _DATA[1]: StackOut(scan, "intensity"),
        _TRANSLATION[0]: translation,
        _OBJECT: canvas.astype(np.complex128)[None],
        _INDEXES: scan_indexes(scan),
        f"{_PTYCHODUS}/object_center_x_m": scan.object_center_m[1],
        f"{_PTYCHODUS}/object_center_y_m": scan.object_center_m[0],
    }
    for owner in ("object", "probe"):
        values |= {f"{_PTYCHODUS}/{owner}_pixel_{side}_m": pixel for side in ("width", "height")}
    if scan.probe is not None:
        values[_PROBE[0]] = scan.probe.astype(np.complex128)[None]
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        write_hdf5_arrays(file, values)
        file[_DATA[0]] = h5py.SoftLink(f"/{_DATA[1]}")
        file[_TRANSLATION[1]] = h5py.SoftLink(f"/{_TRANSLATION[0]}")
    return path
