"""`ptycho-torch reconstruct`: what nobody sets is decided from the data, with evidence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_exec.errors import Finding
from ptycho_torch import evaluate
from ptycho_torch.cli import main
from ptycho_torch.data.scan import ScanData
from ptycho_torch.reconstruction.orientation import orient_positions
from ptycho_torch.settings import ScienceSettings
from ptycho_torch.simulate import save, simulate_scan
from ptycho_torch.workflows.artifacts import read_reconstruction
from ptycho_torch.workflows.reconstructing import Decisions


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_decision_is_said_and_has_its_evidence_as_origin(said: list[str]) -> None:
    decisions = Decisions(ScienceSettings(), said.append)
    assert decisions.follow([Finding("the beam lies off the center", options={"center": "auto"})])
    assert decisions.science.data.center == "auto"
    assert "the beam lies off the center" in decisions.science.origins["center"].describe()
    assert said == ["--center auto: the beam lies off the center"]
    assert not decisions.follow([Finding("again", options={"center": "auto"})])


def test_what_somebody_set_is_not_decided(said: list[str]) -> None:
    decisions = Decisions(ScienceSettings(center="none"), said.append)
    assert not decisions.follow([Finding("the beam lies off the center", options={"center": "auto"})])
    assert decisions.science.data.center == "none"
    assert said == []


def test_what_a_later_reading_shows_does_not_undo_what_an_earlier_one_did(said: list[str]) -> None:
    decisions = Decisions(ScienceSettings(), said.append)
    assert decisions.follow([Finding("a background of 100", options={"pedestal": 100.0})])
    assert not decisions.follow([Finding("a background of 0.6 is left", options={"pedestal": 0.6})])
    assert decisions.science.data.pedestal == 100.0


def test_all_that_is_to_be_left_out_is(said: list[str]) -> None:
    decisions = Decisions(ScienceSettings(), said.append)
    findings = [Finding("far", options={"drop": "far"}), Finding("dark", options={"drop": "dark"})]
    assert decisions.follow(findings)
    assert decisions.science.data.drop == "far,dark"


def _reconstructed(scan: ScanData, folder: Path, *flags: str) -> tuple[dict[str, Any], dict[str, Any]]:
    path = save(scan, folder / "scan.npz")
    out = folder / "out"
    assert main(["reconstruct", str(path), "--out", str(out), *flags]) == 0
    return json.loads((out / "manifest.json").read_text()), read_reconstruction(out)


def _agreement(found: dict[str, Any], truth: np.ndarray[Any, Any]) -> float:
    score = evaluate(found["object"], truth, coverage=found["coverage"])
    return float(score.to_json()["phase_ssim"])


SIMULATED: dict[str, Any] = {"n": 32, "patterns": 144, "photons": 1e6, "step_px": 2.5, "seed": 2}


@pytest.mark.slow
def test_a_scan_that_is_in_order_is_refined_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = simulate_scan(**SIMULATED)
    manifest, found = _reconstructed(scan, tmp_path)
    assert manifest["verdict"]["status"] == "good"
    assert manifest["science"]["data"]["orient"] == "none"
    assert _agreement(found, scan.object_guess) > 0.9
    text = capsys.readouterr().out
    assert "--orient none: " in text
    assert "--probe auto: " in text


@pytest.mark.slow
def test_what_is_wrong_is_mended_and_the_run_can_be_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = simulate_scan(**SIMULATED)
    patterns = np.roll(np.asarray(scan.patterns), (3, -4), axis=(1, 2))
    patterns[:, 5, 7] = 4000  # hot
    stored = scan.positions_px - np.asarray(scan.position_shift_px)
    wrong = replace(
        scan,
        patterns=patterns,
        positions_px=orient_positions(stored, "transpose"),
        position_shift_px=(0.0, 0.0),
        probe=None,
        object_guess=None,
    )
    manifest, _ = _reconstructed(wrong, tmp_path)
    data = manifest["science"]["data"]
    assert data["center"] == "auto"
    assert data["mask_suspects"] is True
    assert data["orient"] in ("transpose", "transpose-flip-yx")
    assert data["probe"] == "estimate"
    assert manifest["verdict"]["status"] == "good"
    assert {row["field"] for row in manifest["data"]["test"]["report"]["decisions"]} >= {
        "center", "mask_suspects", "orient", "probe", "refine_probe"}  # fmt: skip
    assert manifest["science_origins"]["center"]["reason"].startswith("the beam lies")
    capsys.readouterr()
    assert main(["rerun", str(tmp_path / "out"), "--verify"]) == 0


@pytest.mark.slow
def test_the_orientation_beside_a_matrix_for_the_positions_is_taken_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, _ = _reconstructed(simulate_scan(**SIMULATED), tmp_path, "--position-affine", "1,0.01,0,1")
    assert manifest["science"]["data"]["orient"] == "none"
    assert "--orient" not in capsys.readouterr().out


@pytest.mark.slow
def test_flags_decide(tmp_path: Path) -> None:
    scan = simulate_scan(**SIMULATED)
    manifest, _ = _reconstructed(scan, tmp_path, "--refine", "5", "--orient", "none", "--probe-modes", "2")
    science = manifest["science"]
    assert science["inference"]["refine"] == 5
    assert science["inference"]["probe_modes"] == 2
    assert manifest["science_origins"]["orient"]["kind"] == "flag"


def test_what_refinement_adapts_can_be_asked_for_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The epochs that these need are a default of this command."""
    missing = str(tmp_path / "none.npz")
    for flags in (["--probe-modes", "3"], ["--refine-positions", "true"], ["--refine-background", "true"]):
        assert main(["reconstruct", missing, "--out", str(tmp_path / "out"), *flags]) == 1
        assert "scan not found" in capsys.readouterr().err


