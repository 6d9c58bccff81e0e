"""Settings files: found, parsed, with the line of every key and an excerpt for every mistake."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ptycho_exec.errors import Finding
from ptycho_exec.origins import KeyPath, Kind, Origin, json_lines, toml_lines, yaml_lines


@dataclass(frozen=True)
class Document:
    """One parsed file. `table` is the path of the table that holds settings, () for the whole file."""

    kind: Kind
    path: str
    data: Mapping[str, Any]
    text: str
    table: KeyPath = ()
    findings: tuple[Finding, ...] = ()
    shipped: bool = False

    @cached_property
    def lines(self) -> Mapping[KeyPath, int]:
        """The line of every key, found when the first one is asked for."""
        return _line_finder(self.path)(self.text)[0]

    def value_at(self, path: KeyPath) -> Any:
        node: Any = self.data
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        return node

    def table_at(self, path: KeyPath) -> Mapping[str, Any]:
        node = self.value_at(path)
        return node if isinstance(node, Mapping) else {}

    def line(self, path: KeyPath) -> int | None:
        return self.lines.get((*self.table, *path))

    def place(self, path: KeyPath) -> str:
        line = self.line(path)
        return f"{self.path}:{line}" if line else self.path

    def home(self) -> str:
        """Say where settings stand in this file."""
        return (
            f"to [{'.'.join(self.table)}]"
            if self.table
            else "to the top level of the file, above every table"
        )

    def origin(self, path: KeyPath, *, kind: Kind | None = None, place: str | None = None) -> Origin:
        return Origin(
            kind or self.kind,
            place or self.place(path),
            self.value_at(path),
            file=self.path,
            line=self.line(path),
        )

    def finding(self, path: KeyPath, what: str, expected: str, fix: str) -> Finding:
        return Finding(what, self.place(path), expected, fix, file=self.path, line=self.line(path) or 0)


def find_upward(start: Path, name: str, *, containing: str = "") -> Path | None:
    """Return the nearest file of this name from `start` upward, and whose text matches `containing`."""
    for folder in (start, *start.parents):
        path = folder / name
        if path.is_file() and (
            not containing or re.search(containing, path.read_text("utf-8", "replace"), re.M)
        ):
            return path
    return None


def read_document(path: Path, kind: Kind, findings: list[Finding], table: KeyPath = ()) -> Document | None:
    """Parse TOML, YAML or JSON by its extension; one that cannot be parsed adds a finding instead."""
    try:
        text = path.read_text("utf-8")
        data = _parser(path)(text)
    except UnicodeDecodeError:
        findings.append(
            Finding(f"{path} is not UTF-8 text", str(path), "TOML, YAML or JSON", "save it as UTF-8")
        )
        return None
    except OSError as error:
        findings.append(
            Finding(f"cannot read {path}: {error.strerror}", str(path), "a readable file", "check it")
        )
        return None
    except _ParseError as error:
        findings.append(_broken(path, error.cause))
        return None
    extra = tuple(_twice(path, key, line) for key, line in _duplicates(path, text))
    if not isinstance(data, Mapping):
        findings.append(Finding(f"{path} holds no settings", str(path), "a table of names and values", ""))
        return None
    if table:
        extra += tuple(_wrong_table(path, data, text, table))
    for key in table:
        data = data.get(key, {})
        if not isinstance(data, Mapping):
            findings.append(Finding(f"{key} is not a table", str(path), f"[{'.'.join(table)}]", ""))
            return None
    return Document(kind, str(path), data, text, table, extra)


class _ParseError(Exception):
    """One parser's own error, so that callers need not import the parser to catch it."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _ParseError(error) from error


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _ParseError(error) from error


def _yaml(text: str) -> Any:
    import yaml

    try:
        data = yaml.load(text, Loader=_yaml_loader())
        return {} if data is None else data
    except yaml.YAMLError as error:
        raise _ParseError(error) from error


def _parser(path: Path) -> Callable[[str], Any]:
    return {".json": _json, ".yaml": _yaml, ".yml": _yaml}.get(path.suffix.lower(), _toml)


def _line_finder(path: str) -> Callable[[str], tuple[dict[KeyPath, int], list[tuple[KeyPath, int]]]]:
    finders = {".json": json_lines, ".yaml": yaml_lines, ".yml": yaml_lines}
    return finders.get(Path(path).suffix.lower(), lambda text: (toml_lines(text), []))


def _duplicates(path: Path, text: str) -> list[tuple[KeyPath, int]]:
    """Keys that stand twice. TOML forbids them itself; YAML and JSON parsers keep the last without a word."""
    return [] if _parser(path) is _toml else _line_finder(str(path))(text)[1]


