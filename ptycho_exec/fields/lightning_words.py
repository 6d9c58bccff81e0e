"""Words and names that Lightning itself takes, or took: what each is here, or why there is no such thing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

NOTHING: Any = object()
"""Stands for the value of a word that nothing here means."""


class Meaning(NamedTuple):
    """The value that a word is here, or NOTHING, and why."""

    value: Any
    why: str


def _each(words: str, value: Any, why: str) -> dict[str, Meaning]:
    return {word: Meaning(value, why) for word in words.split()}


_NO_NUMBER = "0 is no number of them; none is"
_ALL_DEVICES = "in Lightning -1 is all devices"
_NOT_HERE = "Lightning has it, these settings do not"
_OFF = "false and 0 are written none"
_HALF = "the names of Lightning 2 say how"

WORDS: dict[str, dict[str, Meaning]] = {
    "accelerator": {
        **_each("tpu hpu ipu xla habana xpu npu", NOTHING, _NOT_HERE),
        **_each("nvidia rocm hip cuda:0", "cuda", "the kind of GPU"),
        **_each("metal apple", "mps", "Apple's GPUs go by this name"),
        **_each("none", "auto", "Lightning decides"),
    },
    "devices": {
        **_each("-1 all none", "auto", _ALL_DEVICES),
        **_each("0", [0], "the first device; 1 is one device of any index"),
    },
    "strategy": {
        **_each("none single_device", "auto", "one device"),
        **_each("dp ddp2", "ddp", "its successor"),
        **_each("ddp_find_unused_parameters_false", "ddp", "plain ddp does not look for them"),
        **_each("ddp_spawn_find_unused_parameters_false", "ddp_spawn", "it does not look for them"),
        **_each("ddp_fork_find_unused_parameters_false", "ddp_fork", "it does not look for them"),
        **_each("ddp_notebook_find_unused_parameters_false", "ddp_notebook", "it does not look for them"),
        **_each(
            "ddp_spawn_find_unused_parameters_true ddp_fork_find_unused_parameters_true"
            " ddp_notebook_find_unused_parameters_true",
            "ddp_find_unused_parameters_true",
            "the one that looks for them",
        ),
        **_each(
            "fsdp_cpu_offload fsdp_native horovod bagua colossalai xla xla_debug single_xla hpu_parallel"
            " model_parallel deepspeed_stage_3_offload_nvme tpu tpu_spawn",
            NOTHING,
            _NOT_HERE,
        ),
    },
    "precision": {
        **_each("16 fp16 half mixed amp float16 f16", "16-mixed", _HALF),
        **_each("bf16 bfloat16", "bf16-mixed", _HALF),
        **_each("32 fp32 float32 float full single", "32-true", _HALF),
        **_each("64 fp64 float64 double", "64-true", _HALF),
        **_each("transformer-engine transformer-engine-float16 fp8 8 int8", NOTHING, _NOT_HERE),
    },
    "matmul_precision": {
        **_each("tf32", "high", "torch's word"),
        **_each("bf16 bfloat16", "medium", "torch's word"),
        **_each("fp32 float32 ieee none", "highest", "torch's word"),
    },
    "num_threads": _each("0 -1 auto", None, "torch's own choice"),
    "fast_dev_run": {
        **_each("true yes on", 1, "true is one batch of each kind"),
        **_each("0 false no off", None, _OFF),
    },
    "gradient_clip_val": _each("0 0.0 false off", None, _OFF),
    "max_time": _each("0 false", None, _OFF),
    "limit_train_batches": {
        **_each("-1 all true", None, "all batches"),
        **_each("0 0.0 false", None, "training needs batches; all of them"),
    },
    "early_stop_patience": _each("0 -1 false off", None, "never stop early"),
    "num_workers": _each("-1 all none", "auto", "the CPUs that this job may use"),
    "prefetch_factor": _each("0 auto false", None, "torch's own choice"),
    "inference_batch_size": _each("0 auto", None, "the same as batch_size"),
    "log_images_every_n_epochs": _each("0 -1 false off", None, _OFF),
    "checkpoint_save_top_k": {**_each("all", -1, "-1 keeps all"), **_each("none false", 0, "0 keeps none")},
    "logger_backend": {
        **_each("false off 0", None, _OFF),
        **_each("true csvlogger", "csv", "the default"),
        **_each("tb tensorboardlogger", "tensorboard", "the name of the backend"),
        **_each("mlflowlogger mlf", "mlflow", "the name of the backend"),
        **_each("wandblogger weights&biases wb", "wandb", "the name of the backend"),
        **_each("comet cometlogger neptune neptunelogger clearml aim litlogger", NOTHING, _NOT_HERE),
    },
    "scheduler": {
        **_each("none constant constantlr", "Default", "a constant rate"),
        **_each("exponentiallr", "Exponential", "its name here"),
        **_each("cosine cosineannealinglr warmup", "WarmupCosine", "its name here"),
        **_each("plateau", "ReduceLROnPlateau", "its name here"),
        **_each("steplr multisteplr step", "MultiStage", "its name here"),
        **_each("onecyclelr cycliclr", NOTHING, _NOT_HERE),
    },
    "gradient_clip_algorithm": _each("none", "norm", "without gradient_clip_val it clips nothing"),
    "deterministic": _each("none", False, "not asked for"),
    "benchmark": _each("none", False, "not asked for"),
    "drift": {
        **_each("raise strict", "error", "its name here"),
        **_each("ignore none off", "allow", "its name here"),
    },
    "on_unsupported": _each("raise strict", "error", "its name here"),
}
"""Field -> word in small letters -> what it is here."""

_PARTS = {"weeks", "days", "hours", "minutes", "seconds"}
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_TIME = r"(?:(\d{1,2}):)?(\d{1,2}):(\d{2}):(\d{2})"
_AMOUNT = r"(\d+(?:\.\d+)?)\s*(d|h|m|s)(?:ays?|(?:ou)?rs?|in(?:ute)?s?|ec(?:ond)?s?)?"


def meanings(field: str, value: Any, word: str) -> Iterator[Meaning]:
    """Yield what a value that the field refuses could mean here; `word` is its text in small letters."""
    if word in WORDS.get(field, {}):
        yield WORDS[field][word]
    if field == "devices" and re.fullmatch(r"\d+(?:,\d+)*,", word):
        yield Meaning([int(part) for part in word.split(",") if part], "a list of indices")
    if field == "max_time":
        time, amount = re.fullmatch(_TIME, word), re.fullmatch(_AMOUNT, word)
        seconds: float | None = None
        if isinstance(value, Mapping) and value.keys() <= _PARTS:
            with suppress(TypeError, OverflowError):
                seconds = timedelta(**value).total_seconds()
        elif time:
            days, *rest = (int(part or 0) for part in time.groups())
            seconds = days * 86400 + rest[0] * 3600 + rest[1] * 60 + rest[2]
        elif amount:
            seconds = round(float(amount[1]) * _UNITS[amount[2]])
        if seconds and 0 < seconds < 100 * 86400:
            yield Meaning(duration(seconds), "DD:HH:MM:SS")


def duration(seconds: float) -> str:
    """Write seconds as DD:HH:MM:SS."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours // 24:02d}:{hours % 24:02d}:{minute:02d}:{second:02d}"


BROUGHT_PARAMETERS: dict[str, str] = {
    "callbacks": "a program passes its own to `build_trainer` or `trainer_run` as callbacks=",
    "plugins": "a program passes its own to `build_trainer` or `trainer_run` in trainer_kwargs=",
    "max_epochs": "the call of `build_trainer` brings it, for how long to train is no matter of the machine",
    "default_root_dir": "it is the run directory, which is passed to `build_trainer`",
    "resume_from_checkpoint": "the checkpoint is passed to `Trainer.fit`, as ckpt_path=",
    "auto_scale_batch_size": "`Tuner(trainer).scale_batch_size` of Lightning tries some; batch_size sets one",
    "auto_lr_find": "`Tuner(trainer).lr_find` of Lightning tries some; learning_rate sets one",
    "weights_save_path": "checkpoints go into the run directory",
    "track_grad_norm": "a module logs the norm in its hook on_before_optimizer_step",
    "warmup_steps": "the module says how long its scheduler warms up; or scheduler=WarmupCosine",
}
"""Parameters that Lightning has or had and that are no settings: who brings each, or what replaces it."""
