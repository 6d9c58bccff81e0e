"""The side of a trial that waits: whatever the child does, the report says so, and nothing stays behind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ptycho_exec.cli import probe as trial
from ptycho_exec.cli.commands import main
from ptycho_exec.cli.probe import Trial, line, run_trial, to_json
from ptycho_exec.errors import Finding, UserError
from ptycho_exec.settings import ExecutionSettings

if TYPE_CHECKING:
    from conftest import Place

ASKED = Trial(ExecutionSettings.from_values({"seed": 7}))
HEAD = """
import json, os, pathlib, pickle, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
asked = pickle.loads((folder / "request.pickle").read_bytes())
def report(doing, *steps):
    rows = [dict(zip(("level", "what", "field"), step)) for step in steps]
    (folder / "report.json").write_text(json.dumps({"doing": doing, "steps": rows}))
"""


def register(folder: Path, name: str, group: str = "a_probe.of_tests") -> Path:
    """Install a package that registers a program for the trial; return the file of that program."""
    package, about = folder / name, folder / f"{name}-1.0.dist-info"
    package.mkdir(parents=True)
    about.mkdir()
    (package / "__init__.py").write_text("")
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}.trial\n")
    return package / "trial.py"


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let some code stand in for the program that trains."""
    program = register(tmp_path / "code", "stand_in")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setattr(trial, "GROUP", "a_probe.of_tests")

    def go(code: str, **options: Any) -> tuple[Finding, ...]:
        program.write_text(HEAD + code)
        steps = run_trial(ASKED, **options)
        assert list((tmp_path / "tmp").iterdir()) == []
        return steps

    return go


def test_steps_come_back_as_the_child_reports_them(child: Any) -> None:
    steps = child('report(None, ("ok", f"probe fit: seed {asked.settings.seed}", "seed"))')
    assert steps == (Finding("probe fit: seed 7", level="ok", field="seed"),)


def test_every_registered_program_runs(child: Any, tmp_path: Path) -> None:
    code = HEAD + 'report(None, ("note", "probe fit: another", ""))'
    register(tmp_path / "code", "another").write_text(code)
    steps = child('report(None, ("ok", "probe fit: the first", ""))')
    assert [step.what for step in steps] == [
        "probe program: another.trial",
        "probe fit: another",
        "probe program: stand_in.trial",
        "probe fit: the first",
    ]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit('no driver')", ("start", "ended with code 1; its last line: no driver")),
        ("report('fit')\nos.kill(os.getpid(), signal.SIGKILL)", ("fit", "killed", "smaller batch_size")),
        ("report('fit')\nos.abort()", ("fit", "died by SIGABRT", "compile=false")),
        ("report('predict')\nsys.exit(3)", ("predict", "ended with code 3", "--debug")),
        ("(folder / 'report.json').unlink(missing_ok=True)", ("start", "ended with code 0")),
    ],
)
def test_a_child_that_dies_is_an_error_that_says_where(child: Any, code: str, words: tuple[str, ...]) -> None:
    (step,) = child(code)
    assert step.level == "error"
    assert step.what.startswith(f"probe {words[0]}: ")
    for word in words[1:]:
        assert word in f"{step.what} {step.fix}"


@pytest.mark.slow
def test_a_child_that_hangs_is_stopped_with_all_it_started(child: Any, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "report('fit', ('ok', 'probe data: read', ''))\n"
        f"done = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(done.pid))\ntime.sleep(60)"
    )
    start = time.monotonic()
    data, step = child(code, limit_s=8)
    assert time.monotonic() - start < 50
    assert (data.level, step.level) == ("ok", "error")
    assert "did not end within 8 s" in step.what
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
report(None, ("ok", f"{pathlib.Path.cwd() == folder} {sys.stdin.read()!r}", ""))
"""
    (step,) = child(code)
    assert step.what == "True ''"


def test_what_the_child_printed_is_told_without_credentials(child: Any) -> None:
    said: list[str] = []
    child("print('https://me:s3cret@host/x')\nreport(None)", say=said.append)
    assert said == ["https://***@host/x\n"]
    (step,) = child("raise SystemExit('https://me:s3cret@host/x')")
    assert "s3cret" not in step.what


def test_without_a_registered_program_there_is_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "GROUP", "nobody.registers_this")
    with pytest.raises(UserError, match="no installed package registers one"):
        run_trial(ASKED)


def test_this_package_does_not_name_the_one_that_trains() -> None:
    """It serves any program; what trains is registered, by name nowhere here."""
    package = Path(trial.__file__).parents[1]
    assert [path for path in package.rglob("*.py") if "ptycho_torch" in path.read_text("utf-8")] == []


def test_a_step_hides_credentials_in_every_form() -> None:
    step = Finding("probe fit: https://me:s3cret@host refused", fix="use another", field="tracking_uri")
    assert "s3cret" not in line(step) + str(to_json(step)) + step.render()
    assert to_json(step).keys() == {"level", "subject", "text", "fix", "where", "setting"}
    assert line(step) == "FAIL  probe fit: https://***@host refused -> use another"


# --- check --probe, with a stand-in for the trial ----------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the trial says; the trials that were asked for are appended."""
    fit, metrics = (
        Finding("probe fit: cpu: 1.0 s", level="ok"),
        Finding("probe metrics: adapted", level="note"),
    )
    said: list[Any] = [(fit, metrics)]

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
    steps[0] = (Finding("probe metrics: val_f1 was never logged", fix="monitor val_loss", field=name),)
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
