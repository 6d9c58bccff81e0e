"""The side of a trial that waits: whatever the child does, the report says so, and nothing stays behind."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ptycho_exec.cli import probe as trial
from ptycho_exec.cli.commands import main
from ptycho_exec.cli.probe import Step, Trial, run_trial
from ptycho_exec.errors import UserError
from ptycho_exec.settings import ExecutionSettings

if TYPE_CHECKING:
    from conftest import Place

ASKED = Trial(ExecutionSettings.from_values({"seed": 7}))
HEAD = """
import json, os, pathlib, pickle, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
asked = pickle.loads((folder / "request.pickle").read_bytes())
def report(doing, *steps):
    rows = [dict(zip(("level", "subject", "text", "setting"), step)) for step in steps]
    (folder / "report.json").write_text(json.dumps({"doing": doing, "steps": rows}))
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let some code stand in for the program that trains."""
    package = tmp_path / "code" / "stand_in"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(trial, "PROGRAM", "stand_in.trial")

    def go(code: str, **options: Any) -> tuple[Step, ...]:
        (package / "trial.py").write_text(HEAD + code)
        steps = run_trial(ASKED, **options)
        assert list((tmp_path / "tmp").iterdir()) == []
        return steps

    return go


def test_steps_come_back_as_the_child_reports_them(child: Any) -> None:
    steps = child('report(None, ("OK", "probe fit", f"seed {asked.settings.seed}", "seed"))')
    assert steps == (Step("OK", "probe fit", "seed 7", setting="seed"),)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit('no driver')", ("start", "ended with code 1; it last said: no driver")),
        ("report('fit')\nos.kill(os.getpid(), signal.SIGKILL)", ("fit", "killed", "smaller batch_size")),
        ("report('fit')\nos.abort()", ("fit", "died by SIGABRT", "compile=false")),
        ("report('predict')\nsys.exit(3)", ("predict", "ended with code 3", "--debug")),
        ("(folder / 'report.json').unlink(missing_ok=True)", ("start", "ended with code 0")),
    ],
)
def test_a_child_that_dies_is_a_failure_that_says_where(
    child: Any, code: str, words: tuple[str, ...]
) -> None:
    (step,) = child(code)
    assert step.failed
    assert step.subject == f"probe {words[0]}"
    for word in words[1:]:
        assert word in f"{step.text} {step.fix}"


def test_a_child_that_hangs_is_stopped_with_all_it_started(child: Any, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "report('fit', ('OK', 'probe data', 'read', ''))\n"
        f"done = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(done.pid))\ntime.sleep(60)"
    )
    start = time.monotonic()
    data, step = child(code, limit_s=2)
    assert time.monotonic() - start < 30
    assert (data.level, step.level) == ("OK", "FAIL")
    assert "did not end within 2 s" in step.text
    assert gone(int(pid.read_text()))


def gone(pid: int) -> bool:
    """Tell whether a process has ended; a killed orphan may stay as a zombie where nobody collects it."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_the_child_works_in_its_own_folder_with_its_own_caches(child: Any) -> None:
    code = """
from ptycho_exec.cli.probe import CACHES
caches = [os.environ[name] for name in CACHES]
assert all(pathlib.Path(path).is_relative_to(folder) for path in caches)
pathlib.Path("stray").write_text("left in the working directory")
report(None, ("OK", str(pathlib.Path.cwd() == folder), sys.stdin.read(), ""))
"""
    (step,) = child(code)
    assert (step.subject, step.text) == ("True", "")


def test_what_the_child_printed_is_told_without_credentials(child: Any) -> None:
    said: list[str] = []
    child("print('https://me:s3cret@host/x')\nreport(None)", say=said.append)
    assert said == ["https://***@host/x\n"]
    (step,) = child("raise SystemExit('https://me:s3cret@host/x')")
    assert "s3cret" not in step.text


def test_without_the_package_that_trains_there_is_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "PROGRAM", "not_there_at_all.trial")
    with pytest.raises(UserError, match="not installed"):
        run_trial(ASKED)


