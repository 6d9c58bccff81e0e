"""What several test files of this folder use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Sampler, TensorDataset

from ptycho_exec.fields.model import METRIC_DRIVEN
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import ModuleTraits, Plan, resolve_plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.build import build_trainer, process_flags, seed_run, train_loader_kwargs

FACTS = MachineFacts(cpus_logical=8, compiler="g++")


TRAIN = torch.randn(30, 4, generator=torch.Generator().manual_seed(3))


TEST = torch.randn(8, 4, generator=torch.Generator().manual_seed(4))


class EpochShuffle(Sampler[int]):
    """An order that depends on the epoch alone."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(TRAIN)

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(len(TRAIN), generator=torch.Generator().manual_seed(self.epoch)).tolist()


class Net(pl.LightningModule):
    """Dropout makes every epoch depend on the random state; `script` replaces the monitored metric."""

    def __init__(self, scheduler: str = "Default", script: tuple[float, ...] = (), stop_at: int = -1) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        self.scheduler, self.script, self.stop_at = scheduler, script, stop_at

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        if self.global_step == self.stop_at:
            raise InterruptedError
        loss = self._loss(batch)
        self.log("train_loss", self._scripted(loss), on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self._scripted(self._loss(batch)))

    def _loss(self, batch: Any) -> torch.Tensor:
        return (self.layers(batch[0]) - batch[0].sum(1, keepdim=True)).pow(2).mean()

    def _scripted(self, loss: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.script[self.current_epoch]) if self.script else loss.detach()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        schedulers = torch.optim.lr_scheduler
        if self.scheduler in METRIC_DRIVEN:
            plateau = schedulers.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
        if self.scheduler == "Exponential":
            return [optimizer], [schedulers.ExponentialLR(optimizer, 0.8)]
        if self.scheduler == "WarmupCosine":
            return [optimizer], [{"scheduler": schedulers.ExponentialLR(optimizer, 0.9), "interval": "step"}]
        return optimizer


def settings(**values: object) -> ExecutionSettings:
    base = {"batch_size": 4, "learning_rate": 1e-2, "logger_backend": None}
    return ExecutionSettings.from_values({**base, **values})


def fit(
    wanted: ExecutionSettings,
    run_dir: Path | None,
    *,
    epochs: int = 6,
    validate: bool = True,
    resume: Path | None = None,
    **module: Any,
) -> tuple[pl.Trainer, Net]:
    plan = resolve_plan(wanted, FACTS, ModuleTraits(has_validation=validate))
    with process_flags(wanted):
        seed_run(wanted)
        net = Net(wanted.scheduler, **module)
        trainer = build_trainer(wanted, max_epochs=epochs, run_dir=run_dir, plan=plan, announce=False)
        train = DataLoader(TensorDataset(TRAIN), sampler=EpochShuffle(), **train_loader_kwargs(wanted, plan))
        test = DataLoader(TensorDataset(TEST), **train_loader_kwargs(wanted, plan)) if validate else None
        trainer.fit(net, train, test, ckpt_path=resume)
    return trainer, net


def checkpoints(run_dir: Path) -> list[str]:
    folder = run_dir / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def plan_of(**values: object) -> Plan:
    return resolve_plan(settings(**values), FACTS)


SCRIPT = (5.0, 2.0, 4.0, 1.0, 3.0)


def weights(net: Net) -> list[torch.Tensor]:
    return list(net.state_dict().values())
