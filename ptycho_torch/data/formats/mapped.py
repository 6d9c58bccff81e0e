"""Scans whose arrays have names of their own, which `DataConfig.map` gives; HDF5 (MATLAB v7.3, too) or NPZ.

MATLAB stores arrays with their axes in reverse, so that patterns, probe, object and mask are transposed here.

Shape legend: M patterns, ky x kx pixels, ny x nx points of a raster.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data import checks
from ptycho_torch.data.assemble import RawScan
from ptycho_torch.data.detect import PTYCHODUS_CENTER
from ptycho_torch.data.formats import npz
from ptycho_torch.data.formats.contents import contents, likely_map, map_option, not_there
from ptycho_torch.data.formats.paired import first_of
from ptycho_torch.data.formats.units import position_unit_m, units_of_columns
from ptycho_torch.data.sampling import raster
from ptycho_torch.data.storage.archive import Archive, Member
from ptycho_torch.data.storage.array_file import file_of, image, is_matlab, read_array
from ptycho_torch.data.storage.patterns import Patterns, blocks, fits_in_memory, transposed
from ptycho_torch.data.storage.scratch import unpack

PLAIN = {
    "patterns": npz.STACK_NAMES,
    "positions_y": ("ycoords",),
    "positions_x": ("xcoords",),
    "probe": ("probeGuess",),
    "object": ("objectGuess",),
    "mask": ("bad_pixels",),
}
"""Names that are known without a map."""


def is_asked(config: DataConfig) -> bool:
    """Return whether the config says where the patterns or positions of a file are."""
    return config.scan_step is not None or not {"patterns", "positions", "positions_y"}.isdisjoint(config.map)


def name_of(archive: Archive, part: str, config: DataConfig) -> str | None:
    """Return the name of a part: that of the map, else the plain one that the file has."""
    return config.map.get(part) or next((name for name in PLAIN.get(part, ()) if name in archive), None)


def read_mapped(archive: Archive, config: DataConfig) -> RawScan:
    """Collect patterns and positions by the names that the config gives, the rest by plain names.

    What the map names of that rest, `with_images` adds.

    Raises:
        DataError: a name that the file does not have, no positions, or a unit that needs the size of a pixel.
    """
    stacks = _stacks(archive, config)
    turned = is_matlab(archive, stacks[0].name)
    shapes = {stack.shape[1:] for stack in stacks}
    if len(shapes) > 1 or (len(stacks) > 1 and len(stacks[0].shape) != 3):
        raise DataError(
            f"the stacks of {config.map.get('patterns')} have patterns of different shapes: {sorted(shapes)}",
            where=str(archive.path),
            expected="(M, ky, kx) in each",
            fix="name one of them in map.patterns",
        )
    shape = (sum(stack.shape[0] for stack in stacks), *stacks[0].shape[1:])
    geometry = npz.geometry_of(archive)
    if config.pixel_size_m is not None:
        geometry["pixel_size_m"] = config.pixel_size_m
    domain = npz.declaration(archive, "domain")
    # On which canvas a raster lies, no object knows that is not named for it.
    plain = _FIELDS.keys() - config.map.keys() - ({"object"} if config.scan_step is not None else set())
    raw = RawScan(
        path=archive.path,
        stack=Member(stacks[0].name, shape, stacks[0].dtype),
        read_stack=lambda axis: _read_stacks(archive, stacks, axis, turned),
        positions_px=_positions(archive, shape, turned, geometry.get("pixel_size_m"), config),
        domain=domain,
        domain_why="declared in the file" if domain != "auto" else "",
        axes="auto",
        center=npz.declaration(archive, "patch_center"),
        default_center=PTYCHODUS_CENTER if "patterns" in config.map else npz.default_center(archive),
        geometry=geometry,
    )
    return _with_images(raw, archive, config, plain)


def with_images(raw: RawScan, archive: Archive, config: DataConfig) -> RawScan:
    """Return the parts of a scan with the probe, object and mask that the map names.

    Raises:
        DataError: the map names what is not there, or what may hold parts of complex numbers.
    """
    return _with_images(raw, archive, config, _FIELDS.keys() & config.map.keys())


_FIELDS = {"probe": "probe", "object": "object_guess", "mask": "bad_pixels"}


def _with_images(raw: RawScan, archive: Archive, config: DataConfig, parts: Set[str]) -> RawScan:
    found: dict[str, Any] = {}
    warnings = list(raw.warnings)
    for part in sorted(parts):
        if (name := name_of(archive, part, config)) is not None:
            found[_FIELDS[part]], several = _image(archive, name, part)
            warnings += several
    return replace(raw, warnings=warnings, **found)


def _image(archive: Archive, name: str, part: str) -> tuple[NDArray[Any], list[str]]:
    """Return probe (P, N, N), object (H, W) or mask, and what of it is left out."""
    array = image(archive, name) if name in archive else _elsewhere(archive, name, part)
    if part == "mask":
        return array, []
    if part == "probe":
        return first_of(array, 3, "probes (orthogonal relaxation)")
    where = f"{archive.path}, {name}"
    checks.check_two_parts(array, "object", "layers", where)
    if array.ndim == 3 and array.shape[-1] < min(array.shape[:2]):
        raise DataError(
            f"the object has shape {array.shape}",
            where=where,
            expected="(H, W), or (L, H, W) with L layers, of which the first is taken",
            fix="if its layers are on the last axis, store numpy.moveaxis(a, -1, 0)",
        )
    return first_of(array, 2, "object layers")


def _elsewhere(archive: Archive, name: str, part: str) -> NDArray[Any]:
    """Return an array of the other file that a name gives."""
    if file_of(name, archive.path) is None:
        raise not_there(archive, part, name)
    return read_array(name, part, beside=archive.path)


def _coordinates(archive: Archive, name: str, part: str, turned: bool) -> NDArray[Any]:
    """Return positions with their axes in the order of those of the patterns."""
    if name in archive:
        return archive.array(name)
    array = _elsewhere(archive, name, part)
    return array.T if turned else array


def _stacks(archive: Archive, config: DataConfig) -> list[Member]:
    """Return the stack of patterns, or those of a group."""
    name = name_of(archive, "patterns", config)
    if name is None:
        raise not_there(archive, "patterns", "")
    if name in archive:
        member = archive.member(name)
        return [Member(name, member.shape, member.dtype)]
    below = [member for member in archive.members(name) if len(member.shape) >= 3]
    if not below:
        raise not_there(archive, "patterns", name)
    return below


def _read_stacks(archive: Archive, stacks: Sequence[Member], axis: int, turned: bool) -> Patterns:
    """Return the patterns of all stacks, one after the other, scan axis first."""
    parts = [npz.read_rows(archive, stack.name, axis) for stack in stacks]
    if turned:
        parts = [transposed(part) for part in parts]
    if len(parts) == 1:
        return parts[0]
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    if fits_in_memory(sum(part.nbytes for part in parts)):
        return np.concatenate([part[:] for part in parts])
    starts = np.cumsum([0, *(len(part) for part in parts)])
    slabs = (
        (int(first) + start, block)
        for first, part in zip(starts, parts, strict=False)
        for start, block in blocks(part)
    )
    return unpack(slabs, shape, parts[0].dtype, 0, False, archive.path)


def _positions(
    archive: Archive, shape: tuple[int, ...], turned: bool, pixel_size_m: float | None, config: DataConfig
) -> NDArray[np.float64]:
    """Return (M, 2) [y, x] in pixels."""
    if config.scan_step is not None:
        points, units = _raster(archive, shape, turned, config), [position_unit_m(None, "", config)] * 2
    elif "positions" in config.map:
        name = config.map["positions"]
        points = _in_rows(_coordinates(archive, name, "positions", turned), f"{archive.path}, {name}")
        points = points[:, ::-1] if config.positions_order == "xy" else points
        units = [position_unit_m(archive, name, config)] * 2
    else:
        y, x = (name_of(archive, part, config) for part in ("positions_y", "positions_x"))
        if y is None or x is None:
            raise _no_positions(archive, shape, config)
        columns = {name: _coordinates(archive, name, "positions", turned).ravel() for name in (y, x)}
        checks.check_equal_lengths({name: len(column) for name, column in columns.items()}, str(archive.path))
        for name, column in columns.items():
            checks.check_numeric(column.dtype, "iuf", f"the values of {name}", str(archive.path))
        points = np.stack([columns[y], columns[x]], axis=1).astype(np.float64)
        units = units_of_columns(archive, (y, x), config)
    if None in units:
        return points
    if pixel_size_m is None:
        raise DataError(
            "the positions are lengths, and the size of an object pixel is not known",
            where=str(archive.path),
            expected="positions in object pixels, or the side of such a pixel",
            fix="give --pixel-size-m: wavelength * distance / (pixels of a side * detector pixel), in meters",
        )
    return points * (np.array(units, dtype=np.float64) / pixel_size_m)


def _raster(
    archive: Archive, shape: tuple[int, ...], turned: bool, config: DataConfig
) -> NDArray[np.float64]:
    of_scan = shape[2:] if config.pattern_axes == "last" else shape[:-2]
    axes = [length for length in of_scan if length > 1] if len(shape) > 3 else []
    rows = config.scan_shape or (tuple(reversed(axes)) if turned else tuple(axes))
    if len(rows) != 2:
        raise DataError(
            f"the raster of scan_step has no shape: the patterns have shape {shape}",
            where=str(archive.path),
            expected="patterns of shape (ny, nx, ky, kx), or the number of rows and columns",
            fix="give --scan-shape ROWS,COLUMNS",
        )
    step = config.scan_step if isinstance(config.scan_step, tuple) else (config.scan_step or 0.0,) * 2
    points = raster((int(rows[0]), int(rows[1])), step, config.scan_rotation_deg)
    if turned and config.scan_shape is None:  # the first axis that MATLAB stores is the last one of the array
        points = points.reshape(*rows, 2).swapaxes(0, 1).reshape(-1, 2)
    return points


def _in_rows(array: NDArray[Any], where: str) -> NDArray[np.float64]:
    """Return (M, 2) of (M, 2), (2, M), (ny, nx, 2), (2, ny, nx), with axes of length 1 anywhere."""
    checks.check_numeric(array.dtype, "iuf", "the positions", where)
    slim = array.squeeze()
    if slim.ndim >= 2 and slim.shape[-1] == 2:
        return slim.reshape(-1, 2).astype(np.float64)
    if slim.ndim >= 2 and slim.shape[0] == 2:
        return slim.reshape(2, -1).T.astype(np.float64)
    raise DataError(
        f"the positions have shape {array.shape}",
        where=where,
        expected="(M, 2) or (2, M): two coordinates for each pattern",
        fix="name an array of two coordinates; or one array for each, as positions_y and positions_x",
    )


def _no_positions(archive: Archive, shape: tuple[int, ...], config: DataConfig) -> DataError:
    likely = likely_map(archive)
    given = " " + map_option("patterns", config.map["patterns"]) if "patterns" in config.map else ""
    step = f"{given} --scan-step STEP" + (" --scan-shape ROWS,COLUMNS" if len(shape) == 3 else "")
    return DataError(
        "the positions are missing",
        where=str(archive.path),
        expected="positions in the file or in another one, or the step of a raster; the file has "
        + contents(archive),
        fix=f"say what is what: {likely}"
        if "positions" in likely and "=FILE" not in likely
        else f"name them: --map positions=FILE; or make a raster:{step} --positions-unit px, nm ...",
    )
