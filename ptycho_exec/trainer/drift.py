"""Requested beside effective: what a Trainer and its loaders really have, read back and compared.

Attributes are read tolerantly: a stand-in for the Trainer that lacks one, or answers with an object that is
no plain value, gives the verdict `unknown`, never an error.
"""

from __future__ import annotations

import enum
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ptycho_exec.errors import DriftError, Finding
from ptycho_exec.plan import Plan
from ptycho_exec.settings import ExecutionSettings

Verdict = Literal["same", "differs", "unknown"]


class _Unknown(enum.Enum):
    UNKNOWN = "unknown"


UNKNOWN = _Unknown.UNKNOWN


@dataclass(frozen=True, slots=True)
class DriftRow:
    """One thing that was asked for, beside what the Trainer or loader really has, and its field."""

    name: str
    requested: Any
    effective: Any
    verdict: Verdict
    field: str


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Requested beside effective, row by row."""

    rows: tuple[DriftRow, ...]

    @property
    def differing(self) -> tuple[DriftRow, ...]:
        return tuple(row for row in self.rows if row.verdict == "differs")

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain JSON data, one object per row."""
        names = ("name", "requested", "effective", "verdict")
        return [{name: _json(getattr(row, name)) for name in names} for row in self.rows]


class Reading(NamedTuple):
    """How one row is read: its field, what was asked, and what the trainer has."""

    name: str
    field: str
    asked: Callable[[ExecutionSettings], Any]
    seen: Callable[[Any], Any]


def requested_and_effective(
    trainer: Any,
    settings: ExecutionSettings,
    plan: Plan | None = None,
    *,
    loaders: Mapping[str, Any] | None = None,
    writes: bool = True,
) -> DriftReport:
    """Compare what was asked for with what `trainer` and `loaders` have.

    Args:
        plan: its effective values are the ones asked for (the plan itself records what it changed).
        loaders: DataLoaders by role: `train`, `validation`, `inference`.
        writes: the run has a directory, so checkpoints and logger are expected.
    """
    asked = plan.settings if plan else settings
    readings = (*TRAINER_READINGS, *(WRITING_READINGS if writes else ()))
    rows = [_row(reading, asked, trainer) for reading in readings]
    if is_real(trainer):
        rows += [_row(reading, asked, trainer) for reading in PROCESS_READINGS]
    for role, loader in (loaders or {}).items():
        rows += _loader_rows(role, loader, asked)
    return DriftReport(tuple(rows))


def apply_drift_policy(report: DriftReport, settings: ExecutionSettings) -> None:
    """Raise DriftError, warn, or do nothing about differing rows, as `settings.drift` says."""
    if not report.differing or settings.drift == "allow":
        return
    findings = [_finding(row, settings) for row in report.differing]
    if settings.drift == "error":
        raise DriftError.from_findings(findings)
    for finding in findings:
        warnings.warn(finding.render(), UserWarning, stacklevel=2)


def _finding(row: DriftRow, settings: ExecutionSettings) -> Finding:
    origin = settings.origins.get(row.field)
    return Finding(
        f"asked for {row.name}={_json(row.requested)}, but the Trainer has {_json(row.effective)}",
        where=origin.describe() if origin else "",
        expected="a Trainer that does what was asked",
        fix=f"correct what changed it, or ask for what it has; set drift=warn to go on (field {row.field})",
    )


def _row(reading: Reading, asked: ExecutionSettings, trainer: Any) -> DriftRow:
    want, have = reading.asked(asked), plain(reading.seen(trainer))
    return DriftRow(reading.name, want, have, verdict(want, have), reading.field)


def verdict(requested: Any, effective: Any) -> Verdict:
    """Compare; booleans and numbers are different things here, 1 and 1.0 are not."""
    if requested is UNKNOWN or effective is UNKNOWN:
        return "unknown"
    truths = isinstance(requested, bool) or isinstance(effective, bool)
    same = requested == effective and (not truths or type(requested) is type(effective))
    return "same" if same else "differs"


def plain(value: Any) -> Any:
    """Return a plain value as it is, an enum's value, and UNKNOWN for any other object."""
    if isinstance(value, enum.Enum) and value is not UNKNOWN:
        value = value.value
    return value if value is UNKNOWN or isinstance(value, (str, int, float, type(None))) else UNKNOWN


def _json(value: Any) -> Any:
    return "unknown" if value is UNKNOWN else value


def is_real(trainer: Any) -> bool:
    """Tell Lightning's own Trainer from a stand-in."""
    from lightning.pytorch.trainer.trainer import Trainer

    return isinstance(trainer, Trainer)


# --- what was asked -----------------------------------------------------------------------------------------


def clip_word(settings: ExecutionSettings) -> str | None:
    """Return the clipping algorithm in Lightning's words; agc is the module's hook and goes as norm."""
    if settings.gradient_clip_val is None:
        return None
    return "norm" if settings.gradient_clip_algorithm == "agc" else settings.gradient_clip_algorithm


