"""Values that the validators of a settings class changed: they do not come from where they were given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError

from ptycho_exec.errors import UserError
from ptycho_exec.fields.base import OURS, bare_adapter, converted, own_validators
from ptycho_exec.fields.model import plain
from ptycho_exec.fields.spec import HIDDEN, field_specs
from ptycho_exec.sources.origins import Kind, Origin, Resolution

OF_THE_CLASS = "its class gives it, and a validator would change it"
"""Why a value is not among those of `as_given`."""


def origins_after(resolution: Resolution, settings: BaseModel) -> dict[str, Origin]:
    """Return the origins of validated settings: a value that a validator changed, or added, says so."""
    model, origins = type(settings), dict(resolution.origins)
    for name in _made_anew(model) - settings.model_fields_set:
        origins[name] = replace(origins[name], value=settings.__dict__[name])
    if not may_change(model):
        return origins
    for name, value in settings.__dict__.items():
        if name in resolution.values:
            given = resolution.values[name]
            kept = _same(value, given) or _same(value, _alone(model, name, given))
        else:
            made = model.model_fields[name].default_factory is not None
            kept = (
                name not in settings.model_fields_set
                if made
                else _same(value, field_specs(model)[name].default)
            )
        if kept and name in origins:
            continue
        before = origins.get(name)
        by = changed_by(model, name)
        given = _alone(model, name, before.value) if before else None
        added = Origin(Kind.OTHER, by, value, changed=True)
        origins[name] = _changed(before, given, value, by) if before else added
    return origins


def _changed(before: Origin, given: Any, value: Any, by: str) -> Origin:
    """Return the origin of what a validator made of a value; in a table, what it left keeps its own."""
    shadowed = (before, *before.shadowed)
    raw = HIDDEN if before.raw == HIDDEN else None
    after = replace(
        before, value=value, raw=raw, reason=f"changed by {by}", shadowed=shadowed, parts=(), changed=True
    )
    if not before.parts or not isinstance(value, Mapping):
        return after
    left = {name: part for name, part in before.parts if name in value and _same(value[name], given[name])}
    return replace(after, parts=tuple((name, left.get(name) or after.part(name)) for name in value))


@cache
def _made_anew(model: type[BaseModel]) -> frozenset[str]:
    """Return the fields whose default is made for each instance."""
    return frozenset(name for name, info in model.model_fields.items() if info.default_factory is not None)


@cache
def may_change(model: type[BaseModel]) -> bool:
    """Return whether a class has code of its own that can change values while they are validated."""
    plain_init = getattr(model.model_post_init, "__name__", "") == "init_private_attributes"  # pydantic's
    return not plain_init or any(next(_validators(model, name), "") for name in model.model_fields)


def as_given(
    settings: BaseModel, origins: Mapping[str, Origin], build: Callable[[Mapping[str, Any]], BaseModel]
) -> dict[str, Any]:
    """Return the values that give equal settings again wherever they are written: as validators get them.

    What only the class itself can give is not among them: values that a validator added, and defaults that it
    would change if they were given.

    Args:
        origins: of the settings' values.
        build: makes settings of values, as `from_values` of the class does.
    """
    model, given = type(settings), dict(vars(settings))
    if not may_change(model):
        return given
    own = []
    for name, origin in origins.items():
        before = origin.given
        if before is None or (origin.changed and before.kind is Kind.DEFAULT):
            del given[name]
        elif origin.changed:
            given[name] = before.value
        elif origin.kind is Kind.DEFAULT:
            own.append(name)
    try:
        again = vars(build(given))
        own = [name for name in own if not _same(again[name], given[name])]
    except UserError:
        pass  # a default that it refuses when it is given
    return {name: value for name, value in given.items() if name not in own}


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal, NaN with NaN too; of arrays that is not asked."""
    try:
        return one is other or bool(one == other) or bool(one != one and other != other)
    except (TypeError, ValueError):
        return True


def fits_alone(model: type[BaseModel], name: str, value: Any) -> bool:
    """Return whether the type of a field takes a value, validators of the class aside."""
    try:
        _adapter(model, name).validate_python(converted(model, name, value))
    except ValidationError:
        return False
    return True


def _alone(model: type[BaseModel], name: str, value: Any) -> Any:
    """Return what the type of a field makes of a value, validators of the class aside."""
    try:
        return _adapter(model, name).validate_python(converted(model, name, value))
    except ValidationError:
        return value


@cache
def _adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    info = model.model_fields[name]
    return bare_adapter(Annotated[(info.annotation, *info.metadata, BeforeValidator(plain))])


def changed_by(model: type[BaseModel], name: str) -> str:
    """Return in words what can change a field: validators that the class, or one above it, adds to ours."""
    names = list(_validators(model, name))
    if not names:
        return f"class {model.__name__}"
    return f"validator {names[0]}" if len(names) == 1 else f"one of the validators {', '.join(names)}"


def _validators(model: type[BaseModel], name: str) -> Iterator[str]:
    functions = [validator.function for validator in own_validators(model, name)]
    of_model = (row.func for row in model.__pydantic_decorators__.model_validators.values())
    for function in (*functions, *(own for own in of_model if own.__module__ not in OURS)):
        words = getattr(function, "__qualname__", type(function).__name__).split(".")
        within = len(words) > 1 and words[-2] != "<locals>"
        yield f"{words[-1]} of {words[-2]}" if within else words[-1]
