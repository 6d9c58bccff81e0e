"""The fields of `ExecutionSettings` and the rules between them; where values come from is not known here.

A value here is well-formed or not; whether this machine can honor it is the plan's question
(`ptycho_exec.plan`), so settings made on a laptop can be checked for a cluster. `auto` stays `auto`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from numbers import Integral
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from annotated_types import Gt, Interval, Le, Lt, MinLen, Predicate
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import SettingsConfigDict

from ptycho_exec.fields.base import FrozenModel, ReadOnly, Table, fill, read_sentences
from ptycho_exec.fields.choices import LoggerWord
from ptycho_exec.fields.lightning_words import duration

ENV_PREFIX = "PTYCHO_EXEC_"


class Effect(StrEnum):
    """What changing a field can change. Without a class a field is `numerics`, the safe side."""

    NUMERICS = "numerics"
    PERFORMANCE = "performance"
    IO = "io"
    UI = "ui"


_OWN = (bool, int, float, str, list, tuple, type(None))


def plain(value: Any) -> Any:
    """Return numbers, booleans and sequences of other libraries (NumPy, torch, Hydra) as Python's own."""
    if type(value) in _OWN or isinstance(value, (str, bytes, bytearray, memoryview, Mapping)):
        return value
    if callable(getattr(value, "tolist", None)) and getattr(value, "ndim", 2) <= 1:
        return value.tolist()
    return list(value) if isinstance(value, Sequence) else value


def _as_duration(value: object) -> object:
    """Write a timedelta, which Lightning takes too, as DD:HH:MM:SS; parts of a second count as one."""
    return duration(math.ceil(value.total_seconds())) if isinstance(value, timedelta) else value


def as_integer(value: object) -> object:
    """JSON does not distinguish 8.0 from 8, so neither do we; NumPy's integers are integers too."""
    integral = isinstance(value, Integral) and not isinstance(value, (bool, int))
    return int(value) if integral or (isinstance(value, float) and value.is_integer()) else value  # type: ignore[call-overload]


MOST = 10**9
"""No count is larger: what is beyond is a typing error."""

# Files without a null (TOML) write none as a word; every optional field understands it.
NoneWord = BeforeValidator(lambda v: None if isinstance(v, str) and v.lower() in ("none", "null") else v)
# Limits are set on the number itself, inside the conversion, so that the JSON schema has them too.
Positive = Annotated[int, Interval(ge=1, le=MOST), BeforeValidator(as_integer)]
NonNegative = Annotated[int, Interval(ge=0, le=MOST), BeforeValidator(as_integer)]
# A plain string among the annotations describes what the type takes, for messages and the reference.
Indices = Annotated[
    tuple[NonNegative, ...],
    "of different integers, each at least 0",
    MinLen(1),
    Predicate(lambda indices: len(set(indices)) == len(indices)),
    BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v),
    Field(json_schema_extra={"uniqueItems": True}),
]
Strategy = Literal[
    "auto",
    "ddp",
    "ddp_spawn",
    "ddp_fork",
    "ddp_notebook",
    "ddp_find_unused_parameters_true",
    "fsdp",
    "deepspeed",
    "deepspeed_stage_1",
    "deepspeed_stage_1_offload",
    "deepspeed_stage_2",
    "deepspeed_stage_2_offload",
    "deepspeed_stage_3",
    "deepspeed_stage_3_offload",
]
Duration = Annotated[
    str,
    "of the form DD:HH:MM:SS, more than zero",
    StringConstraints(pattern=r"^[0-9]{2}:([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]$"),
    Predicate(lambda time: bool(time.strip("0:"))),
    BeforeValidator(_as_duration),
    Field(json_schema_extra={"not": {"const": "00:00:00:00"}}),
]
Line = Annotated[
    str,
    "without control characters",
    StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f\x7f]*$"),
]
Metric = Annotated[
    str,
    "of letters, digits and _./- (a metric name)",
    StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_./-]*$"),
]


_as_amount = BeforeValidator(lambda v: as_integer(v) if not isinstance(v, float) or v > 1 else v)
Amount = Annotated[Annotated[int, Interval(ge=1, le=MOST)] | Annotated[float, Gt(0), Le(1)], _as_amount]
"""A number of batches, or a fraction of them."""
_amount_or_zero = BeforeValidator(lambda v: v if isinstance(v, float) and 0 < v <= 1 else as_integer(v))
AmountOrNone = Annotated[
    Annotated[int, Interval(ge=0, le=MOST)] | Annotated[float, Gt(0), Le(1)], _amount_or_zero
]


