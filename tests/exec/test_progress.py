"""Progress of long work: a bar where somebody watches, lines far enough apart in a log, silence otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ptycho_exec import progress
from ptycho_exec.progress import Meter, clock, counted, hide, show, steps

pty = pytest.importorskip("pty", reason="a system without pseudo-terminals")
WORK = """
from ptycho_exec import progress
progress.DELAY_S = progress.LINE_S = progress.LINE_PART = 0.0
with progress.show(), progress.steps("reading", 4, unit="patterns") as step:
    for _ in range(4):
        step(note="so far good")
print("result")
"""


class Clock:
    """A clock that goes on only when it is told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(progress, "_bar", lambda stays: None)
    yield
    assert not progress._state.shown
    assert not progress._state.busy


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_lines_in_a_log_are_ten_seconds_apart_and_later_a_tenth(
    time: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with show(), steps("refining", 3600, unit="epochs") as step:
        for _ in range(3600):
            time.now += 1
            step()
    lines = lines_of(capsys)
    assert lines[0] == "refining: 10 of 3600 epochs (0%), 0:59:50 left"
    assert lines[9] == "refining: 100 of 3600 epochs (3%), 0:58:20 left"
    assert len(lines) < 60


def test_work_that_is_over_soon_shows_nothing(time: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with show(), steps("reading", 9) as step:
        for _ in range(9):
            time.now += 1
            step()
    assert lines_of(capsys) == []


def test_nothing_is_shown_unless_a_program_asks_and_of_work_within_work_the_outer_one(
    time: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with steps("outer", 2) as step:
            for item in counted(range(2), "inner"):
                time.now += 20
                step(note=f"item {item}")

    work()
    with show(False):
        work()
    with show():
        hide()
        work()
    assert lines_of(capsys) == []
    with show():
        work()
    assert [line.partition(":")[0] for line in lines_of(capsys)] == ["outer", "outer"]


def test_an_error_in_the_work_ends_it(time: Clock) -> None:
    with pytest.raises(ValueError, match="no"), show(), steps("reading"):
        raise ValueError("no")
    assert not progress._state.busy


def test_items_are_counted_by_their_size_and_never_beyond_the_whole(
    time: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with show():
        for _ in counted(range(0, 10, 4), "reading", 10, unit="patterns", size=lambda _: 4):
            time.now += 10
    assert [line.partition(",")[0] for line in lines_of(capsys)] == [
        f"reading: {count} of 10 patterns ({count}0%)" for count in (4, 8)
    ] + ["reading: 10 of 10 patterns (100%)"]


@pytest.mark.parametrize(
    ("meter", "line"),
    [
        (Meter("a", 10, done=5), "a: 5 of 10, 0:01:00 so far"),
        (Meter("a"), "a: 0, 0:01:00 so far"),
    ],
)
def test_a_line_without_a_rate_says_how_long_it_takes_so_far(meter: Meter, line: str) -> None:
    assert meter.line(60) == line


def test_what_was_done_before_does_not_count_as_fast(time: Clock) -> None:
    meter = Meter("training", 100, done=50)
    meter.step(10)
    assert meter.line(10) == "training: 60 of 100 (60%), 0:00:40 left"


def test_seconds_as_hours_minutes_seconds() -> None:
    assert [clock(seconds) for seconds in (0.4, 61, 3600 * 30)] == ["0:00:00", "0:01:01", "30:00:00"]


@pytest.mark.parametrize("piped", [False, True], ids=["all on the terminal", "results in a pipe"])
def test_a_bar_on_a_terminal_is_on_standard_error(piped: bool) -> None:
    master, slave = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.Popen(
        [sys.executable, "-c", WORK],
        stdout=subprocess.PIPE if piped else slave,
        stderr=slave,
        env=environ,
    )
    os.close(slave)
    results = done.communicate()[0]
    screen = b""
    try:
        while piece := os.read(master, 65536):
            screen += piece
    except OSError:  # how a terminal without a program ends
        pass
    os.close(master)
    shown = screen.decode("utf-8")
    for words in ("reading", "4/4", "so far good", "remaining", "0:00:00", "━"):
        assert words in shown
    assert done.returncode == 0
    if piped:
        assert results.decode().split() == ["result"]
    assert ("result" in shown) is not piped


@pytest.mark.parametrize("forced", [{}, {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_a_pipe_gets_plain_lines_on_standard_error(forced: dict[str, str]) -> None:
    """Also where colors are forced: kernels of notebooks do that for the commands of their cells."""
    environ = {**os.environ, "TERM": "xterm", **forced}
    done = subprocess.run(
        [sys.executable, "-c", WORK], capture_output=True, encoding="utf-8", env=environ, check=False
    )
    assert done.stdout == "result\n"
    assert len(done.stderr.splitlines()) == 4
    assert done.stderr.startswith("reading: 1 of 4 patterns (25%), so far good, 0:00:0")
    assert "\x1b" not in done.stderr


def test_a_log_needs_no_rich() -> None:
    code = (
        "import sys\nfrom ptycho_exec.progress import Meter\nimport ptycho_exec.progress as progress\n"
        "progress.DELAY_S = 0.0\nmeter = Meter('working', 2); meter.step(); meter.close()\n"
        "print('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
