"""What a field accepts, read once from its annotation: for text decoding, error texts, flags and docs."""

from __future__ import annotations

import json
import re
import reprlib
import shlex
import typing
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from enum import Enum
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic_core import to_jsonable_python
from pydantic_settings import ForceDecode, NoDecode

from ptycho_exec.fields.base import NONE_WORDS, Table, branches, kind_of, own_validators
from ptycho_exec.fields.model import MOST, Effect, ExecutionFields, malformed, refused

HIDDEN = "***"
TRUE_WORDS = frozenset({"1", "true", "yes", "on", "t", "y"})
FALSE_WORDS = frozenset({"0", "false", "no", "off", "f", "n"})


class Renamed(NamedTuple):
    """The new name of a field, and the version from which on its old name is refused."""

    new: str
    refused_from: str


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of a model; `words` describes what it takes beside its choices."""

    model: type[BaseModel]
    name: str
    sentence: str
    default: Any
    required: bool
    effect: Effect
    choices: tuple[Any, ...]
    kinds: frozenset[type]
    words: tuple[str, ...]
    field: str = ""
    """The field itself, where `name` is the one that it had before."""
    table: type[BaseModel] | None = None
    """What a table holds: a model whose fields are its names."""
    within: FieldSpec | None = None
    """The field whose table has this name."""
    verbatim: bool = False
    """Whether validators of the class are given texts as they are, as `NoDecode` says."""
    reads_texts: bool = False
    """Whether validators of the class see a value before its type is checked."""

    @property
    def full_name(self) -> str:
        """The name, after that of its table: `trainer.min_epochs`."""
        return f"{self.within.name}.{self.name}" if self.within else self.name

    @property
    def ways(self) -> str:
        """Return in words how it is set."""
        if self.within:
            return f"{self.variable}, {self.flag}=..., or {self.name} = ... in [{self.within.name}] of a file"
        return f"{self.variable}, {self.flag}, or {self.name} = ... in a file"

    @property
    def variable(self) -> str:
        if self.within:
            return f"{self.within.variable}__{self.name.upper()}"
        return f"{self.model.model_config.get('env_prefix', '')}{self.name}".upper()

    @property
    def flag(self) -> str:
        if self.within:
            return f"{self.within.flag} {self.name}"
        return "--" + self.name.lower().replace("_", "-")

    @property
    def optional(self) -> bool:
        return type(None) in self.kinds

    @property
    def boolean(self) -> bool:
        return bool in self.kinds

    @property
    def tabled(self) -> bool:
        """Whether it takes tables."""
        return not self.kinds.isdisjoint(_TABLES)

    @property
    def listed(self) -> bool:
        """Whether it takes nothing but lists."""
        return self.kinds - {type(None)} <= set(_LISTS) and not self.choices

    @property
    def secret(self) -> bool:
        """Whether its values are of a type of pydantic's that hides them."""
        return not self.kinds.isdisjoint((SecretStr, SecretBytes))

    @property
    def hidden(self) -> bool:
        """Whether its values are shown as `***`: those of a secret type, or of `Field(repr=False)`."""
        return self.secret or not self.model.model_fields[self.field or self.name].repr

    @property
    def excluded(self) -> bool:
        """Whether its values are written nowhere: those of `Field(exclude=True)`."""
        return bool(self.model.model_fields[self.field or self.name].exclude)

    def accepts(self, value: Any) -> bool:
        """Return whether the field takes `value`, looked at by itself."""
        return not malformed({self.field or self.name: value}, self.model)

    def expected(self) -> str:
        """Return in words what the field takes: `an integer > 0, or none`."""
        words = [format_value(choice) for choice in self.choices]
        parts = [f"one of: {', '.join(words)}"] if len(words) > 2 else [" or ".join(words)] if words else []
        return ", or ".join([*parts, *self.words, *(["none"] if self.optional else [])])


