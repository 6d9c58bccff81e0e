"""Training and inference on two processes, by every engine that can start them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.launching import PROGRAM, QUICK, THOROUGH, TORCHRUN, complete, left_running, run, scan_file

pytestmark = pytest.mark.slow

MODULE = ("-m", "ptycho_torch")
ENGINES: dict[str, Callable[[], tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "ddp": lambda: (PROGRAM, ("--devices", "2")),
    "ddp_spawn": lambda: (PROGRAM, ("--devices", "2", "--strategy", "ddp_spawn")),
    "ddp_fork": lambda: (PROGRAM, ("--devices", "2", "--strategy", "ddp_fork")),
    "torchrun": lambda: ((*TORCHRUN, "--nproc-per-node", "2", *MODULE), ()),
}

SPAWNED = [pytest.param(name, marks=THOROUGH) for name in ("ddp_spawn", "ddp_fork")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scan and what one process with the same global batch makes of it."""
    folder = tmp_path_factory.mktemp("engines")
    scan_file(folder)
    words = ("train", "scan0.npz", "--out", "alone", *QUICK, "--batch-size", "8", "--precision", "64-true")
    assert run((*PROGRAM, *words), folder).code == 0
    assert run((*PROGRAM, "infer", "alone", "scan0.npz", "--out", "object"), folder).code == 0
    return folder


def weights(folder: Path) -> dict[str, np.ndarray]:
    import torch

    state = torch.load(folder / "model.ckpt", weights_only=False)["state_dict"]
    return {name: value.double().numpy() for name, value in state.items() if value.is_floating_point()}


@pytest.mark.thorough  # tests/torch/workflows/test_world_sizes.py does so in CI
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_as_one(engine: str, place: Path) -> None:
    words, options = ENGINES[engine]()
    given = ("train", "scan0.npz", "--out", engine, *QUICK, "--batch-size", "4", "--precision", "64-true")
    ended = run((*words, *given, *options), place)
    assert ended.code == 0, ended.output
    manifest = complete(place / engine)
    assert left_running(place / engine) == []
    assert ended.output.count("train_loss:") == 1
    assert ended.output.count("wrote ") == 1
    assert manifest["plan"]["totals"]["world_size"] == 2
    assert manifest["trained"]["optimizer_steps"] == complete(place / "alone")["trained"]["optimizer_steps"]
    alone = weights(place / "alone")
    assert max(np.abs(value - alone[name]).max() for name, value in weights(place / engine).items()) < 1e-6


@pytest.mark.parametrize("engine", ["ddp", pytest.param("torchrun", marks=THOROUGH), *SPAWNED])
def test_two_processes_reconstruct_the_object_of_one(engine: str, place: Path) -> None:
    words, options = ENGINES[engine]()
    out = f"object-{engine}"
    ended = run(
        (*words, "infer", "alone", "scan0.npz", "--out", out, "--inference-batch-size", "5", *options), place
    )
    assert ended.code == 0, ended.output
    assert left_running(place / out) == []
    with (
        np.load(place / "object" / "reconstruction.npz") as one,
        np.load(place / out / "reconstruction.npz") as two,
    ):
        assert np.abs(one["object"] - two["object"]).max() < 1e-5
        assert np.abs(one["coverage"] - two["coverage"]).max() < 1e-4
