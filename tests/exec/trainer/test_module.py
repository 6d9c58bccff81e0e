"""What can be seen of a module and its loaders."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

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


class Endless(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.ones(3, 1))


def test_the_length_and_the_batch_of_loaders_are_seen() -> None:
    data = DataLoader(TensorDataset(torch.ones(5, 1)), batch_size=2)
    endless, samples = DataLoader(Endless()), torch.ones(3, 1)
    own = DataLoader(data.dataset, batch_sampler=BatchSampler(SequentialSampler(samples), 3, False))
    seen = traits_of(Linear, {"train": data, "validation": {"a": [data, own], "b": samples}})
    assert (seen.train_batches, seen.train_batch_size, seen.validation_batches) == (3, 2, 1)
    seen = traits_of(Linear, {"train": endless, "validation": CombinedLoader([endless], "sequential")})
    assert (seen.train_batches, seen.validation_batches) == (math.inf, math.inf)
    assert traits_of(Linear, {"train": own}).train_batch_size == 3
    seen = traits_of(Linear, {"train": [data, data]})
    assert (seen.train_batches, seen.train_batch_size) == (None, None)
