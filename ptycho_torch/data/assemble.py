"""From the parts of a file to a checked `ScanData`: one order of events for every format.

axes -> checks -> domain -> preprocessing -> one pass over the patterns -> patch center -> canvas -> report.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError, Finding
from ptycho_torch.config import DataConfig
from ptycho_torch.data import checks, detect
from ptycho_torch.data.detect import PTYCHOPINN_CENTER, ForwardFit, PatchCenter
from ptycho_torch.data.dropping import read_drop, rows_kept
from ptycho_torch.data.geometry import doubts
from ptycho_torch.data.judge import (
    far_from_others,
    far_positions,
    likely_unit,
    masked_gaps,
    neighbor_distance,
)
from ptycho_torch.data.near_field import refuse_near_field
from ptycho_torch.data.other_files import other_files
from ptycho_torch.data.pixels import find_gaps, refuse_inverted
from ptycho_torch.data.preprocess import Prepared, changed_options, prepare, side_after, why_counts
from ptycho_torch.data.probe_file import WORDS, Target, probe_from_file
from ptycho_torch.data.sampling import move_positions, orientation_matrix, resample_object, resample_wave
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.scan_report import describe_scan
from ptycho_torch.data.storage.archive import Member
from ptycho_torch.data.storage.patterns import Domain, Patterns, in_one_row, select_rows

_CUT = 0.02
_FEWEST_DIFFERENT = 4


@dataclass
class RawScan:
    """The parts of a scan in a file, before any check; None: the file has no such part.

    `stack` describes the patterns, `read_stack(scan_axis)` reads them, once their axis is known. `domain`,
    `axes` and `center` are what the file or its format declares; "auto" means that it does not. `unit_fix` is
    what to do about positions in a wrong unit, where a format has rules of its own. `center_px`
    is the index of `geometry["object_center_m"]` in the frame of `positions_px`. `may_be_near_field`: the
    format says nothing about it. `product` is the file of positions, probe and object where it is another.
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
    may_be_near_field: bool = False
    product: Path | None = None
    unit_fix: str = ""
    warnings: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def where(self, name: str) -> str:
        """Return the place of a part, for a message."""
        path = self.product if self.product and name in ("positions", "probe", "object") else self.path
        return f"{path}, {name}" if path else name


