"""What the tests of the physics share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def random() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(7)

    def sample(*shape: int, dtype: torch.dtype = torch.complex128) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    return sample
