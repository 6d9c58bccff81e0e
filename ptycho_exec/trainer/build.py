"""A plan -> what Lightning and the loaders are given, and afterwards what they really did with it.

The kwargs are pure functions to dicts in Lightning's own words, from the table in `parameters`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_exec.errors import SettingsError, UserError
from ptycho_exec.fields.spec import format_value
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import ModuleTraits, Plan, resolve_plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.drift import DriftReport, DriftRow, apply_drift_policy, requested_and_effective
from ptycho_exec.trainer.parameters import TRAINER_PARAMETERS, TrainerInputs
from ptycho_exec.trainer.process import leave_group_at_exit, process_flags, seed_run

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.profilers import Profiler

__all__ = [
    "TRAINER_PARAMETERS",
    "DriftReport",
    "DriftRow",
    "apply_drift_policy",
    "build_trainer",
    "inference_loader_kwargs",
    "process_flags",
    "requested_and_effective",
    "seed_run",
    "train_loader_kwargs",
    "trainer_kwargs",
]


def trainer_kwargs(
    settings: ExecutionSettings,
    *,
    max_epochs: int | None = None,
    run_dir: str | Path | None = None,
    callbacks: Sequence[Any] = (),
    logger: Any = None,
    plugins: Sequence[Any] = (),
    profiler: Profiler | None = None,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Return a value for every parameter of `lightning.Trainer`, in Lightning's words.

    With a `plan`, its effective values are used; without, the settings' own (`auto` included).
    """
    effective = plan.settings if plan else settings
    inputs = TrainerInputs(effective, max_epochs, run_dir, tuple(callbacks), logger, tuple(plugins), profiler)
    return {parameter.name: parameter.value(inputs) for parameter in TRAINER_PARAMETERS}


def train_loader_kwargs(settings: ExecutionSettings, plan: Plan | None = None) -> dict[str, Any]:
    """Return `torch.utils.data.DataLoader` arguments for training, without the dataset and its order."""
    return _loader_kwargs(_loader_settings(settings, plan))


def inference_loader_kwargs(settings: ExecutionSettings, plan: Plan | None = None) -> dict[str, Any]:
    """Return DataLoader arguments for inference: in order, in batches of `inference_batch_size`.

    A value of none means `batch_size`. Results do not depend on it.
    """
    effective = _loader_settings(settings, plan)
    size = effective.inference_batch_size or effective.batch_size
    return {**_loader_kwargs(effective), "batch_size": size, "shuffle": False}


def _loader_settings(settings: ExecutionSettings, plan: Plan | None) -> ExecutionSettings:
    """Loaders know no `auto`; without a plan, this machine's facts decide it (GPUs are not asked for)."""
    if plan is None and "auto" in (settings.num_workers, settings.pin_memory):
        plan = resolve_plan(settings, MachineFacts.probe(ask_torch=False), ModuleTraits())
    return plan.settings if plan else settings


def _loader_kwargs(effective: ExecutionSettings) -> dict[str, Any]:
    """Options of workers raise an error in torch when there are none, so they are left out."""
    names = ["batch_size", "num_workers", "pin_memory"]
    if effective.num_workers:
        names += ["persistent_workers", "prefetch_factor"]
    kwargs = {name: getattr(effective, name) for name in names}
    if effective.num_workers and effective.accelerator == "mps":
        # Forked children cannot use Metal, and macOS spawns by default; this holds everywhere.
        kwargs["multiprocessing_context"] = "spawn"
    return kwargs


# --- building -----------------------------------------------------------------------------------------------


def build_trainer(
    settings: ExecutionSettings,
    *,
    max_epochs: int | None = None,
    run_dir: str | Path | None = None,
    plan: Plan | None = None,
    traits: ModuleTraits | None = None,
    extra_callbacks: Sequence[Any] = (),
    profiler: Profiler | None = None,
) -> Trainer:
    """Build the Trainer with its callbacks, logger and checkpoint writer, and the caller's profiler.

    `lightning.pytorch.Trainer` is looked up when called. Without a `run_dir` nothing is written.

    Raises:
        SettingsError: the plan has a problem that no Trainer would notice, or the Trainer refuses a value;
            the message names the place that the value came from.
    """
    import lightning.pytorch as pl
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.trainer.trainer import Trainer as RealTrainer

    from ptycho_exec.trainer.callbacks import build_callbacks, build_plugins
    from ptycho_exec.trainer.loggers import build_logger

    plan = plan or resolve_plan(settings, MachineFacts.probe(), traits or ModuleTraits())
    plan.raise_if_blocked(include_trainer_refusals=False)
    logger = build_logger(plan, run_dir) if run_dir is not None else None
    callbacks = build_callbacks(plan, run_dir=run_dir, has_logger=logger is not None, profiler=profiler)
    kwargs = trainer_kwargs(
        settings,
        max_epochs=max_epochs,
        run_dir=run_dir,
        callbacks=(*callbacks, *extra_callbacks),
        logger=logger,
        plugins=build_plugins(plan) if run_dir is not None else (),
        profiler=profiler,
        plan=plan,
    )
    if run_dir is None:
        kwargs["enable_checkpointing"] = False
    # What the installed Lightning itself knows, whatever stands in for its Trainer.
    known = inspect.signature(RealTrainer.__init__).parameters
    refusals = (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError, KeyError)
    try:
        trainer = pl.Trainer(**{name: value for name, value in kwargs.items() if name in known})
    except refusals as error:
        raise refusal(error, settings, plan) from error
    size = getattr(trainer, "world_size", 1)  # a stand-in for the Trainer may hold anything there
    if isinstance(size, int) and size > 1:
        leave_group_at_exit()
    return trainer


REFUSABLE = ("accelerator", "devices", "num_nodes", "strategy", "precision", "gradient_clip_val", "max_time",
             "limit_train_batches", "accum_steps", "enable_checkpointing", "deterministic")  # fmt: skip


def refusal(error: Exception, settings: ExecutionSettings, plan: Plan) -> UserError:
    """Turn the Trainer's refusal into an error that names where the refused value came from.

    Blamed are the problems that the plan expected; else the settings that the message names; else those that
    somebody set.
    """
    message = " ".join(str(error).split())
    if plan.refused_by_trainer:
        return SettingsError.from_findings(
            [replace(row, what=f"{row.what} (Lightning: {message})") for row in plan.refused_by_trainer]
        )
    parameters = {row.field: row.name for row in TRAINER_PARAMETERS}
    defaults = type(settings).model_fields
    named = [name for name in REFUSABLE if parameters[name] in message]
    blamed = named or [name for name in REFUSABLE if getattr(settings, name) != defaults[name].default]
    places = [
        f"{name}={format_value(getattr(settings, name))} from {settings.origin_of(name)}" for name in blamed
    ]
    return SettingsError(
        f"the Trainer refuses these settings: {type(error).__name__}: {message}",
        where="; ".join(places),
        fix="change the value that the message names; `ptycho-exec check` shows what this machine can do",
    )
