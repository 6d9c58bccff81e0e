"""Ptychodus files: product + diffraction (HDF5 or NPZ) and the HDF5 training file, old and new names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_exec.files import atomic_path
from ptycho_exec.record import undone_if_interrupted
from ptycho_torch.config import DataConfig
from ptycho_torch.data.assemble import RawScan
from ptycho_torch.data.formats.paired import Diffraction, Product, finite, first_of, positive, to_meters
from ptycho_torch.data.formats.writing import (
    StackOut,
    require_geometry,
    scan_indexes,
    write_hdf5_arrays,
    write_npz_arrays,
)
from ptycho_torch.data.geometry import doubt
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage.archive import Archive, first_present, required

# Newest name first; the others are names of earlier releases.
_ENERGY = ("photon_energy_eV", "probe_energy_eV")
_OF_TRAINING = "part of a Ptychodus training file"
_TRAINING = ("bad_pixels", "probe", "object", "probe_position_x_px", "probe_position_y_px")
_SCALARS = {
    "pixel_size_m": "object_pixel_width_m",
    "photon_energy_eV": "photon_energy_eV",
    "detector_distance_m": "detector_object_distance_m",
}


def parts(archive: Archive) -> set[str]:
    """Return "patterns" for a diffraction file, "positions" for a product."""
    names = {"patterns": ("patterns",), "positions": ("probe_position_x_m", "probe_position_indexes")}
    return {part for part, of_part in names.items() if first_present(archive, *of_part)}


def is_training(archive: Archive) -> bool:
    """Return whether an archive is a Ptychodus training file."""
    return "probe_position_x_px" in archive


def read_product(archive: Archive, config: DataConfig) -> Product:
    """Collect positions, probe, object and geometry of a product.

    Raises:
        DataError: a dataset or attribute without which positions have no meaning is missing.
    """
    parts = {
        name: required(archive, name, "part of a Ptychodus product")
        for name in ("probe_position_indexes", "probe_position_y_m", "probe_position_x_m", "object", "probe")
    }
    canvas, layers = first_of(parts["object"], 2, "object layers")
    probe, opr = first_of(parts["probe"], 3, "probes (orthogonal relaxation)")
    geometry = {"photon_energy_eV": next(filter(None, (_number(archive, key) for key in _ENERGY)), None)}
    geometry["detector_distance_m"] = _number(archive, "detector_object_distance_m")
    where = f"{archive.path}, object"
    sizes = {key: archive.attribute("object", key) for key in ("pixel_height_m", "pixel_width_m")}
    pixel = [config.pixel_size_m or _pixel_size(value, key, where) for key, value in sizes.items()]
    middle = {key: archive.attribute("object", key) for key in ("center_y_m", "center_x_m")}
    center = [0.0 if v is None else finite(v, f"the object's {key}", where) for key, v in middle.items()]
    name = archive.attribute("", "name")
    far_field = archive.attribute("", "far_field")
    if far_field is not None and not bool(far_field) and config.propagation == "auto":
        raise DataError(
            "the product declares near-field propagation",
            where=str(archive.path),
            expected="a far-field scan: the model here is one Fourier transform from object to detector",
            fix="reconstruct it with a near-field program; --propagation far reads it as far field anyway",
        )
    return Product(
        path=archive.path,
        indexes=parts["probe_position_indexes"],
        positions_m=_positions(parts["probe_position_y_m"], parts["probe_position_x_m"], archive),
        pixel_size_m=(pixel[0], pixel[1]),
        center_m=(center[0], center[1]),
        probe=probe,
        object_guess=canvas,
        geometry=geometry | {"name": str(name) if name is not None else ""},
        warnings=layers + opr,
        unit_fix="the positions of a product are meters: if they have another unit, multiply "
        "probe_position_y_m and probe_position_x_m in the file by its size in meters, um by 1e-6; "
        "--pixel-size-m gives another size of an object pixel",
    )


def _pixel_size(value: Any, key: str, where: str) -> float:
    """Return the side of an object pixel in meters, or refuse one that no experiment has."""
    number = positive(value, f"the object's {key}", where)
    if text := doubt("pixel_size_m", number, "m", f"the object's {key}"):
        raise DataError(
            text,
            where=where,
            expected="meters, as the positions",
            fix="give the right one by --pixel-size-m METERS, or correct it in the file",
        )
    return number


def _positions(y: NDArray[Any], x: NDArray[Any], archive: Archive) -> NDArray[Any]:
    if any(c.ndim != 1 or c.dtype.kind not in "iuf" for c in (y, x)) or len(y) != len(x):
        raise DataError(
            f"the positions have shapes {y.shape} and {x.shape}",
            where=str(archive.path),
            expected="as many y as x, one number each",
            fix="save the product again with Ptychodus",
        )
    return np.stack([y, x], axis=1)


def _number(archive: Archive, key: str) -> float | None:
    value = archive.attribute("", key)
    if value is None:
        return None
    number = np.asarray(value)
    return float(number) if number.size == 1 and number.dtype.kind in "iuf" and number > 0 else None


def read_diffraction(archive: Archive) -> Diffraction:
    """Locate the patterns of a diffraction file, with their scan indexes and bad pixels."""
    size = archive.attribute("patterns", "detector_pixel_width_m")
    return Diffraction(
        archive=archive,
        stack_name="patterns",
        indexes=archive.array("indexes") if "indexes" in archive else None,
        bad_pixels=archive.array("bad_pixels") if "bad_pixels" in archive else None,
        detector_pixel_size_m=float(size) if size is not None and np.size(size) == 1 and size > 0 else None,
    )


def read_training(archive: Archive) -> RawScan:
    """Collect the parts of a training file; its positions are in pixels of the object already.

    Raises:
        DataError: a dataset is missing.
    """
    if "patterns" not in archive:
        required(archive, "patterns", _OF_TRAINING)
    parts = {name: required(archive, name, _OF_TRAINING) for name in _TRAINING}
    member = archive.member("patterns")
    scalars = {field: archive.array(name) for field, name in _SCALARS.items() if name in archive}
    return RawScan(
        path=archive.path,
        stack=member,
        read_stack=lambda axis: archive.stack("patterns", axis),
        positions_px=_positions(parts["probe_position_y_px"], parts["probe_position_x_px"], archive),
        domain="intensity",
        domain_why="the format stores counts",
        axes="first",
        center="half-pixel",
        probe=parts["probe"],
        object_guess=parts["object"],
        bad_pixels=parts["bad_pixels"],
        geometry={key: positive(value, key, str(archive.path)) for key, value in scalars.items()},
        unit_fix="the positions of a training file are object pixels: if they have another unit, divide "
        "probe_position_y_px and probe_position_x_px in the file by the side of an object pixel in it",
    )


def write_product(
    scan: ScanData,
    path: Path,
    *,
    object_array: NDArray[Any] | None = None,
    probe: NDArray[Any] | None = None,
    losses: NDArray[Any] | None = None,
    comments: str = "",
) -> Path:
    """Write positions, probe and object as a Ptychodus 1.7 product.

    Args:
        scan: gives positions, geometry, and whatever is not passed.
        path: target, written to a temporary file and renamed; NPZ when it ends in .npz, else HDF5.
        object_array: (H, W) on the scan's canvas, such as a reconstruction; none takes the scan's own
            object, or ones.
        probe: (P, N, N); none takes the scan's own.
        losses: (E,) loss per epoch.
        comments: any string.

    Raises:
        DataError: no probe, or geometry that Ptychodus needs is unknown, or the target cannot be written.
    """
    arrays, attributes = _product_parts(scan, object_array, probe, losses, comments)
    with atomic_path(path) as temporary:
        if path.suffix == ".npz":
            write_npz_arrays(temporary, arrays | {key.replace("/", "_"): v for key, v in attributes.items()})
        else:
            with h5py.File(temporary, "w") as file:
                write_hdf5_arrays(file, arrays)
                for key, value in attributes.items():
                    owner, _, name = key.rpartition("/")
                    file[owner or "/"].attrs[name] = value
    return path


def _product_parts(
    scan: ScanData,
    object_array: NDArray[Any] | None,
    probe: NDArray[Any] | None,
    losses: NDArray[Any] | None,
    comments: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the product's arrays, and its attributes by name, behind that of the array they belong to."""
    energy, distance, pixel = require_geometry(
        scan, "photon_energy_eV", "detector_distance_m", "pixel_size_m"
    )
    wave = scan.probe if probe is None else probe
    if wave is None:
        raise DataError("the scan has no probe", expected="a probe", fix="pass the probe to write")
    guess = scan.object_guess if object_array is None else object_array
    canvas = np.ones(scan.canvas_shape, dtype=np.complex64) if guess is None else guess
    positions = to_meters(scan.positions_px, pixel, scan.object_center_m, scan.canvas_shape)
    values = np.zeros(0) if losses is None else np.asarray(losses, dtype=np.float64)
    arrays = {
        "probe_position_indexes": scan_indexes(scan),
        "probe_position_x_m": positions[:, 1],
        "probe_position_y_m": positions[:, 0],
        "probe": np.asarray(wave, dtype=np.complex128)[None],
        "object": np.asarray(canvas, dtype=np.complex128)[None],
        "object_layer_spacing_m": np.zeros(0),
        "loss_epochs": np.arange(len(values)),
        "loss_values": values,
    }
    center_y, center_x = scan.object_center_m
    attributes = {
        "name": scan.name or "scan",
        "comments": comments,
        "detector_object_distance_m": distance,
        "focus_object_distance_m": 0.0,
        "photon_energy_eV": energy,
        "probe_photon_count": float(np.sum(np.abs(wave) ** 2)),
        "exposure_time_s": 0.0,
        "mass_attenuation_m2_per_kg": 0.0,
        "tomography_angle_deg": 0.0,
        "tilt_angle_deg": 0.0,
        "far_field": True,
        "object/center_x_m": center_x,
        "object/center_y_m": center_y,
    }
    for owner in ("probe", "object"):
        attributes |= {f"{owner}/pixel_{side}_m": pixel for side in ("width", "height")}
    return arrays, attributes


