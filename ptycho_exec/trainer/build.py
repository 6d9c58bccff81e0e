"""A plan -> what Lightning and the loaders are given, and afterwards what they really did with it.

The kwargs are pure functions to dicts in Lightning's own words, from the table in `parameters`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_exec.errors import Finding, SettingsError, UserError
from ptycho_exec.fields.spec import format_value
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import ModuleTraits, Plan, asked, resolve_plan
from ptycho_exec.plan import announce as announce_all
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.callbacks import build_callbacks, build_plugins, callback_names, plugin_names
from ptycho_exec.trainer.caller import CallersOwn, require_kinds, require_lengths, require_no_rivals
from ptycho_exec.trainer.drift import DriftReport, DriftRow, apply_drift_policy, requested_and_effective
from ptycho_exec.trainer.loggers import BACKENDS, build_logger
from ptycho_exec.trainer.module import traits_of
from ptycho_exec.trainer.parameters import PROCESS_FLAGS, TRAINER_PARAMETERS, UNKNOWN, TrainerInputs
from ptycho_exec.trainer.process import process_flags, seed_run

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


def described_kwargs(plan: Plan) -> dict[str, Any]:
    """Return what `build_trainer` passes for this plan in a run with a directory; classes for objects."""
    backend = next((row for row in BACKENDS if row.word == plan.settings.logger_backend), None)
    kwargs = trainer_kwargs(plan.requested, plan=plan)
    kwargs["callbacks"] = callback_names(plan)
    kwargs["plugins"] = plugin_names(plan)
    kwargs["profiler"] = plan.settings.profiler
    kwargs["logger"] = backend.kind if backend else False
    return kwargs | {"default_root_dir": "(the run directory)"}


def train_loader_kwargs(settings: ExecutionSettings, plan: Plan | None = None) -> dict[str, Any]:
    """Return `torch.utils.data.DataLoader` arguments for training, without the dataset and its order.

    Examples:
        >>> from ptycho_exec import ExecutionSettings, train_loader_kwargs
        >>> settings = ExecutionSettings.from_values({"batch_size": 8, "accelerator": "cpu"})
        >>> train_loader_kwargs(settings)["batch_size"]
        8
    """
    return _loader_kwargs(_loader_settings(settings, plan))


def inference_loader_kwargs(settings: ExecutionSettings, plan: Plan | None = None) -> dict[str, Any]:
    """Return DataLoader arguments for inference: in order, in batches of `inference_batch_size`.

    A value of none means `batch_size`. Results do not depend on it.
    """
    effective = _loader_settings(settings, plan)
    size = effective.inference_batch_size or effective.batch_size
    return {**_loader_kwargs(effective), "batch_size": size, "shuffle": False}


def _loader_settings(settings: ExecutionSettings, plan: Plan | None) -> ExecutionSettings:
    """Without a plan, this machine's facts decide what loaders do not know (GPUs are not asked for)."""
    unknown = "auto" in (settings.num_workers, settings.pin_memory) or settings.global_batch_size is not None
    if plan is None and unknown:
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
    module: Any = None,
    callbacks: Sequence[Any] = (),
    logger: Any = None,
    profiler: Profiler | None = None,
    trainer_kwargs: Mapping[str, Any] | None = None,
    identity: Mapping[str, tuple[Any, str]] | None = None,
    announce: bool = True,
) -> Trainer:
    """Build the Trainer with its callbacks, logger and checkpoint writer, and what the caller brings.

    `lightning.pytorch.Trainer` is looked up when called. Without a `run_dir` nothing is written. What is
    process-wide (seeds, threads, precision of matrix products) is set by `process_flags` and `seed_run`, or
    by `trainer_run`, which does all of it; a Trainer that is built without them says what is missing.

    Args:
        module: the LightningModule or its class, to see what it can do; `traits` say it in its place.
        callbacks: the caller's own; one that shows progress, stops early or accumulates stands in for ours.
        logger: the caller's own, or several, in place of the one of `logger_backend`; False for none.
        profiler: the caller's own.
        trainer_kwargs: values of parameters of `lightning.Trainer` that no setting decides; also objects for
            `strategy`, `accelerator` and `plugins`.
        identity: what else must be the same on every process, such as the data: name -> value and its origin.
            All processes compare it, and the settings, before the first step.
        announce: give the plan's notices to the user as warnings; False where the caller shows them.

    Raises:
        SettingsError: the plan has a problem that no Trainer would notice, the caller brings what a setting
            decides, or the Trainer refuses a value; the message names the place that the value came from.
    """
    import lightning.pytorch as pl
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from ptycho_exec.trainer.together import join

    brought = {"callbacks": callbacks, "logger": logger, "profiler": profiler}
    require_kinds(settings, module=module, **brought, trainer_kwargs=trainer_kwargs)
    own = CallersOwn(tuple(callbacks), logger, profiler, dict(trainer_kwargs or {}))
    require_no_rivals(settings, own)
    plan = plan or resolve_plan(settings, MachineFacts.probe(), traits or traits_of(module))
    plan.raise_if_blocked(include_trainer_refusals=False)
    require_lengths(plan, own, max_epochs)
    built = build_logger(plan, run_dir) if run_dir is not None and logger is None else logger
    ours = build_callbacks(plan, run_dir=run_dir, has_logger=bool(built), own=own)
    kwargs = _kwargs(plan, own, ours, built, run_dir, max_epochs)
    refusals = (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError, KeyError)
    try:
        trainer = pl.Trainer(**kwargs)
    except refusals as error:
        raise refusal(error, settings, plan, own) from error
    join(trainer, plan, identity)
    if announce:
        plan.announce()
        announce_all(idle_settings(trainer, plan, own, writes=run_dir is not None))
    return trainer


