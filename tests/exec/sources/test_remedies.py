"""Every remedy is tried: what `fix` says is done to the input, mechanically, and the next call must succeed.

A case is an input with one mistake and the values that were meant. `Input.follow` edits the place that the
finding names as its `fix` says, without knowing the case.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ptycho_exec.cli.commands import main
from ptycho_exec.errors import Finding, SettingsError
from ptycho_exec.fields.lightning_words import NOTHING, WORDS
from ptycho_exec.fields.model import CONFLICTS
from ptycho_exec.fields.spec import field_specs, format_value
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.classes import settings_classes
from ptycho_torch.cli import main as main_of_science
from ptycho_torch.settings import ScienceSettings
from tests.exec.sources.test_messages import ERRORS

if TYPE_CHECKING:
    from conftest import Place

ENV = "PTYCHO_EXEC_"


def in_a_file(finding: Finding) -> bool:
    """Return whether a finding is about a file of settings, not about a call in a program."""
    return bool(finding.file) and not finding.file.endswith(".py")


@dataclass
class Input:
    """Everything that a call reads, as text that can be edited."""

    place: Place
    files: dict[str, str] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    settings_file: str | None = None
    profile: str | None = None

    def settings(self) -> ExecutionSettings:
        for name, text in self.files.items():
            self.place.write(name, text)
        self.place.environ = self.environ
        return self.place.settings(
            arguments=self.arguments,
            flags=self.flags,
            settings_file=self.settings_file,
            profile=self.profile,
        )

    def finding(self) -> Finding | None:
        try:
            self.settings()
        except SettingsError as error:
            return error.findings[0]
        return None

    # --- what a user would do with an editor

    def edit_line(self, finding: Finding, change: Callable[[str], str | None]) -> None:
        name = str(Path(finding.file).relative_to(self.place.cwd))
        rows = self.files[name].split("\n")
        new = change(rows[finding.line - 1])
        rows[finding.line - 1 : finding.line] = [] if new is None else [new]
        self.files[name] = "\n".join(rows)

    def assign(self, finding: Finding, written: str) -> None:
        """Write a value, or a whole assignment, where the finding says the wrong one is."""
        if finding.file.endswith(".env"):
            self.edit_line(finding, lambda row: f"{row.partition('=')[0]}={written}")
        elif in_a_file(finding):
            self.edit_line(finding, lambda row: written + ("," if row.rstrip().endswith(",") else ""))
        elif finding.where.startswith("environment"):
            self.environ[finding.where.split()[1]] = written
        elif finding.where.startswith("flag"):
            self.flags[finding.field] = written
        else:
            self.arguments |= eval(f"dict({written})")

    def rename(self, finding: Finding, new: str) -> None:
        old = re.search(r"'([^']+)'", finding.what)
        name = old[1] if old else finding.what.split()[0]
        if in_a_file(finding):
            self.edit_line(finding, lambda row: row.replace(name, new, 1))
        for holder in (self.environ, self.arguments):
            if name in holder:
                holder[new] = holder.pop(name)
        if name == self.profile:
            self.profile = new

    def remove(self, finding: Finding) -> None:
        if in_a_file(finding):
            self.edit_line(finding, lambda _: None)
            return
        named = re.findall(r"[\w-]+", f"{finding.what} {finding.where}")
        for holder in (self.environ, self.arguments, self.flags):
            for name in set(named) & set(holder):
                del holder[name]

    def move(self, finding: Finding) -> None:
        name = str(Path(finding.file).relative_to(self.place.cwd))
        rows = self.files[name].split("\n")
        row = rows.pop(finding.line - 1)
        header = re.search(r"^\w+ in (\[.*\])$", finding.expected)
        at = rows.index(header[1]) + 1 if header else 0
        self.files[name] = "\n".join([*rows[:at], row.strip(), *rows[at:]])

    def follow(self, finding: Finding) -> None:
        """Do the first thing that a remedy says."""
        fix = finding.fix
        if nested := re.match(r"write (\w+)=\{\"(\w+)\": \.\.\.\}", fix):
            self.arguments[nested[1]] = {nested[2]: self.arguments.pop(nested[2])}
            return
        if written := re.match(r"(?:write|did you mean) (.+?)(?:\?$| \([^()]*\)$|, or .*$|$)", fix):
            if finding.code in ("unknown-name", "wrong-prefix"):
                self.rename(finding, written[1].split(" or ")[0])
                return
            if finding.code == "bad-value" and not written[1].startswith(("another value", "the name")):
                self.assign(finding, written[1])
                return
        if renamed := re.match(r"rename it to (\S+)$", fix):
            self.rename(finding, renamed[1])
        elif table := re.match(r"rename the table to (\[.*\])$", fix):
            self.edit_line(finding, lambda _: table[1])
        elif re.match(r"move (?:the line there|\w+ out of \[profiles\])$", fix):
            self.move(finding)
        elif "remove" in fix:
            self.remove(finding)
        else:
            raise AssertionError(f"nobody knows how to follow: {fix}")

    def repaired(self) -> ExecutionSettings:
        """Follow the remedies one by one until the settings are accepted."""
        for _ in range(4):
            finding = self.finding()
            if finding is None:
                return self.settings()
            self.follow(finding)
        return self.settings()


# --- a value that is refused, in every source ---------------------------------------------------------------

# Field, the value as Python or JSON has it, and what is meant.
VALUES: list[tuple[str, Any, Any]] = [
    ("batch_size", "8", 8),
    ("batch_size", "8 # small", 8),
    ("batch_size", "'8'", 8),
    ("batch_size", "8;", 8),
    ("seed", "1_000", 1000),
    ("seed", "1e3", 1000),
    ("learning_rate", "0,01", 0.01),
    ("compile", "yes", True),
    ("compile", 1, True),
    ("devices", "0,", (0,)),
    ("devices", -1, "auto"),
    ("devices", "2,3", (2, 3)),
    ("accelerator", "CPU", "cpu"),
    ("accelerator", "cdua", "cuda"),
    ("accelerator", "tpu", "auto"),
    ("precision", 16, "16-mixed"),
    ("precision", "bf16", "bf16-mixed"),
    ("precision", "64", "64-true"),
    ("max_time", "01:30:00", "00:01:30:00"),
    ("max_time", "90 min", "00:01:30:00"),
    ("max_time", "soon", None),
    ("fast_dev_run", True, 1),
    ("fast_dev_run", False, None),
    ("gradient_clip_val", 0, None),
    ("logger_backend", False, None),
    ("logger_backend", "tensorbord", "tensorboard"),
    ("limit_train_batches", "10%", 0.1),
    ("scheduler", "plateau", "ReduceLROnPlateau"),
    ("deterministic", "WARN", "warn"),
    ("experiment_name", "", "ptycho"),
    ("num_threads", 0, None),
    ("batch_size", 0, 16),
    ("batch_size", None, 16),
    ("batch_size", {"a": 1}, 16),
]
LITERALS: dict[str, Callable[[Any], str]] = {
    "a.toml": lambda value: '"none"' if value is None else json.dumps(value).replace('{"a": ', "{a = "),
    "a.yaml": json.dumps,
    "a.json": json.dumps,
}
LINES = {"a.toml": "{} = {}\nmiddle_trim = 1\n", "a.yaml": "{}: {}\nmiddle_trim: 1\n"}
LINES["a.json"] = '{{\n"{}": {},\n"middle_trim": 1\n}}\n'
SOURCES = ["argument", "variable", ".env", "flag", *LITERALS]


def with_value(place: Place, source: str, name: str, value: Any) -> Input:
    text = value if isinstance(value, str) else format_value(value)
    variable = ENV + name.upper()
    if source == "argument":
        return Input(place, arguments={name: value, "middle_trim": 1})
    if source == "variable":
        return Input(place, environ={variable: text, f"{ENV}MIDDLE_TRIM": "1"})
    if source == ".env":
        return Input(place, files={".env": f'{variable}="{text}"\n{ENV}MIDDLE_TRIM=1\n'})
    if source == "flag":
        return Input(place, flags={name: text, "middle_trim": "1"})
    text = LINES[source].format(name, LITERALS[source](value))
    return Input(place, files={source: text}, settings_file=source)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("name", "value", "meant"), VALUES)
def test_a_refused_value(place: Place, source: str, name: str, value: Any, meant: Any) -> None:
    settings = with_value(place, source, name, value).repaired()
    assert (getattr(settings, name), settings.middle_trim) == (meant, 1)


@pytest.mark.parametrize("source", ["argument", "variable", "a.toml", "a.json"])
@pytest.mark.parametrize("name", WORDS)
def test_every_word_of_lightning(place: Place, source: str, name: str) -> None:
    for word, meaning in WORDS[name].items():
        settings = with_value(place, source, name, word).repaired()
        meant = field_specs()[name].default if meaning.value is NOTHING else meaning.value
        meant = tuple(meant) if isinstance(meant, list) else meant
        if source == "argument" or word not in ("none", "null") or not field_specs()[name].optional:
            assert getattr(settings, name) == meant, word


def test_a_table_for_a_time(place: Place) -> None:
    span = timedelta(hours=3)
    for text, meant in (("max_time = 03:00:00\n", span), ("max_time = {hours = 3}\n", span)):
        made = Input(place, files={"ptycho_exec.toml": text}).repaired()
        assert made.max_time == ExecutionSettings.from_values({"max_time": meant}).max_time


# --- names and places ---------------------------------------------------------------------------------------

# Files, variables, arguments; a profile; and the values meant.
Case = tuple[Mapping[str, Any], Mapping[str, Any]]
NAMES: dict[str, Case] = {
    "misspelt argument": ({"arguments": {"bach_size": 4}}, {"batch_size": 4}),
    "other program's argument": ({"arguments": {"lr": 0.5}}, {"learning_rate": 0.5}),
    "science": ({"arguments": {"epochs": 4}}, {}),
    "parameter of the Trainer": (
        {"arguments": {"sync_batchnorm": True}},
        {"trainer": {"sync_batchnorm": True}},
    ),
    "parameter in a variable": (
        {"environ": {"PTYCHO_EXEC_MIN_EPOCHS": "3"}},
        {"trainer": {"min_epochs": 3}},
    ),
    "parameter in a file": (
        {"files": {"ptycho_exec.toml": "min_epochs = 3\n"}},
        {"trainer": {"min_epochs": 3}},
    ),
    "misspelt in a table": (
        {"files": {"ptycho_exec.toml": "[trainer]\nmin_epoch = 3\n"}},
        {"trainer": {"min_epochs": 3}},
    ),
    "a field in a table": ({"files": {"ptycho_exec.toml": "[trainer]\naccumulate_grad_batches = 3\n"}}, {}),
    "an object in a table": ({"files": {"ptycho_exec.toml": "[trainer]\nplugins = []\n"}}, {}),
    "brought by the call": ({"arguments": {"callbacks": []}}, {}),
    "nothing near": ({"arguments": {"xyzzy": 4}}, {}),
    "misspelt variable": ({"environ": {"PTYCHO_EXEC_SEDE": "4"}}, {"seed": 4}),
    "misspelt prefix": ({"environ": {"PTYHCO_EXEC_SEED": "4"}}, {"seed": 4}),
    "half a prefix": ({"environ": {"PTYCHO_SEED": "4"}}, {"seed": 4}),
    "settings file": (
        {"environ": {"PTYCHO_EXEC_CONFIG": "b.toml"}, "files": {"b.toml": "seed = 4\n"}},
        {"seed": 4},
    ),
    "misspelt line": ({"files": {".env": "A=1\nPTYCHO_EXEC_SED=4\n"}}, {"seed": 4}),
    "no prefix": ({"files": {".env": "SEED=4\n"}}, {"seed": 4}),
    "no assignment": ({"files": {".env": "PTYCHO_EXEC_SEED 4\n"}}, {}),
    "twice in .env": ({"files": {".env": "PTYCHO_EXEC_SEED=3\nPTYCHO_EXEC_SEED=4\n"}}, {"seed": 3}),
    "misspelt key": ({"files": {"ptycho_exec.toml": "batch_sise = 4\n"}}, {"batch_size": 4}),
    "misspelt key of JSON": ({"files": {"a.json": '{\n"sed": 4}'}, "settings_file": "a.json"}, {"seed": 4}),
    "misspelt key of YAML": ({"files": {"a.yaml": "\nsed: 4\n"}, "settings_file": "a.yaml"}, {"seed": 4}),
    "twice in YAML": ({"files": {"a.yaml": "seed: 4\nseed: 5\n"}, "settings_file": "a.yaml"}, {"seed": 4}),
    "wrong table": ({"files": {"ptycho_exec.toml": "[training]\nseed = 4\n"}}, {"seed": 4}),
    "wrong table in pyproject": (
        {
            "files": {
                "pyproject.toml": "[tool.ptycho_exec]\nnum_workers = 1\n[tool.ptycho_exec.x]\nseed = 4\n"
            }
        },
        {"seed": 4, "num_workers": 1},
    ),
    "misspelt table": ({"files": {"pyproject.toml": "[tool.ptycho-exec]\nseed = 4\n"}}, {"seed": 4}),
    "profile's key": (
        {"files": {"ptycho_exec.toml": "[profiles.x]\nsede = 4\n"}, "profile": "x"},
        {"seed": 4},
    ),
    "misspelt profile": ({"profile": "repo"}, {"deterministic": True}),
    "unknown profile": ({"profile": "xyzzy"}, {"accelerator": "cpu"}),
    "misspelt extends": (
        {"files": {"ptycho_exec.toml": '[profiles.x]\nextends = "cii"\n'}, "profile": "x"},
        {"accelerator": "cpu"},
    ),
    "endless profile": (
        {"files": {"ptycho_exec.toml": '[profiles.x]\nextends = "x"\nseed = 4\n'}, "profile": "x"},
        {"seed": 4},
    ),
    "table [profile]": ({"files": {"ptycho_exec.toml": "[profile]\nseed = 4\n"}}, {}),
    "setting among profiles": ({"files": {"ptycho_exec.toml": "[profiles]\nseed = 4\n"}}, {"seed": 4}),
    "no table among profiles": (
        {"files": {"ptycho_exec.toml": "seed = 4\n[profiles]\nx = 4\n"}},
        {"seed": 4},
    ),
    "profiles is a number": ({"files": {"ptycho_exec.toml": "profiles = 4\nseed = 4\n"}}, {"seed": 4}),
    "profile's name is a number": ({"files": {"ptycho_exec.toml": "profile = 3\nseed = 4\n"}}, {"seed": 4}),
    "extends a number": (
        {"files": {"ptycho_exec.toml": "[profiles.x]\nextends = 3\nseed = 4\n"}, "profile": "x"},
        {"seed": 4},
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_name_or_place(place: Place, name: str) -> None:
    broken, meant = NAMES[name]
    copied = {key: dict(part) if isinstance(part, dict) else part for key, part in broken.items()}
    settings = Input(place, **copied).repaired()
    for key, value in meant.items():
        assert getattr(settings, key) == value
    changed = {key for key, origin in settings.origins.items() if origin.kind not in ("default", "profile")}
    assert changed <= {*meant, "trainer"}


def test_every_kind_of_error_has_a_remedy_that_is_tried_here(place: Place) -> None:
    tried = {"bad-value", "unset-name", "conflict", "broken-file", "unreadable-file"}
    for broken, _ in NAMES.values():
        copied = {key: dict(part) if isinstance(part, dict) else part for key, part in broken.items()}
        for path in place.cwd.iterdir():
            path.unlink()
        finding = Input(place, **copied).finding()
        assert finding is not None
        tried.add(finding.code)
    assert {code for *_, code in ERRORS.values()} <= tried


def test_each_way_out_of_an_absent_file(clean_process: Place) -> None:
    made = Input(clean_process, settings_file="absent.toml")
    finding = made.finding()
    assert finding is not None
    assert finding.fix == "correct the path, or do not name a file; `ptycho-exec init` writes a starter file"
    assert Input(clean_process).settings().seed == 42
    assert main(["init", "absent.toml"]) == 0
    assert made.settings().seed == 42


def test_each_way_out_of_a_name_that_is_set_nowhere(place: Place) -> None:
    text = f"{ENV}EXPERIMENT_NAME=run-${{NOPE}}\n"
    made = Input(place, files={".env": text})
    finding = made.finding()
    assert finding is not None
    assert finding.fix == (
        "set NOPE, write ${NOPE:-default}, or put the whole text in single quotes to keep it as it is"
    )
    ways: list[tuple[Input, str]] = [
        (Input(place, files={".env": text}, environ={"NOPE": "7"}), "run-7"),
        (Input(place, files={".env": text.replace("${NOPE}", "${NOPE:-default}")}), "run-default"),
        (Input(place, files={".env": text.replace("=run-${NOPE}", "='run-${NOPE}'")}), "run-${NOPE}"),
    ]
    for way, meant in ways:
        assert way.settings().experiment_name == meant


def _assignments(fix: str) -> Iterator[dict[str, Any]]:
    """Yield each assignment that the remedy of a contradiction names, and each setting that it removes."""
    for name, value in re.findall(r"\b(\w+)=([\w.-]+)", fix):
        yield {name: json.loads(value) if value in ("true", "false") or value.isdigit() else value}
    if match := re.search(r"set (\w+) \(([\d.]+) is usual", fix):
        yield {match[1]: float(match[2])}
    for name in re.findall(r"remove (\w+)$", fix):
        yield {name: field_specs()[name].default}


@pytest.mark.parametrize("rule", CONFLICTS, ids=lambda rule: "+".join(rule.fields))
def test_each_way_out_of_a_contradiction(rule: Any) -> None:
    ways = list(_assignments(rule.fix))
    assert ways
    kinds = {tuple: (0, 1), float: 0.5}
    sample = {name: kinds.get(words[0], words[0]) for name, words in rule.when.items()}
    with pytest.raises(SettingsError) as caught:
        ExecutionSettings.from_values(sample)
    assert any(finding.fix == rule.fix for finding in caught.value.findings)
    for way in ways:
        assert ExecutionSettings.from_values({**sample, **way})


# --- files that cannot be parsed ----------------------------------------------------------------------------


def _at_mark(change: Callable[[str], str]) -> Callable[[str, int], str]:
    return lambda row, column: row[:column] + change(row[column:])


def _before_mark(pattern: str, new: str) -> Callable[[str, int], str]:
    return lambda row, column: re.sub(pattern, new, row[:column]) + row[column:]


HANDS: dict[str, Callable[[str, int], str]] = {
    "remove the comment": lambda row, _: re.sub(r"\s*(?://|#|/\*).*$", "", row),
    "write each backslash twice": lambda row, _: row.replace("\\", "\\\\"),
    "write strings in double quotes": lambda row, _: row.replace("'", '"'),
    "write true or false in small letters": _at_mark(lambda rest: rest[0].lower() + rest[1:]),
    "write null": _at_mark(lambda rest: re.sub(r"^\w+", "null", rest)),
    "write the name in double quotes": _at_mark(lambda rest: re.sub(r"^[\w-]+", r'"\g<0>"', rest)),
    "write the word in double quotes": _at_mark(lambda rest: re.sub(r"^[\w-]+", r'"\g<0>"', rest)),
    "write the word in quotes": _at_mark(lambda rest: re.sub(r"^[\w-]+", r'"\g<0>"', rest)),
    "write a zero before the point": _at_mark(lambda rest: f"0{rest}"),
    "write the path in single quotes": lambda row, _: row.replace('"', "'"),
    "write the time in quotes": lambda row, _: re.sub(r"[\d:]+$", r'"\g<0>"', row),
    "begin the comment with #": lambda row, _: row.replace("//", "#"),
    "write = instead of the colon": lambda row, _: row.replace(":", " =", 1),
    "indent with spaces": lambda row, _: row.replace("\t", "  "),
    "write the text in quotes": lambda row, _: re.sub(r": (.*)$", r': "\1"', row, count=1),
}
BROKEN: list[tuple[str, str, dict[str, Any]]] = [
    ("a.json", '{\n"seed": 4, // small\n"num_workers": 1}', {"seed": 4, "num_workers": 1}),
    ("a.json", '// small\n{"seed": 4}', {"seed": 4}),
    ("a.json", '{"seed": 4}\n# small', {"seed": 4}),
    ("a.json", '{"seed": 4,\n}', {"seed": 4}),
    ("a.json", '{"devices": [0, 1,\n]}', {"devices": (0, 1)}),
    ("a.json", "{'seed': 4}", {"seed": 4}),
    ("a.json", "{seed: 4}", {"seed": 4}),
    ("a.json", '{"accelerator": cpu}', {"accelerator": "cpu"}),
    ("a.json", '{"compile": True}', {"compile": True}),
    ("a.json", '{"early_stop_patience": None}', {"early_stop_patience": None}),
    ("a.json", '{"learning_rate": .5}', {"learning_rate": 0.5}),
    ("a.json", '{"tracking_uri": "C:\\Users"}', {"tracking_uri": "C:\\Users"}),
    ("a.toml", 'tracking_uri = "C:\\Users\\me"', {"tracking_uri": "C:\\Users\\me"}),
    ("a.toml", "max_time = 00:01:30:00", {"max_time": "00:01:30:00"}),
    ("a.toml", "compile = True", {"compile": True}),
    ("a.toml", "accelerator = cpu", {"accelerator": "cpu"}),
    ("a.toml", "early_stop_patience = none", {"early_stop_patience": None}),
    ("a.toml", "learning_rate = .5", {"learning_rate": 0.5}),
    ("a.toml", "seed = 4 // small", {"seed": 4}),
    ("a.toml", "// small\nseed = 4", {"seed": 4}),
    ("a.toml", "seed: 4", {"seed": 4}),
    ("a.yaml", 'tracking_uri: "C:\\Users"', {"tracking_uri": "C:\\Users"}),
    ("a.yaml", "profiles:\n\tx:\n\t\tseed: 4\n", {}),
    ("a.yaml", "experiment_name: run: 1", {"experiment_name": "run: 1"}),
    ("a.yaml", "experiment_name: @home", {"experiment_name": "@home"}),
]


@pytest.mark.parametrize(("name", "text", "meant"), BROKEN)
def test_a_file_that_cannot_be_parsed(place: Place, name: str, text: str, meant: dict[str, Any]) -> None:
    made = Input(place, files={name: text}, settings_file=name)
    for _ in range(3):
        finding = made.finding()
        if finding is None:
            break
        column = len(finding.excerpt.split("\n")[1]) - 1
        if finding.fix == "remove the comma before the closing bracket":
            made.files[name] = re.sub(r",(\s*[}\]])", r"\1", made.files[name])
            continue
        (hand,) = [act for words, act in HANDS.items() if finding.fix.startswith(words)]
        made.edit_line(finding, lambda row, hand=hand, column=column: hand(row, column))  # type: ignore[misc]
    settings = made.settings()
    assert {key: getattr(settings, key) for key in meant} == meant


def test_what_a_merge_key_repeats_stands_in_a_profile_that_others_extend(place: Place) -> None:
    merged = "profiles:\n  base: &b\n    seed: 4\n  long:\n    <<: *b\n    num_workers: 1\n"
    made = Input(place, files={"a.yaml": merged}, settings_file="a.yaml", profile="long")
    finding = made.finding()
    assert finding is not None
    assert "put them into a profile that others name in `extends`" in finding.fix
    made.edit_line(finding, lambda _: "    extends: base")
    settings = made.settings()
    assert (settings.seed, settings.num_workers) == (4, 1)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
@pytest.mark.parametrize("name", [".env", "ptycho_exec.toml"])
def test_a_file_in_another_encoding(place: Place, name: str, encoding: str) -> None:
    text = f"{ENV}EXPERIMENT_NAME=café\n" if name == ".env" else 'experiment_name = "café"\n'
    (place.cwd / name).write_bytes(text.encode(encoding))
    with pytest.raises(SettingsError, match="fix:      save it as UTF-8"):
        place.settings()
    (place.cwd / name).write_text(text, "utf-8")
    assert place.settings().experiment_name == "café"


# --- flags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--bach-size", "4"], "batch_size  4 "),
        (["--lr=0.5"], "learning_rate  0.5 "),
        (["--config", "a.toml"], "seed  3 "),
        (["--sync-batchnorm"], "trainer.sync_batchnorm  true "),
        (["--profile", "ci", "--profile", "laptop"], "profile:laptop"),
        (["--batch-size", "1e2"], "batch_size  100 "),
        (["--accelerator", "'cpu'"], "accelerator  cpu "),
    ],
)
def test_a_wrong_flag(clean_process: Place, capsys: Any, words: list[str], shown: str) -> None:
    clean_process.write("a.toml", "seed = 3\n")
    assert main(["show", "--changed", *words]) == 2
    fix = capsys.readouterr().err.partition("fix:")[2].splitlines()[0].strip()
    value = re.match(r"write (.+?)(?: \(.*\)|, or .*)?$", fix)
    if whole := re.search(r"or write (--\w+ \S+)$", fix):
        words = whole[1].split()
    elif value and value[1].endswith("=..."):
        words = value[1].replace("...", "true").split()
    elif value and value[1].startswith("--"):
        words = [words[0].replace(words[0].partition("=")[0], value[1], 1), *words[1:]]
    elif value:
        words = [words[0], value[1]]
    else:
        assert fix.startswith("remove it")
        words = []
    assert main(["show", "--changed", *words]) == 0
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "name", "head"),
    [
        ("ptycho-exec", "epochs", "epochs = "),
        ("ptycho-exec", "PTYCHO_TORCH_GRIDSIZE", "gridsize = "),
        ("ptycho-torch", "batch_size", "batch_size = "),
        ("ptycho-torch", "batch-size", "batch_size = "),
    ],
)
def test_a_field_of_the_other_program_is_explained_by_the_command_that_is_named(
    clean_process: Place, capsys: pytest.CaptureFixture[str], program: str, name: str, head: str
) -> None:
    programs = {"ptycho-exec": main, "ptycho-torch": main_of_science}
    assert programs[program](["explain", name, "--json"]) == 2
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    run, other, *words = finding["fix"].split()
    assert (run, other == program) == ("run", False)
    assert programs[other](words) == 0
    assert capsys.readouterr().out.startswith(head)


def test_a_field_of_another_class_is_explained_by_the_call_that_is_named(clean_process: Place) -> None:
    classes = {model.__name__: model for model in settings_classes()}
    for model, name in ((ExecutionSettings, "epochs"), (ScienceSettings, "batch_size")):
        with pytest.raises(SettingsError) as caught:
            model().explain(name)
        call = caught.value.findings[0].fix.removeprefix("call ")
        assert eval(call, dict(classes)).startswith(f"{name} = ")
