"""A probe from the patterns alone: several starts are refined against each other, and the best one is kept.

The mean of all patterns shows where the probe has its frequencies, and how strong they are: the object moves
under the probe and averages out. What it does not show is their phase. In most instruments defocus is the
largest part of it, a quadratic phase:

    probe = F^-1 [ sqrt(mean pattern) exp(i k f^2) ]     f in cycles per pixel from the middle of the beam

Such a wave spreads over k f / pi pixels, so the window and the step of the scan bound k. Values between, of
both signs, are each refined for a few epochs together with an object that starts flat; those that predict
patterns held back best go on. What else is in the phase - aberrations, a diffuser - refinement finds then.

Shapes: M patterns of N x N pixels, P probe modes, object (H, W).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_exec.progress import counted
from ptycho_torch.data.judge import neighbor_distance
from ptycho_torch.data.scan import ScanData
from ptycho_torch.reconstruction.probe_gauge import center_px
from ptycho_torch.reconstruction.refine import RefineOptions, refine_object
from ptycho_torch.reconstruction.trials import (
    CLEAR_MARGIN,
    EXPLAINED,
    Say,
    Start,
    Trial,
    compact_part,
    compare_starts,
    explained,
    margin,
)

RATIO = 1.3
"""Neighboring curvatures differ by this factor."""
WIDEST = 0.3
"""Largest root-mean-square radius of a probe that is tried, as a part of the window's side."""
PATTERNS = 80
"""Patterns in the middle of the scan with which starts are compared."""
ROUNDS = ((3, 6), (6, 3), (10, 3))
"""Epochs of each round, and how many starts go on from it."""


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
        following = (
            "no other object"
            if math.isinf(self.margin)
            else f"the next object {1 + self.margin:.3g} times that"
        )
        doubt = "" if self.certain else "; not certain, look at the object"
        count = len(self.candidates)
        return (
            f"probe from the patterns: {self.chosen}, best of {count} starts; loss over patterns held back "
            f"{self.loss:.4f}, {following}, with no object {self.mean_loss:.4f}{doubt}"
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

    modes: P of the result at least; starts have one mode, a guess its own, and further ones join for the last
        refinement.
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
        for name, probe, curvature in curved_probes(amplitude, neighbor_distance(scan.positions_px))
    ]
    if guess is not None:
        starts.append(Start("the given probe", part, _modes(guess)))
    trials, others = compare_starts(starts, ROUNDS, seed=seed, jobs=jobs, keep=_both_signs, say=say)
    best = trials[0]
    began = time.perf_counter()
    refined = refine_object(
        part.fitted,
        best.object,
        epochs,
        probe=best.probe,
        options=RefineOptions(refine_probe=True, probe_modes=modes, likelihood="amplitude"),
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
        candidates=tuple(Candidate(t.start.name, t.loss, t.seconds) for t in (*trials, *others)),
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
    parts = np.array_split(np.arange(len(scan)), math.ceil(len(scan) / 64))
    for rows in counted(parts, "reading", len(scan), unit="patterns", size=len):
        total += np.square(scan.amplitude(rows), dtype=np.float64).sum(axis=0)
    if not total.any():
        raise DataError(
            "all patterns are dark",
            where="patterns",
            expected="patterns that are not zero at their good pixels",
            fix="check which array the patterns are, and the mask",
        )
    if not scan.good_pixels.all():
        from scipy.ndimage import distance_transform_edt

        nearest: Any = distance_transform_edt(~scan.good_pixels, return_distances=False, return_indices=True)
        total = total[tuple(nearest)]
    return np.asarray(np.sqrt(total / len(scan)))


def curved_probes(
    amplitude: NDArray[np.float64], step_px: float | None, ratio: float = RATIO
) -> list[tuple[str, NDArray[np.complex64], float]]:
    """Return (name, probe (1, N, N), k) of flat phase and of each curvature that fits window and step.

    amplitude: (N, N) of the mean pattern. step_px: distance of neighbors in the scan; none for one pattern.
    """
    n = len(amplitude)
    frequency = (np.arange(n) - n // 2) / n
    weight = np.square(amplitude) / np.square(amplitude).sum()
    y = frequency[:, None] - weight.sum(axis=1) @ frequency
    x = frequency[None, :] - weight.sum(axis=0) @ frequency
    square = y**2 + x**2
    width = math.sqrt(float((weight * square).sum()))
    # A probe needs to reach its neighbors; below 1 / (pi width) px the phase at the beam's edge is below 1.
    narrow = max(0.5 * (step_px or 1.0), 1 / (math.pi * width))
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


def centered(probe: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return a probe (P, N, N) rolled by whole pixels so that its intensity is centered in the window."""
    shift = torch.round(-center_px(torch.from_numpy(probe))).int().tolist()
    return np.roll(probe, shift, axis=(-2, -1))


def _modes(probe: NDArray[Any]) -> NDArray[np.complex64]:
    stack = np.asarray(probe, dtype=np.complex64)
    return stack[None] if stack.ndim == 2 else stack


def _both_signs(trials: Sequence[Trial], count: int) -> list[Trial]:
    """Return the best trials, and the best one of the other curvature: that with which it is confused."""
    best = list(trials[:count])
    sign = math.copysign(1, best[0].start.curvature)
    other = [trial for trial in trials if trial.start.curvature * sign < 0]
    return best if not other or other[0] in best else [*best, other[0]]
