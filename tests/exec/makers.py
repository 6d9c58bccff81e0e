"""What several test files of this folder use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptycho_exec.settings import ExecutionSettings

if TYPE_CHECKING:
    pass


def make(**values: Any) -> ExecutionSettings:
    return ExecutionSettings.from_values(values)


CLASHES: list[dict[str, Any]] = [
    {"deterministic": True, "benchmark": True},
    {"gradient_clip_algorithm": "agc"},
    {"gradient_clip_algorithm": "value", "gradient_clip_val": None},
    {"accelerator": "cpu", "devices": [0]},
    {"accelerator": "cpu", "strategy": "fsdp"},
    {"accelerator": "mps", "strategy": "deepspeed_stage_3_offload"},
    {"accelerator": "mps", "precision": "64-true"},
    {"overfit_batches": 2, "limit_train_batches": 0.5},
    {"overfit_batches": 0.1, "limit_val_batches": 3},
    {"ema_decay": 0.9, "strategy": "fsdp"},
    {"swa_epoch_start": 5, "strategy": "fsdp"},
    {"ema_decay": 0.9, "swa_epoch_start": 0.5},
]
