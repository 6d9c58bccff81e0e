"""The side of a trial that trains: what works is a line, what does not is a line with a remedy."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ptycho_torch.model
from ptycho_exec import ExecutionSettings
from ptycho_exec.cli.probe import Trial, to_json
from ptycho_torch.simulate import save, simulate_scan
from ptycho_torch.tools import probe_run as trial

QUIET = {"num_threads": 1, "enable_progress_bar": False, "batch_size": 4, "inference_batch_size": 8}
WATCHING: dict[str, dict[str, Any]] = {
    "checkpoints": {"early_stop_patience": None},
    "early stopping": {"enable_checkpointing": False},
    "scheduler ReduceLROnPlateau": {
        "enable_checkpointing": False,
        "early_stop_patience": None,
        "scheduler": "ReduceLROnPlateau",
    },
    "scheduler Adaptive": {
        "enable_checkpointing": False,
        "early_stop_patience": None,
        "scheduler": "Adaptive",
    },
}


def tried(
    folder: Path, *, scan: str = "simulated", validation: str | None = None, **values: Any
) -> dict[str, Any]:
    """Run a trial in this process; return its steps by subject, the last one of each, failures first."""
    settings = ExecutionSettings.from_values({**QUIET, **values})
    steps = trial.run_trial(Trial(settings, scan, validation), folder)
    report = json.loads((folder / "report.json").read_text())
    assert report["doing"] is None
    assert [row["what"] for row in report["steps"]] == [step.what for step in steps]
    ordered = sorted(steps, key=lambda step: step.level == "error")
    rows = [SimpleNamespace(**to_json(step), failed=step.level == "error") for step in ordered]
    return {row.subject: row for row in rows}


class OnlyTrainLoss(ptycho_torch.model.PtychoPINN_Lightning):
    """A module that claims to validate and never logs it."""

    def log(self, name: str, *arguments: Any, **options: Any) -> None:
        if name != "val_loss":
            super().log(name, *arguments, **options)


def test_a_trial_trains_checks_and_predicts(tmp_path: Path) -> None:
    steps = tried(tmp_path, validation="simulated")
    assert list(steps) == [
        f"probe {word}" for word in ("data", "fit", "read-back", "metrics", "files", "predict")
    ]
    assert {step.level for step in steps.values()} == {"OK"}
    assert steps["probe metrics"].text == "val_loss was logged, for checkpoints, early stopping"
    assert steps["probe predict"].text.startswith("8 patterns in batches of 8 stitched")
    assert list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))


def test_without_validation_train_loss_takes_the_place_and_is_really_logged(tmp_path: Path) -> None:
    steps = tried(tmp_path, scheduler="ReduceLROnPlateau")
    text = "train_loss was logged, for checkpoints, early stopping, scheduler ReduceLROnPlateau"
    assert steps["probe metrics"].text == text


@pytest.mark.parametrize(
    ("monitor", "validation", "what"),
    [("val_lossx", "simulated", "never logs it"), ("val_ssim", None, "no validation data")],
)
def test_a_metric_that_nobody_logs_is_refused(
    tmp_path: Path, monitor: str, validation: str | None, what: str
) -> None:
    steps = tried(tmp_path, validation=validation, checkpoint_monitor_metric=monitor)
    failed = steps["probe fit"]
    assert (failed.level, failed.setting) == ("FAIL", "checkpoint_monitor_metric")
    assert what in failed.text
    assert "train_loss" in failed.text
    assert "probe predict" not in steps


@pytest.mark.parametrize("reader", WATCHING)
def test_a_metric_that_is_promised_and_not_logged_is_found_out(
    tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads it, and however it complains or does not: the trial fails and says what to set."""
    monkeypatch.setattr("ptycho_torch.model.PtychoPINN_Lightning", OnlyTrainLoss)
    steps = tried(tmp_path, validation="simulated", **WATCHING[reader])
    failed = [step for step in steps.values() if step.failed]
    assert [step.setting for step in failed] == ["checkpoint_monitor_metric"], steps
    assert "val_loss" in failed[0].text
    assert failed[0].fix


def test_a_metric_that_nothing_reads_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptycho_torch.model.PtychoPINN_Lightning", OnlyTrainLoss)
    steps = tried(tmp_path, validation="simulated", enable_checkpointing=False, early_stop_patience=None)
    assert not any(step.failed for step in steps.values())
    assert steps["probe metrics"].text.startswith("nothing reads val_loss")


