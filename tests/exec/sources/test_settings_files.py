"""Settings files: every syntax, every kind of damage, and the right line for every key."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptycho_exec.errors import Finding
from ptycho_exec.sources.origins import Kind, json_lines, toml_lines, yaml_lines
from ptycho_exec.sources.settings_files import assignment, read_document, read_dotenv, syntax

if TYPE_CHECKING:
    from conftest import Place

AFTER_COMMA = sys.version_info < (3, 13)
"""Up to there the place of a comma too much, in JSON, is what follows it."""


def read(path: Path, text: str | bytes) -> tuple[Any, list[Finding]]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    findings: list[Finding] = []
    return read_document(path, Kind.SETTINGS_FILE, findings), findings


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "seed = 1\n"),
        ("a.conf", "seed = 1\n"),
        ("a.yaml", "seed: 1\n"),
        ("a.YML", "seed: 1\n"),
        ("a.json", '{"seed": 1}'),
    ],
)
@pytest.mark.parametrize("change", ["plain", "windows lines", "byte order mark", "no last newline"])
def test_every_syntax_in_every_dress(tmp_path: Path, name: str, text: str, change: str) -> None:
    dressed = {
        "plain": text.encode(),
        "windows lines": ("\n" * 2 + text).replace("\n", "\r\n").encode(),
        "byte order mark": text.encode("utf-8-sig"),
        "no last newline": text.rstrip("\n").encode(),
    }[change]
    document, findings = read(tmp_path / name, dressed)
    assert (document.data, findings) == ({"seed": 1}, [])
    assert document.line(("seed",)) == (3 if change == "windows lines" else 1)


@pytest.mark.parametrize("name", ["a.toml", "a.yaml"])
def test_an_empty_file_holds_no_settings_and_is_right(tmp_path: Path, name: str) -> None:
    for text in ("", "\n\n", "# only a comment\n"):
        document, findings = read(tmp_path / name, text)
        assert (document.data, findings) == ({}, [])


@pytest.mark.parametrize(
    ("name", "text", "line", "caret", "words"),
    [
        ("a.toml", "seed = 1\nbatch_size =\n", 2, 12, "Invalid value"),
        ("a.toml", "seed = 1\nseed = 2\n", 2, 8, "Cannot overwrite a value"),
        ("a.toml", "[a\n", 1, 2, "Expected"),
        ("a.toml", "x = [1,\n\n", 1, 7, "Invalid value"),
        ("a.toml", 'x = """abc\n', 1, 10, "Unterminated string"),
        ("a.yaml", "seed: 1\n bad: [\n", 2, 4, "mapping values are not allowed"),
        ("a.yaml", "a: 1\nb: {c\n", 3, 0, "expected ',' or '}'"),
        ("a.yaml", "[1, 2]: 3\n", 1, 0, "a name must be a string"),
        ("a.yaml", "seed: 1\n---\nseed: 2\n", 2, 0, "but found another document"),
        ("a.yaml", "seed: !!python/object:os.system x\n", 1, 6, "could not determine a constructor"),
        ("a.json", '{\n "seed": 1,\n}\n', 2 + AFTER_COMMA, None, ""),
        ("a.json", "", 1, 0, "Expecting value"),
    ],
)
def test_damage_shows_line_and_caret(
    tmp_path: Path, name: str, text: str, line: int, caret: int | None, words: str
) -> None:
    document, (finding,) = read(tmp_path / name, text)
    assert document is None
    assert words in finding.what
    assert (finding.line, finding.where) == (line, f"{tmp_path / name}:{line}")
    row, mark = finding.excerpt.split("\n")
    assert row == text.split("\n")[line - 1]
    assert mark.strip() == "^"
    assert caret is None or mark.index("^") == caret


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", b"\xff\xfe s", "is UTF-16, not UTF-8 text"),
        ("a.toml", "seed = 1" + "0" * 5000, "Exceeds the limit"),
        ("a.json", '{"seed": 1' + "0" * 5000 + "}", "Exceeds the limit"),
        ("a.yaml", "seed: 1" + "0" * 5000, "Exceeds the limit"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.yaml", "[" * 3_000, "nested too deeply"),
        ("a.toml", "a = " + "[" * 10_000, "nested too deeply"),
        ("a.json", "[1]", "holds no settings"),
        ("a.json", "null", "holds no settings"),
        ("a.yaml", "- 1", "holds no settings"),
        ("a.yaml", "word", "holds no settings"),
    ],
)
def test_damage_of_other_kinds_is_one_finding(tmp_path: Path, name: str, text: Any, words: str) -> None:
    document, (finding,) = read(tmp_path / name, text)
    assert document is None
    assert words in finding.what
    assert finding.where == str(tmp_path / name)
    assert len(finding.render()) < 800


