"""A scan in two parts, patterns and product (positions, probe, object), matched by scan index.

Ptychodus and CXI files give positions in meters; a pixel map brings them onto the object's grid:
`px = (position - center) / pixel + (size - 1) / 2`. Programs that counted from size / 2 on both the object
and the patch mean the same patch origins, so this map holds for files of every version.

Shape legend: M patterns, K positions, N x N pixels, P probe modes, H x W object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.data import checks
from ptycho_torch.data.assemble import RawScan
from ptycho_torch.data.storage.archive import Archive


@dataclass
class Product:
    """What a product holds, in meters; y before x everywhere."""

    path: Path
    indexes: NDArray[Any]
    positions_m: NDArray[Any]
    pixel_size_m: tuple[float, float]
    center_m: tuple[float, float] = (0.0, 0.0)
    probe: NDArray[Any] | None = None
    object_guess: NDArray[Any] | None = None
    geometry: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    may_be_near_field: bool = False
    unit_fix: str = ""


@dataclass
class Diffraction:
    """Where the patterns are, with their scan indexes; M of them, not read yet."""

    archive: Archive
    stack_name: str
    indexes: NDArray[Any] | None = None
    bad_pixels: NDArray[Any] | None = None
    detector_pixel_size_m: float | None = None


def pair(product: Product, diffraction: Diffraction) -> RawScan:
    """Match positions to patterns by index value and map them to pixels.

    The patterns' indexes lead: repeated positions are averaged, positions missing between others are
    interpolated, patterns beyond the first or last position are left out; each is counted in a warning.

    Raises:
        DataError: no index in common, or arrays whose lengths differ.
    """
    archive, name = diffraction.archive, diffraction.stack_name
    member = archive.member(name)
    count = member.shape[0] if member.shape else 0
    indexes = np.arange(count) if diffraction.indexes is None else diffraction.indexes
    where = f"{archive.path} and {product.path}"
    checks.check_equal_lengths({"patterns": count, "indexes": len(indexes)}, str(archive.path))
    lengths = {"position indexes": len(product.indexes), "positions": len(product.positions_m)}
    checks.check_equal_lengths(lengths, str(product.path))
    positions_m = checks.check_positions(product.positions_m, f"{product.path}, positions", some_missing=True)
    rows, matched, warnings = match_indexes(indexes, product.indexes, positions_m, where)
    shape = (1, 1) if product.object_guess is None else product.object_guess.shape[-2:]
    pixels = to_pixels(matched, product.pixel_size_m, product.center_m, (int(shape[0]), int(shape[1])))
    height, width = product.pixel_size_m
    if abs(height - width) > 1e-3 * max(height, width):
        warnings = [f"object pixels are not square: {height:.4g} m high, {width:.4g} m wide", *warnings]
    geometry = {**product.geometry, "pixel_size_m": (height + width) / 2, "object_center_m": product.center_m}
    if diffraction.detector_pixel_size_m is not None:
        geometry["detector_pixel_size_m"] = diffraction.detector_pixel_size_m
    return RawScan(
        path=archive.path,
        stack=member,
        read_stack=lambda axis: archive.stack(name, axis),
        positions_px=pixels,
        domain="intensity",
        domain_why="the format stores counts",
        axes="first",
        center="half-pixel",
        probe=product.probe,
        object_guess=product.object_guess,
        bad_pixels=diffraction.bad_pixels,
        pattern_rows=None if len(rows) == count else rows,
        scan_index=np.asarray(indexes, dtype=np.int64)[rows],
        geometry=geometry,
        center_px=((shape[0] - 1) / 2, (shape[1] - 1) / 2),
        warnings=product.warnings + warnings,
        may_be_near_field=product.may_be_near_field,
        product=product.path,
        unit_fix=product.unit_fix,
    )


def match_indexes(
    pattern_indexes: NDArray[Any],
    position_indexes: NDArray[Any],
    positions: NDArray[np.float64],
    where: str,
) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
    """Return (rows of the patterns, (len(rows), 2) positions, warnings), as Ptychodus pairs them."""
    for what, values in (("pattern", pattern_indexes), ("position", position_indexes)):
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise DataError(
                f"the {what} indexes have shape {values.shape} and dtype {values.dtype}", where=where,
                expected="one integer per entry", fix="export the scan again",
            )  # fmt: skip
    anchors, inverse = np.unique(position_indexes, return_inverse=True)
    weight = np.bincount(inverse, minlength=len(anchors))
    mean = np.stack([np.bincount(inverse, weights=positions[:, i]) / weight for i in range(2)], axis=1)
    # A negative index marks a slot of the pattern buffer that was never filled.
    usable = (pattern_indexes >= 0) & (pattern_indexes >= anchors[0]) & (pattern_indexes <= anchors[-1])
    rows = np.flatnonzero(usable).astype(np.int64)
    chosen = pattern_indexes[rows]
    if len(rows) == 0:
        raise DataError(
            f"no pattern has a position: patterns are numbered {_span(pattern_indexes)}, positions "
            f"{_span(position_indexes)}",
            where=where, expected="the two files of one scan", fix="check that the files belong together",
        )  # fmt: skip
    matched = np.stack([np.interp(chosen, anchors, mean[:, i]) for i in range(2)], axis=1)
    counts = {
        "repeated position indexes were averaged": len(position_indexes) - len(anchors),
        "positions were missing and were interpolated": int((~np.isin(chosen, anchors)).sum()),
        "patterns have no position and were left out": len(pattern_indexes) - len(rows),
        "positions have no pattern and were left out": int((~np.isin(anchors, pattern_indexes)).sum()),
    }
    return rows, matched, [f"{count} {text}" for text, count in counts.items() if count]


def _span(values: NDArray[Any]) -> str:
    return f"{values.min()} to {values.max()}" if len(values) else "not at all"


def to_pixels(
    positions_m: NDArray[np.float64],
    pixel_size_m: tuple[float, float],
    center_m: tuple[float, float],
    shape: tuple[int, int],
) -> NDArray[np.float64]:
    """Return (M, 2) canvas indices of positions in meters."""
    middle = (np.array(shape) - 1) / 2
    # An absurd pixel size gives infinite positions, which are refused where positions are checked.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray((positions_m - np.array(center_m)) / np.array(pixel_size_m) + middle)


def to_meters(
    positions_px: NDArray[np.float64],
    pixel_size_m: float,
    center_m: tuple[float, float],
    shape: tuple[int, int],
) -> NDArray[np.float64]:
    """Return (M, 2) positions in meters of canvas indices; the inverse of `to_pixels`."""
    middle = (np.array(shape) - 1) / 2
    return np.asarray((positions_px - middle) * pixel_size_m + np.array(center_m))


def finite(value: Any, what: str, where: str, *, above: float = -np.inf) -> float:
    """Return a finite number, or refuse."""
    number = np.asarray(value)
    if number.size != 1 or number.dtype.kind not in "iuf" or not above < number.reshape(()) < np.inf:
        expected = "a positive number" if above == 0 else "one finite number"
        raise DataError(f"{what} is {value!r}", where=where, expected=expected, fix="export the scan again")
    return float(number.reshape(()))


def positive(value: Any, what: str, where: str) -> float:
    """Return a finite positive number, or refuse."""
    return finite(value, what, where, above=0.0)


def first_of(array: NDArray[Any], ndim: int, what: str) -> tuple[NDArray[Any], list[str]]:
    """Return the array without its leading axes, first entry of each, and a warning for what is left out."""
    extra = array.shape[: max(0, array.ndim - ndim)]
    count = int(np.prod(extra)) if extra else 1
    if 0 in array.shape:
        raise DataError(
            f"the {what} is empty, shape {array.shape}", expected="numbers", fix="export it again"
        )
    first = array[(0,) * len(extra)]
    return first, [] if count == 1 else [f"the file has {count} {what}; the first is used"]
