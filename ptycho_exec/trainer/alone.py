"""Prediction of one process on one device, which needs no Trainer: when that is, and what it really does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ptycho_exec.plan import Plan
from ptycho_exec.progress import Meter
from ptycho_exec.trainer.drift import DriftReport, DriftRow, loader_rows, plain
from ptycho_exec.trainer.parameters import (
    PROCESS_FLAGS,
    READ_IN_PROCESS,
    TRAINER_PARAMETERS,
    TrainerInputs,
)

if TYPE_CHECKING:
    import torch

HALVES = {"32-true": None, "bf16-mixed": "bfloat16", "16-mixed": "float16"}
"""Precision -> the type of torch for what may be rounded; none keeps all in 32 bits."""


def needs_trainer(plan: Plan) -> bool:
    """Return whether a prediction under this plan takes more than one process, one device and a loop.

    Everything that Lightning alone can do is left to it, and so is all that it refuses.
    """
    settings = plan.settings
    one = settings.strategy == "auto" and settings.num_nodes == 1 and plan.facts.launcher.world_size == 1
    usual = settings.precision in HALVES and settings.fast_dev_run is None and not settings.trainer
    return not (one and usual) or bool(plan.problems)


def device_of(plan: Plan) -> torch.device:
    """Return the one device of a plan that needs no Trainer."""
    import torch

    settings = plan.settings
    kind = settings.accelerator
    if kind == "gpu":
        kind = "mps" if plan.facts.mps else "cuda"
    index = settings.devices[0] if isinstance(settings.devices, tuple) else 0
    return torch.device(kind, index) if kind == "cuda" else torch.device(kind)


@contextmanager
def predicting(module: Any, plan: Plan) -> Iterator[torch.device]:
    """Have a module on the plan's device, in evaluation mode and without gradients, and put it back."""
    import torch

    device, training = device_of(plan), module.training
    current: AbstractContextManager[Any] = (
        torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    )
    try:
        with current, torch.inference_mode():
            module.to(device).eval()
            yield device
    finally:
        module.to("cpu").train(training)


def rounding(device: torch.device, plan: Plan) -> AbstractContextManager[Any]:
    """Return the context in which a batch is computed in the plan's precision."""
    import torch

    half = HALVES[plan.settings.precision]
    return nullcontext() if half is None else torch.autocast(device.type, getattr(torch, half))


def moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a batch with its tensors on a device; a copy from pinned memory to a GPU is not waited for."""
    ahead = device.type == "cuda"
    return {
        name: value.to(device, non_blocking=ahead) if hasattr(value, "to") else value
        for name, value in batch.items()
    }


@contextmanager
def shown(plan: Plan, batches: int) -> Iterator[Meter | None]:
    """Give a meter of so many batches where the plan shows progress, and take it away."""
    if plan.settings.enable_progress_bar is not True:
        yield None
        return
    meter = Meter("reconstructing", batches, unit="batches", stays=True)
    try:
        yield meter
    finally:
        meter.close()


def effective(plan: Plan, module: Any, loader: Any, meter: Meter | None) -> DriftReport:
    """Compare what was asked for with what this process has while it predicts a batch, inside `rounding`."""
    import torch

    inputs, kind = TrainerInputs(plan.settings), next(module.parameters()).device.type
    half = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "None"
    words = {f"torch.{name}": word for word, name in HALVES.items()} | {"None": "32-true"}
    have = {
        "accelerator": kind,
        "strategy": "auto",
        "devices": 1,
        "num_nodes": 1,
        "precision": words[half],
        "enable_progress_bar": meter is not None,
        **{name: read(torch) for name, read in READ_IN_PROCESS.items()},
    }
    rows = [
        DriftRow(row.row or row.name, (row.wanted or row.value)(inputs), plain(have[row.name]), row.field)
        for row in (*TRAINER_PARAMETERS, *PROCESS_FLAGS)
        if row.name in have
    ]
    return DriftReport((*rows, *loader_rows("inference", loader, plan.settings)))
