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

    def finding(self, path: KeyPath, what: str, expected: str, fix: str) -> Finding:
        return Finding(what, self.place(path), expected, fix, file=self.path, line=self.line(path) or 0)


def is_file(path: Path) -> bool:
    """Tell whether `path` is a file that can be seen; a folder that may not be looked holds none."""
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
    except _ParseError as error:
        findings.append(_broken(path, text, error.cause))
        return None
    if not isinstance(data, Mapping):
        fix = "write one name and value per line"
        findings.append(Finding(f"{path.name} holds no settings", str(path), "a table of settings", fix))
        return None
    extra = [_twice(path, key, line) for key, line in _duplicates(path, text)]
    if table:
        extra += _wrong_tables(path, data, text, table)
    inner = _inner(data, table)
    if not isinstance(inner, Mapping):
        fix = "write it as a table"
        findings.append(Finding(f"{'.'.join(table)} is not a table", str(path), f"[{'.'.join(table)}]", fix))
        return None
    return Document(kind, str(path), inner, text, table, tuple(extra))


def _inner(data: Mapping[str, Any], table: KeyPath) -> Any:
    node: Any = data
    for key in table:
        if not isinstance(node, Mapping):
            return node
        node = node.get(key, {})
    return node


def _read_text(path: Path, findings: list[Finding]) -> str | None:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        findings.append(
            Finding(f"{path.name} is not UTF-8 text", str(path), "UTF-8 text", "save it as UTF-8")
        )
    except OSError as error:
        fix = "make it readable, or remove it"
        findings.append(
            Finding(f"cannot read {path.name}: {error.strerror}", str(path), "a readable file", fix)
        )
    return None


Syntax = Literal["TOML", "YAML", "JSON"]


def syntax(path: str | Path) -> Syntax:
    """Return the language of a file by its extension; what is neither YAML nor JSON is TOML."""
    known: dict[str, Syntax] = {".json": "JSON", ".yaml": "YAML", ".yml": "YAML"}
    return known.get(Path(path).suffix.lower(), "TOML")


def assignment(file: str | None, name: str, value: str) -> str:
    """Write a setting as it stands in `file`: `seed = 1` in TOML, `seed: 1` in YAML, `"seed": 1` in JSON."""
    forms = {"TOML": f"{name} = {value}", "YAML": f"{name}: {value}", "JSON": f'"{name}": {value}'}
    return forms[syntax(file)] if file else f"{name}={value}"


class _ParseError(Exception):
    """One parser's own error, so that callers need not import the parser to catch it."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


_parsed_toml = lru_cache(maxsize=8)(tomllib.loads)
"""Documents are only read, so the same text need not be parsed for each resolution."""


def _toml(text: str) -> Any:
    try:
        return _parsed_toml(text)
    except (ValueError, RecursionError) as error:
        raise _ParseError(error) from error


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _ParseError(error) from error


def _yaml(text: str) -> Any:
    import yaml

    try:
        data = yaml.load(text, Loader=_yaml_loader())
        return {} if data is None else data
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _ParseError(error) from error


_PARSERS: dict[Syntax, Callable[[str], Any]] = {"TOML": _toml, "YAML": _yaml, "JSON": _json}


def _line_finder(path: str) -> Callable[[str], tuple[Mapping[KeyPath, int], list[tuple[KeyPath, int]]]]:
    return {"JSON": json_lines, "YAML": yaml_lines}.get(syntax(path), lambda text: (toml_lines(text), []))


def _duplicates(path: Path, text: str) -> list[tuple[KeyPath, int]]:
    """Keys that stand twice. TOML forbids them itself; YAML and JSON parsers keep the last without a word."""
    return [] if syntax(path) == "TOML" else _line_finder(str(path))(text)[1]


@cache
def _yaml_loader() -> Any:
    """A safe loader with YAML 1.2's core types: `1e-3` is a number, `no` is a word, `010` is ten."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            """Names are the text that stands there, never a number, a truth value or null."""
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(
                        None, None, "a name must be a text", key.start_mark
                    )
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
    )


def _position(error: Exception, text: str) -> tuple[int, int, str]:
    if isinstance(error, RecursionError):
        return 0, 0, "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return error.lineno, error.colno, error.msg
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        before = text[: mark.index]
        return before.count("\n") + 1, len(before) - before.rfind("\n"), str(getattr(error, "problem", error))
    message = str(error)
    match = re.search(r"\(at line (\d+), column (\d+)\)", message)
    if match:
        return int(match[1]), int(match[2]), message[: match.start()].strip()
    if message.endswith("(at end of document)"):
        rows = text.rstrip("\n").split("\n")
        return len(rows), len(rows[-1]) + 1, message.removesuffix("(at end of document)").strip()
    return 0, 0, message.partition(";")[0]


def _twice(path: Path, key: KeyPath, line: int) -> Finding:
    return Finding(
        f"{'.'.join(key)} stands in the file twice",
        where=f"{path}:{line}",
        expected="every name once",
        fix="remove one of the two",
        file=str(path),
        line=line,
    )


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


def _wrong_tables(path: Path, data: Mapping[str, Any], text: str, table: KeyPath) -> list[Finding]:
    found = near_tables(data, table)
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


_OURS = re.compile(r"(?i)ptyc|tycho|exec[_ -]")


class Assigned(NamedTuple):
    """One assignment of a `.env` file."""

    name: str
    text: str
    line: int


def read_dotenv(
    path: Path, findings: list[Finding], notices: list[str], environ: Mapping[str, str]
) -> list[Assigned]:
    """Return the assignments of a `.env` file with `${NAME}` filled in from `environ` and the lines above.

    A line that is no assignment is a finding when it may be ours, a notice when it is another program's.
    """
    from dotenv.variables import parse_variables

    content = _read_text(path, findings)
    rows: list[Assigned] = []
    known: dict[str, str | None] = {}
    scope: Any = ChainMap(dict(environ), known)
    for key, value, string, line, error in _bindings(content or ""):
        ours = (key or "").upper().startswith("PTYCHO_EXEC")
        if error and not _OURS.search(string):
            notices.append(f"line {line} of {path} is no assignment and was passed over")
        elif error or (value is None and ours):
            findings.append(_malformed(path, line, key if ours else None))
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

    return tuple(
        (part.key, part.value, original.string, original.line + _blank_rows(original.string), part.error)
        for part in parse_stream(io.StringIO(content))
        for original in (part.original,)
    )


def _blank_rows(text: str) -> int:
    """python-dotenv counts leading blank rows as part of the binding that follows them."""
    return text[: len(text) - len(text.lstrip())].count("\n")


def _malformed(path: Path, line: int, name: str | None) -> Finding:
    # The line itself is not shown: it may hold somebody's credentials.
    return Finding(
        f"{name or 'this line of .env'} is no assignment",
        where=f"{path}:{line}",
        expected=f"{name or 'NAME'}=value",
        fix="correct or remove the line",
        file=str(path),
        line=line,
    )
