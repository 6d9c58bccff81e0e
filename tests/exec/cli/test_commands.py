"""`ptycho-exec` as a user runs it: a process of its own, its output, its errors and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import pytest

from ptycho_exec.cli.commands import main, settings_of
from ptycho_exec.errors import SettingsError, UserError
from ptycho_exec.fields.model import Effect
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.record import fingerprint, manifest_parts, write_manifest
from ptycho_exec.settings import ExecutionSettings

if TYPE_CHECKING:
    from conftest import Place

RESOLVING = (["show"], ["explain"], ["check"], ["diff", "env", "profile:ci"])


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(place: Place) -> Run:
    """Run `ptycho-exec` in the place, with its variables and nothing of the test's own environment."""

    def go(*words: str, **variables: str) -> Done:
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        done = subprocess.run(
            [sys.executable, "-m", "ptycho_exec", *words],
            cwd=place.cwd,
            env={**kept, "HOME": str(place.home), **place.environ, **variables},
            capture_output=True,
            text=True,
        )
        assert "Traceback" not in done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return go


@pytest.fixture
def here(clean_process: Place, capsys: pytest.CaptureFixture[str]) -> Run:
    """The same in this process, which is quicker."""

    def go(*words: str) -> Done:
        code = main(list(words))
        return Done(code, *capsys.readouterr())

    return go


# --- show -----------------------------------------------------------------------------------------------


def test_show_lists_every_field_with_its_origin(run: Run) -> None:
    done = run("show", PTYCHO_EXEC_BATCH_SIZE="8")
    rows = [line.split(maxsplit=2) for line in done.out.splitlines()]
    assert (done.code, done.err) == (0, "")
    assert [row[0] for row in rows] == list(field_specs())
    assert ["batch_size", "8", "environment PTYCHO_EXEC_BATCH_SIZE"] in rows


def test_show_changed_values_only(here: Run, clean_process: Place) -> None:
    assert here("show", "--changed").out == "every value is its default\n"
    path = clean_process.write("ptycho_exec.toml", "\nseed = 1\n")
    assert here("show", "--changed").out == f"seed  1  project-file ({path}:2)\n"


def test_show_lists_each_name_of_a_table(here: Run, clean_process: Place) -> None:
    path = clean_process.write("ptycho_exec.toml", "[trainer]\nbarebones = true\n")
    done = here("show", "--changed", "--trainer", "min_epochs=3")
    assert [line.split(maxsplit=2) for line in done.out.splitlines()] == [
        ["trainer.min_epochs", "3", "flag --trainer"],
        ["trainer.barebones", "true", f"project-file ({path}:2)"],
    ]
    report = json.loads(here("show", "--json", "--changed").out)["settings"]["trainer"]
    assert report["value"] == {"barebones": True}
    assert report["origin"]["parts"]["barebones"]["line"] == 2
    kwargs = json.loads(here("show", "--trainer-kwargs").out)["trainer"]
    assert (kwargs["barebones"], kwargs["min_epochs"]) == (True, None)


def test_show_json_is_stable(here: Run, clean_process: Place) -> None:
    clean_process.write("ptycho_exec.toml", "devices = [0, 1]\n")
    report = json.loads(here("show", "--json", "--devices", "2").out)
    assert (report["schema_version"], report["notes"]) == (1, [])
    shown = report["settings"]
    assert list(shown) == list(field_specs())
    assert shown["devices"] == {
        "value": 2,
        "origin": {"kind": "flag", "place": "--devices", "file": None, "line": None, "raw": "2"},
        "shadowed": [
            {
                "value": [0, 1],
                "kind": "project-file",
                "place": f"{clean_process.cwd}/ptycho_exec.toml:1",
                "file": f"{clean_process.cwd}/ptycho_exec.toml",
                "line": 1,
                "raw": None,
            },
            {"value": 1, "kind": "default", "place": "default", "file": None, "line": None, "raw": None},
        ],
    }


