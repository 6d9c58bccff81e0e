"""Which way round the positions belong to the patterns: eight orientations, compared by short refinements.

Detectors and stages have axes of their own, and files rarely say how they lie to each other. Positions may be
mirrored in y or x, swapped, or both, against the patterns: eight orientations. A wrong one still gives an
object, a smeared or doubled one, which predicts patterns that were held back less well.

Negating both axes cannot be told from the right one while the probe is unknown: the object O*(-x) and the
probe P*(-x) give the same patterns at the negated positions. So the eight make four classes of two. Within a
class the probe decides if one is given - its curvature belongs to one of the two - and otherwise the first
one in `CLASSES` is taken, by convention. The sign of the phase comes with that choice: it cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config import Orientation as Name
from ptycho_torch.data.judge import neighbor_distance
from ptycho_torch.data.sampling import orientation_matrix
from ptycho_torch.data.scan import ScanData
from ptycho_torch.reconstruction.probe_estimate import curved_probes, mean_amplitude
from ptycho_torch.reconstruction.trials import (
    CLEAR_MARGIN,
    EXPLAINED,
    FEW,
    Start,
    Trial,
    compact_part,
    compare_starts,
    explained,
)

ORIENTATIONS: tuple[str, ...] = get_args(Name)
"""What is done to stored positions; y and x are swapped first, then negated."""
CLASSES = (
    ("none", "flip-yx"),
    ("flip-y", "flip-x"),
    ("transpose", "transpose-flip-yx"),
    ("transpose-flip-y", "transpose-flip-x"),
)
"""Pairs that differ by negating both axes."""
SHOWN = "comparing orientations"
PATTERNS = 64
DECIDES = 1.1
"""A given probe chooses within a class where the other one leaves so many times its misfit, noise apart."""
RATIO = 1.6
"""Neighboring curvatures differ by this factor: coarser than where a probe is wanted."""


def orient_positions(positions_yx: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Return positions (M, 2), [y, x], in the orientation `name`: swapped first, then negated."""
    if name not in ORIENTATIONS:
        raise ValueError(f"unknown orientation {name!r}; choose one of {', '.join(ORIENTATIONS)}")
    return np.asarray(np.asarray(positions_yx, dtype=np.float64) @ orientation_matrix(name).T)


@dataclass(frozen=True)
class Orientation:
    """The orientation in which the patterns are predicted best, and the evidence."""

    rows: tuple[tuple[str, float], ...]
    """(name, loss over patterns held back) of all eight; those of a class are equal without a probe."""
    chosen: str
    margin: float
    """Part by which the loss of the best other class is higher."""
    by_probe: bool
    """True where the given probe chose within the class, False where it is the first one by convention."""
    explained: float
    """Part of the patterns' differences from their mean, noise apart, that is predicted."""
    held_back: bool = True
    """False where there are too few patterns to hold some back: a wrong orientation fits those as well."""

    @property
    def clear(self) -> bool:
        """True where the patterns are predicted, and no other class predicts them nearly as well."""
        return self.held_back and self.margin >= CLEAR_MARGIN and self.explained >= EXPLAINED

    @property
    def twin(self) -> str:
        """The orientation that no data can tell from the chosen one."""
        return next(name for pair in CLASSES if self.chosen in pair for name in pair if name != self.chosen)

    def line(self) -> str:
        """One line for the user."""
        loss = dict(self.rows)
        why = (
            "by the curvature of the given probe"
            if self.by_probe
            else "by convention, for want of a probe that tells"
        )
        doubt = "" if self.clear else " (not clear: better left as stored, or declared)"
        return (
            f"orientation of the positions: {self.chosen}{doubt}, loss {loss[self.chosen]:.4f}, the next "
            f"{1 + self.margin:.3g} times that; {self.twin} fits as well, with the conjugate object turned "
            f"by 180 degrees (chosen {why}), so the sign of the phase cannot be told"
        )


