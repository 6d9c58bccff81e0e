"""Epochs written where the training is, and shown where the window is."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback

from ptycho_torch.ptychodus.epochs import EPOCHS_NAME, EpochNews, Follower
from tests.torch.ptychodus.test_window import child_of_ptychodus


def trainer(epoch: int, best: str = "", *, total: int = 10) -> Any:
    return SimpleNamespace(
        current_epoch=epoch,
        max_epochs=total,
        callback_metrics={"train_loss": 0.5, "val_loss": 0.25},
        is_global_zero=True,
        checkpoint_callbacks=[SimpleNamespace(), SimpleNamespace(best_model_path=best)],
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / EPOCHS_NAME).read_text().splitlines()]


def test_the_remaining_time_is_what_the_done_epochs_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a resume, where the first epochs took no time of this training."""
    now = [100.0]
    monkeypatch.setattr("ptycho_torch.ptychodus.epochs.time.monotonic", lambda: now[0])
    news = EpochNews(tmp_path)
    news.on_train_start(None, None)
    for epoch in (4, 5, 6):
        news.on_train_epoch_start(trainer(epoch), None)
        now[0] += 8.0
        news.on_train_epoch_end(trainer(epoch), None)
    news.on_train_end(trainer(6), None)
    assert [(row["epoch"], row["left_s"]) for row in rows(tmp_path)] == [(4, 40), (5, 32), (6, 24)]


def test_the_best_model_is_kept_under_one_name(tmp_path: Path) -> None:
    """Lightning's own files go away as better ones come; what the window was given stays."""
    news = EpochNews(tmp_path)
    for epoch, (best, weights) in enumerate((("a.ckpt", "first"), ("a.ckpt", "first"), ("b.ckpt", "third"))):
        news.on_train_epoch_end(trainer(epoch), None)
        (tmp_path / best).write_text(weights)  # checkpoints come after everybody's end of the epoch
        news.on_train_epoch_start(trainer(epoch + 1, str(tmp_path / best)), None)
        assert (tmp_path / "model.ckpt").read_text() == weights
    assert [row.get("best", False) for row in rows(tmp_path)] == [True, False, True]


def write(folder: Path, *written: dict[str, Any]) -> None:
    with (folder / EPOCHS_NAME).open("a") as file:
        for row in written:
            file.write(json.dumps({"of": 3, "left_s": 4.0, "metrics": {"train_loss": 0.5}} | row) + "\n")


def test_epochs_are_shown_and_reported_with_the_best_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with child_of_ptychodus() as sent:
        with Follower(tmp_path) as follower:
            write(tmp_path, {"epoch": 0, "best": True}, {"epoch": 1})
        tags = [message for message in sent if message[0] == "model_saved"]
    assert caplog.messages == [
        "epoch 1 of 3: train_loss 0.5; 4 s left; best so far",
        "epoch 2 of 3: train_loss 0.5; 4 s left",
    ]
    assert tags == [("model_saved", str(tmp_path / "model.ckpt"))]
    assert (follower.progress.done, "model of epoch 1" in follower.progress.kept) == (2, True)
    assert not (tmp_path / EPOCHS_NAME).exists()


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    write(tmp_path, {"epoch": 0})
    text = (tmp_path / EPOCHS_NAME).read_text()
    for half, done in ((text[:20], 0), (text[20:], 1)):
        with (tmp_path / EPOCHS_NAME).open("w" if done == 0 else "a") as file:
            file.write(half)
        follower._follow()
        assert follower.progress.done == done


def test_callbacks_that_cannot_be_there_see_every_epoch_and_may_fail(tmp_path: Path) -> None:
    class Watch(Callback):
        seen: tuple[int, ...] = ()

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.seen = (*self.seen, trainer.current_epoch)
            if trainer.current_epoch == 1:
                raise LookupError("of the caller")

    watch = Watch()
    with pytest.raises(LookupError, match="of the caller"), Follower(tmp_path, [watch]):
        write(tmp_path, {"epoch": 0}, {"epoch": 1})
    assert watch.seen == (0, 1)
