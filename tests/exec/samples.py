"""For every settings field a value that is not its default: one named here, or the next that it accepts."""

from __future__ import annotations

from typing import Any

from ptycho_exec.fields.spec import FieldSpec, field_specs

NAMED: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": [0, 2],
    "strategy": "ddp_spawn",
    "seed": 0,
    "learning_rate": 0.0025,
    "gradient_clip_algorithm": "agc",
    "max_time": "01:02:03:04",
    "limit_train_batches": 0.25,
    "early_stop_patience": None,
    "checkpoint_every": "00:00:30:00",
    "num_workers": "auto",
    "checkpoint_save_top_k": -1,
    "checkpoint_monitor_metric": "val/amplitude_mae",
    "logger_backend": None,
    "experiment_name": "beam time 7",
    "tracking_uri": "http://mlflow.example:5000",
    "trainer": {"min_epochs": 3, "barebones": True},
}

# What two samples need beside them, because by themselves they contradict a default.
COMPANIONS: dict[str, dict[str, Any]] = {
    "benchmark": {"deterministic": False},
    "gradient_clip_algorithm": {"gradient_clip_val": 1.0},
}


def _other(spec: FieldSpec) -> Any:
    words = [choice for choice in spec.choices if choice != spec.default and type(choice) is not int]
    if words:
        return words[-1]
    if int in spec.kinds:
        return (spec.default or 0) + 1
    return (spec.default or 1.0) / 2 if float in spec.kinds else "another"


SAMPLES: dict[str, Any] = {name: NAMED.get(name, _other(spec)) for name, spec in field_specs().items()}
