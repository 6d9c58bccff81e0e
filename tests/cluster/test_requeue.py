"""A SLURM job that is requeued in the middle ends with the weights of one that was not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ptycho_exec.record import read_manifest
from ptycho_torch.simulate import save, simulate_scan
from tests.cluster.launching import THOROUGH
from tests.cluster.slurm import Slurm, until

pytestmark = pytest.mark.slow
LIMIT_S = 400
SCRIPT = """\
#!/bin/bash
#SBATCH --ntasks={tasks} --ntasks-per-node={tasks} --requeue
export OMP_NUM_THREADS=1
srun --kill-on-bad-exit=1 {python} -m ptycho_torch train {scan} --out {out} --resume auto --epochs 60 \
    --n-filters 4 --depth 1 --batch-size 4 --checkpoint-every-n-steps 5 --enable-progress-bar false {more}
"""


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scan = simulate_scan(n=32, patterns=48, photons=1e5, seed=3)
    return save(scan, tmp_path_factory.mktemp("scan") / "scan.npz")


def submitted(slurm: Slurm, scan: Path, out: Path, tasks: int, more: str = "", *options: str) -> str:
    script = out.with_suffix(".sh")
    words = {"tasks": tasks, "python": sys.executable, "scan": scan, "out": out, "more": more}
    script.write_text(SCRIPT.format(**words))
    return slurm.submit(script, *options)


def finished(slurm: Slurm, job: str, out: Path) -> dict[str, Any]:
    """Return the manifest of a run whose job ended well."""
    until(lambda: slurm.ended(job), LIMIT_S, f"job {job} ends")
    said = out.with_suffix(".sh.out").read_text()
    assert slurm.shown(job)["JobState"] == "COMPLETED", said
    return read_manifest(out)


@pytest.fixture(scope="module")
def whole(
    slurm: Slurm, scan_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], dict[str, Any]]:
    """Gives the manifest of a run of so many tasks that nothing interrupted, made when it is asked for."""
    folder = tmp_path_factory.mktemp("whole")

    @cache
    def made(tasks: int) -> dict[str, Any]:
        out = folder / f"run{tasks}"
        return finished(slurm, submitted(slurm, scan_file, out, tasks), out)

    return made


@pytest.mark.parametrize(
    ("how", "tasks"),
    [
        ("USR1", 2),
        *(
            pytest.param(*case, marks=THOROUGH)
            for case in (("administrator", 1), ("administrator", 2), ("USR1", 1), ("USR2", 1), ("USR2", 2))
        ),
    ],
)
def test_a_requeued_job_ends_with_the_weights_of_one_that_was_not(
    how: str,
    tasks: int,
    slurm: Slurm,
    scan_file: Path,
    whole: Callable[[int], dict[str, Any]],
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    job = submitted(slurm, scan_file, out, tasks)
    begun = (out / "checkpoints" / "last.ckpt").exists
    until(lambda: begun() or slurm.ended(job), LIMIT_S, "the first checkpoint")
    if how == "administrator":
        slurm.call("scontrol", "requeue", job)
    else:
        slurm.call("scancel", f"--signal={how}", job)
    manifest = finished(slurm, job, out)
    said = out.with_suffix(".sh.out").read_text()
    assert manifest["content"] == whole(tasks)["content"], said
    first, last = manifest["attempts"]
    assert (last["status"], last["steps"], last["slurm_job"], last["slurm_restart"]) == (
        "completed", whole(tasks)["attempts"][0]["steps"], job, 1)  # fmt: skip
    if how == "administrator":
        assert first["status"] in ("interrupted", "died")
    else:
        assert (first["status"], first["signal"]) == ("interrupted", f"SIG{how}"), said
        assert f"job {job} is requeued, for the 1. of at most 3 times" in said
    assert said.count(": continues after") == 1


def test_a_job_is_not_requeued_more_often_than_allowed(slurm: Slurm, scan_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = submitted(slurm, scan_file, out, 1, "--max-requeues 0")
    until((out / "checkpoints" / "last.ckpt").exists, LIMIT_S, "the first checkpoint")
    slurm.call("scancel", "--signal=USR1", job)
    until(lambda: slurm.ended(job), LIMIT_S, f"job {job} ends")
    said = out.with_suffix(".sh.out").read_text()
    assert slurm.shown(job)["JobState"] == "FAILED", said
    assert f"job {job} is not requeued: it was 0 times, and max_requeues=0" in said
    assert read_manifest(out)["status"] == "interrupted"


@THOROUGH
def test_an_element_of_an_array_is_requeued_alone(
    slurm: Slurm, scan_file: Path, whole: Callable[[int], dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    job = submitted(slurm, scan_file, out, 1, "", "--array=3")
    until((out / "checkpoints" / "last.ckpt").exists, LIMIT_S, "the first checkpoint")
    slurm.call("scancel", "--signal=USR1", f"{job}_3")
    manifest = finished(slurm, f"{job}_3", out)
    assert manifest["content"] == whole(1)["content"]
    assert f"job {job}_3 is requeued" in out.with_suffix(".sh.out").read_text()
