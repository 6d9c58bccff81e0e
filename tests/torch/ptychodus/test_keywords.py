"""The keyword classes that Ptychodus fills in."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields

import pytest

from ptycho_torch.ptychodus.keywords import (
    DataConfig,
    DatagenConfig,
    InferenceConfig,
    Keywords,
    ModelConfig,
    TrainingConfig,
)
from ptycho_torch.ptychodus.translation import SECTIONS


@pytest.mark.parametrize("kind", [*SECTIONS.values(), DatagenConfig])
def test_keyword_classes_travel_and_change(kind: type[Keywords]) -> None:
    one = kind()
    for field in fields(one):
        setattr(one, field.name, ("changed", field.name))
    two = pickle.loads(pickle.dumps(one))
    assert two == one == copy.deepcopy(one)
    assert all(getattr(two, field.name) == ("changed", field.name) for field in fields(one))
    assert kind() != one or not fields(one)


def test_a_keyword_of_a_later_release_is_told_once_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    config = TrainingConfig(epochs=3, lerning_rate=0.5, quantum=True)
    assert len(caplog.records) == 1
    assert "lerning_rate (the nearest known is learning_rate)" in caplog.text
    assert "quantum" in caplog.text
    assert (config.epochs, config.learning_rate, config.quantum) == (3, 1e-3, True)
    travelled = pickle.loads(pickle.dumps(config))
    assert travelled.unknown_keywords == {"lerning_rate": 0.5, "quantum": True}
    assert len(caplog.records) == 1
    config.n_device = 4
    assert "n_device (the nearest known is n_devices)" in caplog.text
    with pytest.raises(AttributeError, match="no keyword 'absent'"):
        _ = config.absent


def test_the_defaults_are_what_ptychodus_sends(caplog: pytest.LogCaptureFixture) -> None:
    """Every keyword of the installed release is known, and an unchanged one has our default."""
    settings = pytest.importorskip(
        "ptychodus.model.ptychopinn_torch.settings", reason="needs the ptychodus extra"
    )
    from ptychodus.api.settings import SettingsRegistry
    from ptychodus.model.ptychopinn_torch.reconstructor import _build_configs

    registry = SettingsRegistry()
    sent = _build_configs(
        "Unsupervised",
        settings.PtychoPINNTorchDataSettings(registry),
        settings.PtychoPINNTorchModelSettings(registry),
        settings.PtychoPINNTorchTrainingSettings(registry),
        settings.PtychoPINNTorchInferenceSettings(registry),
    )
    ours = (DataConfig(), ModelConfig(), TrainingConfig(), InferenceConfig(), DatagenConfig())
    assert sent == ours
    assert caplog.records == []
