"""Ctrl-C in commands: exit code 130, one line that says what is kept, and files as it says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from ptycho_torch.simulate import save, simulate_scan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="a program on Windows gets no SIGINT of another one"),
]
PROGRAM = """
import os, signal, sys
from ptycho_exec import progress

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts by &
progress.DELAY_S = progress.LINE_S = progress.LINE_PART = 0.0  # every step is a line
line = progress.Meter.line

def and_interrupt(meter, seconds):
    text = line(meter, seconds)
    if os.environ["SEEN"] in text:  # as a terminal does: to all processes of the group
        for _ in range(int(os.environ["TIMES"])):
            os.killpg(0, signal.SIGINT)
    return text

progress.Meter.line = and_interrupt
from ptycho_torch.__main__ import main
sys.exit(main())
"""
LIMIT_S = 300
NOTHING = "ptycho-torch: interrupted; nothing was written"
CONTINUES = "the same command with --resume auto continues the run"


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = simulate_scan(n=32, patterns=80, photons=1e5, step_px=3.0)
    return save(made, tmp_path_factory.mktemp("scan") / "scan.npz")


def run(words: Sequence[str | Path], place: Path, seen: str = "none", times: int = 1) -> tuple[int, str]:
    """Run a command, with Ctrl-C when its progress says some words; return exit code and last line.

    No process is left, and nothing but progress follows what is printed before that.
    """
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *map(str, words)],
        cwd=place,
        env={**os.environ, "SEEN": seen, "TIMES": str(times)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        lines = child.communicate(timeout=LIMIT_S)[1].splitlines()
        with pytest.raises(ProcessLookupError):
            os.killpg(child.pid, 0)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    rest = [line for line in lines if not is_progress(line)]
    assert len(rest) <= 1, rest
    return child.returncode, "".join(rest)


def interrupt(words: Sequence[str | Path], place: Path, seen: str, times: int = 1) -> str:
    code, line = run(words, place, seen, times)
    assert code == 130, line
    return line


def is_progress(line: str) -> bool:
    return re.search(r"\d:\d\d:\d\d (left|so far)$", line.strip()) is not None


def names_in(place: Path) -> Iterator[str]:
    return (path.name for path in place.iterdir())


def test_a_training_saves_its_step_and_goes_on(scan: Path, tmp_path: Path) -> None:
    command = ["train", scan, "--out", "run", "--epochs", "4", "--num-workers", "1", "--drift", "allow"]
    line = interrupt(command, tmp_path, "epoch 2/4")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert re.fullmatch(
        rf"ptycho-torch: interrupted after step \d+; the checkpoint is {last}; {CONTINUES}", line
    )
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    assert (manifest["status"], manifest["signal"]) == ("interrupted", "SIGINT")
    assert run([*command, "--resume", "auto"], tmp_path) == (0, "")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))["status"] == "completed"


@pytest.mark.thorough
def test_a_second_one_does_not_wait_for_the_step(scan: Path, tmp_path: Path) -> None:
    line = interrupt(["train", scan, "--out", "run", "--epochs", "25"], tmp_path, "epoch 2/25", times=2)
    when = "(at once; the checkpoint is .*last.ckpt, of an earlier step|after step .*last.ckpt)"
    assert re.fullmatch(rf"ptycho-torch: interrupted {when}; {CONTINUES}", line)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


REFINES = ("infer", "--start", "flat", "--refine", "400")


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (REFINES, "refining: 2 of 400"),
        pytest.param(("train", "--probe", "estimate"), "comparing probes", marks=pytest.mark.thorough),
        pytest.param(("reconstruct",), "comparing orientations: ", marks=pytest.mark.thorough),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize(
    "exists",
    [pytest.param(True, id="an empty directory"), pytest.param(False, id="new", marks=pytest.mark.thorough)],
)
def test_what_leaves_a_result_only_leaves_none(
    words: tuple[str, ...], seen: str, exists: bool, scan: Path, tmp_path: Path
) -> None:
    if exists:
        (tmp_path / "out").mkdir()
    name, *options = words
    assert interrupt([name, scan, "--out", "out", *options], tmp_path, seen) == NOTHING
    assert list(names_in(tmp_path)) == ["out"] * exists
    assert not exists or list(names_in(tmp_path / "out")) == []


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (("convert", "SCAN", "pair", "--to", "ptychodus"), "writing: "),
        pytest.param(
            ("simulate", "--out", "new.npz", "--patterns", "4000"), "simulating: ", marks=pytest.mark.thorough
        ),
        pytest.param(("tune", "SCAN", "--budget", "60s"), "tuning: ", marks=pytest.mark.thorough),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_no_half_file_is_left(words: tuple[str, ...], seen: str, scan: Path, tmp_path: Path) -> None:
    command = [str(scan) if word == "SCAN" else word for word in words]
    assert interrupt(command, tmp_path, seen) == NOTHING
    assert list(names_in(tmp_path)) == []


@pytest.mark.thorough
def test_a_demo_keeps_what_its_steps_have_made(tmp_path: Path) -> None:
    small = ("--n=32", "--patterns=60", "--step-px=4", "--probe-radius-px=8", "--epochs=40")
    line = interrupt(["demo", "--out", "demo", *small], tmp_path, "epoch 3/40")
    assert line.startswith("ptycho-torch: interrupted after step ")
    assert set(names_in(tmp_path / "demo")) == {"scan.npz", "train"}