@pytest.mark.parametrize(
    "row",
    [
        'u = "https://me:s3cret',
        "u = 'https://me:s3cret x",
        'u = "https://me:a"s3cret@host" "',
        "u = 'ftp://s3cret@h",
    ],
)
def test_an_excerpt_hides_an_address_that_is_cut_short(tmp_path: Path, row: str) -> None:
    _, (finding,) = read(tmp_path / "a.toml", f"{row}\n")
    assert "***" in finding.excerpt
    assert "s3cret" not in finding.render()
    _, (finding,) = read(tmp_path / "a.toml", 'u = "http://localhost:5000/x\n')
    assert "localhost:5000/x" in finding.excerpt


def test_an_excerpt_hides_what_looks_like_a_secret(tmp_path: Path) -> None:
    _, (finding,) = read(tmp_path / "a.toml", 'api_token = "s3cret\n')
    assert finding.excerpt.split("\n")[0] == "api_token = ***"


def test_a_file_that_may_not_be_read_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "ptycho_exec.toml"
    path.write_text("seed = 1\n")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    findings: list[Finding] = []
    assert read_document(path, Kind.PROJECT_FILE, findings) is None
    assert findings[0].what == "cannot read ptycho_exec.toml: Permission denied"


def test_a_folder_that_may_not_be_searched_holds_no_files(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    assert place.resolve().findings == ()


def test_a_file_that_vanishes_between_finding_and_reading_is_a_finding(tmp_path: Path) -> None:
    findings: list[Finding] = []
    assert read_document(tmp_path / "gone.toml", Kind.PROJECT_FILE, findings) is None
    assert findings[0].what == "cannot read gone.toml: No such file or directory"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("010", 10),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("Null", None),
        (".5", 0.5),
        ("-3", -3),
        ("1.", 1.0),
        (".inf", ".inf"),
        ('"8"', "8"),
        ("=", "="),
    ],
)
def test_yaml_has_the_words_of_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    document, findings = read(tmp_path / "a.yaml", f"seed: {text}\n")
    assert findings == []
    assert (document.data["seed"], type(document.data["seed"])) == (value, type(value))


@pytest.mark.parametrize("key", ["1", "null", "true", "~", "<", "no", "1e3"])
def test_yaml_names_are_text(tmp_path: Path, key: str, place: Place) -> None:
    path = place.write("a.yaml", f"\n{key}: 2\n")
    (finding,) = place.resolve(settings_file=path).findings
    assert (finding.what, finding.line) == (f"unknown setting {key!r}", 2)


def test_yaml_that_contains_itself_is_no_trap(place: Place) -> None:
    path = place.write("a.yaml", "&a profiles: &b\n  x: *b\n  seed: 3\n")
    findings = place.resolve(settings_file=path).findings
    assert findings


@pytest.mark.parametrize(
    ("name", "text", "keys"),
    [
        ("a.json", '{"seed": 1,\n "seed": 2}', [("seed", 2)]),
        ("a.json", '{"profiles": {"a": {"seed": 1,\n"seed": 1}}}', [("profiles.a.seed", 2)]),
        ("a.yaml", "seed: 1\nseed: 2\nseed: 3\n", [("seed", 2), ("seed", 3)]),
        (
            "a.yaml",
            "profiles:\n  a: {seed: 1}\n  a: {seed: 1}\n",
            [("profiles.a", 3), ("profiles.a.seed", 3)],
        ),
    ],
)
def test_names_that_stand_twice(tmp_path: Path, name: str, text: str, keys: list[tuple[str, int]]) -> None:
    document, findings = read(tmp_path / name, text)
    assert findings == []
    told = {(finding.what.partition(" ")[0], finding.line) for finding in document.findings}
    assert told >= set(keys[:1])
    assert told <= set(keys)


def test_a_name_twice_in_dotenv(place: Place) -> None:
    place.write(".env", "A=1\nA=2\nPTYCHO_EXEC_SEED=1\nPTYCHO_EXEC_SEED=2\n")
    (finding,) = place.resolve().findings
    assert (finding.what, finding.line) == ("PTYCHO_EXEC_SEED is defined twice", 4)


