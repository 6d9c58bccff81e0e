"""Settings, science and networks for runs of a second, and how their results are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ptycho_exec import ExecutionSettings
from ptycho_torch.config import DataConfig, ModelConfig, ScienceConfig, TrainingConfig
from ptycho_torch.data.scan import ScanData
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.network.predictor import estimate_intensity_scale
from ptycho_torch.simulate import simulate_scan


def settings(**values: Any) -> ExecutionSettings:
    return ExecutionSettings.from_values({"logger_backend": None, "enable_progress_bar": False, **values})


def small(**training: Any) -> dict[str, Any]:
    return {
        "model_config": ModelConfig(n_filters=4, depth=1),
        "data_config": DataConfig(N=32),
        "training_config": TrainingConfig(epochs=1, **training),
    }


def science(epochs: int = 1, gridsize: int = 1, **training: Any) -> ScienceConfig:
    return ScienceConfig(
        data=DataConfig(N=32, gridsize=gridsize),
        model=ModelConfig(n_filters=4, depth=1),
        training=TrainingConfig(epochs=epochs, **training),
    )


def weights(result: Any) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = result["models"]["lightning_module"].state_dict()
    return state


class PhaseOfItsOwn(PtychoPINN_Lightning):
    """Predicts well, but gives each patch a phase, as a network may that sees one pattern at a time."""

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Any:
        made = super().predict_step(batch, batch_idx)
        phase = 2.4 * made["index"].float()
        return made | {
            "patches": made["patches"] * torch.polar(torch.ones_like(phase), phase)[..., None, None]
        }


def untrained(kind: type[PtychoPINN_Lightning], scan: Any, gridsize: int = 1) -> PtychoPINN_Lightning:
    torch.manual_seed(0)
    parts = small() | {"data_config": DataConfig(N=32, gridsize=gridsize)}
    scale = estimate_intensity_scale(scan.amplitude(range(16)), scan.probe)
    return kind(**parts, probe=scan.probe, intensity_scale=scale)


def phase_blind_gap(made: Any, wanted: Any) -> float:
    turn = np.vdot(made, wanted)
    return float(np.linalg.norm(made * turn / abs(turn) - wanted) / np.linalg.norm(wanted))


def tiny_scan() -> ScanData:
    return simulate_scan(n=32, patterns=48, photons=1e5, seed=3)
