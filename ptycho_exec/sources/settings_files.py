"""Settings files: found, parsed, with the line of every key and an excerpt for every mistake."""

from __future__ import annotations

import io
import json
import re
import tomllib
from collections import ChainMap
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ptycho_exec.errors import Finding, redact
from ptycho_exec.sources.origins import KeyPath, Kind, Origin, json_lines, toml_lines, yaml_lines


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
        lines = _KEY_LINES.get(syntax(self.path))
        return dict(reversed(list(lines(self.text)))) if lines else toml_lines(self.text)

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
        """Return in words which part of this file holds settings."""
        return f"in [{'.'.join(self.table)}]" if self.table else "at the top of the file, before every table"

    def origin(self, path: KeyPath, *, kind: Kind | None = None, place: str | None = None) -> Origin:
        value = self.value_at(path)
        return Origin(
            kind or self.kind,
            place or self.place(path),
            list(value) if isinstance(value, list) else value,  # the parsed document is kept and read again
            file=self.path,
            line=self.line(path),
        )

    def finding(self, path: KeyPath, what: str, expected: str, fix: str, code: str = "bad-value") -> Finding:
        line = self.line(path) or 0
        return Finding(what, self.place(path), expected, fix, file=self.path, line=line, code=code)


def is_file(path: Path) -> bool:
    """Return whether `path` is a file; one in a folder that may not be searched counts as absent."""
    try:
        return path.is_file()
    except OSError:
        return False


def find_upward(start: Path, name: str, accept: Callable[[Path], bool] = lambda _: True) -> Path | None:
    """Return the nearest file of this name from `start` upward that `accept` takes."""
    paths = (folder / name for folder in (start, *start.parents))
    return next((path for path in paths if is_file(path) and accept(path)), None)


def read_document(path: Path, kind: Kind, findings: list[Finding], table: KeyPath = ()) -> Document | None:
    """Parse TOML, YAML or JSON by its extension; one that cannot be parsed adds a finding instead."""
    text = _read_text(path, findings)
    if text is None:
        return None
    try:
        data = _PARSERS[syntax(path)](text)
    except (ValueError, RecursionError) as error:
        findings.append(_broken(path, text, error))
        return None
    inner, header = _inner(data, table), ".".join(table)
    if not isinstance(inner, Mapping):
        what, expected, fix = f"{header} is not a table", f"[{header}]", "write it as a table"
        if data is inner:
            what, expected = f"{path.name} holds no settings", "a table of settings"
            fix = "write one name and value per line"
        findings.append(Finding(what, str(path), expected, fix, file=str(path), code="broken-file"))
        return None
    extra: list[Finding] = []
    first: dict[KeyPath, int] = {}
    # TOML forbids duplicates itself; the other parsers keep the last one.
    for key, line in _KEY_LINES[syntax(path)](text) if syntax(path) in _KEY_LINES else ():
        if key in first:
            extra.append(duplicate_key(".".join(key), str(path), line, first[key]))
        first.setdefault(key, line)
    for key in near_tables(data, table) if table else ():
        what, line = f"table [{'.'.join(key)}] is not read", toml_lines(text).get(key, 1)
        fix, where = f"rename the table to [{header}]", f"{path}:{line}"
        extra.append(Finding(what, where, f"[{header}]", fix, file=str(path), line=line, code="wrong-table"))
    return Document(kind, str(path), inner, text, table, tuple(extra))


def _inner(data: Any, table: KeyPath) -> Any:
    node = data
    for key in table:
        if not isinstance(node, Mapping):
            return node
        node = node.get(key, {})
    return node


def _read_text(path: Path, findings: list[Finding]) -> str | None:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        what, expected, fix = f"{path.name} is not UTF-8 text", "UTF-8 text", "save it as UTF-8"
    except OSError as error:
        what, expected = f"cannot read {path.name}: {error.strerror}", "a readable file"
        fix = "make it readable, or remove it"
    findings.append(Finding(what, str(path), expected, fix, file=str(path), code="unreadable-file"))
    return None


