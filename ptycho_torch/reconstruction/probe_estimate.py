"""A probe from the patterns alone: several starts are refined against each other, and the best one is kept.

The mean of all patterns shows where the probe has its frequencies, and how strong they are: the object moves
under the probe and averages out. What it does not show is their phase. In most instruments defocus is the
largest part of it, a quadratic phase:

    probe = F^-1 [ sqrt(mean pattern) exp(i k f^2) ]     f in cycles per pixel from the middle of the beam

Such a wave spreads over k f / pi pixels, so the window and the step of the scan bound k. Values between, of
both signs, are each refined for a few epochs together with an object that starts flat; those that predict
patterns held back best go on. What else is in the phase - aberrations, a diffuser - refinement finds then.

Patterns that are held back decide because those that were fitted cannot: where noise is strong, or the probe
small against the step, a wrong probe fits them as well.

Shapes: M patterns of N x N pixels, P probe modes, object (H, W).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from ptycho_exec.errors import DataError, UserError
from ptycho_torch.data.assemble import fit_canvas
from ptycho_torch.data.scan import ScanData
from ptycho_torch.physics import forward as physics
from ptycho_torch.reconstruction.refine import RefineOptions, refine_object

RATIO = 1.3
"""Neighboring curvatures differ by this factor."""
WIDEST = 0.3
"""Largest root-mean-square radius of a probe that is tried, as a part of the window's side."""
PATTERNS = 80
"""Patterns in the middle of the scan with which starts are compared."""
HELD_BACK = 8
"""One in so many of them is held back."""
FEW = 16
"""With fewer patterns none is held back."""
ROUNDS = ((3, 6), (6, 3), (10, 3))
"""Epochs of each round, and how many starts go on from it."""
SAME_OBJECT = 0.8
"""Correlation from which on two objects are the same one."""
CLEAR_MARGIN = 0.02
"""Least part by which the loss of the best object is below that of another one, for it to be certain."""
EXPLAINED = 0.3
"""Least part of what distinguishes the patterns from their mean, noise apart, that the best one predicts."""
MODE_POWER = 0.1
"""Power of a further mode at its start, as a part of the mode before it."""

TRIAL = RefineOptions(refine_probe=True, momentum=0.7, settle=1.0)
"""Steps that shrink from the beginning: the few epochs of a trial have no time to average noise later."""

Say = Callable[[str], None]


class Candidate(NamedTuple):
    """A start that was tried: how well its result predicts patterns that were held back."""

    name: str
    loss: float
    """Of the last round it took part in; the rounds have different numbers of epochs."""
    seconds: float


@dataclass(frozen=True)
class ProbeEstimate:
    """The probe that predicts the patterns best, and the evidence."""

    probe: NDArray[np.complex64]
    """(P, N, N) in the units of the measured amplitude, centered in the window."""
    candidates: tuple[Candidate, ...]
    """All starts, best first: by the round that they reached, then by loss."""
    chosen: str
    loss: float
    """Of the chosen one, over patterns held back: sum (|Psi| - a)^2 / sum a^2."""
    mean_loss: float
    """The same for the mean pattern: what knowing no object gives."""
    noise_loss: float
    """The same for counting noise alone; 0 where the file does not hold counts."""
    margin: float
    """Part by which the loss of the best different object is higher; infinite where there is none."""

    @property
    def explained(self) -> float:
        """Part of the patterns' differences from their mean, noise apart, that is predicted."""
        return explained(self.loss, self.mean_loss, self.noise_loss)

    @property
    def certain(self) -> bool:
        """True where the patterns are predicted, and no other object predicts them nearly as well."""
        return self.margin >= CLEAR_MARGIN and self.explained >= EXPLAINED

    def line(self) -> str:
        """One line for the user."""
        rival = (
            "no other object"
            if math.isinf(self.margin)
            else f"the next object {1 + self.margin:.3g} times that"
        )
        doubt = "" if self.certain else "; not certain, look at the object"
        count = len(self.candidates)
        return (
            f"probe from the patterns: {self.chosen}, best of {count} starts; loss over patterns held back "
            f"{self.loss:.4f}, {rival}, with no object {self.mean_loss:.4f}{doubt}"
        )


