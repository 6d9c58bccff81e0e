"""Pictures of a reconstruction during training: what they show, where they go, what they leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_exec import SettingsError
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.workflows.components import _train_with_lightning, run_inference_with_lightning
from ptycho_torch.workflows.images import render
from tests.torch.workflows.tiny_runs import science, settings, untrained, weights


@pytest.mark.acts("log_images_every_n_epochs", "pictures beside the metrics, and their steps")
def test_pictures_reach_the_logger_and_do_not_change_the_training(scan: Any, tmp_path: Path) -> None:
    asked = settings(logger_backend="csv", batch_size=12)
    plain = _train_with_lightning(scan, None, science(epochs=2), asked, run_dir=tmp_path / "plain")
    drawn = _train_with_lightning(
        scan, None, science(epochs=2), asked, {"log_images_every_n_epochs": 1}, run_dir=tmp_path / "drawn"
    )
    assert all(torch.equal(weights(plain)[name], tensor) for name, tensor in weights(drawn).items())
    pictures = sorted(path.name for path in (tmp_path / "drawn").rglob("*.png"))
    assert len(pictures) == 4
    assert not list((tmp_path / "plain").rglob("*.png"))


def test_pictures_of_a_container_without_a_canvas_are_refused() -> None:
    patterns = np.random.default_rng(0).random((10, 64, 64, 1), dtype=np.float32)
    with pytest.raises(SettingsError, match="log_images_every_n_epochs"):
        _train_with_lightning(
            {"X": patterns, "probe": np.ones((64, 64), complex)},
            None,
            None,
            settings(log_images_every_n_epochs=1, logger_backend="csv"),
        )


def test_a_picture_shows_the_object_from_its_first_to_its_last_percent(scan: Any) -> None:
    module = untrained(PtychoPINN_Lightning, scan).eval()
    with torch.no_grad():
        shown = render(module, scan, 1, batch_size=7)
    plain = run_inference_with_lightning(module, scan, None, settings(), {"align_phases": False})
    covered = plain["coverage"] > 0
    assert 0.2 < covered.mean() < 1
    for name, image in (("amplitude", plain["amplitude"]), ("phase", plain["phase"])):
        assert (shown[name].shape, shown[name].dtype) == ((*scan.canvas_shape, 3), np.uint8)
        assert not shown[name][~covered].any()
        low, high = np.percentile(image[covered], (1, 99))
        wanted = 255 * np.clip((image - low) / (high - low), 0, 1)
        for channel in np.moveaxis(shown[name], -1, 0):
            np.testing.assert_allclose(channel[covered], wanted[covered], atol=1.01)


def test_batches_of_any_size_give_the_same_picture(scan: Any) -> None:
    module = untrained(PtychoPINN_Lightning, scan).eval()
    with torch.no_grad():
        one, other = (render(module, scan, 1, batch_size=size)["amplitude"] for size in (5, 48))
    assert np.abs(one.astype(int) - other).max() <= 1