def _asked_strategy(settings: ExecutionSettings) -> str:
    return next((word for word in ("ddp", "fsdp", "deepspeed") if settings.strategy.startswith(word)), "auto")


def _asked_accelerator(settings: ExecutionSettings) -> Any:
    return UNKNOWN if settings.accelerator in ("auto", "gpu") else settings.accelerator


def _asked_world(settings: ExecutionSettings) -> Any:
    if settings.devices == "auto":
        return UNKNOWN
    count = len(settings.devices) if isinstance(settings.devices, tuple) else settings.devices
    return count * settings.num_nodes


def _asked_batches(settings: ExecutionSettings) -> Any:
    if settings.fast_dev_run:
        return UNKNOWN  # Lightning limits the batches itself then
    return 1.0 if settings.limit_train_batches is None else settings.limit_train_batches


def _asked_logger(settings: ExecutionSettings) -> Any:
    return None if settings.fast_dev_run else settings.logger_backend


def _ranked(settings: ExecutionSettings, value: Any) -> Any:
    """Ranking options are asked for only where checkpoints are written and ranked."""
    written = settings.enable_checkpointing and not settings.fast_dev_run
    return value if written and settings.checkpoint_save_top_k != 0 else None


# --- what is ------------------------------------------------------------------------------------------------

ACCELERATORS = {"CPUAccelerator": "cpu", "CUDAAccelerator": "cuda", "MPSAccelerator": "mps"}
STRATEGIES = {
    "SingleDeviceStrategy": "auto",
    "DDPStrategy": "ddp",
    "FSDPStrategy": "fsdp",
    "DeepSpeedStrategy": "deepspeed",
}
LOGGERS = {
    "CSVLogger": "csv",
    "TensorBoardLogger": "tensorboard",
    "MLFlowLogger": "mlflow",
    "WandbLogger": "wandb",
}


def attribute(target: Any, *path: str) -> Any:
    """Follow attributes; what is not there is UNKNOWN."""
    for part in path:
        target = getattr(target, part, UNKNOWN)
        if target is UNKNOWN:
            return UNKNOWN
    return target


def _known_class(target: Any, names: Mapping[str, str]) -> Any:
    """Return the word for the first class in `target`'s ancestry that `names` knows."""
    return next((names[kind.__name__] for kind in type(target).__mro__ if kind.__name__ in names), UNKNOWN)


def _callbacks(trainer: Any, kind: str) -> list[Any] | None:
    found = attribute(trainer, "callbacks")
    if not isinstance(found, (list, tuple)):
        return None
    return [row for row in found if any(base.__name__ == kind for base in type(row).__mro__)]