def test_a_step_hides_credentials_in_every_form() -> None:
    step = Step("FAIL", "probe fit", "https://me:s3cret@host refused", "use another", setting="tracking_uri")
    assert "s3cret" not in step.line() + str(step.to_json()) + step.finding().render()
    assert step.line() == "FAIL  probe fit: https://***@host refused -> use another"


# --- check --probe, with a stand-in for the trial ----------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the trial says; the trials that were asked for are appended."""
    said: list[Any] = [(Step("OK", "probe fit", "cpu: 1.0 s"), Step("note", "probe metrics", "adapted"))]

    def stand_in(asked: Trial, **_: Any) -> Any:
        said.append(asked)
        return said[0]

    monkeypatch.setattr(trial, "run_trial", stand_in)
    return said


def test_check_tells_the_steps_and_counts_them(
    steps: list[Any], clean_process: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--probe", "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:-1] == ["OK    probe fit: cpu: 1.0 s", "note  probe metrics: adapted"]
    assert lines[-1].endswith("0 problems, 1 note")
    assert (steps[1].scan, steps[1].validation, steps[1].settings.seed) == ("simulated", None, 3)


def test_a_failed_trial_ends_with_1_and_marks_the_setting(
    steps: list[Any],
    clean_process: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "checkpoint_monitor_metric"
    steps[0] = (Step("FAIL", "probe metrics", "val_f1 was never logged", "monitor val_loss", setting=name),)
    clean_process.write("ptycho_exec.toml", f'\n{name} = "val_f1"\n')
    assert main(["check", "--probe"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  probe metrics: val_f1 was never logged -> monitor val_loss" in out
    assert "cannot run on " in out
    assert main(["check", "--probe", "--json"]) == 1
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["can_run"], verdict["probe"][0]["level"]) == (False, "FAIL")
    assert (verdict["findings"][0]["line"], verdict["findings"][0]["fix"]) == (2, "monitor val_loss")
    assert main(["check", "--probe", "--annotations"]) == 1
    assert capsys.readouterr().out.startswith("::error file=ptycho_exec.toml,line=2::probe metrics")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert main(["check", "--probe"]) == 1
    assert capsys.readouterr().err.startswith("::error file=ptycho_exec.toml,line=2::probe metrics")


def test_json_of_a_trial_that_went_well(
    steps: list[Any], clean_process: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--probe", "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert [row["subject"] for row in verdict["probe"]] == ["probe fit", "probe metrics"]
    assert main(["check", "--json"]) == 0
    assert "probe" not in json.loads(capsys.readouterr().out)


def test_nothing_is_tried_that_cannot_run(
    steps: list[Any], clean_process: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--probe", "--accelerator", "mps"]) == 2
    assert "note  probe was not run, because of the problems above" in capsys.readouterr().out
    assert len(steps) == 1


def test_scans_are_named_by_their_absolute_path(steps: list[Any], clean_process: Place) -> None:
    scan = clean_process.write("scan.npz", "")
    assert main(["check", "--probe", "scan.npz", "--test", "scan.npz"]) == 0
    assert (steps[1].scan, steps[1].validation) == (str(scan), str(scan))
    assert main(["check", "--test", "--probe"]) == 0
    assert steps[2].validation == "simulated"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--test"], 2, "--test is part of --probe"),
        (["--probe", "--facts", "a.json"], 2, "choose one of the two"),
        (["--probe", "absent.npz"], 1, "scan not found: absent.npz"),
        (["--probe", "--test", "absent.npz"], 1, "scan not found: absent.npz"),
    ],
)
def test_wrong_usage(
    steps: list[Any],
    clean_process: Place,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    assert main(["check", *words]) == code
    assert said in capsys.readouterr().err
    assert len(steps) == 1


def test_the_environment_of_the_child_finds_this_checkout(tmp_path: Path) -> None:
    environ = trial._environ(tmp_path, Path("/somewhere/checkout"))
    assert environ["PYTHONPATH"].split(os.pathsep)[0] == "/somewhere/checkout"
    installed = trial._environ(tmp_path, Path("/usr/lib/python3/site-packages"))
    assert installed.get("PYTHONPATH") == os.environ.get("PYTHONPATH")