def table_specs(spec: FieldSpec) -> Mapping[str, FieldSpec]:
    """Return the spec of every name that the table of a field may hold; none where it is no table."""
    rows = field_specs(spec.table) if spec.table else {}
    return {name: replace(row, within=spec) for name, row in rows.items()}


_LISTS = (tuple, list, set, frozenset, Sequence, AbstractSet)
_TABLES = (dict, Mapping)
_SPECS: dict[type[BaseModel], dict[str, FieldSpec]] = {}


def field_specs(model: type[BaseModel] = ExecutionFields) -> Mapping[str, FieldSpec]:
    """Return the spec of every field of `model`, in the order of the class."""
    if model not in _SPECS:
        _SPECS[model] = {name: _spec(model, name) for name in model.model_fields}
    return _SPECS[model]


def renamed_fields(model: type[BaseModel]) -> Mapping[str, Renamed]:
    """Return the table of a settings class: old name -> new name."""
    table: Mapping[str, Renamed] = getattr(model, "renamed", {})
    return table


def is_refused(row: Renamed, model: type[BaseModel]) -> bool:
    """Return whether this version of the program refuses the old name."""
    return _numbers(getattr(model, "version", "")) >= _numbers(row.refused_from)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


_WITH_OLD_NAMES: dict[type[BaseModel], dict[str, FieldSpec]] = {}


def source_specs(model: type[BaseModel]) -> Mapping[str, FieldSpec]:
    """Return the spec of every name that a source may use: those of the fields, and those they had before."""
    if model not in _WITH_OLD_NAMES:
        specs, table = field_specs(model), renamed_fields(model)
        old = {name: replace(specs[row.new], name=name, field=row.new) for name, row in table.items()}
        _WITH_OLD_NAMES[model] = {**specs, **old}
    return _WITH_OLD_NAMES[model]


def _spec(model: type[BaseModel], name: str) -> FieldSpec:
    info = model.model_fields[name]
    parts = list(branches(info.annotation, tuple(info.metadata)))
    kinds = {kind_of(kind) for kind, _ in parts} - {Literal}
    nouns: dict[Any, str] = {
        int: "an integer",
        float: "a number with a decimal point" if int in kinds else "a number",
        **dict.fromkeys(_LISTS, "a list"),
        str: "a string",
        **dict.fromkeys(_TABLES, "a table"),
        timedelta: "a duration (HH:MM:SS, or PT90S as in ISO 8601)",
        datetime: "a date and time (YYYY-MM-DDTHH:MM:SS)",
        date: "a date (YYYY-MM-DD)",
        time: "a time (HH:MM:SS)",
    }
    choices: list[Any] = []
    words = []
    for kind, constraints in parts:
        origin = kind_of(kind)
        if origin is Literal:
            choices += typing.get_args(kind)
        elif origin is bool:
            choices += [True, False]
        elif isinstance(origin, type) and issubclass(origin, Enum):
            choices += [member.value for member in origin]
        elif origin is not type(None):
            noun = nouns.get(origin, f"a {getattr(origin, '__name__', origin)}")
            words.append(" ".join([noun, *_limits(constraints)]))
    return FieldSpec(
        model=model,
        name=name,
        sentence=" ".join((info.description or "").split()),
        default=None
        if info.is_required()
        else info.get_default(call_default_factory=True, validated_data={}),
        required=info.is_required(),
        effect=next((item for item in info.metadata if isinstance(item, Effect)), Effect.NUMERICS),
        choices=tuple(choices),
        kinds=frozenset(kinds),
        words=tuple(words),
        table=next((item.model for item in info.metadata if isinstance(item, Table)), None),
        verbatim=not kinds.isdisjoint((*_LISTS, *_TABLES)) and _has_no_decode(model, info.metadata),
        reads_texts=any(
            validator.mode != "after" and not validator.of_all for validator in own_validators(model, name)
        ),
    )


