"""A process that is killed at a random step: the others end and say who it was, and the run goes on."""

from __future__ import annotations

import os
import random
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.launching import PROGRAM, THOROUGH, TORCHRUN, complete, left_running, run, scan_file, start
from tests.cluster.test_engines import weights

pytestmark = pytest.mark.slow

EPOCHS = 30
QUIET = ("--enable-progress-bar", "false", "--early-stop-patience", "none")
OFTEN = ("--batch-size", "4", "--checkpoint-every-n-steps", "3")
COMMAND = ("train", "scan0.npz", "--epochs", str(EPOCHS), *OFTEN, *QUIET)
DDP = (*PROGRAM, *COMMAND, "--devices", "2")
TORCH = (*TORCHRUN, "--nproc-per-node", "2", "-m", "ptycho_torch", *COMMAND)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scan and a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("killed")
    scan_file(folder, patterns=33)
    assert run((*DDP, "--out", "whole"), folder).code == 0
    return folder


@pytest.mark.parametrize(
    ("command", "rank"),
    [
        pytest.param(DDP, 0, marks=THOROUGH, id="ddp, first"),
        pytest.param(DDP, 1, marks=THOROUGH, id="ddp, second"),
        pytest.param(TORCH, 0, id="torchrun, first"),
        pytest.param(TORCH, 1, marks=THOROUGH, id="torchrun, second"),
    ],
)
def test_the_others_say_who_was_killed_and_the_run_goes_on(
    command: tuple[str, ...], rank: int, place: Path, request: pytest.FixtureRequest
) -> None:
    name = re.sub(r"\W+", "-", request.node.name)
    checkpoint = place / name / "checkpoints" / "last.ckpt"
    started = start((*command, "--out", name), place)
    steps = random.Random(name).randrange(1, 20)
    seen: set[int] = set()

    def far_enough() -> bool:
        if checkpoint.exists():
            seen.add(checkpoint.stat().st_mtime_ns)
        return len(seen) >= steps

    started.until(far_enough)
    os.kill(started.process_of_rank(rank), signal.SIGKILL)
    assert started.end() != 0
    assert left_running(place / name) == []
    assert f"rank {rank} of 2 ended without a word (killed, or out of memory)" in started.output
    assert "--resume auto" in started.output
    ended = run((*command, "--out", name, "--resume", "auto"), place)
    assert ended.code == 0, ended.output
    complete(place / name, EPOCHS)
    whole = weights(place / "whole")
    assert all(np.array_equal(value, whole[key]) for key, value in weights(place / name).items())
