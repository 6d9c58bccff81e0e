"""What lies between reading a scan and working on it: a probe from its patterns, its orientation.

Both are asked for by science fields (`probe`, `orient`), take seconds to a minute, and leave their evidence
in the scan's report, from where manifest, report and terminal have it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ptycho_exec.fields.spec import as_flags
from ptycho_exec.machine.facts import affinity_cpus
from ptycho_torch.config import DataConfig
from ptycho_torch.data.assemble import fit_canvas
from ptycho_torch.data.scan import ScanData
from ptycho_torch.reconstruction.orientation import find_orientation, orient_positions
from ptycho_torch.reconstruction.probe_estimate import estimate_probe

Say = Callable[[str], None]
ESTIMATE = "estimate"
AUTO = "auto"
AS_STORED = "none"


@dataclass(frozen=True, slots=True)
class Decision:
    """The value of a science field that was found in the data, and what speaks for it."""

    field: str
    value: Any
    evidence: str

    def line(self) -> str:
        """One line for the user, with the flag that decides otherwise."""
        return f"{as_flags({self.field: self.value})}: {self.evidence}"


def prepared(
    scan: Any, data: DataConfig, *, probe: bool = True, seed: int = 0, say: Say = lambda _: None
) -> Any:
    """Return a scan with the probe and the orientation that the fields `probe` and `orient` ask for.

    Args:
        scan: other containers than scans are returned as they are.
        data: the fields.
        probe: False where the scan's probe takes no part.
        seed: of the searches.
        say: takes a line before each search, and its result.
    """
    if not isinstance(scan, ScanData):
        return scan
    if data.orient == AUTO:  # needs no probe; to find one takes the right orientation
        scan = with_found_orientation(scan, seed=seed, say=say)
    if probe and (data.probe == ESTIMATE or (data.probe == AUTO and scan.probe is None)):
        scan = with_estimated_probe(scan, seed=seed, say=say)
    return scan


def with_estimated_probe(scan: ScanData, *, seed: int = 0, say: Say = lambda _: None) -> ScanData:
    """Return the scan with a probe from its patterns; one that it has takes part in the search."""
    say("looking for the probe in the patterns ...")
    found = estimate_probe(scan, guess=scan.probe, seed=seed, jobs=processors())
    return decided(replace(scan, probe=found.probe), Decision("probe", ESTIMATE, found.line()), say)


def with_found_orientation(scan: ScanData, *, seed: int = 0, say: Say = lambda _: None) -> ScanData:
    """Return the scan with its positions turned and mirrored as explains the patterns clearly best."""
    say("comparing the orientations of the positions ...")
    found = find_orientation(scan, probe=scan.probe, seed=seed, jobs=processors())
    chosen = found.chosen if found.clear else AS_STORED
    return decided(reoriented(scan, chosen), Decision("orient", chosen, found.line()), say)


def decided(scan: ScanData, decision: Decision, say: Say) -> ScanData:
    """Return the scan with a decision in its report; a later one on the same field takes its place."""
    say(decision.line())
    others = [row for row in decisions_of(scan) if row["field"] != decision.field]
    return replace(scan, report={**scan.report, "decisions": [*others, asdict(decision)]})


def decisions_of(scan: ScanData) -> list[dict[str, Any]]:
    """Return what was decided for a scan."""
    return list(scan.report.get("decisions", ()))


def decision_on(scan: ScanData, name: str) -> Decision:
    """Return what was decided on one field, which must have been."""
    return next(Decision(**row) for row in decisions_of(scan) if row["field"] == name)


def reoriented(scan: ScanData, name: str) -> ScanData:
    """Return the scan with its positions turned and mirrored, on a canvas that holds them.

    An object that the file has lies on a canvas of its own orientation and is left out.
    """
    if name == AS_STORED:
        return scan
    stored = scan.positions_px - np.asarray(scan.position_shift_px)
    turned = orient_positions(stored, name)
    canvas, shift = fit_canvas(turned, scan.n_pixels)
    return replace(
        scan,
        positions_px=turned + shift,
        canvas_shape=canvas,
        position_shift_px=(float(shift[0]), float(shift[1])),
        object_guess=None,
        labels=None,
    )


def processors() -> int:
    """Return how many processors this process may use."""
    return affinity_cpus() or os.cpu_count() or 1
