"""The keyword classes under the name by which Ptychodus imports them."""

from ptycho_torch.ptychodus.keywords import (
    DataConfig,
    DatagenConfig,
    InferenceConfig,
    ModelConfig,
    TrainingConfig,
)

__all__ = ["DataConfig", "DatagenConfig", "InferenceConfig", "ModelConfig", "TrainingConfig"]
