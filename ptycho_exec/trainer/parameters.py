"""Everything that a run asks of Lightning: what decides each value, why, and how it is read back.

`TRAINER_PARAMETERS` has every parameter of `lightning.Trainer`: all are passed, because Lightning fills each
one that is not passed from a `PL_TRAINER_*` variable. `CALLBACK_VALUES` and `PROCESS_FLAGS` are what it has
no parameter for.

Reading back is tolerant: a stand-in for the Trainer that lacks an attribute gives `UNKNOWN`, never an error.
"""

from __future__ import annotations

import enum
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from ptycho_exec.fields.model import TrainerTable
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.loggers import backend_of


class _Unknown(enum.Enum):
    UNKNOWN = "unknown"


UNKNOWN = _Unknown.UNKNOWN


@dataclass(frozen=True, slots=True)
class TrainerInputs:
    """What a Trainer is built from: effective settings, and what the caller brings."""

    settings: ExecutionSettings
    max_epochs: int | None = None
    run_dir: str | Path | None = None
    callbacks: tuple[Any, ...] = ()
    logger: Any = None
    plugins: tuple[Any, ...] = ()
    profiler: Any = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One value: who decides it, how, why, and how it is read back.

    Attributes:
        name: of the Trainer's parameter, or of the value where there is none.
        value: what the Trainer is given.
        field: the settings field that decides it; empty where the caller or nobody does.
        seen: reads it from the Trainer; None where it is not read back.
        wanted: what must be seen; None where that is `value`.
        row: its name in the report; empty where that is `name`.
        writes: only a run with a directory has it.
        table: it is in the table `trainer`, and the caller's `trainer_kwargs` win over it.
    """

    name: str
    why: str
    value: Callable[[TrainerInputs], Any]
    field: str = ""
    seen: Callable[[Any], Any] | None = None
    wanted: Callable[[TrainerInputs], Any] | None = None
    row: str = ""
    writes: bool = False
    table: bool = False


def _setting(
    name: str,
    why: str,
    value: Callable[[ExecutionSettings], Any] | None = None,
    *,
    field: str = "",
    wanted: Callable[[ExecutionSettings], Any] | None = None,
    seen: Callable[[Any], Any] | None = None,
    **more: Any,
) -> Parameter:
    """A value that the settings decide: by default the field of that name, read back as it is."""
    value = value or attrgetter(field or name)
    expected = wanted or value
    return Parameter(
        name,
        why,
        lambda inputs: value(inputs.settings),
        field or name,
        seen or (lambda trainer: attribute(trainer, name)),
        lambda inputs: expected(inputs.settings),
        **more,
    )


def _of_table(name: str, seen: Callable[[Any], Any] | None = None) -> Parameter:
    """A value of the table `trainer`, else its default; a name that is not in it is not compared."""
    spec = field_specs(TrainerTable)[name]
    return Parameter(
        name,
        spec.sentence,
        lambda inputs: inputs.settings.trainer.get(name, spec.default),
        seen=seen or (lambda trainer: attribute(trainer, name)),
        wanted=lambda inputs: _of_table_wanted(name, inputs.settings),
        table=True,
    )


def _of_table_wanted(name: str, settings: ExecutionSettings) -> Any:
    """Expect what the table says; what Lightning makes of none, and a smoke test of a limit, is its own."""
    value = settings.trainer.get(name)
    own = value is None or (name.startswith("limit_") and settings.fast_dev_run)
    return UNKNOWN if own else value


def _inside(part: str, name: str) -> Callable[[Any], Any]:
    return lambda trainer: attribute(attribute(trainer, part), name)


# --- what must be seen --------------------------------------------------------------------------------------


def clip_word(settings: ExecutionSettings) -> str | None:
    """Return the clipping algorithm in Lightning's words; agc is the module's hook and goes as norm."""
    if settings.gradient_clip_val is None:
        return None
    return "norm" if settings.gradient_clip_algorithm == "agc" else settings.gradient_clip_algorithm


def _world_size(settings: ExecutionSettings) -> Any:
    devices = settings.devices
    if devices == "auto":
        return UNKNOWN
    return (len(devices) if isinstance(devices, tuple) else devices) * settings.num_nodes


def _decided(name: str) -> Callable[[ExecutionSettings], Any]:
    """Expect the field's value; which one `auto` and `gpu` become is not known before."""

    def wanted(settings: ExecutionSettings) -> Any:
        value = getattr(settings, name)
        return UNKNOWN if value in ("auto", "gpu") else value

    return wanted