def test_syntax_goes_by_the_extension() -> None:
    assert [syntax(name) for name in ("a.JSON", "b.yml", "c.yaml", "d.toml", "e")] == [
        "JSON",
        "YAML",
        "YAML",
        "TOML",
        "TOML",
    ]
    assert assignment("a.json", "seed", "1") == '"seed": 1'
    assert assignment("a.yaml", "seed", "1") == "seed: 1"
    assert assignment("a.toml", "seed", "1") == "seed = 1"
    assert assignment(None, "seed", "1") == "seed=1"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("PTYCHO_EXEC_SEED\n", 1),
        ("A=1\n\nPTYCHO_EXEC_SEED: 3\n", 3),
        ("PTYCHO EXEC SEED=3\n", 1),
        ("PTYCHO_EXEC_SEED='unclosed\n", 1),
    ],
)
def test_lines_of_dotenv_that_are_no_assignment(place: Place, text: str, line: int) -> None:
    place.write(".env", text)
    (finding,) = place.resolve().findings
    assert (finding.line, finding.fix) == (line, "correct or remove the line")


def test_a_line_of_another_program_that_is_no_assignment_is_noted(place: Place) -> None:
    place.write(".env", 'A=\'s3cret unclosed\nPTYCHO_EXEC_SEED=3\nsome words\n"b",\n]\nexport B\n# A\n\n')
    resolution = place.resolve()
    assert (resolution.values, resolution.errors) == ({"seed": 3}, ())
    assert [(notice.what, notice.code, notice.line) for notice in resolution.notices] == [
        (f"line {line} of {place.cwd}/.env is no assignment and was passed over", "not-an-assignment", line)
        for line in (1, 3, 4, 5, 6)
    ]


# --- lines, on a generated corpus -----------------------------------------------------------------------

KEYS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=8)
ODD_KEYS = KEYS | st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters='"\\'),
    min_size=1,
    max_size=6,
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12)
SCALARS = st.integers(-(10**9), 10**9) | st.booleans() | TEXTS
GAPS = st.lists(st.sampled_from(["", "# [comment]", "  ", '# """']), max_size=3)
CORPUS = settings(max_examples=200, deadline=None)

Entry = tuple[tuple[str, ...], int]


def _toml_scalar(draw: Any, value: Any) -> str:
    """Write a value on one or several lines, in one of the ways that TOML has."""
    if not isinstance(value, str):
        return json.dumps(value)
    quoted = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    several = '"""\n[no.table]\nx = 1\n' + quoted[1:-1] + '"""'
    array = f"[\n  {quoted}, # not a key = 1\n\n  {quoted},\n]"
    return draw(st.sampled_from([quoted, several, array, f"{{ inner = {quoted} }}"]))


@st.composite
def toml_documents(draw: Any) -> tuple[str, list[Entry]]:
    rows: list[str] = []
    entries: list[Entry] = []
    tables = draw(st.lists(st.lists(ODD_KEYS, min_size=1, max_size=3).map(tuple), unique=True, max_size=3))
    heads = [(), *(table for table in tables if not any(_nested(table, other) for other in tables))]
    for table in heads:
        rows += draw(GAPS)
        if table:
            rows.append("[" + ".".join(json.dumps(key, ensure_ascii=False) for key in table) + "]")
            entries.append((table, len(rows)))
        for key in draw(st.lists(ODD_KEYS, unique=True, max_size=4)):
            if not table and any(key == other[0] for other in tables):
                continue
            rows += draw(GAPS)
            value = _toml_scalar(draw, draw(SCALARS))
            entries.append(((*table, key), len(rows) + 1))
            rows += f"{json.dumps(key, ensure_ascii=False)} = {value}".split("\n")
    return "\n".join(rows) + draw(st.sampled_from(["", "\n"])), entries


