"""The settings classes of installed packages: a name that one class does not know may belong to another."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from pydantic import BaseModel

from ptycho_exec.fields.spec import FieldSpec, field_specs

GROUP = "ptycho_exec.settings"
"""Entry points of this group name settings classes."""


@cache
def settings_classes() -> tuple[type[BaseModel], ...]:
    """Return the settings classes that installed packages register; loaded when a name is not found."""
    return tuple(point.load() for point in entry_points(group=GROUP))


def owner_of(name: str, model: type[BaseModel]) -> type[BaseModel] | None:
    """Return the other registered class that has a field of this name."""
    spec = _fields().get(name)
    return None if spec is None or issubclass(model, spec.model) else spec.model


@cache
def _fields() -> dict[str, FieldSpec]:
    return {name: spec for model in settings_classes() for name, spec in field_specs(model).items()}


def spec_elsewhere(name: str) -> FieldSpec | None:
    """Return the field of this name, or of this variable or flag, in any registered class."""
    name = name.lower().replace("-", "_").removeprefix("__")
    prefixes = (str(model.model_config.get("env_prefix", "")).lower() for model in settings_classes())
    bare = next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)
    return _fields().get(bare)