def _share(name: str) -> Callable[[ExecutionSettings], Any]:
    """Expect an amount of batches: none is all, 1.0 in Lightning's words; a smoke test has its own."""

    def wanted(settings: ExecutionSettings) -> Any:
        value = getattr(settings, name)
        if name.startswith("limit_") and settings.overfit_batches is not None:
            value = settings.overfit_batches  # Lightning limits both loaders to them
        return UNKNOWN if settings.fast_dev_run else 1.0 if value is None else value

    return wanted


def _logger_word(settings: ExecutionSettings) -> str | None:
    return None if settings.fast_dev_run else settings.logger_backend


# --- how it is read -----------------------------------------------------------------------------------------


def attribute(target: Any, name: str) -> Any:
    """Return an attribute, or UNKNOWN where it is missing."""
    return getattr(target, name, UNKNOWN)


def _class_of(name: str, words: Mapping[str, str]) -> Callable[[Any], Any]:
    """Read an attribute as the word for its class, or for the first one in its ancestry that has a word."""

    def seen(trainer: Any) -> Any:
        ancestry = type(attribute(trainer, name)).__mro__
        return next((words[kind.__name__] for kind in ancestry if kind.__name__ in words), UNKNOWN)

    return seen


def _of_callback(kind: str, read: Callable[[Any], Any], absent: Any = None) -> Callable[[Any], Any]:
    """Read from all callbacks of a kind for which `read` gives a value; several values are listed."""

    def seen(trainer: Any) -> Any:
        callbacks = attribute(trainer, "callbacks")
        if not isinstance(callbacks, (list, tuple)):
            return UNKNOWN
        rows = (row for row in callbacks if any(base.__name__ == kind for base in type(row).__mro__))
        values = list(dict.fromkeys(value for row in rows if (value := read(row)) is not None))
        return absent if not values else values[0] if len(values) == 1 else " and ".join(map(str, values))

    return seen


def _checkpoints(settings: ExecutionSettings) -> bool:
    return bool(settings.enable_checkpointing and not settings.fast_dev_run)


def _ranking(name: str, option: str, why: str, field: str = "") -> Parameter:
    """An option of ranking: asked for only where checkpoints are written and ranked."""

    def value(settings: ExecutionSettings) -> Any:
        ranked = _checkpoints(settings) and settings.checkpoint_save_top_k != 0
        return getattr(settings, field or name) if ranked else None

    def read(row: Any) -> Any:
        return getattr(row, option) if row.monitor else None if row.strict else UNKNOWN

    seen = _of_callback("BestCheckpoints", read)
    return _setting(name, why, value, field=field, seen=seen, writes=True)


READ_IN_PROCESS: Mapping[str, Callable[[Any], Any]] = {
    "deterministic": lambda torch: (
        torch.are_deterministic_algorithms_enabled()
        and ("warn" if torch.is_deterministic_algorithms_warn_only_enabled() else True)
    ),
    "benchmark": lambda torch: torch.backends.cudnn.benchmark,
    "matmul_precision": lambda torch: torch.get_float32_matmul_precision(),
    "num_threads": lambda torch: torch.get_num_threads(),
    "seed": lambda _: int(seed) if (seed := os.environ.get("PL_GLOBAL_SEED", "")).isdigit() else UNKNOWN,
}
"""Value of the whole process -> how it is read, given torch."""


def _of_process(name: str) -> Callable[[Any], Any]:
    """Read a value of the whole process; beside a stand-in for the Trainer it is unknown."""

    def seen(trainer: Any) -> Any:
        import torch
        from lightning.pytorch.trainer.trainer import Trainer

        return READ_IN_PROCESS[name](torch) if isinstance(trainer, Trainer) else UNKNOWN

    return seen


def _duration(timer: Any) -> str | None:
    """Return the time after which a Timer stops, as DD:HH:MM:SS."""
    seconds = getattr(timer, "_duration", None)
    if seconds is None:
        return None
    days, rest = divmod(int(seconds), 24 * 60 * 60)
    return f"{days:02d}:{time.strftime('%H:%M:%S', time.gmtime(rest))}"


def _layer_sync(trainer: Any) -> Any:
    """Return whether batch normalization is shared among processes."""
    found = _inside("_accelerator_connector", "_layer_sync")(trainer)
    return found if found is UNKNOWN else found is not None


def _logger(trainer: Any) -> Any:
    loggers = attribute(trainer, "loggers")
    if not isinstance(loggers, (list, tuple)):
        return UNKNOWN
    backend = backend_of(loggers[0]) if loggers else None
    return backend.word if backend else UNKNOWN if loggers else None


