"""Short refinements from several starts, compared by patterns that are held back.

Patterns that are held back decide because those that were fitted cannot: where noise is strong, or the probe
small against the step, a wrong probe, or a wrong orientation, fits them as well.

Shapes: M patterns of N x N pixels, P probe modes, object (H, W).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_exec.errors import DataError, UserError
from ptycho_exec.progress import steps
from ptycho_torch.data.assemble import on_own_canvas
from ptycho_torch.data.scan import ScanData
from ptycho_torch.physics import forward as physics
from ptycho_torch.reconstruction.refine import RefineOptions, refine_object
from ptycho_torch.reconstruction.yardsticks import noise_of_amplitude

HELD_BACK = 8
"""One in so many of the patterns is held back."""
FEW = 16
"""With fewer patterns none is held back."""
SAME_OBJECT = 0.8
"""Correlation from which on two objects are the same one."""
CLEAR_MARGIN = 0.02
"""Least part by which the loss of the best object is below that of another one, for it to be certain."""
EXPLAINED = 0.3
"""Least part of what distinguishes the patterns from their mean, noise apart, that the best one predicts."""

TRIAL = RefineOptions(refine_probe=True, momentum=0.7, settle=1.0, likelihood="amplitude")
"""Steps that shrink from the beginning: the few epochs of a trial have no time to average noise later. They
follow amplitudes, as the loss that compares trials does."""

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Part:
    """Patterns near the middle of a scan: those that are fitted, and those held back, on one canvas."""

    fitted: ScanData
    held: ScanData

    @torch.no_grad()
    def loss(self, obj: NDArray[np.complex64], probe: NDArray[np.complex64]) -> float:
        """Return sum (|Psi| - a)^2 / sum a^2 over the patterns that are held back."""
        scan, n = self.held, self.held.n_pixels
        grid, rest = physics.split_position(torch.from_numpy(scan.positions_px), n)
        corners = torch.round(grid - (n - 1) / 2).long().tolist()
        good = torch.from_numpy(scan.good_pixels)
        missed = power = 0.0
        for row, (y, x) in enumerate(corners):
            patch = torch.from_numpy(obj[y : y + n, x : x + n])[None, None]
            moved = physics.shift_subpixel(torch.from_numpy(probe), rest[row].float())
            model = physics.forward_intensity(patch, moved)[0, 0].sqrt()[good]
            measured = torch.from_numpy(scan.amplitude([row]))[0][good]
            missed += float((model - measured).square().sum())
            power += float(measured.square().sum())
        return missed / max(power, 1e-30)

    def yardsticks(self, mean: NDArray[np.float64]) -> tuple[float, float]:
        """Return the loss of the mean pattern (N, N), and of counting noise (0 where there are no counts)."""
        good = self.held.good_pixels
        measured = self.held.amplitude(np.arange(len(self.held)))[:, good].astype(np.float64)
        power = max(float(np.square(measured).sum()), 1e-30)
        mean_loss = float(np.square(measured - mean[good]).sum()) / power
        if not self.held.holds_counts:
            return mean_loss, 0.0
        expected = torch.from_numpy(np.square(mean[good]))
        return mean_loss, float(noise_of_amplitude(expected).sum() / expected.sum())


def compact_part(
    scan: ScanData,
    patterns: int,
    seed: int = 0,
    move: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> Part:
    """Return the patterns nearest to the middle of a scan, in memory; some of the inner ones are held back.

    move: what is done to the positions (M, 2), which patterns are taken does not depend on it.
    """
    nearest = scan.middle_rows(patterns)
    count = len(nearest)
    inner = np.random.default_rng(seed).permutation(nearest[: count // 2])
    held = inner[: max(count // HELD_BACK, 4)] if count >= FEW else nearest
    fitted = np.setdiff1d(nearest, held) if count >= FEW else nearest
    taken = np.concatenate([np.sort(fitted), np.sort(held)])
    whole = on_own_canvas(scan, taken, move)
    rows = np.arange(len(taken))
    return Part(whole.subset(rows[: len(fitted)]), whole.subset(rows[len(fitted) :]))


@dataclass(frozen=True, eq=False)
class Start:
    """What a refinement begins with."""

    name: str
    part: Part
    probe: NDArray[np.complex64]
    curvature: float = 0.0
    object: NDArray[np.complex64] | Literal["flat"] = "flat"


@dataclass(frozen=True, eq=False)
class Trial:
    """Where a start led to after a round, and its loss over the patterns held back."""

    start: Start
    object: NDArray[np.complex64]
    probe: NDArray[np.complex64]
    loss: float
    seconds: float
    """Of all its rounds."""


Keep = Callable[[Sequence[Trial], int], list[Trial]]


def compare_starts(
    starts: Sequence[Start],
    rounds: Sequence[tuple[int, int]],
    *,
    keep: Keep,
    seed: int = 0,
    jobs: int = 1,
    refine_probe: bool = True,
    say: Say | None = None,
    what: str = "comparing probes",
) -> tuple[list[Trial], list[Trial]]:
    """Refine all starts for a few epochs, go on with the best, and so on.

    Returns the trials of the last round, and those that were left behind, both best first.
    rounds: epochs and the number that goes on, of each round. keep: takes trials, best first, and that
    number, and returns those that go on. what: is shown to the user who watches. Raises DataError when all
    diverge.
    """
    options = replace(TRIAL, refine_probe=refine_probe)
    remaining, spent = list(starts), [0.0] * len(starts)
    left: list[Trial] = []
    trials: list[Trial] = []
    threads = torch.get_num_threads()
    try:
        if jobs > 1:
            torch.set_num_threads(1)
        with ThreadPoolExecutor(jobs) as pool, steps(what, unit="epochs") as step:
            done = 0
            for number, (epochs, count) in enumerate(rounds):
                began = time.perf_counter()
                refined = partial(_refined, epochs=epochs, options=options, seed=seed)
                done += len(remaining) * epochs
                total = done + sum(most * more for (_, most), (more, _) in pairwise(rounds[number:]))
                trials = []
                for trial in pool.map(refined, remaining, spent):
                    trials.append(trial)
                    step(epochs, total=total)
                trials.sort(key=lambda trial: trial.loss)
                if math.isinf(trials[0].loss):
                    raise DataError(
                        "refinement diverges from every probe that was tried",
                        where="patterns and positions",
                        expected="positions in pixels of the object, patterns in the order of the positions",
                        fix="check the unit and the order of the positions",
                    )
                if say:
                    took, best = time.perf_counter() - began, trials[0].start.name
                    say(f"{len(remaining)} starts x {epochs} epochs in {took:.0f} s: {best} leads")
                if number < len(rounds) - 1:
                    kept = keep(trials, count)
                    left = [*(trial for trial in trials if trial not in kept), *left]
                    remaining = [
                        replace(trial.start, object=trial.object, probe=trial.probe) for trial in kept
                    ]
                    spent = [trial.seconds for trial in kept]
    finally:
        torch.set_num_threads(threads)
    return trials, left


def _refined(start: Start, before_s: float, *, epochs: int, options: RefineOptions, seed: int) -> Trial:
    """Refine one start; one that diverges has an infinite loss."""
    began = time.perf_counter()
    try:
        found = refine_object(
            start.part.fitted,
            start.object,
            epochs,
            probe=start.probe,
            options=options,
            placement="probe",
            seed=seed,
        )
        obj, probe, loss = found.object, found.probe, start.part.loss(found.object, found.probe)
    except UserError:
        obj, probe, loss = np.ones(start.part.fitted.canvas_shape, np.complex64), start.probe, math.inf
    return Trial(start, obj, probe, loss, before_s + time.perf_counter() - began)


def explained(loss: float, mean_loss: float, noise_loss: float) -> float:
    """Return the part of the patterns' differences from their mean, noise apart, that is predicted."""
    return min((mean_loss - loss) / max(mean_loss - noise_loss, 1e-12), 1.0)


