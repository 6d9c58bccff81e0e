"""How OpenMP's threads wait: in a loop on a free machine, asleep on a crowded one, as told where told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ptycho_exec.threads import POLICY, choose_wait_policy, crowded, others_running


@pytest.mark.parametrize(
    ("threads", "cpus", "others", "want"),
    [
        (2, 2, 0, False),  # the machine is ours
        (2, 2, 1, True),  # somebody else wants a processor
        (2, 8, 3, False),  # there is room for all
        (2, 8, 7, True),
        (8, 2.5, 0, True),  # a container's quota is smaller than the processors OpenMP sees
    ],
)
def test_a_machine_is_crowded_when_more_want_to_run_than_can(
    threads: int, cpus: float, others: int, want: bool
) -> None:
    assert crowded(threads, cpus, lambda: others) is want


@pytest.mark.parametrize(
    ("text", "want"), [("0.1 0.2 0.3 1/80 4242", 0), ("9.1 9.2 9.3 4/80 4242", 3), ("nonsense", 0), ("", 0)]
)
def test_the_load_is_read_as_the_kernel_writes_it(text: str, want: int, tmp_path: Path) -> None:
    load = tmp_path / "loadavg"
    load.write_text(text)
    assert others_running(load) == want
    assert others_running(tmp_path / "missing") == 0


@pytest.mark.skipif(
    not Path("/proc/loadavg").exists(), reason="only Linux tells how many threads want to run"
)
def test_processes_that_want_the_processors_make_threads_sleep() -> None:
    busy = "print(flush=True)\nwhile True: pass"
    children = [
        subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE)
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()  # it has begun
        environ: dict[str, str] = {}
        choose_wait_policy(environ)
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert environ == {POLICY: "PASSIVE"}


def test_what_the_user_chose_stays() -> None:
    environ = {POLICY: "ACTIVE", "OMP_NUM_THREADS": "100000"}
    choose_wait_policy(environ)
    assert environ[POLICY] == "ACTIVE"
    unset = {POLICY: "", "OMP_NUM_THREADS": "100000"}
    choose_wait_policy(unset)
    assert unset[POLICY] == "PASSIVE"
