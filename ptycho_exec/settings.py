"""`ExecutionSettings`: the fields of `ptycho_exec.fields.model`, resolved from every place that can set them.

`ResolvedSettings` is the class behind it, for any settings: sources in a stated order, an origin for each.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_settings import CliSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from ptycho_exec.errors import Finding, SettingsError, redact
from ptycho_exec.fields.base import FrozenModel, branches, fill, hashable, is_filling, kind_of
from ptycho_exec.fields.model import ENV_PREFIX, ExecutionFields, malformed
from ptycho_exec.fields.spec import Renamed, field_specs, format_value, table_specs, unique_names
from ptycho_exec.sources.discovery import Request, paths_of
from ptycho_exec.sources.explain import changed, checked_name, explain_field, explain_html, part_of
from ptycho_exec.sources.messages import said_by_validators
from ptycho_exec.sources.origins import Kind, Origin, Resolution
from ptycho_exec.sources.resolve import (
    CONTROLS,
    check,
    overriding,
    resolve,
    resolve_onto,
    resolve_recorded,
    resolve_under,
    resolve_values,
    standard_sources,
)
from ptycho_exec.sources.validators import fits_alone, origins_after
from ptycho_exec.version import __version__

if TYPE_CHECKING:

    class BaseSettings(FrozenModel):
        """The one of pydantic-settings, seen by type checkers as a frozen model with a typed constructor."""
else:
    from pydantic_settings import BaseSettings


class ResolvedSettings(BaseSettings):
    """Settings of any program: validated, frozen, with the origin of each value.

    A subclass states its fields, `env_prefix` in `model_config`, and `program`; all names follow from these:
    variables `<PREFIX><FIELD>`, the file `<program>.toml`, the table `[tool.<program>]`, the user's file
    `~/.config/<program>/settings.toml`. `settings_customise_sources` returns the sources in their order.

    Raises:
        SettingsError: misspelt names, malformed values or contradictions, all of them in one report; from the
            definition of a subclass, what cannot work in it.
    """

    program: ClassVar[str] = ""
    """Name of the settings file, of the table in pyproject.toml, and of the folder for the user's file."""
    renamed: ClassVar[Mapping[str, Renamed]] = {}
    """Old names of fields: honored with a warning until a version, then refused."""
    version: ClassVar[str] = ""
    """Version of the program, which decides whether an old name is refused."""
    shipped_profiles: ClassVar[Path | None] = None
    """Folder with profiles that come with the program, `NAME.toml` each."""
    explained_by: ClassVar[str] = ""
    """Command that explains a field of this class whose name follows; each class states its own."""

    model_config = SettingsConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        env_file=".env",
        use_attribute_docstrings=False,  # nothing to read here; looking takes a while
        hide_input_in_errors=True,
        validate_default=False,
        defer_build=False,
    )

    _origins: dict[str, Origin] = PrivateAttr(default_factory=dict)
    _notices: tuple[Finding, ...] = PrivateAttr(default=())

    if TYPE_CHECKING:  # so that type checkers derive the constructor from the fields, with these besides
        profile: str | Sequence[str] | None = None
        settings_file: str | Path | None = None
        overrides: Mapping[str, Any] | None = None
        factory_defaults: Mapping[str, Any] | None = None
        _env_file: str | Path | Sequence[str | Path] | None = None
        _secrets_dir: str | Path | Sequence[str | Path] | None = None
    else:

        def __init__(
            self,
            /,
            *,
            profile: str | Sequence[str] | None = None,
            settings_file: str | Path | None = None,
            overrides: Mapping[str, Any] | None = None,
            factory_defaults: Mapping[str, Any] | None = None,
            **explicit: Any,
        ) -> None:
            foreign = {name: explicit.pop(name) for name in list(explicit) if name.startswith("_")}
            request = Request(
                type(self),
                arguments=explicit,
                overrides=overrides or {},
                profile=profile,
                settings_file=settings_file,
                factory_defaults=factory_defaults or {},
            )
            self._fill(resolve(replace(request, **_options_of_pydantic_settings(foreign))))

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        _refuse_what_cannot_work(cls)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseModel],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, highest precedence first: those of `ptycho_exec.sources.resolve`.

        A subclass can return others, or another order; sources of pydantic-settings take part with the name
        of their class as the origin.
        """
        return standard_sources(
            settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings
        )

    def _fill(self, resolution: Resolution) -> None:
        check(resolution, lambda values: fill(self, values))
        self._keep_origins(origins_after(resolution, self), resolution.notices)

    def _keep_origins(self, origins: Mapping[str, Origin], notices: tuple[Finding, ...]) -> None:
        self._origins = dict(origins)  # type: ignore[misc]  # private attributes, not frozen fields
        self._notices = notices  # type: ignore[misc]

    @classmethod
    def from_resolution(cls, resolution: Resolution) -> Self:
        """Build from what `ptycho_exec.sources.resolve.resolve` returned; nothing else is read."""
        settings = cls.__new__(cls)
        settings._fill(resolution)
        return settings

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, place: str = "from_values()") -> Self:
        """Build from `values` and the defaults alone: no environment, no file, no working directory."""
        return cls.from_resolution(resolve_values(cls, values, place=place))

    @classmethod
    def override(cls, **overrides: Any) -> AbstractContextManager[None]:
        """Return a block in which `overrides` win in everything resolved, in this thread or task only.

        Raises:
            SettingsError: a name that is no field.
        """
        return overriding(cls, overrides)

    # --- what pydantic and pydantic-settings offer, by our rules

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Validate a mapping by itself. (Plain pydantic-settings would read the environment again.)"""
        _refuse_options("model_validate", options)
        return obj if isinstance(obj, cls) else cls.from_values(obj, place="model_validate()")

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Validate JSON text by itself; see `model_validate`."""
        _refuse_options("model_validate_json", options)
        return cls.from_values(_parsed_json(json_data), place="model_validate_json()")

    @classmethod
    def model_validate_strings(cls, obj: Any, **options: Any) -> Self:
        """Validate texts by themselves, each typed by its field as the text of a variable is."""
        _refuse_options("model_validate_strings", options)
        resolution = resolve_values(cls, obj, place="model_validate_strings()", texts=True)
        return cls.from_resolution(resolution)

    @classmethod
    def settings_cached(cls) -> Self:
        """Refuse: the cache would not see variables, files and `override_settings` blocks that come later.

        Raises:
            SettingsError: always.
        """
        raise SettingsError(
            f"{cls.__name__}.settings_cached() would keep values that later variables do not reach",
            expected="an object that the program keeps where it needs it",
            fix=f"write settings = {cls.__name__}() once, and pass settings on",
        )

    @model_validator(mode="wrap")
    @classmethod
    def _by_itself(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Inside another model, or in a TypeAdapter, take a mapping by itself, as `model_validate` does.

        pydantic would call the constructor, which resolves environment and files: settings that were written
        on one machine would silently become others where they are read. Texts are typed by their fields,
        because a model around this one may have read them from variables; in JSON they stay texts.
        """
        if is_filling():
            return handler(data)
        if isinstance(data, cls):
            return data
        place = f"{cls.__name__} in another model"
        return cls.from_resolution(resolve_values(cls, data, place=place, texts=info.mode != "json"))

    # --- values and origins

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Where each value came from, by field name, with what it shadowed."""
        return MappingProxyType(self._origins)

    def origin_of(self, name: str) -> str:
        """Return where the value of a field, or of `FIELD.NAME` in a table, came from; empty if not known."""
        field, _, inner = name.partition(".")
        origin = self._origins.get(field)
        if origin and inner:
            rows = table_specs(field_specs(type(self))[field])
            known = rows or (origin.value if isinstance(origin.value, Mapping) else ())
            origin = (
                (part_of(rows[inner], origin) if rows else origin.part(inner)) if inner in known else None
            )
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
        names = (
            changed(self._origins) if name is None else [checked_name(name, type(self), where="explain()")]
        )
        blocks = map(self._explained, names)
        return "\n\n".join("\n".join(lines) for lines in blocks) or "every value is its default"

    def _explained(self, name: str) -> Iterator[str]:
        """Yield the lines about a field, or about `FIELD.NAME` in a table."""
        field, _, inner = name.partition(".")
        spec, value = field_specs(type(self))[field], vars(self)[field]
        origin = self._origins.get(field) or Origin(Kind.DEFAULT, "not known", value)
        if inner:
            spec = table_specs(spec)[inner]
            origin, value = part_of(spec, origin), value.get(inner, spec.default)
        yield from explain_field(spec, value, origin, self._notices)

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

    def with_recorded(self, values: Mapping[str, Any], *, place: str) -> Self:
        """Return a copy in which values kept at a place win over all but what a call itself says."""
        return self.from_resolution(resolve_recorded(self, values, place=place))

    def with_effective(self, values: Mapping[str, Any]) -> Self:
        """Return a copy in which a plan's `values` take the place of what was asked, not validated."""
        effective = cast(Self, self.model_construct(**{**dict(self), **values}))
        effective._keep_origins(self._origins, self._notices)
        return effective

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy; an update is validated like any other override."""
        copied = deepcopy(self) if deep else self
        return copied.with_overrides(**update) if update else copied

    def copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False, **parts: Any) -> Self:
        """Copy as `model_copy` does.

        Raises:
            SettingsError: for a part of the settings (`include`, `exclude`), which would be no settings.
        """
        if any(part is not None for part in parts.values()):
            what, fix = "settings cannot be copied in part", "use settings.model_dump(include=...)"
            raise SettingsError(what, where="copy()", expected="update= alone", fix=fix)
        return self.model_copy(update=update, deep=deep)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse, without repeating the value: it may hold credentials."""
        if not name.startswith("_"):
            raise SettingsError("settings cannot be changed", fix=f"use settings.with_overrides({name}=...)")
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        """Compare values only: the same settings from different places are the same settings."""
        return isinstance(other, ResolvedSettings) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(map(hashable, self.__dict__.values())))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, redact(value)


