"""One trial as a program: what it measures, what it answers, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import DataConfig, ModelConfig, ScienceConfig, TrainingConfig
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import save, simulate_scan
from ptycho_torch.tools import tune_run
from ptycho_torch.workflows import components

QUIET = {"logger_backend": None, "enable_checkpointing": False, "enable_progress_bar": False}
SCIENCE = ScienceConfig(model=ModelConfig(n_filters=8), training=TrainingConfig(epochs=10**6))


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=32, patterns=48, seed=0)


def request(folder: Path, scan: Path, task: str, data: DataConfig | None = None, **values: Any) -> str:
    """Describe a trial in a file, as `tune` does, and return the file."""
    science, file = SCIENCE.model_dump(mode="json"), folder / "request.json"
    science["data"] |= {} if data is None else data.model_dump(mode="json")
    asked = {"task": task, "scan": str(scan), "settings": {**QUIET, **values}, "science": science}
    file.write_text(json.dumps(asked))
    return str(file)


def answer(printed: str) -> dict[str, Any]:
    (line,) = [row for row in printed.splitlines() if row.startswith(tune_run.MARK)]
    found: dict[str, Any] = json.loads(line.removeprefix(tune_run.MARK))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "values"),
    [("train", {"max_time": "00:00:00:01"}), ("infer", {"inference_batch_size": 16})],
    ids=["train", "infer"],
)
def test_a_real_trial_measures_speed_and_memory(
    scan: ScanData, tmp_path: Path, task: str, values: dict[str, Any]
) -> None:
    file = request(tmp_path, save(scan, tmp_path / "scan.npz"), task, **values)
    words = [sys.executable, "-m", "ptycho_torch.tools.tune_run", file]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    found = answer(done.stdout)
    assert found.keys() == {"odd", "patterns_per_s", "peak_mib", "gpu_peak_mib"}
    assert found["patterns_per_s"] > 0
    assert 100 < found["peak_mib"] < 20_000


@pytest.mark.parametrize("task", ["train", "infer"])
def test_a_trial_looks_for_no_probe_and_no_orientation(
    task: str,
    scan: ScanData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found(*_: Any, **__: Any) -> None:
        pytest.fail("a trial takes seconds, which a search would use up")

    monkeypatch.setattr("ptycho_torch.workflows.preparing.estimate_probe", found)
    monkeypatch.setattr("ptycho_torch.workflows.preparing.find_orientation", found)
    path = save(replace(scan, probe=None), tmp_path / "scan.npz")
    data = DataConfig(orient="auto", probe="estimate")
    assert tune_run.main([request(tmp_path, path, task, data, max_steps=3)]) == 0
    assert answer(capsys.readouterr().out)["patterns_per_s"] > 0


def test_a_scan_that_cannot_be_read_is_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "scan.npz"
    assert tune_run.main([request(tmp_path, missing, "train")]) == 0
    found = answer(capsys.readouterr().out)
    assert found.keys() == {"error"}
    assert str(missing) in found["error"]


def test_the_rate_of_training_counts_the_patterns_of_a_group(
    scan: ScanData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times the groups per second, which the workflow itself measured."""
    measured: list[float | None] = []
    train = components.train

    def kept(*given: Any) -> Any:
        result = train(*given)
        measured.append(result.samples_per_second)
        return result

    monkeypatch.setattr(components, "train", kept)
    data = SCIENCE.data.model_copy(update={"gridsize": 2})
    science = SCIENCE.model_copy(update={"data": data, "training": TrainingConfig(epochs=1)})
    settings = ExecutionSettings.from_values({**QUIET, "batch_size": 12})
    rate = tune_run.train(scan, science, settings)
    assert measured[0] is not None
    assert rate == pytest.approx(4 * measured[0])
    one_step = ExecutionSettings.from_values({**QUIET, "batch_size": 48})
    assert tune_run.train(scan, science, one_step) is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell memory this way")
def test_memory_that_was_used_and_freed_is_in_the_peak() -> None:
    code = (
        "import numpy as np; from ptycho_torch.tools.tune_run import peak_mib;"
        "before = peak_mib(); part = np.ones(200 * 2**17); del part; print(peak_mib() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(200, abs=20)