def margin(trials: Sequence[Trial]) -> float:
    """Return the part by which the best object that differs from the first one has a higher loss."""
    best = trials[0]
    others = [trial.loss for trial in trials[1:] if agreement(best, trial) < SAME_OBJECT]
    return min(others, default=math.inf) / max(best.loss, 1e-30) - 1


def agreement(one: Trial, other: Trial) -> float:
    """Return the correlation of two objects on one canvas, 0 to 1, where the first one is illuminated.

    A common phase and a phase ramp that probe and object may exchange make no difference.
    """
    n = one.probe.shape[-1]
    illumination = np.zeros(one.object.shape)
    intensity = np.square(np.abs(one.probe)).sum(axis=0)
    for y, x in np.round(one.start.part.fitted.origins_px).astype(int):
        illumination[y : y + n, x : x + n] += intensity
    mask = illumination > 0.3 * illumination.max()
    # Neighboring pixels of a ratio give the ramp without unwrapping.
    ratio = np.where(mask, one.object.conj() * other.object, 0)
    slopes = [np.angle((np.roll(ratio, -1, axis) * ratio.conj()).sum()) for axis in (0, 1)]
    y, x = np.indices(mask.shape)
    level = other.object * np.exp(-1j * (slopes[0] * y + slopes[1] * x))
    a, b = (image[mask] - image[mask].mean() for image in (one.object, level))
    return float(abs(np.vdot(a, b)) / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))