def _profiler(trainer: Any) -> Any:
    """Return the class of the caller's profiler; none is Lightning's PassThroughProfiler."""
    profiler = attribute(trainer, "profiler")
    profiler = getattr(profiler, "callers", profiler)
    names = [kind.__name__ for kind in type(profiler).__mro__]
    if profiler is None:
        return None
    return UNKNOWN if "Profiler" not in names else None if names[0] == "PassThroughProfiler" else names[0]


# --- the tables ---------------------------------------------------------------------------------------------

ACCELERATORS = {"CPUAccelerator": "cpu", "CUDAAccelerator": "cuda", "MPSAccelerator": "mps"}
STRATEGIES = {
    "SingleDeviceStrategy": "auto",
    "DDPStrategy": "ddp",
    "FSDPStrategy": "fsdp",
    "DeepSpeedStrategy": "deepspeed",
}

TRAINER_PARAMETERS: tuple[Parameter, ...] = (
    _setting(
        "accelerator",
        "the settings' word",
        wanted=_decided("accelerator"),
        seen=_class_of("accelerator", ACCELERATORS),
    ),
    _setting(
        "strategy",
        "the settings' word",
        wanted=lambda s: next((w for w in ("ddp", "fsdp", "deepspeed") if s.strategy.startswith(w)), "auto"),
        seen=_class_of("strategy", STRATEGIES),
    ),
    _setting(
        "devices",
        "a number, or a list of indices",
        lambda s: list(s.devices) if isinstance(s.devices, tuple) else s.devices,
        row="world_size",
        wanted=_world_size,
        seen=lambda trainer: attribute(trainer, "world_size"),
    ),
    _setting("num_nodes", "the settings' number"),
    _setting("precision", "the settings' word"),
    Parameter(
        "logger",
        "built for logger_backend; False keeps the default logger out",
        lambda inputs: inputs.logger or False,
        field="logger_backend",
        wanted=lambda inputs: _logger_word(inputs.settings),
        seen=_logger,
        writes=True,
    ),
    Parameter("callbacks", "built for the settings, with the caller's own", lambda i: list(i.callbacks)),
    _setting(
        "fast_dev_run",
        "none is False in Lightning's words, and 1 becomes True in them",
        lambda s: s.fast_dev_run or False,
        seen=lambda trainer: 1 if (n := attribute(trainer, "fast_dev_run")) is True else n,
    ),
    Parameter("max_epochs", "the length of training belongs to the science config", lambda i: i.max_epochs),
    _of_table("min_epochs"),
    _setting(
        "max_steps",
        "none is -1 in Lightning's words; a smoke test has its own limit",
        lambda s: s.max_steps or -1,
        wanted=lambda s: UNKNOWN if s.fast_dev_run else s.max_steps or -1,
    ),
    _of_table("min_steps"),
    _setting("max_time", "the settings' duration", seen=_of_callback("Timer", _duration)),
    _setting(
        "limit_train_batches",
        "none is all; a smoke test has its own limit",
        wanted=_share("limit_train_batches"),
    ),
    _setting(
        "limit_val_batches", "none is all; a smoke test has its own limit", wanted=_share("limit_val_batches")
    ),
    _of_table("limit_test_batches"),
    _of_table("limit_predict_batches"),
    _setting(
        "overfit_batches",
        "none is 0.0 in Lightning's words",
        lambda s: s.overfit_batches or 0.0,
    ),
    _setting("val_check_interval", "none is 1.0, the end of an epoch", wanted=_share("val_check_interval")),
    _setting("check_val_every_n_epoch", "the settings' number"),
    _setting(
        "num_sanity_val_steps",
        "-1 becomes infinity; a smoke test tries none",
        wanted=lambda s: (
            UNKNOWN if s.fast_dev_run else math.inf if s.num_sanity_val_steps < 0 else s.num_sanity_val_steps
        ),
    ),
    _setting(
        "log_every_n_steps",
        "the settings' number; none in barebones mode, where Lightning logs nothing",
        lambda s: None if s.trainer.get("barebones") else s.log_every_n_steps,
        wanted=lambda s: 0 if s.trainer.get("barebones") else s.log_every_n_steps,
    ),
    _setting(
        "enable_checkpointing",
        "a smoke test writes no checkpoint",
        lambda s: s.enable_checkpointing and not s.fast_dev_run,
        seen=_of_callback("Checkpoint", lambda _: True, absent=False),
        writes=True,
    ),
    _setting(
        "enable_progress_bar",
        "auto was decided by the plan",
        lambda s: s.enable_progress_bar is True,
        wanted=_decided("enable_progress_bar"),
        seen=_of_callback("ProgressBar", lambda _: True, absent=False),
    ),
    _of_table("enable_model_summary", seen=_of_callback("ModelSummary", lambda _: True, absent=False)),
    _setting("accumulate_grad_batches", "the settings' number", field="accum_steps"),
    _setting("gradient_clip_val", "the settings' number"),
    _setting(
        "gradient_clip_algorithm",
        "none without a value; agc is the module's own hook, and Lightning is given norm",
        clip_word,
    ),
    _setting(
        "deterministic",
        "the settings' word",
        seen=_of_process("deterministic"),
    ),
    _setting(
        "benchmark",
        "passed even when false, so that no earlier Trainer leaks in",
        seen=_of_process("benchmark"),
    ),
    _of_table("inference_mode", seen=_inside("predict_loop", "inference_mode")),
    _of_table("use_distributed_sampler", seen=_inside("_accelerator_connector", "use_distributed_sampler")),
    Parameter(
        "profiler",
        "the caller's and that of the settings, side by side; none measures nothing",
        lambda inputs: inputs.profiler,
        wanted=lambda i: i.profiler if i.profiler in (None, UNKNOWN) else type(i.profiler).__name__,
        seen=_profiler,
    ),
    _setting(
        "detect_anomaly",
        "the settings' word",
        seen=lambda trainer: attribute(trainer, "_detect_anomaly"),
    ),
    _of_table("barebones"),
    Parameter("plugins", "atomic checkpoint writing", lambda inputs: list(inputs.plugins) or None),
    _of_table("sync_batchnorm", seen=_layer_sync),
    _of_table("reload_dataloaders_every_n_epochs"),
    Parameter(
        "default_root_dir",
        "the run directory, if any",
        lambda i: None if i.run_dir is None else str(i.run_dir),
    ),
    _of_table("enable_autolog_hparams"),
    _of_table("model_registry"),
)