def duplicate_key(name: str, file: str, line: int, first: int | None = None) -> Finding:
    """Return the finding about a name that a file defines again, after line `first` if that is known."""
    expected = f"every name once; the other is in line {first}" if first else "every name once"
    what, where, fix = f"{name} is defined twice", f"{file}:{line}", "remove one of the two"
    return Finding(what, where, expected, fix, file=file, line=line, code="duplicate-key")


Syntax = Literal["TOML", "YAML", "JSON"]


def syntax(path: str | Path) -> Syntax:
    """Return the language of a file by its extension; what is neither YAML nor JSON is TOML."""
    known: dict[str, Syntax] = {".json": "JSON", ".yaml": "YAML", ".yml": "YAML"}
    return known.get(Path(path).suffix.lower(), "TOML")


def assignment(file: str | None, name: str, value: str) -> str:
    """Write a setting as `file` has it: `seed = 1` in TOML, `seed: 1` in YAML, `"seed": 1` in JSON."""
    forms = {"TOML": f"{name} = {value}", "YAML": f"{name}: {value}", "JSON": f'"{name}": {value}'}
    return forms[syntax(file)] if file else f"{name}={value}"


_parsed_toml = lru_cache(maxsize=8)(tomllib.loads)
"""Documents are only read, so the same text need not be parsed for each resolution."""


def _yaml(text: str) -> Any:
    import yaml

    try:
        data = yaml.load(text, Loader=_yaml_loader())
    except yaml.YAMLError as error:
        raise ValueError(error) from error
    return {} if data is None else data


_PARSERS: dict[Syntax, Callable[[str], Any]] = {"TOML": _parsed_toml, "YAML": _yaml, "JSON": json.loads}


_KEY_LINES = {
    "YAML": yaml_lines,
    "JSON": json_lines,
}


