"""A training that diverges, collapses or stays where it began is an error; one that learns is left alone."""

from __future__ import annotations

import pytest
import torch

from ptycho_exec.errors import UserError
from ptycho_torch.network.health import PLATEAU_PATTERNS, TrainingHealth, check_weights


def judge(losses: list[float], spread: float, patterns: int = 16, noise_floor: float = 0.0) -> None:
    health = TrainingHealth(noise_floor)
    for loss in losses:
        health.after_step(loss, patterns)
    health.after_epoch(spread)


def complaint(losses: list[float], spread: float, noise_floor: float = 0.0) -> str:
    try:
        judge(losses, spread, noise_floor=noise_floor)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_told_with_its_step(loss: float) -> None:
    with pytest.raises(UserError, match=f"the loss became {loss}") as caught:
        judge([0.2, 0.1, loss], spread=0.1)
    assert caught.value.findings[0].where == "training step 2"


def test_broken_weights_are_named_three_at_most() -> None:
    module = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(3)))
    check_weights(module.named_parameters())
    with torch.no_grad():
        module[1].weight[0, 1] = float("inf")
    with pytest.raises(UserError, match="1 weight tensors hold NaN") as caught:
        check_weights(module.named_parameters())
    assert caught.value.findings[0].where == "1.weight"
    with torch.no_grad():
        for weight in module.parameters():
            weight.fill_(float("nan"))
    with pytest.raises(UserError, match="6 weight tensors") as caught:
        check_weights(module.named_parameters())
    assert caught.value.findings[0].where == "0.weight, 0.bias, 1.weight"


def test_a_plateau_is_named() -> None:
    with pytest.raises(UserError, match="training is stuck"):
        judge([0.2] * 1000, spread=0.1)


def test_a_collapse_is_named() -> None:
    with pytest.raises(UserError, match="training collapsed"):
        judge([0.2] * 10 + [0.17] * 990, spread=1e-5)


def test_a_pure_phase_object_is_no_collapse() -> None:
    assert complaint([0.2] * 10 + [0.05] * 990, spread=1e-5) == ""


def test_short_runs_are_not_judged() -> None:
    assert complaint([0.2] * (PLATEAU_PATTERNS // 16 - 1), spread=1e-5) == ""


def test_learning_raises_nothing() -> None:
    assert complaint([0.2] * 10 + [0.1] * 990, spread=0.1) == ""


def test_noise_that_nothing_can_explain_is_no_plateau() -> None:
    losses = [0.120] * 10 + [0.117] * 990
    with pytest.raises(UserError, match="training is stuck"):
        judge(losses, spread=0.1)
    assert complaint(losses, spread=0.1, noise_floor=0.09) == ""
    with pytest.raises(UserError, match=r"a loss below 0.1185, of which counting noise is 0.09"):
        judge([0.12] * 1000, spread=0.1, noise_floor=0.09)


def test_a_resumed_run_remembers() -> None:
    health = TrainingHealth()
    for _ in range(1000):
        health.after_step(0.2, 16)
    other = TrainingHealth()
    other.load_state_dict(health.state_dict())
    other.after_step(0.2, 16)
    with pytest.raises(UserError, match="training is stuck"):
        other.after_epoch(0.1)
