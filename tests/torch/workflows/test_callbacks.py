"""The history of a training, and the stitching of a prediction: its options, its phases, its processes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_exec.errors import DataError
from ptycho_torch.config import InferenceConfig
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.workflows.callbacks import History, StitchWriter
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


def written(scan: Any, patches: torch.Tensor, **inference: Any) -> StitchWriter:
    """Return a writer that was given patches, in two batches, at the scan's positions."""
    module = SimpleNamespace(probe=torch.from_numpy(scan.probe))
    writer = StitchWriter(scan, module, InferenceConfig(**inference), settings())
    positions = torch.from_numpy(scan.positions_px)
    for rows in (slice(0, 20), slice(20, None)):
        made = {"patches": patches[rows], "positions_px": positions[rows]}
        writer.write_on_batch_end(None, None, made, None, None, 0, 0)
    writer.on_predict_end(SimpleNamespace(world_size=1), None)
    return writer


def test_batches_add_up_to_the_object_that_their_patches_were_cut_from(scan: Any) -> None:
    on_pixels = replace(scan, positions_px=np.round(scan.positions_px - 0.5) + 0.5)
    corners = (on_pixels.positions_px - 15.5).astype(int)
    cut = np.stack([scan.object_guess[y : y + 32, x : x + 32] for y, x in corners])
    writer = written(on_pixels, torch.from_numpy(cut.astype(np.complex64)), align_phases=False)
    made = writer.result()
    covered = made.coverage.numpy() > 0
    assert made.n_patches == len(scan)
    assert covered.mean() > 0.2
    np.testing.assert_allclose(made.object.numpy()[covered], scan.object_guess[covered], atol=1e-5)
    assert writer.moved_rad == 0


def test_an_object_that_is_not_finite_or_not_covered_is_refused(scan: Any) -> None:
    patches = torch.ones(len(scan), 32, 32, dtype=torch.complex64)
    writer = written(scan, patches, align_phases=False)
    assert writer.result().n_patches == len(scan)
    height, width = scan.canvas_shape
    writer.stitcher.canvas[0, height // 2, width // 2] = float("nan")  # as another process may add it
    with pytest.raises(DataError, match="stitched object has values that are not finite"):
        writer.result()
    empty = StitchWriter(
        scan, SimpleNamespace(probe=torch.from_numpy(scan.probe)), InferenceConfig(), settings()
    )
    with pytest.raises(DataError, match="no patch covers the canvas"):
        empty.result()


def test_the_history_has_a_number_of_each_metric_for_each_epoch(scan: Any) -> None:
    history = History()
    for loss in (0.5, 0.25):
        metrics = {"train_loss": torch.tensor(loss), "epoch": loss < 0.3}
        history.on_train_epoch_end(SimpleNamespace(callback_metrics=metrics), None)
    assert history.values == {"train_loss": [0.5, 0.25], "epoch": [0.0, 1.0]}
    trained = _train_with_lightning(scan, None, science(epochs=2, val_fraction=0.25), settings())
    assert {len(trained.history[name]) for name in ("train_loss", "val_loss")} == {2}
