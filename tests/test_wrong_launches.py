"""Starts that cannot work, each in a real process: refused before torch or Lightning is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.exec.launchers import Variables, job, step, torchrun, without

LIMIT_S = 60
HEAVY = ("torch", "lightning", "numpy", "h5py")
TRAIN = ("ptycho_torch", "train", "scan.npz", "--out", "run")
INFER = ("ptycho_torch", "infer", "trained", "scan.npz", "--out", "out")
CHECK = ("ptycho_exec", "check")

WRONG: dict[str, tuple[Variables, tuple[str, ...], str]] = {
    "the script of a job with two tasks": (job(2), (), "`srun --kill-on-bad-exit=1 --ntasks=2`"),
    "the script of a job on two nodes": (job(4, 2), (), "`srun --kill-on-bad-exit=1 --nodes=2 --ntasks=4`"),
    "two nodes and no number of tasks": (
        without(job(1, SLURM_NNODES="2"), "SLURM_NTASKS"),
        (),
        "`srun --kill-on-bad-exit=1 --nodes=2 --ntasks=2`",
    ),
    "more devices than tasks": (step(), ("--devices=4",), "give slurm --ntasks-per-node=4"),
    "fewer devices than tasks": (step(), ("--devices=1",), "set devices=2"),
    "more nodes than the job has": (step(), ("--num-nodes=2",), "give slurm --nodes=2"),
    "uneven tasks": (
        step(0, 3, 1, SLURM_STEP_TASKS_PER_NODE="2,1", SLURM_STEP_NUM_NODES="2"),
        (),
        "give slurm --nodes=2 --ntasks-per-node=1",
    ),
    "half of a task": (without(step(), "SLURM_LOCALID"), (), "start the command with srun"),
    "a task that spawns": (step(), ("--strategy=ddp_spawn",), "set strategy=ddp"),
    "more devices than torchrun started": (torchrun(0, 2), ("--devices=4",), "torchrun --nproc-per-node=4"),
    "devices beside one process of torchrun": (torchrun(0, 1, 1), ("--devices=2",), "--nproc-per-node=2"),
    "half of torchrun": (without(torchrun(0), "LOCAL_RANK"), (), "start the command with torchrun"),
    "a rank by hand": ({"RANK": "0"}, (), "start the command with torchrun"),
    "a size by hand": ({"WORLD_SIZE": "2"}, (), "start the command with torchrun"),
    "a local rank by hand": ({"LOCAL_RANK": "1"}, (), "unset LOCAL_RANK"),
    "a rank beyond the last": (torchrun(0, 2, RANK="2"), (), "start the command with torchrun"),
    "a torchrun for each task": ({**step(), **torchrun(0, 1, 1)}, (), "torchrun --nnodes=2"),
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "2"}, (), "`torchrun --nproc-per-node=2 --no-python COMMAND`"),
    "mpirun in a job": ({**job(1), "PMI_SIZE": "2"}, (), "`srun --kill-on-bad-exit=1 --ntasks=2 COMMAND`"),
    "nodes without a launcher": ({}, ("--num-nodes=2",), "`srun --kill-on-bad-exit=1 --nodes=2 --ntasks=2`"),
}


def run(
    variables: Variables, argv: tuple[str, ...], place: Path
) -> tuple[subprocess.CompletedProcess[str], list[str], list[str]]:
    """Run a command; return how it ended, what it reported, and the heavy packages that it imported."""
    command = [sys.executable, "-X", "importtime", "-m", *argv]
    environ = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, cwd=place, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    reported = [line for line in lines if not line.startswith("import time:")]
    return done, reported, sorted(imported.intersection(HEAVY))


@pytest.mark.parametrize(("variables", "flags", "fix"), WRONG.values(), ids=WRONG)
def test_a_start_that_cannot_work_is_refused_at_once(
    variables: Variables, flags: tuple[str, ...], fix: str, tmp_path: Path
) -> None:
    done, reported, heavy = run(variables, (*TRAIN, *flags), tmp_path)
    assert (done.returncode, heavy) == (2, [])
    (remedy,) = (line for line in reported if line.strip().startswith("fix:"))
    assert fix in remedy
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [INFER, CHECK], ids=["infer", "check"])
@pytest.mark.parametrize("case", ["the script of a job with two tasks", "mpirun", "half of torchrun"])
def test_so_do_the_other_commands(argv: tuple[str, ...], case: str, tmp_path: Path) -> None:
    variables, _, fix = WRONG[case]
    done, reported, heavy = run(variables, argv, tmp_path)
    assert (done.returncode, heavy) == (2, [])
    assert fix in done.stdout + "\n".join(reported)


def test_check_says_so_in_json_too(tmp_path: Path) -> None:
    done, _, heavy = run(job(2), (*CHECK, "--json"), tmp_path)
    verdict = json.loads(done.stdout)
    assert (verdict["can_run"], verdict["findings"][0]["code"], heavy) == (False, "not-in-srun", [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "argv", "what"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, TRAIN, "MPI started 2 processes"),
        (step(1), (*TRAIN, "--devices=4"), "devices=4: slurm starts 2 task(s) per node"),
        (step(1), (*CHECK, "--devices=4"), "devices=4: slurm starts 2 task(s) per node"),
    ],
    ids=["mpirun", "train", "check"],
)
def test_other_processes_leave_it_to_the_first(
    variables: Variables, argv: tuple[str, ...], what: str, tmp_path: Path
) -> None:
    done, reported, heavy = run(variables, argv, tmp_path)
    assert (done.returncode, done.stdout, heavy) == (2, "", [])
    assert f"(rank 1): {what}" in reported[0]
    assert [line.split()[0] for line in reported[1:]] == ["fix:"]


def test_what_one_process_alone_finds_wrong_it_reports_in_full(tmp_path: Path) -> None:
    done, reported, _ = run(step(1), (*TRAIN, "--batch-sise=4"), tmp_path)
    assert (done.returncode, "'--batch-sise'" in reported[0], len(reported) > 2) == (2, True, True)


def test_check_prints_once(tmp_path: Path) -> None:
    first, second = (run(step(rank), (*CHECK, "--batch-size=4"), tmp_path)[0] for rank in range(2))
    assert (first.returncode, second.returncode) == (0, 0)
    assert "effective batch: 4 x 2 processes = 8" in first.stdout
    assert second.stdout == ""