def _has_no_decode(model: type[BaseModel], metadata: Sequence[Any]) -> bool:
    """Return whether a class makes pydantic-settings leave the texts for a list or table as they are."""
    decoding = model.model_config.get("enable_decoding", True)
    return NoDecode in metadata or (decoding is False and ForceDecode not in metadata)


def _limits(constraints: tuple[Any, ...]) -> Iterator[str]:
    """Yield in words what the constraints say: a description that is a plain string, limits of a number."""
    yield from (item for item in constraints if type(item) is str)
    pairs = [(sign, getattr(item, sign, None)) for item in constraints for sign in ("ge", "gt", "le", "lt")]
    limit = {sign: bound for sign, bound in pairs if bound is not None}
    parts = [f"> {limit['gt']}"] if "gt" in limit else []
    if "ge" in limit:
        open_ended = limit.get("le", MOST) == MOST
        parts.append(f"at least {limit['ge']}" if open_ended else f"from {limit['ge']} to {limit['le']}")
    elif "le" in limit:
        parts.append(f"<= {limit['le']}")
    parts += [f"< {limit['lt']}"] if "lt" in limit else []
    if parts:
        yield " and ".join(parts)


def plain(value: Any) -> Any:
    """Return a value as a file would hold it: of a member its value, of a set a list, of a date its text."""
    if type(value) in (int, float, str, bool, tuple, list, dict, type(None)):
        return value
    if isinstance(value, (SecretStr, SecretBytes)):
        return HIDDEN
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=str)
    return to_jsonable_python(value, fallback=str)


