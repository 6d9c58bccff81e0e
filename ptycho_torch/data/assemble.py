"""From the parts of a file to a checked `ScanData`: one order of events for every format.

axes -> checks -> one pass over the patterns -> domain -> patch center -> canvas -> report.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data import checks, detect
from ptycho_torch.data.detect import PTYCHOPINN_CENTER, ForwardFit, PatchCenter
from ptycho_torch.data.judge import far_from_others, far_positions, masked_gaps
from ptycho_torch.data.pixels import find_gaps
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.scan_report import describe_scan
from ptycho_torch.data.storage.archive import Member
from ptycho_torch.data.storage.patterns import Domain, Patterns, select_rows

_SAMPLE_FRAMES = 24
_FEWEST_DIFFERENT = 4


@dataclass
class RawScan:
    """The parts of a scan in a file, before any check; None: the file has no such part.

    `stack` describes the patterns, `read_stack(scan_axis)` reads them, once their axis is known. `domain`,
    `axes` and `center` are what the file or its format declares; "auto" means that it does not. `center_px`
    is the index of `geometry["object_center_m"]` in the frame of `positions_px`.
    """

    path: Path | None
    stack: Member
    read_stack: Callable[[int], Patterns]
    positions_px: NDArray[Any]
    format: str = ""
    domain: str = "auto"
    domain_why: str = ""
    axes: str = "auto"
    center: str = "auto"
    default_center: tuple[PatchCenter, str] = PTYCHOPINN_CENTER
    probe: NDArray[Any] | None = None
    object_guess: NDArray[Any] | None = None
    bad_pixels: NDArray[Any] | None = None
    read_labels: Callable[[int], Patterns] | None = None
    pattern_rows: NDArray[np.int64] | None = None
    scan_index: NDArray[np.int64] | None = None
    geometry: dict[str, Any] = field(default_factory=dict)
    center_px: tuple[float, float] | None = None
    warnings: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def where(self, name: str) -> str:
        """Return the place of a part, for a message."""
        return f"{self.path}, {name}" if self.path else name


def assemble(raw: RawScan, config: DataConfig) -> ScanData:
    """Check the parts of a scan, decide what they mean, and put them together.

    Raises:
        DataError: for anything missing, damaged, ambiguous or physically impossible.
    """
    positions = checks.check_positions(raw.positions_px, raw.where("positions"))
    patterns, axis, axis_why = _read_patterns(raw, len(positions), config)
    N = int(patterns.shape[1])
    good = checks.check_bad_pixels(raw.bad_pixels, N, raw.where("bad_pixels"))
    probe = None if raw.probe is None else checks.check_probe(raw.probe, N, raw.where("probe"))
    canvas = None if raw.object_guess is None else checks.check_object(raw.object_guess, raw.where("object"))
    rows = np.unique(np.linspace(0, len(positions) - 1, _SAMPLE_FRAMES).astype(np.int64))
    stored = patterns[rows]
    gaps, held = find_gaps(stored, good)
    good &= ~gaps
    statistics = checks.scan_patterns(patterns, good, raw.where(raw.stack.name))
    sample = stored.astype(np.float64)
    sample[:, ~good] = 0.0

    def fit(domain: Domain, shift_px: float = 0.0) -> ForwardFit | None:
        if probe is None or canvas is None:
            return None
        amplitude = np.sqrt(sample) if domain == "intensity" else sample
        return detect.fit_forward(amplitude, good, probe, canvas, positions[rows] + shift_px - (N - 1) / 2)

    domain, domain_why = detect.find_domain(
        declared=(config.domain, "declared") if config.domain != "auto" else (raw.domain, raw.domain_why),
        dtype=raw.stack.dtype,
        has_bad_pixels=raw.bad_pixels is not None,
        sample=sample[:, good],
        fit=fit,
        where=raw.where(raw.stack.name),
    )
    half, pixel = fit(domain), fit(domain, -0.5)
    declared = config.patch_center if config.patch_center != "auto" else raw.center
    center, center_why = detect.find_patch_center(declared, raw.default_center, half, pixel)
    shift = -0.5 if center == "pixel" else 0.0
    object_guess = canvas if config.canvas == "auto" else None
    _check_span(raw, positions, N)
    canvas_shape, moved = _place_on_canvas(raw, positions + shift, N, object_guess)
    scan = ScanData(
        patterns=patterns,
        domain=domain,
        positions_px=positions + shift + moved,
        probe=probe,
        object_guess=object_guess,
        good_pixels=good,
        canvas_shape=canvas_shape,
        position_shift_px=(shift + float(moved[0]), shift + float(moved[1])),
        labels=None if raw.read_labels is None else _read_labels(raw, raw.read_labels(axis), patterns),
        scan_index=raw.scan_index,
        source=raw.path,
        **_moved_center(raw, canvas_shape, moved),
    )
    decisions = {
        "format": raw.format,
        "domain": {"value": domain, "why": domain_why},
        "pattern_axes": {"value": "first" if axis == 0 else "last", "why": axis_why},
        "patch_center": {"value": center, "why": center_why},
    }
    forward_fit = half if center == "half-pixel" else pixel
    masked = [masked_gaps(int(gaps.sum()), held)] if held else []
    return describe_scan(scan, statistics, sample, decisions, forward_fit, raw.warnings, masked, raw.notes)


def scan_from_arrays(
    patterns: Patterns,
    positions_px: NDArray[Any],
    *,
    probe: NDArray[Any] | None = None,
    object_guess: NDArray[Any] | None = None,
    bad_pixels: NDArray[Any] | None = None,
    labels: NDArray[Any] | None = None,
    config: DataConfig | None = None,
    domain: str = "auto",
    center: str = "half-pixel",
    format: str = "arrays",
    geometry: dict[str, Any] | None = None,
) -> ScanData:
    """Check arrays that are in memory already and put them together as a scan.

    Args:
        patterns: (M, N, N) as measured, scan axis first.
        positions_px: (M, 2) [y, x] in object pixels.
        probe: (N, N) or (P, N, N).
        object_guess: (H, W); none derives the canvas from the positions.
        bad_pixels: (N, N), True where a pixel is bad.
        labels: (M, N, N) true patches.
        config: declarations that win over `domain` and `center`.
        domain: amplitude, intensity, or auto to detect it.
        center: which patch index a position means, half-pixel or pixel.
        format: where the arrays come from, for the report.
        geometry: further fields of `ScanData`, such as `pixel_size_m`.

    Raises:
        DataError: as for a file.
    """
    points = np.asarray(positions_px)
    if points.ndim != 2 or points.shape[1] != 2:
        raise DataError(
            f"the positions have shape {points.shape}", where="positions", expected="(M, 2), [y, x]",
            fix="stack y and x of each pattern as a row",
        )  # fmt: skip
    raw = RawScan(
        path=None,
        format=format,
        stack=Member("patterns", tuple(patterns.shape), patterns.dtype),
        read_stack=lambda _axis: patterns,
        positions_px=points,
        domain=domain,
        axes="first",
        center=center,
        probe=probe,
        object_guess=object_guess,
        bad_pixels=bad_pixels,
        read_labels=None if labels is None else lambda _axis: labels,
        geometry=geometry or {},
    )
    return assemble(raw, config or DataConfig())


def _read_patterns(raw: RawScan, count: int, config: DataConfig) -> tuple[Patterns, int, str]:
    """Return the patterns of the positions, the scan axis in the file, and the reason for it."""
    where, shape = raw.where(raw.stack.name), raw.stack.shape
    checks.check_stack(shape, raw.stack.dtype, count, where)
    declared = config.pattern_axes if config.pattern_axes != "auto" else raw.axes
    # A pairing by index may use only some of the patterns, so positions count those.
    expected = count if raw.pattern_rows is None else shape[0]
    axis, why = detect.find_scan_axis(shape, expected, declared, where)
    if config.N is not None and shape[1] != config.N:
        raise DataError(
            f"the patterns are {shape[1]} x {shape[1]}, N = {config.N} was asked",
            where=where,
            expected=f"patterns of {config.N} x {config.N}",
            fix="leave N out to take what the file has, or crop the patterns",
        )
    patterns = raw.read_stack(axis)
    return patterns if raw.pattern_rows is None else select_rows(patterns, raw.pattern_rows), axis, why


def _place_on_canvas(
    raw: RawScan, centered: NDArray[np.float64], N: int, canvas: NDArray[np.complex64] | None
) -> tuple[tuple[int, int], NDArray[np.float64]]:
    """Return (H, W) and the whole-pixel [y, x] shift that brings the positions onto the canvas."""
    if canvas is None:
        return fit_canvas(centered, N)
    shape = (int(canvas.shape[0]), int(canvas.shape[1]))
    low, high = centered.min(axis=0), centered.max(axis=0)
    outside = np.any((centered < -0.5) | (centered > np.array(shape) - 0.5), axis=1)
    if outside.any():
        raise DataError(
            f"{int(outside.sum())} of {len(centered)} positions lie outside the object of {shape}; "
            f"y from {low[0]:.1f} to {high[0]:.1f}, x from {low[1]:.1f} to {high[1]:.1f}",
            where=raw.where("positions"),
            expected="positions in pixels of the object's grid",
            fix='check units and order of the coordinates, or set canvas = "positions" to leave the '
            "file's object out",
        )
    return shape, np.zeros(2)


def _moved_center(raw: RawScan, canvas_shape: tuple[int, int], moved: NDArray[np.float64]) -> dict[str, Any]:
    """Return the geometry with the object's center in meters brought to the middle of a new canvas."""
    pixel = raw.geometry.get("pixel_size_m")
    if raw.center_px is None or not pixel:
        return raw.geometry
    middle = (np.array(canvas_shape) - 1) / 2
    offset = (middle - np.array(raw.center_px) - moved) * pixel
    center = np.array(raw.geometry.get("object_center_m", (0.0, 0.0))) + offset
    return {**raw.geometry, "object_center_m": (float(center[0]), float(center[1]))}


