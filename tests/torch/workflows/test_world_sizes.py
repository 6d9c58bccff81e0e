"""The same training and the same object, however many processes share the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

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


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("LossIsLost", "the loss became nan\n  where:    training step 2; on rank 1\n"),
        ("WeightsAreLost", "1 weight tensors hold NaN or infinite values\n"
         "  where:    network.unet.head.bias; on rank 1\n"),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_one_process_stops_all_with_the_same_words(
    kind: str, message: str, tmp_path: Path
) -> None:
    on_processes.run(kind, "ddp", 2, 4, tmp_path)
    first, other = ((tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1))
    assert first == other
    assert message in first
