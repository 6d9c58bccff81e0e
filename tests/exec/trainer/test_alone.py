"""When a prediction needs no Trainer, and on which device it then computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ptycho_exec.machine.facts import Gpu, MachineFacts
from ptycho_exec.machine.ranks import Launcher
from ptycho_exec.plan import ModuleTraits, Plan, resolve_plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.alone import device_of, moved, needs_trainer

CARD = Gpu(name="A100", memory_mb=1, capability="8.0", bf16=True)
CPU = MachineFacts(cpus_logical=8, compiler="g++")
GPUS = MachineFacts(cpus_logical=8, gpus=(CARD, CARD))


def plan_of(facts: MachineFacts = CPU, **values: Any) -> Plan:
    return resolve_plan(ExecutionSettings.from_values(values), facts, ModuleTraits(trains=False))


@pytest.mark.parametrize(
    "values",
    [{}, {"precision": "bf16-mixed"}, {"num_workers": 2}, {"compile": True}, {"deterministic": False}],
)
def test_one_process_on_one_device_needs_none(values: dict[str, Any]) -> None:
    assert not needs_trainer(plan_of(**values))


@pytest.mark.parametrize(
    "values",
    [
        {"devices": 2},
        {"strategy": "ddp"},
        {"precision": "64-true"},
        {"precision": "bf16-true"},
        {"fast_dev_run": 1},
        {"trainer": {"inference_mode": False}},
        {"accelerator": "gpu"},  # which is not there: the Trainer refuses it
        {"precision": "16-mixed"},
    ],
)
def test_everything_else_does(values: dict[str, Any]) -> None:
    assert needs_trainer(plan_of(**values))


def test_processes_of_a_launcher_do() -> None:
    several = Launcher(kind="torchrun", world_size=2, tasks_per_node=2, in_step=True)
    assert needs_trainer(plan_of(CPU.model_copy(update={"launcher": several})))


@pytest.mark.parametrize(
    ("facts", "values", "device"),
    [
        (CPU, {}, "cpu"),
        (GPUS, {"accelerator": "cpu"}, "cpu"),
        (GPUS, {}, "cuda:0"),
        (GPUS, {"accelerator": "gpu", "devices": 1}, "cuda:0"),
        (GPUS, {"devices": [1]}, "cuda:1"),
        (MachineFacts(mps=True), {}, "mps"),
        (MachineFacts(mps=True), {"accelerator": "gpu"}, "mps"),
    ],
)
def test_the_device_is_the_one_of_the_plan(facts: MachineFacts, values: dict[str, Any], device: str) -> None:
    plan = plan_of(facts, **values)
    assert not needs_trainer(plan)
    assert device_of(plan) == torch.device(device)


def test_a_batch_is_moved_with_what_is_no_tensor() -> None:
    batch = moved({"amplitude": torch.ones(2), "name": "scan"}, torch.device("meta"))
    assert batch["amplitude"].device.type == "meta"
    assert batch["name"] == "scan"
