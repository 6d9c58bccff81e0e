"""What several test files of this folder use."""

from __future__ import annotations

import inspect
import logging
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.trainer import Trainer as RealTrainer
from torch.utils.data import DataLoader, TensorDataset

from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import ModuleTraits, Plan, resolve_plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.build import (
    build_trainer,
    process_flags,
    seed_run,
    train_loader_kwargs,
)

SAMPLES, WIDTH = 24, 4


CPU = MachineFacts(cpus_logical=8, compiler="g++", packages={"tensorboard": "2"})


def settings(**values: object) -> ExecutionSettings:
    return ExecutionSettings.from_values({"batch_size": 4, **values})


def plan_of(wanted: ExecutionSettings, traits: ModuleTraits | None = None) -> Plan:
    return resolve_plan(wanted, CPU, traits)


class Linear(pl.LightningModule):
    """A tiny module that logs what the real one logs and remembers what it saw."""

    def __init__(self, rate: float = 1e-3, manual: bool = False) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(WIDTH, 1)
        self.rate = rate
        self.automatic_optimization = not manual
        self.seen: dict[str, Any] = {"batches": []}

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        (x,) = batch
        out = self.layer(x)
        self.seen["batches"].append(len(x))
        self.seen["dtype"] = out.dtype
        self.seen["deterministic"] = torch.are_deterministic_algorithms_enabled()
        self.seen["matmul"] = torch.get_float32_matmul_precision()
        self.seen["threads"] = torch.get_num_threads()
        loss = out.float().pow(2).mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("val_loss", self.layer(batch[0]).float().pow(2).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def loader(wanted: ExecutionSettings, plan: Plan | None = None, **more: Any) -> DataLoader[Any]:
    data = torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(data), **{**train_loader_kwargs(wanted, plan), **more})


def fit(
    wanted: ExecutionSettings,
    *,
    epochs: int = 1,
    run_dir: Path | None = None,
    traits: ModuleTraits | None = None,
    module: Linear | None = None,
    callbacks: tuple[pl.Callback, ...] = (),
) -> tuple[pl.Trainer, Linear]:
    """Train in the order of a workflow: flags, seeds, module, Trainer, fit."""
    plan = plan_of(wanted, traits)
    with process_flags(wanted):
        seed_run(wanted)
        module = module or Linear(wanted.learning_rate)
        trainer = build_trainer(
            wanted, max_epochs=epochs, run_dir=run_dir, plan=plan, announce=False, callbacks=callbacks
        )
        trainer.fit(module, loader(wanted, plan), loader(wanted, plan))
    return trainer, module


def read_back(trainer: pl.Trainer) -> Any:
    return next(row for row in trainer.callbacks if type(row).__name__ == "ReadBack")


def rows(trainer: pl.Trainer) -> dict[str, Any]:
    return {row.name: row for row in read_back(trainer).report.rows}


def process_state() -> dict[str, Any]:
    names = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "CUBLAS_WORKSPACE_CONFIG")
    return {
        **{name: os.environ.get(name) for name in names},
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "matmul": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "fills_memory": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "level": logging.getLogger("lightning.pytorch").level,
    }


def real_parameters() -> set[str]:
    """Ask the class itself: a test may have put a stand-in in its usual place."""
    return set(inspect.signature(RealTrainer.__init__).parameters) - {"self"}
