"""What is odd about a scan is found, and said wherever work on it begins."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest

from ptycho_exec.cli.probe import Trial
from ptycho_exec.errors import DataWarning
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.api.base_api import _log
from ptycho_torch.cli import main
from ptycho_torch.data.judge import lines
from ptycho_torch.data.read import read_scan
from ptycho_torch.tools.probe_run import run_trial
from ptycho_torch.tools.tune_run import MARK
from ptycho_torch.tools.tune_run import main as tune_run
from ptycho_torch.workflows import components
from tests.torch.data.scan_files import odd_scan

DARK = "4 patterns are zero everywhere (closed shutter?); remove these patterns and their positions"
SMALL = {"epochs": 1, "n_filters": 4, "depth": 1, "limit_train_batches": 1, "enable_progress_bar": False,
         "logger_backend": None, "enable_checkpointing": False}  # fmt: skip
FLAGS = ["--epochs=1", "--n-filters=4", "--depth=1", "--limit-train-batches=1", "--enable-progress-bar=false",
         "--logger-backend=none"]  # fmt: skip


@pytest.fixture
def scan_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return odd_scan(tmp_path / "odd.npz")


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_inspect_says_it(scan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(scan_file)]) == 0
    assert printed(capsys).count(f"warning: {DARK}\n") == 1
    assert main(["inspect", str(scan_file), "--json"]) == 0
    report = json.loads(printed(capsys))
    assert report["warnings"] == [DARK]
    (finding,) = report["findings"]
    assert (finding["code"], finding["level"]) == ("dark-patterns", "adapted")


def test_train_and_infer_say_it_once_before_the_work_and_keep_it(
    scan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(scan_file), "--out", "run", *FLAGS]) == 0
    text = printed(capsys)
    assert text.count(DARK) == 1
    assert text.index(f"warning: {DARK}\n") < text.index("effective batch")
    assert json.loads(Path("run/manifest.json").read_text())["warnings"].count(DARK) == 1
    assert main(["infer", "run", str(scan_file), "--out", "out"]) == 0
    assert printed(capsys).count(DARK) == 1
    assert json.loads(Path("out/manifest.json").read_text())["warnings"].count(DARK) == 1
    assert DARK in Path("out/report.html").read_text()


def test_the_python_calls_say_it_once(scan_file: Path) -> None:
    words = r"4 patterns are zero everywhere .*\n  fix: +remove these patterns and their positions"
    with pytest.warns(DataWarning, match=words):
        results = components.train(scan_file, None, SMALL)
    with pytest.warns(DataWarning, match=words):
        components.reconstruct(results["models"]["lightning_module"], scan_file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        components.run_cdi_example_torch(scan_file, None, SMALL)
    assert [row.category for row in caught].count(DataWarning) == 1


def test_tune_and_the_probe_say_it(
    scan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = {"scan": str(scan_file), "science": {}, "settings": {}, "task": "infer"}
    (tmp_path / "request.json").write_text(json.dumps(request))
    assert tune_run([str(tmp_path / "request.json")]) == 0
    answer = printed(capsys).partition(MARK)[2]
    assert json.loads(answer)["odd"] == [DARK]
    quiet = {"num_threads": 1, "enable_progress_bar": False, "batch_size": 16}
    (tmp_path / "trial").mkdir()
    steps = run_trial(Trial(ExecutionSettings.from_values(quiet), str(scan_file), None), tmp_path / "trial")
    assert [step.what for step in steps].count(f"probe data: {DARK}") == 1
    assert [step.what for step in steps if step.level == "error"] == []


def test_ptychodus_is_told(scan_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _log(f"warning: {DARK}")
        _log("effective batch: 4")
    assert [(row.levelname, row.message) for row in caplog.records] == [
        ("WARNING", f"warning: {DARK}"),
        ("INFO", "effective batch: 4"),
    ]


def test_lines_are_said_once_for_two_scans_and_not_at_all_for_other_containers(scan_file: Path) -> None:
    scan = read_scan(scan_file)
    assert lines(scan, scan.subset(range(4)), None, {"X": np.ones(3)}) == [DARK]
