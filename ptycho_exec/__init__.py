"""How to run: validated execution settings, each value with its origin, and what the Trainer made of them.

Light at import: names are loaded when first used, and none of them needs torch, lightning or numpy
before a Trainer is built.
"""

from __future__ import annotations

import importlib as _importlib
import typing as _typing

from ptycho_exec.version import __version__ as __version__

if _typing.TYPE_CHECKING:
    from ptycho_exec.cli.reference import json_schema
    from ptycho_exec.errors import (
        DataError,
        DataWarning,
        DriftError,
        Finding,
        SettingsError,
        SettingsWarning,
        UserError,
    )
    from ptycho_exec.fields.model import Effect
    from ptycho_exec.machine.facts import MachineFacts
    from ptycho_exec.plan import ModuleTraits, Plan, resolve_plan
    from ptycho_exec.record import fingerprint, settings_from_manifest
    from ptycho_exec.settings import ExecutionSettings, ResolvedSettings, override_settings
    from ptycho_exec.settings import ExecutionSettings as PyTorchExecutionConfig
    from ptycho_exec.sources.origins import Kind, Origin
    from ptycho_exec.sources.resolve import Factory
    from ptycho_exec.trainer.build import (
        build_trainer,
        inference_loader_kwargs,
        process_flags,
        requested_and_effective,
        seed_run,
        train_loader_kwargs,
        trainer_kwargs,
    )
    from ptycho_exec.trainer.run import TrainerRun, trainer_run

_HOME = {
    "DataError": "errors",
    "DataWarning": "errors",
    "DriftError": "errors",
    "Effect": "fields.model",
    "ExecutionSettings": "settings",
    "Factory": "sources.resolve",
    "Finding": "errors",
    "Kind": "sources.origins",
    "MachineFacts": "machine.facts",
    "ModuleTraits": "plan",
    "Origin": "sources.origins",
    "Plan": "plan",
    "ResolvedSettings": "settings",
    "SettingsError": "errors",
    "SettingsWarning": "errors",
    "TrainerRun": "trainer.run",
    "UserError": "errors",
    "build_trainer": "trainer.build",
    "fingerprint": "record",
    "inference_loader_kwargs": "trainer.build",
    "json_schema": "cli.reference",
    "override_settings": "settings",
    "process_flags": "trainer.build",
    "requested_and_effective": "trainer.build",
    "resolve_plan": "plan",
    "seed_run": "trainer.build",
    "settings_from_manifest": "record",
    "train_loader_kwargs": "trainer.build",
    "trainer_kwargs": "trainer.build",
    "trainer_run": "trainer.run",
}

__all__ = [
    "DataError",
    "DataWarning",
    "DriftError",
    "Effect",
    "ExecutionSettings",
    "Factory",
    "Finding",
    "Kind",
    "MachineFacts",
    "ModuleTraits",
    "Origin",
    "Plan",
    "PyTorchExecutionConfig",
    "ResolvedSettings",
    "SettingsError",
    "SettingsWarning",
    "TrainerRun",
    "UserError",
    "build_trainer",
    "fingerprint",
    "inference_loader_kwargs",
    "json_schema",
    "override_settings",
    "process_flags",
    "requested_and_effective",
    "resolve_plan",
    "seed_run",
    "settings_from_manifest",
    "train_loader_kwargs",
    "trainer_kwargs",
    "trainer_run",
]


def __getattr__(name: str) -> _typing.Any:
    if name == "PyTorchExecutionConfig":  # the name this class had in the project it takes over from
        return __getattr__("ExecutionSettings")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
