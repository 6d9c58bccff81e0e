"""Every second inside fit and predict belongs to one part, taken from what really happens."""

import pickle
from pathlib import Path

import pytest

from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.record import read_manifest
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import ScienceConfig, TrainingConfig
from ptycho_torch.factory import create_inference_payload, create_training_payload
from ptycho_torch.simulate import save, simulate_scan
from ptycho_torch.workflows import runs, times
from ptycho_torch.workflows.clock import Parts


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(times.time, "perf_counter", lambda: now[0])
    return now


def test_inner_actions_count_for_themselves(clock: list[float]) -> None:
    taken = times.PartTimes()
    names = [
        "run_training_epoch",
        "run_training_batch",
        "[Callback]ResumePoint.on_train_end",
        "anything else",
    ]
    for seconds, name in zip((1.0, 2.0, 4.0, 8.0), names, strict=True):
        taken.start(name)
        clock[0] += seconds
    for name in reversed(names):
        taken.stop(name)
        clock[0] += 16.0
    # What has no part of its own counts for the part around it; outside all parts nothing counts.
    assert taken.seconds == {"compute": 2.0 + 16.0, "checkpoint": 4.0 + 8.0 + 16.0}
    assert taken.first_step_at is not None


def test_parts_of_a_loop_of_our_own_are_taken_likewise(clock: list[float]) -> None:
    taken = Parts()
    with taken.part("compute"):
        clock[0] += 1.0
        with taken.part("load"):
            clock[0] += 2.0
    clock[0] += 4.0
    taken.leave()  # of nothing
    assert taken.seconds == {"compute": 1.0, "load": 2.0}
    assert taken.first_step_at is None


def test_it_travels_to_other_processes() -> None:
    taken = times.PartTimes()
    taken.start("run_training_batch")
    taken.stop("run_training_batch")
    assert pickle.loads(pickle.dumps(taken)).seconds.keys() == {"compute"}


def test_a_real_run_fills_every_part(tmp_path: Path) -> None:
    scan = save(simulate_scan(n=32, patterns=32, seed=0), tmp_path / "scan.npz")
    settings = ExecutionSettings.from_values({"batch_size": 8, "enable_progress_bar": False})
    science = ScienceConfig(training=TrainingConfig(epochs=2, val_fraction=0.25))
    overrides = {"epochs": science.training.epochs, "val_fraction": science.training.val_fraction}
    runs.train(create_training_payload(scan, tmp_path / "run", overrides, settings))
    runs.infer(create_inference_payload(tmp_path / "run", scan, tmp_path / "out", {}, settings))
    trained, inferred = (read_manifest(tmp_path / name) for name in ("run", "out"))
    assert {f"fit: {part}" for part in ("load", "compute", "validate", "checkpoint", "other")} <= set(
        trained["shares"]
    )
    assert {f"predict: {part}" for part in ("load", "compute", "stitch")} <= set(inferred["shares"])
    assert trained["shares"]["fit: compute"] > trained["shares"]["fit: load"] > 0
    assert sum(value for name, value in trained["shares"].items() if ":" not in name) == pytest.approx(
        1, abs=0.01
    )
    assert trained["first_step_at"] > 1.7e9
    read_back = {"name": "profiler", "requested": "PartTimes", "effective": "PartTimes", "verdict": "same"}
    assert read_back in trained["drift"]


def test_the_machine_is_asked_once_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed = []
    probe = MachineFacts.probe

    def counted(**options: object) -> MachineFacts:
        probed.append(options)
        return probe(ask_torch=False)

    monkeypatch.setattr(MachineFacts, "probe", counted)
    scan = save(simulate_scan(n=32, patterns=16, seed=0), tmp_path / "scan.npz")
    settings = ExecutionSettings.from_values({"fast_dev_run": 1, "enable_progress_bar": False})
    runs.train(create_training_payload(scan, tmp_path / "run", {"n_filters": 8}, settings))
    assert len(probed) == 1
    runs.infer(create_inference_payload(tmp_path / "run", scan, tmp_path / "out", {}, settings))
    assert len(probed) == 2
