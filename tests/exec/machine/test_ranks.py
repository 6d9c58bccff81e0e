"""Who started a process and which one it is, by the variables of each launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from ptycho_exec.machine.ranks import (
    TORCHRUN_VARIABLES,
    Launcher,
    detect_launcher,
    first_host,
    is_rank_zero,
    slurm_tasks_per_node,
)
from tests.exec.launchers import Variables, job, lightnings_child, step, torchrun, without

INTERACTIVE_STEP = str(0xFFFFFFFA)
KNOWN: dict[str, tuple[Variables, dict[str, Any]]] = {
    "nothing": ({}, {"kind": "none"}),
    "torchrun on one node": (
        torchrun(1, 2),
        {"kind": "torchrun", "rank": 1, "local_rank": 1, "world_size": 2, "tasks_per_node": 2, "nodes": 1,
         "address": "n1", "port": 29500},
    ),
    "torchrun on the second of two nodes": (
        torchrun(3),
        {"kind": "torchrun", "rank": 3, "local_rank": 1, "node": 1, "tasks_per_node": 2, "nodes": 2},
    ),
    "torchrun with one process": (
        torchrun(0, 1, 1),
        {"kind": "torchrun", "world_size": 1, "tasks_per_node": 1, "nodes": 1},
    ),
    "torchrun with another number of processes on each node": (
        torchrun(0, 3, 2, GROUP_WORLD_SIZE="2"),
        {"kind": "torchrun", "world_size": 3, "tasks_per_node": None, "nodes": 2},
    ),
    "all of torchrun's variables by hand": (
        without(torchrun(3), "GROUP_RANK", "GROUP_WORLD_SIZE"),
        {"kind": "torchrun", "rank": 3, "node": 1, "tasks_per_node": 2, "nodes": 2},
    ),
    "torchrun in a job of SLURM": (
        {**job(1), **torchrun(1, 2)},
        {"kind": "torchrun", "rank": 1, "world_size": 2},
    ),
    "one torchrun per task of srun": (
        {**step(1, 2, 2), **torchrun(3)},
        {"kind": "torchrun", "rank": 3, "nodes": 2},
    ),
    "left over from one process": ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, {"kind": "none"}),
    "left over from one process, beside srun": (
        {"WORLD_SIZE": "1", "RANK": "0", **step(1)},
        {"kind": "slurm", "rank": 1, "world_size": 2},
    ),
    "a child of Lightning": (
        lightnings_child(),
        {"kind": "lightning", "rank": 1, "local_rank": 1, "world_size": 2, "port": 1234},
    ),
    "a child of Lightning in its second training": (
        lightnings_child(world=None),
        {"kind": "lightning", "rank": 1, "local_rank": 1},
    ),
    "a child of Lightning in a job": ({**step(tasks=1), **lightnings_child()}, {"kind": "lightning"}),
    "a spawned child without a launcher": ({"LOCAL_RANK": "0"}, {"kind": "none", "rank": 0}),
    "a task of srun": (
        step(1),
        {"kind": "slurm", "rank": 1, "local_rank": 1, "world_size": 2, "tasks_per_node": 2, "nodes": 1,
         "in_step": True, "address": "n1"},
    ),
    "a task of srun on the second of two nodes": (
        step(2, 4, 2),
        {"kind": "slurm", "rank": 2, "local_rank": 0, "node": 1, "tasks_per_node": 2, "nodes": 2,
         "address": "n1"},
    ),
    "a task of srun with an address by hand": (
        step(1, MASTER_ADDR="10.0.0.1", MASTER_PORT="4000"),
        {"kind": "slurm", "address": "10.0.0.1", "port": 4000},
    ),
    "a step that is smaller than its job": (
        step(SLURM_NTASKS="8", SLURM_NNODES="4", SLURM_TASKS_PER_NODE="2(x4)"),
        {"kind": "slurm", "world_size": 2, "tasks_per_node": 2, "nodes": 1},
    ),
    "ntasks alone": (without(step(1), "SLURM_NTASKS_PER_NODE"), {"kind": "slurm", "tasks_per_node": 2}),
    "uneven tasks": (
        step(2, 3, 1, SLURM_STEP_TASKS_PER_NODE="2,1", SLURM_STEP_NUM_NODES="2"),
        {"kind": "slurm", "world_size": 3, "tasks_per_node": None, "nodes": 2},
    ),
    "srun of a shell script": (step(1, SLURM_JOB_NAME="bash"), {"kind": "slurm", "rank": 1, "world_size": 2}),
    "srun within salloc": (step(1, SLURM_JOB_NAME="interactive"), {"kind": "slurm", "rank": 1}),
    "the script of a job": (job(), {"kind": "slurm", "rank": 0, "world_size": 2, "in_step": False}),
    "the script of a job on two nodes without tasks": (
        without(job(1, SLURM_NNODES="2"), "SLURM_NTASKS"),
        {"kind": "slurm", "world_size": 2, "nodes": 2, "in_step": False},
    ),
    "the script of a job that counts no tasks": (without(job(1), "SLURM_NTASKS"), {"kind": "none"}),
    "the batch step": (job(SLURM_STEP_ID=str(0xFFFFFFFB)), {"kind": "slurm", "in_step": False}),
    "a job of an array": (
        job(1, SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="3"),
        {"kind": "slurm", "world_size": 1},
    ),
    "salloc": (job(4, SLURM_JOB_NAME="interactive"), {"kind": "none"}),
    "salloc with a shell on the node": (
        step(tasks=1, SLURM_JOB_NAME="interactive", SLURM_STEP_ID=INTERACTIVE_STEP, SLURM_NTASKS="4"),
        {"kind": "none"},
    ),
    "a shell of one task": (step(tasks=1, SLURM_JOB_NAME="bash"), {"kind": "slurm", "world_size": 1}),
    "srun that speaks MPI": ({**step(1), "PMI_SIZE": "2", "PMI_RANK": "1"}, {"kind": "slurm", "rank": 1}),
    "mpirun": (
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"},
        {"kind": "mpi", "rank": 3, "world_size": 4},
    ),
    "mpiexec of MPICH": ({"PMI_SIZE": "4", "PMI_RANK": "2"}, {"kind": "mpi", "rank": 2}),
    "mpirun of one process": ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, {"kind": "none"}),
    "mpirun in the script of a job": (
        {**job(1), "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"},
        {"kind": "mpi", "rank": 1},
    ),
    "mpirun that used srun": (
        {**step(1, 2, 2), "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"},
        {"kind": "mpi", "rank": 5, "world_size": 8},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("variables", "wanted"), KNOWN.values(), ids=KNOWN)
def test_who_started_a_process(variables: Variables, wanted: dict[str, Any]) -> None:
    found = detect_launcher(variables)
    assert {name: getattr(found, name) for name in wanted} == wanted
    assert bool(found.problem) == (found.kind == "mpi")


UNCLEAR: dict[str, tuple[Variables, str]] = {
    **{
        f"torchrun without {name}": (without(torchrun(1), name), f"{name} not")
        for name in TORCHRUN_VARIABLES
        if name not in ("RANK", "WORLD_SIZE")
    },
    "no rank": (without(torchrun(1), "RANK"), "RANK not"),
    "no size": (without(torchrun(1), "WORLD_SIZE"), "WORLD_SIZE not"),
    "a size alone": ({"WORLD_SIZE": "4"}, "RANK, LOCAL_RANK"),
    "a rank alone": ({"RANK": "0"}, "WORLD_SIZE"),
    "the variables of a tutorial": (
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        "LOCAL_RANK, LOCAL_WORLD_SIZE not",
    ),
    "a local rank alone": ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 set"),
    "no number": (torchrun(1, RANK="first"), "RANK=first: not a whole number"),
    "a negative rank": (torchrun(1, LOCAL_RANK="-1"), "LOCAL_RANK=-1: not a whole number"),
    "no port": (torchrun(1, MASTER_PORT="http"), "MASTER_PORT=http"),
    "a rank beyond the last": (torchrun(1, RANK="4"), "RANK=4 and WORLD_SIZE=4: ranks go from 0 to 3"),
    "a local rank beyond the last": (torchrun(1, LOCAL_RANK="2"), "from 0 to 1"),
    "half of a task": (without(step(1), "SLURM_LOCALID"), "SLURM_LOCALID not set"),
    "a torchrun for each task": ({**step(1), **torchrun(0, 1, 1)}, "srun started 2 torchruns"),
    "a torchrun for each node": ({**step(1, 2, 2), **torchrun(1, 2, 2)}, "do not know of each other"),
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "4"}, "MPI started 4 processes"),
}


@pytest.mark.parametrize(("variables", "words"), UNCLEAR.values(), ids=UNCLEAR)
def test_what_says_too_little_or_contradicts_itself_is_a_problem(variables: Variables, words: str) -> None:
    found = detect_launcher(variables)
    assert words in found.problem
    assert found.fix
    assert found.variables


def test_all_processes_of_a_step_meet_at_one_place_and_other_steps_elsewhere() -> None:
    places = {(found.address, found.port) for found in (detect_launcher(step(rank)) for rank in range(2))}
    others = {detect_launcher(step(SLURM_STEP_ID="1")).port, detect_launcher(step(SLURM_JOB_ID="72")).port}
    assert len(places) == 1
    assert len({port for _, port in places} | others) == 3


@pytest.mark.parametrize(
    ("text", "tasks"), [("2", 2), ("2(x4)", 2), ("2,2", 2), ("2(x3),1", None), ("", None), ("two", None)]
)
def test_counts_of_slurm(text: str, tasks: int | None) -> None:
    assert slurm_tasks_per_node(text) == tasks


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[03-07,9],cpu1", "gpu03"),
        ("n1,n2", "n1"),
        ("rack[1-2]-a", "rack1-a"),
        ("", ""),
    ],
)
def test_the_first_node_of_a_list(text: str, host: str) -> None:
    assert first_host(text) == host


def test_a_launcher_is_plain_data() -> None:
    found = detect_launcher(step(1))
    assert Launcher.model_validate_json(found.model_dump_json()) == found


# --- who writes -------------------------------------------------------------------------------------------


def test_a_process_without_a_launcher_writes() -> None:
    assert is_rank_zero()


@pytest.mark.parametrize("make", [torchrun, step, lightnings_child], ids=["torchrun", "srun", "Lightning"])
def test_of_the_processes_of_a_launcher_only_the_first_writes(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = []
    for rank in range(2):
        for name, value in make(rank).items():
            monkeypatch.setenv(name, value)
        writing.append(is_rank_zero())
    assert writing == [True, False]


def test_a_spawned_child_does_not_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not is_rank_zero()


def test_the_script_of_a_job_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in job(SLURM_PROCID="0").items():
        monkeypatch.setenv(name, value)
    assert is_rank_zero()


def test_asking_needs_no_torch() -> None:
    code = "import sys; from ptycho_exec.machine.ranks import is_rank_zero as ask; print(ask(), *sys.modules)"
    environ = {**os.environ, "LOCAL_RANK": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, check=True)
    answer, *modules = done.stdout.decode().split()
    assert answer == "False"
    assert "ptycho_exec.machine.ranks" in modules
    assert "torch" not in modules
