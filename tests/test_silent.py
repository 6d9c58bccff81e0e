"""What Lightning would do in silence, with a real Trainer: rows of the table that no other test has."""

from __future__ import annotations

import inspect
import os
import re
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.trainer import Trainer as RealTrainer

from ptycho_exec import ExecutionSettings
from ptycho_exec.errors import SettingsError
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import Plan, resolve_plan
from ptycho_exec.trainer.build import (
    build_trainer,
    inference_loader_kwargs,
    process_flags,
    requested_and_effective,
    train_loader_kwargs,
)
from ptycho_exec.trainer.process import RUN_VARIABLES
from ptycho_torch.config import DataConfig, ModelConfig, ScienceConfig, TrainingConfig
from ptycho_torch.simulate import simulate_scan
from ptycho_torch.workflows.components import _train_with_lightning
from tests.exec.launchers import Variables, job, step, without

CPU = MachineFacts(cpus_logical=8)


def settings(**values: object) -> ExecutionSettings:
    return ExecutionSettings.from_values({"logger_backend": None, **values})


def test_benchmark_of_an_earlier_trainer_does_not_leak() -> None:
    wanted = settings()
    with process_flags(wanted):
        RealTrainer(accelerator="cpu", benchmark=True, logger=False, enable_checkpointing=False)
        assert torch.backends.cudnn.benchmark is True
        trainer = build_trainer(wanted, max_epochs=1, plan=resolve_plan(wanted, CPU))
        report = requested_and_effective(trainer, wanted, resolve_plan(wanted, CPU), writes=False)
    assert {row.name: row.effective for row in report.rows}["benchmark"] is False
    assert torch.backends.cudnn.benchmark is False


@pytest.mark.parametrize("text", ["0,1", "2", "all"])
def test_devices_as_text_are_rejected(text: str) -> None:
    with pytest.raises(SettingsError, match="devices"):
        settings(devices=text)


def test_two_processes_on_a_cpu_are_announced() -> None:
    wanted = settings(accelerator="cpu", devices=2)
    plan = resolve_plan(wanted, MachineFacts(cpus_logical=1))
    assert (plan.settings.strategy, plan.effective["strategy"].reason) == ("ddp", "auto: 2 processes")
    assert "devices=2 starts 2 processes on 1 usable CPUs" in {notice.what for notice in plan.notices}
    with process_flags(wanted):
        trainer = build_trainer(wanted, max_epochs=1, plan=plan, announce=False)
    report = requested_and_effective(trainer, wanted, plan, writes=False)
    found = {row.name: row.effective for row in report.rows}
    assert (found["world_size"], found["strategy"]) == (2, "ddp")


def test_the_length_of_training_cannot_be_changed_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MIN_EPOCHS": "9", "MAX_STEPS": "0", "MIN_STEPS": "9", "MAX_EPOCHS": "7"}.items():
        monkeypatch.setenv(f"PL_TRAINER_{name}", value)
    wanted = settings()
    with process_flags(wanted):
        trainer = build_trainer(wanted, max_epochs=3, plan=resolve_plan(wanted, CPU))
    found = (trainer.max_epochs, trainer.min_epochs, trainer.max_steps, trainer.min_steps)
    assert found == (3, None, -1, None)
    for least in ("min_epochs", "min_steps"):
        longer = settings(trainer={least: 4}, max_steps=3)
        with pytest.raises(SettingsError, match=rf"trainer\.{least}=4 is more than max_.*=3"):
            build_trainer(longer, max_epochs=3, plan=resolve_plan(longer, CPU))
    for name in ("min_epochs", "min_steps"):
        with pytest.raises(SettingsError, match=name):
            settings(**{name: 1})


def test_loaders_take_no_timeout() -> None:
    with pytest.raises(SettingsError, match="timeout"):
        settings(timeout=5)
    for kwargs in (train_loader_kwargs, inference_loader_kwargs):
        assert "timeout" not in kwargs(settings(num_workers=2))


TRAPS: dict[str, tuple[Variables, int, str]] = {
    "two tasks, one device": (step(), 1, "slurm starts 2 task(s) per node"),
    "no job step": (job(2), 2, "srun did not start this process"),
}


