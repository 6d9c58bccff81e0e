"""What the facade costs: training through it against the same loop with a hand-written `lightning.Trainer`.

    python benchmarks/facade_overhead.py [--rounds 7] [--epochs 4] [--patterns 512] [--batch-size 16]

Both train the same module on the same loader with the same seed for the same steps; runs alternate, and each
round gives one ratio facade / hand-written of the wall time of building the Trainer and fitting. Two pairs:
the bare loop, and one that writes checkpoints and a CSV log on both sides. The weights must come out equal.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from ptycho_exec.plan import Plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.build import build_trainer, process_flags, seed_run
from ptycho_torch.config import DataConfig, ModelConfig, ScienceConfig
from ptycho_torch.factory import TRAINING_DEFAULTS
from ptycho_torch.simulate import simulate_scan
from ptycho_torch.workflows import components
from ptycho_torch.workflows.times import PartTimes

Fit = Callable[[Any, Any, Plan, int, Path | None], None]


def by_facade(module: Any, loader: Any, plan: Plan, epochs: int, run_dir: Path | None) -> None:
    """Train as the workflow does: built, read back, watched, checked."""
    history, times = components.History(), PartTimes()
    trainer = build_trainer(
        plan.requested,
        max_epochs=epochs,
        run_dir=run_dir,
        plan=plan,
        callbacks=(history,),
        profiler=times,
    )
    components.requested_and_effective(
        trainer, plan.requested, plan, loaders={"train": loader}, writes=run_dir is not None, profiler=times
    )
    trainer.fit(module, loader)


def by_hand(module: Any, loader: Any, plan: Plan, epochs: int, run_dir: Path | None) -> None:
    """Train with a Trainer as one writes it for a script."""
    writing: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    callbacks: list[Any] = [EarlyStopping("train_loss", patience=100, check_on_train_epoch_end=True)]
    if run_dir is not None:
        keep = ModelCheckpoint(run_dir, monitor="train_loss", save_last=True, save_on_train_epoch_end=True)
        callbacks += [LearningRateMonitor("step"), keep]
        writing = {"logger": CSVLogger(run_dir, flush_logs_every_n_steps=10)}
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        deterministic=True,
        gradient_clip_val=plan.settings.gradient_clip_val,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=plan.settings.log_every_n_steps,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        **writing,
    )
    trainer.fit(module, loader)


class Took(NamedTuple):
    """Wall and processor seconds of one training, and its weights as one vector."""

    wall_s: float
    cpu_s: float
    weights: torch.Tensor


def once(fit: Fit, training: components.Training, epochs: int, writes: bool) -> Took:
    """Train once; what is built before the Trainer is not counted."""
    plan = training.plan
    with tempfile.TemporaryDirectory() as place, process_flags(plan.settings):
        seed_run(plan.settings)
        loader = training.loaders()["train"]
        module = components.build_module(
            training.container, training.samples, training.science, plan.settings
        )
        start, cpu = time.perf_counter(), time.process_time()
        fit(module, loader, plan, epochs, Path(place) if writes else None)
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    return Took(wall_s, cpu_s, torch.cat([weight.detach().flatten() for weight in module.parameters()]))


def compare(training: components.Training, epochs: int, rounds: int, writes: bool) -> dict[str, list[float]]:
    """Return one ratio per round, of wall and of processor time; which of the two goes first alternates."""
    ratios: dict[str, list[float]] = {"wall": [], "processor": []}
    for number in range(rounds + 1):
        order: list[Fit] = [by_facade, by_hand] if number % 2 else [by_hand, by_facade]
        found = {fit: once(fit, training, epochs, writes) for fit in order}
        # Our epochs draw their random numbers anew; the network draws none, so the weights are the same.
        ours, plain = found[by_facade], found[by_hand]
        if not torch.equal(ours.weights, plain.weights):
            raise SystemExit("the two trainings are not the same: their weights differ")
        if number:  # the first round warms up
            ratios["wall"].append(ours.wall_s / plain.wall_s)
            ratios["processor"].append(ours.cpu_s / plain.cpu_s)
    return ratios


def row(name: str, ratios: Sequence[float]) -> tuple[str, ...]:
    figures = (statistics.median(ratios), min(ratios), max(ratios))
    return (name, *(f"{figure:.3f}" for figure in figures), "yes" if figures[0] <= 1.02 else "NO")


def main() -> None:
    """Print the ratios of both pairs."""
    parser = common.arguments(__doc__, rounds=7)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--patterns", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    space = parser.parse_args()
    warnings.filterwarnings("ignore")
    scan = simulate_scan(n=64, patterns=space.patterns, photons=1e5, seed=0)
    values: dict[str, Any] = {name: default.value for name, default in TRAINING_DEFAULTS.items()}
    values |= {"accelerator": "cpu", "batch_size": space.batch_size, "enable_progress_bar": False}
    settings = ExecutionSettings.from_values(values)
    science = ScienceConfig(data=DataConfig(N=scan.n_pixels), model=ModelConfig(n_filters=16))
    training = components.plan_training(scan, None, science, settings)
    pairs = {"loop alone": False, "with checkpoints and CSV log": True}
    found = {
        f"{name}, {clock} time": ratios
        for name, writes in pairs.items()
        for clock, ratios in compare(training, space.epochs, space.rounds, writes).items()
    }
    common.print_machine()
    steps = space.epochs * -(-len(scan) // space.batch_size)
    print(f"{steps} steps of {space.batch_size} patterns, {space.rounds} rounds, ratio facade / hand-written")
    common.print_table(
        ("pair", "median", "min", "max", "at most 1.02"),
        [row(name, ratios) for name, ratios in found.items()],
    )
    common.write_json("facade_overhead", {"ratios": found, "steps": steps}, space.json)


if __name__ == "__main__":
    main()