def assemble(raw: RawScan, config: DataConfig) -> ScanData:
    """Check the parts of a scan, decide what they mean, and put them together.

    Raises:
        DataError: for anything missing, damaged, ambiguous or physically impossible.
    """
    positions, unplaced = _positions(raw, config)
    if config.pixel_size_m is not None:
        raw = replace(raw, geometry={**raw.geometry, "pixel_size_m": config.pixel_size_m})
    doubtful = list(doubts(raw.geometry))
    stored, axis, axis_why = read_patterns(raw, len(positions), config)
    where, shape = raw.where(raw.stack.name), (int(stored.shape[1]), int(stored.shape[2]))
    canvas = None if raw.object_guess is None else checks.check_object(raw.object_guess, raw.where("object"))
    rows = checks.sample_rows(len(positions))
    frames = stored[rows]
    good, masked = _good_pixels(raw, frames, config)
    sample = _masked(frames, good)
    N, side, _ = side_after(shape, config, where)
    _check_size(N, config, where)
    probe, probe_why = _own_probe(raw, config, side, N)

    def fit(domain: Domain, shift_px: float = 0.0) -> ForwardFit | None:
        if probe is None or canvas is None or sample.shape[1:] != probe.shape[1:]:
            return None
        n = probe.shape[-1]
        amplitude = np.sqrt(np.maximum(sample, 0.0)) if domain == "intensity" else sample
        return detect.fit_forward(amplitude, good, probe, canvas, positions[rows] + shift_px - (n - 1) / 2)

    domain, domain_why = detect.find_domain(
        declared=(config.domain, "declared") if config.domain != "auto" else (raw.domain, raw.domain_why),
        dtype=raw.stack.dtype,
        has_bad_pixels=raw.bad_pixels is not None,
        sample=sample[:, good],
        fit=fit,
        where=where,
        counts_because=why_counts(config),
    )
    left_out: list[Finding] = []
    if config.drop is not None:
        kept, gone = rows_kept(config.drop, positions, stored, good, domain, where, unplaced)
        raw, positions, stored = _only(raw, kept), positions[kept], select_rows(stored, kept)
        rows = checks.sample_rows(len(positions))
        sample = _masked(stored[rows], good)
        left_out = [_dropped(gone)]
    ready = prepare(stored, good, domain, config, raw.path, where, probe)
    patterns, good = ready.patterns, ready.good
    statistics = checks.scan_patterns(patterns, good, where, domain)
    if raw.may_be_near_field and config.propagation == "auto":
        fit_canvas(positions / ready.ratio, N, raw.unit_fix)  # positions in another unit tell nothing of it
        refuse_near_field(patterns, positions / ready.ratio, good, where)
    if patterns is not stored:
        sample = _masked(patterns[rows], good)
    raw, positions, canvas, notes = _follow(raw, positions, canvas, ready, N, config)
    probe, probe_why, cut = _follow_with_probe(raw, config, probe, probe_why, ready, side, N)
    step = -0.5 / ready.ratio
    half, pixel = fit(domain), fit(domain, step)
    declared = config.patch_center if config.patch_center != "auto" else raw.center
    center, center_why = detect.find_patch_center(declared, raw.default_center, half, pixel)
    shift = step if center == "pixel" else 0.0
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
        labels=None if raw.read_labels is None else _read_labels(raw, raw.read_labels(axis), stored),
        scan_index=raw.scan_index,
        source=raw.path,
        **_moved_center(raw, canvas_shape, moved),
    )
    decisions = {
        "format": raw.format,
        "domain": {"value": domain, "why": domain_why},
        "pattern_axes": {"value": "first" if axis == 0 else "last", "why": axis_why},
        "patch_center": {"value": center, "why": center_why},
        "probe": probe_why,
        **({"preprocessing": chosen} if (chosen := _what_was_done(ready, config)) else {}),
        **({"other_files": others} if (others := other_files(config, raw.path)) else {}),
    }
    forward_fit = half if center == "half-pixel" else pixel
    return describe_scan(
        scan,
        statistics,
        sample,
        decisions,
        forward_fit,
        raw.warnings,
        [*doubtful, *masked, *left_out, *notes, *cut],
        raw.notes,
    )


def _good_pixels(
    raw: RawScan, frames: NDArray[Any], config: DataConfig
) -> tuple[NDArray[np.bool_], list[Finding]]:
    """Return the (h, w) pixels that neither the scan's own mask nor a gap leaves out, and what to say of it.

    frames: (K, h, w) some patterns as stored.
    """
    where, found = raw.where("bad_pixels"), list[Finding]()
    marks = config.mask_marks if config.mask_file is None else "auto"
    good = checks.check_bad_pixels(raw.bad_pixels, frames.shape[1:], where, marks)
    if raw.bad_pixels is None and marks != "auto":
        what, fix = (
            f"mask_marks = {marks} has no effect: there is no mask",
            "leave it out, or name a mask file",
        )
        found.append(Finding(what, fix=fix, level="adapted", code="idle"))
    if raw.bad_pixels is not None and marks == "auto":
        refuse_inverted(good, frames, where)
    gaps, held = find_gaps(frames, good)
    if held:
        found.append(masked_gaps(int(gaps.sum()), held))
    return good & ~gaps, found


