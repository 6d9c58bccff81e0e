"""What two processes know together: weighted means, and one verdict; alone nothing is asked of anybody."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ptycho_exec.errors import DataError, UserError
from ptycho_torch.network.ranks import agreed, mean_over_ranks, of_each_rank, on_ranks, several

NAN = float("nan")
PAIR = SimpleNamespace(world_size=2)


def _member(rank: int, work: Callable[[int], Any], folder: Path) -> None:
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save(work(rank), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def both(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Return what a function of the rank gives in each of two processes."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_member, args=(rank, work, folder)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_a_process_alone_keeps_what_it_has() -> None:
    for trainer in (None, SimpleNamespace(world_size=1)):
        value = torch.tensor(0.3, requires_grad=True)
        mean, total = mean_over_ranks(trainer, value, 5)
        assert (float(mean), total, mean.requires_grad) == (float(value.detach()), 5, False)
        assert not several(trainer)
        assert of_each_rank(trainer, "x") == ["x"]
        agreed(trainer, lambda: None)


@pytest.mark.parametrize(
    ("values", "weights", "mean"),
    [((1.0, 4.0), (3, 1), 1.75), ((2.0, NAN), (5, 0), 2.0), ((1.0, NAN), (1, 1), NAN)],
)
def test_means_weigh_what_each_process_has(
    values: tuple[float, float], weights: tuple[int, int], mean: float, tmp_path: Path
) -> None:
    def work(rank: int) -> Any:
        made, total = mean_over_ranks(PAIR, torch.tensor(values[rank]), weights[rank])
        return float(made), made.dtype, total

    expected = (pytest.approx(mean, nan_ok=True), torch.float32, sum(weights))
    assert both(work, tmp_path) == [expected] * 2


def _fails_on_the_last(rank: int) -> str:
    def check() -> None:
        if rank == 1:
            raise DataError("broken", where="here")

    try:
        agreed(PAIR, check)
    except DataError as error:
        return str(error)
    return ""


def test_one_failure_is_that_of_all(tmp_path: Path) -> None:
    assert both(_fails_on_the_last, tmp_path) == ["broken\n  where:    here; on rank 1"] * 2


def test_an_error_says_on_which_ranks_it_happened() -> None:
    error = on_ranks(UserError("broken", fix="mend it"), [0, 2])
    assert str(error) == "broken\n  where:    on rank 0, 2\n  fix:      mend it"