def _kwargs(
    plan: Plan,
    own: CallersOwn,
    callbacks: Sequence[Any],
    logger: Any,
    run_dir: str | Path | None,
    max_epochs: int | None,
) -> dict[str, Any]:
    """Return the settings' kwargs with the caller's in their place, as far as this Lightning knows them."""
    from lightning.pytorch.trainer.trainer import Trainer as RealTrainer

    from ptycho_exec.trainer.together import environment_of

    writer = () if own.brings_plugin("CheckpointIO") or not run_dir else build_plugins(plan)
    plugins = [
        *writer,
        *(() if own.brings_plugin("ClusterEnvironment") else (environment_of(plan),)),
        *own.plugins,
    ]
    profiler = own.profiler
    if plan.settings.profiler and run_dir is not None:
        from ptycho_exec.trainer.profilers import SideBySide

        profiler = SideBySide(plan.settings.profiler, Path(run_dir), profiler)
    kwargs = trainer_kwargs(
        plan.requested,
        max_epochs=max_epochs,
        run_dir=run_dir,
        callbacks=(*callbacks, *own.callbacks),
        logger=logger,
        plugins=plugins,
        profiler=profiler,
        plan=plan,
    )
    kwargs |= {name: value for name, value in own.trainer_kwargs.items() if name != "plugins"}
    kwargs["enable_checkpointing"] = own.has("Checkpoint") or (
        kwargs["enable_checkpointing"] and run_dir is not None
    )
    if own.has("ProgressBar"):
        kwargs["enable_progress_bar"] = True
    if own.brings_plugin("Precision"):
        kwargs["precision"] = None
    # What the installed Lightning itself knows, whatever stands in for its Trainer.
    known = inspect.signature(RealTrainer.__init__).parameters
    return {name: value for name, value in kwargs.items() if name in known}


NEEDS_DIRECTORY = ("logger_backend", "enable_checkpointing", "checkpoint_save_top_k", "checkpoint_every",
                   "checkpoint_every_n_steps", "log_every_n_steps", "log_images_every_n_epochs",
                   "profiler")  # fmt: skip
