"""Callbacks with a real Trainer: checkpoints, early stopping, resuming, progress, throughput."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from torch.utils.data import DataLoader, Sampler, TensorDataset

from ptycho_exec.errors import SettingsError, UserError
from ptycho_exec.fields.model import METRIC_DRIVEN
from ptycho_exec.machine.facts import Gpu, MachineFacts
from ptycho_exec.plan import ModuleTraits, Plan, resolve_plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer import progress, readback, resume
from ptycho_exec.trainer.build import build_trainer, process_flags, seed_run, train_loader_kwargs
from ptycho_exec.trainer.callbacks import build_callbacks, build_plugins
from ptycho_exec.trainer.checkpoints import AtomicCheckpointIO
from ptycho_exec.trainer.progress import Throughput, batch_length
from ptycho_exec.trainer.readback import ReadBack
from ptycho_exec.trainer.resume import Continuity

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
        trainer = build_trainer(wanted, max_epochs=epochs, run_dir=run_dir, plan=plan)
        train = DataLoader(TensorDataset(TRAIN), sampler=EpochShuffle(), **train_loader_kwargs(wanted, plan))
        test = DataLoader(TensorDataset(TEST), **train_loader_kwargs(wanted, plan)) if validate else None
        trainer.fit(net, train, test, ckpt_path=resume)
    return trainer, net


def checkpoints(run_dir: Path) -> list[str]:
    folder = run_dir / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def plan_of(**values: object) -> Plan:
    return resolve_plan(settings(**values), FACTS)


def kinds(callbacks: list[Any]) -> list[str]:
    return [type(row).__name__ for row in callbacks]


# --- which callbacks -----------------------------------------------------------------------------------


def test_callbacks_of_a_run_that_writes(tmp_path: Path) -> None:
    found = build_callbacks(plan_of(enable_progress_bar=True), run_dir=tmp_path, has_logger=True)
    assert kinds(found) == [
        "ReadBack",
        "Continuity",
        "Throughput",
        "EarlyStopping",
        "LearningRateMonitor",
        "TrainingProgress",
        "BestCheckpoints",
        "ResumePoint",
    ]


def test_callbacks_of_a_run_that_writes_nothing() -> None:
    found = build_callbacks(plan_of(early_stop_patience=None), has_logger=False)
    assert kinds(found) == ["ReadBack", "Continuity", "Throughput"]


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"enable_checkpointing": False}, []),
        ({"fast_dev_run": 1}, []),
        ({"checkpoint_save_top_k": 0}, ["ResumePoint"]),
        ({}, ["BestCheckpoints", "ResumePoint"]),
    ],
)
def test_checkpoint_callbacks(asked: dict[str, object], names: list[str], tmp_path: Path) -> None:
    found = kinds(build_callbacks(plan_of(**asked), run_dir=tmp_path, has_logger=False))
    assert [name for name in found if "Best" in name or "Resume" in name] == names


def test_sharded_strategies_keep_their_own_checkpoint_writer() -> None:
    gpu = Gpu(name="A100", memory_mb=1, capability="8.0", bf16=True)
    facts = MachineFacts(gpus=(gpu, gpu))
    assert build_plugins(resolve_plan(settings(strategy="fsdp", devices=2), facts)) == []
    assert kinds(build_plugins(plan_of())) == ["AtomicCheckpointIO"]


def test_callbacks_travel_to_spawned_processes(tmp_path: Path) -> None:
    found = build_callbacks(plan_of(enable_progress_bar=True), run_dir=tmp_path, has_logger=False)
    assert kinds(pickle.loads(pickle.dumps(found))) == kinds(found)


# --- best and last -------------------------------------------------------------------------------------

SCRIPT = (5.0, 2.0, 4.0, 1.0, 3.0)


@pytest.mark.acts(
    "checkpoint_save_top_k",
    "files in `checkpoints/` with a scripted metric",
    ["True-3-min-epochs1", "True--1-min-epochs2", "False-0-min-epochs3"],
)
@pytest.mark.acts(
    "checkpoint_mode", "files in `checkpoints/`, and when training stops early", ["True-1-max-epochs4"]
)
@pytest.mark.parametrize(
    ("top_k", "mode", "epochs"),
    [
        (1, "min", [3]),
        (3, "min", [1, 3, 4]),
        (-1, "min", [0, 1, 2, 3, 4]),
        (0, "min", []),
        (1, "max", [0]),
        (3, "max", [0, 2, 4]),
    ],
)
@pytest.mark.parametrize("validate", [True, False])
def test_the_best_checkpoints_are_kept(
    top_k: int, mode: str, epochs: list[int], validate: bool, tmp_path: Path
) -> None:
    wanted = settings(checkpoint_save_top_k=top_k, checkpoint_mode=mode)
    fit(wanted, tmp_path, epochs=5, validate=validate, script=SCRIPT)
    best = [f"epoch{epoch:04d}-step{8 * (epoch + 1):07d}.ckpt" for epoch in epochs]
    assert checkpoints(tmp_path) == [*best, "last.ckpt"]


@pytest.mark.acts(
    "checkpoint_monitor_metric", "metric that ranks checkpoints and drives metric-driven schedules"
)
def test_the_asked_metric_ranks(tmp_path: Path) -> None:
    trainer, _ = fit(settings(checkpoint_monitor_metric="train_loss"), tmp_path, epochs=2)
    ranker = next(row for row in trainer.callbacks if type(row).__name__ == "BestCheckpoints")
    assert ranker.monitor == "train_loss"
    assert ranker.best_model_score == min(trainer.callback_metrics["train_loss"], ranker.best_model_score)
    assert checkpoints(tmp_path)[-1] == "last.ckpt"


@pytest.mark.acts("enable_checkpointing", "files in `checkpoints/`")
def test_no_checkpoints_if_so_wished(tmp_path: Path) -> None:
    fit(settings(enable_checkpointing=False), tmp_path, epochs=1)
    assert checkpoints(tmp_path) == []


def test_a_checkpoint_loads_with_weights_only(tmp_path: Path) -> None:
    fit(settings(scheduler="ReduceLROnPlateau"), tmp_path, epochs=2)
    found = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert found["epoch"] == 1


@pytest.mark.acts(
    "early_stop_patience", "epochs trained with a scripted metric", ["True-1-min-3", "False-1-min-3"]
)
@pytest.mark.acts(
    "checkpoint_mode", "files in `checkpoints/`, and when training stops early", ["True-1-max-2"]
)
@pytest.mark.parametrize(
    ("patience", "mode", "stops_after"), [(1, "min", 3), (2, "min", 5), (1, "max", 2), (None, "min", 5)]
)
@pytest.mark.parametrize("validate", [True, False])
def test_early_stopping(patience: int | None, mode: str, stops_after: int, validate: bool) -> None:
    wanted = settings(early_stop_patience=patience, checkpoint_mode=mode)
    trainer, _ = fit(wanted, None, epochs=5, validate=validate, script=SCRIPT)
    assert trainer.current_epoch == stops_after


# --- whole files only ----------------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)

    def fail(checkpoint: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match="disk full"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [row.name for row in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_a_kill_left_is_swept_up_and_was_never_named_as_finished(tmp_path: Path) -> None:
    code = """
        import os, sys, torch
        from ptycho_exec.trainer.checkpoints import AtomicCheckpointIO
        os.fsync = lambda _: os._exit(9)
        AtomicCheckpointIO().save_checkpoint({"epoch": 1}, sys.argv[1])
    """
    path = tmp_path / "last.ckpt"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], check=False)
    assert done.returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    assert left.suffix == ".part"
    AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert [row.name for row in tmp_path.iterdir()] == ["last.ckpt"]


def test_storage_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "x", storage_options={"a": 1})


# --- resuming ------------------------------------------------------------------------------------------


def weights(net: Net) -> list[torch.Tensor]:
    return list(net.state_dict().values())


@pytest.mark.parametrize("scheduler", ["Default", "Exponential", "WarmupCosine", "ReduceLROnPlateau"])
@pytest.mark.parametrize("more", [{}, {"num_workers": 1}, {"accum_steps": 3}])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    scheduler: str, more: dict[str, object], tmp_path: Path
) -> None:
    rate = 1e-2
    wanted = settings(scheduler=scheduler, learning_rate=rate, drift="allow", **more)
    _, whole = fit(wanted, tmp_path / "whole")
    steps = 3 if wanted.accum_steps == 3 else 8
    with pytest.raises(InterruptedError):
        fit(wanted, tmp_path / "part", stop_at=3 * steps + 1)
    _, resumed = fit(wanted, tmp_path / "rest", resume=tmp_path / "part" / "checkpoints" / "last.ckpt")
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(one, other)


def test_a_resumed_run_without_validation_is_the_same_too(tmp_path: Path) -> None:
    wanted = settings()
    _, whole = fit(wanted, tmp_path / "whole", validate=False)
    with pytest.raises(InterruptedError):
        fit(wanted, tmp_path / "part", stop_at=20, validate=False)
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    _, resumed = fit(wanted, tmp_path / "rest", resume=last, validate=False)
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(one, other)


def test_patience_goes_on_counting_after_a_resume(tmp_path: Path) -> None:
    script = (1.0, 2.0, 2.0, 2.0, 2.0, 2.0)
    wanted = settings(early_stop_patience=4)
    with pytest.raises(InterruptedError):
        fit(wanted, tmp_path / "part", stop_at=25, script=script)
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    trainer, _ = fit(wanted, tmp_path / "rest", resume=last, script=script)
    assert trainer.current_epoch == 5


def test_the_best_of_before_are_taken_along_and_ranked_on(tmp_path: Path) -> None:
    script = (5.0, 1.0, 4.0, 2.0, 3.0, 0.5)
    wanted = settings(checkpoint_save_top_k=2)
    with pytest.raises(InterruptedError):
        fit(wanted, tmp_path / "part", stop_at=25, script=script)
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    fit(wanted, tmp_path / "rest", resume=last, script=script, epochs=5)
    names = ["epoch0001-step0000016.ckpt", "epoch0003-step0000032.ckpt", "last.ckpt"]
    assert checkpoints(tmp_path / "rest") == names
    assert "epoch0002-step0000024.ckpt" in checkpoints(tmp_path / "part")


def test_ranking_starts_anew_where_the_best_of_before_are_gone(tmp_path: Path) -> None:
    wanted = settings()
    with pytest.raises(InterruptedError):
        fit(wanted, tmp_path / "part", stop_at=25, script=(1.0, 2.0, 3.0, 4.0, 5.0))
    folder = tmp_path / "part" / "checkpoints"
    (folder / "epoch0000-step0000008.ckpt").unlink()
    fit(wanted, tmp_path / "rest", resume=folder / "last.ckpt", epochs=5, script=(1.0, 2.0, 3.0, 4.0, 5.0))
    assert checkpoints(tmp_path / "rest") == ["epoch0003-step0000032.ckpt", "last.ckpt"]


def test_checkpoints_do_not_change_what_is_trained(tmp_path: Path) -> None:
    _, writing = fit(settings(), tmp_path, epochs=3)
    _, silent = fit(settings(), None, epochs=3)
    for one, other in zip(weights(writing), weights(silent), strict=True):
        assert torch.equal(one, other)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1])))
import test_callbacks as t
class Slow(t.Net):
    def training_step(self, batch, index):
        import time; time.sleep(0.005)
        return super().training_step(batch, index)
t.Net = Slow
t.fit(t.settings(), Path(sys.argv[2]), epochs=100_000)
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 1)]
)
def test_a_killed_run_leaves_a_whole_checkpoint_and_resumes_to_the_same(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "part")]
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    with subprocess.Popen(
        command,
        env=environ,
        stderr=subprocess.DEVNULL,
        # A shell that runs the tests in the background makes its children ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        deadline = time.monotonic() + 90
        while not last.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        child.send_signal(number)
        child.wait(timeout=60)
    assert child.returncode == status
    epochs = torch.load(last, weights_only=True)["epoch"] + 3
    named = [name for name in checkpoints(tmp_path / "part") if not name.startswith(".")]
    for name in named:
        torch.load(tmp_path / "part" / "checkpoints" / name, weights_only=True)
    _, resumed = fit(settings(), tmp_path / "rest", epochs=epochs, resume=last)
    _, whole = fit(settings(), None, epochs=epochs)
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(one, other)


# --- read-back, throughput, progress --------------------------------------------------------------------


@pytest.mark.parametrize(("accumulated", "steps"), [(1, 8), (3, 3), (8, 1), (100, 1)])
def test_optimizer_steps_are_counted(accumulated: int, steps: int) -> None:
    trainer, _ = fit(settings(accum_steps=accumulated), None, epochs=2)
    reader = next(row for row in trainer.callbacks if isinstance(row, ReadBack))
    assert reader.optimizer_steps == 2 * steps
    (row,) = (row for row in reader.report.rows if row.name == "optimizer_steps_per_epoch")
    assert (row.requested, row.effective, row.verdict) == (steps, steps, "same")


@pytest.mark.acts("drift", "whether a run with a Trainer other than asked stops or warns")
@pytest.mark.parametrize("scheduler", sorted(METRIC_DRIVEN))
def test_a_plateau_on_another_metric_than_asked_is_drift(scheduler: str) -> None:
    wanted = settings(scheduler=scheduler, checkpoint_monitor_metric="train_loss", drift="warn")
    with pytest.warns(UserWarning, match="scheduler_monitor=train_loss, but the Trainer has val_loss"):
        fit(wanted, None, epochs=1)


@pytest.mark.parametrize("scheduler", sorted(METRIC_DRIVEN))
def test_a_metric_that_only_the_scheduler_reads_must_be_logged(scheduler: str) -> None:
    wanted = settings(scheduler=scheduler, checkpoint_monitor_metric="ssim", early_stop_patience=None)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    plan = resolve_plan(wanted.with_overrides(checkpoint_save_top_k=0), FACTS)
    with pytest.raises(SettingsError, match="checkpoint_monitor_metric=ssim: the module never logged it"):
        readback.require_monitor(trainer, plan)


class Ranks:
    """Two ranks as `agree_on_settings` sees them: this one, and rank zero's values."""

    def __init__(self, first: dict[str, Any]) -> None:
        self.first, self.strategy, self.global_rank = first, self, 1

    def broadcast(self, own: dict[str, Any], src: int) -> dict[str, Any]:
        return {**own, **self.first}

    def reduce_boolean_decision(self, same: bool, all: bool) -> bool:
        return same


