"""Is an object right, as far as its patterns can tell? A verdict, the figures behind it, and likely causes.

The yardsticks, none of which object or probe can change, are in `yardsticks`. Patterns that took no part in a
refinement count before those that did, which an object may follow into the noise. Where the mean pattern
explains nearly as much as any object could, as at low dose, only they and two halves of the scan tell;
without them the verdict is that it cannot be judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ptycho_exec.errors import UserError
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.scan_report import probe_diameter_px
from ptycho_torch.display import facts_html
from ptycho_torch.evaluation.metrics import evaluate
from ptycho_torch.reconstruction.causes import PREDICTED, Cause, Compared, find_causes
from ptycho_torch.reconstruction.refine import refine_object
from ptycho_torch.reconstruction.yardsticks import (
    Real,
    Yardstick,
    in_the_middle,
    inside,
    measured_intensity,
    misfits,
    predicted_intensity,
    r_factor,
    scaled,
    spread,
    yardstick_of,
)

Status = Literal["good", "doubtful", "poor", "cannot-judge"]
By = Literal["misfit", "held-out patterns", "held-out patterns and two halves", "nothing"]

GOOD, POOR = 0.15, 0.5
"""Parts q that are not explained: up to the first the object is good, from the second on poor."""
GOOD_PREDICTED = 0.08
"""The same of an object that a network predicts and nothing fits to the patterns: what that leaves is its own
error, and what a fitted one leaves is often that of probe, positions or detector."""
WITHIN_NOISE = 0.35
"""The mean pattern must leave so much more than noise; otherwise q says nothing."""
WORSE = 0.02
"""An object that leaves more than the mean pattern by this part of the noise is wrong."""
FOLLOWS_NOISE = 0.85
"""An object that leaves less than this part of the noise follows it."""
CLEARLY = 2.0
"""Standard errors by which patterns held out are explained better, or worse, than by the mean pattern."""
FEW_HELD_OUT, ENOUGH_HELD_OUT = 4, 12
"""Patterns held out to take q from them; and to compare them with the mean pattern."""
HALVES, HALVES_EPOCHS = 256, 8
"""Patterns of both halves of a scan together, and the epochs of either."""
VALUES_PER_UNKNOWN = 2.5
"""Values of all patterns for each unknown of the object, below which a good fit says nothing: a pattern that
overlaps no other has hardly more values than unknowns, and is explained by many objects."""
FINE_PX = 1 / 8
"""Halves agree when they do so down to a period of this part of a pattern's side."""
NOISY = 0.1
"""Error of counting from which on it is said."""
WORST, WORST_VALUES = 6, 2**21
"""Patterns that are kept beside their prediction, those explained worst; two where they are very large."""