def test_a_missing_metric_that_lightning_does_not_miss_is_found_by_comparing(tmp_path: Path) -> None:
    class Row:
        changed, requested, value, reason = False, "val_x", "val_x", ""

    class Stand:
        settings = ExecutionSettings.from_values({"checkpoint_monitor_metric": "val_x"})
        effective = {"checkpoint_monitor_metric": Row}  # noqa: RUF012
        callback_metrics = {"train_loss": 1.0}  # noqa: RUF012

    progress = trial.Progress(tmp_path)
    trial.check_metrics({"plan": Stand, "models": {"trainer": Stand}, "history": {}}, progress)
    (step,) = progress.steps
    assert step.level == "error"
    assert step.what.endswith("val_x was never logged, and checkpoints, early stopping would wait for it")
    assert step.fix == "monitor one of: train_loss"


@pytest.mark.parametrize(
    ("values", "subject", "text"),
    [
        ({"precision": "bf16-mixed", "accum_steps": 2}, "fit", "cpu, bf16-mixed, batch of 4"),
        ({"fast_dev_run": 1}, "predict", "8 patterns"),
        ({"logger_backend": None, "enable_checkpointing": False}, "metrics", "train_loss was logged"),
        ({"middle_trim": 16, "pad_eval": True}, "predict", "8 patterns"),
        ({"limit_train_batches": 0.5, "max_time": "00:00:10:00"}, "fit", "cpu, 32-true"),
    ],
)
def test_settings_of_all_kinds_are_tried(
    tmp_path: Path, values: dict[str, Any], subject: str, text: str
) -> None:
    steps = tried(tmp_path, **values)
    assert not any(step.failed for step in steps.values()), steps
    assert text in steps[f"probe {subject}"].text


def test_loader_workers_really_start(tmp_path: Path) -> None:
    steps = tried(tmp_path, num_workers=1, persistent_workers=True, prefetch_factor=3)
    assert "1 loader workers" in steps["probe fit"].text
    assert not any(step.failed for step in steps.values())


def test_a_scan_of_the_user_is_read_and_a_batch_too_large_for_it_is_told(tmp_path: Path) -> None:
    path = save(simulate_scan(n=32, patterns=20), tmp_path / "scan.npz")
    steps = tried(tmp_path, scan=str(path), batch_size=32, inference_batch_size=16)
    assert "a batch of 32 was cut to the 20 patterns there are" in steps["probe data"].text
    assert steps["probe predict"].text.startswith("16 patterns")


def test_a_scan_that_cannot_be_read_ends_the_trial(tmp_path: Path) -> None:
    (tmp_path / "scan.npz").write_text("no archive")
    steps = tried(tmp_path, scan=str(tmp_path / "scan.npz"))
    assert list(steps) == ["probe data"]
    assert steps["probe data"].failed
    assert steps["probe data"].where


def test_a_tracking_server_is_left_alone(tmp_path: Path) -> None:
    values = {"tracking_uri": "http://me:s3cret@127.0.0.1:9", "logger_backend": "csv"}
    steps = tried(tmp_path, **values)
    assert "no run is left there" in steps["probe logger"].text
    assert not any(step.failed for step in steps.values())


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "smaller batch_size"),
        (RuntimeError("something\n odd"), "--debug"),
    ],
)
def test_errors_of_other_kinds_have_a_remedy_too(error: Exception, fix: str) -> None:
    (step,) = trial.failures("fit", error)
    assert step.level == "error"
    assert step.what.startswith("probe fit: RuntimeError: ")
    assert "\n" not in step.what
    assert fix in step.fix


@pytest.mark.slow
def test_the_whole_command_leaves_nothing_behind(tmp_path: Path) -> None:
    """The real thing, in processes of its own: home, working directory and temporary folder stay empty."""
    folders = [tmp_path / name for name in ("home", "work", "tmp")]
    for folder in folders:
        folder.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    values = {"OMP_NUM_THREADS": "1", "PTYCHO_EXEC_CHECKPOINT_MONITOR_METRIC": "val_lossx"}
    done = subprocess.run(
        [sys.executable, "-m", "ptycho_exec", "check", "--probe", "--test", "--quiet"],
        cwd=folders[1],
        env={**kept, **values, "HOME": str(folders[0]), "TMPDIR": str(folders[2])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAIL  probe fit: checkpoint_monitor_metric=val_lossx: the module never logs it" in done.stdout
    assert [list(folder.iterdir()) for folder in folders] == [[], [], []]


def test_the_program_reads_its_request_and_writes_its_report(tmp_path: Path) -> None:
    settings = ExecutionSettings.from_values(QUIET)
    (tmp_path / "request.pickle").write_bytes(pickle.dumps(Trial(settings)))
    assert trial.main([str(tmp_path)]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["doing"] is None
