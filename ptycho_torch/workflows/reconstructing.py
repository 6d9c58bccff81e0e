"""From a file that nobody looked into to a judged object: what nobody sets is decided from the data.

Every decision is the value of a science field, with its evidence; it counts as a default of this workflow, so
whoever sets the field decides instead. First comes the reading, then the orientation of the positions, the
probe, and what refinement has to adapt, each tried on a compact part of the scan. When all is decided,
the work is that of `ptycho-torch infer --start flat` with the same fields, so that a rerun repeats it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_exec.errors import DataError, Finding
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind
from ptycho_exec.sources.resolve import Factory
from ptycho_torch.config import ScienceConfig
from ptycho_torch.data.containers import selected
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.factory import RECONSTRUCTION_DEFAULTS
from ptycho_torch.reconstruction.refine import RefineResult, enough_epochs, refine_object
from ptycho_torch.reconstruction.verdict import Verdict, judge_object
from ptycho_torch.settings import ScienceSettings, changed
from ptycho_torch.workflows import components
from ptycho_torch.workflows.clock import Clock
from ptycho_torch.workflows.preparing import (
    AUTO,
    ESTIMATE,
    Decision,
    Say,
    decided,
    decision_on,
    decisions_of,
    with_estimated_probe,
    with_found_orientation,
)

READINGS = 4
"""How often a scan is read anew with what the last reading showed."""
TRIAL_PATTERNS, TRIAL_EPOCHS, LONGEST, HELD_OUT = 250, 10, 30, 1 / 16
"""A trial refines so many patterns in the middle of the scan for so long, and holds out a part of them; with
fewer patterns it is as much longer, up to `LONGEST` epochs."""
EXTENSIONS: tuple[tuple[str, Any, str], ...] = (
    ("refine_positions", True, "positions that move"),
    ("probe_modes", 3, "three probe modes"),
    ("refine_background", True, "a background"),
)
"""What is tried, in this order, where the object is not explained well: field, value, and in words."""
BETTER = 0.9
"""An extension is taken that leaves less than this part of what was unexplained in patterns held back."""


@dataclass(frozen=True)
class Trial:
    """A short refinement of some patterns, and how well it predicts those that took no part."""

    refined: RefineResult
    verdict: Verdict

    @property
    def unexplained(self) -> float:
        q = self.verdict.q if self.verdict.held_out_q is None else self.verdict.held_out_q
        return float("inf") if q is None else q


@dataclass
class Decisions:
    """What was asked for, and the fields that the data decide because nobody did."""

    asked: ScienceSettings
    say: Say
    made: dict[str, Factory] = field(default_factory=dict)
    trial: Trial | None = None
    """A trial of all that is decided so far, if there is one."""

    @property
    def science(self) -> ScienceConfig:
        return self.asked.with_factory_defaults(**self.made).config

    def open(self, name: str) -> bool:
        """Return whether nobody set a field."""
        return self.asked.origins[name].kind is Kind.DEFAULT

    def make(self, name: str, value: Any, evidence: str) -> bool:
        """Decide a field and say so, unless somebody set it or it is so; return whether it changes."""
        if not self.open(name) or getattr(self.asked.with_factory_defaults(**self.made), name) == value:
            return False
        self.made[name], self.trial = Factory(value, evidence), None
        self.say(Decision(name, value, evidence).line())
        return True

    def follow(self, findings: Iterable[Finding]) -> bool:
        """Decide what mends the findings; return whether anything changed."""
        changed = False
        for finding in findings:
            for name, value in finding.options.items():
                if name == "drop" and name in self.made:  # each finding names what it would leave out
                    value = ",".join(dict.fromkeys([*self.made[name].value.split(","), *value.split(",")]))
                elif name in self.made:  # what is left of it after that, a second pedestal say, is no news
                    continue
                changed |= self.make(name, value, finding.what)
        return changed


def plan_reconstruction(
    scan_file: Path,
    asked: ScienceSettings,
    settings: ExecutionSettings,
    *,
    say: Say,
    clock: Clock | None = None,
) -> components.Inference:
    """Read a scan, decide what nobody set, and plan the refinement of a flat object.

    Args:
        scan_file: the scan.
        asked: what somebody set; the rest is decided.
        settings: how to run.
        say: takes a line per decision.
        clock: takes the seconds of each phase.

    Raises:
        SettingsError, DataError: as an inference does; a scan in which no probe can be found is one, too.
    """
    clock, decisions = clock or Clock(), Decisions(asked, say, dict(RECONSTRUCTION_DEFAULTS))
    with clock.phase("read"):
        scan = _read(scan_file, decisions)
        _refuse_apart(scan)
    with clock.phase("decide"):
        for decide in (_find_orientation, _find_probe, _adapt):
            scan = decide(scan, decisions, settings.seed)
        science = _lengthen(scan, decisions, settings.seed)
    rows = [asdict(Decision(name, made.value, made.reason)) for name, made in decisions.made.items()]
    rows += [row for row in decisions_of(scan) if row["field"] not in decisions.made]
    scan = replace(scan, report={**scan.report, "decisions": rows})
    return components.plan_inference(None, scan, science, settings, clock=clock)


def _read(scan_file: Path, decisions: Decisions) -> ScanData:
    """Read a scan until nothing that it shows, and can be mended by reading it otherwise, is left."""
    for _ in range(READINGS):
        try:
            scan = read_scan(scan_file, decisions.science.data)
        except DataError as error:
            if not decisions.follow(error.findings):
                raise
            continue
        if not decisions.follow(scan.findings):
            return scan
    return read_scan(scan_file, decisions.science.data)


def _refuse_apart(scan: ScanData) -> None:
    """Refuse patterns that share no part of the object, before a search on a huge canvas."""
    apart = scan.report["neighbor_distance_px"]
    for finding in scan.findings:
        if finding.code == "little-overlap" and apart >= scan.n_pixels:
            raise DataError(
                f"{finding.what}, more than the {scan.n_pixels} of a pattern",
                where=f"{scan.source}, positions",
                expected="neighboring patterns that have a part of the object in common",
                fix=finding.fix,
            )


# --- orientation and probe ---------------------------------------------------------------------------------


def _find_orientation(scan: ScanData, decisions: Decisions, seed: int) -> ScanData:
    """Turn and mirror the positions where another orientation explains the patterns clearly better."""
    asked = decisions.asked
    if asked.orient != AUTO and not (decisions.open("orient") and decisions.open("position_affine")):
        return scan
    scan = with_found_orientation(scan, seed=seed, say=decisions.say)
    found = decision_on(scan, "orient")
    decisions.made["orient"] = Factory(found.value, found.evidence)
    return scan


def _find_probe(scan: ScanData, decisions: Decisions, seed: int) -> ScanData:
    """Keep a probe that explains the patterns in a trial, or find one; the right orientation comes first."""
    asked = decisions.asked.probe
    if scan.probe is not None and asked != ESTIMATE:
        tried = _try(scan, decisions.science, seed)
        if tried.verdict.status == "good" or not decisions.open("probe"):
            evidence = f"refined with the object, in a trial {tried.verdict.line()}"
            decisions.make("refine_probe", True, "so it was in the trial")
            decisions.trial = tried
            return decided(scan, Decision("probe", asked, evidence), decisions.say)
        decisions.say(f"the probe that is given, in a trial: {tried.verdict.line()}")
    scan = with_estimated_probe(scan, seed=seed, say=decisions.say)
    decisions.made["probe"] = Factory(ESTIMATE, decision_on(scan, "probe").evidence)
    decisions.make("refine_probe", True, "the probe is an estimate")
    return scan


# --- what refinement has to adapt --------------------------------------------------------------------------


def _try(scan: ScanData, science: ScienceConfig, seed: int) -> Trial:
    """Refine the patterns in the middle of a scan from a flat object, as the science asks, with the probe."""
    middle = scan.subset(np.sort(scan.middle_rows(TRIAL_PATTERNS)))
    moves = science.inference.refine_probe is not False
    options = replace(components.refine_options(science.inference), refine_probe=moves, held_out=HELD_OUT)
    epochs = min(LONGEST, max(TRIAL_EPOCHS, TRIAL_PATTERNS * TRIAL_EPOCHS // len(middle)))
    found = refine_object(middle, "flat", epochs, options=options, seed=seed)
    if found.positions_px is not None:
        middle = replace(middle, positions_px=found.positions_px)
    verdict = judge_object(
        middle,
        found.object,
        found.probe,
        held_out=found.held_out,
        background=found.background,
        probe_refined=moves,
    )
    return Trial(found, verdict)


def _lengthen(scan: ScanData, decisions: Decisions, seed: int) -> ScienceConfig:
    """Return the science; few patterns are refined for more epochs, unless somebody set their number."""
    science, usual = decisions.science, RECONSTRUCTION_DEFAULTS["refine"].value
    used = len(selected(scan, science.data, seed))
    epochs = enough_epochs(used)
    if epochs <= usual or decisions.asked.origins["refine"].kind not in (Kind.DEFAULT, Kind.FACTORY):
        return science
    evidence = f"of {used} patterns {usual} epochs are too little work for an object"
    decisions.made["refine"] = Factory(epochs, evidence)
    decisions.say(Decision("refine", epochs, evidence).line())
    return changed(science, "inference", {"refine": epochs}, evidence)


def _adapt(scan: ScanData, decisions: Decisions, seed: int) -> ScanData:
    """Let refinement move more than object and probe, as far as patterns held out speak for it."""
    plain = decisions.trial or _try(scan, decisions.science, seed)
    if plain.verdict.status in ("good", "cannot-judge"):
        return scan
    decisions.say(f"object and probe alone do not do: in a trial {plain.verdict.line()}")
    left = plain.unexplained
    for name, value, words in EXTENSIONS:
        if not decisions.open(name):
            continue
        more = {**decisions.made, name: Factory(value)}
        now = _try(scan, decisions.asked.with_factory_defaults(**more).config, seed).unexplained
        if now < BETTER * left:
            decisions.make(name, value, f"with {words} {now:.0%} is left unexplained instead of {left:.0%}")
            left = now
    return scan
