"""What is odd about a scan that can be read: each finding with its code, and a remedy.

`judge` is asked once, when a scan is put together; `ScanData.findings` keeps the answer, and whoever begins
work on a scan says it (`lines`, `announce_scans`).

Shape legend: M scan positions, N x N detector pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataWarning, Finding
from ptycho_torch.config import UNITS_M
from ptycho_torch.data.checks import PatternStatistics
from ptycho_torch.data.pixels import PixelFaults, far_field_center, misplaced_zero_frequency, where_bright
from ptycho_torch.data.scan import ScanData

_DIM = 0.05
_OFF_CENTER = 0.035
_CLOSEST_PX = 0.5
"""Distance of neighbors below which positions have another unit, in a scan without a probe."""
_FEWEST = 4


def judge(
    scan: ScanData, statistics: PatternStatistics, faults: PixelFaults, report: dict[str, Any]
) -> list[Finding]:
    """Return what is not wrong enough to refuse but is worth a look."""
    return [
        *_judge_positions(scan, report),
        *_judge_patterns(scan, statistics, faults, report),
        *_judge_pixels(faults, whole=scan.holds_counts),
        *_judge_center(scan, faults, report),
    ]


def masked_gaps(count: int, held: str) -> Finding:
    """Return what to say where pixels were masked because they hold no measurement."""
    return _odd(
        f"{count} pixels hold {held} in most patterns, which is no count; they are masked",
        "nothing needs to be done; `ptycho-torch convert` writes the mask into a new file",
        code="gaps",
    )


def _odd(what: str, fix: str, *, code: str, **options: Any) -> Finding:
    return Finding(what, fix=fix, level="adapted", code=code, options=options)


def _judge_positions(scan: ScanData, report: dict[str, Any]) -> Iterator[Finding]:
    repeated, overlap = report["duplicate_positions"], report["overlap_ratio"]
    if repeated:
        yield Finding(
            f"{repeated} positions repeat an earlier one exactly", level="note", code="repeated-positions"
        )
    far = far_from_others(scan.positions_px, scan.n_pixels, report["neighbor_distance_px"])
    if len(far):
        yield _odd(
            far_positions(far, scan.positions_px - scan.position_shift_px),
            "--drop far leaves them and their patterns out",
            code="far-positions",
            drop="far",
        )
    apart, known = report["neighbor_distance_px"], report["probe_diameter_px"]
    diameter = known or scan.n_pixels
    if apart is None or len(scan) < _FEWEST:
        pass
    elif apart > 0.6 * diameter:
        unit, text = likely_unit(apart, scan.pixel_size_m, diameter)
        by = f"overlap by only {overlap:.0%} of their diameter" if overlap is not None else "do not overlap"
        yield _odd(
            f"neighboring probes {by}: they are {apart:.3g} pixels apart",
            "a scan needs an overlap of 60 % or more; " + text,
            code="little-overlap",
            **({"positions_unit": unit} if unit else {}),
        )
    elif apart < (0.02 * known if known else _CLOSEST_PX):
        unit, text = likely_unit(apart, scan.pixel_size_m, diameter)
        yield _odd(
            f"neighboring probes are only {apart:.2g} pixels apart",
            text,
            code="much-overlap",
            **({"positions_unit": unit} if unit else {}),
        )
    elif not len(far) and (parts := 1 + int(_group_of(np.floor(scan.positions_px / diameter)).max())) > 1:
        yield _odd(
            f"the scan falls into {parts} parts whose probes do not overlap, each with a phase of its own",
            "check that both coordinates have the same unit; --position-affine scales them one by one",
            code="little-overlap",
        )
    below, above = -scan.origins_px, scan.origins_px + scan.n_pixels - np.array(scan.canvas_shape)
    reach = np.maximum(below, above).max(axis=1)
    if reach.max() > 0:
        yield _odd(
            f"{(reach > 0).sum()} patches reach beyond the canvas, by up to {reach.max():.1f} pixels",
            "--canvas positions makes one that holds them all",
            code="beyond-canvas",
            canvas="positions",
        )


def _empty_by_chance(scan: ScanData, sums: NDArray[np.float64], report: dict[str, Any]) -> float:
    """Return how many patterns may be empty for no other reason than that photons are few.

    Three times as many as the photons of the others give: parts of an object that absorb leave more.
    """
    quantum = report["count_quantum"]
    seen = sums[sums > 0]
    if quantum is None or scan.domain != "intensity" or not len(seen):
        return 0.0
    return 3 * len(sums) * math.exp(-float(np.median(seen)) / quantum)


def _judge_patterns(
    scan: ScanData, statistics: PatternStatistics, faults: PixelFaults, report: dict[str, Any]
) -> Iterator[Finding]:
    sums = statistics.frame_sum
    remove = "--drop dark leaves them and their positions out"
    if report["zero_patterns"] > _empty_by_chance(scan, sums, report):
        yield _odd(
            f"{report['zero_patterns']} patterns are zero everywhere (closed shutter?), "
            + _listed(np.flatnonzero(sums == 0)),
            remove,
            code="dark-patterns",
            drop="dark",
        )
    beneath = faults.background * scan.good_pixels.sum() if scan.domain == "intensity" else 0.0
    dim = dark_patterns(sums - beneath)
    dim = dim[sums[dim] > 0]
    if len(dim) and len(sums) >= _FEWEST:
        yield _odd(
            f"{len(dim)} patterns have less than {_DIM:.0%} of the usual intensity, {_listed(dim)}",
            remove,
            code="dark-patterns",
            drop="dark",
        )
    if len(sums) >= _FEWEST and np.ptp(sums) == 0 and _all_the_same(scan):
        yield _odd(
            f"all {len(sums)} patterns are the same, so that they tell nothing of the object",
            "check the program that wrote the file, and export it again",
            code="same-patterns",
        )
    if report["saturated_values"]:
        yield _odd(
            f"{report['saturated_values']} values are at the largest number of {report['dtype']}",
            "--mask-suspects true masks their pixels, if they are few; measure with less light if not",
            code="saturated",
            mask_suspects=True,
        )


def _all_the_same(scan: ScanData) -> bool:
    some = scan.patterns[np.unique(np.linspace(0, len(scan) - 1, num=24).astype(int))][:, scan.good_pixels]
    return bool((some == some[0]).all())


def _judge_pixels(faults: PixelFaults, *, whole: bool) -> Iterator[Finding]:
    yield from _suspect(faults.hot, "are much brighter than all around them (hot)", code="hot-pixels")
    around = "never count although those around them do (dead, or a gap)"
    yield from _suspect(faults.dead, around, code="dead-pixels")
    yield from _suspect(faults.stuck, "hold the same number in all patterns (stuck)", code="stuck-pixels")
    # Whole numbers stay whole numbers, whose noise is known.
    level = float(round(faults.background)) if whole else float(f"{faults.background:.4g}")
    if level:
        yield _odd(
            f"a background of about {faults.background:.4g} lies under every pixel",
            f"--pedestal {level:g} --clip-negative true subtracts it",
            code="background",
            pedestal=level,
            clip_negative=True,
        )
    if faults.gain is not None and whole and abs(faults.gain - 1) > 0.1:
        yield _odd(
            f"one count is worth about {faults.gain:.4g} detector units, as dim pixels show",
            f"--gain {faults.gain:.4g} makes counts of them",
            code="gain",
            gain=float(f"{faults.gain:.4g}"),
        )


def _suspect(mask: NDArray[np.bool_], text: str, *, code: str) -> Iterator[Finding]:
    if mask.any():
        y, x = np.argwhere(mask)[0]
        yield _odd(
            f"{mask.sum()} pixels {text}, first at [{y}, {x}]",
            "--mask-suspects true masks them; or mark in bad_pixels those that `ptycho-torch inspect --json` "
            "lists as suspect_pixels",
            code=code,
            mask_suspects=True,
        )


def _judge_center(scan: ScanData, faults: PixelFaults, report: dict[str, Any]) -> Iterator[Finding]:
    mean, n = faults.mean_intensity, scan.n_pixels
    if place := misplaced_zero_frequency(mean):
        yield _odd(
            f"the patterns are bright {where_bright(place)}: their zero frequency is not at N/2",
            f"--zero-frequency {place} moves it there",
            code="corner-frequency",
            zero_frequency=place,
        )
        return
    expected = [np.array([n // 2, n // 2])]
    if scan.probe is not None:
        expected.append(np.array(far_field_center(scan.probe)))
    found = np.array(report["brightest_px"])
    off = min((found - place for place in expected), key=lambda apart: float(np.linalg.norm(apart)))
    if np.linalg.norm(off) > max(1.5, _OFF_CENTER * n):
        dy, dx = (-np.round(off)).astype(int)
        yield _odd(
            f"the beam lies {np.linalg.norm(off):.1f} pixels off the center, at "
            f"[{found[0]:.1f}, {found[1]:.1f}] instead of [{n // 2}, {n // 2}]",
            f"--center auto moves the patterns by [{dy}, {dx}] pixels, the mask alike",
            code="off-center",
            center="auto",
        )


def dark_patterns(above: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the indices of patterns with less than 5 % of the usual intensity above the background.

    Usual is the median of those that are lit, so that it does not matter how many are not.
    """
    bright = np.quantile(above, 0.98)
    if bright <= 0:
        return np.empty(0, dtype=np.intp)
    lit = above[above >= _DIM * bright]
    return np.flatnonzero((above <= 0) | (above < _DIM * np.median(lit)))


