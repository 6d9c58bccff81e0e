"""What each word means that a field accepts; for the schema's editors, `explain` and the reference page."""

from __future__ import annotations

from typing import Literal

LoggerWord = Literal["csv", "tensorboard", "mlflow", "wandb"]
"""The logger backends. Each has a meaning below, a row in `ptycho_exec.trainer.loggers`, and its packages in
`ptycho_exec.machine.facts` and in the extra of its name."""

CHOICES: dict[str, dict[str, str]] = {
    "accelerator": {
        "auto": "the best there is: Apple GPU, CUDA GPU, else CPU",
        "cpu": "the processor",
        "gpu": "a CUDA or an Apple GPU, whichever there is",
        "cuda": "an NVIDIA (or ROCm) GPU",
        "mps": "an Apple GPU",
    },
    "devices": {"auto": "all devices of the node"},
    "strategy": {
        "auto": "one process for one device, else ddp",
        "ddp": "one process per device, gradients averaged; children run the script again",
        "ddp_spawn": "as ddp, processes spawned from this one",
        "ddp_fork": "as ddp, processes forked from this one; not after CUDA was used",
        "ddp_notebook": "ddp_fork for interactive Python",
        "ddp_find_unused_parameters_true": "ddp for models in which some weights get no gradient",
        "fsdp": "weights, gradients and optimizer state sharded over CUDA devices",
        "deepspeed": "DeepSpeed with its defaults; needs the package",
        "deepspeed_stage_1": "DeepSpeed: optimizer state sharded",
        "deepspeed_stage_1_offload": "stage 1, optimizer state in CPU memory",
        "deepspeed_stage_2": "DeepSpeed: optimizer state and gradients sharded",
        "deepspeed_stage_2_offload": "stage 2, optimizer state in CPU memory",
        "deepspeed_stage_3": "DeepSpeed: optimizer state, gradients and weights sharded",
        "deepspeed_stage_3_offload": "stage 3, in CPU memory",
    },
    "precision": {
        "32-true": "32-bit floats throughout",
        "bf16-mixed": "bfloat16 where it is safe, 32-bit weights",
        "16-mixed": "16-bit floats where it is safe, 32-bit weights, scaled loss; GPU only",
        "bf16-true": "bfloat16 throughout",
        "16-true": "16-bit floats throughout; GPU only",
        "64-true": "64-bit floats throughout",
    },
    "matmul_precision": {
        "highest": "full float32",
        "high": "TF32, or three bfloat16 products, where a GPU can",
        "medium": "bfloat16 where a GPU can",
    },
    "deterministic": {
        "true": "only repeatable operations; one that has no such form is an error",
        "false": "whatever is fastest",
        "warn": "repeatable where possible, a warning where not",
    },
    "scheduler": {
        "Default": "constant",
        "Exponential": "falls evenly on a logarithmic scale, to 1 % at the end",
        "WarmupCosine": "rises over the first 2,000 patterns, then falls along half a cosine to zero",
        "ReduceLROnPlateau": "halved after 5 epochs without a better monitored metric",
        "MultiStage": "drops to 0.3 of itself after 50, 75 and 90 % of the training",
        "Adaptive": "up by 5 % while the monitored metric improves, down by 30 % when it does not",
    },
    "gradient_clip_algorithm": {
        "norm": "the norm of all gradients together",
        "value": "each entry by itself",
        "agc": "each unit relative to the norm of its weights",
    },
    "num_workers": {"auto": "the CPUs this job may use, less one, at most 8"},
    "pin_memory": {"auto": "on when there is a CUDA GPU", "true": "always asked for", "false": "never"},
    "checkpoint_mode": {"min": "smaller is better", "max": "larger is better"},
    "enable_progress_bar": {"auto": "on, but in barebones mode", "true": "on", "false": "off"},
    "logger_backend": {
        "csv": "a table of comma-separated values in the run directory",
        "tensorboard": "event files in the run directory; needs the extra tensorboard",
        "mlflow": "an MLflow server or directory; needs the extra mlflow",
        "wandb": "Weights & Biases; needs the extra wandb",
    },
    "wandb_mode": {
        "offline": "into the run directory; `wandb sync` sends it",
        "online": "to the server of Weights & Biases; needs `wandb login`",
        "disabled": "nothing is written or sent",
    },
    "profiler": {
        "simple": "seconds of each action of the Trainer",
        "advanced": "calls of every function (cProfile)",
        "pytorch": "every operation, also on a GPU; a trace for a browser",
    },
    "on_unsupported": {
        "error": "stop and report what to change",
        "adapt": "take the nearest value, with a warning",
    },
    "drift": {"error": "stop", "warn": "go on with a warning", "allow": "go on, and only record it"},
}
"""Field -> word -> its meaning. Plain booleans need none: their sentence explains them."""
