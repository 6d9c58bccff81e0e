"""The history of a training, and the stitching of a prediction: its options, its phases, its processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.workflows.callbacks import History
from ptycho_torch.workflows.components import _train_with_lightning, run_inference_with_lightning
from tests.torch.workflows.tiny_runs import PhaseOfItsOwn, phase_blind_gap, science, settings, untrained


def test_middle_trim_and_pad_eval_reach_the_stitching(scan: Any) -> None:
    trained = _train_with_lightning(scan, None, science(), settings())

    def covered(**values: Any) -> Any:
        return run_inference_with_lightning(trained, scan, None, settings(**values))["coverage"] > 0

    assert covered(middle_trim=8).sum() < covered().sum()


def test_align_phases_reaches_the_stitching(scan: Any) -> None:
    wanted = run_inference_with_lightning(untrained(PtychoPINN_Lightning, scan), scan, None, settings())[
        "object"
    ]
    module = untrained(PhaseOfItsOwn, scan)
    on, off = (
        run_inference_with_lightning(module, scan, None, settings(), {"align_phases": asked})
        for asked in (True, False)
    )
    assert phase_blind_gap(on["object"], wanted) < 0.1
    assert phase_blind_gap(off["object"], wanted) > 0.3
    assert on["phases_turned_rad"] > 1
    assert off["phases_turned_rad"] == 0


def test_the_history_has_a_number_of_each_metric_for_each_epoch(scan: Any) -> None:
    history = History()
    for loss in (0.5, 0.25):
        metrics = {"train_loss": torch.tensor(loss), "epoch": loss < 0.3}
        history.on_train_epoch_end(SimpleNamespace(callback_metrics=metrics), None)
    assert history.values == {"train_loss": [0.5, 0.25], "epoch": [0.0, 1.0]}
    trained = _train_with_lightning(scan, None, science(epochs=2, val_fraction=0.25), settings())
    assert {len(trained.history[name]) for name in ("train_loss", "val_loss")} == {2}
