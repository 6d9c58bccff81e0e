"""Settings files: found, parsed, with the line of every key and an excerpt for every mistake."""

from __future__ import annotations

import codecs
import io
import json
import re
import tomllib
from collections import ChainMap
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

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

    def without(self, names: Collection[str]) -> Document:
        """Return the same file without some names, at its top and in its profiles."""

        def kept(table: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in table.items() if name not in names}

        data, profiles = kept(self.data), self.table_at(("profiles",))
        if profiles:
            data["profiles"] = {k: kept(v) if isinstance(v, Mapping) else v for k, v in profiles.items()}
        return replace(self, data=data)

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
        names = tuple(value) if isinstance(value, Mapping) else ()
        return Origin(
            kind or self.kind,
            place or self.place(path),
            list(value) if isinstance(value, list) else value,  # the parsed document is kept and read again
            file=self.path,
            line=self.line(path),
            parts=tuple((name, self.origin((*path, name), kind=kind, place=place)) for name in names),
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


def mentions(path: Path, word: str) -> bool:
    """Return whether the first million bytes of a file hold this word; one that may not be read does not."""
    try:
        with path.open("rb") as file:
            return word.encode() in file.read(10**6)
    except OSError:
        return False


def find_upward(start: Path, name: str, accept: Callable[[Path], bool] = lambda _: True) -> Path | None:
    """Return the nearest file of this name from `start` upward that `accept` takes."""
    paths = (folder / name for folder in (start, *start.parents))
    return next((path for path in paths if is_file(path) and accept(path)), None)


def read_document(path: Path, kind: Kind, findings: list[Finding], table: KeyPath = ()) -> Document | None:
    """Parse TOML, YAML or JSON by its extension; one that cannot be parsed adds a finding instead."""
    text = read_text(path, findings)
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


def read_text(
    path: Path, findings: list[Finding], concerns_us: Callable[[str], bool] = lambda _: True
) -> str | None:
    """Return the text of a UTF-8 file; what cannot be read is an error, or a note if it concerns others."""
    try:
        data = path.read_bytes()
    except OSError as error:
        what, fix = f"cannot read {path.name}: {error.strerror}", "make it readable, or remove it"
        expected, code = "a readable file", "unreadable-file"
        findings.append(Finding(what, str(path), expected, fix, file=str(path), code=code))
        return None
    what, line = _no_utf8(data)
    if not what:
        return io.StringIO(data.decode("utf-8-sig"), newline=None).read()
    if concerns_us(data.replace(b"\0", b"").decode("latin-1")):
        place = f"{path}:{line}" if line else str(path)
        words = (f"{path.name} {what}", place, "UTF-8 text", "save it as UTF-8")
        findings.append(Finding(*words, file=str(path), line=line, code="unreadable-file"))
    else:
        findings.append(Finding(f"{path} is not read: it {what}", level="note", code="not-read"))
    return None


def _no_utf8(data: bytes) -> tuple[str, int]:
    """Return why these bytes are no UTF-8 text, and the line where that is one place; "" when they are."""
    zeros = data.count(b"\0") / max(len(data), 1)
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) or zeros > 0.6:
        return "is UTF-32, not UTF-8 text", 0
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or zeros > 0.3:
        return "is UTF-16, not UTF-8 text", 0
    if zeros:
        return "holds a zero byte", data.count(b"\n", 0, data.index(b"\0")) + 1
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return "is not UTF-8 text", data.count(b"\n", 0, error.start) + 1
    return "", 0


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

    loader = _yaml_loader()(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        _refuse_endless(node, {})
        data = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(error) from error
    finally:
        loader.dispose()
    return {} if data is None else data


_MOST_REPEATED = 10_000


def _refuse_endless(node: Any, sizes: dict[int, int]) -> int:
    """Return how many values a node holds, its aliases written out; too many, or endless ones, are an error.

    Aliases of aliases multiply: nine in a row of nine each are 387 million values.
    """
    import yaml

    def refuse(problem: str) -> NoReturn:
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    if id(node) in sizes:
        return sizes[id(node)] or refuse("an alias stands inside what it repeats")
    sizes[id(node)] = 0
    pairs = node.value if isinstance(node, yaml.CollectionNode) else ()
    inner = [part for pair in pairs for part in (pair if isinstance(pair, tuple) else (pair,))]
    size = 1 + sum(_refuse_endless(part, sizes) for part in inner)
    if size > len(sizes) + _MOST_REPEATED:
        refuse("its aliases multiply to more values than a settings file can have")
    sizes[id(node)] = size
    return size


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
                if key.value == "<<":
                    problem = "merge keys (<<) are not read"
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


_SECRET = r"(?i)((?:token|secret|passw|key|credential)\w*[\"']?\s*[:=]\s*)\S.*"


# In a broken row the end of the user information may be missing.
_OPEN_ADDRESS = r"(://[^/\s:@\"'*]+:)(?!\d{1,5}(?:[^\w]|$)).*"


def _broken(path: Path, text: str, error: Exception) -> Finding:
    line, column, problem = _position(error, text)
    rows = text.split("\n")
    marked = 0 < line <= len(rows)
    row = rows[line - 1] if marked else ""
    fix = _usual_cause(syntax(path), problem, row, column) or (
        "correct the marked place" if marked else "correct the file"
    )
    shown = re.sub(_OPEN_ADDRESS, r"\1***", re.sub(_SECRET, r"\1***", redact(row)))
    verb = "cannot be used" if re.search(_VALID_BUT_REFUSED, problem) else f"is not valid {syntax(path)}"
    return Finding(
        f"{path.name} {verb}: {problem}",
        where=f"{path}:{line}" if marked else str(path),
        expected=f"valid {syntax(path)}",
        fix=fix,
        excerpt=f"{shown}\n{' ' * min(column - 1, len(shown))}^" if marked else "",
        file=str(path),
        line=line if marked else 0,
        code="broken-file",
    )


_VALID_BUT_REFUSED = "^(?:merge keys|an alias|its aliases)"
_HOW_TO_REPEAT = "write the keys out, or put them into a profile that others name in `extends`"
_IN_SINGLE_QUOTES = "write the path in single quotes, in which a backslash is a backslash"
_NO_COMMENTS = "remove the comment: JSON has none; TOML and YAML files do"
# Problem, row up to the mark, row from the mark, each a pattern, and what to do; the first that fits counts.
_USUAL_CAUSES: dict[Syntax, tuple[tuple[str, str, str, str], ...]] = {
    "JSON": (
        ("", "", r"(?://|/\*|#)", _NO_COMMENTS),
        ("", r".*(?://|/\*|#) *$", "", _NO_COMMENTS),
        ("trailing comma", "", "", "remove the comma before the closing bracket"),
        ("property name|Expecting value", "", r"[}\]]", "remove the comma before the closing bracket"),
        ("escape", "", "", r"write each backslash twice, as in C:\\\\data, or write / instead"),
        ("", "", "'", "write strings in double quotes"),
        ("", "", "(?i)(?:true|false)", "write true or false in small letters"),
        ("", "", "(?i)(?:none|nan|undefined)", "write null"),
        ("property name", "", r"[\w-]", "write the name in double quotes"),
        ("Expecting value", "", r"\.\d", "write a zero before the point, as in 0.5"),
        ("Expecting value", "", r"\w", "write the word in double quotes"),
    ),
    "TOML": (
        (
            r"hex value|escape|\\",
            "",
            "",
            _IN_SINGLE_QUOTES,
        ),
        ("", r".*=\s*[\d:]*$", r"[\d:]*:\d", "write the time in quotes"),
        ("", r".*=\s*$", "(?i)(?:true|false)", "write true or false in small letters"),
        ("", r".*=\s*$", r"\.\d", "write a zero before the point, as in 0.5"),
        ("Invalid value", r".*=\s*$", r"[^\W\d]", "write the word in quotes"),
        ("", r"\s*$", "//", "begin the comment with #"),
        ("", "", "//", "begin the comment with #"),
        ("after a key", "", ":", "write = instead of the colon"),
    ),
    "YAML": (
        ("merge keys", "", "", _HOW_TO_REPEAT),
        ("alias", "", "", _HOW_TO_REPEAT),
        ("escape", "", "", _IN_SINGLE_QUOTES),
        (r"'\\t'", "", "", "indent with spaces instead of tabs"),
        ("mapping values", "", "", "write the text in quotes: it holds a colon"),
        ("start any token", "", "[%@`]", "write the text in quotes"),
    ),
}


def _usual_cause(language: Syntax, problem: str, row: str, column: int) -> str:
    before, after = row[: max(column - 1, 0)], row[max(column - 1, 0) :]
    for words, up_to, beyond, fix in _USUAL_CAUSES[language]:
        if re.search(words, problem) and re.match(up_to, before) and re.match(beyond, after):
            return fix
    return ""


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
    r"""Return the assignments of a `.env` file with `${NAME}` filled in from `environ` and the lines above.

    A text in single quotes stays as it is, and `\$` is a dollar sign elsewhere, as in a shell. A line that is
    no assignment is an error when it may be ours, a note when it is another program's.
    """
    from dotenv.variables import Variable, parse_variables

    content = read_text(path, findings, lambda text: may_be_meant(prefix).search(text) is not None)
    rows: list[Assigned] = []
    known: dict[str, str | None] = {}
    scope: Any = ChainMap(dict(environ), known)
    for key, value, string, line, error in _bindings(content or ""):
        ours = (key or "").upper().startswith(prefix.rstrip("_"))
        bare = key is not None and value is None
        if (error or (bare and not ours)) and not may_be_meant(prefix).search(string):
            what = f"line {line} of {path} is no assignment and was passed over"
            findings.append(Finding(what, file=str(path), line=line, level="note", code="not-an-assignment"))
        elif error or (bare and ours):
            # The line itself is not shown: it may hold somebody's credentials.
            name, place = key if ours else None, f"{path}:{line}"
            what, expected = f"{name or 'this line of .env'} is no assignment", f"{name or 'NAME'}=value"
            fix, code = "correct or remove the line", "not-an-assignment"
            findings.append(Finding(what, place, expected, fix, file=str(path), line=line, code=code))
        elif key is not None:
            text, quoted = value or "", re.match(_SINGLE_QUOTED, string)
            if "$" in text and not quoted:
                atoms = list(parse_variables(text))
                text = "".join(atom.resolve(scope) for atom in atoms)
                named = [atom for atom in atoms if isinstance(atom, Variable) and atom.default is None]
                unset = dict.fromkeys(
                    atom.name
                    for atom in named
                    if ours and atom.name not in scope and atom.name.isidentifier()
                )
                findings += [_unset_name(key, name, path, line) for name in unset]
                if ours and (match := re.search(_OTHER_FORM, value or "")):
                    findings.append(_other_form(key, match["name"], path, line))
            text = text.replace(_ESCAPED, r"\$" if quoted else "$")
            known[key] = text
            rows.append(Assigned(key, text, line))
    return rows


_SINGLE_QUOTED = r"\s*(?:export\s+)?(?:'[^']+'|[^=#\s]+)\s*=\s*'"


_DEFAULT = r":-(?!(?P<quote>[\"']).*(?P=quote)\})(?:(?!\$\{)[^}])*"
_OTHER_FORM = rf"\$\{{(?!\w+(?:{_DEFAULT})?\}})(?P<name>\w*)[^}}]*\}}"
_ESCAPED = "\0"
"""Stands for `\\$` until names are filled in; no file has it, for one with a zero byte is refused."""


def _other_form(variable: str, name: str, path: Path, line: int) -> Finding:
    what, place = f"{variable} uses {name or '${'} in a form that is not read", f"{path}:{line}"
    ways = f"${{{name or 'NAME'}}} or ${{{name or 'NAME'}:-default}}"
    fix = f"write {ways}, or put the whole text in single quotes to keep it so"
    expected = "${NAME} or ${NAME:-default}, with a default that has no quotes around it and no ${ in it"
    return Finding(what, place, expected, fix, file=str(path), line=line, code="unset-name")


def _unset_name(variable: str, name: str, path: Path, line: int) -> Finding:
    what, place = f"{variable} uses ${{{name}}}, which is set nowhere", f"{path}:{line}"
    expected = f"{name} in the environment, or in a line above"
    fix = (
        f"set {name}, write ${{{name}:-default}}, or put the whole text in single quotes to keep it as it is"
    )
    return Finding(what, place, expected, fix, file=str(path), line=line, code="unset-name")


@lru_cache(maxsize=8)
def _bindings(content: str) -> tuple[tuple[str | None, str | None, str, int, bool], ...]:
    """Return name, value, original text, line and whether it is no assignment, for each part of a `.env`."""
    from dotenv.parser import parse_stream

    parts = []
    escaped = re.sub(r"(?<!\\)((?:\\\\)*)\\\$", rf"\1{_ESCAPED}", content)
    for part in parse_stream(io.StringIO(escaped)):
        text = part.original.string
        blank_rows = text[: len(text) - len(text.lstrip())].count("\n")  # python-dotenv counts them in
        parts.append((part.key, part.value, text, part.original.line + blank_rows, part.error))
    return tuple(parts)
