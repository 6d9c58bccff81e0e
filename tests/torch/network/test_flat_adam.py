"""One vector for all weights learns what Adam learns with them apart, and is not lost on the way."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ptycho_torch.network.flat_adam import FlatAdam

RATE = 1e-2


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1))
    layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return layers.double()


def learn(layers: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> list[Tensor]:
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        layers(torch.randn(2, 3, 8, 8, dtype=torch.float64)).square().mean().backward()
        nn.utils.clip_grad_norm_([w for group in optimizer.param_groups for w in group["params"]], 0.1)
        optimizer.step()
    return [weight.detach().clone() for weight in layers.parameters()]


def test_it_learns_what_adam_learns() -> None:
    apart, together = network(), network()
    want = learn(apart, torch.optim.Adam(apart.parameters(), lr=RATE))
    got = learn(together, FlatAdam(together.parameters(), lr=RATE))
    torch.testing.assert_close(got, want)
    before = network().parameters()
    assert not any(torch.equal(new, old) for new, old in zip(got, before, strict=True))
    for one, other in zip(apart.parameters(), together.parameters(), strict=True):
        assert (one.shape, one.stride()) == (other.shape, other.stride())


def test_weights_are_parts_of_one_vector() -> None:
    layers = network()
    optimizer = FlatAdam(layers.parameters(), lr=RATE)
    (whole,) = optimizer.param_groups[0]["params"]
    assert whole.numel() == sum(weight.numel() for weight in layers.parameters())
    whole.data.zero_()
    assert all(not weight.any() for weight in layers.parameters())


def test_further_groups_have_a_rate_of_their_own() -> None:
    layers, scale = network(), nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = FlatAdam(layers.parameters(), [{"params": [scale], "lr": 0.5 * RATE}], lr=RATE)
    for set_to_none in (True, False):
        optimizer.zero_grad(set_to_none)
        (layers(torch.ones(1, 3, 8, 8, dtype=torch.float64)).sum() + scale).backward()
        optimizer.step()
    assert float(scale.detach()) == pytest.approx(-2 * 0.5 * RATE)


def test_gradients_that_were_dropped_or_replaced_count() -> None:
    kept, dropped = network(), network()
    want = learn(kept, FlatAdam(kept.parameters(), lr=RATE), steps=1)
    optimizer = FlatAdam(dropped.parameters(), lr=RATE)
    torch.manual_seed(1)
    dropped.zero_grad()  # as a program does that knows the module only
    dropped(torch.randn(2, 3, 8, 8, dtype=torch.float64)).square().mean().backward()
    optimizer.gather()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.1)
    optimizer.step()
    torch.testing.assert_close([weight.detach() for weight in dropped.parameters()], want)


def test_its_state_goes_on_elsewhere() -> None:
    layers = network()
    optimizer = FlatAdam(layers.parameters(), lr=RATE)
    learn(layers, optimizer, steps=2)
    saved = copy.deepcopy((layers.state_dict(), optimizer.state_dict()))
    want = learn(layers, optimizer, steps=2)
    other = network()
    again = FlatAdam(other.parameters(), lr=RATE)
    other.load_state_dict(saved[0])  # after the optimizer was made, as when a training is continued
    again.load_state_dict(saved[1])
    got = learn(other, again, steps=2)
    assert all(torch.equal(one, two) for one, two in zip(got, want, strict=True))


def test_it_goes_on_with_the_state_of_weights_apart() -> None:
    apart, scale = network(), nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = torch.optim.Adam(
        [{"params": list(apart.parameters())}, {"params": [scale], "lr": 0.1}], lr=RATE
    )
    scale.grad = torch.ones_like(scale)
    learn(apart, optimizer, steps=2)
    saved = copy.deepcopy((apart.state_dict(), optimizer.state_dict()))
    want = learn(apart, optimizer, steps=2)
    together, own = network(), nn.Parameter(scale.detach().clone())
    again = FlatAdam(together.parameters(), [{"params": [own], "lr": 0.3}], lr=RATE)
    together.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert [group["lr"] for group in again.param_groups] == [RATE, 0.1]
    torch.testing.assert_close(learn(together, again, steps=2), want)


def test_a_closure_computes_the_gradients() -> None:
    layers = network()
    optimizer = FlatAdam(layers.parameters(), lr=RATE)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = layers(torch.ones(1, 3, 8, 8, dtype=torch.float64)).square().mean()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(5)]
    assert losses[-1] < losses[0]
