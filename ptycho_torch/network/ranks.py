"""What the processes of a training know together: means over all of their samples, and one verdict for all.

Everything here is called by every process at the same point, and gives every process the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ptycho_exec.errors import UserError


def several(trainer: Any) -> bool:
    """Return whether a Trainer, or None, has more processes than this one."""
    return trainer is not None and int(trainer.world_size) > 1


def mean_over_ranks(trainer: Any, value: Tensor, weight: int) -> tuple[Tensor, int]:
    """Return the mean of a scalar over the processes by weight, without a gradient, and the sum of weights.

    A value that is not finite makes the mean not finite, unless it weighs nothing.
    """
    own = value.detach()
    if not several(trainer):
        return own, weight
    pair = torch.zeros(2, dtype=torch.float64, device=own.device)
    if weight:
        pair[0], pair[1] = own * weight, weight
    torch.distributed.all_reduce(pair)
    return (pair[0] / pair[1]).to(own.dtype), int(pair[1])


def of_each_rank(trainer: Any, value: Any) -> list[Any]:
    """Return what each process has, in the order of ranks; plain objects of any kind."""
    if not several(trainer):
        return [value]
    values: list[Any] = [None] * int(trainer.world_size)
    torch.distributed.all_gather_object(values, value)
    return values


def agreed(trainer: Any, check: Callable[[], None]) -> None:
    """Run a check of this process's own; where it fails in any of them, all raise the error of the first.

    Raises:
        UserError: what the check raised, with the ranks on which it did.
    """
    error: UserError | None = None
    try:
        check()
    except UserError as found:
        error = found
    errors = of_each_rank(trainer, error)
    ranks = [rank for rank, found in enumerate(errors) if found is not None]
    if ranks:
        raise on_ranks(errors[ranks[0]], ranks) if len(errors) > 1 else errors[0]


def on_ranks(error: UserError, ranks: list[int]) -> UserError:
    """Return an error that says on which ranks it happened."""
    findings = [
        replace(row, where="; ".join(filter(None, (row.where, f"on rank {', '.join(map(str, ranks))}"))))
        for row in error.findings
    ]
    return type(error).from_findings(findings)
