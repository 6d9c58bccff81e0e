"""What every settings class is built on: frozen models, their types taken apart, and values filled in."""

from __future__ import annotations

import ast
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, PrivateAttr, TypeAdapter, ValidationError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
    from typing_extensions import dataclass_transform

    # Type checkers learn from this that fields cannot be assigned, in subclasses too. pydantic itself can
    # tell them only class by class, by a keyword that every subclass would have to repeat.
    @dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field, PrivateAttr))
    class _FrozenMetaclass(ModelMetaclass): ...

    class FrozenModel(BaseModel, metaclass=_FrozenMetaclass): ...
else:
    FrozenModel = BaseModel

NONE_WORDS = frozenset({"none", "null"})
"""What stands for none where a place has no word for it, as TOML, for fields that take none."""

PLAIN = frozenset({int, float, bool, str, tuple, type(None), Literal})
"""Kinds of type that a text or a settings file can give; a value of another kind is converted."""


def read_sentences(model: type[BaseModel]) -> None:
    """Give each field of `model` the sentence below it as its description.

    `use_attribute_docstrings` does the same for any class by asking `inspect` about every loaded module: a
    third of what importing the settings would cost at each start.
    """
    with suppress(OSError):  # without its source a program still runs
        source = ast.parse(inspect.getsource(sys.modules[model.__module__]))
        classes = {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
        for row, below in pairwise(classes[model.__name__].body):
            match row, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    model.model_fields[name].description = inspect.cleandoc(text)


def branches(annotation: Any, constraints: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield each type or Literal that a value may be of, with the constraints that apply to it."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        inner, *extra = typing.get_args(annotation)
        yield from branches(inner, (*constraints, *extra))
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from branches(part, constraints)
    else:
        yield annotation, constraints


def kind_of(annotation: Any) -> Any:
    """Return what a branch is of: `tuple` for `tuple[int, ...]`, `Literal`, or the type itself."""
    return typing.get_origin(annotation) or annotation


def hashable(value: Any) -> Any:
    """Return what stands for a value in a hash: equal values have equal ones, lists and mappings too."""
    if isinstance(value, dict):
        return frozenset((name, hashable(item)) for name, item in value.items())
    if isinstance(value, (set, frozenset)):
        return frozenset(value)
    return tuple(map(hashable, value)) if isinstance(value, (list, tuple)) else value


_filling: ContextVar[bool] = ContextVar("ptycho_exec_filling", default=False)


def is_filling() -> bool:
    """Return whether what is validated now comes from `fill`."""
    return _filling.get()


@contextmanager
def _own_validation() -> Iterator[None]:
    token = _filling.set(True)
    try:
        yield
    finally:
        _filling.reset(token)


def fill(instance: BaseModel, values: Mapping[str, Any]) -> None:
    """Validate values into an instance that `__new__` made, past a constructor that would read sources.

    Raises:
        ValidationError: what pydantic found.
    """
    typed = {name: converted(type(instance), name, value) for name, value in values.items()}
    with _own_validation():
        BaseModel.__init__(instance, **typed)


def converted(model: type[BaseModel], name: str, value: Any) -> Any:
    """Make what a field holds of plain data; what fits nothing stays as it is."""
    convert = _converters(model).get(name)
    return convert(value) if convert else value


@cache
def _converters(model: type[BaseModel]) -> Mapping[str, Callable[[Any], Any]]:
    """Return how to make a value of plain data for each field that is optional, a tuple, a path, a set ..."""
    found = {}
    for name, info in model.model_fields.items():
        kinds = [kind for kind, _ in branches(info.annotation)]
        others = [kind for kind in kinds if kind_of(kind) not in PLAIN]
        optional = type(None) in kinds and not any("none" in typing.get_args(kind) for kind in kinds)
        if others or optional or any(kind_of(kind) is tuple for kind in kinds):
            adapters = tuple(TypeAdapter(kind) for kind in others)
            found[name] = _converter(adapters, bool(len(kinds) > len(others)), optional)
    return found


def _converter(others: tuple[TypeAdapter[Any], ...], plain: bool, optional: bool) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if optional and isinstance(value, str) and value.lower() in NONE_WORDS:
            return None
        for adapter in others:
            with suppress(ValidationError):
                return adapter.validate_python(value)
        return tuple(value) if plain and isinstance(value, list) else value

    return convert
