"""Why an object may explain its patterns poorly: likely causes in the order of the evidence, each with its
remedy.

What was found on reading the scan counts, and what the misfit itself shows. Each test asks the same: how
much of the misfit, noise apart, would be gone if this were mended?

Shape legend: K patterns, G good pixels of the detector, N x N pixels, P probe modes, object (H, W).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_exec.errors import UserError
from ptycho_exec.fields.spec import as_flags
from ptycho_torch.data.assemble import on_own_canvas
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage.patterns import at_once
from ptycho_torch.reconstruction.refine import RefineOptions, refine_object
from ptycho_torch.reconstruction.yardsticks import (
    Noise,
    Real,
    in_the_middle,
    measured_intensity,
    misfits,
    predicted_intensity,
)

FEWEST = 0.08
"""Part of the misfit below which a cause is not worth a word."""
FOUND = 0.6
"""Weight of what was found on reading the scan."""
MOVED = 48
"""Patterns that are tried a pixel beside their position."""
TRIAL_PATTERNS, TRIAL_EPOCHS = 96, 4
CENTERS = 400
"""Patterns in the middle of the scan whose centers of mass are compared."""
SMOOTHED = 7
"""Neighbors whose centers of mass are averaged, against noise."""
CURL_APART = 0.05
"""Difference of two curls, each 0 to 1, that means something."""
BEGAN = 0.25
"""Least weight of a refined probe, whose start no figure judges, and half the largest."""
FREE_PROBE = 0.7
"""Weight of what a free probe removes of the misfit: it takes up other faults, too."""

Axes = tuple[tuple[int, int], tuple[int, int]]
_OTHER_AXES: dict[Axes, str] = {
    ((1, 0), (0, -1)): "x mirrored",
    ((0, 1), (1, 0)): "x and y exchanged",
    ((0, 1), (-1, 0)): "turned by 90 degrees",
}

Remedies = tuple[Mapping[str, Any], ...]
"""Values of fields, by their names, the likeliest first; what the data do not tell is a word in capitals."""
_PROBE: Remedies = ({"refine_probe": True}, {"probe": "estimate"})
_MASK: Remedies = ({"mask_suspects": True}, {"mask_file": "FILE"})
_BACKGROUND: Remedies = ({"refine_background": True}, {"pedestal": "VALUE"})
_POSITIONS: Remedies = ({"refine_positions": True},)
_UNITS: Remedies = ({"positions_unit": "UNIT"},)
_CENTER: Remedies = ({"center": "auto"},)
_ORIENTATION: Remedies = ({"orient": "auto"},)
_MODES: Remedies = ({"probe_modes": 3},)
FINDINGS: dict[str, tuple[str, Remedies, float]] = {
    "off-center": ("center", _CENTER, FOUND),
    "corner-frequency": ("center", _CENTER, 1.0),
    "hot-pixels": ("mask", _MASK, FOUND),
    "dead-pixels": ("mask", _MASK, FOUND / 2),
    "stuck-pixels": ("mask", _MASK, FOUND),
    "saturated": ("mask", _MASK, FOUND / 2),
    "background": ("background", _BACKGROUND, FOUND),
    "far-positions": ("positions", _POSITIONS, FOUND / 2),
    "much-overlap": ("units", _UNITS, FOUND),
    "little-overlap": ("units", _UNITS, FOUND / 3),
}
"""Code of a finding -> the cause, its remedies, and its weight."""


@dataclass(frozen=True)
class Cause:
    """A likely cause, the evidence for it, and the values of fields that remedy it."""

    name: str
    evidence: str
    options: Remedies
    weight: float
    """Part of the misfit that it may stand for, 0 to 1."""

    def line(self) -> str:
        """One line for the user."""
        flags = " or ".join(map(as_flags, self.options))
        return f"{self.name}: {self.evidence}; {f'try {flags}' if flags else 'what remedies it is in use'}"

    def beyond(self, used: Mapping[str, Any]) -> Cause:
        """Return the cause without the remedies of which all values are those of the fields in use."""
        return replace(self, options=tuple(r for r in self.options if not r.items() <= used.items()))


_NO_FIGURE = "no figure points to a cause, and this is a frequent one"
UNKNOWN = (Cause("orientation", _NO_FIGURE, _ORIENTATION, 0.0), Cause("probe", _NO_FIGURE, _PROBE, 0.0))
"""What is named where nothing was found."""
PREDICTED = Cause(
    "network", "the object is a network's, which nothing fitted to the patterns", ({"refine": 5},), 1.0
)
"""What is named first for an object that a network predicts."""


@dataclass(frozen=True)
class Compared:
    """An object and a probe beside some patterns of a scan, as intensities (K, G)."""

    scan: ScanData
    obj: NDArray[np.complex64]
    probe: Tensor
    rows: NDArray[np.int64]
    measured: Real
    predicted: Real
    scale: np.float32
    """What predicted intensities were multiplied by."""
    noise: Noise
    misfit_noise: float

    def left(self, predicted: Real) -> float:
        """Return the misfit of a prediction, less that of noise."""
        return max(float(misfits(self.noise, self.measured, predicted).mean()) - self.misfit_noise, 0.0)

    def removed(self, predicted: Real) -> float:
        """Return the part of the misfit that another prediction would not have."""
        return 1 - self.left(predicted) / max(self.left(self.predicted), 1e-12)


def find_causes(
    compared: Compared, *, probe_refined: bool, start_probe: NDArray[np.complex64] | None
) -> tuple[Cause, ...]:
    """Return the likely causes, each once, the strongest evidence first.

    Args:
        compared: the object beside the patterns.
        probe_refined: whether the probe was refined with the object.
        start_probe: (P, N, N) that the refinement of the probe began with.
    """
    found = [
        *_read(compared.scan),
        *_pixels(compared),
        *_background(compared),
        *_positions(compared),
        *_orientation(compared.scan),
        *_probe(compared, probe_refined, start_probe),
    ]
    if max((cause.weight for cause in found), default=0.0) < 2 * FEWEST:
        found += _modes(compared)
    strongest: dict[str, Cause] = {}
    for cause in sorted(found, key=lambda cause: -cause.weight):
        strongest.setdefault(cause.name, cause)
    return tuple(strongest.values()) or UNKNOWN


def _read(scan: ScanData) -> Iterator[Cause]:
    """What was found on reading the scan."""
    for finding in scan.findings:
        if finding.code in FINDINGS:
            name, options, weight = FINDINGS[finding.code]
            found = finding.options  # with the values that this scan asks for
            others = tuple(remedy for remedy in options if not found.keys() & remedy.keys())
            yield Cause(name, finding.what, (found, *others) if found else options, weight)


def _pixels(compared: Compared) -> Iterator[Cause]:
    """Few pixels that measure something else than is predicted, and hold much of the misfit."""
    unit = compared.noise.gain or 1e-3 * float(compared.measured.mean())
    measured, predicted = (values.mean(axis=0) + unit for values in (compared.measured, compared.predicted))
    odd = np.abs(np.log(measured / predicted)) > np.log(4)
    if not 0 < odd.sum() < 0.15 * len(odd):
        return
    mended = np.where(odd, compared.measured, compared.predicted)
    weight = compared.removed(mended)
    if weight > FEWEST:
        yield Cause("mask", f"{odd.sum()} pixels hold {weight:.0%} of the misfit", _MASK, weight)


def _background(compared: Compared) -> Iterator[Cause]:
    """The same intensity everywhere that is measured and not predicted."""
    measured, predicted = (values.mean(axis=0) for values in (compared.measured, compared.predicted))
    dim = predicted <= np.median(predicted)
    beneath = float(np.median(measured[dim] - predicted[dim]))
    if beneath <= 0:
        return
    weight = compared.removed(compared.predicted + np.float32(beneath))
    if weight > FEWEST:
        evidence = f"an intensity of {beneath:.3g} under all pixels would remove {weight:.0%} of the misfit"
        yield Cause("background", evidence, _BACKGROUND, weight)


def _positions(compared: Compared) -> Iterator[Cause]:
    """Patterns that the object explains better a pixel beside their position."""
    some = np.unique(np.linspace(0, len(compared.rows) - 1, num=min(MOVED, len(compared.rows))).astype(int))
    part = replace(
        compared,
        rows=compared.rows[some],
        measured=compared.measured[some],
        predicted=compared.predicted[some],
    )
    # Half of the pixels choose the place, and the other half shows whether it is better.
    tried, shown = slice(0, None, 2), slice(1, None, 2)
    misfit = misfits(part.noise, part.measured[:, tried], part.predicted[:, tried])
    best = before = misfits(part.noise, part.measured[:, shown], part.predicted[:, shown])
    for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        moved = part.scale * predicted_intensity(part.scan, part.obj, part.probe, part.rows, step)
        now = misfits(part.noise, part.measured[:, tried], moved[:, tried])
        best = np.where(now < misfit, misfits(part.noise, part.measured[:, shown], moved[:, shown]), best)
        misfit = np.minimum(now, misfit)
    weight = float((before - best).mean()) / max(part.left(part.predicted), 1e-12)
    if weight > FEWEST:
        share = float((best < before).mean())
        evidence = f"{share:.0%} of the patterns fit better one pixel beside their position"
        yield Cause("positions", evidence, _POSITIONS, min(weight, 1.0))


def _orientation(scan: ScanData) -> Iterator[Cause]:
    """Positions whose axes are not those of the patterns.

    Where the object shifts the center of mass of a pattern, the shifts are a gradient, which has no curl:
    the sum around each triangle of neighbors is small against the flow out of it. With mirrored or exchanged
    axes it is not. Both axes negated are the same.
    """
    if len(scan) < 50 or on_a_line(scan.positions_px):
        return
    shift, place = shifts_of_centers(scan)
    now, *others = (curl_of(shift, place, axes) for axes in (((1, 0), (0, 1)), *_OTHER_AXES))
    best = int(np.argmin(others))
    if now - others[best] > CURL_APART:
        what = tuple(_OTHER_AXES.values())[best]
        evidence = (
            f"the shifts of the patterns' centers of mass have a curl of {now:.2f}, and of "
            f"{others[best]:.2f} with the positions {what}"
        )
        yield Cause("orientation", evidence, _ORIENTATION, 1 - others[best] / now)


def on_a_line(positions_px: NDArray[np.float64]) -> bool:
    """Return whether positions (M, 2) lie on one line, to a part of a pixel: no area lies between them."""
    across = np.linalg.svd(positions_px - positions_px.mean(axis=0), compute_uv=False)[-1]
    return bool(across < 0.1 * np.sqrt(len(positions_px)))


def shifts_of_centers(scan: ScanData) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the shifts of the centers of mass of the patterns in the middle, and their positions.

    Both (K, 2) as [y, x], in pixels of the detector and of the object.
    """
    rows = in_the_middle(scan, CENTERS)
    pixels = np.indices(scan.good_pixels.shape, dtype=np.float32)[:, scan.good_pixels]
    found = []
    for part in np.array_split(rows, -(-len(rows) // at_once(scan.n_pixels))):
        intensity = measured_intensity(scan, part)
        power = intensity.sum(axis=1, dtype=np.float64).clip(1e-30)
        found.append((intensity @ pixels.T) / power[:, None])
    shift = np.concatenate(found)
    return shift - np.median(shift, axis=0), scan.positions_px[rows]


def curl_of(shift: NDArray[np.float64], positions_px: NDArray[np.float64], axes: Axes) -> float:
    """Return the curl of the shifts of patterns as a part of all change, 0 to 1.

    Args:
        shift: (K, 2), of their centers of mass.
        positions_px: (K, 2).
        axes: (2, 2), applied to the positions.
    """
    from scipy.spatial import Delaunay, cKDTree

    place = positions_px @ np.asarray(axes, dtype=np.float64).T
    _, near = cKDTree(place).query(place, k=SMOOTHED)
    shift = shift[np.asarray(near)].mean(axis=1).reshape(-1, 2)
    corners = Delaunay(place).simplices
    along, flow = np.zeros((2, len(corners)))
    for first, second in ((0, 1), (1, 2), (2, 0)):
        step = place[corners[:, second]] - place[corners[:, first]]
        mean = (shift[corners[:, second]] + shift[corners[:, first]]) / 2
        along += (mean * step).sum(axis=1)
        flow += mean[:, 0] * step[:, 1] - mean[:, 1] * step[:, 0]
    curl, divergence = float(np.median(np.square(along))), float(np.median(np.square(flow)))
    return curl / max(curl + divergence, 1e-30)


def _probe(compared: Compared, refined: bool, start_probe: NDArray[np.complex64] | None) -> Iterator[Cause]:
    """A probe that does better where it is free for a few epochs, or that refinement began with."""
    if refined:
        changed = 0.0 if start_probe is None else _apart(start_probe, compared.probe.numpy())
        evidence = f"refinement changed it by {changed:.0%}, and may have begun too far from the true one"
        yield Cause("probe", evidence, ({"probe": "estimate"}, *_MODES), min(max(changed, BEGAN), 2 * BEGAN))
        return
    scan = compared.scan
    middle, obj = _middle(scan, compared.obj)
    probe = compared.probe * float(np.sqrt(compared.scale))
    try:
        fixed, free = (
            refine_object(
                middle,
                obj,
                TRIAL_EPOCHS,
                probe=probe,
                options=RefineOptions(refine_probe=free, likelihood="amplitude"),
            ).losses[-1]
            for free in (False, True)
        )
    except UserError:  # an object so far off that the steps diverge
        return
    weight = 1 - free / max(fixed, 1e-30)
    if weight > FEWEST:
        evidence = f"{TRIAL_EPOCHS} epochs with the probe refined leave {weight:.0%} less misfit than without"
        yield Cause("probe", evidence, _PROBE, FREE_PROBE * weight)


def _middle(scan: ScanData, obj: NDArray[np.complex64]) -> tuple[ScanData, NDArray[np.complex64]]:
    """Return the patterns in the middle as a scan of their own, and the part of the object that they show."""
    rows = in_the_middle(scan, TRIAL_PATTERNS)
    middle = on_own_canvas(scan, rows)
    low = np.round(scan.positions_px[rows[0]] - middle.positions_px[0]).astype(int)
    begin = np.maximum(low, 0)
    end = np.maximum(begin, np.minimum(low + middle.canvas_shape, obj.shape))
    part = np.ones(middle.canvas_shape, np.complex64)
    (top, left), (bottom, right) = begin - low, end - low
    part[top:bottom, left:right] = obj[begin[0] : end[0], begin[1] : end[1]]
    return middle, part


def _apart(first: NDArray[np.complex64], second: NDArray[np.complex64]) -> float:
    """Return the distance of the strongest modes of two probes, up to a factor and a shift: 0 to 1."""
    spectra = [
        np.fft.fft2(probe[np.argmax(np.square(np.abs(probe)).sum(axis=(1, 2)))]) for probe in (first, second)
    ]
    overlap = np.abs(np.fft.ifft2(spectra[0] * spectra[1].conj())).max() * spectra[0].size
    return float(1 - overlap / max(np.linalg.norm(spectra[0]) * np.linalg.norm(spectra[1]), 1e-30))


def _modes(compared: Compared) -> Iterator[Cause]:
    """Patterns that are smoother than is predicted, as those of a partly coherent beam."""
    good = torch.from_numpy(compared.scan.good_pixels)
    images = torch.zeros(len(compared.rows), *good.shape)
    images[:, good] = torch.from_numpy(compared.predicted)
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1)[:, good].numpy()
    weight = compared.removed((compared.predicted + blurred) / 2)
    if weight > FEWEST:
        evidence = f"patterns half blurred over 3 pixels would remove {weight:.0%} of the misfit"
        yield Cause("coherence", evidence, _MODES, weight)
