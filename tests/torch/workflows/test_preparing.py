"""Between reading and work: a probe from the patterns, the orientation of the positions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptycho_exec.record import read_manifest
from ptycho_torch.config import DataConfig, InferenceConfig, ScienceConfig, TrainingConfig
from ptycho_torch.data.scan import ScanData
from ptycho_torch.factory import create_training_payload
from ptycho_torch.reconstruction.orientation import orient_positions
from ptycho_torch.simulate import save, simulate_scan
from ptycho_torch.workflows import components, runs
from ptycho_torch.workflows.preparing import (
    Decision,
    decided,
    decision_on,
    decisions_of,
    prepared,
    reoriented,
)


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=32, patterns=100, photons=1e6, step_px=2.5, seed=1)


def test_nothing_is_done_that_was_not_asked_for(scan: ScanData) -> None:
    assert prepared(scan, DataConfig()) is scan
    rows = {"X": np.ones((2, 8, 8))}
    assert prepared(rows, DataConfig(probe="estimate", orient="auto")) is rows


def test_a_probe_that_takes_no_part_is_not_looked_for(scan: ScanData) -> None:
    bare = replace(scan, probe=None)
    assert prepared(bare, DataConfig(), probe=False) is bare


def test_a_scan_turned_twice_is_the_scan(scan: ScanData) -> None:
    turned = reoriented(scan, "transpose")
    assert turned.object_guess is None
    assert turned.canvas_shape == scan.canvas_shape[::-1]
    back = reoriented(turned, "transpose")
    assert np.allclose(np.ptp(back.positions_px, axis=0), np.ptp(scan.positions_px, axis=0))
    apart = back.positions_px - scan.positions_px
    assert np.allclose(apart, apart[0])


def test_a_later_decision_takes_the_place_of_an_earlier_one(scan: ScanData) -> None:
    said: list[str] = []
    first = decided(scan, Decision("orient", "none", "as stored"), said.append)
    second = decided(first, Decision("orient", "flip-y", "half the loss"), said.append)
    assert decisions_of(second) == [{"field": "orient", "value": "flip-y", "evidence": "half the loss"}]
    assert decision_on(second, "orient").value == "flip-y"
    assert said == ["--orient none: as stored", "--orient flip-y: half the loss"]


@pytest.mark.slow
def test_a_training_finds_what_its_scan_lacks(scan: ScanData, tmp_path: Path) -> None:
    stored = scan.positions_px - np.asarray(scan.position_shift_px)
    turned = replace(
        scan, positions_px=orient_positions(stored, "transpose-flip-x"), probe=None, object_guess=None
    )
    path = save(turned, tmp_path / "scan.npz")
    said: list[str] = []
    science = ScienceConfig(data=DataConfig(orient="auto", N=32), training=TrainingConfig(epochs=1))
    training = components.plan_training(path, None, science, {"accelerator": "cpu"}, say=said.append)
    assert training.container.probe.shape == (1, 32, 32)
    # Negating both axes cannot be told from the right orientation.
    assert training.science.data.orient in ("transpose-flip-y", "transpose-flip-x")
    assert any(line.startswith("--probe estimate: ") for line in said)
    assert {row["field"] for row in training.container.report["decisions"]} == {"probe", "orient"}


@pytest.mark.slow
def test_a_training_says_and_records_what_it_found(scan: ScanData, tmp_path: Path) -> None:
    path = save(replace(scan, probe=None), tmp_path / "scan.npz")
    said: list[str] = []
    settings = {"enable_progress_bar": False, "accelerator": "cpu"}
    payload = create_training_payload(path, tmp_path / "run", {"epochs": 1}, settings)
    runs.train(payload, say=said.append)
    (line,) = (text for text in said if text.startswith("--probe estimate: "))
    (row,) = read_manifest(tmp_path / "run")["data"]["train"]["report"]["decisions"]
    assert line == Decision(**row).line()


@pytest.mark.slow
def test_an_iteration_without_a_probe_finds_one(scan: ScanData, tmp_path: Path) -> None:
    path = save(replace(scan, probe=None), tmp_path / "scan.npz")
    science = ScienceConfig(
        data=DataConfig(canvas="positions"),
        inference=InferenceConfig(start="flat", refine=10, refine_probe=True),
    )
    result = components.reconstruct(None, path, science, {"accelerator": "cpu"})
    assert result.verdict.status == "good"