def planned(variables: Variables, devices: int, monkeypatch: pytest.MonkeyPatch) -> Plan:
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    wanted = settings(accelerator="cpu", devices=devices, batch_size=4)
    return resolve_plan(wanted, MachineFacts.probe(ask_torch=False))


@pytest.mark.parametrize("name", TRAPS)
def test_slurm_traps_stop_before_the_trainer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, devices, words = TRAPS[name]
    with pytest.raises(SettingsError, match=re.escape(words)):
        planned(variables, devices, monkeypatch).raise_if_blocked()


MISREAD: dict[str, tuple[Variables, int]] = {
    "a compressed count": (step(1, 4, 2), 4),
    "ntasks without ntasks-per-node": (without(step(1), "SLURM_NTASKS_PER_NODE"), 2),
    "a notebook": (job(4, SLURM_JOB_NAME="jupyter"), 2),
    "one task with two devices": (step(tasks=1), 2),
}


@pytest.mark.parametrize("name", MISREAD)
def test_jobs_that_lightning_misreads_are_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, processes = MISREAD[name]
    plan = planned(variables, 2, monkeypatch)
    assert (plan.problems, plan.totals.world_size) == ((), processes)


ODD: dict[str, str] = {
    "accelerator": "tpu",
    "devices": "5",
    "strategy": "fsdp",
    "precision": "16-true",
    "max_epochs": "99",
    "max_steps": "1",
    "max_time": "00:00:00:00",
    "limit_train_batches": "1",
    "accumulate_grad_batches": "3",
    "gradient_clip_val": "0.000001",
    "overfit_batches": "1",
    "fast_dev_run": "1",
    "deterministic": "",
    "barebones": "1",
    "logger": "1",
    "default_root_dir": "/nowhere",
    "sync_batchnorm": "1",
    "detect_anomaly": "1",
    "profiler": "advanced",
}


def trained() -> tuple[list[torch.Tensor], dict[str, Any]]:
    scan = simulate_scan(n=32, patterns=24, photons=1e5, seed=3)
    science = ScienceConfig(
        data=DataConfig(N=32),
        model=ModelConfig(n_filters=4, depth=1),
        training=TrainingConfig(epochs=2),
    )
    made = _train_with_lightning(scan, None, science, settings(enable_progress_bar=False))
    rows = {row.name: row.effective for row in made["drift"].rows}
    return list(made["models"]["lightning_module"].state_dict().values()), rows


def test_a_training_beside_odd_variables_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, rows = trained()
    names = set(inspect.signature(RealTrainer.__init__).parameters) - {"self"}
    assert set(ODD) <= names
    for name in names:
        monkeypatch.setenv(f"PL_TRAINER_{name.upper()}", ODD.get(name, "7"))
    monkeypatch.setenv("PL_GLOBAL_SEED", "1234")
    hostile, hostile_rows = trained()
    assert all(torch.equal(one, other) for one, other in zip(usual, hostile, strict=True))
    assert hostile_rows == rows
    assert os.environ["PL_GLOBAL_SEED"] == "1234"


def test_a_run_leaves_no_variable_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: os.environ.get(name) for name in RUN_VARIABLES}
    trained()
    assert {name: os.environ.get(name) for name in RUN_VARIABLES} == before


@pytest.mark.filterwarnings("ignore::ptycho_exec.errors.SettingsWarning")
def test_a_failed_training_leaves_no_flag_and_no_variable_behind() -> None:
    scan = simulate_scan(n=32, patterns=24, photons=1e5, seed=3)
    scan.patterns[:] = 0  # no intensity: training must stop
    before = (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision())
    variables = dict(os.environ)
    science = ScienceConfig(data=DataConfig(N=32), model=ModelConfig(n_filters=4, depth=1))
    wanted = settings(matmul_precision="medium", enable_progress_bar=False)
    with pytest.raises(Exception, match="have no intensity"):
        _train_with_lightning(scan, None, science, wanted)
    assert (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()) == before
    assert dict(os.environ) == variables
