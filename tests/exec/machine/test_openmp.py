"""How OpenMP's threads wait: in a loop on a free machine, asleep on a crowded one, as told where told."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptycho_exec.cli import probe as trial
from ptycho_exec.machine import openmp as threads
from ptycho_exec.machine.openmp import POLICY, choose_wait_policy, crowded, others_running


@pytest.mark.parametrize(
    ("own", "usable", "others", "whole", "want"),
    [
        (2, 2, 0, 2, False),  # the machine is ours
        (2, 2, 1, 2, True),  # somebody else wants a processor
        (2, 8, 3, 8, False),  # there is room for all
        (2, 8, 7, 8, True),
        (8, 2.5, 0, 8, True),  # a container's quota is smaller than the processors OpenMP sees
        (4, 4, 50, 64, False),  # bound to a part of a shared machine, whose load is elsewhere
    ],
)
def test_a_machine_is_crowded_when_more_want_to_run_than_can(
    own: int, usable: float, others: int, whole: int, want: bool
) -> None:
    assert crowded(own, usable, lambda: others, whole) is want


@pytest.mark.parametrize(
    ("text", "want"), [("0.1 0.2 0.3 1/80 4242", 0), ("9.1 9.2 9.3 4/80 4242", 3), ("nonsense", 0), ("", 0)]
)
def test_the_load_is_read_as_the_kernel_writes_it(text: str, want: int, tmp_path: Path) -> None:
    load = tmp_path / "loadavg"
    load.write_text(text)
    assert others_running(load) == want
    assert others_running(tmp_path / "missing") == 0


def test_the_load_decides_how_threads_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load = tmp_path / "loadavg"
    monkeypatch.setattr(threads, "_LOAD", load)
    monkeypatch.setattr(threads, "usable_cpus", lambda: 1)
    chosen = []
    for text in ("0.1 0.2 0.3 1/80 42", "99 99 99 10000/20000 42"):
        load.write_text(text)
        environ = {"OMP_NUM_THREADS": "1"}
        choose_wait_policy(environ)
        chosen.append(environ.get(POLICY))
    assert chosen == [None, "PASSIVE"]


def test_the_child_of_a_trial_waits_as_its_machine_asks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    monkeypatch.setenv(POLICY, "")
    assert trial._environ(tmp_path, tmp_path)[POLICY] == "PASSIVE"


def test_what_the_user_chose_stays() -> None:
    environ = {POLICY: "ACTIVE", "OMP_NUM_THREADS": "100000"}
    choose_wait_policy(environ)
    assert environ[POLICY] == "ACTIVE"
    unset = {POLICY: "", "OMP_NUM_THREADS": "100000"}
    choose_wait_policy(unset)
    assert unset[POLICY] == "PASSIVE"