def test_a_directory_that_is_in_use_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(simulate_scan(**SIMULATED), tmp_path / "scan.npz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    assert main(["reconstruct", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "not empty" in capsys.readouterr().err
    assert main(["reconstruct", str(tmp_path / "none.npz"), "--out", str(tmp_path / "new")]) == 1
    assert "scan not found" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("patterns", [16, 64])
def test_a_right_probe_is_kept_and_the_result_no_worse_than_that_of_the_plain_command(
    tmp_path: Path, patterns: int
) -> None:
    scan = replace(simulate_scan(n=32, patterns=patterns, photons=1e6, seed=1), object_guess=None)
    manifest, _ = _reconstructed(scan, tmp_path)
    assert manifest["science"]["data"]["probe"] == "auto"
    plain = ["infer", str(tmp_path / "scan.npz"), "--start", "flat", "--refine", "30"]
    assert main([*plain, "--refine-probe", "true", "--out", str(tmp_path / "plain")]) == 0
    other = json.loads((tmp_path / "plain" / "manifest.json").read_text())
    assert manifest["verdict"]["r_factor"] <= 1.05 * other["verdict"]["r_factor"]


def test_few_patterns_are_refined_for_more_epochs_unless_somebody_says_how_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(simulate_scan(n=32, patterns=60, photons=1e6, seed=1), tmp_path / "scan.npz")
    words = ["reconstruct", str(tmp_path / "scan.npz"), "--orient", "none", "--refine-probe", "false"]
    found = {}
    for out, flags, epochs in (("few", ["--n-patterns", "30"], 667), ("said", ["--refine", "25"], 25)):
        assert main([*words, *flags, "--out", str(tmp_path / out)]) == 0
        assert (f"--refine {epochs}: of 30 patterns" in capsys.readouterr().out) == (out == "few")
        found[out] = json.loads((tmp_path / out / "manifest.json").read_text())
        assert found[out]["science"]["inference"]["refine"] == epochs
        assert len(found[out]["refinement"]["losses"]) == epochs
    assert "30 patterns" in found["few"]["science_origins"]["refine"]["reason"]


def test_patterns_that_share_nothing_are_refused_before_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = simulate_scan(**SIMULATED)
    apart = replace(scan, positions_px=scan.positions_px * 60, object_guess=None, pixel_size_m=None)
    path = save(apart, tmp_path / "scan.npz")
    assert main(["reconstruct", str(path), "--out", str(tmp_path / "out")]) == 1
    text = capsys.readouterr().err
    assert "pixels apart, more than the 32 of a pattern" in text
    assert "--positions-unit" in text
