"""A moving average of the weights: validated, kept, and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from ptycho_exec.errors import SettingsError
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import resolve_plan
from tests.exec.trainer.scripted_runs import fit, settings, weights

pytest.importorskip("lightning.pytorch.callbacks.weight_averaging", reason="Lightning before 2.6 has none")


class Recorder(pl.Callback):
    """Keep the weights after every step."""

    def __init__(self) -> None:
        self.steps: list[list[torch.Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.steps.append([weight.detach().clone() for weight in pl_module.parameters()])


@pytest.mark.acts("ema_decay", "the weights after training, beside an average computed here")
def test_the_trained_weights_are_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, real = Recorder(), pl.Trainer
    monkeypatch.setattr(
        "lightning.pytorch.Trainer", lambda **kw: real(**{**kw, "callbacks": [*kw["callbacks"], recorder]})
    )
    _, net = fit(settings(ema_decay=0.8), None, epochs=2)
    average = recorder.steps[0]
    for step in recorder.steps[1:]:
        average = [0.8 * old + 0.2 * new for old, new in zip(average, step, strict=True)]
    for have, want in zip(net.parameters(), average, strict=True):
        torch.testing.assert_close(have.detach(), want)
    assert not torch.equal(recorder.steps[-1][0], average[0])


def test_checkpoints_hold_the_average_and_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    wanted = settings(ema_decay=0.8)
    _, whole = fit(wanted, tmp_path / "whole")
    saved = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, saved[name])
    with pytest.raises(InterruptedError):
        fit(wanted, tmp_path / "part", stop_at=20)
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    _, resumed = fit(wanted, tmp_path / "rest", resume=last)
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(one, other)


@pytest.mark.acts("swa_epoch_start", "the weights after training, beside a mean computed here")
@pytest.mark.parametrize("start", [2, 0.5])
def test_the_trained_weights_are_the_mean_of_the_last_epochs(
    start: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recorder, real = Recorder(), pl.Trainer
    monkeypatch.setattr(
        "lightning.pytorch.Trainer", lambda **kw: real(**{**kw, "callbacks": [*kw["callbacks"], recorder]})
    )
    trainer, net = fit(settings(swa_epoch_start=start), tmp_path, epochs=4)
    third, fourth = recorder.steps[23], recorder.steps[31]
    for have, one, other in zip(net.parameters(), third, fourth, strict=True):
        torch.testing.assert_close(have.detach(), (one + other) / 2)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())
    assert trainer.current_epoch == 4


@pytest.mark.parametrize("stop_at", [12, 34])
def test_a_mean_of_epochs_goes_on_after_an_interruption(stop_at: int, tmp_path: Path) -> None:
    wanted = settings(swa_epoch_start=3)
    _, whole = fit(wanted, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        fit(wanted, tmp_path / "part", stop_at=stop_at)
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    _, resumed = fit(wanted, tmp_path / "rest", resume=last)
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(one, other)


def test_before_the_mean_begins_checkpoints_hold_the_weights_themselves(tmp_path: Path) -> None:
    _, plain = fit(settings(), tmp_path / "plain", epochs=2)
    _, averaged = fit(settings(swa_epoch_start=5), tmp_path / "swa", epochs=2)
    for one, other in zip(weights(plain), weights(averaged), strict=True):
        assert torch.equal(one, other)


def test_a_lightning_without_it_is_refused() -> None:
    facts = MachineFacts(cpus_logical=2, packages={"lightning": "2.5.0"})
    with pytest.raises(SettingsError, match=r"lightning 2\.5\.0 cannot average weights"):
        resolve_plan(settings(ema_decay=0.9), facts).raise_if_blocked()
    assert not resolve_plan(settings(ema_decay=0.9), MachineFacts(packages={"lightning": "2.6.1"})).problems