"""Settings that act in a run directory alone."""
STITCHING = ("middle_trim", "pad_eval")
"""Settings that a program which stitches reads by itself; no Trainer does."""


def idle_settings(trainer: Any, plan: Plan, own: CallersOwn, *, writes: bool) -> list[Finding]:
    """Return a note for each setting that somebody set and that does not act in a Trainer built like this."""
    from lightning.pytorch.trainer.trainer import Trainer as RealTrainer

    settings, found = plan.settings, unknown_to_lightning(plan, own)

    def note(name: str, why: str, fix: str) -> None:
        found.append(_idle(plan, name, why, fix))

    for name in settings.trainer:
        if name in own.trainer_kwargs:
            note(f"trainer.{name}", "trainer_kwargs of the call wins", "remove one of the two")
    for name in () if writes else NEEDS_DIRECTORY:
        brought = {
            "logger_backend": own.logger is not None,
            "enable_checkpointing": own.has("Checkpoint"),
            "log_every_n_steps": bool(own.logger) or settings.logger_backend is None,  # the plan says it then
        }
        if asked(plan.requested, name) and getattr(settings, name) and not brought.get(name):
            note(name, "the run has no directory", "pass run_dir=")
    for name in STITCHING:
        if asked(plan.requested, name) and getattr(settings, name):
            note(name, "a Trainer does not stitch", "remove it, unless this program reads it")
    if isinstance(trainer, RealTrainer):
        inputs = TrainerInputs(settings)
        for row in PROCESS_FLAGS:
            wanted = (row.wanted or row.value)(inputs)
            have = row.seen(trainer) if row.seen else wanted
            if asked(plan.requested, row.field) and wanted is not UNKNOWN and have != wanted:
                why = "it is set for the whole process, before the module is made, and that was not done"
                note(row.field, why, "make module and Trainer inside `trainer_run`, or as it does")
    return found


def unknown_to_lightning(plan: Plan, own: CallersOwn | None = None) -> list[Finding]:
    """Return a note for each name of the table `trainer` that is no parameter of the installed Lightning."""
    from lightning.pytorch.trainer.trainer import Trainer as RealTrainer

    passed = own.trainer_kwargs if own else {}
    known = {*inspect.signature(RealTrainer.__init__).parameters, *passed}
    why, fix = "the installed Lightning has no such parameter", "remove it, or install a newer Lightning"
    return [_idle(plan, f"trainer.{name}", why, fix) for name in plan.settings.trainer if name not in known]


def _idle(plan: Plan, name: str, why: str, fix: str) -> Finding:
    """Return the note that a setting, or `FIELD.NAME` in a table, does not act."""
    field, _, inner = name.partition(".")
    value = getattr(plan.settings, field)
    text = f"{name}={format_value(value[inner] if inner else value)} has no effect: {why}"
    return Finding(text, plan.requested.origin_of(name), fix=fix, level="note", code="idle", field=field)


REFUSABLE = ("accelerator", "devices", "num_nodes", "strategy", "precision", "gradient_clip_val", "max_time",
             "limit_train_batches", "accum_steps", "enable_checkpointing", "deterministic")  # fmt: skip


def refusal(
    error: Exception, settings: ExecutionSettings, plan: Plan, own: CallersOwn | None = None
) -> UserError:
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
    places += [
        f"trainer.{name}={format_value(value)} from {settings.origin_of(f'trainer.{name}')}"
        for name, value in settings.trainer.items()
    ]
    if own is not None and own.to_json():
        places.append(f"the caller's {own.to_json()}")
    return SettingsError(
        f"the Trainer refuses these settings: {type(error).__name__}: {message}",
        where="; ".join(places),
        fix="change the value that the message names; `ptycho-exec check` shows what this machine can do",
    )