class TrainerTable(FrozenModel):
    """Parameters of `lightning.Trainer` that have no field: the table `[trainer]`."""

    model_config = SettingsConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        hide_input_in_errors=True,
        defer_build=True,
    )

    min_epochs: Annotated[Positive | None, NoneWord] = None
    """Train for so many epochs at least, before anything stops early; none lets it stop at any time."""
    min_steps: Annotated[Positive | None, NoneWord] = None
    """Train for so many optimizer steps at least, before anything stops early; none as for min_epochs."""
    limit_test_batches: Annotated[AmountOrNone | None, NoneWord] = None
    """Batches of `Trainer.test`: a number, or a fraction with a decimal point; none uses all."""
    limit_predict_batches: Annotated[AmountOrNone | None, NoneWord] = None
    """Batches of `Trainer.predict`, as above; none uses all. A part of a scan leaves holes in the object."""
    enable_model_summary: bool = False
    """Print a table of the layers when fit begins."""
    inference_mode: bool = True
    """Whether `Trainer.validate` and `Trainer.predict` compute under torch.inference_mode, else no_grad."""
    use_distributed_sampler: bool = True
    """Give each process its own part of the data; false where the loaders do so themselves."""
    barebones: bool = False
    """Measure raw speed; Lightning refuses checkpoints, logger and progress bar beside it."""
    sync_batchnorm: bool = False
    """Share the statistics of batch normalization among processes."""
    reload_dataloaders_every_n_epochs: NonNegative = 0
    """Ask the module for new loaders after so many epochs; 0 never does."""
    enable_autolog_hparams: bool = False
    """Let Lightning log the hyperparameters of the module; the run records its settings anyway."""
    model_registry: Annotated[Line | None, NoneWord] = None
    """Name under which checkpoints are uploaded to Lightning's model registry; none uploads nothing."""