def _nested(table: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return table != other and (table[: len(other)] == other or other[: len(table)] == table)


@CORPUS
@given(toml_documents())
def test_lines_of_toml(document: tuple[str, list[Entry]]) -> None:
    text, entries = document
    lines = toml_lines(text)
    assert {path: lines[path] for path, _ in entries} == dict(entries)


@st.composite
def nested(draw: Any) -> dict[str, Any]:
    inner = st.dictionaries(ODD_KEYS, SCALARS | st.lists(SCALARS, max_size=2), max_size=3)
    return draw(st.dictionaries(ODD_KEYS, SCALARS | st.lists(inner, max_size=2) | inner, max_size=4))  # type: ignore[no-any-return]


def _json_rows(value: Any, draw: Any, rows: list[str], path: tuple[str, ...], entries: list[Entry]) -> None:
    """Write JSON with keys wherever, and note the line of each key that stands in objects alone."""

    def put(text: str) -> None:
        rows[-1] += text
        rows.extend("" for _ in range(draw(st.integers(0, 2))))

    if isinstance(value, Mapping):
        put("{")
        for number, (key, item) in enumerate(value.items()):
            if number:
                put(",")
            rows[-1] += json.dumps(key, ensure_ascii=draw(st.booleans()))
            line = len(rows)
            put("")
            put(":")
            entries.append(((*path, key), line))
            _json_rows(item, draw, rows, (*path, key), entries)
        put("}")
    elif isinstance(value, list):
        put("[")
        for number, item in enumerate(value):
            if number:
                put(",")
            _json_rows(item, draw, rows, (*path, f"[{number}]"), entries)
        put("]")
    else:
        put(json.dumps(value, ensure_ascii=draw(st.booleans())))


@pytest.mark.slow
@CORPUS
@given(st.data(), nested())
def test_lines_of_json(data: st.DataObject, value: dict[str, Any]) -> None:
    rows, entries = [""], list[Entry]()
    _json_rows(value, data.draw, rows, (), entries)
    text = "\n".join(rows)
    assert json.loads(text) == value
    lines = dict(json_lines(text))
    outside_lists = {path: line for path, line in entries if not any(key.startswith("[") for key in path)}
    assert {path: lines[path] for path in outside_lists} == outside_lists


def _yaml_rows(
    value: Mapping[str, Any], draw: Any, rows: list[str], path: tuple[str, ...], entries: list[Entry]
) -> None:
    indent = "  " * len(path)
    for key, item in value.items():
        rows += draw(st.lists(st.sampled_from(["", "# a: comment"]), max_size=2))
        name = indent + json.dumps(key, ensure_ascii=False) + ":"
        entries.append(((*path, key), len(rows) + 1))
        if isinstance(item, Mapping) and item:
            rows.append(name)
            _yaml_rows(item, draw, rows, (*path, key), entries)
        elif isinstance(item, str) and item.isalpha() and item.isascii():
            rows += [f"{name} {draw(st.sampled_from('|>'))}", f"{indent}  {item}", f"{indent}  more: text"]
        else:
            rows.append(f"{name} {json.dumps(item)}")


@pytest.mark.slow
@CORPUS
@given(st.data(), nested())
def test_lines_of_yaml(data: st.DataObject, value: dict[str, Any]) -> None:
    rows, entries = list[str](), list[Entry]()
    _yaml_rows(value, data.draw, rows, (), entries)
    lines = dict(yaml_lines("\n".join(rows) + "\n"))
    outside_lists = dict(entries)
    assert {path: lines[path] for path in outside_lists} == outside_lists


@pytest.mark.slow
@CORPUS
@given(
    st.data(), st.lists(st.tuples(st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True), TEXTS), max_size=6)
)
def test_lines_of_dotenv(tmp_path_factory: Any, data: st.DataObject, pairs: list[tuple[str, str]]) -> None:
    rows, expected = list[str](), list[tuple[str, str, int]]()
    for name, text in pairs:
        value = "".join(mark for mark in text if mark not in "'\"\\$\x85\u2028\u2029")
        rows += data.draw(st.lists(st.sampled_from(["", "# A=1", "   "]), max_size=2))
        expected.append((name, value, len(rows) + 1))
        several = data.draw(st.booleans())
        expected[-1] = (name, f"{value}\n{value}" if several else value, len(rows) + 1)
        lead = data.draw(st.sampled_from(["", "export ", "  "]))
        rows += f"{lead}{name}='{expected[-1][1]}'".split("\n")
    path = tmp_path_factory.mktemp("dotenv") / ".env"
    path.write_text("\n".join(rows) + "\n", "utf-8")
    findings: list[Finding] = []
    assert [tuple(row) for row in read_dotenv(path, findings, {}, "PTYCHO_EXEC_")] == expected
    assert findings == []


