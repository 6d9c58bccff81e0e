"""What children of a spawning strategy counted is there afterwards in the process that started them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.profilers import SimpleProfiler

from ptycho_exec import trainer_run
from ptycho_exec.errors import DataError
from ptycho_exec.record import read_manifest
from ptycho_exec.trainer.spawned import Spawned, brought_back
from tests.exec.trainer.linear_runs import CPU, Linear, settings
from tests.exec.trainer.test_run import data

pytestmark = [
    pytest.mark.filterwarnings("ignore::ptycho_exec.errors.SettingsWarning"),
    pytest.mark.filterwarnings("ignore:It is recommended to use .self.log"),  # the module logs for itself
]


@pytest.fixture(autouse=True)
def _own_group() -> Iterator[None]:
    """Leave no group of processes behind."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Counts(pl.Callback):
    """Counts batches, and keeps what cannot be pickled, the Trainer, and where it was called."""

    def __init__(self, fails: bool = False) -> None:
        self.batches, self.fails = 0, fails
        self.lock = threading.Lock()
        self.trainer: Any = None
        self.process = 0

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        self.batches += 1
        self.trainer, self.process = trainer, os.getpid()
        self.largest = torch.tensor(float(self.batches))
        if self.fails:
            raise DataError("this batch cannot be used", where="batch 0")


def run(folder: Path | None, counts: Counts, profiler: Any = None) -> Any:
    wanted = settings(accelerator="cpu", devices=2, strategy="ddp_fork")
    own: dict[str, Any] = {"callbacks": [counts], "profiler": profiler}
    with trainer_run(wanted, module=Linear, max_epochs=2, run_dir=folder, facts=CPU, **own) as made:
        made.trainer.fit(Linear(made.settings.learning_rate), data(**made.train_loader_kwargs))
    return made.trainer


def test_callbacks_profiler_progress_and_manifest_are_those_of_the_first_child(tmp_path: Path) -> None:
    counts, profiler = Counts(), SimpleProfiler()
    lock = counts.lock
    trainer = run(tmp_path / "run", counts, profiler)
    manifest = read_manifest(tmp_path / "run")
    assert (manifest["status"], manifest["trained"]["epochs"]) == ("completed", 2)
    assert manifest["trained"]["steps"] == trainer.global_step == counts.batches > 2
    assert float(counts.largest) == counts.batches
    assert counts.process not in (0, os.getpid())
    assert counts.trainer is trainer
    assert counts.lock is lock
    assert len(profiler.recorded_durations["run_training_epoch"]) == 2
    assert "optimizer_steps_per_epoch" in {row["name"] for row in manifest["drift"]}


def test_an_error_for_the_user_arrives_as_it_was_raised() -> None:
    with pytest.raises(DataError, match="this batch cannot be used") as caught:
        run(None, Counts(fails=True))
    assert caught.value.findings[0].where == "batch 0"


def test_a_process_that_trains_by_itself_has_nothing_to_bring_back() -> None:
    wanted = settings(accelerator="cpu")
    with trainer_run(wanted, module=Linear, facts=CPU) as made, brought_back(made.trainer):
        assert not any(isinstance(row, Spawned) for row in made.trainer.callbacks)