def far_from_others(
    positions_px: NDArray[np.float64], N: int, neighbor_px: float | None = None
) -> NDArray[np.intp]:
    """Return the indices of positions that lie far from all others, at most one in ten.

    Far is: more than a pattern's side, and than four usual steps, from the next, where most have neighbors;
    and of different places at most one in fifty. Positions are counted in cells of that size, so that the
    work grows with their number only.
    """
    side = max(N, 4 * (neighbor_px or neighbor_distance(positions_px) or 0.0))
    cells = np.floor(positions_px / side)
    if np.ptp(cells, axis=0).max() <= 1:  # all of them touch
        return np.empty(0, dtype=np.intp)
    group = _group_of(cells)
    different, first = np.unique(positions_px, axis=0, return_index=True)
    places = np.bincount(group[first], minlength=group.max() + 1)
    small = places <= max(1, len(different) // 50)
    if small.all() or np.bincount(group)[~small].sum() < 0.9 * len(positions_px):
        return np.empty(0, dtype=np.intp)
    return np.flatnonzero(small[group])


_AROUND = [complex(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def _group_of(cells: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return a number for each cell [y, x], (M, 2), the same for those that touch, also by way of others."""
    places, cell = np.unique(cells[:, 0] + 1j * cells[:, 1], return_inverse=True)
    return _touching(places.tolist())[cell]


def _touching(cells: list[complex]) -> NDArray[np.intp]:
    """Return a number for each cell y + ix, the same for those that touch, also by way of others."""
    group = dict.fromkeys(cells, -1)
    for number, first in enumerate(cells):
        reached = [first] if group[first] < 0 else []
        while reached:
            cell = reached.pop()
            group[cell] = number
            reached += [near for step in _AROUND if group.get(near := cell + step) == -1]
    return np.unique(list(group.values()), return_inverse=True)[1]


def likely_unit(
    apart: float | None, pixel_size_m: float | None, diameter_px: float
) -> tuple[str | None, str]:
    """Return the unit in which positions would make sense, where the size of a pixel tells, and what to do.

    Args:
        apart: distance of neighboring positions, taken as pixels.
        pixel_size_m: side of an object pixel, if known.
        diameter_px: of the probe.
    """
    if pixel_size_m and apart:
        spacing = {unit: apart * size / pixel_size_m for unit, size in UNITS_M.items()}
        for unit, px in spacing.items():
            if 0.02 * diameter_px < px < 0.6 * diameter_px:
                return unit, f"--positions-unit {unit} takes them as {unit}: neighbors {px:.3g} pixels apart"
    known = "" if pixel_size_m else " --pixel-size-m METERS"
    units = ", ".join(UNITS_M)
    return None, f"check the unit of the positions; --positions-unit UNIT{known} names it: {units}"


def neighbor_distance(positions_px: NDArray[np.float64]) -> float | None:
    """Return the median distance of different positions from the nearest other one; None for one alone."""
    from scipy.spatial import cKDTree

    different = different_positions(positions_px)
    if len(different) < 2:
        return None
    distances, _ = cKDTree(different).query(different, k=2)
    return float(np.median(np.asarray(distances)[:, 1]))


def different_positions(positions_px: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (K, 2) of the (M, 2) positions, each once."""
    return np.unique(np.ascontiguousarray(positions_px).view(np.complex128)).view(np.float64).reshape(-1, 2)


def far_positions(far: NDArray[np.intp], positions_px: NDArray[np.float64]) -> str:
    """Return which positions lie far from all others, and where."""
    y, x = positions_px[far[0]]
    verb = "position lies" if len(far) == 1 else "positions lie"
    return f"{len(far)} {verb} far from all others, {_listed(far)}; the first at y = {y:.6g}, x = {x:.6g}"


def _listed(indices: NDArray[np.intp]) -> str:
    shown = ", ".join(str(index) for index in indices[:5])
    return f"index {shown}{', ...' if len(indices) > 5 else ''}"


def line(finding: Finding) -> str:
    """Return a finding of a scan in one line."""
    return "; ".join(part for part in (finding.what, finding.fix) if part)


def lines(*scans: Any) -> list[str]:
    """Return the findings of some scans as lines, each once; other containers have none."""
    found = (finding for scan in scans if isinstance(scan, ScanData) for finding in scan.findings)
    return list(dict.fromkeys(map(line, found)))


def announce_scans(scans: Iterable[Any]) -> None:
    """Warn of what can change a result, with a `DataWarning` each; in a run of several processes once."""
    from ptycho_exec.plan import announce

    found = (finding for scan in scans if isinstance(scan, ScanData) for finding in scan.findings)
    announce(dict.fromkeys(finding for finding in found if finding.level != "note"), DataWarning)