def test_show_what_trainer_and_loaders_would_get(here: Run) -> None:
    shown = json.loads(
        here("show", "--trainer-kwargs", "--loader-kwargs", "--batch-size", "3", "--accum-steps", "2").out
    )
    assert set(shown) == {"trainer", "train_loader", "inference_loader"}
    assert shown["train_loader"]["batch_size"] == 3
    assert shown["trainer"]["accumulate_grad_batches"] == 2


# --- explain --------------------------------------------------------------------------------------------


def test_explain_tells_all_about_a_field(here: Run, clean_process: Place, monkeypatch: Any) -> None:
    clean_process.write(".env", "# ours\nPTYCHO_EXEC_BATCH_SIZE=8\n")
    clean_process.write("ptycho_exec.toml", "batch_size = 4\n")
    monkeypatch.setenv("PTYCHO_EXEC_BATCH_SIZE", "")
    done = here("explain", "batch_size", "--profile", "laptop")
    cwd = clean_process.cwd
    assert done.out.splitlines() == [
        "batch_size = 8",
        f"  from      dotenv PTYCHO_EXEC_BATCH_SIZE ({cwd}/.env:2)",
        f"  shadows   4 from project-file ({cwd}/ptycho_exec.toml:1)",
        "  shadows   16 from default",
        "  unset     PTYCHO_EXEC_BATCH_SIZE is empty and counts as unset",
        "  meaning   Samples per optimizer micro-step and device.",
        "  accepts   an integer at least 1",
        "  effect    numerics",
        "  set with  PTYCHO_EXEC_BATCH_SIZE, --batch-size, or batch_size = ... in a file",
        "",
        "profile laptop, asked for by argument profile (--profile)",
        "looked for, highest precedence first:",
        f"  found   dotenv: {cwd}/.env",
        "  absent  settings-file: none was named (--settings, PTYCHO_EXEC_SETTINGS_FILE)",
        f"  found   project-file: {cwd}/ptycho_exec.toml",
        f"  absent  pyproject: {cwd}/pyproject.toml, and in every folder above",
        f"  absent  user-file: {clean_process.home}/.config/ptycho_exec/settings.toml",
    ]
    assert done.err == "note: PTYCHO_EXEC_BATCH_SIZE is empty and counts as unset\n"


def test_explain_says_what_each_word_means_and_what_was_typed(here: Run) -> None:
    out = here("explain", "deterministic", "--deterministic=Yes").out
    assert "  from      flag --deterministic, given as 'Yes'" in out
    assert "    warn   repeatable where possible, a warning where not" in out


def test_explain_names_a_profile(here: Run) -> None:
    out = here("explain", "accelerator", "--profile", "ci").out
    assert "  from      profile:ci (" in out


def test_explain_an_unknown_field(run: Run) -> None:
    done = run("explain", "lr")
    assert (done.code, done.out) == (2, "")
    assert "write learning_rate (its name here)" in done.err


def test_explain_without_a_field_tells_of_all_that_are_set(here: Run) -> None:
    out = here("explain", "--seed=1", "--batch-size=2").out
    assert [line for line in out.splitlines() if " = " in line and not line.startswith(" ")] == [
        "seed = 1",
        "batch_size = 2",
    ]