def test_ranks_must_agree_on_what_changes_results() -> None:
    readback.agree_on_settings(Ranks({}), plan_of())
    with pytest.raises(SettingsError, match=r"rank 1: learning_rate: 0\.01 here, 0\.5 on rank 0"):
        readback.agree_on_settings(Ranks({"learning_rate": 0.5}), plan_of())


def test_throughput_counts_samples_and_time() -> None:
    trainer, _ = fit(settings(), None, epochs=2)
    found = next(row for row in trainer.callbacks if isinstance(row, Throughput))
    assert found.samples == 2 * len(TRAIN)
    assert found.seconds > 0
    assert found.samples_per_second is not None
    assert found.samples_per_second > 0


@pytest.mark.parametrize(
    ("batch", "length"),
    [
        (torch.zeros(3, 2), 3),
        ({"name": "a", "amplitude": torch.zeros(5, 2)}, 5),
        ([torch.zeros(()), {"x": torch.zeros(4)}], 4),
        ("text", 0),
    ],
)
def test_batch_length(batch: Any, length: int) -> None:
    assert batch_length(batch) == length


@pytest.mark.acts("enable_progress_bar", "what is printed during training and inference")
def test_progress_shows_epoch_metrics_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    make = progress._bar

    def bar() -> Progress:
        found = make()
        found.live.console = Console(file=screen, force_terminal=True, width=100)
        return found

    monkeypatch.setattr(progress, "_bar", bar)
    fit(settings(enable_progress_bar=True), None, epochs=2)
    shown = screen.getvalue()
    for words in ("epoch 2/2", "16/16", "train_loss", "val_loss", "remaining", "0:00:00"):
        assert words in shown


def test_no_progress_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    fit(settings(enable_progress_bar="auto"), None, epochs=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_epochs_have_their_own_random_numbers() -> None:
    draws = []
    for epoch, rank in ((0, 0), (1, 0), (0, 1), (0, 0)):
        resume.seed_epoch(42, epoch, rank)
        draws.append(float(torch.rand(())))
    assert draws[0] == draws[3]
    assert len(set(draws)) == 3


def test_a_plateau_step_that_the_interruption_cut_off_is_taken_once(tmp_path: Path) -> None:
    wanted = settings(scheduler="ReduceLROnPlateau")
    fit(wanted, tmp_path, epochs=2)
    found = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(found[resume.PLATEAU_METRICS]) == {"val_loss"}
    continuity = Continuity(1)
    assert continuity._missed == {}
