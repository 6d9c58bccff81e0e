"""What several test files of this folder use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, TensorDataset

from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import resolve_plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.build import build_trainer, process_flags, seed_run, train_loader_kwargs
from ptycho_exec.trainer.images import Images
from ptycho_exec.trainer.loggers import (
    close_logger,
)

FACTS = MachineFacts(cpus_logical=8, packages={"tensorboard": "2", "mlflow": "3", "wandb": "0"})


DATA = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss: torch.Tensor = self.layer(batch[0]).pow(2).mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.layer(batch[0]).pow(2).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def settings(**values: object) -> ExecutionSettings:
    base = {"batch_size": 4, "log_every_n_steps": 1, "log_images_every_n_epochs": 2}
    return ExecutionSettings.from_values({**base, **values})


def image(module: pl.LightningModule) -> dict[str, NDArray[np.uint8]]:
    assert not module.training
    return {"amplitude": np.full((6, 8, 3), 100, np.uint8)}


def fit(wanted: ExecutionSettings, run_dir: Path, *, pictures: bool = True) -> pl.Trainer:
    run_dir.mkdir(exist_ok=True)
    plan = resolve_plan(wanted, FACTS)
    with process_flags(wanted):
        seed_run(wanted)
        every = plan.settings.log_images_every_n_epochs
        extra = (Images(image, every),) if pictures and every else ()
        trainer = build_trainer(
            wanted, max_epochs=3, run_dir=run_dir, plan=plan, announce=False, callbacks=extra
        )
        loader = DataLoader(TensorDataset(DATA), **train_loader_kwargs(wanted, plan))
        trainer.fit(Net(), loader, loader)
        close_logger(trainer.logger)
    return trainer
