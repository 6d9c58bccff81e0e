"""What a directory holds to learn from, as Ptychodus leaves it: exported files, or product and patterns.

Shape legend: M scan positions, N x N pixels, P probe modes, H x W object canvas.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.containers import selected
from ptycho_torch.data.formats import npz, ptychodus
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage.open_file import open_archive
from ptycho_torch.data.storage.patterns import blocks, to_amplitude
from ptycho_torch.physics import forward as physics

FLAT = 1e-3
"""Spread of an object, relative to its size, below which it shows nothing to learn from."""
PROBES_DIFFER = 0.05
"""Distance of two probes, relative to their size, from which on they count as different."""


def find_sources(directory: Path) -> list[Path]:
    """Return the scans of a directory: exported NPZ files, else HDF5 training files, else the pair itself.

    Files that hold something else are left alone.

    Raises:
        DataError: there is none.
    """
    kinds: dict[str, Callable[[Any], bool]] = {
        ".npz": lambda archive: npz.is_npz_scan(archive) and any(n in archive for n in npz.STACK_NAMES),
        ".h5": ptychodus.is_training,
    }
    for suffix, is_scan in kinds.items():
        sources = [path for path in sorted(directory.glob(f"*{suffix}")) if _holds(path, is_scan)]
        if sources:
            return sources
    pair = [directory / f"{half}.h5" for half in ("product", "diffraction")]
    if all(path.is_file() for path in pair):
        return [directory]
    raise DataError(
        "there is nothing to learn from in this directory",
        where=str(directory),
        expected="training data that Ptychodus exported (.npz), or product.h5 and diffraction.h5",
        fix='export training data in Ptychodus (Processing, "Export Training Data") into this directory',
    )


def _holds(path: Path, is_scan: Callable[[Any], bool]) -> bool:
    try:
        with closing(open_archive(path)) as archive:
            return is_scan(archive)
    except DataError:  # a file of another kind; the training reads none of it
        return False


def read_training_data(directory: Path, data: DataConfig, *, labeled: bool, phase_free: bool) -> ScanData:
    """Read all scans of a directory as one.

    Args:
        directory: see `find_sources`.
        data: bounds, which apply to each scan by itself when there are several.
        labeled: add the true patch of each pattern, cut out of the file's object.
        phase_free: take the mean phase out of each true patch.

    Raises:
        DataError: nothing to read, a damaged file, no object to take labels from, or scans that do not agree.
    """
    scans = []
    for source in find_sources(directory):
        scan = read_scan(source)
        scans.append(with_labels(scan, phase_free=phase_free) if labeled else scan)
    if len(scans) == 1:
        return replace(scans[0], source=scans[0].source or directory)
    return joined([_enough(selected(scan, data, 0), data) for scan in scans], directory)


def _enough(scan: ScanData, data: DataConfig) -> ScanData:
    """Refuse a scan so small that its patterns would find neighbors in another one."""
    needed = 1 if data.gridsize == 1 else (data.neighbor_count or max(6, data.gridsize**2 - 1)) + 1
    keyword = "K_quadrant" if data.grouping == "quadrant" else "K"
    if len(scan) < needed:
        raise DataError(
            f"this scan has {len(scan)} patterns within the bounds, too few beside others",
            where=str(scan.source),
            expected=f"at least {needed}, one more than the neighbors that each looks for",
            fix=f"keep it in a directory of its own, or lower {keyword}, the neighbors to choose from",
        )
    return scan


def with_labels(scan: ScanData, *, phase_free: bool) -> ScanData:
    """Return the scan with the true patch of each pattern, its own or cut out of its object.

    A diffraction pattern does not determine the patch's mean phase; `phase_free` makes it 0 under the probe.

    Raises:
        DataError: the scan has neither labels nor an object that shows something.
    """
    labels = None if scan.labels is None else np.asarray(scan.label_patches(np.arange(len(scan))))
    if labels is None:
        labels = _cut_out(scan)
    if phase_free:
        illumination = 1.0 if scan.probe is None else (np.abs(scan.probe) ** 2).sum(axis=0)
        mean = (labels * illumination).sum(axis=(1, 2), keepdims=True)
        labels = labels * np.exp(-1j * np.angle(mean))
    return replace(scan, labels=labels.astype(np.complex64))


def _cut_out(scan: ScanData) -> NDArray[np.complex64]:
    """Return the object under each pattern, (M, N, N), at its sub-pixel position.

    Cut on whole pixels and shifted back by the rest, so that the training's own shift restores it exactly.
    """
    canvas, n = scan.object_guess, scan.n_pixels
    if canvas is None or float(np.std(canvas)) < FLAT * float(np.abs(canvas).mean()):
        raise DataError(
            "supervised training needs a reconstructed object, and the training data have "
            + ("none" if canvas is None else "a flat one"),
            where=_place_of_object(scan),
            expected="a product whose object was reconstructed, by an iterative method say",
            fix="reconstruct the product first, or choose the Unsupervised algorithm",
        )
    grid, rest = physics.split_position(torch.from_numpy(scan.positions_px), n)
    corners = torch.round(grid - (n - 1) / 2).long().numpy() + n
    padded = np.pad(canvas, n, mode="edge")
    patches = np.stack([padded[y : y + n, x : x + n] for y, x in corners])
    shifted: NDArray[np.complex64] = physics.shift_subpixel(torch.from_numpy(patches), -rest).numpy()
    return shifted


def _place_of_object(scan: ScanData) -> str:
    """Return the file that holds the object: of a pair, the product."""
    if scan.source is None:
        return ""
    product = scan.source.with_name(f"product{scan.source.suffix}")
    pair = scan.source.stem == "diffraction" and product.is_file()
    return str(product if pair else scan.source)


def joined(scans: Sequence[ScanData], directory: Path) -> ScanData:
    """Return several scans as one, each on its own part of a common canvas, too far apart to be neighbors.

    The first scan's probe stands for all; training has one photon scale. Counts stay counts where all scans
    hold them, because training knows their noise; otherwise the patterns are amplitudes.

    Raises:
        DataError: patterns of different sizes, or different probes.
    """
    first = scans[0]
    counts = all(scan.holds_counts and scan.patterns.dtype.kind in "iu" for scan in scans)
    _check_alike(scans)
    gap = 2 * max(max(scan.canvas_shape) for scan in scans)
    tops = np.cumsum([0, *(scan.canvas_shape[0] + gap for scan in scans)])
    # The patterns are filled in one block at a time: one copy in memory, not two.
    shape = (sum(map(len, scans)), *first.patterns.shape[1:])
    common = np.result_type(*(scan.patterns.dtype for scan in scans)) if counts else np.dtype(np.float32)
    if counts and common.kind not in "iu":  # uint64 beside signed integers, for which there is no common one
        common = np.dtype(np.int64)
    patterns, begin = np.empty(shape, dtype=common), 0
    for scan in scans:
        for start, raw in blocks(scan.patterns):
            block = raw if counts else to_amplitude(raw, scan.domain, scan.bad_flat)
            patterns[begin + start : begin + start + len(raw)] = block
        begin += len(scan)
    rows = [np.arange(len(scan)) for scan in scans]
    labels = None if first.labels is None else [s.label_patches(r) for s, r in zip(scans, rows, strict=True)]
    return replace(
        first,
        patterns=patterns,
        domain="intensity" if counts else "amplitude",
        positions_px=np.concatenate(
            [scan.positions_px + np.array([top, 0.0]) for scan, top in zip(scans, tops, strict=False)]
        ),
        object_guess=None,
        good_pixels=np.logical_and.reduce([scan.good_pixels for scan in scans]),
        canvas_shape=(int(tops[-1]), max(scan.canvas_shape[1] for scan in scans)),
        labels=None if labels is None else np.concatenate(labels),
        scan_index=None,
        source=directory,
        sha256=hashlib.sha256("".join(scan.sha256 for scan in scans).encode()).hexdigest(),
        report={"format": f"{len(scans)} scans", "scans": [scan.report for scan in scans]},
    )


def _check_alike(scans: Sequence[ScanData]) -> None:
    first = scans[0]
    for scan in scans[1:]:
        if scan.n_pixels != first.n_pixels:
            raise DataError(
                f"patterns of {first.n_pixels} and of {scan.n_pixels} pixels lie side by side",
                where=f"{first.source} and {scan.source}",
                expected="training data of one size",
                fix="keep only one of them in the directory",
            )
        if probe_distance(first.probe, scan.probe) > PROBES_DIFFER:
            raise DataError(
                "the probes of these training files differ",
                where=f"{first.source} and {scan.source}",
                expected=f"one probe for all, up to {PROBES_DIFFER:.0%} and a factor",
                fix="keep only scans with the same probe in the directory, or export them with it",
            )


def probe_distance(one: NDArray[Any] | None, other: NDArray[Any] | None) -> float:
    """Return how far two probes, (P, N, N), are apart up to a complex factor, relative to their size."""
    if one is None or other is None:
        return 0.0 if one is other else float("inf")
    if one.shape != other.shape:
        return float("inf")
    a, b = (np.asarray(probe, dtype=np.complex128).ravel() for probe in (one, other))
    size = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    overlap = float(abs(np.vdot(a, b))) / max(size, 1e-300)
    return math.sqrt(max(0.0, 2 - 2 * overlap))
