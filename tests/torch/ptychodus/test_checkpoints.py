"""Keywords in and out of checkpoints; the best checkpoint of a folder."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho_torch.lightning_utils import find_best_checkpoint
from ptycho_torch.ptychodus.checkpoints import plain_keywords
from ptycho_torch.ptychodus.translation import Configs
from tests.torch.ptychodus.keyword_sets import configs


def checkpoint(path: Path, scores: dict[str, float], *, mode: str = "min", age_s: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"best_k_models": {f"/elsewhere/{name}": torch.tensor(score) for name, score in scores.items()}}
    key = f"BestCheckpoints{{'monitor': 'val_loss', 'mode': '{mode}'}}"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "callbacks": {key: state}}, path)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_the_best_checkpoint_is_found_by_its_recorded_metric(tmp_path: Path) -> None:
    assert find_best_checkpoint(tmp_path) is None
    scores = {"a.ckpt": 0.3, "b.ckpt": 0.1, "c.ckpt": 0.2}
    files = {name: checkpoint(tmp_path / "run" / name, scores) for name in scores}
    last = checkpoint(tmp_path / "run" / "last.ckpt", scores)
    assert find_best_checkpoint(tmp_path) == files["b.ckpt"]
    files["b.ckpt"].write_bytes(files["b.ckpt"].read_bytes()[:100])
    assert find_best_checkpoint(tmp_path) == files["c.ckpt"]
    for name in ("a.ckpt", "c.ckpt"):
        files[name].unlink()
    assert find_best_checkpoint(tmp_path) == last


def test_larger_is_better_where_the_checkpoints_say_so(tmp_path: Path) -> None:
    scores = {"a.ckpt": 0.3, "b.ckpt": 0.1}
    files = [checkpoint(tmp_path / name, scores, mode="max") for name in scores]
    assert find_best_checkpoint(tmp_path) == files[0]


def test_of_equal_checkpoints_the_newest_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scores = {"a.ckpt": 0.1, "b.ckpt": 0.1, "nan.ckpt": float("nan")}
    checkpoint(tmp_path / "a.ckpt", scores, age_s=100)
    newest = checkpoint(tmp_path / "b.ckpt", scores, age_s=50)
    checkpoint(tmp_path / "nan.ckpt", scores)
    (tmp_path / "code.ckpt").write_bytes(pickle.dumps(print, protocol=2))
    assert find_best_checkpoint(tmp_path) == newest
    assert "code.ckpt is passed over" in caplog.text


def test_numpy_keywords_leave_a_checkpoint_readable(tmp_path: Path) -> None:
    """Lightning and Ptychodus read it with `weights_only=True`, which takes Python's own types alone."""
    asked = configs(
        training__learning_rate=np.float64(2e-3),
        training__epochs=np.int64(7),
        data__x_bounds=[0.2, np.float32(0.5)],
        model__probe_mask=np.ones((2, 2)),
    )
    torch.save(plain_keywords(asked), tmp_path / "some.ckpt")
    back = Configs.from_dict(torch.load(tmp_path / "some.ckpt", weights_only=True))
    assert (back.training.learning_rate, back.training.epochs) == (2e-3, 7)
    assert back.data.x_bounds == (0.2, 0.5)
    assert back.model.probe_mask is None


def test_a_checkpoint_without_weights_is_not_the_best(tmp_path: Path) -> None:
    scores = {"empty.ckpt": 0.1, "full.ckpt": 0.2}
    torch.save({"note": "another program's"}, tmp_path / "empty.ckpt")
    assert find_best_checkpoint(tmp_path) is None
    assert find_best_checkpoint(tmp_path.parent / "nowhere") is None
    full = checkpoint(tmp_path / "full.ckpt", scores)
    assert find_best_checkpoint(tmp_path) == full