@pytest.mark.parametrize(
    "words",
    [
        *(["show", *rest] for rest in ([], ["--changed"], ["--trainer-kwargs"], ["--format", "toml"])),
        *(["explain", *rest] for rest in ([], ["seed"])),
        ["check"],
        ["diff", "env", "profile:ci"],
    ],
    ids=" ".join,
)
def test_notes_are_the_same_in_every_form(here: Run, monkeypatch: Any, words: list[str]) -> None:
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "3")
    monkeypatch.setenv("PTYCHO_EXEC_SEED", "")
    notes = [
        "no effect here, the Trainer is built from these settings alone: PL_TRAINER_MAX_EPOCHS",
        "PTYCHO_EXEC_SEED is empty and counts as unset",
    ]
    done = here(*words)
    assert done.code == (words[0] == "diff")
    assert [line for line in (done.out + done.err).splitlines() if line.startswith("note")] == [
        f"note{':' if words != ['check'] else ' '} {note}" for note in notes
    ]
    if words == ["check"]:
        assert done.out.endswith("0 problems, 2 notes\n")
    if words[0] != "diff" and "--trainer-kwargs" not in words and "--format" not in words:
        report = json.loads(here(*words, "--json").out)
        assert [(note["what"], note["level"]) for note in report["notes"]] == [(n, "note") for n in notes]
        assert report["schema_version"] == 1


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", RESOLVING, ids=lambda words: words[0])
def test_wrong_settings_end_every_command_with_one_block_and_code_2(run: Run, words: list[str]) -> None:
    done = run(*words, PTYCHO_EXEC_BACH_SIZE="8", PTYCHO_EXEC_SEED="x")
    assert done.code == 2
    told = done.out + done.err
    assert "unknown setting 'PTYCHO_EXEC_BACH_SIZE'" in told
    assert "seed = 'x' is not allowed" in told
    assert done.out == "" or words == ["check"]


@pytest.mark.parametrize("words", [*RESOLVING, ["profiles"]], ids=lambda words: words[0])
def test_findings_as_json_and_as_annotations(here: Run, clean_process: Place, words: list[str]) -> None:
    clean_process.write("ptycho_exec.toml", "seed = 1\nbatch_size =\n")
    done = here(*words, "--json")
    (finding,) = json.loads(done.out)["findings"]
    assert (done.code, done.err) == (2, "")
    assert (finding["line"], finding["fix"]) == (2, "correct the marked place")
    done = here(*words, "--annotations")
    assert done.code == 2
    assert done.out.startswith("::error file=ptycho_exec.toml,line=2::ptycho_exec.toml is not valid TOML")
    assert len(done.out.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "required: COMMAND"),
        (["shw"], "fix:      write show"),
        (["show", "--jsno"], "expected: --json"),
        (["show", "--batch", "3"], "unknown flag '--batch'"),
        (["show", "extra"], "unexpected argument 'extra'"),
        (["show", "--pin-memory", "maybe"], "--pin-memory = 'maybe' is not allowed"),
        (["show", "--compile", "maybe"], "expected: one of: "),
        (["diff", "env"], "required: B"),
        (["diff", "env", "nothing.toml"], "there is no nothing.toml to compare"),
        (["diff", "env", "env", "--only", "speed"], "--only = 'speed' is not allowed"),
        (["show", "--format", "tmol"], "fix:      did you mean --format toml?"),
        (["show", "--format=jason"], "fix:      did you mean --format json?"),
        (["show", "--format"], "expected: ptycho-exec show [options]"),
        (["completion", "bsh"], "fix:      did you mean bash?"),
        (["xyzzy"], "fix:      write one of them"),
        (["show", "--settings", "absent.toml"], "settings file not found"),
        (["show", "--profile", "lptop"], "expected: laptop"),
        (["check", "--facts", "absent.json"], "absent.json"),
    ],
)
def test_wrong_usage(here: Run, words: list[str], text: str) -> None:
    done = here(*words)
    assert done.code in (1, 2)
    assert done.out == ""
    assert done.err.startswith("ptycho-exec")
    assert text in done.err
    assert len(done.err.splitlines()) <= 4