@dataclass(frozen=True)
class PatternFits:
    """How well single patterns of a scan are explained; the worst of them, the worst first.

    Shapes: K patterns that were compared, W of them kept, N x N pixels.
    """

    rows: NDArray[np.int64]
    """(K,) of the scan."""
    misfit: Real
    """(K,): 1 is what noise alone leaves, where the noise is known; else in the units of the amplitudes."""
    in_noise: bool
    """Whether the misfit is in units of noise."""
    worst: NDArray[np.int64]
    """(W,) rows of the scan."""
    measured: Real
    """(W, N, N) intensity; NaN at bad pixels."""
    predicted: Real
    """(W, N, N), at the scale that fits best."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all of it by name, for a file."""
        return {name: np.asarray(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Verdict:
    """What can be said of an object without knowing the true one.

    `q` is the part of the misfit of the mean pattern that the object leaves too, noise apart: 0 for the true
    one.
    """

    status: Status
    by: By
    """What was judged by."""
    reason: str
    r_factor: float | None = None
    """R of the patterns that took part."""
    r_mean: float | None = None
    """R of the mean pattern, which knows nothing of the object."""
    noise: float | None = None
    """R that noise alone gives; None where it is not known."""
    noise_source: str = "unknown"
    q: float | None = None
    held_out_r: float | None = None
    held_out_q: float | None = None
    gap: float | None = None
    """R of the patterns held out less that of the others: how far the object follows what it was fitted
    to."""
    better: float | None = None
    """Standard errors by which the object explains patterns held out better than the mean pattern does."""
    frc_px: float | None = None
    """Period, in pixels, down to which two halves of the scan agree (ring correlation of 1/7)."""
    halves_apart: float | None = None
    """NRMSE between the objects of those halves; the object of all patterns is nearer the true one."""
    counting: float | None = None
    """NRMSE that the noise of counts leaves to an object that is not denoised, about 1 / sqrt(photons on a
    pixel of it); None where the patterns hold no counts. `error_of_counting` has it for each pixel."""
    patterns: int = 0
    held_out: int = 0
    causes: tuple[Cause, ...] = ()
    """Likely causes, the strongest evidence first; none for a good object."""
    fits: PatternFits | None = field(default=None, repr=False, compare=False)
    """Single patterns; None where nothing was judged."""

    @property
    def warns(self) -> bool:
        """True where the user should look before the object is used."""
        return self.status != "good"

    def line(self) -> str:
        """One line for the user."""
        if self.r_factor is None or self.r_mean is None:
            return f"the object is not judged: {self.reason}"
        known = [f"mean pattern {self.r_mean:.3f}"]
        if self.noise is not None:
            known.append(
                f"noise {self.noise:.3f}" + (" by variance" if "variance" in self.noise_source else "")
            )
        if self.held_out_r is not None:
            known.append(f"{self.held_out} patterns held out {self.held_out_r:.3f}")
        if self.halves_apart is not None:
            agree = "differ" if self.frc_px is None else f"agree to {self.frc_px:.1f} px and differ"
            known.append(f"halves {agree} by {self.halves_apart:.0%}")
        says = {"cannot-judge": "the object cannot be judged"}.get(
            self.status, f"the object is {self.status}"
        )
        line = f"{says}: {self.reason}; R factor {self.r_factor:.3f} ({', '.join(known)})"
        if self.counting is not None and self.counting > NOISY:
            line += f"; so few photons leave an error of about {min(self.counting, 1):.0%}"
        return line

    def lines(self) -> list[str]:
        """Return the line, and one for each likely cause."""
        return [self.line(), *(f"  likely cause - {cause.line()}" for cause in self.causes)]

    def _repr_html_(self) -> str:
        return facts_html(
            f"verdict: {self.status.replace('-', ' ')}",
            {
                "because": self.reason,
                "judged by": self.by,
                "R factor": self.r_factor,
                "R of the mean pattern": self.r_mean,
                "R of noise alone": self.noise,
                f"R of {self.held_out} patterns held out": self.held_out_r,
                "unexplained part": self.q,
                "halves agree to (px)": self.frc_px,
                "halves differ by": self.halves_apart,
                "error of counting": self.counting,
                **{f"likely cause {number}": cause.line() for number, cause in enumerate(self.causes, 1)},
            },
        )

    def beyond(self, used: Mapping[str, Any]) -> Verdict:
        """Return the verdict without the remedies that are in use; causes with others come first."""
        causes = [cause.beyond(used) for cause in self.causes]
        return replace(self, causes=tuple(sorted(causes, key=lambda cause: not cause.options)))

    def to_json(self) -> dict[str, Any]:
        """Return all of it but the single patterns, as plain data."""
        plain = asdict(replace(self, fits=None))
        del plain["fits"]
        return {
            **plain,
            "causes": [
                {**asdict(cause), "options": list(map(dict, cause.options)), "line": cause.line()}
                for cause in self.causes
            ],
        }


def judge_object(
    scan: ScanData,
    obj: NDArray[np.complex64],
    probe: ArrayLike | Tensor | None = None,
    *,
    held_out: NDArray[np.int64] | None = None,
    background: NDArray[np.float32] | None = None,
    probe_refined: bool = False,
    fitted: bool = True,
) -> Verdict:
    """Judge an object (H, W) by the patterns of a scan.

    Args:
        scan: with the positions that the object belongs to.
        obj: complex (H, W), on the scan's canvas.
        probe: (P, N, N); the scan's unless given.
        held_out: rows of patterns that took no part in finding the object.
        background: (N, N) intensity under every pattern, in the units of the patterns.
        probe_refined: whether the probe was refined with the object; the scan's own is what it began with.
        fitted: whether the object was refined with the patterns, or a network predicted it.
    """
    given = scan.probe if probe is None else probe
    if given is None:
        return _not_judged("there is no probe")
    modes = torch.as_tensor(given).detach().cpu().to(torch.complex64)
    modes = modes[None] if modes.ndim == 2 else modes
    every = np.arange(len(scan), dtype=np.int64)
    out = np.empty(0, np.int64) if held_out is None else np.asarray(held_out, dtype=np.int64)
    used = inside(scan, obj.shape, np.setdiff1d(every, out))
    if len(used) < 2:
        return _not_judged("fewer than two patterns lie on the object")
    rows = spread(used, scan.n_pixels)
    measured = measured_intensity(scan, rows)
    yardstick = yardstick_of(scan, measured)
    raw = predicted_intensity(scan, obj, modes, rows)
    if yardstick is None or not raw.any() or not np.isfinite(raw).all():
        return _not_judged("the patterns or the object are dark, or not finite")
    beneath = None if background is None else np.asarray(background[scan.good_pixels], np.float32)
    predicted, scale = scaled(yardstick.noise, measured, raw, beneath)
    compared = Compared(
        scan, obj, modes, rows, measured, predicted, scale, yardstick.noise, yardstick.misfit_noise
    )
    out = spread(inside(scan, obj.shape, out), scan.n_pixels) if len(out) else out
    verdict = _with_held_out(_figures(compared, yardstick, beneath), compared, yardstick, out, beneath)
    verdict = replace(_judged(verdict, compared, yardstick, fitted), fits=_fits(compared))
    unknown = 2 * (obj.size + (modes.numel() if probe_refined else 0))
    values = len(used) * int(scan.good_pixels.sum())
    if verdict.status == "good" and verdict.by == "misfit" and values < VALUES_PER_UNKNOWN * unknown:
        reason = "the patterns hold too few values for an object of this size, and none were held out"
        return replace(verdict, status="cannot-judge", by="nothing", reason=reason)
    if verdict.status in ("doubtful", "poor"):
        start = scan.probe if probe_refined else None
        causes = find_causes(compared, probe_refined=probe_refined, start_probe=start)
        if not fitted:
            causes = (PREDICTED, *(cause for cause in causes if cause.weight > 0))
        return replace(verdict, causes=causes)
    return verdict


def _fits(compared: Compared) -> PatternFits:
    misfit = misfits(compared.noise, compared.measured, compared.predicted)
    in_noise = compared.misfit_noise > 0
    count = max(2, min(WORST, WORST_VALUES // compared.scan.n_pixels**2))
    worst = np.argsort(-misfit, kind="stable")[:count]
    good = compared.scan.good_pixels

    def framed(intensity: Real) -> Real:
        frames = np.full((len(worst), *good.shape), np.nan, np.float32)
        frames[:, good] = intensity[worst]
        return frames

    return PatternFits(
        rows=compared.rows,
        misfit=misfit / np.float32(compared.misfit_noise) if in_noise else misfit,
        in_noise=in_noise,
        worst=compared.rows[worst],
        measured=framed(compared.measured),
        predicted=framed(compared.predicted),
    )


def _not_judged(reason: str) -> Verdict:
    return Verdict("cannot-judge", "nothing", reason)


def _figures(compared: Compared, yardstick: Yardstick, beneath: NDArray[np.float32] | None) -> Verdict:
    """Return the figures of the patterns that took part."""
    own = float(misfits(yardstick.noise, compared.measured, compared.predicted).mean())
    return Verdict(
        "cannot-judge",
        "nothing",
        "",
        r_factor=_r(compared.measured, compared.predicted, beneath),
        r_mean=yardstick.r_mean,
        noise=yardstick.r_noise if yardstick.noise.gain else None,
        noise_source=yardstick.noise.source,
        q=_q(own, yardstick.misfit_mean, yardstick.misfit_noise),
        counting=_error_of_counting(compared),
        patterns=len(compared.rows),
    )


def _error_of_counting(compared: Compared) -> float | None:
    """Return 1 / sqrt(photons on a pixel) where the scan is, with the area that the probe reaches."""
    noise = compared.noise
    if noise.source != "counts" or noise.gain is None:
        return None
    per_pattern = float(compared.measured.sum(axis=1, dtype=np.float64).mean()) / noise.gain
    photons = len(compared.scan) * per_pattern
    reach = np.ptp(compared.scan.positions_px, axis=0) + probe_diameter_px(compared.probe.numpy())
    return float(np.sqrt(reach.prod() / photons))


def _r(
    measured: NDArray[np.float32], predicted: NDArray[np.float32], beneath: NDArray[np.float32] | None
) -> float:
    """Return R; with a background, whose scale is known, at the scale that was found."""
    a, b = np.sqrt(measured), np.sqrt(predicted)
    return r_factor(a, b) if beneath is None else float(np.abs(a - b).sum() / a.sum())


def _q(own: float, mean: float, noise: float) -> float:
    return (own - noise) / max(mean - noise, 1e-12)


def _with_held_out(
    verdict: Verdict,
    compared: Compared,
    yardstick: Yardstick,
    rows: NDArray[np.int64],
    beneath: NDArray[np.float32] | None,
) -> Verdict:
    """Add the figures of patterns that took no part, where there are enough."""
    if len(rows) < FEW_HELD_OUT:
        return verdict
    measured = measured_intensity(compared.scan, rows)
    raw = predicted_intensity(compared.scan, compared.obj, compared.probe, rows)
    predicted = compared.scale * raw + (0 if beneath is None else beneath)
    own = misfits(yardstick.noise, measured, predicted)
    mean = misfits(yardstick.noise, measured, yardstick.mean[None])
    ahead = (mean - own).astype(np.float64)
    r = _r(measured, predicted, beneath)
    error = max(float(ahead.std(ddof=1)) / np.sqrt(len(rows)), 1e-30)
    return replace(
        verdict,
        held_out=len(rows),
        held_out_r=r,
        held_out_q=_q(float(own.mean()), float(mean.mean()), yardstick.misfit_noise),
        gap=r - (verdict.r_factor or 0.0),
        better=float(ahead.mean()) / error,
    )


def _judged(verdict: Verdict, compared: Compared, yardstick: Yardstick, fitted: bool) -> Verdict:
    """Add the status, and what it was judged by."""
    good = GOOD if fitted else GOOD_PREDICTED
    q: float = max(verdict.q or 0.0, 0.0)
    by: By = "misfit"
    worse = yardstick.contrast > 0 and (q - 1) * yardstick.contrast > WORSE
    if yardstick.contrast < WITHIN_NOISE and not worse:
        return _by_patterns_held_out(verdict, compared)
    if verdict.held_out_q is not None:
        # What is fitted leaves as much less than the true object as what was held out leaves more.
        q, by = (q + max(verdict.held_out_q, 0.0)) / 2, "held-out patterns"
    elif _follows_noise(compared):
        return replace(
            verdict,
            reason="it leaves less than noise does, so it follows the noise; no patterns were held out",
        )
    unexplained = f"{q:.0%} of what the mean pattern leaves is not explained"
    reason = unexplained if q < 1 else "it explains no more than the mean pattern does"
    if q > good and yardstick.noise.gain is None:
        reason += ", noise included, which is not known here"
    status: Status = "good" if q <= good else "doubtful" if q < POOR else "poor"
    return replace(verdict, status=status, by=by, reason=reason)


def _follows_noise(compared: Compared) -> bool:
    own = float(misfits(compared.noise, compared.measured, compared.predicted).mean())
    return own < FOLLOWS_NOISE * compared.misfit_noise


def _by_patterns_held_out(verdict: Verdict, compared: Compared) -> Verdict:
    """Judge where R cannot: do patterns that took no part tell the object from the mean pattern?"""
    hidden = "R cannot judge, since the mean pattern leaves little more than noise"
    if verdict.better is None or verdict.held_out < ENOUGH_HELD_OUT:
        few = "too few" if verdict.held_out else "no"
        return replace(verdict, reason=f"{hidden}, and {few} patterns were held out")
    if verdict.better <= -CLEARLY:
        reason = f"{hidden}; patterns held out are explained worse than by the mean pattern"
        return replace(verdict, status="poor", by="held-out patterns", reason=reason)
    if verdict.better < CLEARLY:
        return replace(verdict, reason=f"{hidden}, and so do patterns held out")
    reason = f"{hidden}; patterns held out are explained better than by the mean pattern"
    frc, apart = compare_halves(compared.scan, compared.probe * float(np.sqrt(compared.scale)))
    agree = frc is not None and frc <= FINE_PX * compared.scan.n_pixels
    left = verdict.held_out_q or 0.0
    good = agree and left < POOR
    if not good and agree:
        reason += f", but {left:.0%} of what the mean pattern leaves is not explained"
    return replace(
        verdict,
        status="good" if good else "doubtful",
        by="held-out patterns and two halves",
        reason=reason,
        frc_px=frc,
        halves_apart=apart,
    )


def compare_halves(scan: ScanData, probe: Tensor) -> tuple[float | None, float | None]:
    """Return the period, in pixels, down to which objects of two halves of a scan agree, and their NRMSE.

    None where they agree on nothing, or cannot be compared.

    Either half is refined from a flat object, so that they have nothing but the patterns' place in common.
    """
    middle = np.random.default_rng(0).permutation(in_the_middle(scan, HALVES))
    try:
        first, second = (
            refine_object(scan.subset(np.sort(middle[half::2])), "flat", HALVES_EPOCHS, probe=probe)
            for half in (0, 1)
        )
        both = np.minimum(first.coverage, second.coverage)
        scores = evaluate(first.object, second.object, coverage=both)
        return scores.frc_one_seventh_px, float(scores.nrmse)
    except UserError:  # too few patterns, or nothing in common
        return None, None
