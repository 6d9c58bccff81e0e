"""The phases of a run add up to all of its time."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from ptycho_torch.workflows import clock as clocks
from ptycho_torch.workflows.clock import Clock, process_age


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    shown = [100.0]
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: shown[0])
    return shown


def test_every_second_belongs_to_one_phase(now: list[float]) -> None:
    clock = Clock(begun=90.0)
    clock.mark("start")
    now[0] += 1
    with clock.phase("write"):
        now[0] += 2
        with clock.phase("report"):
            now[0] += 4
        now[0] += 8
    now[0] += 16
    clock.mark("score")
    with clock.phase("write"):
        now[0] += 32
    assert clock.seconds == {"start": 10, "other": 1, "write": 2 + 8 + 32, "report": 4, "score": 16}
    assert sum(clock.seconds.values()) == now[0] - clock.begun


def test_a_phase_that_fails_counts(now: list[float]) -> None:
    clock = Clock()

    def fail() -> None:
        now[0] += 3
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), clock.phase("fit"):
        fail()
    assert clock.seconds["fit"] == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has /proc")
def test_the_age_of_a_process_is_from_its_start() -> None:
    before = time.monotonic()
    words = "from ptycho_torch.workflows.clock import process_age as age; print(age()); input(); print(age())"
    with subprocess.Popen(
        [sys.executable, "-c", words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        first = float(child.stdout.readline())
        child.stdin.write("\n")
        child.stdin.flush()
        second = float(child.stdout.readline())
    # Clock ticks are 10 ms apart.
    assert 0 <= first <= second <= time.monotonic() - before + 0.02
    assert process_age() > second - first
