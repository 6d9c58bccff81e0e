"""What every settings class is built on: frozen models, their types taken apart, and values filled in."""

from __future__ import annotations

import ast
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date
from functools import cache
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainValidator,
    PrivateAttr,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)
from pydantic_core import CoreSchema, core_schema

from ptycho_exec.errors import SettingsError

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


def read_sentences(*models: type[BaseModel]) -> None:
    """Give each field of `models`, which stand in one module, the sentence below it as its description.

    `use_attribute_docstrings` does the same for any class by asking `inspect` about every loaded module: a
    third of what importing the settings would cost at each start.
    """
    with suppress(OSError):  # without its source a program still runs
        source = ast.parse(inspect.getsource(sys.modules[models[0].__module__]))
        classes = {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
        for model in models:
            own = [classes[base.__name__].body for base in model.__mro__ if base.__name__ in classes]
            for row, below in chain.from_iterable(map(pairwise, own)):
                match row, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                        value=ast.Constant(value=str(text))
                    ):
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


_MODES = {BeforeValidator: "before", AfterValidator: "after", WrapValidator: "wrap", PlainValidator: "plain"}
OURS = ("ptycho_exec.settings", "ptycho_exec.fields.model")
"""Modules whose validators check, or only take another form of the same value."""


class OwnValidator(NamedTuple):
    """A validator that a settings class adds to ours."""

    mode: str
    """When it runs: before, after, wrap or plain."""
    function: Any
    of_all: bool = False
    """Whether it is for every field, `"*"`."""


def own_validators(model: type[BaseModel], name: str) -> Iterator[OwnValidator]:
    """Yield the validators of a field, those in its annotation included; none where it is no field."""
    info = model.model_fields.get(name)
    yield from _in_annotation((info.annotation, *info.metadata)) if info else ()
    for row in model.__pydantic_decorators__.field_validators.values():
        if {name, "*"} & set(row.info.fields) and row.func.__module__ not in OURS:
            yield OwnValidator(row.info.mode, row.func, "*" in row.info.fields)


def _in_annotation(parts: Iterable[Any]) -> Iterator[OwnValidator]:
    for part in parts:
        if _is_own(part):
            yield OwnValidator(_MODES[type(part)], part.func)
        elif typing.get_origin(part) is Annotated:
            yield from _in_annotation((part.__origin__, *part.__metadata__))
        elif typing.get_origin(part) is not Literal:
            yield from _in_annotation(typing.get_args(part))


def _is_own(item: Any) -> bool:
    return type(item) in _MODES and getattr(item.func, "__module__", "") not in OURS