def find_orientation(
    scan: ScanData,
    *,
    probe: NDArray[Any] | None = None,
    refine_probe: bool = True,
    epochs: int = 10,
    patterns: int = PATTERNS,
    jobs: int = 1,
    seed: int = 0,
) -> Orientation:
    """Compare the eight orientations of a scan's positions against its patterns.

    probe: (N, N) or (P, N, N), from which each orientation starts; where it leaves the answer open, and where
        none is given, each class is judged with the best of several probes made from the patterns.
    refine_probe: false keeps a given probe as it is; probes made from the patterns are refined always.
    epochs: of the last comparison.
    patterns: so many in the middle of the scan are used.
    jobs: starts that are refined at the same time, one thread each; the result does not depend on it.
    Equal arguments give equal results. Raises DataError where the patterns hold nothing.
    """
    amplitude = mean_amplitude(scan)
    parts = {
        name: compact_part(scan, patterns, seed, partial(orient_positions, name=name))
        for name in ORIENTATIONS
    }
    yardsticks = parts["none"].yardsticks(amplitude)
    held_back = min(len(scan), patterns) >= FEW
    with_given: dict[str, float] = {}
    if probe is not None:
        given = np.asarray(probe, dtype=np.complex64)
        given = given[None] if given.ndim == 2 else given
        starts = [Start(name, part, given) for name, part in parts.items()]
        trials, _ = compare_starts(
            starts,
            ((epochs, 8),),
            keep=_best_of_each_class,
            seed=seed,
            jobs=jobs,
            refine_probe=refine_probe,
            what=SHOWN,
        )
        with_given |= {trial.start.name: trial.loss for trial in trials}
        found = _judged(trials, with_given, yardsticks, held_back)
        if found.clear or not refine_probe:
            return found
    curved = curved_probes(amplitude, neighbor_distance(scan.positions_px), RATIO)
    starts = [Start(pair[0], parts[pair[0]], made, k) for pair in CLASSES for _, made, k in curved]
    if probe is not None:
        starts += [Start(trial.start.name, trial.start.part, given) for trial in trials]
    rounds = ((3, 8), (6, 4), (epochs, 4))
    trials, _ = compare_starts(starts, rounds, keep=_best_of_each_class, seed=seed, jobs=jobs, what=SHOWN)
    trials = [replace(trial, start=replace(trial.start, name=_first(trial.start.name))) for trial in trials]
    return _judged(trials, with_given, yardsticks, held_back)


def _judged(
    trials: Sequence[Trial], with_given: Mapping[str, float], yardsticks: tuple[float, float], held_back: bool
) -> Orientation:
    """Return the best orientation of some trials; `with_given` has the losses from the given probe."""
    mean_loss, noise_loss = yardsticks
    own = {name: [t.loss for t in trials if t.start.name == name] for name in ORIENTATIONS}
    pairs = {pair: min(own[pair[0]] + own[pair[1]]) for pair in CLASSES}
    best = min(pairs, key=lambda pair: pairs[pair])
    second = min(loss for pair, loss in pairs.items() if pair != best)
    chosen, by_probe = _of_class(best, with_given, noise_loss)
    rows = ((name, min(own[name], default=pairs[pair])) for pair in CLASSES for name in pair)
    return Orientation(
        rows=tuple(sorted(rows, key=lambda row: ORIENTATIONS.index(row[0]))),
        chosen=chosen,
        margin=second / max(pairs[best], 1e-30) - 1,
        by_probe=by_probe,
        explained=explained(pairs[best], mean_loss, noise_loss),
        held_back=held_back,
    )


def _of_class(pair: tuple[str, str], with_given: Mapping[str, float], noise_loss: float) -> tuple[str, bool]:
    """Return which of a class it is, and whether the given probe decides; without curvature none does."""
    better, worse = sorted(pair, key=lambda name: with_given.get(name, math.inf))
    if better in with_given and with_given[worse] - noise_loss > DECIDES * (with_given[better] - noise_loss):
        return better, True
    return pair[0], False


def _first(name: str) -> str:
    return next(pair[0] for pair in CLASSES if name in pair)


def _best_of_each_class(trials: Sequence[Trial], count: int) -> list[Trial]:
    """Return the best trials such that each class is among them."""
    leaders = {_first(trial.start.name): trial for trial in reversed(trials)}
    others = [trial for trial in trials if trial not in leaders.values()]
    kept = [*leaders.values(), *others[: max(count - len(leaders), 0)]]
    return sorted(kept, key=lambda trial: trial.loss)
