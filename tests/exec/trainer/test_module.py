"""What can be seen of a module and its loaders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ptycho_exec.plan import ModuleTraits
from ptycho_exec.trainer.module import is_compiled, traits_of
from tests.exec.trainer.linear_runs import Linear


class Bare(torch.nn.Module):
    """No LightningModule, and no hook."""


class Hooked(Linear):
    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None: ...


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (None, ModuleTraits()),
        (Linear, ModuleTraits(clips_gradients=False)),
        (Linear(), ModuleTraits(clips_gradients=False)),
        (Linear(manual=True), ModuleTraits(clips_gradients=False, automatic_optimization=False)),
        (Hooked, ModuleTraits(clips_gradients=True)),
        (type("Child", (Hooked,), {}), ModuleTraits(clips_gradients=True)),
    ],
)
def test_traits_of_modules(module: Any, expected: ModuleTraits) -> None:
    assert traits_of(module) == expected


def test_traits_of_loaders() -> None:
    data = DataLoader(TensorDataset(torch.ones(5, 1)))
    assert traits_of(Linear, {"train": data}).train_samples == 5
    assert not traits_of(Linear, {"train": data}).has_validation
    assert traits_of(Linear, {"train": data, "validation": data}).has_validation


def test_what_counts_as_compiled() -> None:
    module = Linear()
    assert not is_compiled(module)
    module._compiler_ctx = {"compiler": "dynamo"}
    assert is_compiled(module)
