"""A run that is asked to stop: it saves its last step, leaves in order, and goes on later bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ptycho_exec.record import read_manifest
from ptycho_exec.trainer import stop
from ptycho_exec.trainer.run import trainer_run
from ptycho_exec.trainer.stop import SIGNALS, Stopped, requeue_job
from tests.exec.trainer import scripted_runs
from tests.exec.trainer.scripted_runs import fit, settings, weights

LIMIT_S = 240
DATA = TensorDataset(scripted_runs.TRAIN)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int, int]]]:
    """Hooks of the module, steps and signals: there and then the process signals itself."""
    plan: list[tuple[str, int, int]] = []

    def at(hook: str) -> Any:
        def send(net: Any, *_: Any) -> None:
            for name, step, number in plan:
                if name == hook and net.global_step == step and not net.trainer.sanity_checking:
                    os.kill(os.getpid(), number)

        return send

    for hook in ("on_train_batch_start", "on_validation_start", "on_save_checkpoint", "on_fit_start"):
        monkeypatch.setattr(scripted_runs.Net, hook, at(hook), raising=False)
    before = [signal.getsignal(number) for number in SIGNALS]
    yield plan
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert stop._watch is None


def step_of(run: Path) -> int:
    found = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return int(found["global_step"])


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("more", [{}, {"accum_steps": 3, "num_workers": 1, "drift": "allow"}])
def test_the_run_leaves_after_the_step_and_goes_on_bit_for_bit(
    number: signal.Signals, more: dict[str, Any], tmp_path: Path, told: list[tuple[str, int, int]]
) -> None:
    wanted = settings(**more)
    _, whole = fit(wanted, tmp_path / "whole", epochs=3)
    told.append(("on_train_batch_start", 4, number))
    with pytest.raises(Stopped) as caught:
        fit(wanted, tmp_path / "part", epochs=3)
    assert caught.value.code == 128 + number
    assert f"asked to stop by {number.name} after step 5; the checkpoint is" in str(caught.value)
    assert step_of(tmp_path / "part") == 5
    told.clear()
    _, rest = fit(wanted, tmp_path / "rest", epochs=3, resume=tmp_path / "part" / "checkpoints" / "last.ckpt")
    for one, other in zip(weights(whole), weights(rest), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("hook", "step"), [("on_train_batch_start", 15), ("on_validation_start", 16), ("on_save_checkpoint", 16)]
)
def test_what_ends_an_epoch_is_done_first(
    hook: str, step: int, tmp_path: Path, told: list[tuple[str, int, int]]
) -> None:
    """An epoch has 8 steps."""
    _, whole = fit(settings(scheduler="ReduceLROnPlateau"), tmp_path / "whole", epochs=4)
    told.append((hook, step, signal.SIGTERM))
    with pytest.raises(Stopped, match="SIGTERM after step 16"):
        fit(settings(scheduler="ReduceLROnPlateau"), tmp_path / "part", epochs=4)
    assert step_of(tmp_path / "part") == 16
    told.clear()
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    _, rest = fit(settings(scheduler="ReduceLROnPlateau"), tmp_path / "rest", epochs=4, resume=last)
    for one, other in zip(weights(whole), weights(rest), strict=True):
        assert torch.equal(one, other)


def test_metrics_of_a_begun_epoch_cover_all_of_it(tmp_path: Path, told: list[tuple[str, int, int]]) -> None:
    whole, _ = fit(settings(), tmp_path / "whole", epochs=1)
    told.append(("on_train_batch_start", 4, signal.SIGTERM))
    with pytest.raises(Stopped):
        fit(settings(), tmp_path / "part", epochs=1)
    told.clear()
    rest, _ = fit(
        settings(), tmp_path / "rest", epochs=1, resume=tmp_path / "part" / "checkpoints" / "last.ckpt"
    )
    assert rest.callback_metrics["train_loss"] == whole.callback_metrics["train_loss"]


def test_a_training_that_ends_with_this_epoch_ends(tmp_path: Path, told: list[tuple[str, int, int]]) -> None:
    told.append(("on_train_batch_start", 15, signal.SIGTERM))
    trainer, _ = fit(settings(), tmp_path, epochs=2)
    assert trainer.global_step == 16


def test_more_signals_while_it_saves_do_nothing_worse(
    tmp_path: Path, told: list[tuple[str, int, int]]
) -> None:
    told += [("on_train_batch_start", 4, signal.SIGUSR1)]
    told += [("on_save_checkpoint", 5, number) for number in SIGNALS]
    with pytest.raises(Stopped, match="SIGUSR1"):
        fit(settings(), tmp_path)
    assert step_of(tmp_path) == 5


def test_a_run_without_checkpoints_says_that_nothing_was_saved(
    tmp_path: Path, told: list[tuple[str, int, int]]
) -> None:
    told.append(("on_train_batch_start", 4, signal.SIGTERM))
    with pytest.raises(Stopped, match="after step 5; nothing was saved, because this run writes no"):
        fit(settings(), None)


def test_before_the_first_step_it_leaves_at_once(tmp_path: Path, told: list[tuple[str, int, int]]) -> None:
    told.append(("on_fit_start", 0, signal.SIGTERM))
    with pytest.raises(Stopped, match="SIGTERM before the first step"):
        fit(settings(), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_handler_of_the_program_is_called_too_and_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: seen.append(number))
    ignored = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with pytest.raises(Stopped, match="SIGUSR2"), stop.leaving_in_order():
            send(signal.SIGUSR1, signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(signal.SIGUSR1, ignored)
    assert seen == [signal.SIGUSR2]


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_a_run_in_a_thread_trains(tmp_path: Path) -> None:
    """Only the main thread can have handlers."""
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(fit(settings(), tmp_path, epochs=1)[0].global_step))
    thread.start()
    thread.join(LIMIT_S)
    assert done == [8]


def test_the_manifest_names_the_signal(
    tmp_path: Path, told: list[tuple[str, int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    told.append(("on_train_batch_start", 4, signal.SIGUSR1))
    wanted = settings(enable_progress_bar=False, checkpoint_monitor_metric="train_loss")
    with (
        pytest.raises(Stopped),
        trainer_run(wanted, module=scripted_runs.Net, run_dir=tmp_path / "run", max_epochs=2) as run,
    ):
        run.trainer.fit(scripted_runs.Net(), DataLoader(DATA, shuffle=True, **run.train_loader_kwargs))
    manifest = read_manifest(tmp_path / "run")
    assert (manifest["status"], manifest["signal"]) == ("interrupted", "SIGUSR1")
    assert manifest["error"].startswith("Stopped: asked to stop by SIGUSR1 after step 5")
    said = capsys.readouterr().err
    assert "asked to stop by SIGUSR1 after step 5" in said
    assert "ckpt_path" in said


# --- requeueing ---------------------------------------------------------------------------------------------


def scontrol(folder: Path, body: str) -> None:
    program = folder / "scontrol"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


@pytest.mark.acts("max_requeues", "how often a job is requeued")
def test_a_job_is_requeued_so_often_and_no_more(
    tmp_path: Path, told: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol(tmp_path, f'echo "$@" >> {tmp_path}/calls')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    told.append(("on_train_batch_start", 1, signal.SIGUSR1))
    for count in range(4):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(count))
        with pytest.raises(Stopped), stop.leaving_in_order():
            fit(settings(max_requeues=2), None)
    assert (tmp_path / "calls").read_text().splitlines() == ["requeue 7"] * 2


def test_what_is_said_of_a_requeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job = {"SLURM_JOB_ID": "9"}
    assert "no scontrol on the PATH" in requeue_job(job, 3)
    assert "would not continue" in requeue_job(job, None)
    assert "max_requeues=0" in requeue_job(job, 0)
    scontrol(tmp_path, "echo 'Invalid job id' >&2; exit 1")
    assert "scontrol says 'Invalid job id'" in requeue_job(job, 3)
    scontrol(tmp_path, f'echo "$@" > {tmp_path}/call')
    array = job | {"SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "2", "SLURM_RESTART_COUNT": "1"}
    assert requeue_job(array, 3) == "job 8_2 is requeued, for the 2. of at most 3 times"
    assert (tmp_path / "call").read_text() == "requeue 8_2\n"


# --- several processes --------------------------------------------------------------------------------------


PROGRAM = """
import sys
from pathlib import Path
import torch
from torch.utils.data import DataLoader, TensorDataset
from ptycho_exec.trainer.run import trainer_run
from tests.exec.trainer.scripted_runs import TRAIN, Net, settings

