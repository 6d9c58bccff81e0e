"""The worked CI example of `docs/how-to/ci.md`, run as a CI system would run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from conftest import Place

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "ci.md").read_text("utf-8")
BLOCKS = re.findall(r"```(yaml|text)\n(.*?)```", PAGE, re.S)
WORKFLOW: dict[str, Any] = yaml.safe_load(BLOCKS[0][1])
JOB: dict[str, Any] = WORKFLOW["jobs"]["demo"]
STEPS = [step["run"] for step in JOB["steps"] if step.get("run", "").startswith("ptycho-exec")]


def run_step(place: Place, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one step with the job's variables and no others but those of a GitHub runner."""
    bin_folder = place.home / "bin"
    bin_folder.mkdir(exist_ok=True)
    program = bin_folder / "ptycho-exec"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ptycho_exec "$@"\n')
    program.chmod(0o755)
    runner = {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(place.cwd), "CI": "true"}
    environ = {"HOME": str(place.home), "PATH": f"{bin_folder}:{os.environ['PATH']}", **runner}
    return subprocess.run(
        ["bash", "-e", "-c", command],
        cwd=place.cwd,
        env={**environ, **JOB["env"], **variables},
        capture_output=True,
        text=True,
    )


def test_the_example_is_complete() -> None:
    assert STEPS[:2] == ["ptycho-exec check", "ptycho-exec show --changed"]
    assert all(isinstance(value, str) for value in JOB["env"].values())


@pytest.mark.parametrize("command", STEPS)
def test_every_step_passes(place: Place, command: str) -> None:
    done = run_step(place, command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "::error" not in done.stdout + done.stderr


def test_check_prints_what_the_page_shows(place: Place) -> None:
    done = run_step(place, "ptycho-exec check")
    shown = next(text for kind, text in BLOCKS if kind == "text")
    assert re.sub(r"can run on \S+:", "can run on runner:", done.stdout) == shown


def test_the_job_runs_under_its_variables(place: Place) -> None:
    done = run_step(place, "ptycho-exec show --json")
    shown = json.loads(done.stdout)["settings"]
    origins = {name: row["origin"]["place"] for name, row in shown.items()}
    for variable in JOB["env"]:
        name = variable.removeprefix("PTYCHO_EXEC_").lower()
        if name != "profile":
            assert origins[name] == variable
            assert str(shown[name]["value"]) == JOB["env"][variable]
    assert origins["accelerator"] == "profile:ci"


def test_the_mistakes_on_the_page_are_told_as_the_page_says(place: Place) -> None:
    variables = dict(re.findall(r"`(PTYCHO_EXEC_\w+): \"(\w+)\"`", PAGE))
    assert variables == {"PTYCHO_EXEC_BACH_SIZE": "8", "PTYCHO_EXEC_DEVICES": "two"}
    done = run_step(place, "ptycho-exec check", **variables)
    assert done.returncode == 2
    assert done.stdout in [text for kind, text in BLOCKS if kind == "text"]
    annotations = [line for line in done.stderr.splitlines() if line.startswith("::error")]
    assert [line.split("%0A")[0] for line in annotations] == [
        "::error::unknown setting 'PTYCHO_EXEC_BACH_SIZE'",
        "::error::devices = 'two' is not allowed",
    ]


def test_a_mistake_in_a_file_is_marked_at_its_line(place: Place) -> None:
    place.write("ptycho_exec.toml", "# ours\n\nbach_size = 8\n")
    done = run_step(place, "ptycho-exec show")
    assert done.returncode == 2
    line = next(line for line in done.stderr.splitlines() if line.startswith("::error"))
    assert line.startswith("::error file=ptycho_exec.toml,line=3::unknown setting 'bach_size'%0A  where:")


@pytest.mark.slow
def test_production_settings_are_checked_for_the_cluster(place: Place) -> None:
    step = yaml.safe_load(next(text for _, text in BLOCKS if "--facts" in text))[0]
    facts = json.loads(run_step(place, "ptycho-exec facts").stdout)
    gpu = {"name": "A100", "memory_mb": 81920, "capability": "8.0", "bf16": True}
    place.write("facts/a100.json", json.dumps({**facts, "hostname": "cluster", "gpus": [gpu] * 4}))
    path = place.write("production.toml", 'accelerator = "cuda"\ndevices = 4\nprecision = "bf16-mixed"\n')
    done = run_step(place, step["run"], **step["env"])
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "can run on cluster" in done.stdout
    path.write_text(path.read_text().replace("devices = 4", "devices = 8"))
    done = run_step(place, step["run"], **step["env"])
    assert done.returncode == 2
    assert "::error file=production.toml,line=2::devices=8" in done.stderr


@pytest.mark.slow
def test_one_batch_is_tried_under_the_job_s_variables(place: Place) -> None:
    (step,) = yaml.safe_load(next(text for _, text in BLOCKS if "--probe" in text))
    done = run_step(place, step["run"], OMP_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "OK    probe metrics: val_loss was logged, for early stopping" in done.stdout
    assert "OK    probe predict: " in done.stdout
    monitor = {"PTYCHO_EXEC_CHECKPOINT_MONITOR_METRIC": "val_lossx"}
    done = run_step(place, step["run"], OMP_NUM_THREADS="1", **monitor)
    assert done.returncode == 1
    assert done.stderr.startswith("::error::probe fit: checkpoint_monitor_metric=val_lossx")