def bare_type(annotation: Any) -> Any:
    """Return an annotation without the validators in it that are not ours."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        kept = [item for item in annotation.__metadata__ if not _is_own(item)]
        inner = bare_type(annotation.__origin__)
        return Annotated[(inner, *kept)] if kept else inner
    if not any(True for _ in _in_annotation(parts)) or origin is Literal:
        return annotation
    return (typing.Union if origin is types.UnionType else origin)[tuple(map(bare_type, parts))]


def bare_adapter(annotation: Any) -> TypeAdapter[Any]:
    """Return what checks a value strictly by its type alone, without validators that are not ours."""
    kind = bare_type(annotation)
    try:
        return TypeAdapter(kind, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except PydanticUserError:  # a model has a configuration of its own
        return TypeAdapter(kind)


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
    found: dict[str, Callable[[Any], Any]] = {}
    for name, info in model.model_fields.items():
        table = next((item for item in info.metadata if isinstance(item, Table)), None)
        kinds = {kind_of(kind) for kind, _ in branches(info.annotation)}
        words = (word for kind, _ in branches(info.annotation) for word in typing.get_args(kind))
        optional = type(None) in kinds and "none" not in words
        if table is not None:
            found[name] = table.converted
        elif not _is_plain(info.annotation):
            found[name] = _converter(info.annotation, _plain_form(kinds, optional))
        elif optional or tuple in kinds or int in kinds:
            found[name] = _plain_form(kinds, optional)
    return found


def _plain_form(kinds: Collection[Any], optional: bool) -> Callable[[Any], Any]:
    """Return what writes none, a tuple and a whole number as Python has them, for a field of these kinds."""
    in_tuple, whole = tuple in kinds, int in kinds and float not in kinds

    def convert(value: Any) -> Any:
        if optional and isinstance(value, str) and value.lower() in NONE_WORDS:
            return None
        if in_tuple and isinstance(value, list):
            return tuple(value)
        return int(value) if whole and isinstance(value, float) and value.is_integer() else value

    return convert


def _converter(annotation: Any, plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    adapter = bare_adapter(annotation)
    others = tuple(kind for kind, _ in branches(annotation) if not _is_plain(kind))
    of_numbers = bare_adapter(typing.Union[others])  # noqa: UP007  # how many there are is not known here

    def convert(value: Any) -> Any:
        """Take a value as it is, else as JSON has it, else as another sequence or from a number or a date."""
        form = plain(value)
        if form is None:
            return None
        for given in (value, form):
            with suppress(ValidationError):
                return adapter.validate_python(given)
        with suppress(ValidationError, TypeError, ValueError):
            data = list(value) if isinstance(value, (set, frozenset)) else value
            return adapter.validate_json(json.dumps(data), strict=True)
        if isinstance(value, (list, tuple, set, frozenset)):
            for make in (list, tuple, set, frozenset):
                with suppress(ValidationError, TypeError):
                    return adapter.validate_python(make(value))
        elif isinstance(value, (int, float, date)) and not isinstance(value, bool):
            with suppress(ValidationError):
                return of_numbers.validate_python(value, strict=False)
        return value

    return convert


def _is_plain(annotation: Any) -> bool:
    """Return whether a text or a settings file can give all that a type is made of."""
    kinds = [kind for kind, _ in branches(annotation) if kind is not Ellipsis]
    inner = (part for kind in kinds if kind_of(kind) is tuple for part in typing.get_args(kind))
    return all(kind_of(kind) in PLAIN for kind in kinds) and all(map(_is_plain, inner))


class ReadOnly(dict[str, Any]):
    """A mapping that does not change; it is copied, pickled, hashed and written as a `dict` is."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise SettingsError(
            "settings cannot be changed", fix="use settings.with_overrides(FIELD={NAME: ...})"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = popitem = setdefault = update = _refuse

    def pop(self, name: str, *default: Any) -> Any:
        """Return the default where the name is not there, as programs ask that look for keys of their own."""
        return default[0] if default and name not in self else self._refuse()

    def __hash__(self) -> int:  # type: ignore[override]  # a `dict` has none
        return hash(hashable(self))

    def __copy__(self) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[dict[str, Any]]]:
        return type(self), (dict(self),)


@dataclass(frozen=True, slots=True)
class Table:
    """Marks a field as a table, a read-only mapping: its names and their types are the fields of a model."""

    model: type[BaseModel]

    def checked(self, value: Any) -> ReadOnly:
        """Return the names that are given, in the order of the model, with their values as it has them.

        Raises:
            ValueError: it is no table, or one of its names or values is none of the model's.
        """
        if not (isinstance(value, Mapping) and value.keys() <= self.model.model_fields.keys()):
            raise ValueError("a table has names and values")
        whole = self.model.__new__(self.model)
        fill(whole, value)
        return ReadOnly({name: getattr(whole, name) for name in self.model.model_fields if name in value})

    def converted(self, value: Any) -> Any:
        """Return the table as it is kept; what is none stays as it is."""
        try:
            return self.checked(value)
        except ValueError:
            return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check before pydantic looks at it, and keep it read-only."""
        del source, handler
        rows = core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema())
        checked = core_schema.no_info_before_validator_function(self.checked, rows)
        return core_schema.no_info_after_validator_function(ReadOnly, checked)