CALLBACK_VALUES: tuple[Parameter, ...] = (
    _setting(
        "early_stop_patience",
        "EarlyStopping stops",
        seen=_of_callback("EarlyStopping", lambda row: row.patience),
    ),
    _setting(
        "early_stop_monitor",
        "EarlyStopping watches the metric that ranks",
        lambda s: s.checkpoint_monitor_metric if s.early_stop_patience else None,
        field="checkpoint_monitor_metric",
        seen=_of_callback("EarlyStopping", lambda row: row.monitor),
    ),
    _setting(
        "log_images_every_n_epochs",
        "Images sends them, where there is a logger",
        lambda s: s.log_images_every_n_epochs if _logger_word(s) else None,
        seen=_of_callback("Images", lambda row: row.every_n_epochs),
        writes=True,
    ),
    _setting(
        "ema_decay",
        "MovingAverage averages the weights",
        seen=_of_callback("MovingAverage", lambda row: row.decay),
    ),
    _setting(
        "swa_epoch_start",
        "MeanOfEpochs averages the weights",
        seen=_of_callback("MeanOfEpochs", lambda row: row.start),
    ),
    _setting(
        "checkpoint_every_n_steps",
        "ResumePoint writes last.ckpt",
        lambda s: s.checkpoint_every_n_steps if _checkpoints(s) else None,
        seen=_of_callback("ResumePoint", lambda row: row.every_n_steps),
        writes=True,
    ),
    _setting(
        "checkpoint_every",
        "ResumePoint writes last.ckpt",
        lambda s: s.checkpoint_every if _checkpoints(s) else None,
        seen=_of_callback("ResumePoint", lambda row: row.every),
        writes=True,
    ),
    _setting(
        "profile",
        "the settings' profiler writes into the run directory, beside the caller's",
        field="profiler",
        seen=lambda trainer: (
            p if (p := attribute(trainer, "profiler")) is UNKNOWN else getattr(p, "word", None)
        ),
        writes=True,
    ),
    _ranking("checkpoint_save_top_k", "save_top_k", "BestCheckpoints keeps so many"),
    _ranking("checkpoint_monitor", "monitor", "BestCheckpoints ranks by it", "checkpoint_monitor_metric"),
    _ranking("checkpoint_mode", "mode", "BestCheckpoints ranks by it"),
)

PROCESS_FLAGS: tuple[Parameter, ...] = (
    _setting(
        "matmul_precision",
        "`process_flags` sets it",
        seen=_of_process("matmul_precision"),
    ),
    _setting(
        "num_threads",
        "`process_flags` sets it; none is torch's own choice",
        lambda s: s.num_threads or UNKNOWN,
        seen=_of_process("num_threads"),
    ),
    _setting(
        "seed",
        "`seed_run` sets it, for workers in a variable",
        seen=_of_process("seed"),
    ),
)
