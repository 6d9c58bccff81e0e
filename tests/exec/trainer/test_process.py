"""Seeds and process-wide flags: set for a run, restored after it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho_exec.trainer.build import (
    build_trainer,
    process_flags,
    seed_run,
)
from tests.exec.trainer.linear_runs import (
    fit,
    process_state,
    rows,
    settings,
)


def test_flags_are_set_inside_and_restored_after() -> None:
    wanted = settings(matmul_precision="medium", num_threads=1, deterministic="warn")
    before = process_state()
    torch.manual_seed(1)
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    with process_flags(wanted):
        seed_run(wanted)
        assert os.environ["PL_GLOBAL_SEED"] == "42"
        assert os.environ["PL_SEED_WORKERS"] == "1"
        inside = process_state()
    assert (inside["matmul"], inside["threads"], inside["warn_only"]) == ("medium", 1, True)
    assert (before["fills_memory"], inside["fills_memory"]) == (True, False)
    assert process_state() == before
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_flags_are_restored_after_a_failure() -> None:
    before = process_state()
    with pytest.raises(ZeroDivisionError), process_flags(settings(matmul_precision="high")):  # noqa: PT012
        seed_run(settings())
        torch.set_default_dtype(torch.float64)
        build_trainer(settings(), max_epochs=1)
        raise ZeroDivisionError
    assert process_state() == before


def test_flags_of_the_caller_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with process_flags(settings()):
        seed_run(settings())
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert (os.environ["PL_GLOBAL_SEED"], os.environ["CUBLAS_WORKSPACE_CONFIG"]) == ("7", ":16:8")


TRAIN_ONCE = """
from pathlib import Path
import sys
sys.path.insert(0, sys.argv[1])
import linear_runs as runs
runs.fit(runs.settings(enable_progress_bar=False))
"""


@pytest.mark.slow
def test_srun_on_the_path_is_no_warning(tmp_path: Path) -> None:
    """Lightning would advise every run on a login node to start its command with srun."""
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    options = ["-W", "error", "-W", "ignore:.*LeafSpec.*:FutureWarning"]
    done = subprocess.run(
        [sys.executable, *options, "-c", TRAIN_ONCE, str(Path(__file__).parent)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_next_trainer_inherits_nothing() -> None:
    _, first = fit(settings(deterministic=True))
    _, second = fit(settings(deterministic=False))
    assert (first.seen["deterministic"], second.seen["deterministic"]) == (True, False)


def test_seeding_repeats_every_generator() -> None:
    def draw() -> tuple[float, float, float]:
        seed_run(settings(seed=5))
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    with process_flags(settings()):
        assert draw() == draw()


@pytest.mark.acts(
    "deterministic", "torch's flag inside a training step, also in the warning form", ["False", "warn"]
)
@pytest.mark.parametrize("word", [True, False, "warn"])
def test_deterministic_is_what_the_process_really_has(word: object) -> None:
    trainer, module = fit(settings(deterministic=word))
    assert rows(trainer)["deterministic"].effective == word
    assert module.seen["deterministic"] is bool(word)


@pytest.mark.acts("matmul_precision", "torch's matrix product precision inside a training step")
def test_matmul_precision_and_threads_act_inside_fit() -> None:
    _, module = fit(settings(matmul_precision="medium", num_threads=1))
    assert (module.seen["matmul"], module.seen["threads"]) == ("medium", 1)


def test_equal_settings_give_equal_weights_with_workers_too() -> None:
    for more in ({}, {"num_workers": 1}, {"accum_steps": 2}):
        weights = [fit(settings(**more), epochs=2)[1].layer.weight for _ in range(2)]
        assert torch.equal(*weights)


@pytest.mark.acts("seed", "trained weights differ between seeds")
def test_seed_changes_the_weights() -> None:
    weights = [fit(settings(seed=seed))[1].layer.weight for seed in (1, 2)]
    assert not torch.equal(*weights)
