"""The module under its outside name: rebuilt from a model file, with Ptychodus's keywords where given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ptycho_exec.errors import DataError, SettingsError
from ptycho_torch.config import ModelConfig
from ptycho_torch.config_params import DataConfig as DataKeywords
from ptycho_torch.config_params import InferenceConfig as InferenceKeywords
from ptycho_torch.model import PtychoPINN_Lightning, load_model
from ptycho_torch.network.checkpoint import read_science, save_model
from tests.torch.network.small_models import SCIENCE, small_model


@pytest.fixture
def module() -> PtychoPINN_Lightning:
    return small_model()


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


def test_weights_of_another_network_are_told(module: PtychoPINN_Lightning, tmp_path: Path) -> None:
    file = save_model(tmp_path / "model.ckpt", module, SCIENCE, {})
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"]["network.unet.stem.0.weight"] = torch.zeros(4, 7, 3, 3)
    torch.save(checkpoint, file)
    with pytest.raises(DataError, match="do not fit the network") as caught:
        load_model(tmp_path)
    assert str(file) in str(caught.value)
    assert "train again" in str(caught.value)


def test_keyword_classes_of_ptychodus_win_over_what_is_stored(
    module: PtychoPINN_Lightning, tmp_path: Path
) -> None:
    file = save_model(tmp_path / "model.ckpt", module, SCIENCE, {})
    assert module.inference_config.patch_weighting == "probe"
    loaded = PtychoPINN_Lightning.load_from_checkpoint(
        file, inference_config=InferenceKeywords(patch_weighting="uniform")
    )
    assert loaded.inference_config.patch_weighting == "uniform"
    assert loaded.model_config == SCIENCE.model
    with pytest.raises(SettingsError, match="trained for patterns of 32 pixels"):
        PtychoPINN_Lightning.load_from_checkpoint(file, data_config=DataKeywords(N=64))


def test_our_own_configs_win_too(module: PtychoPINN_Lightning, tmp_path: Path) -> None:
    file = save_model(tmp_path / "model.ckpt", module, SCIENCE, {})
    other = ModelConfig(n_filters=4, depth=1, amp_activation="sigmoid")
    loaded = PtychoPINN_Lightning.load_from_checkpoint(file, model_config=other)
    assert loaded.model_config == other != SCIENCE.model
