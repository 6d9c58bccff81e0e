"""A plan -> what Lightning and the loaders are given, and afterwards what they really did with it.

The kwargs are pure functions to dicts in Lightning's own words. Every parameter of `lightning.Trainer` is
passed, because Lightning fills each one that is not passed from a `PL_TRAINER_*` variable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ptycho_exec.errors import Finding, SettingsError, UserError
from ptycho_exec.fields.spec import format_value
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import ModuleTraits, Plan, resolve_plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.drift import (
    DriftReport,
    DriftRow,
    apply_drift_policy,
    clip_word,
    requested_and_effective,
)
from ptycho_exec.trainer.process import leave_group_at_exit, process_flags, seed_run

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = [
    "TRAINER_PARAMETERS",
    "DriftReport",
    "DriftRow",
    "apply_drift_policy",
    "build_trainer",
    "inference_loader_kwargs",
    "known_parameters",
    "process_flags",
    "requested_and_effective",
    "seed_run",
    "train_loader_kwargs",
    "trainer_kwargs",
]


class Call(NamedTuple):
    """What a Trainer is built from: effective settings, and what the caller brings."""

    settings: ExecutionSettings
    max_epochs: int | None
    run_dir: Path | None
    callbacks: tuple[Any, ...]
    logger: Any
    plugins: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of `lightning.Trainer`: who decides it, how, and why."""

    name: str
    decided_by: Literal["settings", "caller", "fixed"]
    value: Callable[[Call], Any]
    why: str


def _set(name: str, read: Callable[[ExecutionSettings], Any], why: str) -> Parameter:
    return Parameter(name, "settings", lambda call: read(call.settings), why)


def _given(name: str, read: Callable[[Call], Any], why: str) -> Parameter:
    return Parameter(name, "caller", read, why)


def _fixed(name: str, value: Any, why: str) -> Parameter:
    return Parameter(name, "fixed", lambda _: value, why)


TRAINER_PARAMETERS: tuple[Parameter, ...] = (
    _set("accelerator", lambda s: s.accelerator, "the settings' word"),
    _set("strategy", lambda s: s.strategy, "the settings' word"),
    _set(
        "devices",
        lambda s: list(s.devices) if isinstance(s.devices, tuple) else s.devices,
        "a number, or a list of indices",
    ),
    _set("num_nodes", lambda s: s.num_nodes, "the settings' number"),
    _set("precision", lambda s: s.precision, "the settings' word"),
    _given(
        "logger", lambda c: c.logger or False, "built for logger_backend; False keeps the default logger out"
    ),
    _given("callbacks", lambda c: list(c.callbacks), "built for the settings, with the caller's own"),
    _set("fast_dev_run", lambda s: s.fast_dev_run or False, "none is False in Lightning's words"),
    _given("max_epochs", lambda c: c.max_epochs, "the length of training belongs to the science config"),
    _fixed(
        "min_epochs", None, "training stops at max_epochs, max_time or early stopping; nothing overrides them"
    ),
    _fixed("max_steps", -1, "training is counted in epochs; -1 sets no limit on steps"),
    _fixed("min_steps", None, "as min_epochs"),
    _set("max_time", lambda s: s.max_time, "the settings' text"),
    _set("limit_train_batches", lambda s: s.limit_train_batches, "none is all, in Lightning too"),
    _fixed("limit_val_batches", None, "none is all: metrics compare only on the same validation data"),
    _fixed("limit_test_batches", None, "as limit_val_batches"),
    _fixed("limit_predict_batches", None, "none is all: part of the scan would leave holes in the object"),
    _fixed("overfit_batches", 0.0, "it would replace the shuffled training loader"),
    _fixed("val_check_interval", None, "none is 1.0: validation runs once, at the end of an epoch"),
    _fixed("check_val_every_n_epoch", 1, "checkpoints and early stopping need the metric of every epoch"),
    _fixed(
        "num_sanity_val_steps", 0, "a sanity run would draw random numbers and log metrics before training"
    ),
    _set("log_every_n_steps", lambda s: s.log_every_n_steps, "the settings' number"),
    _set(
        "enable_checkpointing",
        lambda s: s.enable_checkpointing and not s.fast_dev_run,
        "a smoke test writes no checkpoint",
    ),
    _set("enable_progress_bar", lambda s: s.enable_progress_bar is True, "auto was decided by the plan"),
    _fixed("enable_model_summary", False, "the run's own opening table says what a user needs"),
    _set("accumulate_grad_batches", lambda s: s.accum_steps, "the settings' number"),
    _set("gradient_clip_val", lambda s: s.gradient_clip_val, "the settings' number"),
    _set(
        "gradient_clip_algorithm",
        clip_word,
        "none without a value; agc is the module's own hook, for which Lightning is told norm",
    ),
    _set("deterministic", lambda s: s.deterministic, "the settings' word"),
    _set("benchmark", lambda s: s.benchmark, "passed even when false, so that no earlier Trainer leaks in"),
    _fixed("inference_mode", True, "nothing needs gradients in validation and prediction"),
    _fixed("use_distributed_sampler", True, "each process must see its own part of the data"),
    _fixed("profiler", None, "profiling belongs to a profiler, not to a production run"),
    _fixed("detect_anomaly", False, "it slows every step; the module checks its loss for NaN itself"),
    _fixed("barebones", False, "it would switch checkpoints, logging and progress off"),
    _given("plugins", lambda c: list(c.plugins) or None, "atomic checkpoint writing"),
    _fixed("sync_batchnorm", False, "the network has no batch normalization across devices"),
    _fixed("reload_dataloaders_every_n_epochs", 0, "the data do not change during training"),
    _given("default_root_dir", lambda c: str(c.run_dir) if c.run_dir else None, "the run directory, if any"),
    _fixed("enable_autolog_hparams", False, "the manifest and the logger's own config record the settings"),
    _fixed("model_registry", None, "nothing is uploaded to a model registry"),
)


