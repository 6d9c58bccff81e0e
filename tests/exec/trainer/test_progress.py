"""Throughput and the progress bar."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from ptycho_exec import progress
from ptycho_exec.trainer.progress import Throughput, batch_length
from tests.exec.trainer.scripted_runs import (
    TRAIN,
    fit,
    settings,
)


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


def test_progress_shows_epoch_metrics_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    make = progress._bar

    def bar(stays: bool) -> Progress:
        monkeypatch.setenv("FORCE_COLOR", "1")
        with monkeypatch.context() as patched:
            patched.setattr(progress, "_is_terminal", lambda stream: True)
            found = make(stays)
        assert found is not None
        found.live.console = Console(file=screen, force_terminal=True, width=100)
        return found

    monkeypatch.setattr(progress, "_bar", bar)
    monkeypatch.setattr(progress, "DELAY_S", 0.0)
    fit(settings(enable_progress_bar=True), None, epochs=2)
    shown = screen.getvalue()
    for words in ("epoch 2/2", "16/16", "train_loss", "val_loss", "remaining", "0:00:00"):
        assert words in shown


def test_a_log_gets_lines_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DELAY_S", "LINE_S", "LINE_PART"):
        monkeypatch.setattr(progress, name, 0.0)
    fit(settings(enable_progress_bar="auto"), None, epochs=2)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("epoch 2/2: 12 of 16 batches (75%), train_loss ") for line in lines)
    assert lines[-1].endswith("0:00:00 left")


@pytest.mark.acts("enable_progress_bar", "that nothing is printed during training")
def test_nothing_is_shown_when_nothing_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DELAY_S", "LINE_S", "LINE_PART"):
        monkeypatch.setattr(progress, name, 0.0)
    fit(settings(enable_progress_bar=False), None, epochs=2)
    assert "batches" not in capsys.readouterr().err


def test_a_log_of_a_short_training_gets_none(capsys: pytest.CaptureFixture[str]) -> None:
    fit(settings(enable_progress_bar="auto"), None, epochs=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""
