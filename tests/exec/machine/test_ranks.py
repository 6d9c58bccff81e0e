"""Which process writes, by the variables of each launcher."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ptycho_exec.machine.ranks import is_rank_zero


def test_a_process_without_a_launcher_writes() -> None:
    assert is_rank_zero()


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_of_the_processes_of_a_launcher_only_the_first_writes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = []
    for rank in range(3):
        monkeypatch.setenv(name, str(rank))
        writing.append(is_rank_zero())
    assert writing == [True, False, False]


@pytest.mark.parametrize(
    ("variables", "writes"),
    [
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),
        ({"RANK": "0", "SLURM_PROCID": "3"}, True),
        ({"SLURM_PROCID": "2", "LOCAL_RANK": "0"}, False),
    ],
    ids=["first of a second node", "torchrun inside a SLURM job", "SLURM's second node"],
)
def test_the_rank_among_all_nodes_counts(
    variables: dict[str, str], writes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_rank_zero() is writes


def test_asking_needs_no_torch() -> None:
    code = "import sys; from ptycho_exec.machine.ranks import is_rank_zero as ask; print(ask(), *sys.modules)"
    environ = {**os.environ, "LOCAL_RANK": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, check=True)
    answer, *modules = done.stdout.decode().split()
    assert answer == "False"
    assert "ptycho_exec.machine.ranks" in modules
    assert "torch" not in modules
