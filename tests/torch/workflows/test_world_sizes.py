"""The same training and the same object, however many processes share the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.workflows import components
from tests.torch.workflows import on_processes

pytestmark = pytest.mark.slow


def gap(made: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of a weight."""
    return max(float((made[name].double() - wanted[name].double()).abs().max()) for name in wanted)


def test_two_processes_learn_what_one_does_with_their_batches_in_one(tmp_path: Path) -> None:
    on_processes.run("all_trainings", "ddp", 2, 4, tmp_path)
    for case in on_processes.TRAININGS:
        made: dict[str, Any] = torch.load(tmp_path / f"{case}.pt", weights_only=False)
        wanted = on_processes.train(case, batch_size=8)
        assert gap(made["weights"], wanted.module.state_dict()) < 1e-6, case
        assert made["history"].keys() == wanted.history.keys()
        for name in {"train_loss", "val_loss"} & wanted.history.keys():
            assert made["history"][name] == pytest.approx(wanted.history[name], abs=1e-7), (case, name)
        ended = made["summary"], wanted.summary()
        assert len({(end["epochs"], end["optimizer_steps"]) for end in ended}) == 1
    # In float32 rounding grows in every step; after one, it is what accumulating two halves leaves.
    step = torch.load(tmp_path / "step.pt", weights_only=True)
    whole = on_processes.a_step_in_float32(batch_size=8)
    halves = on_processes.a_step_in_float32(batch_size=4, accum_steps=2)
    assert gap(step, whole) <= 2 * gap(halves, whole) + 1e-7


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what one process makes of the work that the others share."""
    folder = tmp_path_factory.mktemp("alone")
    on_processes.train_and_reconstruct(folder, 0, batch_size=8, inference_batch_size=4)
    return torch.load(folder / "rank0.pt", weights_only=False)


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("ddp", marks=pytest.mark.thorough),
        pytest.param("ddp_spawn", marks=pytest.mark.thorough),
        pytest.param("ddp_fork", marks=pytest.mark.thorough),
        "torchrun",
    ],
)
def test_results_and_records_are_those_of_one_process(strategy: str, alone: Any, tmp_path: Path) -> None:
    on_processes.run("train_and_reconstruct", strategy, 2, 4, tmp_path)
    made, *others = (torch.load(path, weights_only=False) for path in sorted(tmp_path.glob("rank*.pt")))
    assert gap(made["weights"], alone["weights"]) < 1e-6
    assert {name: len(values) for name, values in made["history"].items()} == {
        name: len(values) for name, values in alone["history"].items()
    }
    for name in ("epochs", "optimizer_steps"):
        assert made["summary"][name] == alone["summary"][name]
    assert made["summary"]["last"]["val_loss"] == pytest.approx(alone["summary"]["last"]["val_loss"])
    assert made["summary"]["samples_per_second"] > 0
    assert [row["name"] for row in made["drift"]] == [row["name"] for row in alone["drift"]]
    assert "differs" not in {row["verdict"] for row in made["drift"]}
    assert made["parts"] == alone["parts"]
    assert (made["n_patches"], len(made["refined"])) == (alone["n_patches"], 2)
    assert made["phases_turned_rad"] == pytest.approx(alone["phases_turned_rad"])
    for result in (made, *others):
        np.testing.assert_allclose(result["stitched"], alone["stitched"], atol=1e-5)
        assert components.REFINES_ALONE in result["notices"]
    assert [other["refined"] for other in others] == [None] * len(others)
    assert components.REFINES_ALONE not in alone["notices"]
    assert len(others) == (strategy in ("ddp", "torchrun"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("LossIsLost", "the loss became nan\n  where:    training step 2; on rank 1\n"),
        pytest.param(
            "WeightsAreLost",
            "1 weight tensors hold NaN or infinite values\n  where:    network.unet.head.bias; on rank 1\n",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            "PatchIsOutside", "patch 9 reaches outside the object canvas", marks=pytest.mark.thorough
        ),
    ],
)
def test_what_goes_wrong_in_one_process_stops_all_with_the_same_words(
    kind: str, message: str, tmp_path: Path
) -> None:
    on_processes.run(kind, "ddp", 2, 4, tmp_path)
    first, other = ((tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1))
    assert first == other
    assert message in first


@pytest.mark.parametrize(
    ("strategy", "devices"), [pytest.param("auto", 1, marks=pytest.mark.thorough), ("ddp", 2)]
)
def test_a_resumed_run_is_the_uninterrupted_one(strategy: str, devices: int, tmp_path: Path) -> None:
    on_processes.run("interrupt_and_resume", strategy, devices, 8 // devices, tmp_path)
    (wanted, whole), (made, resumed) = torch.load(tmp_path / "both.pt", weights_only=False)
    assert gap(made, wanted) == 0
    for name in ("epochs", "optimizer_steps"):
        assert resumed[name] == whole[name]
    assert whole["optimizer_steps"] == 8


@pytest.mark.thorough
def test_what_goes_wrong_in_a_spawned_process_is_told_by_the_first(tmp_path: Path) -> None:
    on_processes.run("LossIsLost", "ddp_spawn", 2, 4, tmp_path)
    assert (
        "the loss became nan\n  where:    training step 2; on rank 1" in (tmp_path / "rank0.txt").read_text()
    )
