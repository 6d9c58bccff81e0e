"""What to run: scans, physics, network, stitching, and the workflows that consume `ptycho_exec` settings.

Light at import: names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptycho_torch.config import (
        DataConfig,
        InferenceConfig,
        ModelConfig,
        ScienceConfig,
        TrainingConfig,
    )
    from ptycho_torch.data.read import read_scan
    from ptycho_torch.data.scan import ScanData
    from ptycho_torch.evaluation.metrics import evaluate
    from ptycho_torch.factory import (
        InferencePayload,
        TrainingPayload,
        create_inference_payload,
        create_pretraining_payload,
        create_training_payload,
    )
    from ptycho_torch.model import PtychoPINN_Lightning
    from ptycho_torch.reconstruction.stitch import Stitcher
    from ptycho_torch.simulate import simulate_scan
    from ptycho_torch.workflows.components import (
        reconstruct,
        run_cdi_example_torch,
        run_inference_with_lightning,
        train,
    )

__passes_settings_on__ = True
"""A value that a caller of this package gave is shown with the caller's file and line."""

_HOME = {
    "DataConfig": "config",
    "InferenceConfig": "config",
    "InferencePayload": "factory",
    "ModelConfig": "config",
    "PretrainingPayload": "factory",
    "PtychoPINN_Lightning": "model",
    "ScanData": "data.scan",
    "ScienceConfig": "config",
    "Stitcher": "reconstruction.stitch",
    "TrainingConfig": "config",
    "TrainingPayload": "factory",
    "create_inference_payload": "factory",
    "create_pretraining_payload": "factory",
    "create_training_payload": "factory",
    "evaluate": "evaluation.metrics",
    "read_scan": "data.read",
    "reconstruct": "workflows.components",
    "run_cdi_example_torch": "workflows.components",
    "run_inference_with_lightning": "workflows.components",
    "simulate_scan": "simulate",
    "train": "workflows.components",
}

__all__ = [
    "DataConfig",
    "InferenceConfig",
    "InferencePayload",
    "ModelConfig",
    "PretrainingPayload",
    "PtychoPINN_Lightning",
    "ScanData",
    "ScienceConfig",
    "Stitcher",
    "TrainingConfig",
    "TrainingPayload",
    "create_inference_payload",
    "create_pretraining_payload",
    "create_training_payload",
    "evaluate",
    "read_scan",
    "reconstruct",
    "run_cdi_example_torch",
    "run_inference_with_lightning",
    "simulate_scan",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