@cache
def _yaml_loader() -> Any:
    """A safe loader with YAML 1.2's core types: `1e-3` is a number, `no` is a word, `010` is ten."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            """Take names as the string that is written, never as a number, a boolean or null."""
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    problem = "a name must be a string"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}

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


_SECRET = re.compile(r"(?i)((?:token|secret|passw|key|credential)\w*[\"']?\s*[:=]\s*)\S.*")


def _broken(path: Path, text: str, error: Exception) -> Finding:
    line, column, problem = _position(error, text)
    rows = text.split("\n")
    marked = 0 < line <= len(rows)
    shown = _SECRET.sub(r"\1***", redact(rows[line - 1])) if marked else ""
    return Finding(
        f"{path.name} is not valid {syntax(path)}: {problem}",
        where=f"{path}:{line}" if marked else str(path),
        expected=f"valid {syntax(path)}",
        fix="correct the marked place" if marked else "correct the file",
        excerpt=f"{shown}\n{' ' * min(column - 1, len(shown))}^" if marked else "",
        file=str(path),
        line=line if marked else 0,
        code="broken-file",
    )


def _position(error: Exception, text: str) -> tuple[int, int, str]:
    if isinstance(error, RecursionError):
        return 0, 0, "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return error.lineno, error.colno, error.msg
    cause = error.__cause__
    mark = getattr(cause, "problem_mark", None)
    if mark is not None:
        before = text[: mark.index]
        return before.count("\n") + 1, len(before) - before.rfind("\n"), str(getattr(cause, "problem", cause))
    message = str(error)
    match = re.search(r"\(at line (\d+), column (\d+)\)", message)
    if match:
        return int(match[1]), int(match[2]), message[: match.start()].strip()
    if message.endswith("(at end of document)"):
        rows = text.rstrip("\n").split("\n")
        return len(rows), len(rows[-1]) + 1, message.removesuffix("(at end of document)").strip()
    return 0, 0, message.partition(";")[0]


def near_tables(data: Mapping[str, Any], table: KeyPath) -> list[KeyPath]:
    """Return the tables of a pyproject that were meant to be ours: `[tool.ptycho-exec]`, `[ptycho_exec]`."""
    tools = data.get("tool")
    paths = [("tool", key) for key in tools] if isinstance(tools, Mapping) else []
    return [key for key in (*paths, *((key,) for key in data)) if key != table and _alike(key[-1], table[-1])]


def _alike(word: str, ours: str) -> bool:
    from ptycho_exec.sources.suggestions import distance

    folded = word.lower().replace("-", "_")
    return abs(len(folded) - len(ours)) <= 2 and distance(folded, ours) <= 2


def has_table(table: KeyPath) -> Callable[[Path], bool]:
    """Return a test whether a pyproject file has this table, or one whose name was meant to be it."""

    def accept(path: Path) -> bool:
        try:
            text = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError):
            return False
        words = set(re.findall(r"[\w-]+", text))
        if not any(_alike(word, table[-1]) for word in words):
            return False
        try:
            data = _parsed_toml(text)
        except (ValueError, RecursionError):
            return True  # reading it reports what is wrong
        return bool(near_tables(data, table)) or _inner(data, table) != {}

    return accept


@cache
def may_be_meant(prefix: str) -> re.Pattern[str]:
    """Return a pattern for text that may be meant to have this prefix: a part that one error leaves."""
    words = [word for word in prefix.lower().split("_") if word]
    parts = [part for word in words if len(word) > 4 for part in (word[:4], word[-4:])]
    parts += [f"{word}[_ -]" for word in words if len(word) <= 4]
    return re.compile("(?i)" + "|".join(parts) if parts else r"(?!)")


class Assigned(NamedTuple):
    """One assignment of a `.env` file."""

    name: str
    text: str
    line: int


def read_dotenv(
    path: Path, findings: list[Finding], environ: Mapping[str, str], prefix: str
) -> list[Assigned]:
    """Return the assignments of a `.env` file with `${NAME}` filled in from `environ` and the lines above.

    A line that is no assignment is an error when it may be ours, a note when it is another program's.
    """
    from dotenv.variables import parse_variables

    content = _read_text(path, findings)
    rows: list[Assigned] = []
    known: dict[str, str | None] = {}
    scope: Any = ChainMap(dict(environ), known)
    for key, value, string, line, error in _bindings(content or ""):
        ours = (key or "").upper().startswith(prefix.rstrip("_"))
        if error and not may_be_meant(prefix).search(string):
            what = f"line {line} of {path} is no assignment and was passed over"
            findings.append(Finding(what, file=str(path), line=line, level="note", code="not-an-assignment"))
        elif error or (value is None and ours):
            # The line itself is not shown: it may hold somebody's credentials.
            name, place = key if ours else None, f"{path}:{line}"
            what, expected = f"{name or 'this line of .env'} is no assignment", f"{name or 'NAME'}=value"
            fix, code = "correct or remove the line", "not-an-assignment"
            findings.append(Finding(what, place, expected, fix, file=str(path), line=line, code=code))
        elif key is not None:
            text = value or ""
            if "$" in text:
                text = "".join(atom.resolve(scope) for atom in parse_variables(text))
            known[key] = text
            rows.append(Assigned(key, text, line))
    return rows


@lru_cache(maxsize=8)
def _bindings(content: str) -> tuple[tuple[str | None, str | None, str, int, bool], ...]:
    """Return name, value, original text, line and whether it is no assignment, for each part of a `.env`."""
    from dotenv.parser import parse_stream

    parts = []
    for part in parse_stream(io.StringIO(content)):
        text = part.original.string
        blank_rows = text[: len(text) - len(text.lstrip())].count("\n")  # python-dotenv counts them in
        parts.append((part.key, part.value, text, part.original.line + blank_rows, part.error))
    return tuple(parts)
