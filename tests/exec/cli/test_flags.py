"""Flags: one for each field, unset unless typed, never abbreviated, and wrong ones told."""

from __future__ import annotations

import argparse
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ptycho_exec.cli.commands import build_parser
from ptycho_exec.cli.flags import (
    ANNOTATE,
    Parser,
    add_controls,
    add_settings_flags,
    annotate,
    annotations_form,
    complete_switches,
    flags_given,
    run,
)
from ptycho_exec.errors import SettingsError, UserError
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.settings import ExecutionSettings

if TYPE_CHECKING:
    from conftest import Place


def parser() -> Parser:
    made = Parser(prog="prog")
    made.add_argument("scan", nargs="?")
    made.add_argument("--json", action="store_true")
    made.add_argument("--debug", action="store_true")
    made.add_argument(ANNOTATE[0], **ANNOTATE[1])
    add_settings_flags(made)
    add_controls(made)
    return made


def given(*words: str) -> dict[str, str]:
    return {name: texts[-1] for name, texts in flags_given(parser().parse(words)).items()}


def test_every_field_is_a_flag_unset_by_default() -> None:
    options = {option for action in parser()._actions for option in action.option_strings}
    assert {spec.flag for spec in field_specs().values()} <= options
    assert {"--settings", "--profile"} <= options
    assert given() == {}


@pytest.mark.parametrize("name", ExecutionSettings.model_fields)
def test_every_flag_keeps_its_text(name: str) -> None:
    assert given(f"{field_specs()[name].flag}=some text") == {name: "some text"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--compile"], {"compile": "true"}),
        (["--no-compile"], {"compile": "false"}),
        (["--compile", "off"], {"compile": "off"}),
        (["--compile=0"], {"compile": "0"}),
        (["--deterministic", "warn"], {"deterministic": "warn"}),
        (["--deterministic"], {"deterministic": "true"}),
        (["--no-deterministic"], {"deterministic": "false"}),
        (["--pin-memory", "auto", "--seed", "1"], {"pin_memory": "auto", "seed": "1"}),
        (["--seed", "-1"], {"seed": "-1"}),
        (["--devices", "0,1"], {"devices": "0,1"}),
        (["--learning-rate", "1e-3"], {"learning_rate": "1e-3"}),
    ],
)
def test_switches_and_values(words: list[str], expected: dict[str, str]) -> None:
    assert given(*words) == expected


def test_a_file_after_a_switch_stays_an_argument() -> None:
    space = parser().parse(["--compile", "scan.npz"])
    assert (space.scan, flags_given(space)) == ("scan.npz", {"compile": ("true",)})


def test_nothing_after_a_double_dash_is_a_flag() -> None:
    assert complete_switches(["--", "--compile"], parser().switches) == ["--", "--compile"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--batch-siz", "--batch-size"),
        ("--batch_size", "--batch-size"),
        ("--Batch-Size", "--batch-size"),
        ("--batchsize", "--batch-size"),
        ("-batch-size", "--batch-size"),
        ("--learning", "--learning-rate"),
        ("--num", "listed"),
        ("--lr", "--learning-rate"),
        ("--setings", "--settings"),
        ("--profil", "--profile"),
        ("--no-compil", "--compile"),
        ("--no-seed", "--seed"),
    ],
)
def test_abbreviated_and_misspelt_flags_are_told(word: str, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parser().parse([f"{word}=3"])
    (finding,) = caught.value.findings
    assert finding.what == f"unknown flag {word!r}"
    assert expected in finding.expected


def test_all_wrong_flags_come_in_one_report() -> None:
    with pytest.raises(SettingsError) as caught:
        parser().parse(["--bach-size", "3", "--sed=1"])
    assert [finding.expected for finding in caught.value.findings] == ["--batch-size", "--seed"]


def test_a_secret_on_the_command_line_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        parser().parse(["a.npz", "https://u:s3cret@h"])
    assert "s3cret" not in str(caught.value)
    with pytest.raises(SettingsError) as caught:
        parser().parse(["--tracking-ur=https://u:s3cret@h"])
    assert "s3cret" not in str(caught.value)


def test_a_flag_without_its_value_says_so() -> None:
    with pytest.raises(SettingsError, match="--seed: expected one argument"):
        parser().parse(["--seed"])


def test_the_help_gives_sentence_default_and_choices() -> None:
    text = " ".join(parser().format_help().split())
    for spec in field_specs().values():
        assert " ".join(spec.sentence.split()) in text
    assert "--checkpoint-mode {min,max}" in text


# --- run ------------------------------------------------------------------------------------------------


def fail(_: argparse.Namespace) -> int:
    raise SettingsError("what", where="a.toml:3", expected="this", fix="that")


def test_an_error_is_one_block_on_standard_error(capsys: Any) -> None:
    assert run(parser(), [], fail) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "prog: what\n  where:    a.toml:3\n  expected: this\n  fix:      that\n"


def test_an_error_as_json(capsys: Any) -> None:
    assert run(parser(), ["--json"], fail) == 2
    out, err = capsys.readouterr()
    assert [row["what"] for row in json.loads(out)["findings"]] == ["what"]
    assert err == ""


def test_an_error_as_an_annotation(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(parser(), ["--annotations"], fail) == 2
    assert capsys.readouterr().out.startswith("::error::what%0A")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert run(parser(), [], fail) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("prog: what\n")
    assert err.splitlines()[-1].startswith("::error::what")


@pytest.mark.parametrize(
    ("words", "form"),
    [
        ([], None),
        (["--annotations"], "github"),
        (["--annotations", "gitlab"], "gitlab"),
        (["--annotations=gitlab"], "gitlab"),
        (["--annotations", "scan.npz"], "github"),
        (["--annotations", "--json"], "github"),
    ],
)
def test_the_form_of_annotations_may_follow_the_flag(words: list[str], form: str | None) -> None:
    assert parser().parse(words).annotations == form
    assert annotations_form(words) == form
    assert parser().parse(words).scan == ("scan.npz" if "scan.npz" in words else None)


def test_an_unknown_form_of_annotations_is_refused() -> None:
    with pytest.raises(SettingsError, match="fix:      write one of them"):
        parser().parse(["--annotations=jenkins"])


def test_annotations_are_printed_only_in_a_github_job(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    annotate(UserError("what"))
    assert capsys.readouterr().err == ""


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(SettingsError):
        run(parser(), ["--debug"], fail)


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("x"), 1), (KeyboardInterrupt(), 130), (SettingsError("x"), 2)]
)
def test_exit_codes(error: BaseException, code: int) -> None:
    def act(_: argparse.Namespace) -> int:
        raise error

    assert run(parser(), [], act) == code