def _masked(frames: NDArray[Any], good: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (K, h, w) values with bad pixels 0."""
    values = frames.astype(np.float64)
    values[:, ~good] = 0.0
    return values


def _only(raw: RawScan, rows: NDArray[np.int64]) -> RawScan:
    """Return a scan of some of its patterns, which keep their numbers."""
    index = np.arange(len(raw.positions_px)) if raw.scan_index is None else raw.scan_index
    read = raw.read_labels
    labels = None if read is None else lambda axis: select_rows(read(axis), rows)
    return replace(raw, scan_index=np.asarray(index[rows], dtype=np.int64), read_labels=labels)


def _positions(raw: RawScan, config: DataConfig) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the positions (M, 2), and which are made up: their patterns have none and are left out."""
    drops_broken = config.drop is not None and "broken" in read_drop(config.drop)[0]
    found = checks.check_positions(raw.positions_px, raw.where("positions"), some_missing=drops_broken)
    known = np.asarray(np.isfinite(found).all(axis=1))
    return np.where(known[:, None], found, found[known][0]), ~known


def _dropped(gone: dict[str, int]) -> Finding:
    counts = ", ".join(f"{count} {word}" for word, count in gone.items()) or "none fits"
    return Finding(f"patterns left out as asked: {counts}", level="note", code="dropped")


def _own_probe(
    raw: RawScan, config: DataConfig, side: int, N: int
) -> tuple[NDArray[np.complex64] | None, dict[str, Any]]:
    """Return the file's own probe where it is asked for, and where the probe comes from."""
    if config.probe == "estimate":
        return None, {"value": "none", "why": "it is to be estimated from the patterns"}
    if config.probe not in WORDS:
        return None, {}
    if raw.probe is None:
        if config.probe == "file":
            raise DataError(
                "the file has no probe, and probe = file asks for it",
                where=raw.where("probe"),
                expected="a probe, (N, N) or (P, N, N) complex",
                fix="--probe estimate makes one from the patterns, --probe FILE takes it from elsewhere, "
                "--map probe=NAME says where the file has it",
            )
        return None, {"value": "none", "why": "the file has none"}
    fits = N if raw.probe.ndim > 1 and raw.probe.shape[-2] == N else side
    return checks.check_probe(raw.probe, fits, raw.where("probe")), {
        "value": "file",
        "why": "the file has it",
    }


def _follow_with_probe(
    raw: RawScan,
    config: DataConfig,
    own: NDArray[np.complex64] | None,
    why: dict[str, Any],
    ready: Prepared,
    side: int,
    N: int,
) -> tuple[NDArray[np.complex64] | None, dict[str, Any], list[Finding]]:
    """Return the probe on the pixels of prepared patterns, where it comes from, and what to say of it."""
    if own is not None:
        probe, notes = _on_new_pixels(own, ready, side, N)
        return probe, why, notes
    if config.probe in WORDS:
        return None, why, []
    target = Target(N, raw.geometry.get("pixel_size_m"), ready.side, ready.ratio, ready.offset_px)
    probe, why = probe_from_file(config.probe, target, raw.path)
    return probe, why, _cut_by_bin(1 - why.get("power_kept", 1.0), N) if config.bin > 1 else []


def _on_new_pixels(
    probe: NDArray[np.complex64], ready: Prepared, side: int, N: int
) -> tuple[NDArray[np.complex64], list[Finding]]:
    """Return the file's probe on the pixels of prepared patterns; one of their size is taken as it is."""
    if probe.shape[-1] != side:
        text = f"the file's probe has the {N} pixels of the prepared patterns and is taken as it is"
        return probe, [Finding(text, level="note", code="reading")]
    wave = resample_wave(probe, ready.ratio, N, ready.offset_px)
    if wave is probe or ready.ratio != 1:
        return wave, []
    return wave, _cut_by_bin(1 - float(np.sum(np.abs(wave) ** 2) / np.sum(np.abs(probe) ** 2)), N)


def _cut_by_bin(lost: float, N: int) -> list[Finding]:
    if lost < _CUT:
        return []
    text = f"{lost:.0%} of the probe's power lie outside the window of {N} pixels that bin leaves"
    return [Finding(text, fix="choose a smaller bin", level="adapted", code="cut-probe")]


def _follow(
    raw: RawScan,
    positions: NDArray[np.float64],
    canvas: NDArray[np.complex64] | None,
    ready: Prepared,
    N: int,
    config: DataConfig,
) -> tuple[RawScan, NDArray[np.float64], NDArray[np.complex64] | None, list[Finding]]:
    """Return geometry, positions and object as orientation, affine matrix and prepared patterns need them."""
    geometry, center, left_out = dict(raw.geometry), raw.center_px, []
    turned = np.array(config.position_affine).reshape(2, 2) @ orientation_matrix(config.orient)
    labels = raw.read_labels
    if not np.array_equal(turned, np.eye(2)):
        about = np.array(center or (0.0, 0.0))
        positions = (positions - about) @ turned.T + about
        left_out = [name for name, part in (("object", canvas), ("labels", labels)) if part is not None]
        canvas, labels = None, None
    if ready.ratio != 1 or ready.side != N:
        positions = move_positions(positions, ready.side, N, ready.ratio)
        left_out += ["labels"] if labels is not None else []
        labels = None
    if ready.ratio != 1:
        canvas = (
            None if canvas is None else resample_object(canvas, ready.side, round(ready.side / ready.ratio))
        )
        center = None if center is None else (center[0] / ready.ratio, center[1] / ready.ratio)
        if geometry.get("pixel_size_m"):
            geometry["pixel_size_m"] *= ready.ratio
    if config.bin > 1 and geometry.get("detector_pixel_size_m"):
        geometry["detector_pixel_size_m"] *= config.bin
    text = "do not fit positions or patterns that were changed, and are left out"
    notes = [Finding(f"the file's {name} {text}", level="note", code="reading") for name in left_out]
    return replace(raw, geometry=geometry, center_px=center, read_labels=labels), positions, canvas, notes


def _what_was_done(ready: Prepared, config: DataConfig) -> dict[str, Any]:
    """Return the preprocessing of a scan for its report; empty where there was none."""
    others = ("map", "positions_order", "positions_unit", "pixel_size_m", "scan_step", "scan_shape",
              "scan_rotation_deg", "orient", "position_affine", "propagation")  # fmt: skip
    done = {**changed_options(config, others), **ready.report}
    if ready.ratio != 1:
        done["object_pixel_grows_by"] = ready.ratio
    return done


def _check_size(N: int, config: DataConfig, where: str) -> None:
    if config.N is not None and N != config.N:
        raise DataError(
            f"the patterns are {N} x {N}, N = {config.N} was asked",
            where=where,
            expected=f"patterns of {config.N} x {config.N}",
            fix="leave N out to take what the file has, or "
            + (f"crop the patterns: --crop {config.N}" if config.N < N else f"pad them: --pad {config.N}"),
        )


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


def frame_size(raw: RawScan, count: int, config: DataConfig) -> int:
    """Return the side of prepared patterns, from the shapes alone."""
    shape, axis = raw.stack.shape, _scan_axis(raw, count, config)[0]
    rest = shape[:2] if axis else shape[-2:]
    return side_after(rest, config, raw.where(raw.stack.name))[0]


def read_patterns(raw: RawScan, count: int, config: DataConfig) -> tuple[Patterns, int, str]:
    """Return the patterns of the positions, the scan axis in the file, and the reason for it."""
    # A pairing by index may use only some of the patterns, so positions count those.
    expected = count if raw.pattern_rows is None else raw.stack.shape[0]
    axis, why = _scan_axis(raw, expected, config)
    patterns = raw.read_stack(axis)
    patterns = patterns if patterns.ndim == 3 else in_one_row(patterns)
    return patterns if raw.pattern_rows is None else select_rows(patterns, raw.pattern_rows), axis, why


def _scan_axis(raw: RawScan, count: int, config: DataConfig) -> tuple[int, str]:
    where, shape = raw.where(raw.stack.name), raw.stack.shape
    declared = config.pattern_axes if config.pattern_axes != "auto" else raw.axes
    if len(shape) > 3:
        checks.check_numeric(raw.stack.dtype, "iuf", "the patterns", where)
        return _raster_axis(shape, count, declared, where)
    checks.check_stack(shape, raw.stack.dtype, count, where)
    return detect.find_scan_axis(shape, count, declared, where)


def _raster_axis(shape: tuple[int, ...], count: int, declared: str, where: str) -> tuple[int, str]:
    """Return 0 where the axes of a raster are in front of those of a pattern, 2 behind, and the reason.

    Raises:
        DataError: there are not as many points as positions, or both may be meant.
    """
    readings = {0: (shape[:-2], shape[-2:]), 2: (shape[2:], shape[:2])}
    fits = [axis for axis, (points, _) in readings.items() if math.prod(points) == count]
    fits = [axis for axis in fits if readings[axis][1][0] == readings[axis][1][1]] or fits
    if declared != "auto":
        fits = [axis for axis in fits if axis == (0 if declared == "first" else 2)]
    if not fits:
        raise DataError(
            f"patterns of shape {shape}, {len(shape)} axes, do not agree with {count} positions"
            + (f" and scan axes declared {declared}" if declared != "auto" else ""),
            where=where,
            expected=f"(ny, nx, N, N) or (N, N, ny, nx), with ny * nx = {count}",
            fix="make positions and patterns the same length; name the right arrays with --map patterns=NAME "
            "--map positions=NAME"
            + ("; --pattern-axes auto leaves the axes open" if declared != "auto" else ""),
        )
    if len(fits) > 1:
        raise DataError(
            f"the scan axes are ambiguous: the first as well as the last axes of {shape} have {count} points",
            where=where,
            expected="a declaration, because a wrong guess ruins the result in silence",
            fix="--pattern-axes first for (ny, nx, N, N), --pattern-axes last for (N, N, ny, nx)",
        )
    if declared != "auto":
        return fits[0], "declared"
    return fits[0], f"the {'last' if fits[0] else 'first'} axes of {shape} are those of a raster"


def _place_on_canvas(
    raw: RawScan, centered: NDArray[np.float64], N: int, canvas: NDArray[np.complex64] | None
) -> tuple[tuple[int, int], NDArray[np.float64]]:
    """Return (H, W) and the whole-pixel [y, x] shift that brings the positions onto the canvas."""
    if canvas is None:
        return fit_canvas(centered, N, raw.unit_fix)
    shape = (int(canvas.shape[0]), int(canvas.shape[1]))
    low, high = centered.min(axis=0), centered.max(axis=0)
    outside = np.any((centered < -0.5) | (centered > np.array(shape) - 0.5), axis=1)
    if outside.any():
        far = far_from_others(centered, N)
        alone = len(far) > 0 and set(np.flatnonzero(outside)) <= set(far)
        raise DataError(
            f"{int(outside.sum())} of {len(centered)} positions lie outside the object of {shape}; "
            + (
                far_positions(far, centered)
                if alone
                else f"y from {low[0]:.1f} to {high[0]:.1f}, x from {low[1]:.1f} to {high[1]:.1f}"
            ),
            where=raw.where("positions"),
            expected="positions in pixels of the object's grid",
            fix="--drop far leaves them and their patterns out"
            if alone
            else (
                raw.unit_fix
                or "check order and unit of the coordinates (--positions-unit: m, mm, um, nm or px)"
            )
            + "; --canvas positions leaves the file's object out",
            options={"drop": "far"} if alone else None,
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
    """Return the memory of this machine, or what the control group allows, whichever is less, if known."""
    from ptycho_exec.machine.facts import cgroup_memory_mb, physical_memory_mb

    limits = [limit for limit in (physical_memory_mb(), cgroup_memory_mb()) if limit is not None]
    return min(limits, default=math.inf) * 2**20


def _check_span(raw: RawScan, positions: NDArray[np.float64], N: int) -> None:
    """Refuse many different positions that all lie within one pixel.

    Raises:
        DataError: with what they would be in other units, where the size of a pixel is known.
    """
    span = float(np.ptp(positions, axis=0).max())
    if span >= 1 or len(np.unique(positions, axis=0)) < _FEWEST_DIFFERENT:
        return
    unit, text = likely_unit(neighbor_distance(positions), raw.geometry.get("pixel_size_m"), N / 4)
    text += "; or divide them by the side of an object pixel in their own unit"
    if raw.unit_fix:
        unit, text = None, raw.unit_fix
    raise DataError(
        f"all {len(positions)} positions lie within {span:.3g} pixels",
        where=raw.where("positions"),
        expected="positions in object pixels, spread over more than one",
        fix=text,
        options={"positions_unit": unit} if unit else None,
    )


def fit_canvas(
    centered: NDArray[np.float64], N: int, unit_fix: str = ""
) -> tuple[tuple[int, int], NDArray[np.float64]]:
    """Return the smallest canvas (H, W) that holds every patch with a pixel to spare, and the shift to it.

    The shift is whole pixels, so the sub-pixel part of every position stays as it is.

    Args:
        centered: (M, 2) positions.
        N: side of a patch.
        unit_fix: what to do about positions in a wrong unit; empty names the option.
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
            fix="--drop far leaves them and their patterns out"
            if len(far)
            else unit_fix
            or "check the unit of the positions; --positions-unit names it: m, mm, um, nm or px",
            options={"drop": "far"} if len(far) else None,
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


def on_own_canvas(
    scan: ScanData,
    rows: NDArray[np.int64],
    move: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> ScanData:
    """Return the patterns of these rows, in memory, as a scan on its own canvas, without probe and object.

    move: what is done to the positions (M, 2).
    """
    positions = scan.positions_px[rows] if move is None else move(scan.positions_px[rows])
    canvas, shift = fit_canvas(positions, scan.n_pixels)
    return replace(
        scan,
        patterns=np.asarray(scan.patterns[rows]),
        positions_px=positions + shift,
        canvas_shape=canvas,
        probe=None,
        object_guess=None,
        labels=None,
        scan_index=None,
    )
