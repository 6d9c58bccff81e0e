"""What a field accepts, read once from its annotation: for text decoding, error texts, flags and docs."""

from __future__ import annotations

import json
import re
import types
import typing
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

import annotated_types as at
from pydantic import StringConstraints
from pydantic.fields import FieldInfo

from ptycho_exec.fields.model import ENV_PREFIX, Effect, ExecutionFields

TRUE_WORDS = frozenset({"1", "true", "yes", "on", "t", "y"})
FALSE_WORDS = frozenset({"0", "false", "no", "off", "f", "n"})
NONE_WORDS = frozenset({"none", "null"})


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of `ExecutionSettings` as the other rooms need it."""

    name: str
    sentence: str
    default: Any
    effect: Effect
    choices: tuple[Any, ...]
    kinds: frozenset[type]
    bounds: tuple[str, ...]

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def optional(self) -> bool:
        return type(None) in self.kinds

    @property
    def boolean(self) -> bool:
        return bool in self.kinds

    def expected(self) -> str:
        """Say in words what the field takes: `a whole number > 0, or none`."""
        words = [format_value(choice) for choice in self.choices]
        parts = [f"one of: {', '.join(words)}"] if len(words) > 2 else [" or ".join(words)] if words else []
        if int in self.kinds:
            parts.append(f"a whole number{self._bound('int')}")
        if float in self.kinds:
            parts.append(
                f"a number with a decimal point{self._bound('float')}"
                if int in self.kinds
                else f"a number{self._bound('float')}"
            )
        if tuple in self.kinds:
            parts.append("a list of different whole numbers >= 0")
        if str in self.kinds:
            parts.append(f"a text{self._bound('str')}")
        return ", or ".join(parts + (["none"] if self.optional else []))

    def _bound(self, kind: str) -> str:
        texts = [bound.partition(" ")[2] for bound in self.bounds if bound.startswith(kind)]
        return f" {' and '.join(texts)}" if texts else ""


@cache
def field_specs() -> dict[str, FieldSpec]:
    """Return the spec of every field, in the order of the class."""
    return {name: _spec(name, info) for name, info in ExecutionFields.model_fields.items()}


def _spec(name: str, info: FieldInfo) -> FieldSpec:
    annotation: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    found = _Walk([], set(), [])
    found.visit(annotation, ())
    effects = [item for item in info.metadata if isinstance(item, Effect)]
    return FieldSpec(
        name=name,
        sentence=" ".join((info.description or "").split()),
        default=info.default,
        effect=effects[0] if effects else Effect.NUMERICS,
        choices=tuple(found.choices),
        kinds=frozenset(found.kinds),
        bounds=tuple(dict.fromkeys(found.bounds)),
    )


@dataclass
class _Walk:
    choices: list[Any]
    kinds: set[type]
    bounds: list[str]

    def visit(self, annotation: Any, constraints: tuple[Any, ...]) -> None:
        origin = typing.get_origin(annotation)
        if origin is Annotated:
            inner, *extra = typing.get_args(annotation)
            self.visit(inner, (*constraints, *extra))
        elif origin in (typing.Union, types.UnionType):
            for part in typing.get_args(annotation):
                self.visit(part, ())
        elif origin is Literal:
            for choice in typing.get_args(annotation):
                self.choices.append(choice)
        elif annotation is bool:
            self.choices += [True, False]
            self.kinds.add(bool)
        else:
            kind = origin or annotation
            self.kinds.add(kind)
            self.bounds += [f"{kind.__name__} {text}" for text in _bound_texts(constraints)]


def _bound_texts(constraints: tuple[Any, ...]) -> typing.Iterator[str]:
    for item in constraints:
        match item:
            case at.Gt(gt=bound):
                yield f"> {bound}"
            case at.Ge(ge=bound):
                yield f">= {bound}"
            case at.Le(le=bound):
                yield f"<= {bound}"
            case at.Interval(ge=low, le=high):
                yield f"from {low} to {high}"
            case StringConstraints(pattern=str(pattern)) if pattern.startswith("^[0-9]{2}"):
                yield "of the form DD:HH:MM:SS, more than zero"
            case StringConstraints(pattern=str()):
                yield "of letters, digits and _./- (a metric name)"
            case _:
                pass


def format_value(value: Any) -> str:
    """Write a value as a file or variable would: `true`, `none`, `0,1`, `0.001`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(format_value(item) for item in value)}]"
    return repr(value) if isinstance(value, float) else str(value)


def decode_text(spec: FieldSpec, text: str) -> Any:
    """Turn the text of a variable or flag into the field's own type; text that fits nothing stays text.

    Validation follows, so this only decides the type: `8` is a number, `none` is None for an optional
    field, `0,1` and `[0, 1]` are lists, and the boolean words of pydantic are understood in any case.
    """
    word = text.strip()
    lower = word.lower()
    if word in spec.choices:
        return word
    if spec.optional and lower in NONE_WORDS:
        return None
    for kind, parse in ((int, _whole), (float, _number), (bool, _truth), (tuple, _numbers)):
        if kind in spec.kinds:
            value = parse(lower)
            if value is not None:
                return value
    return word


def _whole(word: str) -> int | None:
    return int(word) if re.fullmatch(r"[-+]?[0-9]{1,40}", word) else None


def _number(word: str) -> float | None:
    try:
        return float(word) if word.isascii() and "_" not in word else None
    except ValueError:
        return None


def _truth(word: str) -> bool | None:
    return True if word in TRUE_WORDS else False if word in FALSE_WORDS else None


def _numbers(word: str) -> list[int] | None:
    try:
        value = json.loads(word if word.startswith("[") else f"[{word}]")
    except ValueError:
        return None
    return value if isinstance(value, list) and all(type(item) is int for item in value) else None
