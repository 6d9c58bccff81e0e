"""What a finding says about a value, and the codes by which programs recognise findings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.spec import decode_text, field_specs
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.messages import bad_value
from ptycho_exec.sources.origins import Kind, Origin

if TYPE_CHECKING:
    from conftest import Place

TOML = "ptycho_exec.toml"
ERRORS: dict[str, tuple[str, str, str]] = {
    "misspelt key": (TOML, "batchsize = 1\n", "unknown-name"),
    "value": (TOML, "batch_size = 0\n", "bad-value"),
    "profile's name": (TOML, "profile = 3\n", "bad-value"),
    "unknown profile": (TOML, 'profile = "mine"\n', "unknown-name"),
    "endless profile": (TOML, 'profile = "a"\n[profiles.a]\nextends = "a"\n', "endless-profile"),
    "contradiction": (TOML, "deterministic = true\nbenchmark = true\n", "conflict"),
    "key in another table": (TOML, "[training]\nbatch_size = 1\n", "misplaced-key"),
    "table": (TOML, "[profile]\nx = 1\n", "wrong-table"),
    "misspelt table": ("pyproject.toml", "[tool.ptycho-exec]\nseed = 1\n", "wrong-table"),
    "syntax": (TOML, "seed =\n", "broken-file"),
    "repeated variable": (".env", "PTYCHO_EXEC_SEED=1\nPTYCHO_EXEC_SEED=2\n", "duplicate-key"),
    "misspelt prefix": (".env", "PTYHCO_EXEC_SEED=1\n", "wrong-prefix"),
    "no prefix": (".env", "SEED=1\n", "wrong-prefix"),
    "no assignment": (".env", "PTYCHO_EXEC_SEED 1\n", "not-an-assignment"),
}
NOTES: dict[str, tuple[str, str, str]] = {
    "misnamed file": ("ptycho-exec.toml", "", "not-read"),
    "empty variable": (".env", "PTYCHO_EXEC_SEED=\n", "empty-variable"),
    "Lightning's variable": (".env", "PL_GLOBAL_SEED=1\n", "no-effect"),
    "another program's line": (".env", "some words\n", "not-an-assignment"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_the_code_of_an_error(place: Place, case: str) -> None:
    name, text, code = ERRORS[case]
    place.write(name, text)
    with pytest.raises(SettingsError) as caught:
        place.settings()
    (finding,) = caught.value.findings
    assert (finding.code, finding.level, Path(finding.file).name) == (code, "error", name)


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_a_key_that_a_parser_would_keep_silently_is_a_duplicate(place: Place, name: str) -> None:
    place.write(name, "seed: 1\nseed: 2\n" if name == "a.yaml" else '{"seed": 1,\n"seed": 2}')
    (finding,) = place.resolve(settings_file=name).errors
    assert (finding.code, finding.what, finding.line) == ("duplicate-key", "seed is defined twice", 2)


def test_an_absent_file_has_a_code(place: Place) -> None:
    (finding,) = place.resolve(settings_file="absent.toml").errors
    assert finding.code == "unreadable-file"


@pytest.mark.parametrize("case", NOTES)
def test_a_note_stops_nothing_and_has_a_code(place: Place, case: str) -> None:
    name, text, code = NOTES[case]
    place.write(name, text)
    (finding,) = place.resolve().findings
    assert (finding.code, finding.level) == (code, "note")
    assert place.settings() == ExecutionSettings.from_values({})


def test_the_page_names_every_code() -> None:
    page = Path(__file__).parents[3] / "specs" / "precedence.md"
    named = re.findall(
        r"`([a-z]+(?:-[a-z]+)+|conflict)`", page.read_text("utf-8").partition("## What is refused")[2]
    )
    codes = {code for *_, code in (*ERRORS.values(), *NOTES.values())} | {"unreadable-file"}
    assert codes <= set(named)


@pytest.mark.parametrize(
    ("name", "text", "fix"),
    [
        ("precision", "'32-true'", "write 32-true, without quotes"),
        ("precision", "32-tru", "did you mean 32-true?"),
        ("seed", "many", "write another value, or remove it for the default, 42"),
    ],
)
def test_the_remedy_of_a_typed_value_works(name: str, text: str, fix: str) -> None:
    spec = field_specs()[name]
    finding = bad_value(spec, Origin(Kind.FLAG, spec.flag, decode_text(spec, text), raw=text))
    assert (finding.fix, finding.field, finding.where) == (fix, name, f"flag {spec.flag}")