class ExecutionFields(FrozenModel):
    """Every execution setting: a sentence, an effect class and its limits."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        strict=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_default=False,
        defer_build=True,
    )

    # --- where the computation runs
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    """Hardware to compute on, in Lightning's words; auto takes the best that this machine has."""
    devices: Literal["auto"] | Positive | Indices = 1
    """How many devices per node, a list of their indices, or auto for all of them."""
    num_nodes: Positive = 1
    """Number of machines that train together; more than 1 needs a launcher (SLURM or torchrun)."""
    strategy: Strategy = "auto"
    """How devices share the work, in Lightning's words; auto uses one process for one device, else ddp."""
    start_timeout: Annotated[float, Gt(0), Le(86400), Effect.PERFORMANCE] = 60.0
    """Seconds that the processes of a run wait for each other at its start; then the missing are named."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"] = "32-true"
    """Floating-point precision of the network; the physics stays in 32 bits or more."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Internal precision of float32 matrix products; high and medium use TF32 or bfloat16 where a GPU can."""
    compile: bool = False
    """Compile the network with torch.compile: slow first step, faster later ones."""
    num_threads: Annotated[Positive | None, NoneWord] = None
    """Threads of one CPU operation; none leaves torch's choice, which is one per core."""

    # --- repeatability
    deterministic: bool | Literal["warn"] = True
    """Use only operations that give the same bits on every run; warn allows others with a warning."""
    benchmark: bool = False
    """Let cuDNN time its algorithms and keep the fastest: quicker, and not repeatable."""
    seed: Annotated[int, Interval(ge=0, le=2**32 - 1), BeforeValidator(as_integer)] = 42
    """Seed of every random number: initialization, shuffling, grouping and workers."""

    # --- optimization
    batch_size: Positive = 16
    """Samples per optimizer micro-step and device."""
    global_batch_size: Annotated[Positive | None, NoneWord] = None
    """Samples of one optimizer step over all processes and accum_steps; none follows from batch_size."""
    accum_steps: Positive = 1
    """Batches whose gradients are added up before one optimizer step; 1 steps after every batch."""
    learning_rate: Annotated[float, Gt(0), Le(10)] = 1e-3
    """Step size of the optimizer, before the scheduler changes it."""
    scheduler: Literal[
        "Default", "Exponential", "WarmupCosine", "ReduceLROnPlateau", "MultiStage", "Adaptive"
    ] = "Default"
    """How the learning rate changes over training; Default keeps it constant."""
    gradient_clip_val: Annotated[Annotated[float, Gt(0), Le(1e6)] | None, NoneWord] = None
    """Largest gradient that is let through, as gradient_clip_algorithm measures it; none clips nothing."""
    gradient_clip_algorithm: Literal["norm", "value", "agc"] = "norm"
    """Clip by the total norm, per value, or per unit relative to its weights (agc, arXiv:2102.06171)."""
    max_time: Annotated[Duration | None, NoneWord] = None
    """Stop training after this time, as DD:HH:MM:SS; none trains for all epochs."""
    max_steps: Annotated[Positive | None, NoneWord] = None
    """Stop training after so many optimizer steps, unless it ends before; none counts epochs alone."""
    limit_train_batches: Annotated[Amount | None, NoneWord] = None
    """Batches per epoch: a number, or a fraction with a decimal point (1.0 is all); none uses all."""
    overfit_batches: Annotated[Amount | None, NoneWord] = None
    """Train and validate on the first few batches alone, unshuffled (number or fraction); none uses all."""
    fast_dev_run: Annotated[Positive | None, NoneWord] = None
    """Run only this many batches of each kind, with no checkpoint and no logger: a smoke test."""
    early_stop_patience: Annotated[Positive | None, NoneWord] = 100
    """Stop after this many epochs without a better monitored metric; none never stops early."""

    ema_decay: Annotated[Annotated[float, Gt(0), Lt(1)] | None, NoneWord] = None
    """Validate and keep a moving average of the weights, of which a step leaves this part; none has none."""

    swa_epoch_start: Annotated[Amount | None, NoneWord] = None
    """Keep the mean weights of all epochs from this one on: number, or fraction of them; none has none."""

    # --- validation
    limit_val_batches: Annotated[AmountOrNone | None, NoneWord] = None
    """Validation batches: a number, or a fraction with a decimal point; 0 validates nothing, none all."""
    val_check_interval: Annotated[Amount | None, NoneWord] = None
    """Validate after so many training batches, or this fraction of an epoch; none at its end."""
    check_val_every_n_epoch: Positive = 1
    """Epochs from one validation to the next."""
    num_sanity_val_steps: Annotated[
        int, Interval(ge=-1, le=MOST), BeforeValidator(as_integer), Effect.PERFORMANCE
    ] = 0
    """Validation batches tried before training begins; -1 tries all, 0 none."""

    # --- loaders
    num_workers: Annotated[Literal["auto"] | NonNegative, Effect.PERFORMANCE] = 0
    """Processes that load batches; 0 loads in the main process, auto counts the CPUs this job may use."""
    pin_memory: Annotated[Literal["auto"] | bool, Effect.PERFORMANCE] = "auto"
    """Put batches in page-locked memory for faster copies to a GPU; auto does so when there is one."""
    persistent_workers: Annotated[bool, Effect.PERFORMANCE] = False
    """Keep loader processes alive between epochs; without workers it has no effect."""
    prefetch_factor: Annotated[Positive | None, NoneWord, Effect.PERFORMANCE] = None
    """Batches that each loader process prepares ahead; none leaves torch's 2; without workers no effect."""

    # --- checkpoints
    enable_checkpointing: Annotated[bool, Effect.IO] = True
    """Write checkpoints during training, so that an interrupted run can be resumed."""
    checkpoint_save_top_k: Annotated[
        int, Interval(ge=-1, le=MOST), BeforeValidator(as_integer), Effect.IO
    ] = 1
    """How many best checkpoints are kept; -1 keeps all, 0 keeps none but the last."""
    checkpoint_every_n_steps: Annotated[Positive | None, NoneWord, Effect.IO] = None
    """Write last.ckpt after so many optimizer steps, too; none writes it after every epoch only."""
    checkpoint_every: Annotated[Duration | None, NoneWord, Effect.IO] = None
    """Write last.ckpt when this time has passed since it was written, as DD:HH:MM:SS; none does not."""
    max_requeues: Annotated[NonNegative, Effect.IO] = 3
    """How often a SLURM job that is stopped before its end is requeued to go on; 0 never does."""
    checkpoint_monitor_metric: Metric = "val_loss"
    """Metric that ranks checkpoints and stops early; train_loss takes its place when nothing validates."""
    checkpoint_mode: Literal["min", "max"] = "min"
    """Whether a smaller or a larger monitored metric is better."""

    # --- what is shown and recorded
    enable_progress_bar: Annotated[Literal["auto"] | bool, Effect.UI] = "auto"
    """Show progress with the remaining time: a bar on a terminal, a line now and then in a log."""
    logger_backend: Annotated[LoggerWord | None, NoneWord, Effect.IO] = "csv"
    """Where metrics go; none writes none. All but csv need the extra of the same name."""
    log_every_n_steps: Annotated[Positive, Effect.IO] = 10
    """Optimizer steps between two rows of step metrics."""
    log_images_every_n_epochs: Annotated[Positive | None, NoneWord, Effect.IO] = None
    """Epochs between two reconstruction images sent to the logger; none sends none during training."""
    experiment_name: Annotated[Line, Effect.IO] = "ptycho"
    """Name under which MLflow and Weights & Biases file the run."""
    wandb_mode: Annotated[Literal["offline", "online", "disabled"], Effect.IO] = "offline"
    """Whether Weights & Biases writes into the run directory, sends to its server, or does nothing."""
    profiler: Annotated[Literal["simple", "advanced", "pytorch"] | None, NoneWord, Effect.IO] = None
    """Measure where the time goes and write it to profile/ of the run directory; none does not."""
    detect_anomaly: Annotated[bool, Effect.PERFORMANCE] = False
    """Stop at the operation whose gradient is NaN first; every step is slower."""
    tracking_uri: Annotated[Line | None, NoneWord, Effect.IO] = None
    """Address of the MLflow server; none writes into the run directory. Credentials in it are never shown."""

    # --- inference
    inference_batch_size: Annotated[Positive | None, NoneWord, Effect.PERFORMANCE] = None
    """Patterns per batch in inference; none uses batch_size. Results do not depend on it."""
    middle_trim: NonNegative = 0
    """Stitch only the central n x n pixels of each patch; 0 stitches whole patches."""
    pad_eval: bool = False
    """Stitch on a canvas padded by half a patch, so that patches at its edge keep their full weight."""

    # --- the rest of Lightning's Trainer
    trainer: Annotated[Mapping[str, Any], "of parameters of lightning.Trainer", Table(TrainerTable)] = (
        ReadOnly()
    )
    """Parameters of Lightning's Trainer that have no field of their own, by name: the table [trainer]."""

    # --- when a machine cannot do what was asked
    on_unsupported: Literal["error", "adapt"] = "error"
    """What to do with a value this machine cannot honor: stop, or take the nearest it can and warn."""
    drift: Annotated[Literal["error", "warn", "allow"], Effect.UI] = "error"
    """What to do when the Trainer turns out other than asked: stop, warn, or only record it."""

    @field_validator("*", mode="before")
    @classmethod
    def _take_other_libraries(cls, value: Any) -> Any:
        return plain(value)

    @model_validator(mode="after")
    def _choose_one(self) -> Self:
        clashes = [Contradiction(rule.fields, rule.why, rule.fix) for rule in CONFLICTS if rule.clashes(self)]
        if clashes:
            raise contradiction(*clashes)
        return self