def _refuse_options(method: str, options: Mapping[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise SettingsError(
            f"{method}() of settings takes values alone, not {', '.join(given)}",
            expected="the same rules in every place",
            fix=f"leave {', '.join(given)} out",
        )


def _options_of_pydantic_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the options of its constructor mean to a request.

    Raises:
        SettingsError: one that has no meaning here.
    """
    options: dict[str, Any] = {}
    for name, value in given.items():
        if name == "_env_file":
            options["dotenv"] = paths_of(value)
        elif name == "_secrets_dir":
            options["secrets"] = paths_of(value)
        elif name == "_build_sources":  # what CliApp.run hands over: the standard sources, and its own
            sources, arguments = value
            options["extra_sources"] = tuple(s for s in sources if isinstance(s, CliSettingsSource))
            options["arguments"] = arguments
        elif value is not None:
            raise SettingsError(
                f"{name} is no argument of settings",
                expected="_env_file or _secrets_dir, of the options of pydantic-settings",
                fix="set it in model_config of a subclass; for flags use CliApp.run",
            )
    return options


def _parsed_json(data: str | bytes | bytearray) -> Any:
    """Parse JSON in which every name is there once.

    Raises:
        SettingsError: it is no JSON.
    """
    try:
        text = data if isinstance(data, str) else bytes(data).decode("utf-8")
        return json.loads(text, object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        problem = "bytes that are not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        what, where = f"this is not valid JSON: {problem}", "argument of model_validate_json()"
        raise SettingsError(what, where=where, expected="a JSON object", fix="correct the text") from None


# --- subclasses ---------------------------------------------------------------------------------------------

_FIXED_CONFIG = {
    "frozen": "settings never change; use with_overrides",
    "extra": "an unknown name is an error",
    "strict": "a text is no number; sources of text are typed by their fields",
    "validate_default": "defaults are checked when the class is defined",
    "case_sensitive": "variables are written in capitals",
    "env_nested_delimiter": "settings are flat; nest them in another BaseSettings instead",
    "env_nested_max_split": "settings are flat",
    "env_prefix_target": "every variable has the prefix",
    "env_file_encoding": "files are UTF-8",
    "env_file_depth": "the file in the working directory is read",
    "env_parse_none_str": "none and null are understood everywhere",
    "toml_file": 'set the class attribute program = "NAME" for NAME.toml and [tool.NAME]',
    "pyproject_toml_table_header": 'set the class attribute program = "NAME" for [tool.NAME]',
    "json_file": "name the file in the call, settings_file=..., or by its variable",
    "yaml_file": "name the file in the call, settings_file=..., or by its variable",
    "cli_parse_args": "use CliApp.run",
}
"""Options of pydantic-settings that a subclass cannot change, and why or what to do instead."""


def _names_of_two_classes(cls: type[ResolvedSettings]) -> Iterator[str]:
    """Yield what would mix the names of several bases.

    pydantic merges `model_config` so that the last base wins, also with what it only inherited; attributes
    of a class, such as `program`, come from the first one that has them.
    """
    bases = [base for base in cls.__bases__ if issubclass(base, BaseModel)]
    for key in ("env_prefix", "env_file", "secrets_dir"):
        value = cls.model_config.get(key)
        above = (base for base in cls.__mro__[1:] if issubclass(base, BaseModel))
        first = next((base for base in above if _states(base, key)), ResolvedSettings)
        wanted = first.model_config.get(key)
        merged = [base.__name__ for base in bases if base.model_config.get(key) == value]
        if value != wanted and merged:
            yield (
                f"{key}: {wanted!r} of {first.__name__} and {value!r} of {merged[-1]}; write "
                f"model_config = SettingsConfigDict({key}={wanted!r}) in it, or a value that neither has, or "
                f"exchange the two and write {value!r}"
            )


def _states(base: type[BaseModel], key: str) -> bool:
    """Return whether a class itself gives an option of `model_config` its value."""
    inherited = [above.model_config.get(key) for above in base.__bases__ if issubclass(above, BaseModel)]
    return base.model_config.get(key) not in inherited


def _kinds_inside(annotation: Any) -> Iterator[Any]:
    """Yield every type that a value is made of: of `list[A] | None` the list, A and None."""
    for kind, _ in branches(annotation):
        yield kind_of(kind)
        if get_origin(kind) not in (Literal, type):
            for part in get_args(kind):
                yield from _kinds_inside(part)


def _with_fields(kind: Any) -> str:
    """Return what a type is that has fields of its own, which no variable and no flag could name."""
    if hasattr(kind, "__required_keys__"):  # of typing or of typing_extensions
        return "TypedDict"
    if isinstance(kind, type):
        return "model" if issubclass(kind, BaseModel) else "dataclass" if is_dataclass(kind) else ""
    return ""


def _refuse_what_cannot_work(cls: type[ResolvedSettings]) -> None:
    problems = [
        f"model_config[{key!r}]: {why}"
        for key, why in _FIXED_CONFIG.items()
        if cls.model_config.get(key) != ResolvedSettings.model_config.get(key)
    ]
    problems += _names_of_two_classes(cls)
    for name, info in cls.model_fields.items():
        if name in CONTROLS:
            problems.append(f"field {name}: the constructor has an argument of that name")
        if info.alias or info.validation_alias:
            problems.append(f"field {name}: an alias; variable, flag and key have the name of the field")
        if kind := next(filter(None, map(_with_fields, _kinds_inside(info.annotation))), ""):
            problems.append(f"field {name}: a {kind}; put it beside these settings in a class around both")
        if getattr(info, "default_factory_takes_validated_data", False):
            problems.append(f"field {name}: a default made of other fields; make it a property")
    stated = inspect.get_annotations(cls).keys() & cls.model_fields.keys()
    if stated and not problems:
        specs = field_specs(cls)
        defaults = {name: specs[name].default for name in stated if not specs[name].required}
        for name in malformed(defaults, cls):
            if why := _why_refused(cls, name, defaults[name]):
                value = format_value(defaults[name])
                problems.append(f"field {name}: its default {value} is not allowed; {why}")
    if problems:
        raise SettingsError(
            f"class {cls.__name__} cannot have: {'; '.join(problems)}",
            where=f"{cls.__module__}.{cls.__qualname__}",
            expected="flat fields, and env_prefix, env_file, secrets_dir or program of its own",
            fix="change the class as said, or hold the settings in a class of your own",
        )


def _why_refused(cls: type[ResolvedSettings], name: str, default: Any) -> str:
    """Return why a field does not take its default; empty where a validator is only not made for it.

    pydantic sends no default through validators, so one may fail that is made for the text of a variable.
    """
    expected = f"expected {field_specs(cls)[name].expected()}"
    try:
        fill(cls.__new__(cls), {name: default})
    except ValidationError as error:
        items = error.errors(include_url=False, include_input=False)
        return "; ".join(said_by_validators(items, field_specs(cls)[name])) or expected
    except Exception:
        return "" if fits_alone(cls, name, default) else expected
    return ""


ResolvedSettings.model_config["use_attribute_docstrings"] = True  # a subclass says a sentence for each field


class ExecutionSettings(ExecutionFields, ResolvedSettings, use_attribute_docstrings=False):
    """How to run, for any machine: validated, frozen, with the origin of each value.

    `ExecutionSettings(batch_size=8)` resolves arguments, environment, files, profile and defaults in the
    documented order; see `ptycho_exec.sources.resolve`. `ExecutionSettings.from_values({...})` reads nothing
    else.

    Examples:
        >>> from ptycho_exec import ExecutionSettings
        >>> settings = ExecutionSettings.from_values({"batch_size": 8})
        >>> settings.batch_size, settings.seed, settings.origin_of("seed")
        (8, 42, 'default')
        >>> settings.with_overrides(bach_size=4)
        Traceback (most recent call last):
        ptycho_exec.errors.SettingsError: unknown setting 'bach_size'
          where: ...

    Raises:
        SettingsError: misspelt names, malformed values or contradictions, all of them in one report.
    """

    program: ClassVar[str] = "ptycho_exec"
    explained_by: ClassVar[str] = "ptycho-exec explain"
    version: ClassVar[str] = __version__
    shipped_profiles: ClassVar[Path | None] = Path(__file__).with_name("profiles")

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX)

    __hash__ = ResolvedSettings.__hash__  # pydantic gives every frozen model one that knows no lists


ExecutionSettings.model_config["use_attribute_docstrings"] = True


def override_settings(**overrides: Any) -> AbstractContextManager[None]:
    """Return a block in which execution settings are overridden; see `ExecutionSettings.override`.

    Examples:
        >>> from ptycho_exec import ExecutionSettings, override_settings
        >>> with override_settings(batch_size=2):
        ...     ExecutionSettings().batch_size
        2
    """
    return ExecutionSettings.override(**overrides)