class Slow(Net):
    def on_train_batch_end(self, *_):
        if self.global_step == 3:
            Path(sys.argv[1] + f".{self.global_rank}").write_text(str(__import__("os").getpid()))
        __import__("time").sleep(0.02)

if __name__ == "__main__":
    wanted = settings(strategy=sys.argv[2], devices=2, accelerator="cpu", enable_progress_bar=False,
                      checkpoint_monitor_metric="train_loss", drift="allow")
    with trainer_run(wanted, module=Slow, run_dir=sys.argv[1], max_epochs=10_000) as run:
        run.trainer.fit(Slow(), DataLoader(TensorDataset(TRAIN), shuffle=True, **run.train_loader_kwargs))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "to"),
    [
        pytest.param("ddp", "parent", marks=pytest.mark.thorough),
        ("ddp", "rank 1"),
        pytest.param("ddp_fork", "parent", marks=pytest.mark.thorough),
        pytest.param("ddp_spawn", "parent", marks=pytest.mark.thorough),
        pytest.param("ddp_fork", "rank 1", marks=pytest.mark.thorough),
    ],
)
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    strategy: str, to: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run = tmp_path / "run"
    marks = [Path(f"{run}.{rank}") for rank in range(2)]
    with subprocess.Popen(
        [sys.executable, str(program), str(run), strategy],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + LIMIT_S
        while not all(mark.exists() and mark.read_text() for mark in marks):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        pids = [int(mark.read_text()) for mark in marks]
        os.kill(process.pid if to == "parent" else pids[1], signal.SIGTERM)
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143, said
    manifest = read_manifest(run)
    assert (manifest["status"], manifest["signal"]) == ("interrupted", "SIGTERM"), said
    assert step_of(run) >= 3
    assert said.count("asked to stop by SIGTERM") == 1
    while any(map(alive, pids)):
        assert time.monotonic() < deadline


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
