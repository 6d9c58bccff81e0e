"""Where a value came from: its kind, its place, its text, and what it shadowed. And the line finders.

The engine in `sources` resolves once and passes these records to values, errors, `show`, `explain`,
the manifest and the docs, so that none of them derives a source again.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from types import FrameType, MappingProxyType
from typing import Any

from pydantic import BaseModel

from ptycho_exec.errors import Finding, redact
from ptycho_exec.fields.spec import HIDDEN, as_data


class Kind(StrEnum):
    """The kinds of place a value can come from, highest precedence first."""

    ARGUMENT = "argument"
    OVERRIDE = "override"
    FLAG = "flag"
    CONTEXT = "context"
    RECORDED = "recorded"
    ENVIRONMENT = "environment"
    DOTENV = "dotenv"
    SETTINGS_FILE = "settings-file"
    PROJECT_FILE = "project-file"
    PYPROJECT = "pyproject"
    USER_FILE = "user-file"
    SECRET = "secret-file"
    PROFILE = "profile"
    FACTORY = "factory"
    DEFAULT = "default"
    OTHER = "source"
    """A source that a subclass added; its place in the order is where the subclass put it."""


@dataclass(frozen=True, slots=True)
class Origin:
    """One place that supplied a value: `value` as given, `raw` as a string where the place holds text."""

    kind: Kind
    place: str
    value: Any = None
    raw: str | None = None
    file: str | None = None
    line: int | None = None
    reason: str = ""
    shadowed: tuple[Origin, ...] = ()
    parts: tuple[tuple[str, Origin], ...] = ()
    """Of a table, each name with the place that supplied its value."""
    changed: bool = False
    """Whether a validator made the value, out of the first one that it shadows, if any."""

    def describe(self) -> str:
        """Return the place in words: `environment PTYCHO_EXEC_BATCH_SIZE`, `ci.toml:3`."""
        where = f"{self.file}:{self.line}" if self.file and self.line else self.file or ""
        name = "" if self.place.startswith(self.kind.value) else self.kind.value
        parts = [name, self.place if self.place != where else "", f"({where})" if where else ""]
        text = " ".join(part for part in parts if part)
        return f"{text}, {self.reason}" if self.reason else text

    @property
    def given(self) -> Origin | None:
        """The origin of what was given, before validators changed it; none where they added the value."""
        if not self.changed:
            return self
        return self.shadowed[0] if self.shadowed else None

    @property
    def is_default(self) -> bool:
        """Whether the value is the class's own default, as it is written there."""
        return self.kind is Kind.DEFAULT and not self.reason

    def shadowing(self, others: Sequence[Origin]) -> Origin:
        """Return this origin with `others`, highest first, recorded as shadowed.

        A table is merged with those it shadows, name by name; a default is replaced whole.
        """
        flat = tuple(replace(other, shadowed=()) if other.shadowed else other for other in others)
        if not isinstance(self.value, Mapping):
            return replace(self, shadowed=flat)
        below = (o for o in others if isinstance(o.value, Mapping) and o.kind is not Kind.DEFAULT)
        parts: dict[str, Origin] = {}
        for table in reversed((self, *below)):
            parts |= {name: table.part(name) for name in table.value}
        merged = {name: part.value for name, part in parts.items()}
        return replace(self, value=merged, shadowed=flat, parts=tuple(parts.items()))

    @property
    def shown(self) -> Any:
        """The value, or `***` where its field hides it."""
        return HIDDEN if self.raw == HIDDEN else self.value

    def part(self, name: str) -> Origin:
        """Return the origin of one value of a table."""
        known = dict(self.parts)
        return known.get(name) or replace(self, value=self.value[name], raw=None, shadowed=(), parts=())

    def __repr__(self) -> str:
        """Show all of it but credentials."""
        return f"Origin({self.describe()}: {redact(repr(self.shown))}, shadowed={list(self.shadowed)})"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data with credentials hidden."""
        place = {"kind": self.kind.value, "place": self.place, "file": self.file, "line": self.line}
        parts = {redact(str(name)): part.to_json() for name, part in self.parts}
        more: dict[str, Any] = {"reason": self.reason} if self.reason else {}
        if self.changed and self.given and self.raw != HIDDEN:
            more["given"] = redact(as_data(self.given.value))
        return {**place, "raw": redact(self.raw), **more, **({"parts": parts} if parts else {})}


_PASSED_THROUGH = frozenset(
    {
        *("ptycho_exec", "pydantic", "pydantic_settings", "hydra", "jsonargparse", "tyro"),
        *("contextlib", "functools"),
    }
)


def passes_on(frame: FrameType) -> bool:
    """Return whether code belongs to a package whose calls are made for somebody else.

    One that builds on this one says so with `__passes_settings_on__ = True` in its `__init__.py`.
    """
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    module = sys.modules.get(package)
    return package in _PASSED_THROUGH or bool(module and vars(module).get("__passes_settings_on__"))


def caller() -> tuple[str, int]:
    """Return file and line of the code that called into these packages; only file and line are looked at.

    A cell of a notebook goes by its number, `Cell In[3]`.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and passes_on(frame):
        frame = frame.f_back
    if frame is None:
        return "", 0
    file = _cell(frame.f_code.co_filename) or frame.f_code.co_filename
    return ("", 0) if file.startswith("<") else (file, frame.f_lineno)  # typed in, not in a file


def _cell(file: str) -> str:
    """Return what IPython calls the cell whose code it compiled under the name of this file, if it did."""
    ipython = sys.modules.get("IPython")
    compiler = getattr(ipython and ipython.get_ipython(), "compile", None)
    name_of = getattr(compiler, "format_code_name", None)  # IPython 7 has none
    return " ".join((name_of and name_of(file)) or ())