METRIC_DRIVEN = frozenset({"ReduceLROnPlateau", "Adaptive"})
"""Schedulers that follow the monitored metric."""


def monitor_readers(values: Mapping[str, Any]) -> list[str]:
    """Return what reads `checkpoint_monitor_metric` in a run with these values, `dict(settings)`."""
    ranks = values["enable_checkpointing"] and values["checkpoint_save_top_k"] != 0
    scheduler = values["scheduler"]
    readers = {
        "checkpoints": ranks and not values["fast_dev_run"],
        "early stopping": values["early_stop_patience"] is not None,
        f"scheduler {scheduler}": scheduler in METRIC_DRIVEN,
    }
    return [name for name, reads in readers.items() if reads]


read_sentences(ExecutionFields, TrainerTable)


def malformed(values: Mapping[str, Any], model: type[BaseModel] = ExecutionFields) -> list[str]:
    """Return the names in `values` whose value their field of `model` does not accept by itself."""
    return list(refused(values, model))


def refused(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, list[str]]:
    """Return `malformed` with the types of the errors; a validator that fails otherwise refuses as well."""
    found: dict[str, list[str]] = {}
    try:
        fill(model.__new__(model), values)
    except ValidationError as error:
        for item in error.errors(include_input=False):
            if item["loc"] and item["loc"][0] in values:
                found.setdefault(str(item["loc"][0]), []).append(item["type"])
    except Exception:
        if len(values) == 1:
            return {name: ["value_error"] for name in values}
        for name, value in values.items():
            found |= refused({name: value}, model)
    return found


