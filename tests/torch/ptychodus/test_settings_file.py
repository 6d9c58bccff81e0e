"""The settings file for Ptychodus means what `ptycho-torch train` does by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ptycho_exec.machine.facts import MachineFacts
from ptycho_torch.cli import main
from ptycho_torch.config import ScienceConfig
from ptycho_torch.factory import TRAINING_DEFAULTS
from ptycho_torch.ptychodus import translation
from ptycho_torch.ptychodus.settings_file import EPOCHS
from ptycho_torch.ptychodus.translation import Configs


def keywords_of(file: Path) -> tuple[Configs, str]:
    """Return what Ptychodus itself sends with this settings file, and the algorithm that it chooses."""
    pytest.importorskip("ptychodus", reason="needs the ptychodus extra")
    from ptychodus.api.settings import SettingsRegistry
    from ptychodus.model.processing.settings import ProcessingSettings
    from ptychodus.model.ptychopinn_torch.core import PtychoPINNTorchReconstructorLibrary
    from ptychodus.model.ptychopinn_torch.reconstructor import _build_configs

    registry = SettingsRegistry()
    processing = ProcessingSettings(registry)
    library = PtychoPINNTorchReconstructorLibrary(registry, False)
    registry.open_settings(file)
    parts = ("data", "model", "training", "inference")
    groups: Any = [getattr(library, f"{name}_settings") for name in parts]
    data, model, training, inference, _ = _build_configs(
        "Unsupervised", groups[0], groups[1], groups[2], groups[3]
    )
    return Configs(data, model, training, inference), processing.algorithm.get_value()


def test_ptychodus_sends_our_values_with_it(tmp_path: Path) -> None:
    file = tmp_path / "settings.ini"
    assert main(["ptychodus-settings", "--out", str(file)]) == 0
    configs, algorithm = keywords_of(file)
    assert algorithm == "PtychoPINN-Torch_Unsupervised"
    meant = translation.for_training(configs, n_pixels=64, n_patterns=400, facts=MachineFacts())
    ours = ScienceConfig()
    assert meant.notes == ()
    assert meant.science.training.epochs == EPOCHS
    assert meant.science.training.loss == "mae", "the window knows no auto"
    assert meant.science.data.gridsize == ours.data.gridsize
    assert (meant.science.data.x_bounds, meant.science.data.y_bounds) == ((0.0, 1.0), (0.0, 1.0))
    # silu, which the window offers, stands for our softplus, which it does not
    assert meant.science.model == ours.model.model_copy(update={"amp_activation": "silu"})
    settings = translation.settings_for(meant.execution, "train")
    for name, factory in TRAINING_DEFAULTS.items():
        assert getattr(settings, name) == factory.value
    inference = translation.for_inference(configs, ours, 64, MachineFacts(), n_modes=1)
    assert inference.execution["middle_trim"] == 0


def test_a_file_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.ini").write_text("mine")
    assert main(["ptychodus-settings", "--out", str(tmp_path / "settings.ini")]) == 1
    assert (tmp_path / "settings.ini").read_text() == "mine"
    assert "exists already" in capsys.readouterr().err