WORK_BYTES = 40
"""Memory that a reconstruction takes for each pixel of the canvas: object, sums, weights, gradients."""


def memory_bytes() -> float:
    """Return the memory of this machine, or what the control group allows, whichever is less."""
    from ptycho_exec.machine.facts import cgroup_memory_mb

    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroup_memory_mb()
    return float(physical if limit is None else min(physical, limit * 2**20))


_UNITS = {"meters": 1.0, "millimeters": 1e-3, "micrometers": 1e-6, "nanometers": 1e-9}


def _check_span(raw: RawScan, positions: NDArray[np.float64], N: int) -> None:
    """Refuse many different positions that all lie within one pixel.

    Raises:
        DataError: with what they would be in other units, where the size of a pixel is known.
    """
    span = float(np.ptp(positions, axis=0).max())
    if span >= 1 or len(np.unique(positions, axis=0)) < _FEWEST_DIFFERENT:
        return
    pixel = raw.geometry.get("pixel_size_m")
    spans = {unit: span * size / pixel for unit, size in _UNITS.items()} if pixel else {}
    likely = [f"in {unit} they span {px:.0f}" for unit, px in spans.items() if N / 8 < px < 65536]
    raise DataError(
        f"all {len(positions)} positions lie within {span:.3g} pixels"
        + "".join(f"; {text}" for text in likely),
        where=raw.where("positions"),
        expected="positions in object pixels, spread over more than one",
        fix="divide the positions by the side of an object pixel in their own unit",
    )