@pytest.mark.parametrize("words", [["--help"], ["show", "--help"], ["diff", "--help"]])
def test_help(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("usage: ptycho-exec")


def test_odd_letters_stay_on_their_line(here: Run) -> None:
    out = here("show", "--changed", "--experiment-name", "a\u200bbü").out
    assert out == "experiment_name  a\\u200bbü  flag --experiment-name\n"
    done = here("show", "--changed", "--experiment-name", "a\n\x1b[31mb\tü")
    assert done.err.startswith("ptycho-exec: experiment_name = 'a\\n\\x1b[31mb\\tü' is not allowed\n")


def test_bytes_that_are_no_text_and_terminals_without_letters(place: Place) -> None:
    code = [sys.executable, "-m", "ptycho_exec", "check"]
    environ = {**os.environb, b"PTYCHO_EXEC_EXPERIMENT_NAME": b"\xff", b"PYTHONIOENCODING": b"ascii"}
    done = subprocess.run(code, cwd=place.cwd, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    assert "experiment_name = '" in done.stdout
    environ[b"PTYCHO_EXEC_EXPERIMENT_NAME"] = "ü".encode()
    done = subprocess.run(code, cwd=place.cwd, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "experiment_name=\\xfc" in done.stdout


def test_a_closed_pipe_is_no_traceback(place: Place) -> None:
    done = subprocess.run(
        f"{sys.executable} -m ptycho_exec schema | head -1",
        shell=True,
        cwd=place.cwd,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("{\n", "")


# --- check and facts --------------------------------------------------------------------------------------


def test_check_is_one_screen_of_lines_that_say_ok_note_or_fail(run: Run, place: Place) -> None:
    path = place.write("ptycho_exec.toml", 'accelerator = "mps"\nnum_nodes = 2\nbatch_size = 8\n')
    done = run("check", "--persistent-workers", "--num-workers=0", PL_TRAINER_DEVICES="2")
    lines = done.out.splitlines()
    assert done.code == 2
    assert len(lines) <= 24
    assert {line[:6] for line in lines[:-1]} == {"FAIL  ", "note  ", "OK    "}
    fails = [line for line in lines if line.startswith("FAIL")]
    assert all(" -> " in line and f"({'project-file'} ({path}:" in line for line in fails)
    assert {line.split()[1].partition("=")[0] for line in fails} == {"accelerator", "num_nodes"}
    assert lines[-1].startswith("cannot run on ")
    assert "as asked: batch_size=8" in done.out


def test_check_passes_what_can_run(run: Run) -> None:
    done = run("check", "--profile", "ci")
    assert done.code == 0
    assert done.out.splitlines()[-1].startswith("can run on ")
    assert "0 problems" in done.out


def test_check_of_every_field_set_is_still_one_screen(here: Run, clean_process: Place) -> None:
    from ptycho_exec.fields.spec import format_value

    lines = [f"{spec.variable}={format_value(spec.default)}\n" for spec in field_specs().values()]
    clean_process.write(".env", "".join(lines))
    done = here("check")
    assert done.code == 0
    assert len(done.out.splitlines()) <= 24


@pytest.mark.slow
def test_settings_made_here_are_checked_for_another_machine(run: Run, place: Place) -> None:
    facts = json.loads(run("facts").out)
    gpu = {"name": "A100", "memory_mb": 81920, "capability": "8.0", "bf16": True}
    place.write("a100.json", json.dumps({**facts, "hostname": "cluster", "gpus": [gpu, gpu]}))
    words = ["check", "--accelerator", "cuda", "--devices", "2", "--precision", "bf16-mixed"]
    assert run(*words).code == 2
    done = run(*words, "--facts", "a100.json")
    assert done.code == 0, done.out
    assert "can run on cluster" in done.out
    done = run(*words, "--devices", "3", "--facts", "a100.json")
    assert done.code == 2
    assert "FAIL  devices" in done.out


def test_check_as_json_and_annotations(here: Run, clean_process: Place) -> None:
    clean_process.write("ptycho_exec.toml", '\naccelerator = "mps"\n')
    done = here("check", "--json")
    verdict = json.loads(done.out)
    assert (done.code, verdict["can_run"]) == (2, False)
    assert verdict["findings"][0]["line"] == 2
    assert verdict["effective"]["accelerator"]["requested"] == "mps"
    done = here("check", "--annotations")
    assert done.out.startswith("::error file=ptycho_exec.toml,line=2::accelerator=mps")
    assert json.loads(here("check", "--json", "--accelerator", "cpu").out)["findings"] == []


def test_check_as_a_gitlab_report(here: Run, clean_process: Place, monkeypatch: Any) -> None:
    monkeypatch.setenv("CI_PROJECT_DIR", str(clean_process.cwd))
    monkeypatch.setenv("PL_TRAINER_DEVICES", "2")
    clean_process.write("ptycho_exec.toml", "\nbach_size = 8\n")
    monkeypatch.setenv("PTYCHO_EXEC_SEED", "x")
    done = here("check", "--annotations", "gitlab")
    rows = json.loads(done.out)
    assert (done.code, done.err) == (2, "")
    assert {
        (row["check_name"], row["location"]["path"], row["location"]["lines"]["begin"]) for row in rows
    } == {
        ("unknown-name", "ptycho_exec.toml", 2),
        ("bad-value", ".gitlab-ci.yml", 1),
    }
    assert {row["severity"] for row in rows} == {"blocker"}
    assert len({row["fingerprint"] for row in rows}) == 2
    monkeypatch.delenv("PTYCHO_EXEC_SEED")
    clean_process.write("ptycho_exec.toml", "")
    done = here("check", "--annotations=gitlab")
    (note,) = json.loads(done.out)
    assert (done.code, note["severity"], note["check_name"]) == (0, "info", "no-effect")
    monkeypatch.delenv("PL_TRAINER_DEVICES")
    assert here("check", "--annotations=gitlab").out == "[]\n"
    assert here("check", "--annotations").out == ""


# --- diff -----------------------------------------------------------------------------------------------


@pytest.fixture
def kinds(clean_process: Place, monkeypatch: Any) -> dict[str, str]:
    """Something of each kind that `diff` takes, all with `batch_size` 8 but `env`."""
    from ptycho_exec.record import manifest_parts, new_run_dir, write_manifest

    settings = ExecutionSettings.from_values({"batch_size": 8})
    run_dir = new_run_dir(clean_process.cwd / "run")
    write_manifest(run_dir, **manifest_parts(settings))
    copy = clean_process.write("elsewhere.json", (run_dir / "manifest.json").read_text())
    clean_process.write("ptycho_exec.toml", "[profiles.eight]\nbatch_size = 8\n")
    monkeypatch.setenv("PTYCHO_EXEC_BATCH_SIZE", "4")
    monkeypatch.setenv("PTYCHO_EXEC_DRIFT", "warn")
    return {
        "file": str(clean_process.write("a.toml", "batch_size = 8\n")),
        "yaml": str(clean_process.write("a.yaml", "batch_size: 8\n")),
        "json": str(clean_process.write("a.json", '{"batch_size": 8}')),
        "run": str(run_dir),
        "manifest": str(run_dir / "manifest.json"),
        "copied manifest": str(copy),
        "profile": "profile:eight",
        "env": "env",
    }


def test_diff_between_all_kinds(here: Run, kinds: dict[str, str]) -> None:
    for a, left in kinds.items():
        for b, right in kinds.items():
            done = here("diff", left, right, "--json")
            fields = {row["field"]: (row["a"], row["b"]) for row in json.loads(done.out)}
            expected = {}
            if (a == "env") is not (b == "env"):
                sizes, drifts = ("4", "8"), ("warn", "error")
                turn = 1 if a == "env" else -1
                expected = {"batch_size": sizes[::turn], "drift": drifts[::turn]}
            assert (fields, done.code) == (expected, 1 if expected else 0), (a, b)


def test_diff_of_one_effect(here: Run, kinds: dict[str, str]) -> None:
    done = here("diff", kinds["run"], "env", "--only", "numerics")
    _, row, verdict = done.out.splitlines()
    assert row.split() == ["batch_size", "8", "4", "numerics"]
    assert verdict.startswith("numerics differ, so results can differ (fingerprints ")
    same = here("diff", kinds["run"], kinds["file"]).out.splitlines()
    assert same[0] == "no difference"
    assert same[1].startswith("same numerics")
    assert here("diff", "env", kinds["run"], "--only", "io").code == 0


def test_a_file_is_compared_by_itself(here: Run, kinds: dict[str, str]) -> None:
    """Neither the variables nor the project file of this place count for a file or a manifest."""
    for name in ("file", "yaml", "json", "run", "manifest"):
        assert settings_of(kinds[name]) == ExecutionSettings.from_values({"batch_size": 8})
    with pytest.raises(UserError):
        settings_of("profile.toml")
    with pytest.raises(SettingsError, match="unknown profile 'nine'"):
        settings_of("profile:nine")


def test_what_the_trainer_gets_is_shown_without_credentials(here: Run) -> None:
    done = here("show", "--trainer-kwargs", "--trainer", "model_registry=https://me:hunter2@example.org")
    assert json.loads(done.out)["trainer"]["model_registry"] == "https://***@example.org"


class Beamline(ExecutionSettings):
    """Settings of another program, whose class this program cannot import."""

    beamline: str = "1-BM"
    note: Annotated[str, Effect.UI] = ""
    precision: Literal["32-true", "fp8"] = "32-true"  # type: ignore[assignment]


def test_diff_of_manifests_of_a_subclass_has_its_own_fields(here: Run, tmp_path: Path) -> None:
    values: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {"beamline": "2-ID", "note": "x", "precision": "fp8"},
        "c": {"note": "y"},
    }
    runs = {name: str(tmp_path / name) for name in values}
    for name, given in values.items():
        Path(runs[name]).mkdir()
        write_manifest(runs[name], **manifest_parts(Beamline.from_values(given)))
    done = here("diff", runs["a"], runs["b"])
    assert [row.split() for row in done.out.splitlines()[1:-1]] == [
        ["precision", "32-true", "fp8", "numerics"],
        ["beamline", "1-BM", "2-ID", "numerics"],
        ["note", "x", "ui"],
    ]
    hashes = [fingerprint(Beamline.from_values(values[name]))[:12] for name in "ab"]
    verdict = f"numerics differ, so results can differ (fingerprints {', '.join(hashes)})"
    assert (done.out.splitlines()[-1], done.code) == (verdict, 1)
    assert "same numerics" in here("diff", runs["a"], runs["c"]).out
    assert here("diff", runs["a"], runs["c"], "--only", "numerics").code == 0
    given = {"beamline": "2-ID", "trainer": {"model_registry": "https://me:hunter2@example.org"}}
    Path("d").mkdir()
    write_manifest("d", **manifest_parts(Beamline.from_values(given)))
    of_table = here("diff", runs["b"], "d").out
    assert "{model_registry=https://***@example.org}" in of_table
    with_base = here("diff", runs["a"], "profile:repro", "--json")
    rows = {row["field"]: (row["a"], row["b"]) for row in json.loads(with_base.out)}
    assert rows["beamline"] == ("1-BM", "(absent)")


# --- init, docs, profiles, schema ---------------------------------------------------------------------------


def test_init_writes_a_file_that_loads_and_its_schema(run: Run, place: Place) -> None:
    done = run("init")
    assert done.code == 0
    text = (place.cwd / "ptycho_exec.toml").read_text()
    head = text.splitlines()[0]
    assert head == "#:schema ./ptycho_exec.schema.json"
    schema = json.loads((place.cwd / head.split()[1]).read_text())
    assert schema == json.loads(run("schema").out)
    assert run("show", "--changed").out == "every value is its default\n"
    assert run("init").code == 1


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a.yaml", "no TOML file"),
        ("no/folder/a.toml", "No such file"),
        ("ptycho_exec.toml", "exists already"),
    ],
)
def test_init_where_it_cannot(here: Run, clean_process: Place, path: str, words: str) -> None:
    clean_process.write("ptycho_exec.toml", "seed = 1\n")
    before = sorted(clean_process.cwd.iterdir())
    done = here("init", path)
    assert done.code == 1
    assert words in done.err
    assert sorted(clean_process.cwd.iterdir()) == before


def test_profiles_lists_shipped_and_own_ones(here: Run, clean_process: Place) -> None:
    clean_process.write(
        "ptycho_exec.toml", '[profiles.beam]\ndescription = "At the beam."\nextends = "ci"\nseed = 1\n'
    )
    out = here("profiles").out
    assert "beam (extends ci): At the beam.\n    seed=1\n" in out
    rows = {row["name"]: row for row in json.loads(here("profiles", "--json").out)}
    assert set(rows) == {"beam", "ci", "laptop", "multi-gpu", "repro", "single-gpu", "slurm"}
    assert rows["slurm"]["extends"] == "multi-gpu"
    assert rows["repro"]["values"]["deterministic"] is True


def test_docs_refuses_a_folder_that_is_no_checkout(run: Run, place: Place) -> None:
    done = run("docs")
    assert done.code == 1
    assert "not the top of a checkout" in done.err
    assert list(place.cwd.iterdir()) == []


# --- secrets --------------------------------------------------------------------------------------------

TOKEN = "s3cr3t-t0ken"


def test_a_planted_token_shows_in_no_output(
    here: Run, clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = clean_process
    monkeypatch.setenv("PYDANTIC_SETTINGS_DEBUG", "1")
    uri = f"https://user:{TOKEN}@mlflow.example/?token={TOKEN}"
    place.write("ptycho_exec.toml", f'tracking_uri = "{uri}"\n[profiles.x]\ntracking_uri = "{uri}"\n')
    place.write(".env", f"OTHER_SECRET={TOKEN}\nPTYCHO_EXEC_TRACKING_URI={uri}\n")
    flags = ["--tracking-uri", uri, "--logger-backend", "mlflow"]
    commands = [
        ["show", *flags],
        ["show", "--json", *flags],
        ["show", "--trainer-kwargs", "--loader-kwargs", *flags],
        ["explain", "tracking_uri", *flags],
        ["explain", "--json", *flags],
        ["check", *flags],
        ["check", "--json", *flags],
        ["diff", "env", "profile:ci"],
        ["diff", "env", "profile:x", "--json"],
        ["profiles"],
        ["profiles", "--json"],
        ["show", "--tracking-ur", uri],
        ["show", "--seed", uri],
        ["check", "--seed", uri],
        ["show", uri],
        ["show", "--settings", uri],
        ["show", "--profile", uri],
        ["diff", uri, "env"],
        ["show", "--seed", uri, "--json"],
        ["show", "--seed", uri, "--annotations"],
        ["explain", uri],
        ["init", f"{uri}.toml"],
        ["check", "--facts", uri],
    ]
    outputs = {" ".join(words): here(*words) for words in commands}
    assert not [words for words, done in outputs.items() if TOKEN in done.out + done.err]
    assert "***" in outputs[" ".join(commands[0])].out


@pytest.mark.parametrize("text", ["[profiles.x]\nbenchmark = true\n", '[profiles.x]\nextends = "nope"\n'])
@pytest.mark.parametrize("command", ["check", "profiles"])
@pytest.mark.slow
def test_profiles_that_nobody_asked_for_are_checked(run: Run, place: Place, command: str, text: str) -> None:
    place.write("ptycho_exec.toml", text)
    done = run(command)
    assert done.code == 2
    assert "profile x: " in done.out + done.err or "unknown profile 'nope'" in done.out + done.err
    assert (run("show").code == 0) == ("benchmark" in text)


def test_several_profiles_on_the_command_line(run: Run) -> None:
    done = run("show", "--changed", "--profile", "laptop,ci")
    assert done.code == 0
    assert "profile:ci" in done.out
    done = run("show", "--profile", "ci", "--profile", "repro")
    assert "or write --profile ci,repro" in done.err
