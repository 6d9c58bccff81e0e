"""A program that several processes run: `on_processes.py WHAT STRATEGY DEVICES BATCH_SIZE FOLDER`."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from ptycho_exec.errors import UserError
from ptycho_torch import model
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.simulate import simulate_scan
from ptycho_torch.workflows import components
from tests.torch.workflows import tiny_runs

SECONDS = 240
PLACES = ("run_dir", "resume_from", "callbacks")
TRAININGS: dict[str, dict[str, Any]] = {
    "single patterns": {},
    "validated groups": {"gridsize": 2, "val_fraction": 0.25},
    "accumulated groups": {"accum_steps": 2, "gridsize": 2},
    "with labels": {"loss": "supervised"},
}


def run(what: str, strategy: str, devices: int, batch_size: int, folder: Path) -> None:
    """Run this program in processes of its own; a hang is a failure."""
    words = [__file__, what, strategy, str(devices), str(batch_size), str(folder)]
    if strategy == "torchrun":
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}", *words]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr


def odd_scan() -> Any:
    """41 patterns: five batches of eight, and one that is left; less a fourth, 31."""
    return simulate_scan(n=32, patterns=41, photons=1e5, seed=3, with_labels=True)


def train(case: str, precision: str = "64-true", **settings: Any) -> Any:
    options = dict(TRAININGS[case])
    places = {name: settings.pop(name) for name in PLACES if name in settings}
    asked = {"accum_steps": options.pop("accum_steps", 1), "precision": precision, **settings}
    science = tiny_runs.science(epochs=2, **options)
    made = tiny_runs.settings(accelerator="cpu", **asked)
    return components.train(odd_scan(), None, science, made, **places)


def all_trainings(folder: Path, rank: int, **settings: Any) -> None:
    """Train every case, and keep what it came to."""
    for case in TRAININGS:
        result = train(case, **settings)
        if rank == 0:
            kept = {"weights": tiny_runs.weights(result), "history": result.history}
            torch.save(kept | {"summary": result.summary()}, folder / f"{case}.pt")
    step = a_step_in_float32(**settings)
    if rank == 0:
        torch.save(step, folder / "step.pt")


def a_step_in_float32(**settings: Any) -> dict[str, torch.Tensor]:
    """Return the weights after one step in float32."""
    return tiny_runs.weights(train("single patterns", "32-true", max_steps=1, **settings))


def train_and_reconstruct(folder: Path, rank: int, **settings: Any) -> None:
    """Train, reconstruct and refine; keep what every process has of it."""
    trained = train("validated groups", **settings)
    scan, science = odd_scan(), tiny_runs.science()
    asked = tiny_runs.settings(accelerator="cpu", **settings)
    module = tiny_runs.untrained(tiny_runs.PhaseOfItsOwn, scan)
    made = components.reconstruct(module, scan, science, asked, {"refine": 2})
    kept = {
        "weights": tiny_runs.weights(trained),
        "history": trained.history,
        "summary": trained.summary(),
        "drift": trained.drift.to_json(),
        "parts": sorted(trained.times.seconds),
        "stitched": made.object if made.network_object is None else made.network_object,
        "n_patches": made.n_patches,
        "refined": made.refine_losses,
        "notices": made.notices,
        "phases_turned_rad": made.phases_turned_rad,
    }
    torch.save(kept, folder / f"rank{rank}.pt")


class Stop(Callback):
    """Ends the run in the middle of its second epoch."""

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 6:
            raise UserError("stopped")


def interrupt_and_resume(folder: Path, rank: int, **settings: Any) -> None:
    """Train at one go, and in two parts; keep what both came to."""
    asked = {"checkpoint_every_n_steps": 5, **settings}
    kept = [train("validated groups", **asked)]
    with suppress(UserError):
        train("validated groups", run_dir=folder / "run", callbacks=[Stop()], **asked)
    last = folder / "run" / "checkpoints" / "last.ckpt"
    kept.append(train("validated groups", resume_from=last, **asked))
    if rank == 0:
        results = [(tiny_runs.weights(result), result.summary()) for result in kept]
        torch.save(results, folder / "both.pt")


class LossIsLost(PtychoPINN_Lightning):
    """In its third step the last process computes a loss that is not finite."""

    def loss(self, batch: Any) -> Any:
        loss, patches = super().loss(batch)
        lost = self.training and self.global_step == 2 and self.global_rank == 1
        return loss * (float("nan") if lost else 1), patches


class WeightsAreLost(PtychoPINN_Lightning):
    """After an epoch the last process has a weight that is not finite."""

    def on_train_epoch_end(self) -> None:
        if self.global_rank == 1:
            self.network.unet.head.bias.data.fill_(float("nan"))
        super().on_train_epoch_end()


class PatchIsOutside(PtychoPINN_Lightning):
    """The first process stitches a patch that lies outside of the canvas, in the second of three rounds."""

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Any:
        made = super().predict_step(batch, batch_idx)
        made["positions_px"] = made["positions_px"] + (made["index"] == 9)[..., None] * 1e4
        return made


def one_goes_wrong(kind: type[PtychoPINN_Lightning], folder: Path, rank: int, **settings: Any) -> None:
    """Leave the error of each process."""
    model.PtychoPINN_Lightning = kind  # type: ignore[misc]
    try:
        if kind is PatchIsOutside:
            module, asked = tiny_runs.untrained(kind, odd_scan()), tiny_runs.settings(**settings)
            components.reconstruct(module, odd_scan(), tiny_runs.science(), asked)
        train("single patterns", **settings)
    except UserError as error:
        (folder / f"rank{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    what, strategy, devices, batch_size, target = sys.argv[1:]
    place = Path(target), int(os.environ.get("LOCAL_RANK", "0"))
    strategy = "ddp" if strategy == "torchrun" else strategy
    asked = {"strategy": strategy, "devices": int(devices), "batch_size": int(batch_size)}
    if what[0].isupper():
        one_goes_wrong(globals()[what], *place, **asked)
    else:
        globals()[what](*place, **asked)
