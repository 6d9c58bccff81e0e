"""Going on with an interrupted run, bit for bit as if it had never stopped."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


PLATEAU_METRICS = "ptycho_exec_plateau_metrics"


class ResumePoint(Checkpoint):
    """Write `last.ckpt` after every epoch, so that a run can go on where it stopped."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "last.ckpt"

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)


class Continuity(Callback):
    """Make a resumed run the same, bit for bit, as one that was never interrupted.

    The random numbers of an epoch depend on seed, epoch and rank alone, not on what was drawn before: a
    resumed run builds its loaders in another order than a running one, so saved generator states would not
    do. Lightning does not save the metric that a plateau scheduler is waiting for; this does.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._resumed = False
        self._missed: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        seed_epoch(self.seed, trainer.current_epoch, trainer.global_rank)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed again: Lightning makes the iterator of a resumed epoch earlier than that of a running one."""
        del pl_module, batch
        if batch_idx == 0:
            seed_epoch(self.seed, trainer.current_epoch, trainer.global_rank)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        del pl_module
        metrics = trainer.callback_metrics
        names = {config.monitor for config in trainer.lr_scheduler_configs if config.reduce_on_plateau}
        checkpoint[PLATEAU_METRICS] = {name: float(metrics[name]) for name in names if name in metrics}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        del trainer, pl_module
        self._resumed = True
        self._missed = checkpoint.get(PLATEAU_METRICS, {})

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Take the plateau step that the interrupted run was about to take, and begin the epoch anew."""
        if self._resumed:
            for config in trainer.lr_scheduler_configs:
                due = trainer.current_epoch % config.frequency == 0
                if config.reduce_on_plateau and config.monitor in self._missed and due:
                    config.scheduler.step(self._missed[config.monitor])  # type: ignore[arg-type]
            seed_epoch(self.seed, trainer.current_epoch, trainer.global_rank)
            restart_loaders(trainer)
        self._resumed, self._missed = False, {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let a terminated run end with the usual status; Lightning's own exception means success."""
        del trainer, pl_module
        if isinstance(exception, SIGTERMException):
            exception.code = 128 + signal.SIGTERM


def restart_loaders(trainer: Trainer) -> None:
    """Begin the training loaders anew, in the order of the epoch that comes next.

    Lightning makes their iterators before it gives the samplers the epoch; loader workers have by then
    fetched ahead in the order of epoch 0.
    """
    loop = trainer.fit_loop
    for loader in loop._combined_loader.flattened if loop._combined_loader else ():
        for owner in (loader, getattr(loader, "batch_sampler", None)):
            sampler: Any = getattr(owner, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(trainer.current_epoch)
    if loop._data_fetcher is not None:
        iter(loop._data_fetcher)


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Seed Python's, NumPy's and torch's generators with a function of seed, epoch and rank."""
    words = np.random.SeedSequence([seed, epoch, rank]).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))