@cache
def _yaml_loader() -> Any:
    """A safe loader with YAML 1.2's core types: `1e-3` is a number, `no` is a word, `010` is ten."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {}

    for tag, pattern, first in (
        ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
        ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
        ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
        ("null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))
    Loader.yaml_implicit_resolvers.setdefault("", []).append(("tag:yaml.org,2002:null", re.compile("^$")))
    Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(str(node.value)))
    Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(str(node.value)))
    return Loader


def _broken(path: Path, error: Exception) -> Finding:
    line, column, problem = _position(error)
    rows = path.read_text("utf-8", "replace").splitlines()
    excerpt = f"{rows[line - 1]}\n{' ' * (column - 1)}^" if 0 < line <= len(rows) else ""
    where = f"{path}:{line}" if line else str(path)
    kind = {".json": "JSON", ".yaml": "YAML", ".yml": "YAML"}.get(path.suffix.lower(), "TOML")
    return Finding(
        f"{path.name} is not valid {kind}: {problem}",
        where=where,
        expected=f"valid {kind}",
        fix="correct the marked place",
        excerpt=excerpt,
        file=str(path),
        line=line,
    )


def _position(error: Exception) -> tuple[int, int, str]:
    if isinstance(error, json.JSONDecodeError):
        return error.lineno, error.colno, error.msg
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return mark.line + 1, mark.column + 1, str(getattr(error, "problem", error))
    text = str(error)
    match = re.search(r"\(at line (\d+), column (\d+)\)", text)
    problem = text[: match.start()].strip() if match else text.partition(" (at end")[0]
    return (int(match[1]), int(match[2]), problem) if match else (0, 0, f"{problem} at the end of the file")


def _twice(path: Path, key: KeyPath, line: int) -> Finding:
    return Finding(
        f"{'.'.join(key)} stands in the file twice",
        where=f"{path}:{line}",
        expected="every name once",
        fix="remove one of the two",
        file=str(path),
        line=line,
    )


def _wrong_table(path: Path, data: Mapping[str, Any], text: str, table: KeyPath) -> list[Finding]:
    """Report tables that look like ours but are not: `[tool.ptycho-exec]`, `[ptycho_exec]`."""
    from ptycho_exec.names import distance

    tools = data.get("tool", {})
    near = [("tool", key) for key in tools if isinstance(tools, Mapping)] + [(key,) for key in data]
    found = [
        key for key in near if key != table and distance(key[-1].lower().replace("-", "_"), table[-1]) <= 2
    ]
    lines = toml_lines(text) if found else {}
    return [
        Finding(
            f"table [{'.'.join(key)}] is not read",
            where=f"{path}:{lines.get(key, 1)}",
            expected=f"[{'.'.join(table)}]",
            fix=f"rename the table to [{'.'.join(table)}]",
            file=str(path),
            line=lines.get(key, 1),
        )
        for key in found
    ]


def read_dotenv(path: Path, findings: list[Finding]) -> list[tuple[str, str, int]]:
    """Return the assignments of a `.env` file as (name, text, line), with `${NAME}` filled in."""
    from dotenv.main import resolve_variables
    from dotenv.parser import parse_stream

    try:
        with path.open(encoding="utf-8") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        findings.append(
            Finding(f"cannot read {path}: {error}", str(path), "a UTF-8 text file", "correct or remove it")
        )
        return []
    rows: list[tuple[str, str | None, int]] = []
    for binding in bindings:
        line = binding.original.line + _blank_rows(binding.original.string)
        if binding.error:
            findings.append(_malformed(path, line, binding.original.string))
        elif binding.key is not None:
            rows.append((binding.key, binding.value, line))
            if binding.value is None and binding.key.upper().startswith("PTYCHO_EXEC"):
                findings.append(_malformed(path, line, binding.original.string))
    filled = resolve_variables(((name, text) for name, text, _ in rows), override=False)
    return [
        (name, filled.get(name) or "" if "$" in (text or "") else text or "", line)
        for name, text, line in rows
    ]


def _blank_rows(text: str) -> int:
    """python-dotenv counts leading blank rows as part of the binding that follows them."""
    return len(text[: len(text) - len(text.lstrip())].splitlines()) if text[:1] in "\r\n" else 0


def _malformed(path: Path, line: int, text: str) -> Finding:
    return Finding(
        "this line of .env is no assignment",
        where=f"{path}:{line}",
        expected="NAME=value",
        fix="correct or remove the line",
        excerpt=text.strip().partition("=")[0],
        file=str(path),
        line=line,
    )