def trainer_kwargs(
    settings: ExecutionSettings,
    *,
    max_epochs: int | None = None,
    run_dir: str | Path | None = None,
    callbacks: Sequence[Any] = (),
    logger: Any = None,
    plugins: Sequence[Any] = (),
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Return a value for every parameter of `lightning.Trainer`, in Lightning's words.

    With a `plan`, its effective values are used; without, the settings' own (`auto` included).
    """
    where = Path(run_dir) if run_dir is not None else None
    effective = plan.settings if plan else settings
    call = Call(effective, max_epochs, where, tuple(callbacks), logger, tuple(plugins))
    return {parameter.name: parameter.value(call) for parameter in TRAINER_PARAMETERS}


def train_loader_kwargs(settings: ExecutionSettings, plan: Plan | None = None) -> dict[str, Any]:
    """Return `torch.utils.data.DataLoader` arguments for training, without the dataset and its order."""
    effective = _loader_values(settings, plan)
    return {"batch_size": effective.batch_size, **_worker_kwargs(effective)}


def inference_loader_kwargs(settings: ExecutionSettings, plan: Plan | None = None) -> dict[str, Any]:
    """Return DataLoader arguments for inference: in order, in batches of `inference_batch_size`.

    A value of none means `batch_size`. Results do not depend on it.
    """
    effective = _loader_values(settings, plan)
    size = effective.inference_batch_size or effective.batch_size
    return {"batch_size": size, "shuffle": False, **_worker_kwargs(effective)}


def _loader_values(settings: ExecutionSettings, plan: Plan | None) -> ExecutionSettings:
    """Loaders know no `auto`; without a plan, this machine's facts decide it (GPUs are not asked for)."""
    if plan is None and "auto" in (settings.num_workers, settings.pin_memory):
        plan = resolve_plan(settings, MachineFacts.probe(ask_torch=False), ModuleTraits())
    return plan.settings if plan else settings


def _worker_kwargs(effective: ExecutionSettings) -> dict[str, Any]:
    """Options of workers raise an error in torch when there are none, so they are left out."""
    kwargs: dict[str, Any] = {"num_workers": effective.num_workers, "pin_memory": effective.pin_memory}
    if effective.num_workers:
        kwargs["persistent_workers"] = effective.persistent_workers
        kwargs["prefetch_factor"] = effective.prefetch_factor
        if effective.accelerator == "mps":
            # Forked children cannot use Metal, and macOS spawns by default; say so for everyone.
            kwargs["multiprocessing_context"] = "spawn"
    return kwargs


# --- building -----------------------------------------------------------------------------------------------


def known_parameters() -> frozenset[str]:
    """Return the parameter names of the installed Lightning's own Trainer, whatever stands in for it."""
    import inspect

    from lightning.pytorch.trainer.trainer import Trainer as RealTrainer

    return frozenset(inspect.signature(RealTrainer.__init__).parameters) - {"self"}


def build_trainer(
    settings: ExecutionSettings,
    *,
    max_epochs: int | None = None,
    run_dir: str | Path | None = None,
    plan: Plan | None = None,
    traits: ModuleTraits | None = None,
    extra_callbacks: Sequence[Any] = (),
) -> Trainer:
    """Build the Trainer with its callbacks, logger and checkpoint writer.

    `lightning.pytorch.Trainer` is looked up when called. Without a `run_dir` nothing is written.

    Raises:
        SettingsError: the plan has a problem that no Trainer would notice, or the Trainer refuses a value;
            the message names the place that the value came from.
    """
    import lightning.pytorch as pl
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from ptycho_exec.trainer.callbacks import build_callbacks, build_plugins
    from ptycho_exec.trainer.loggers import build_logger

    plan = plan or resolve_plan(settings, MachineFacts.probe(), traits or ModuleTraits())
    plan.raise_if_blocked(include_trainer_refusals=False)
    logger = build_logger(plan, run_dir) if run_dir is not None else None
    callbacks = build_callbacks(plan, run_dir=run_dir, has_logger=logger is not None)
    kwargs = trainer_kwargs(
        settings,
        max_epochs=max_epochs,
        run_dir=run_dir,
        callbacks=(*callbacks, *extra_callbacks),
        logger=logger,
        plugins=build_plugins(plan) if run_dir is not None else (),
        plan=plan,
    )
    if run_dir is None:
        kwargs["enable_checkpointing"] = False
    known = known_parameters()
    kwargs = {name: value for name, value in kwargs.items() if name in known}
    try:
        trainer = pl.Trainer(**kwargs)
    except (MisconfigurationException, *_REFUSALS) as error:
        raise refusal(error, settings, plan) from error
    size = getattr(trainer, "world_size", 1)  # a stand-in for the Trainer may hold anything there
    if isinstance(size, int) and size > 1:
        leave_group_at_exit()
    return trainer


_REFUSALS = (ValueError, TypeError, RuntimeError, ImportError, KeyError)


def refusal(error: Exception, settings: ExecutionSettings, plan: Plan) -> UserError:
    """Turn the Trainer's refusal into an error that says where the refused value came from."""
    expected = [problem for problem in plan.problems if problem.refused_by_trainer]
    said = " ".join(str(error).split())
    if expected:
        found = [
            Finding(f"{row.what} (Lightning: {said})", row.origin, row.expected, row.fix) for row in expected
        ]
        return SettingsError.from_findings(found)
    blamed = _mentioned(said, settings)
    places = [
        f"{name}={format_value(getattr(settings, name))} from {_origin(settings, name)}" for name in blamed
    ]
    return SettingsError(
        f"the Trainer refuses these settings: {type(error).__name__}: {said}",
        where="; ".join(places),
        fix="change the value that the message names; `ptycho-exec check` shows what this machine can do",
    )


def _mentioned(said: str, settings: ExecutionSettings) -> list[str]:
    """Return the Trainer's settings that a message names, or else those that somebody set."""
    words = {"accum_steps": "accumulate_grad_batches"}
    fields = ("accelerator", "devices", "num_nodes", "strategy", "precision", "gradient_clip_val", "max_time",
              "limit_train_batches", "accum_steps", "enable_checkpointing", "deterministic")  # fmt: skip
    named = [name for name in fields if words.get(name, name) in said]
    defaults = type(settings).model_fields
    return named or [name for name in fields if getattr(settings, name) != defaults[name].default]


def _origin(settings: ExecutionSettings, name: str) -> str:
    origin = settings.origins.get(name)
    return origin.describe() if origin else "default"
