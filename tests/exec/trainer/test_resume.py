"""An interrupted run, resumed, is bit for bit the uninterrupted one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ptycho_exec.trainer import resume
from ptycho_exec.trainer.resume import Continuity, seconds_of
from tests.exec.trainer.scripted_runs import (
    checkpoints,
    fit,
    settings,
    weights,
)


@pytest.mark.slow
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


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1])))
import scripted_runs as t
class Slow(t.Net):
    def training_step(self, batch, index):
        import time; time.sleep(0.005)
        return super().training_step(batch, index)
t.Net = Slow
t.fit(t.settings(), Path(sys.argv[2]), epochs=100_000)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGKILL, -9),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.thorough),
    ],
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


@pytest.mark.acts("checkpoint_every_n_steps", "the step in `last.ckpt` when a run is interrupted")
def test_a_run_goes_on_within_an_epoch_bit_for_bit(tmp_path: Path) -> None:
    """An epoch has 8 batches: the run stops at step 21 and goes on at 20, within the third epoch."""
    wanted = settings(checkpoint_every_n_steps=5)
    _, whole = fit(wanted, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        fit(wanted, tmp_path / "part", stop_at=21)
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 20
    trainer, resumed = fit(wanted, tmp_path / "rest", resume=last)
    assert trainer.global_step == 48
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(one, other)


def test_a_run_with_accumulation_and_workers_goes_on_within_an_epoch(tmp_path: Path) -> None:
    wanted = settings(checkpoint_every_n_steps=1, accum_steps=2, num_workers=1)
    _, whole = fit(wanted, tmp_path / "whole", epochs=3)
    with pytest.raises(InterruptedError):
        fit(wanted, tmp_path / "part", stop_at=7, epochs=3)
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 7
    _, resumed = fit(wanted, tmp_path / "rest", resume=last, epochs=3)
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(one, other)


@pytest.mark.acts("checkpoint_every", "the step in `last.ckpt`, with a clock that jumps")
def test_a_checkpoint_is_written_when_its_time_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10**6, 25))
    monkeypatch.setattr("ptycho_exec.trainer.resume.time.monotonic", lambda: next(clock))
    wanted = settings(checkpoint_every="00:00:01:00", enable_progress_bar=False)  # which has a clock, too
    with pytest.raises(InterruptedError):
        fit(wanted, tmp_path, stop_at=7)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_durations_are_seconds() -> None:
    assert seconds_of("01:02:03:04") == 86400 + 2 * 3600 + 3 * 60 + 4
