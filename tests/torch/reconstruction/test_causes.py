"""A fault is named by the figures of its misfit, first among the causes, with the option that remedies it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho_exec.errors import Finding
from ptycho_exec.fields.spec import as_flags
from ptycho_torch import simulate_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.reconstruction.causes import FINDINGS, UNKNOWN, curl_of, shifts_of_centers
from ptycho_torch.reconstruction.verdict import Verdict, judge_object
from ptycho_torch.settings import ScienceSettings


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=32, patterns=144, photons=1e5)


def judged(scan: ScanData, **changes: object) -> Verdict:
    assert scan.object_guess is not None
    return judge_object(replace(scan, **changes), scan.object_guess.astype(np.complex64))


def with_patterns(scan: ScanData, change: np.ndarray) -> Verdict:
    return judged(scan, patterns=(np.asarray(scan.patterns, np.int64) + change).astype(np.uint32))


def first(verdict: Verdict) -> tuple[str, str]:
    return verdict.causes[0].name, as_flags(verdict.causes[0].options[0])


def test_hot_pixels(scan: ScanData) -> None:
    change = np.zeros((32, 32), np.int64)
    change[np.arange(3, 30, 4), np.arange(3, 30, 4)[::-1]] = 5000
    assert first(with_patterns(scan, change)) == ("mask", "--mask-suspects true")


def test_a_gap_without_a_mask(scan: ScanData) -> None:
    patterns = np.asarray(scan.patterns).copy()
    patterns[:, 14:17] = 0
    assert first(judged(scan, patterns=patterns))[0] == "mask"


def test_a_background(scan: ScanData) -> None:
    rng = np.random.default_rng(0)
    verdict = with_patterns(scan, rng.poisson(60, scan.patterns.shape))
    assert first(verdict) == ("background", "--refine-background true")


def test_positions_that_are_off(scan: ScanData) -> None:
    off = np.random.default_rng(0).normal(size=scan.positions_px.shape)
    assert first(judged(scan, positions_px=scan.positions_px + off)) == (
        "positions",
        "--refine-positions true",
    )


def test_a_wrong_probe(scan: ScanData) -> None:
    assert scan.probe is not None
    y, x = np.indices((32, 32)) - 15.5
    curved = scan.probe * np.exp(0.03j * (x**2 + y**2))
    names = [cause.name for cause in judged(scan, probe=curved.astype(np.complex64)).causes]
    assert "probe" in names


def test_only_the_right_axes_have_little_curl(scan: ScanData) -> None:
    shifts = shifts_of_centers(scan)
    right = curl_of(*shifts, ((1, 0), (0, 1)))
    assert right < 0.25
    for axes in (((1, 0), (0, -1)), ((0, 1), (1, 0)), ((0, 1), (-1, 0))):
        assert curl_of(*shifts, axes) > right + 0.1
    assert curl_of(*shifts, ((-1, 0), (0, -1))) == pytest.approx(right)


def test_what_was_found_on_reading_counts(scan: ScanData) -> None:
    finding = {"what": "the beam lies off", "level": "adapted", "code": "off-center"}
    rolled = np.roll(np.asarray(scan.patterns), (4, 5), axis=(1, 2))
    verdict = judged(scan, patterns=rolled, report={**scan.report, "findings": [finding]})
    assert ("center", "the beam lies off") in [(cause.name, cause.evidence) for cause in verdict.causes]


def test_every_cause_has_an_option() -> None:
    options = [*(options for _, options, _ in FINDINGS.values()), *(cause.options for cause in UNKNOWN)]
    assert all(options)
    names = {name for remedies in options for remedy in remedies for name in remedy}
    assert names <= ScienceSettings.model_fields.keys()


def test_a_cause_has_the_values_that_reading_found(scan: ScanData) -> None:
    close = Finding(
        "probes lie close", level="adapted", code="much-overlap", options={"positions_unit": "nm"}
    )
    report = {**scan.report, "findings": [close.to_json()]}
    verdict = judged(scan, patterns=np.asarray(scan.patterns) + 37, report=report)
    (cause,) = (cause for cause in verdict.causes if cause.name == "units")
    assert cause.line() == "units: probes lie close; try --positions-unit nm"


def test_remedies_in_use_are_not_advised() -> None:
    orientation, probe = UNKNOWN
    verdict = Verdict("poor", "misfit", "", causes=(orientation, probe))
    left = verdict.beyond({"orient": "auto", "refine_probe": True, "probe": "file"})
    assert [cause.name for cause in left.causes] == ["probe", "orientation"]
    assert left.causes[0].line().endswith("try --probe estimate")
    assert left.causes[1].line().endswith("what remedies it is in use")


@pytest.mark.parametrize("along", [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8)])
def test_positions_on_a_line_are_judged(scan: ScanData, along: tuple[float, float]) -> None:
    place = np.linspace(0, 20, len(scan))[:, None] * np.array(along)
    verdict = judged(scan, positions_px=place + 18)
    assert verdict.status == "poor"
    assert "orientation" not in [cause.name for cause in verdict.causes]