def _of_callback(kind: str, read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Read from the first callback of a kind that has something to say; None when there is none."""

    def seen(trainer: Any) -> Any:
        found = _callbacks(trainer, kind)
        if found is None:
            return UNKNOWN
        return next((value for row in found if (value := read(row)) is not None), None)

    return seen


def _seen_logger(trainer: Any) -> Any:
    found = attribute(trainer, "loggers")
    if not isinstance(found, (list, tuple)):
        return UNKNOWN
    return _known_class(found[0], LOGGERS) if found else None


def _seen_smoke_test(trainer: Any) -> Any:
    """Lightning turns a fast_dev_run of 1 into True."""
    found = attribute(trainer, "fast_dev_run")
    return 1 if found is True else found


def _seen_bar(trainer: Any) -> Any:
    found = _callbacks(trainer, "ProgressBar")
    return UNKNOWN if found is None else bool(found)


def _seen_checkpointing(trainer: Any) -> Any:
    found = _callbacks(trainer, "Checkpoint")
    return UNKNOWN if found is None else bool(found)


def _ranking(name: str) -> Callable[[Any], Any]:
    return _of_callback("ModelCheckpoint", lambda row: getattr(row, name) if row.monitor else None)


def duration_text(seconds: float) -> str:
    """Write seconds as DD:HH:MM:SS."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    day, hour = divmod(hours, 24)
    return f"{day:02d}:{hour:02d}:{minute:02d}:{second:02d}"


def _seen_duration(timer: Any) -> str | None:
    seconds = getattr(timer, "_duration", None)
    return None if seconds is None else duration_text(seconds)


def _seen(*path: str) -> Callable[[Any], Any]:
    return lambda trainer: attribute(trainer, *path)


TRAINER_READINGS: tuple[Reading, ...] = (
    Reading(
        "accelerator",
        "accelerator",
        _asked_accelerator,
        lambda trainer: _known_class(attribute(trainer, "accelerator"), ACCELERATORS),
    ),
    Reading(
        "strategy",
        "strategy",
        _asked_strategy,
        lambda trainer: _known_class(attribute(trainer, "strategy"), STRATEGIES),
    ),
    Reading("world_size", "devices", _asked_world, _seen("world_size")),
    Reading("num_nodes", "num_nodes", lambda s: s.num_nodes, _seen("num_nodes")),
    Reading("precision", "precision", lambda s: s.precision, _seen("precision")),
    Reading(
        "gradient_clip_val", "gradient_clip_val", lambda s: s.gradient_clip_val, _seen("gradient_clip_val")
    ),
    Reading(
        "gradient_clip_algorithm", "gradient_clip_algorithm", clip_word, _seen("gradient_clip_algorithm")
    ),
    Reading(
        "accumulate_grad_batches", "accum_steps", lambda s: s.accum_steps, _seen("accumulate_grad_batches")
    ),
    Reading("limit_train_batches", "limit_train_batches", _asked_batches, _seen("limit_train_batches")),
    Reading("fast_dev_run", "fast_dev_run", lambda s: s.fast_dev_run or False, _seen_smoke_test),
    Reading("max_time", "max_time", lambda s: s.max_time, _of_callback("Timer", _seen_duration)),
    Reading(
        "early_stop_patience",
        "early_stop_patience",
        lambda s: s.early_stop_patience,
        _of_callback("EarlyStopping", lambda row: row.patience),
    ),
    Reading(
        "early_stop_monitor",
        "checkpoint_monitor_metric",
        lambda s: s.checkpoint_monitor_metric if s.early_stop_patience else None,
        _of_callback("EarlyStopping", lambda row: row.monitor),
    ),
    Reading(
        "enable_progress_bar",
        "enable_progress_bar",
        lambda s: UNKNOWN if s.enable_progress_bar == "auto" else s.enable_progress_bar,
        _seen_bar,
    ),
    Reading(
        "log_every_n_steps", "log_every_n_steps", lambda s: s.log_every_n_steps, _seen("log_every_n_steps")
    ),
)

WRITING_READINGS: tuple[Reading, ...] = (
    Reading(
        "log_images_every_n_epochs",
        "log_images_every_n_epochs",
        lambda s: s.log_images_every_n_epochs if _asked_logger(s) else None,
        _of_callback("Pictures", lambda row: row.every_n_epochs),
    ),
    Reading("logger", "logger_backend", _asked_logger, _seen_logger),
    Reading(
        "enable_checkpointing",
        "enable_checkpointing",
        lambda s: s.enable_checkpointing and not s.fast_dev_run,
        _seen_checkpointing,
    ),
    Reading(
        "checkpoint_save_top_k",
        "checkpoint_save_top_k",
        lambda s: _ranked(s, s.checkpoint_save_top_k),
        _ranking("save_top_k"),
    ),
    Reading(
        "checkpoint_monitor",
        "checkpoint_monitor_metric",
        lambda s: _ranked(s, s.checkpoint_monitor_metric),
        _ranking("monitor"),
    ),
    Reading("checkpoint_mode", "checkpoint_mode", lambda s: _ranked(s, s.checkpoint_mode), _ranking("mode")),
)


# --- the process and the loaders ----------------------------------------------------------------------------


def _seen_deterministic(_: Any) -> Any:
    import torch

    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled() and ("warn" if warn else True)


def _seen_benchmark(_: Any) -> Any:
    import torch

    return torch.backends.cudnn.benchmark


def _seen_matmul(_: Any) -> Any:
    import torch

    return torch.get_float32_matmul_precision()


def _seen_threads(_: Any) -> Any:
    import torch

    return torch.get_num_threads()


def _seen_seed(_: Any) -> Any:
    text = os.environ.get("PL_GLOBAL_SEED", "")
    return int(text) if text.isdigit() else UNKNOWN


PROCESS_READINGS: tuple[Reading, ...] = (
    Reading("deterministic", "deterministic", lambda s: s.deterministic, _seen_deterministic),
    Reading("benchmark", "benchmark", lambda s: s.benchmark, _seen_benchmark),
    Reading("matmul_precision", "matmul_precision", lambda s: s.matmul_precision, _seen_matmul),
    Reading("num_threads", "num_threads", lambda s: s.num_threads or UNKNOWN, _seen_threads),
    Reading("seed", "seed", lambda s: s.seed, _seen_seed),
)


def _loader_rows(role: str, loader: Any, asked: ExecutionSettings) -> Iterator[DriftRow]:
    size_field = "inference_batch_size" if role == "inference" else "batch_size"
    size = (asked.inference_batch_size or asked.batch_size) if role == "inference" else asked.batch_size
    workers = asked.num_workers
    options = workers != 0
    wanted = {
        size_field: size,
        "num_workers": UNKNOWN if workers == "auto" else workers,
        "pin_memory": UNKNOWN if asked.pin_memory == "auto" else asked.pin_memory,
        "persistent_workers": asked.persistent_workers if options else False,
        "prefetch_factor": (asked.prefetch_factor or UNKNOWN) if options else None,
    }
    for name, want in wanted.items():
        have = plain(_batch_size(loader) if name == size_field else attribute(loader, name))
        yield DriftRow(f"{role}.{name}", want, have, verdict(want, have), name)


def _batch_size(loader: Any) -> Any:
    size = attribute(loader, "batch_size")
    return attribute(loader, "batch_sampler", "batch_size") if size in (None, UNKNOWN) else size