def estimate_probe(
    scan: ScanData,
    *,
    modes: int = 1,
    seed: int = 0,
    epochs: int = 10,
    patterns: int = PATTERNS,
    jobs: int = 1,
    guess: NDArray[Any] | None = None,
    say: Say | None = None,
) -> ProbeEstimate:
    """Find the probe of a scan from its patterns and positions.

    modes: P of the result; starts are compared with one mode, further ones join for the last refinement.
    epochs: of that last refinement.
    patterns: so many in the middle of the scan are used.
    jobs: starts that are refined at the same time, one thread each; the result does not depend on it.
    guess: a probe (N, N) or (P, N, N) that takes part as one start, such as that of the file.
    say: called with a line after each round.
    Equal arguments give equal results. Raises DataError where the patterns hold nothing.
    """
    part = compact_part(scan, patterns, seed)
    amplitude = mean_amplitude(scan)
    starts = [
        Start(name, part, probe, curvature)
        for name, probe, curvature in curved_probes(amplitude, step_px(scan.positions_px))
    ]
    if guess is not None:
        starts.append(Start("the given probe", part, _modes(guess)))
    trials, losers = compare(starts, ROUNDS, seed=seed, jobs=jobs, keep=_both_signs, say=say)
    best = trials[0]
    began = time.perf_counter()
    refined = refine_object(
        part.fitted,
        best.object,
        epochs,
        probe=with_modes(best.probe, modes),
        options=RefineOptions(refine_probe=True),
        placement="probe",
        seed=seed,
    )
    final = part.loss(refined.object, refined.probe)
    if say:
        took = time.perf_counter() - began
        say(f"{best.start.name}, {epochs} more epochs in {took:.0f} s: loss {final:.4f}")
    mean_loss, noise_loss = part.yardsticks(amplitude)
    return ProbeEstimate(
        probe=centered(refined.probe),
        candidates=tuple(Candidate(t.start.name, t.loss, t.seconds) for t in (*trials, *losers)),
        chosen=best.start.name,
        loss=final,
        mean_loss=mean_loss,
        noise_loss=noise_loss,
        margin=margin(trials),
    )


# --- starts ----------------------------------------------------------------------------------------------


def mean_amplitude(scan: ScanData) -> NDArray[np.float64]:
    """Return (N, N), the root of the mean intensity; bad pixels take the value of the nearest good one."""
    total = np.zeros((scan.n_pixels, scan.n_pixels))
    for rows in np.array_split(np.arange(len(scan)), math.ceil(len(scan) / 64)):
        total += np.square(scan.amplitude(rows), dtype=np.float64).sum(axis=0)
    if not total.any():
        raise DataError(
            "all patterns are dark",
            where="patterns",
            expected="patterns with light in their good pixels",
            fix="check which array the patterns are, and the mask",
        )
    if not scan.good_pixels.all():
        nearest: Any = distance_transform_edt(~scan.good_pixels, return_distances=False, return_indices=True)
        total = total[tuple(nearest)]
    return np.asarray(np.sqrt(total / len(scan)))


def curved_probes(
    amplitude: NDArray[np.float64], step: float, ratio: float = RATIO
) -> list[tuple[str, NDArray[np.complex64], float]]:
    """Return (name, probe (1, N, N), k) of flat phase and of each curvature that fits window and step.

    amplitude: (N, N) of the mean pattern. step: distance of neighbors in the scan, in pixels.
    """
    n = len(amplitude)
    frequency = (np.arange(n) - n // 2) / n
    weight = np.square(amplitude) / np.square(amplitude).sum()
    y = frequency[:, None] - weight.sum(axis=1) @ frequency
    x = frequency[None, :] - weight.sum(axis=0) @ frequency
    square = y**2 + x**2
    width = math.sqrt(float((weight * square).sum()))
    # A probe needs to reach its neighbors; below 1 / (pi width) px the phase at the beam's edge is below 1.
    narrow = max(0.5 * step, 1 / (math.pi * width))
    wide = max(WIDEST * n, narrow * ratio)
    count = math.ceil(math.log(wide / narrow) / math.log(ratio)) + 1
    radii = np.geomspace(narrow, wide, count)
    curvatures = [0.0, *(sign * float(radius) * math.pi / width for radius in radii for sign in (1, -1))]
    made = []
    for k in curvatures:
        wave = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * k * square)), norm="ortho")
        name = f"quadratic phase k = {k:+.0f}" if k else "flat phase"
        made.append((f"mean amplitude, {name}", np.fft.fftshift(wave).astype(np.complex64)[None], k))
    return made


