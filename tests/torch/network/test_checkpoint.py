"""model.ckpt: everything comes back, without running code; what is no model is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig, ModelConfig, ScienceConfig
from ptycho_torch.model import PtychoPINN_Lightning, load_model
from ptycho_torch.network.checkpoint import find_model, read_model, read_science, save_model

SCIENCE = ScienceConfig(data=DataConfig(N=32), model=ModelConfig(n_filters=4, depth=1))


@pytest.fixture
def module() -> PtychoPINN_Lightning:
    torch.manual_seed(0)
    probe = torch.randn(2, 32, 32, dtype=torch.complex64)
    good = torch.ones(32, 32, dtype=torch.bool)
    good[3, 4] = False
    return PtychoPINN_Lightning(
        SCIENCE.model, SCIENCE.data, probe=probe, good_pixels=good, intensity_scale=3.0
    )


def test_a_model_file_brings_back_weights_optics_and_science(
    module: PtychoPINN_Lightning, tmp_path: Path
) -> None:
    path = save_model(tmp_path / "model.ckpt", module, SCIENCE, {"scan": "a.npz"})
    loaded, science = load_model(tmp_path)
    assert science == read_science(path) == SCIENCE
    assert not loaded.training
    state = module.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.probe.shape == (2, 32, 32)
    assert not loaded.good_pixels[3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


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


def test_weights_of_another_network_are_told(module: PtychoPINN_Lightning, tmp_path: Path) -> None:
    file = save_model(tmp_path / "model.ckpt", module, SCIENCE, {})
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"]["network.unet.stem.0.weight"] = torch.zeros(4, 7, 3, 3)
    torch.save(checkpoint, file)
    with pytest.raises(DataError, match="do not fit the network") as caught:
        load_model(tmp_path)
    assert str(file) in str(caught.value)
    assert "train again" in str(caught.value)