class Contradiction(NamedTuple):
    """Values of some fields that cannot be meant together, why, and how to choose."""

    fields: tuple[str, ...]
    why: str
    fix: str


def contradiction(*found: Contradiction) -> PydanticCustomError:
    """Return what a validator raises about values that contradict each other; every one is reported."""
    text = "; ".join(f"{item.why}; {item.fix}" for item in found)
    return PydanticCustomError("conflict", "{text}", {"text": text, "conflicts": found})


class Conflict(NamedTuple):
    """Values that contradict each other, and how to choose; the JSON schema forbids the same.

    Each field in `when` has one of its values there; `tuple` matches any list and
    `float` any number.
    """

    when: Mapping[str, tuple[Any, ...]]
    why: str
    fix: str

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.when)

    def clashes(self, settings: ExecutionFields) -> bool:
        given = ((getattr(settings, name), values) for name, values in self.when.items())
        return all(value in values or _KINDS.get(type(value)) in values for value, values in given)


_KINDS: dict[type, type] = {tuple: tuple, int: float, float: float}


SHARDED = tuple(word for word in get_args(Strategy) if word.startswith(("fsdp", "deepspeed")))
SPAWNING = ("ddp_spawn", "ddp_fork", "ddp_notebook")
"""Strategies whose processes are all children of the one that was started."""

CONFLICTS: tuple[Conflict, ...] = (
    Conflict(
        {"deterministic": (True,), "benchmark": (True,)},
        "benchmark picks algorithms by their speed, deterministic by their repeatability",
        "choose one: deterministic=false (or warn), or benchmark=false",
    ),
    Conflict(
        {"gradient_clip_algorithm": ("value", "agc"), "gradient_clip_val": (None,)},
        "an algorithm without a value clips nothing",
        "set gradient_clip_val (0.01 is usual for agc), or remove gradient_clip_algorithm",
    ),
    Conflict(
        {"accelerator": ("cpu",), "devices": (tuple,)},
        "CPU devices have no indices",
        "give a number of processes, such as devices=1",
    ),
    Conflict(
        {"accelerator": ("cpu", "mps"), "strategy": SHARDED},
        "fsdp and deepspeed shard over CUDA devices",
        "choose accelerator=cuda, or strategy=auto",
    ),
    Conflict(
        {"overfit_batches": (float,), "limit_train_batches": (float,)},
        "overfit_batches chooses the training batches itself",
        "choose one: overfit_batches=none, or limit_train_batches=none",
    ),
    Conflict(
        {"overfit_batches": (float,), "limit_val_batches": (float,)},
        "overfit_batches chooses the validation batches itself",
        "choose one: overfit_batches=none, or limit_val_batches=none",
    ),
    Conflict(
        {"ema_decay": (float,), "strategy": SHARDED},
        "each process of fsdp and deepspeed holds a part of the weights, which cannot be averaged",
        "choose ema_decay=none, or strategy=ddp",
    ),
    Conflict(
        {"swa_epoch_start": (float,), "strategy": SHARDED},
        "each process of fsdp and deepspeed holds a part of the weights, which cannot be averaged",
        "choose swa_epoch_start=none, or strategy=ddp",
    ),
    Conflict(
        {"ema_decay": (float,), "swa_epoch_start": (float,)},
        "both say which weights are kept",
        "choose one: ema_decay=none, or swa_epoch_start=none",
    ),
    Conflict(
        {"accelerator": ("mps",), "precision": ("64-true",)},
        "Apple GPUs have no 64-bit floats",
        "choose precision=32-true, or accelerator=cpu",
    ),
)