def fit_canvas(centered: NDArray[np.float64], N: int) -> tuple[tuple[int, int], NDArray[np.float64]]:
    """Return the smallest canvas (H, W) that holds every patch with a pixel to spare, and the shift to it.

    The shift is whole pixels, so the sub-pixel part of every position stays as it is.
    """
    half = (N - 1) / 2
    shift = np.ceil(half - centered.min(axis=0)) + 1
    extent = np.ceil(centered.max(axis=0) + shift + half) + 2
    needed, memory = WORK_BYTES * float(extent.prod()), memory_bytes()
    if extent.max() > 65536 or needed > memory:
        far = far_from_others(centered, N)
        raise DataError(
            f"the positions span {extent.max():.0f} pixels; work on such an object takes "
            f"{needed / 2**30:.0f} GiB, and there are {memory / 2**30:.0f}"
            + (f"; {far_positions(far, centered)}" if len(far) else ""),
            where="positions",
            expected="positions in object pixels, with overlapping patches",
            fix="remove the positions that are named, and their patterns"
            if len(far)
            else "check the unit of the positions: meters, micrometers and pixels are easily mixed up",
        )
    return (int(extent[0]), int(extent[1])), np.asarray(shift, dtype=np.float64)


def _read_labels(raw: RawScan, labels: Patterns, patterns: Patterns) -> Patterns:
    if labels.shape != patterns.shape:
        raise DataError(
            f"the labels have shape {labels.shape}, the patterns {patterns.shape}",
            where=raw.where("labels"),
            expected="one true patch per pattern, of the same size",
            fix="leave the labels out unless the training is supervised",
        )
    checks.check_numeric(labels.dtype, "iufc", "the labels", raw.where("labels"))
    return labels
