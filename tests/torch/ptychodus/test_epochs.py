"""Epoch messages for the window of Ptychodus."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from ptycho_torch.ptychodus.epochs import EpochNews


def test_the_remaining_time_is_what_the_done_epochs_took(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also after a resume, where the first epochs took no time of this training."""
    now = [100.0]
    monkeypatch.setattr("ptycho_torch.ptychodus.epochs.time.monotonic", lambda: now[0])
    news, metrics = EpochNews(), {"train_loss": 0.5}
    caplog.set_level(logging.INFO)
    news.on_train_start(None, None)
    for epoch in (4, 5, 6):
        now[0] += 8.0
        trainer = SimpleNamespace(current_epoch=epoch, max_epochs=10, callback_metrics=metrics)
        news.on_train_epoch_end(trainer, None)
    assert caplog.messages == [
        f"epoch {epoch} of 10: train_loss 0.5; {left} s left" for epoch, left in ((5, 40), (6, 32), (7, 24))
    ]