def test_reading_dotenv_does_not_look_at_this_process(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAK", "7")
    place.write(".env", "PTYCHO_EXEC_BATCH_SIZE=${LEAK:-3}\n")
    assert place.settings().batch_size == 3
    assert os.environ["LEAK"] == "7"


def test_what_is_kept_of_a_file_cannot_be_changed_from_outside(place: Place) -> None:
    place.write("ptycho_exec.toml", "devices = [0, 1]\n")
    first = place.resolve().origins["devices"].value
    first.append(9)
    assert place.resolve().origins["devices"].value == [0, 1]
    assert place.settings().devices == (0, 1)


def test_a_file_that_changes_is_read_anew(place: Place) -> None:
    for number in (1, 2, 3):
        place.write("ptycho_exec.toml", "\n" * number + f"seed = {number}\n")
        place.write(".env", f"A={number}\nPTYCHO_EXEC_EXPERIMENT_NAME=run${{A}}\n")
        settings = place.settings()
        assert (settings.seed, settings.origins["seed"].line) == (number, number + 1)
        assert settings.experiment_name == f"run{number}"


def test_the_environment_wins_over_lines_above_in_what_a_line_refers_to(place: Place) -> None:
    place.write(".env", "A=1\nPTYCHO_EXEC_EXPERIMENT_NAME=run${A}${B:-x}\n")
    assert place.settings().experiment_name == "run1x"
    place.environ["A"] = "2"
    assert place.settings().experiment_name == "run2x"


QUOTED = [
    ("'pa${ss}word'", "pa${ss}word"),
    ("'$HOME/${A:-x}'", "$HOME/${A:-x}"),
    (" '${A}' # a comment", "${A}"),
    ('"${A}-b"', "1-b"),
    ("${A}'s", "1's"),
    ("${A}", "1"),
    (r'"p\${A}w"', "p${A}w"),
    (r"p\${A}w", "p${A}w"),
    (r'"p\\${A}w"', r"p\1w"),
    (r'"p\\\${A}w"', r"p\${A}w"),
    (r'"${B:-\$5}"', "$5"),
    (r"'p\${A}w'", r"p\${A}w"),
]


@pytest.mark.parametrize(("written", "value"), QUOTED)
@pytest.mark.parametrize("name", ["PTYCHO_EXEC_EXPERIMENT_NAME", "export PTYCHO_EXEC_EXPERIMENT_NAME "])
def test_quotes_and_backslashes_in_dotenv_keep_the_text_as_a_shell_does(
    place: Place, name: str, written: str, value: str
) -> None:
    place.write(".env", f"A=1\n{name}={written}\n")
    assert place.settings().experiment_name == value


def test_a_name_that_is_set_nowhere_is_a_finding_in_a_variable_of_ours(place: Place) -> None:
    place.write(".env", "OTHER=${NOPE}\nPTYCHO_EXEC_EXPERIMENT_NAME=run-${NOPE}-${A}${NOPE}\n")
    findings = place.resolve().errors
    assert [(f.code, f.line, f.what.partition(" uses ")[2]) for f in findings] == [
        ("unset-name", 2, "${NOPE}, which is set nowhere"),
        ("unset-name", 2, "${A}, which is set nowhere"),
    ]
    place.environ |= {"NOPE": "", "A": "7"}  # an empty one was set by somebody
    assert place.settings().experiment_name == "run--7"


@pytest.mark.parametrize(
    "form",
    [
        *("${A:?missing}", "${A?}", "${A:+x}", "${A:=x}", "${A-x}", "${A x}"),
        *("${A:-${HOME}}", "${A:-x${HOME}}", '${A:-"missing"}'),
    ],
)
def test_other_forms_of_a_shell_are_findings_and_not_taken_as_text(place: Place, form: str) -> None:
    place.environ["A"] = "7"
    place.write(".env", f"OTHER={form}\nPTYCHO_EXEC_EXPERIMENT_NAME=run-{form}\n")
    (finding,) = place.resolve().errors
    assert (finding.code, finding.line) == ("unset-name", 2)
    assert "missing" not in finding.render()
    place.write(".env", f"PTYCHO_EXEC_EXPERIMENT_NAME='run-{form}'\n")
    assert place.settings().experiment_name == f"run-{form}"
    for written in ("${A}", "${A:-default}"):
        assert written in finding.fix
        place.write(".env", f"PTYCHO_EXEC_EXPERIMENT_NAME=run-{written}\n")
        assert place.settings().experiment_name == "run-7"


def test_a_name_inside_of_a_name_in_dotenv_is_a_finding(place: Place) -> None:
    place.write(".env", "PTYCHO_EXEC_EXPERIMENT_NAME=${${A}}\n")
    (finding,) = place.resolve().errors
    assert finding.what == "PTYCHO_EXEC_EXPERIMENT_NAME uses ${ in a form that is not read"


CAUSES = [
    ("a.json", '{\n  // small\n  "seed": 1}', 2, "remove the comment"),
    ("a.json", '{"seed": 1, /* small */ "x": 2}', 1, "remove the comment"),
    ("a.json", '{"seed": 1\n}\n# small', 3, "remove the comment"),
    ("a.json", '{"seed": 1 # small\n}', 1, "remove the comment"),
    ("a.json", '{"seed": 1,\n}', 1 + AFTER_COMMA, "remove the comma"),
    ("a.json", '{"devices": [0, 1,\n]}', 1 + AFTER_COMMA, "remove the comma"),
    ("a.json", "{'seed': 1}", 1, "double quotes"),
    ("a.json", "{seed: 1}", 1, "double quotes"),
    ("a.json", '{"accelerator": cpu}', 1, "double quotes"),
    ("a.json", '{"compile": True}', 1, "small letters"),
    ("a.json", '{"max_time": None}', 1, "write null"),
    ("a.json", '{"learning_rate": .5}', 1, "a zero before"),
    ("a.json", '{"tracking_uri": "C:\\Users"}', 1, "backslash twice"),
    ("a.json", '{"tracking_uri": "C:\\data"}', 1, "backslash twice"),
    ("a.toml", 'tracking_uri = "C:\\Users\\me"\n', 1, "single quotes"),
    ("a.toml", 'seed = 1\ntracking_uri = "C:\\data"\n', 2, "single quotes"),
    ("a.toml", "max_time = 00:01:30:00\n", 1, "the time in quotes"),
    ("a.toml", "compile = True\n", 1, "small letters"),
    ("a.toml", "accelerator = cpu\n", 1, "the word in quotes"),
    ("a.toml", "max_time = none\n", 1, "the word in quotes"),
    ("a.toml", "learning_rate = .5\n", 1, "a zero before"),
    ("a.toml", "// small\nseed = 1\n", 1, "with #"),
    ("a.toml", "seed = 1 // small\n", 1, "with #"),
    ("a.toml", "seed: 1\n", 1, "instead of the colon"),
    ("a.yaml", 'tracking_uri: "C:\\Users\\me"\n', 1, "single quotes"),
    ("a.yaml", 'tracking_uri: "C:\\data"\n', 1, "single quotes"),
    ("a.yaml", "profiles:\n\ta:\n", 2, "instead of tabs"),
    ("a.yaml", "experiment_name: run: 1\n", 1, "in quotes"),
    ("a.yaml", "experiment_name: @home\n", 1, "in quotes"),
    ("a.yaml", "profiles:\n  a: &a\n    seed: 1\n  b:\n    <<: *a\n", 5, "extends"),
    ("a.yaml", "seed: 1\ndevices: &d [*d]\n", 2, "extends"),
]


@pytest.mark.parametrize(("name", "text", "line", "words"), CAUSES)
def test_the_usual_cause_of_broken_syntax_is_named(
    tmp_path: Path, name: str, text: str, line: int, words: str
) -> None:
    _, (finding,) = read(tmp_path / name, text)
    assert (finding.code, finding.line) == ("broken-file", line)
    assert words in finding.fix


def test_aliases_that_do_not_multiply_are_read(place: Place) -> None:
    path = place.write("a.yaml", "profiles:\n  a: &a {seed: 3}\n  b: *a\n  c: *a\n")
    assert place.settings(settings_file=path, profile="c").seed == 3


def test_large_files_cost_little(place: Place) -> None:
    """Tables of other tools and lines of other programs are passed over; none is parsed twice."""
    import time

    other = "".join(f"[tool.t{i}]\na = {i}\nb = ['x', 'y']\nc = {{k = 1}}\n" for i in range(250))
    place.write("pyproject.toml", f"{other}[tool.ptycho_exec]\nseed = 3\n")
    place.write(".env", "".join(f"OTHER_{i}=value{i}\nSECRET_{i}='q{i}'\n" for i in range(500)))
    place.resolve()
    start = time.thread_time()
    for _ in range(5):
        assert place.resolve().values["seed"] == 3
    assert (time.thread_time() - start) / 5 < 0.05  # about 6 ms on an unloaded core; 150 ms before
