"""What a finding says about a value, and the codes by which programs recognise findings."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pytest
from pydantic import Field

from ptycho_exec.errors import Finding, SettingsError
from ptycho_exec.fields.spec import decode_text, field_specs
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.messages import bad_value
from ptycho_exec.sources.origins import Kind, Origin

if TYPE_CHECKING:
    from conftest import Place
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Place
from typing import TYPE_CHECKING

from ptycho_exec.fields.model import CONFLICTS

if TYPE_CHECKING:
    from conftest import Place
from tests.exec.makers import CLASHES, make

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
    "name that is set nowhere": (".env", "PTYCHO_EXEC_EXPERIMENT_NAME=${NOPE}\n", "unset-name"),
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
        ("precision", "'32-true'", "write 32-true (without quotes)"),
        ("precision", "32-tru", "did you mean 32-true?"),
        ("seed", "many", "write another value, or remove it for the default, 42"),
    ],
)
def test_the_remedy_of_a_typed_value_works(name: str, text: str, fix: str) -> None:
    spec = field_specs()[name]
    finding = bad_value(spec, Origin(Kind.FLAG, spec.flag, decode_text(spec, text), raw=text))
    assert (finding.fix, finding.field, finding.where) == (fix, name, f"flag {spec.flag}")


def test_all_findings_come_in_one_report(place: Place) -> None:
    place.environ |= {"PTYCHO_EXEC_BACH_SIZE": "1", "PTYCHO_EXEC_SEED": "x"}
    place.write(".env", "\nPTYCHO_EXEC_DEVICE=1\nseed=3\n")
    place.write("ptycho_exec.toml", "learning_rat = 1\n[training]\nnum_workers = 2\nfoo = 3\n")
    place.write("named.yaml", "seeed: 1\n")
    with pytest.raises(SettingsError) as caught:
        place.settings(settings_file="named.yaml", arguments={"acelerator": "cpu"}, profile="c")
    reported = [(f.what.partition(":")[0], Path(f.file).name, f.line) for f in caught.value.findings]
    assert sorted(reported) == sorted(
        [
            ("unknown setting 'acelerator'", "conftest.py", 37),
            ("unknown setting 'PTYCHO_EXEC_BACH_SIZE'", "", 0),
            ("seed = 'x' is not allowed", "", 0),
            ("unknown setting 'PTYCHO_EXEC_DEVICE'", ".env", 2),
            ("seed in .env is ignored", ".env", 3),
            ("unknown setting 'learning_rat'", "ptycho_exec.toml", 1),
            ("num_workers is ignored in [training]", "ptycho_exec.toml", 3),
            ("unknown setting 'foo'", "ptycho_exec.toml", 4),
            ("unknown setting 'seeed'", "named.yaml", 1),
            ("unknown profile 'c'", "", 0),
        ]
    )
    assert all(f.what and f.where and f.expected and f.fix for f in caught.value.findings)


def test_a_malformed_value_is_told_although_it_is_shadowed(place: Place) -> None:
    place.write("ptycho_exec.toml", "batch_size = 0\n")
    place.write_user_file("\nbatch_size = -1\n")
    place.write("pyproject.toml", "[tool.ptycho_exec]\nbatch_size = 4\n")
    with pytest.raises(SettingsError) as caught:
        place.settings(arguments={"batch_size": 8}, factory_defaults={"batch_size": 2.5})
    reported = {(f.what, f.line) for f in caught.value.findings}
    assert reported == {
        ("batch_size = 0 is not allowed", 1),
        ("batch_size = -1 is not allowed", 2),
        ("batch_size = 2.5 is not allowed", 0),
    }


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        ({"batch_size": "8"}, "write batch_size=8 (without quotes)"),
        ({"compile": "yes"}, "write compile=True (without quotes)"),
        ({"accelerator": "cdua"}, 'did you mean accelerator="cuda"?'),
        ({"deterministic": "WARN"}, 'did you mean deterministic="warn"?'),
        ({"batch_size": " "}, "write another value, or remove it for the default, 16"),
        ({"batch_size": "nan"}, "write another value, or remove it for the default, 16"),
        ({"learning_rate": "nan"}, "write another value, or remove it for the default, 0.001"),
    ],
)
def test_the_remedy_fits_the_mistake(value: dict[str, Any], fix: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make(**value)
    assert caught.value.findings[0].fix == fix


def test_a_value_of_a_foreign_type_names_its_type() -> None:
    from decimal import Decimal
    from pathlib import Path

    with pytest.raises(SettingsError, match=r"tracking_uri = /x \(of type PosixPath\) is not allowed"):
        make(tracking_uri=Path("/x"))
    with pytest.raises(SettingsError, match=r"batch_size = 2\.5 \(of type Decimal\) is not allowed"):
        make(batch_size=Decimal("2.5"))


def test_an_enormous_value_is_shortened_in_the_message() -> None:
    with pytest.raises(SettingsError, match=r"10{59}\.\.\. \(401 characters\) is not allowed"):
        make(batch_size=10**400)


@pytest.mark.parametrize("values", CLASHES, ids=str)
def test_contradictions_show_both_sides_and_how_to_choose(values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        make(**values)
    (finding,) = caught.value.findings
    (rule,) = [rule for rule in CONFLICTS if rule.fix == finding.fix]
    assert all(f"{name} = " in finding.where for name in rule.fields)
    assert finding.what.startswith(" and ".join(rule.fields))


def test_two_contradictions_come_in_one_report() -> None:
    with pytest.raises(SettingsError) as caught:
        make(benchmark=True, gradient_clip_algorithm="agc")
    assert len(caught.value.findings) == 2


def test_a_contradiction_across_sources_names_both_places(place: Place) -> None:
    place.environ["PTYCHO_EXEC_BENCHMARK"] = "yes"
    place.write("ptycho_exec.toml", "\ndeterministic = true\n")
    with pytest.raises(SettingsError) as caught:
        place.settings()
    (finding,) = caught.value.findings
    assert "benchmark = true (environment PTYCHO_EXEC_BENCHMARK)" in finding.where
    assert f"deterministic = true (project-file ({place.cwd}/ptycho_exec.toml:2))" in finding.where
    assert finding.line == 2


@pytest.mark.parametrize(
    ("row", "what", "fix"),
    [
        ("min_epoch = 3", "unknown name in trainer 'min_epoch'", "write min_epochs, or remove it"),
        (
            "accumulate_grad_batches = 2",
            "trainer.accumulate_grad_batches is decided by the setting accum_steps",
            "remove it and set accum_steps instead",
        ),
        (
            'logger = "csv"',
            "trainer.logger is decided by the setting logger_backend",
            "remove it and set logger_backend instead",
        ),
        (
            "plugins = []",
            "unknown name in trainer 'plugins'",
            "remove it (no setting: a program passes its own to `build_trainer` or `trainer_run` in trainer_",
        ),
        ('barebones = "ja"', "trainer.barebones = 'ja' is not allowed", "write another value, or remove it"),
        ("min_steps = 0", "trainer.min_steps = 0 is not allowed", "write another value, or remove it"),
        ("min_steps = [1]", "trainer.min_steps = [1] is not allowed", "write another value, or remove it"),
    ],
)
@pytest.mark.parametrize("head", ["[trainer]", "[profiles.other.trainer]"])
def test_what_is_wrong_in_a_table_has_its_own_line(
    place: Place, head: str, row: str, what: str, fix: str
) -> None:
    path = place.write("ptycho_exec.toml", f"{head}\nmin_epochs = 1\n{row}\n")
    with pytest.raises(SettingsError) as caught:
        place.settings()
    (finding,) = caught.value.findings
    assert (finding.what, finding.file, finding.line) == (what, str(path), 3)
    assert finding.fix.startswith(fix)


def test_a_table_that_is_none(place: Place) -> None:
    for text in ("trainer = 3", "trainer = [1]", 'trainer = "x"'):
        place.write("ptycho_exec.toml", text)
        with pytest.raises(SettingsError, match=r"expected: a table of parameters of lightning\.Trainer"):
            place.settings()


def test_a_wrong_table_is_refused_before_lightning_is_imported(place: Place) -> None:
    import subprocess
    import sys

    place.write("ptycho_exec.toml", '[trainer]\nbarebones = "x"\n')
    code = (
        "import sys\nfrom ptycho_exec import ExecutionSettings, SettingsError\n"
        "try:\n    ExecutionSettings()\nexcept SettingsError:\n"
        "    print('torch' in sys.modules, 'lightning' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place.cwd, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


class Limited(ExecutionSettings):
    eights: Annotated[int, Field(multiple_of=8)] = 8
    few: Annotated[list[int], Field(max_length=2)] = Field(default_factory=list)
    pair: tuple[float, float] = (0, 0)
    tags: list[str] = Field(default_factory=list)
    pause: timedelta = timedelta(seconds=1)


def refusal(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> Finding:
    monkeypatch.setenv(f"PTYCHO_EXEC_{name.upper()}", text)
    with pytest.raises(SettingsError) as caught:
        Limited()
    (finding,) = caught.value.findings
    return finding


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("eights", "9", "a multiple of 8"),
        ("few", "1,2,3", "at most 2 items"),
        ("pair", "1,2,3", "at most 2 items"),
        ("pause", "5s", "HH:MM:SS, or PT90S"),
    ],
)
def test_a_limit_is_named(
    name: str, text: str, words: str, clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = refusal(name, text, monkeypatch)
    assert words in f"{finding.what} {finding.expected}"


@pytest.mark.parametrize(
    ("text", "fix", "value"),
    [
        ("a", "[a]", ["a"]),
        ("a,b,", "[a, b]", ["a", "b"]),
        ("[a, b", "[a, b]", ["a", "b"]),
    ],
)
def test_what_to_write_for_a_list_is_a_list(
    text: str, fix: str, value: list[str], clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fix in refusal("tags", text, monkeypatch).fix
    monkeypatch.setenv("PTYCHO_EXEC_TAGS", fix)
    assert Limited().tags == value


def test_texts_in_a_list_of_numbers_are_shown_as_texts(clean_process: Place) -> None:
    clean_process.write("ptycho_exec.toml", 'few = ["1"]\n')
    with pytest.raises(SettingsError, match=r"few = \['1'\] is not allowed") as caught:
        Limited()
    assert "write few = [1]" in caught.value.findings[0].fix
    clean_process.write("ptycho_exec.toml", "few = [1]\neights = 16.0\n")
    settings = Limited()
    assert (settings.few, settings.eights) == ([1], 16)
    assert type(settings.eights) is int