def as_data(value: Any) -> Any:
    """Return JSON data that a field can be made of again; what a secret type holds is hidden."""
    if isinstance(value, Mapping):
        return {str(plain(key)): as_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_data(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(as_data, value), key=str)
    return plain(value)


def format_value(value: Any) -> str:
    """Write a value as a file or variable would: `true`, `none`, `0,1`, `0.001`."""
    value = plain(value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        flat = not any(isinstance(item, (tuple, list, dict)) for item in value)
        return f"[{', '.join(map(format_value, value))}]" if flat else _SHORT.repr(value)
    if isinstance(value, dict):
        flat = bool(value) and all(_is_plain_row(name, item) for name, item in value.items())
        rows = (f"{name}={format_value(item)}" for name, item in value.items())
        return f"{{{', '.join(rows)}}}" if flat else _SHORT.repr(value)
    return repr(value) if isinstance(value, float) else str(value)


def as_flags(options: Mapping[str, Any]) -> str:
    """Write values of settings, by the names of their fields, as flags of a command line."""
    words = (
        (f"--{name.replace('_', '-')}", shlex.quote(format_value(value))) for name, value in options.items()
    )
    return " ".join(f"{flag} {value}" for flag, value in words)


def _is_plain_row(name: Any, value: Any) -> bool:
    """Return whether a row of a table can be written as `name=value`, without quotes."""
    nested = isinstance(value, (tuple, list, dict))
    return str(name).isidentifier() and not nested and str(value).isprintable()


_SHORT = reprlib.Repr()  # values in values may repeat without end
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = 10_000  # credentials are recognised in whole texts only


def decode_text(spec: FieldSpec, text: str) -> Any:
    """Turn the text of a variable or flag into the field's own type; text that fits nothing stays a string.

    Validation follows, so this only decides the type: `8` is a number, `none` is None for an optional
    field, `0,1` and `[0, 1]` are lists, and the boolean words of pydantic are understood in any case.
    A text that validators of the class make something of is left to them.
    """
    word = text.strip()
    lower = word.lower()
    listed, tabled = spec.kinds.intersection(_LISTS), spec.kinds.intersection(_TABLES)
    if spec.verbatim:
        return text
    if spec.reads_texts and not (spec.optional and lower in NONE_WORDS):
        as_json = (listed or tabled) and word.startswith(("[", "{"))
        if not as_json and _is_for_validators(spec, text):
            return text
    chosen = next((choice for choice in spec.choices if format_value(choice) == word), None)
    if chosen is not None:
        return chosen
    if spec.optional and lower in NONE_WORDS:
        return None
    number = _number(lower)
    if int in spec.kinds and isinstance(number, int):
        return number
    if float in spec.kinds and number is not None:
        return float(number)
    if bool in spec.kinds and lower in TRUE_WORDS | FALSE_WORDS:
        return lower in TRUE_WORDS
    if listed and ("," in lower or lower.startswith("[")):
        return _decode_list(spec, word)
    if tabled and word.startswith("{"):
        with suppress(ValueError, RecursionError):
            return json.loads(word, object_pairs_hook=unique_names)
    return _decode_table(spec, word) if spec.table and "=" in word else word


def _is_for_validators(spec: FieldSpec, text: str) -> bool:
    """Return whether validators of the class take a text, or refuse it in their own words."""
    name = spec.field or spec.name
    types = refused({name: text}, spec.model).get(name, [])
    return not types or "value_error" in types or "assertion_error" in types


def decode_texts(spec: FieldSpec, value: Any) -> Any:
    """Turn a text, or the texts in a table, into the field's own types; other values stay as they are."""
    if isinstance(value, str):
        return decode_text(spec, value)
    if spec.table is None or not isinstance(value, Mapping):
        return value
    rows = table_specs(spec)
    return {name: decode_texts(rows[name], item) if name in rows else item for name, item in value.items()}


def unique_names(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ValueError: it has a name twice.
    """
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is defined twice")
    return dict(pairs)


def _pairs(word: str) -> list[tuple[str, str]]:
    inner = word[1:-1] if word.startswith("{") and word.endswith("}") else word
    parts = (part.partition("=") for part in inner.split(","))
    return [(name.strip(), text.strip()) for name, _, text in parts]


def why_no_table(text: str) -> str:
    """Return which name a text for a table has twice, in words; empty where there is none."""
    try:
        try:
            json.loads(text, object_pairs_hook=unique_names)
        except json.JSONDecodeError:
            unique_names(_pairs(text.strip()) if "=" in text else ())
    except ValueError as error:
        return str(error)
    return ""


def _decode_table(spec: FieldSpec, word: str) -> Any:
    """Read `min_epochs=3,barebones=true`, also in braces, each text typed by its name."""
    try:
        texts = unique_names(_pairs(word))
    except ValueError:
        return word
    rows = table_specs(spec)
    return {name: decode_text(rows[name], text) if name in rows else text for name, text in texts.items()}


def _decode_list(spec: FieldSpec, word: str) -> Any:
    with suppress(ValueError, RecursionError):
        items = json.loads(word, object_pairs_hook=unique_names)
        if isinstance(items, list) and spec.accepts(items):
            return items
    parts = _elements(word)
    if parts is None or spec.accepts(parts):
        return word if parts is None else parts
    numbers = [_number(part.lower()) for part in parts]
    if None not in numbers:
        return numbers
    return word if spec.accepts(word) else parts


_ELEMENT = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^\s,"'\[({][^,]*?))\s*(,|$)""")


def _elements(word: str) -> list[str] | None:
    """Return the elements of `a,b` or `[a, b]`, each maybe in quotes; None where it is no whole list."""
    if word.startswith("[") and word.endswith("]"):
        word = word[1:-1]
    parts, at, comma = list[str](), 0, ","
    while comma:
        match = _ELEMENT.match(word, at)
        if match is None:
            return None
        double, single, bare, comma = match.groups()
        part = next(text for text in (double, single, bare) if text is not None)
        if bare and bare.count("[") != bare.count("]"):
            return None
        parts.append(part)
        at = match.end()
    return parts


def _number(word: str) -> int | float | None:
    if re.fullmatch(r"[-+]?[0-9]{1,40}", word):
        return int(word)
    try:
        return float(word) if word.isascii() and "_" not in word else None
    except ValueError:
        return None
