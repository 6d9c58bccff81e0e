"""A small network with two probe modes and a bad pixel, and the science that it was made by."""

from __future__ import annotations

import torch

from ptycho_torch.config import DataConfig, ModelConfig, ScienceConfig
from ptycho_torch.model import PtychoPINN_Lightning

SCIENCE = ScienceConfig(data=DataConfig(N=32), model=ModelConfig(n_filters=4, depth=1))


def small_model() -> PtychoPINN_Lightning:
    torch.manual_seed(0)
    probe = torch.randn(2, 32, 32, dtype=torch.complex64)
    good = torch.ones(32, 32, dtype=torch.bool)
    good[3, 4] = False
    return PtychoPINN_Lightning(
        SCIENCE.model, SCIENCE.data, probe=probe, good_pixels=good, intensity_scale=3.0
    )
