"""What Ptychodus asks about checkpoints, under the name by which it imports it."""

from __future__ import annotations

from pathlib import Path

import torch

from ptycho_torch import lightning_utils
from tests.torch.ptychodus.imported_names import imported_by_ptychodus


def test_every_name_that_ptychodus_imports_is_there() -> None:
    wanted = imported_by_ptychodus("ptycho_torch.lightning_utils")
    assert {"find_best_checkpoint"} <= wanted <= set(lightning_utils.__all__)


def test_the_best_checkpoint_below_a_folder_is_found_under_this_name(tmp_path: Path) -> None:
    assert lightning_utils.find_best_checkpoint(tmp_path) is None
    for name in ("good.ckpt", "bad.ckpt"):
        scores = {"/elsewhere/good.ckpt": torch.tensor(0.1), "/elsewhere/bad.ckpt": torch.tensor(0.7)}
        callbacks = {"BestCheckpoints{'mode': 'min'}": {"best_k_models": scores}}
        torch.save({"state_dict": {}, "callbacks": callbacks}, tmp_path / name)
    assert lightning_utils.find_best_checkpoint(tmp_path) == tmp_path / "good.ckpt"