def with_modes(probe: NDArray[np.complex64], modes: int) -> NDArray[np.complex64]:
    """Return a probe of `modes` modes (P, N, N); further ones are the first times y, x, y^2, yx ..."""
    if len(probe) >= modes:
        return probe[:modes]
    n = probe.shape[-1]
    first = probe[0].astype(np.complex128)
    weight = np.square(np.abs(first))
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    y, x = (axis - (weight * axis).sum() / weight.sum() for axis in (y, x))
    radius = math.sqrt(float((weight * (y**2 + x**2)).sum() / weight.sum()))
    orders = sorted((i + j, j, i) for i in range(modes) for j in range(modes))[len(probe) : modes]
    made = [mode.astype(np.complex128).ravel() for mode in probe]
    for _, j, i in orders:
        mode = (first * (y / radius) ** i * (x / radius) ** j).ravel()
        for other in made:
            mode -= other * (np.vdot(other, mode) / max(float(np.vdot(other, other).real), 1e-300))
        power = MODE_POWER * float(np.linalg.norm(made[-1])) ** 2
        made.append(mode * (math.sqrt(power) / max(float(np.linalg.norm(mode)), 1e-150)))
    return np.stack(made).reshape(modes, n, n).astype(np.complex64)


def centered(probe: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return a probe (P, N, N) rolled by whole pixels so that its intensity is centered in the window.

    The center is that of the circle which the window is when its edges meet: it is right for a probe that
    was cut by the edge, too.
    """
    n = probe.shape[-1]
    weight = np.square(np.abs(probe)).sum(axis=0)
    circle = np.exp(2j * np.pi * np.arange(n) / n)
    shifts = []
    for axis in (0, 1):
        middle = np.angle((weight.sum(axis=1 - axis) * circle).sum()) * n / (2 * np.pi)
        shifts.append(round((n - 1) / 2 - middle))
    return np.roll(probe, shifts, axis=(-2, -1))


def _modes(probe: NDArray[Any]) -> NDArray[np.complex64]:
    stack = np.asarray(probe, dtype=np.complex64)
    return stack[None] if stack.ndim == 2 else stack


def step_px(positions_px: NDArray[np.float64]) -> float:
    """Return the median distance of a position (M, 2) from its nearest neighbor, in pixels."""
    if len(positions_px) < 2:
        return 1.0
    distance, _ = cKDTree(positions_px).query(positions_px, k=2)
    return float(np.median(np.asarray(distance)[:, 1]))


def explained(loss: float, mean_loss: float, noise_loss: float) -> float:
    """Return the part of the patterns' differences from their mean, noise apart, that is predicted."""
    return min((mean_loss - loss) / max(mean_loss - noise_loss, 1e-12), 1.0)


# --- the part of the scan --------------------------------------------------------------------------------


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
        expected = np.square(mean[good])
        drawn = np.sqrt(np.random.default_rng(0).poisson(expected, (len(measured), expected.size)))
        return mean_loss, float(np.square(drawn - mean[good]).sum() / np.square(drawn).sum())


def compact_part(
    scan: ScanData,
    patterns: int,
    seed: int = 0,
    move: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> Part:
    """Return the patterns nearest to the middle of a scan, in memory; some of the inner ones are held back.

    move: what is done to the positions (M, 2), which patterns are taken does not depend on it.
    """
    distance = np.linalg.norm(scan.positions_px - np.median(scan.positions_px, axis=0), axis=1)
    nearest = np.argsort(distance, kind="stable")[:patterns]
    count = len(nearest)
    inner = np.random.default_rng(seed).permutation(nearest[: count // 2])
    held = inner[: max(count // HELD_BACK, 4)] if count >= FEW else nearest
    fitted = np.setdiff1d(nearest, held) if count >= FEW else nearest
    taken = np.concatenate([np.sort(fitted), np.sort(held)])
    positions = scan.positions_px[taken] if move is None else move(scan.positions_px[taken])
    canvas, shift = fit_canvas(positions, scan.n_pixels)
    whole = replace(
        scan,
        patterns=np.asarray(scan.patterns[taken]),
        positions_px=positions + shift,
        canvas_shape=canvas,
        probe=None,
        object_guess=None,
        labels=None,
        scan_index=None,
    )
    rows = np.arange(len(taken))
    return Part(whole.subset(rows[: len(fitted)]), whole.subset(rows[len(fitted) :]))


# --- starts against each other ---------------------------------------------------------------------------


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


def compare(
    starts: Sequence[Start],
    rounds: Sequence[tuple[int, int]],
    *,
    keep: Keep,
    seed: int = 0,
    jobs: int = 1,
    refine_probe: bool = True,
    say: Say | None = None,
) -> tuple[list[Trial], list[Trial]]:
    """Refine all starts for a few epochs, go on with the best, and so on.

    Returns the trials of the last round, and those that were left behind, both best first.
    rounds: epochs and the number that goes on, of each round. keep: takes trials, best first, and that
    number, and returns those that go on. Raises DataError when all diverge.
    """
    options = replace(TRIAL, refine_probe=refine_probe)
    live, spent = list(starts), [0.0] * len(starts)
    lost: list[Trial] = []
    trials: list[Trial] = []
    threads = torch.get_num_threads()
    try:
        if jobs > 1:
            torch.set_num_threads(1)
        with ThreadPoolExecutor(jobs) as pool:
            for number, (epochs, count) in enumerate(rounds):
                began = time.perf_counter()
                tried = pool.map(partial(_try, epochs=epochs, options=options, seed=seed), live, spent)
                trials = sorted(tried, key=lambda trial: trial.loss)
                if math.isinf(trials[0].loss):
                    raise DataError(
                        "refinement diverges from every probe that was tried",
                        where="patterns and positions",
                        expected="positions in pixels of the object, patterns in the order of the positions",
                        fix="check the unit and the order of the positions",
                    )
                if say:
                    took = time.perf_counter() - began
                    say(f"{len(live)} starts x {epochs} epochs in {took:.0f} s: {trials[0].start.name} leads")
                if number < len(rounds) - 1:
                    kept = keep(trials, count)
                    lost = [trial for trial in trials if trial not in kept] + lost
                    live = [replace(trial.start, object=trial.object, probe=trial.probe) for trial in kept]
                    spent = [trial.seconds for trial in kept]
    finally:
        torch.set_num_threads(threads)
    return trials, lost


def _try(start: Start, before_s: float, *, epochs: int, options: RefineOptions, seed: int) -> Trial:
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


def _both_signs(trials: Sequence[Trial], count: int) -> list[Trial]:
    """Return the best trials, and the best one of the other curvature: the rival that needs an answer."""
    best = list(trials[:count])
    sign = math.copysign(1, best[0].start.curvature)
    other = [trial for trial in trials if trial.start.curvature * sign < 0]
    return best if not other or other[0] in best else [*best, other[0]]


def margin(trials: Sequence[Trial]) -> float:
    """Return the part by which the best object that differs from the first one has a higher loss."""
    best = trials[0]
    rivals = [trial.loss for trial in trials[1:] if agreement(best, trial) < SAME_OBJECT]
    return min(rivals, default=math.inf) / max(best.loss, 1e-30) - 1


def agreement(one: Trial, other: Trial) -> float:
    """Return the correlation of two objects on one canvas, 0 to 1, where the first one is illuminated.

    A common phase and a phase ramp that probe and object may exchange make no difference.
    """
    n = one.probe.shape[-1]
    light = np.zeros(one.object.shape)
    spot = np.square(np.abs(one.probe)).sum(axis=0)
    for y, x in np.round(one.start.part.fitted.origins_px).astype(int):
        light[y : y + n, x : x + n] += spot
    mask = light > 0.3 * light.max()
    # Neighboring pixels of a ratio give the ramp without unwrapping.
    ratio = np.where(mask, one.object.conj() * other.object, 0)
    slopes = [np.angle((np.roll(ratio, -1, axis) * ratio.conj()).sum()) for axis in (0, 1)]
    y, x = np.indices(mask.shape)
    level = other.object * np.exp(-1j * (slopes[0] * y + slopes[1] * x))
    a, b = (image[mask] - image[mask].mean() for image in (one.object, level))
    return float(abs(np.vdot(a, b)) / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))
