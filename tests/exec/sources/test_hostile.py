"""Clumsy and malicious inputs: each gets one clear report, or does what the user can only have meant."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from ptycho_exec.cli.commands import main
from ptycho_exec.errors import SettingsError
from ptycho_exec.sources import profiles

if TYPE_CHECKING:
    from conftest import Place

TOML = "ptycho_exec.toml"
NINES = "9" * 5000
DEEP = 3000

# Name -> file, its text or bytes, and words of the report.
FILES: dict[str, tuple[str, str | bytes, str]] = {
    "UTF-16": (TOML, "seed = 1\n".encode("utf-16"), "not UTF-8"),
    "Latin-1": (TOML, b"# caf\xe9\nseed = 1\n", "not UTF-8"),
    "Latin-1 in .env": (".env", b"A=caf\xe9\nPTYCHO_EXEC_SEED=3\n", ".env is not UTF-8"),
    "UTF-16 without a mark": (TOML, "seed = 1\n".encode("utf-16-be"), "is UTF-16, not UTF-8"),
    "UTF-32": (TOML, "seed = 1\n".encode("utf-32"), "is UTF-32, not UTF-8"),
    "UTF-32 without a mark": (TOML, "seed = 1\n".encode("utf-32-le"), "is UTF-32, not UTF-8"),
    "UTF-16 in .env": (".env", "PTYCHO_EXEC_SEDE=1\n".encode("utf-16"), ".env is UTF-16"),
    "UTF-16 in .env without a mark": (".env", "PTYCHO_EXEC_SEED=1\r\n".encode("utf-16-le"), ".env is UTF-16"),
    "zero byte": (TOML, "\nseed = 1\x00\n", f"{TOML}:2"),
    "zero byte in .env": (".env", "PTYCHO_EXEC_SEED=1\x00\n", ".env holds a zero byte"),
    "name twice": (TOML, "seed = 1\nseed = 2\n", f"{TOML}:2"),
    "name twice with a hyphen": (TOML, "batch_size = 2\nbatch-size = 1\n", "unknown setting 'batch-size'"),
    "not a number": (TOML, "learning_rate = nan\n", "learning_rate = nan is not allowed"),
    "infinite": (TOML, "gradient_clip_val = inf\n", "gradient_clip_val = inf is not allowed"),
    "5000 digits": (TOML, f"seed = {NINES}\n", "not valid TOML: Exceeds the limit"),
    "Cyrillic name": (TOML, '"s\u0435\u0435d" = 1\n', "'s\\u0435\\u0435d', whose letters only look right"),
    "Cyrillic bare name": (TOML, "s\u0435ed = 1\n", "not valid TOML"),
    "full-width name": (TOML, '"ｓｅｅｄ" = 1\n', "expected: seed"),
    "truth for a number": (TOML, "seed = true\n", "seed = true is not allowed"),
    "date": (TOML, "seed = 2020-01-01\n", "(of type date)"),
    "dotted name": (TOML, "seed.x = 3\n", "seed = {x=3} is not allowed"),
    "table for a value": (TOML, "[seed]\nx = 3\n", "seed = {x=3} is not allowed"),
    "escape codes in a table": (TOML, '[trainer]\n"\\u001b[31mred" = 1\n', "unknown name in trainer"),
    "escape codes in a value of a table": (TOML, 'seed = {x = "\\u001b[31mred"}\n', "seed = {"),
    "escape codes in a name of a table": (TOML, 'seed = {"\\u001b[31mred" = 1}\n', "seed = {"),
    "list of profiles": (TOML, "[[profiles]]\nseed = 3\n", "profiles is not a table"),
    "nested too deeply": (TOML, f"a = {'[' * DEEP}{']' * DEEP}\n", "nested too deeply"),
    "endless name": (TOML, f"{'k' * 100_000} = 1\n", "(100000 characters)"),
    "escape codes in a name": (TOML, '"\\u001b[31mred" = 1\n', "'\\x1b[31mred'"),
    "empty profile": (TOML, 'profile = ""\n', "profile must be the name of a profile"),
    "empty text": (TOML, 'accelerator = ""\n', "accelerator = '' is not allowed"),
    "tool is a list": ("pyproject.toml", "tool = [1]\n# ptycho_exec\n", "tool.ptycho_exec is not a table"),
    "broken table of ours": ("pyproject.toml", "[tool.ptycho_exec]\nseed =\n", "pyproject.toml:2"),
    ".env with a colon": (".env", "PTYCHO_EXEC_SEED: 5\n", "no assignment"),
    ".env with set": (".env", "set PTYCHO_EXEC_SEED=5\n", "no assignment"),
    ".env with an open quote": (".env", 'PTYCHO_EXEC_SEED="4\nA=1\n', "no assignment"),
    ".env exports a wrong name": (".env", "export PTYCHO_EXEC_SED=5\n", "PTYCHO_EXEC_SEED"),
    ".env after several lines": (".env", "A='x\ny'\nPTYCHO_EXEC_SED=4\n", ".env:3"),
}
NAMED: dict[str, tuple[str, str, str]] = {
    "YAML: name twice": ("a.yaml", "seed: 1\nseed: 2\n", "a.yaml:2"),
    "YAML: tabs": ("a.yaml", "seed: 1\n\tbatch_size: 2\n", "not valid YAML"),
    "YAML: two documents": ("a.yaml", "seed: 3\n---\nseed: 4\n", "a.yaml:2"),
    "YAML: a list": ("a.yaml", "- seed: 3\n", "holds no settings"),
    "YAML: code": ("a.yaml", "seed: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    "YAML: null for a number": ("a.yaml", "seed:\n", "seed = none is not allowed"),
    "YAML: merged table": ("a.yaml", "x: &b {seed: 3}\n<<: *b\n", "a.yaml:2"),
    "YAML: merged flow": (
        "a.yaml",
        "profiles: {a: &a {seed: 3}, b: {<<: [*a]}}\n",
        "merge keys (<<) are not read",
    ),
    "YAML: alias of itself": (
        "a.yaml",
        "seed: 1\ndevices: &d [0, *d]\n",
        "an alias stands inside what it repeats",
    ),
    "YAML: 5000 digits": ("a.yaml", f"seed: {NINES}\n", "not valid YAML: Exceeds the limit"),
    "YAML: nested too deeply": ("a.yaml", f"a: {'[' * DEEP}{']' * DEEP}\n", "nested too deeply"),
    "JSON: name twice": ("a.json", '{"seed": 1,\n"seed": 2}', "a.json:2"),
    "JSON: not a number": ("a.json", '{"learning_rate": NaN}', "learning_rate = nan is not allowed"),
    "JSON: last comma": ("a.json", '{"seed": 1,}', "not valid JSON"),
    "JSON: comment": ("a.json", '// hi\n{"seed": 1}', "not valid JSON"),
    "JSON: no table": ("a.json", "3", "holds no settings"),
    "JSON: nested too deeply": ("a.json", '{"a":' * 40 * DEEP + "1" + "}" * 40 * DEEP, "nested too deeply"),
    "JSON: 5000 digits": ("a.json", f'{{"seed": {NINES}}}', "not valid JSON: Exceeds the limit"),
    "INI": ("a.ini", "[x]\nseed=1\n", "seed is ignored in [x]"),
}
VARIABLES: dict[str, tuple[str, str, str]] = {
    "lower case": ("ptycho_exec_seed", "3", "expected: PTYCHO_EXEC_SEED"),
    "mixed case": ("Ptycho_Exec_Seed", "3", "expected: PTYCHO_EXEC_SEED"),
    "nothing after the prefix": ("PTYCHO_EXEC_", "3", "unknown setting 'PTYCHO_EXEC_'"),
    "two underscores": ("PTYCHO_EXEC__SEED", "3", "expected: PTYCHO_EXEC_SEED"),
    "underscore at the end": ("PTYCHO_EXEC_SEED_", "3", "expected: PTYCHO_EXEC_SEED"),
    "Cyrillic letter": ("PTYCHO_EXEC_S\u0415ED", "3", "expected: PTYCHO_EXEC_SEED"),
    "letter without width": ("PTYCHO_EXEC_SEED\u200b", "3", "expected: PTYCHO_EXEC_SEED"),
    "dotted capital i": ("PTYCHO_EXEC_DR\u0130FT", "warn", "expected: PTYCHO_EXEC_DRIFT"),
    "no text at all": ("PTYCHO_EXEC_\udcff", "1", "unknown setting 'PTYCHO_EXEC_"),
    "endless": (f"PTYCHO_EXEC_{'K' * 100_000}", "1", "characters)"),
    "full-width digits": ("PTYCHO_EXEC_SEED", "１２", "seed = '１２' is not allowed"),
    "not a number": ("PTYCHO_EXEC_LEARNING_RATE", "nan", "learning_rate = nan is not allowed"),
    "overflow": ("PTYCHO_EXEC_LEARNING_RATE", "1e999", "learning_rate = 1e999 is not allowed"),
    "5000 digits": ("PTYCHO_EXEC_SEED", NINES, "(5000 characters)"),
    "5000 digits in a list": ("PTYCHO_EXEC_DEVICES", f"[{NINES}]", "(5002 characters)"),
    "quotes": ("PTYCHO_EXEC_ACCELERATOR", '"cpu"', "write cpu (without quotes)"),
    "curly quotes": ("PTYCHO_EXEC_ACCELERATOR", "“cpu”", "write cpu (without quotes)"),
    "quoted number": ("PTYCHO_EXEC_SEED", "'8'", "write 8 (without quotes)"),
    "path for a profile": ("PTYCHO_EXEC_PROFILE", "../../etc/passwd", "unknown profile"),
    "device for a file": ("PTYCHO_EXEC_SETTINGS_FILE", "/dev/zero", "not a regular file"),
}


def refused(place: Place, **request: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        place.settings(**request)
    for finding in caught.value.findings:
        assert finding.what
        assert finding.where
        assert finding.fix
        assert len(finding.render()) < 2000
        assert "\x1b" not in finding.render()
    text = str(caught.value)
    text.encode()
    return text


@pytest.mark.parametrize("name", FILES)
def test_files_that_lie_there(place: Place, name: str) -> None:
    path, text, words = FILES[name]
    (place.cwd / path).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in refused(place)


@pytest.mark.parametrize("name", NAMED)
def test_files_that_are_named(place: Place, name: str) -> None:
    path, text, words = NAMED[name]
    place.write(path, text)
    assert words in refused(place, settings_file=path)


@pytest.mark.parametrize("name", VARIABLES)
def test_variables(place: Place, name: str) -> None:
    variable, text, words = VARIABLES[name]
    place.environ[variable] = text
    assert words in " ".join(refused(place).split())


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (TOML, b"\xef\xbb\xbfseed = 7\n"),
        (TOML, b"seed = 7\r\n# more\r\n"),
        (TOML, b"\tseed\t=\t7 # seven"),
        (".env", b"\xef\xbb\xbfPTYCHO_EXEC_SEED=7\n"),
        (".env", b"PTYCHO_EXEC_SEED=7\r\n"),
        (".env", b"export PTYCHO_EXEC_SEED = '7' # seven\n"),
        (".env", b"A=${B}\nB=${A}\nPTYCHO_EXEC_SEED=${A}7\n"),
    ],
)
def test_what_can_only_be_meant_in_one_way_is_taken(place: Place, path: str, text: bytes) -> None:
    (place.cwd / path).write_bytes(text)
    assert place.settings().seed == 7


@pytest.mark.parametrize("own", ["", "seed = 8\n"])
def test_a_thousand_profiles_that_extend_each_other_are_each_visited_once(
    place: Place, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = "".join(f'[profiles.p{i}]\nextends = "p{i + 1}"\n{own}' for i in range(1000))
    place.write(TOML, f"{chain}[profiles.p1000]\nseed = 7\n")
    visits, find = list[str](), profiles.find_profile
    monkeypatch.setattr(profiles, "find_profile", lambda name, *a: visits.append(name) or find(name, *a))
    origin = place.settings(profile="p0").origins["seed"]
    assert (origin.value, len(origin.shadowed)) == ((8, 1001) if own else (7, 1))
    assert len(visits) <= 4 * 1001
    visits.clear()
    assert place.settings().seed == 42
    assert len(visits) <= 4 * 1001


def test_aliases_that_multiply_are_no_trap(place: Place) -> None:
    rows = ["a: &a {k: 1}"]
    for one, two in zip("abcdefgh", "bcdefghi", strict=True):
        rows.append(f"{two}: &{two} {{{', '.join(f'm{j}: *{one}' for j in range(9))}}}")
    place.write("a.yaml", "\n".join(rows))
    (finding,) = place.resolve(settings_file="a.yaml").errors
    assert (finding.code, "its aliases multiply" in finding.what) == ("broken-file", True)
    assert 1 < finding.line <= 9


def test_a_value_that_contains_itself_is_no_trap(place: Place) -> None:
    endless: list[Any] = [0]
    endless.append(endless)
    wide: Any = 0
    for _ in range(12):
        wide = [wide] * 12
    tangled: dict[str, Any] = {}
    tangled["x"] = [tangled] * 9
    for value in (endless, wide, tangled, [tangled, wide]):
        for name in ("devices", "seed", "tracking_uri"):
            assert f"{name} = " in refused(place, arguments={name: value})


NOT_OURS = [b"# caf\xe9 of another program\nOTHER=1\n", "OTHER=1\n".encode("utf-16"), b"A=\x00\n"]


@pytest.mark.parametrize("text", NOT_OURS)
def test_an_env_file_of_others_that_is_no_text_is_a_note(place: Place, text: bytes) -> None:
    (place.cwd / ".env").write_bytes(text)
    assert place.settings().seed == 42
    (note,) = place.resolve().findings
    assert (note.level, note.code) == ("note", "not-read")
    assert str(place.cwd / ".env") in note.what


def _link_to_nothing(place: Place, name: str) -> None:
    (place.cwd / name).symlink_to("nothing")


def _link_to_itself(place: Place, name: str) -> None:
    (place.cwd / name).symlink_to(name)


def _folder(place: Place, name: str) -> None:
    (place.cwd / name).mkdir()


def _pipe(place: Place, name: str) -> None:
    os.mkfifo(place.cwd / name)


@pytest.mark.parametrize("make", [_link_to_nothing, _link_to_itself, _folder, _pipe])
@pytest.mark.parametrize("name", [TOML, ".env"])
def test_what_bears_the_name_of_a_file_and_is_none_is_noted(
    place: Place, make: Callable[[Place, str], None], name: str
) -> None:
    make(place, name)
    resolution = place.resolve()
    expected = [f"{place.cwd / name} is not read: it is no file, or a link to none"]
    if make is _folder and name == ".env":
        expected = []  # a usual name of virtual environments
    assert [notice.what for notice in resolution.notices] == expected
    assert resolution.errors == ()
    if sys.platform != "win32":
        assert f"not found: {place.cwd / 'a.toml'}" in refused(place, settings_file="a.toml")


def test_a_settings_file_given_twice_is_refused(clean_process: Place, capsys: Any) -> None:
    for name in ("a", "b"):
        clean_process.write(f"{name}.toml", "seed = 7\n")
    for words in (["--settings", "a.toml", "--settings=b.toml"], ["--profile=ci", "--profile", "repro"]):
        assert main(["show", *words]) == 2
        assert "is given twice" in capsys.readouterr().err


def test_of_a_flag_given_twice_the_last_counts_and_the_other_is_shadowed(
    clean_process: Place, capsys: Any
) -> None:
    assert main(["explain", "seed", "--seed=1", "--seed", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "seed = 2",
        "  from      flag --seed",
        "  shadows   1 from flag --seed",
        "  shadows   42 from default",
    ]
    assert main(["show", "--seed=x", "--seed=2"]) == 2
    assert "seed = 'x' is not allowed" in capsys.readouterr().err