WRONG = {"PTYCHO_EXEC_BATCH_SIZE": "x"}
# Words, variables, and the exit code when the output cannot be written.
OUTPUTS = [
    (["show"], {}, 1),
    (["show", "--json"], {}, 1),
    (["schema"], {}, 1),
    (["show", "--json"], WRONG, 2),
    (["check", "--annotations"], WRONG, 2),
    (["check"], WRONG, 2),
    (["facts", "--help"], {}, 1),
]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(("words", "variables", "code"), OUTPUTS)
def test_a_full_disk_is_one_block(
    clean_process: Place, words: list[str], variables: dict[str, str], code: int
) -> None:
    with open("/dev/full", "w") as full:
        done = _ptycho_exec(words, variables, full)
    assert done.returncode == code
    assert done.stderr.splitlines()[-2:] == [
        "ptycho-exec: cannot write: No space left on device",
        "  fix:      free some space, or write to another disk",
    ]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("words", "variables", "code"), OUTPUTS)
def test_a_closed_pipe_is_silent(
    clean_process: Place, words: list[str], variables: dict[str, str], code: int
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = _ptycho_exec(words, variables, writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, "")


def _ptycho_exec(
    words: list[str], variables: dict[str, str], stdout: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ptycho_exec", *words]
    environ = os.environ | {"PYTHONUNBUFFERED": ""} | variables
    return subprocess.run(command, env=environ, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


def test_a_disk_that_is_full_elsewhere_is_named(capsys: Any) -> None:
    def write(_: argparse.Namespace) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "/run/last.ckpt")

    assert run(parser(), [], write) == 1
    assert "where:    /run/last.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "a worker died"), FileNotFoundError(2, "x")])
def test_other_failures_of_the_system_are_not_hidden(error: OSError) -> None:
    def act(_: argparse.Namespace) -> int:
        raise error

    with pytest.raises(OSError, match=str(error.strerror)):
        run(parser(), [], act)


def test_very_many_unknown_flags_are_counted() -> None:
    with pytest.raises(SettingsError) as caught:
        parser().parse([f"--name-{i}" for i in range(500)])
    assert len(caught.value.findings) == 101
    assert caught.value.findings[-1].what == "400 more names there are unknown"


def test_a_value_given_as_a_flag_is_typed_by_its_field(place: Place) -> None:
    settings = place.settings(flags=given("--devices=0,1", "--max-time=none", "--no-pad-eval"))
    assert (settings.devices, settings.max_time, settings.pad_eval) == ((0, 1), None, False)


def test_a_flag_of_another_command_is_told_whose_it_is() -> None:
    with pytest.raises(SettingsError) as caught:
        build_parser().parse(["profiles", "--batch-size", "8"])
    (finding,) = caught.value.findings
    assert finding.what == "--batch-size is no flag of this command"
    assert finding.fix == "leave it out (it is one of ptycho-exec show)"


def test_a_hint_is_a_flag_of_the_same_command() -> None:
    with pytest.raises(SettingsError) as caught:
        build_parser().parse(["show", "--batch", "3"])
    assert caught.value.findings[0].fix == "write --batch-size, or remove it"
    with pytest.raises(SettingsError) as caught:
        build_parser().parse(["slurm", "--batch", "3"])
    assert caught.value.findings[0].fix == "write --sbatch, or remove it"
