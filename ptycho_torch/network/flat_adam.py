"""Adam over many weights as if they were one: for small layers, loops over them cost more than numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class FlatAdam(torch.optim.Adam):
    """`torch.optim.Adam` whose first parameter group is one long vector, of which the weights are parts.

    Weights and their gradients become views of it, in their own memory format; names, shapes and values stay.
    What moves the module to another device afterwards needs a new optimizer, as Lightning makes for each fit.

    Args:
        weights: trainable tensors of one device and dtype.
        more: further parameter groups, which are left as they are.
        others: arguments of `torch.optim.Adam`.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], more: Iterable[dict[str, Any]] = (), **others: Any
    ) -> None:
        own = list(weights)
        whole = nn.Parameter(torch.cat([_in_memory_order(weight.data) for weight in own]))
        whole.grad = torch.zeros_like(whole)
        self._views: list[tuple[nn.Parameter, Tensor]] = []
        start = 0
        for weight in own:
            place = (weight.shape, weight.stride(), start)
            weight.data = whole.data.as_strided(*place)
            weight.grad = whole.grad.as_strided(*place)
            self._views.append((weight, weight.grad))
            start += weight.numel()
        super().__init__([{"params": [whole]}, *more], **others)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients; those of the vector stay, as zeros."""
        whole = self.param_groups[0]["params"][0]
        whole.grad.zero_()
        for weight, gradient in self._views:
            weight.grad = gradient
        for group in self.param_groups[1:]:
            for weight in group["params"]:
                if set_to_none:
                    weight.grad = None
                elif weight.grad is not None:
                    weight.grad.zero_()

    def gather(self) -> None:
        """Take up gradients that lie elsewhere, as after `Module.zero_grad`."""
        for weight, gradient in self._views:
            if weight.grad is gradient:
                continue
            if weight.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(weight.grad)
            weight.grad = gradient

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a state of this class, or of `torch.optim.Adam` with the weights apart."""
        groups, states = state_dict["param_groups"], state_dict["state"]
        apart = groups[0]["params"]
        if len(apart) == len(self._views) > 1 and all(number in states for number in apart):
            first, *more = [
                {name: value for name, value in group.items() if name != "params"} for group in groups
            ]
            rest = [number for group in groups[1:] for number in group["params"]]
            number_of = {number: place for place, number in enumerate(rest, start=1)}
            state_dict = {
                "state": {
                    0: self._joined([states[number] for number in apart]),
                    **{number_of[number]: states[number] for number in rest if number in states},
                },
                "param_groups": [
                    {**first, "params": [0]},
                    *(
                        {**group, "params": [number_of[number] for number in old["params"]]}
                        for group, old in zip(more, groups[1:], strict=True)
                    ),
                ],
            }
        super().load_state_dict(state_dict)

    def _joined(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the state of the vector from those of its parts."""
        joined: dict[str, Any] = {}
        for name, value in states[0].items():
            if value.ndim == 0:
                joined[name] = value
                continue
            joined[name] = torch.zeros_like(self.param_groups[0]["params"][0].data, device=value.device)
            for (_, view), state in zip(self._views, states, strict=True):
                place = view.shape, view.stride(), view.storage_offset()
                joined[name].as_strided(*place).copy_(state[name])
        return joined

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step; `closure`, as Lightning gives it, computes the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.gather()
        super().step()
        return loss


def _in_memory_order(weight: Tensor) -> Tensor:
    """Return the numbers of a dense tensor as they lie in memory, whichever of its axes is the fastest."""
    order = sorted(range(weight.ndim), key=weight.stride, reverse=True)
    return weight.permute(order).reshape(-1)
