"""Which fields act in one stage only: an inference has no learning rate, a training no stitching."""

from __future__ import annotations

from typing import Literal

Stage = Literal["training", "inference"]

ONLY_IN: dict[Stage, frozenset[str]] = {
    "training": frozenset(
        {
            "accum_steps",
            "global_batch_size",
            "learning_rate",
            "scheduler",
            "gradient_clip_val",
            "gradient_clip_algorithm",
            "max_time",
            "max_steps",
            "overfit_batches",
            "ema_decay",
            "swa_epoch_start",
            "limit_val_batches",
            "val_check_interval",
            "check_val_every_n_epoch",
            "num_sanity_val_steps",
            "detect_anomaly",
            "checkpoint_every_n_steps",
            "checkpoint_every",
            "limit_train_batches",
            "early_stop_patience",
            "enable_checkpointing",
            "checkpoint_save_top_k",
            "checkpoint_monitor_metric",
            "checkpoint_mode",
            "log_every_n_steps",
            "log_images_every_n_epochs",
        }
    ),
    "inference": frozenset({"inference_batch_size", "middle_trim", "pad_eval"}),
}
"""Stage -> fields that have no effect in the other one."""


def without_effect(stage: Stage | None) -> frozenset[str]:
    """Return the fields that have no effect in a stage; none of them when both are run."""
    return frozenset().union(*(names for other, names in ONLY_IN.items() if stage and other != stage))