@dataclass(frozen=True, slots=True)
class SearchedFile:
    """A file that was looked for, and whether it was there; `explain` lists them all."""

    kind: Kind
    path: str
    found: bool


@dataclass(frozen=True, slots=True)
class Resolution:
    """The result of one resolution: values that somebody set, an origin for every field, and findings."""

    model: type[BaseModel]
    values: Mapping[str, Any]
    origins: Mapping[str, Origin]
    searched: tuple[SearchedFile, ...] = ()
    findings: tuple[Finding, ...] = ()
    """What is wrong (of level error), and what is only worth knowing (of level note)."""
    inactive: tuple[tuple[str, Origin], ...] = ()
    """Values that do not act now, shadowed or in another profile; they are checked like the others."""
    profile: str | None = None
    profile_asked_by: str = ""

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "error")

    @property
    def notices(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "note")

    def __repr__(self) -> str:
        """Name the fields that somebody set; values stay out, for they may hold credentials."""
        return f"Resolution({', '.join(self.values)}, {len(self.errors)} findings)"


@dataclass
class Layer:
    """What one source supplied: an origin (with its value) for each field, and what was noticed in it."""

    entries: dict[str, Origin] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    inactive: list[tuple[str, Origin]] = field(default_factory=list)


# --- line finders: path of keys -> 1-based line -------------------------------------------------------------

KeyPath = tuple[str, ...]


# Most rows are a header or an assignment of one line with a plain name; they need no parser.
_PLAIN_HEADER = r"[ \t]*\[([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\][ \t]*(?:#.*)?\r?"
_PLAIN_VALUE = r"""(?:"[^"\\]*"|'[^']*'|[^\s"'\[{#][^"'\[{#]*)"""
_PLAIN_ROW = rf"[ \t]*([A-Za-z0-9_-]+)[ \t]*=[ \t]*{_PLAIN_VALUE}[ \t]*(?:#.*)?\r?"
_EMPTY_ROW = r"[ \t]*(?:#.*)?\r?"


@lru_cache(maxsize=16)
def toml_lines(text: str) -> Mapping[KeyPath, int]:
    """Return the line on which each key of a valid TOML document starts, tables included.

    Where a row is not plain, a chunk grows line by line until `tomllib` accepts it, so strings and arrays
    over several lines, dotted keys and inline tables are exactly as TOML defines them.
    """
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    chunk, start = "", 0
    for number, row in enumerate(text.split("\n"), 1):
        statement = None if chunk else _plain_statement(row)
        if statement is None:
            chunk, start = (f"{chunk}\n{row}", start) if chunk else (row, number)
            statement = _parsed_statement(chunk)
            if statement is None:
                continue
        header, paths = statement
        table = paths[0] if header else table
        for path in paths:
            whole = path if header else table + path
            for depth in range(1 if header else len(table) + 1, len(whole) + 1):
                found.setdefault(whole[:depth], start if chunk else number)
        chunk = ""
    return MappingProxyType(found)


_Statement = tuple[bool, tuple[KeyPath, ...]]
"""Whether it is a table's header, and the table's path, or those of the keys that it assigns."""


def _plain_statement(row: str) -> _Statement | None:
    if match := re.fullmatch(_PLAIN_ROW, row):
        return False, ((match[1],),)
    if match := re.fullmatch(_PLAIN_HEADER, row):
        return True, (tuple(match[1].split(".")),)
    return (False, ()) if re.fullmatch(_EMPTY_ROW, row) else None


def _parsed_statement(chunk: str) -> _Statement | None:
    """Return the statement that a chunk holds, None while it is incomplete."""
    try:
        parsed = tomllib.loads(chunk)
    except tomllib.TOMLDecodeError:
        return None
    if not (parsed and chunk.lstrip().startswith("[")):
        return False, tuple(_leaf_paths(parsed))
    path: KeyPath = ()
    node: Any = parsed
    while node := node[0] if isinstance(node, list) else node:  # a header of `[[tables]]` makes a list
        key = next(iter(node))
        path, node = (*path, key), node[key]
    return True, (path,)


def _leaf_paths(node: Mapping[str, Any], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaf_paths(value, (*prefix, key))
        else:
            yield (*prefix, key)


def yaml_lines(text: str) -> Iterator[tuple[KeyPath, int]]:
    """Yield each key of a YAML document with its line; one that is defined twice comes twice."""
    import yaml

    seen: set[int] = set()  # an alias can lead back to a node above it
    pending: list[tuple[Any, KeyPath]] = [(yaml.compose(text, Loader=yaml.SafeLoader), ())]
    while pending:
        node, prefix = pending.pop()
        if isinstance(node, yaml.MappingNode) and id(node) not in seen:
            seen.add(id(node))
            inner: list[tuple[Any, KeyPath]] = []
            for key, value in node.value:
                path = (*prefix, str(key.value))
                yield path, text.count("\n", 0, key.start_mark.index) + 1
                inner.append((value, path))
            pending += reversed(inner)


_JSON_TOKEN = r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+|\n'


def json_lines(text: str) -> Iterator[tuple[KeyPath, int]]:
    """Yield each key of a valid JSON document with its line; one that is defined twice comes twice."""
    import json

    stack: list[str | None] = []  # the key of each open object, None for an array
    last, number = ("", 1), 1  # the last token and its line, which may not be the colon's
    for match in re.finditer(_JSON_TOKEN, text):
        token = match.group()
        if token == "\n":
            number += 1
        elif token == ":" and stack:
            stack[-1] = json.loads(last[0])
            yield tuple(key for key in stack if key is not None), last[1]
        elif token in "{[":
            stack.append(None)
        elif token in "}]":
            stack.pop()
        last = (token, number) if token != "\n" else last