def write_diffraction(scan: ScanData, path: Path) -> Path:
    """Write the patterns as a Ptychodus 1.7 diffraction file; NPZ when it ends in .npz, else HDF5.

    Raises:
        DataError: the detector pixel size is unknown, or the target cannot be written.
    """
    (size,) = require_geometry(scan, "detector_pixel_size_m")
    arrays = {
        "indexes": scan_indexes(scan),
        "patterns": StackOut(scan, "intensity"),
        "bad_pixels": ~scan.good_pixels,
    }
    with atomic_path(path) as temporary:
        if path.suffix == ".npz":
            write_npz_arrays(temporary, arrays, compress=True)
        else:
            with h5py.File(temporary, "w") as file:
                write_hdf5_arrays(file, arrays, compression="lzf")
                file["patterns"].attrs["detector_pixel_width_m"] = size
                file["patterns"].attrs["detector_pixel_height_m"] = size
    return path


def write_ptychodus(scan: ScanData, directory: Path, *, suffix: str = ".h5") -> Path:
    """Write product and diffraction side by side under the names that Ptychodus expects.

    Raises:
        DataError: geometry is unknown, or the directory cannot be written.
    """
    with undone_if_interrupted(directory):
        directory.mkdir(parents=True, exist_ok=True)
        write_product(scan, directory / f"product{suffix}")
        write_diffraction(scan, directory / f"diffraction{suffix}")
    return directory


def write_training(scan: ScanData, path: Path) -> Path:
    """Write a scan as one Ptychodus training file (HDF5), bad pixels set to 0.

    Raises:
        DataError: geometry or probe is unknown, or the target cannot be written.
    """
    names = ("photon_energy_eV", "detector_distance_m", "pixel_size_m")
    energy, distance, pixel = require_geometry(scan, *names)
    if scan.probe is None:
        raise DataError("the scan has no probe", expected="a probe", fix="add probeGuess to the source file")
    canvas = np.ones(scan.canvas_shape) if scan.object_guess is None else scan.object_guess
    arrays = {
        "patterns": StackOut(scan, "intensity", zero_bad=True),
        "bad_pixels": ~scan.good_pixels,
        "probe": scan.probe.astype(np.complex128),
        "object": canvas.astype(np.complex128),
        "probe_position_x_px": scan.positions_px[:, 1],
        "probe_position_y_px": scan.positions_px[:, 0],
    }
    scalars = {"object_pixel_width_m": pixel, "object_pixel_height_m": pixel}
    scalars |= {"detector_object_distance_m": distance, "photon_energy_eV": energy}
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        write_hdf5_arrays(file, arrays, compression="lzf")
        write_hdf5_arrays(file, scalars)
    return path
