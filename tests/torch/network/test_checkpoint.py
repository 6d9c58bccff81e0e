"""model.ckpt: everything comes back, without running code; what is no model is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ptycho_exec.errors import DataError
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.network.checkpoint import find_model, read_model, save_model
from tests.torch.network.small_models import SCIENCE, small_model


@pytest.fixture
def module() -> PtychoPINN_Lightning:
    return small_model()


def test_it_is_a_lightning_checkpoint_of_plain_data(module: PtychoPINN_Lightning, tmp_path: Path) -> None:
    path = save_model(tmp_path / "model.ckpt", module, SCIENCE, {})
    assert torch.load(path, weights_only=True).keys() == read_model(path).keys()
    loaded = PtychoPINN_Lightning.load_from_checkpoint(path, weights_only=True)
    assert torch.equal(loaded.probe, module.probe)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a zip", b"no model at all"])
def test_a_damaged_model_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(content)
    with pytest.raises(DataError, match="cannot read the model"):
        read_model(tmp_path)


def test_a_checkpoint_of_another_program_is_told(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "model.ckpt")
    with pytest.raises(DataError, match="not written by ptycho-torch"):
        read_model(tmp_path)


def test_a_directory_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no trained model"):
        find_model(tmp_path)
