"""Going on with an interrupted run, bit for bit as if it had never stopped."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, Checkpoint

from ptycho_exec.trainer.stop import StopAtStep

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


PLATEAU_METRICS = "ptycho_exec_plateau_metrics"
GENERATORS = "ptycho_exec_generators"
SUMS = "ptycho_exec_sums"


class ResumePoint(StopAtStep, Checkpoint):
    """Write `last.ckpt` after every epoch and when the run is asked to stop, and in between if asked.

    Attributes:
        every_n_steps: optimizer steps after which it is written, too.
        every: time after which it is written, too, as DD:HH:MM:SS; the first process's clock decides.
    """

    def __init__(
        self, folder: Path, *, every_n_steps: int | None = None, every: str | None = None, requeues: int = 0
    ) -> None:
        super().__init__(requeues)
        self.path: Path = folder / "last.ckpt"
        self.every_n_steps = every_n_steps
        self.every = every
        self._seconds = None if every is None else seconds_of(every)
        self._written_at = time.monotonic()

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_start(trainer)
        self._written_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not self.stepped(trainer):
            return
        due, received = self._due(trainer), self.signalled(trainer)
        if due or received:
            self._write(trainer)
        if received:
            self.stop(trainer, received)

    def _due(self, trainer: Trainer) -> bool:
        due = bool(self.every_n_steps and trainer.global_step % self.every_n_steps == 0)
        if self._seconds is not None:
            late = time.monotonic() - self._written_at >= self._seconds
            due = bool(trainer.strategy.broadcast(late)) or due
        return due

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self._write(trainer)
        super().on_train_epoch_end(trainer)

    def _write(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._written_at = time.monotonic()


def seconds_of(duration: str) -> int:
    """Return the seconds of DD:HH:MM:SS."""
    days, hours, minutes, seconds = map(int, duration.split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class Continuity(Callback):
    """Make a resumed run the same, bit for bit, as one that was never interrupted.

    The random numbers of an epoch depend on seed, epoch and rank alone, not on what was drawn before: a
    resumed run builds its loaders in another order than a running one, so saved generator states would not
    do. Lightning saves neither the metric that a plateau scheduler is waiting for nor the sums from which the
    metrics of a begun epoch are made; this does, the latter for each process.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._resumed = False
        self._missed: dict[str, float] = {}
        self._generators: Any = None
        self._sums: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Widen the module before its weights are loaded; Lightning, which does so later, rounds them."""
        del stage
        if trainer.precision == "64-true":
            pl_module.double()

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        seed_epoch(self.seed, trainer.current_epoch, trainer.global_rank)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed again: Lightning makes the iterator of a resumed epoch earlier than that of a running one."""
        del pl_module, batch
        if batch_idx == 0:
            seed_epoch(self.seed, trainer.current_epoch, trainer.global_rank)
            self._sums = {}
        elif self._generators is not None:
            set_generators(self._generators)
        self._generators = None

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Add what the metrics of this epoch had summed up before the run was interrupted."""
        if self._sums:
            add_sums(trainer, self._sums)
        self._sums = {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        del pl_module
        metrics = trainer.callback_metrics
        names = {config.monitor for config in trainer.lr_scheduler_configs if config.reduce_on_plateau}
        checkpoint[PLATEAU_METRICS] = {name: float(metrics[name]) for name in names if name in metrics}
        checkpoint[GENERATORS] = of_all(trainer, generators())
        checkpoint[SUMS] = of_all(trainer, sums(trainer))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        del pl_module
        self._resumed = True
        self._missed = checkpoint.get(PLATEAU_METRICS, {})
        self._generators = of_rank(trainer, checkpoint.get(GENERATORS))
        self._sums = of_rank(trainer, checkpoint.get(SUMS)) or {}

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Take the plateau step that the interrupted run was about to take, and begin the epoch anew."""
        if self._resumed:
            for config in trainer.lr_scheduler_configs:
                due = trainer.current_epoch % config.frequency == 0
                if config.reduce_on_plateau and config.monitor in self._missed and due:
                    config.scheduler.step(self._missed[config.monitor])  # type: ignore[arg-type]
            seed_epoch(self.seed, trainer.current_epoch, trainer.global_rank)
            restart_loaders(trainer)
            skip_batches(trainer)
        self._resumed, self._missed = False, {}


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


def skip_batches(trainer: Trainer) -> None:
    """Pass over the batches of a begun epoch on which the run was trained; Lightning only counts them."""
    fetcher, progress = trainer.fit_loop._data_fetcher, trainer.fit_loop.epoch_loop.batch_progress
    done = progress.current.ready
    if fetcher is None or not 0 < done < trainer.num_training_batches:
        return
    for _ in range(done):
        next(fetcher)
    fetcher.fetched -= done  # Lightning adds them when the epoch begins


def of_all(trainer: Trainer, own: Any) -> list[Any]:
    """Return what each process has, by rank; all of them save together."""
    if trainer.world_size == 1 or not dist.is_initialized():
        return [own]
    found: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(found, own)
    return found


def of_rank(trainer: Trainer, saved: Any) -> Any:
    """Return this process's part of what `of_all` returned; None where another number of processes saved."""
    return (
        saved[trainer.global_rank] if isinstance(saved, list) and len(saved) == trainer.world_size else None
    )


def sums(trainer: Trainer) -> dict[str, Any]:
    """Return what the metrics of this epoch have summed up so far: value, and weight of a mean."""
    found: dict[str, Any] = {}
    for name, metric in (trainer.fit_loop.epoch_loop._results or {}).items():
        if metric.is_tensor and metric.meta.on_epoch:
            weight = metric.cumulated_batch_size.cpu() if metric.meta.is_mean_reduction else None
            found[name] = (metric.value.detach().cpu(), weight)
    return found


def add_sums(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Add what `sums` returned to the metrics, which have seen one batch since."""
    for name, metric in (trainer.fit_loop.epoch_loop._results or {}).items():
        if name not in saved:
            continue
        value, weight = saved[name]
        value, kind = value.to(metric.value.device), metric.meta
        if kind.is_max_reduction or kind.is_min_reduction:
            metric.value = kind.reduce_fx(metric.value, value)
        else:
            metric.value = metric.value + value
        if weight is not None:
            metric.cumulated_batch_size = metric.cumulated_batch_size + weight.to(metric.value.device)


def generators() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators, as far as checkpoints can hold them."""
    name, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    numpy = (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest)
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), "cuda": cuda}


def set_generators(states: dict[str, Any]) -> None:
    """Put back what `generators` returned."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Seed Python's, NumPy's and torch's generators with a function of seed, epoch and rank."""
    words = np.random.SeedSequence([seed, epoch, rank]).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))
