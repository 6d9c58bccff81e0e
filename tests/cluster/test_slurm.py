"""Jobs as users write them: each trains and reconstructs, or is refused with the line that works."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ptycho_exec.record import read_manifest
from tests.cluster.launching import QUICK, THOROUGH, complete, scan_file
from tests.cluster.slurm import Slurm, until

pytestmark = pytest.mark.slow

LIMIT_S = 300
SRUN = "srun --kill-on-bad-exit=1"
PYTHON = f"{sys.executable} -W ignore -m ptycho_torch"
OPTIONS = f"{' '.join(QUICK)} --global-batch-size 8 --precision 64-true"


def job(slurm: Slurm, folder: Path, options: str, *lines: str) -> tuple[str, str]:
    """Run a job to its end; return its state and what it wrote."""
    script = folder / "job.sh"
    head = f"#!/bin/bash\n#SBATCH {options}\ncd {folder}\nexport OMP_NUM_THREADS=1\n"
    script.write_text(head + "\n".join(lines) + "\n")
    number = slurm.submit(script)
    until(lambda: slurm.ended(number), LIMIT_S, f"job {number} ends")
    return slurm.shown(number)["JobState"], Path(f"{script}.out").read_text()


def contents(folder: Path) -> tuple[object, object]:
    """Return the hashes of the weights and of the object that a folder's runs gave."""
    complete(folder / "run")
    made = read_manifest(folder / "object")
    assert made["status"] == "completed"
    return read_manifest(folder / "run")["content"]["weights"], made["content"]["object"]


def both(start: str, more: str = "") -> list[str]:
    """Return the lines of a job that trains and reconstructs."""
    return [
        f"{start} {PYTHON} train scan0.npz --out run {OPTIONS} {more} || exit 1",
        f"{start} {PYTHON} infer run scan0.npz --out object --inference-batch-size 16 {more}",
    ]


LAUNCHES = {
    "two tasks": ("--ntasks=2", both(SRUN)),
    "two tasks per node": ("--nodes=1 --ntasks-per-node=2", both(SRUN)),
    "one task that starts the other": ("--ntasks=1 --cpus-per-task=2", both(f"{SRUN} -c 2", "--devices 2")),
    "torchrun in a task": (
        "--ntasks=1 --cpus-per-task=2",
        [
            line.replace(
                PYTHON, f"{sys.executable} -m torch.distributed.run --nproc-per-node 2 -m ptycho_torch"
            )
            for line in both(f"{SRUN} -c 2")
        ],
    ),
}


@pytest.fixture(scope="module")
def two_tasks(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, object]:
    """The hashes of what two tasks on one node make."""
    folder = tmp_path_factory.mktemp("two")
    scan_file(folder)
    state, said = job(slurm, folder, LAUNCHES["two tasks"][0], *LAUNCHES["two tasks"][1])
    assert state == "COMPLETED", said
    assert said.count("wrote ") == 2
    return contents(folder)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("two tasks per node", marks=THOROUGH),
        "one task that starts the other",
        pytest.param("torchrun in a task", marks=THOROUGH),
    ],
)
def test_two_processes_of_a_job_give_the_same_however_they_were_started(
    name: str, slurm: Slurm, two_tasks: tuple[object, object], tmp_path: Path
) -> None:
    scan_file(tmp_path)
    options, lines = LAUNCHES[name]
    state, said = job(slurm, tmp_path, options, *lines)
    assert state == "COMPLETED", said
    assert contents(tmp_path) == two_tasks


def test_two_nodes_give_the_same_as_one(
    two_nodes: Slurm, two_tasks: tuple[object, object], tmp_path: Path
) -> None:
    scan_file(tmp_path)
    line = "export MASTER_ADDR=127.0.0.1"
    state, said = job(two_nodes, tmp_path, "--nodes=2 --ntasks-per-node=1", line, *both(SRUN))
    assert state == "COMPLETED", said
    assert contents(tmp_path) == two_tasks


def test_a_job_of_two_tasks_without_srun_ends_at_once_with_the_line_that_works(
    slurm: Slurm, tmp_path: Path
) -> None:
    scan_file(tmp_path)
    state, said = job(slurm, tmp_path, "--ntasks=2", *both(""))
    assert state == "FAILED"
    assert "srun --kill-on-bad-exit=1" in said
    assert not (tmp_path / "run").exists()


def test_elements_of_an_array_are_runs_of_their_own(slurm: Slurm, tmp_path: Path) -> None:
    scan_file(tmp_path)
    line = f"{SRUN} {PYTHON} train scan0.npz --out run$SLURM_ARRAY_TASK_ID {OPTIONS}"
    script = tmp_path / "job.sh"
    head = f"#!/bin/bash\n#SBATCH --ntasks=1 --array=0-1\ncd {tmp_path}\n"
    script.write_text(f"{head}{line}\n")
    slurm.submit(script)
    until(lambda: not slurm.call("squeue", "-h").strip(), LIMIT_S, "the array ends")
    runs = [complete(tmp_path / f"run{index}") for index in (0, 1)]
    assert runs[0]["content"] == runs[1]["content"]
