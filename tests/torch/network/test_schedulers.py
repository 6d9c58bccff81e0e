"""Every schedule against its formula, on a real optimizer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ptycho_exec.fields.model import METRIC_DRIVEN
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.network import schedulers

RATE = 2e-3
TOTAL = 100


def make(name: str, total: int = TOTAL, patterns: int = 400, mode: Any = "min") -> tuple[Any, Any]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
    schedule = schedulers.build_scheduler(
        name, optimizer, total_steps=total, patterns_per_step=patterns, mode=mode
    )
    return optimizer, schedule


def curve(name: str, **kwargs: Any) -> list[float]:
    optimizer, schedule = make(name, **kwargs)
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_exponential_falls_to_a_hundredth() -> None:
    want = [RATE * math.exp(math.log(0.01) * t / TOTAL) for t in range(TOTAL)]
    assert curve("Exponential") == pytest.approx(want)


def test_warmup_cosine_rises_then_falls_to_zero() -> None:
    warm = 5  # 2000 patterns at 400 a step
    rates = curve("WarmupCosine")
    assert rates[:warm] == pytest.approx([RATE * (t + 1) / warm for t in range(warm)])
    want = [RATE * (1 + math.cos(math.pi * (t - warm) / (TOTAL - warm))) / 2 for t in range(warm, TOTAL)]
    assert rates[warm:] == pytest.approx(want)


@pytest.mark.parametrize(
    ("patterns", "total", "want"), [(400, 100, 5), (16, 100, 10), (16, 10_000, 125), (64, 5, 1)]
)
def test_warmup_takes_2000_patterns_or_a_tenth(patterns: int, total: int, want: int) -> None:
    assert schedulers.warmup_steps(total, patterns) == want


def test_multi_stage_drops_three_times() -> None:
    rates = curve("MultiStage")
    want = [RATE * 0.3 ** ((t >= 50) + (t >= 75) + (t >= 90)) for t in range(TOTAL)]
    assert rates == pytest.approx(want)


def test_default_stays_constant() -> None:
    assert make("Default")[1] is None


def rates_over(name: str, metrics: list[float], mode: str = "min") -> list[float]:
    optimizer, schedule = make(name, mode=mode)
    rates = []
    for metric in metrics:
        optimizer.step()
        schedule.step(metric)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_reduce_on_plateau_halves_after_five_bad_epochs() -> None:
    rates = rates_over("ReduceLROnPlateau", [1.0, 0.5] + [0.5] * 12)
    assert rates == pytest.approx([RATE] * 7 + [RATE / 2] * 6 + [RATE / 4])
    assert rates_over("ReduceLROnPlateau", [1.0] * 200)[-1] == pytest.approx(RATE / 100)


def test_adaptive_speeds_up_while_the_metric_improves() -> None:
    rates = rates_over("Adaptive", [1.0, 0.9, 0.95, 0.8])
    assert rates == pytest.approx([RATE * f for f in (1.05, 1.05**2, 1.05**2 * 0.7, 1.05**3 * 0.7)])


@pytest.mark.parametrize(("metrics", "bound"), [([1.0] * 40, 0.01), ([1 / k for k in range(1, 40)], 2.0)])
def test_adaptive_stays_within_bounds(metrics: list[float], bound: float) -> None:
    assert rates_over("Adaptive", metrics)[-1] == pytest.approx(bound * RATE)


def test_max_mode_turns_the_metric_around() -> None:
    assert rates_over("Adaptive", [0.5, 0.6], mode="max")[-1] == pytest.approx(RATE * 1.05**2)
    assert rates_over("ReduceLROnPlateau", [1.0] + [0.5] * 6, mode="max")[-1] == pytest.approx(RATE / 2)


def test_adaptive_resumes_from_its_state() -> None:
    optimizer, schedule = make("Adaptive")
    optimizer.step()
    schedule.step(1.0)
    saved = schedule.state_dict()
    _, other = make("Adaptive")
    other.load_state_dict(saved)
    assert (other.factor, other.best) == (schedule.factor, schedule.best)


def test_every_name_of_the_settings_is_known() -> None:
    names = ExecutionSettings.model_fields["scheduler"].annotation.__args__
    for name in names:
        make(name)
    assert set(names) == METRIC_DRIVEN | schedulers.STEP_DRIVEN | {"Default"}


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown scheduler 'Cosine'"):
        make("Cosine")
