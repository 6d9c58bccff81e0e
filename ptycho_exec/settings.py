"""`ExecutionSettings`: the fields of `ptycho_exec.fields.model`, resolved from every place that can set them.

Where values come from, and in which order, is decided in `ptycho_exec.sources.resolve` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from pydantic import BaseModel, ModelWrapValidatorHandler, PrivateAttr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ptycho_exec.errors import Finding, SettingsError, redact
from ptycho_exec.fields.model import ENV_PREFIX, ExecutionFields
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.sources.discovery import Request
from ptycho_exec.sources.explain import changed, checked_name, explain_field, explain_html
from ptycho_exec.sources.origins import Kind, Origin, Resolution
from ptycho_exec.sources.resolve import check, resolve, resolve_onto, resolve_under, resolve_values

_filling: ContextVar[bool] = ContextVar("ptycho_exec_filling", default=False)


@contextmanager
def _own_validation() -> Iterator[None]:
    """Mark that values come from our engine, not from a model around this one."""
    token = _filling.set(True)
    try:
        yield
    finally:
        _filling.reset(token)


class ExecutionSettings(ExecutionFields, BaseSettings):
    """How to run, for any machine: validated, frozen, with the origin of each value.

    `ExecutionSettings(batch_size=8)` resolves arguments, environment, files, profile and defaults in the
    documented order; see `ptycho_exec.sources.resolve`. `ExecutionSettings.from_values({...})` reads nothing
    else.

    Raises:
        SettingsError: misspelt names, malformed values or contradictions, all of them in one report.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX)

    _origins: dict[str, Origin] = PrivateAttr(default_factory=dict)
    _notices: tuple[Finding, ...] = PrivateAttr(default=())

    def __init__(
        self,
        /,
        *,
        profile: str | None = None,
        settings_file: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        factory_defaults: Mapping[str, Any] | None = None,
        **explicit: Any,
    ) -> None:
        request = Request(
            arguments=explicit,
            overrides=overrides or {},
            profile=profile,
            settings_file=settings_file,
            factory_defaults=factory_defaults or {},
        )
        self._fill(resolve(request))

    def _fill(self, resolution: Resolution) -> None:
        def validate(values: Mapping[str, Any]) -> None:
            with _own_validation():
                BaseModel.__init__(self, **values)

        check(resolution, validate)
        self._origins = dict(resolution.origins)
        self._notices = resolution.notices

    @classmethod
    def from_resolution(cls, resolution: Resolution) -> Self:
        """Build from what `ptycho_exec.sources.resolve.resolve` returned; nothing else is read."""
        settings = cls.__new__(cls)
        settings._fill(resolution)
        return settings

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, place: str = "from_values()") -> Self:
        """Build from `values` and the defaults alone: no environment, no file, no working directory."""
        return cls.from_resolution(resolve_values(values, place=place))

    @classmethod
    def model_validate(cls, obj: Any, **_: Any) -> Self:
        """Validate a mapping by itself. (Plain pydantic-settings would read the environment again.)"""
        return obj if isinstance(obj, cls) else cls.from_values(obj, place="model_validate()")

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **_: Any) -> Self:
        """Validate JSON text by itself; see `model_validate`."""
        return cls.from_values(json.loads(json_data), place="model_validate_json()")

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Where each value came from, by field name, with what it shadowed."""
        return MappingProxyType(self._origins)

    def origin_of(self, name: str) -> str:
        """Return where the value of a field came from, as text; empty where that is not known."""
        origin = self._origins.get(name)
        return origin.describe() if origin else ""

    @property
    def notices(self) -> tuple[Finding, ...]:
        """What is worth knowing about the sources: a variable that is empty, a file that is not read."""
        return self._notices

    def explain(self, name: str | None = None) -> str:
        """Return in words where a value came from and what it means; without a name, for all that were set.

        Raises:
            SettingsError: there is no such field.
        """
        specs = field_specs(type(self))
        names = changed(self._origins) if name is None else [checked_name(name, specs, where="explain()")]
        blocks = (
            explain_field(specs[name], getattr(self, name), self._origin(name), self._notices)
            for name in names
        )
        return "\n\n".join("\n".join(lines) for lines in blocks) or "every value is its default"

    def _origin(self, name: str) -> Origin:
        return self._origins.get(name) or Origin(Kind.DEFAULT, "not known", getattr(self, name))

    def _repr_html_(self) -> str:
        """Show every value with its origin in a notebook, credentials hidden."""
        specs = field_specs(type(self))
        return explain_html(type(self).__name__, specs, dict(self), self._origins, self._notices)

    def with_overrides(self, **overrides: Any) -> Self:
        """Return a validated copy in which `overrides` win over everything that was resolved before."""
        return self.from_resolution(resolve_onto(self, overrides, place="with_overrides()"))

    def with_factory_defaults(self, **defaults: Any) -> Self:
        """Return a copy in which a workflow's `defaults` replace only values that nobody set."""
        return self.from_resolution(resolve_under(self, defaults))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy; an update is validated like any other override."""
        del deep  # every value is immutable, so a shallow copy is a deep one
        return self.with_overrides(**update) if update else self

    @model_validator(mode="wrap")
    @classmethod
    def _by_itself(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Inside another model, or in a TypeAdapter, take a mapping by itself, as `model_validate` does.

        pydantic would call the constructor, which resolves environment and files: settings that were written
        on one machine would silently become others where they are read.
        """
        return handler(data) if _filling.get() else cls.model_validate(data)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse, without repeating the value: it may hold credentials."""
        if not name.startswith("_"):
            raise SettingsError("settings cannot be changed", fix=f"use settings.with_overrides({name}=...)")
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        """Compare values only: the same settings from different places are the same settings."""
        return isinstance(other, ExecutionSettings) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in self.__dict__.items():
            yield name, redact(value)
