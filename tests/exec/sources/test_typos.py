"""The typo sweep on a part of its slips; `benchmarks/typo_sweep.py` makes all, beside other systems."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ptycho_exec.sources.origins import Kind
from ptycho_exec.sources.resolve import READERS


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "typo_sweep.py"
    spec = importlib.util.spec_from_file_location("typo_sweep", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["typo_sweep"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.015, pytest.param(0.05, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", ["ExecutionSettings", "ScienceSettings", "Lab"])
def test_no_slip_is_accepted_and_the_right_name_comes_first(
    bench: ModuleType, name: str, share: float, request: pytest.FixtureRequest
) -> None:
    model = next(model for model in bench.MODELS if model.__name__ == name)
    token = bench.MODEL.set(model)
    request.addfinalizer(lambda: bench.MODEL.reset(token))
    for source, tally in bench.sweep(bench.OURS, share).items():
        assert tally.tried > 800 * share, source
        assert tally.accepted == [], source
        assert tally.suggested >= 0.95, (source, tally.wrong)


def test_the_sweep_reaches_every_source(bench: ModuleType) -> None:
    assert len(bench.OURS) >= len([kind for kind in READERS if kind is not Kind.FACTORY])


def test_slips_are_of_all_kinds_and_never_a_right_name(bench: ModuleType) -> None:
    made = list(bench.slips("num_nodes", "num_nodes", {"num_nodes", "nodes"}))
    assert {slip.kind for slip in made} == {"delete", "swap", "double", "case", "hyphen"}
    assert not {slip.name for slip in made} & {"num_nodes", "nodes"}
    assert {"num-nodes", "nmu_nodes", "numm_nodes", "Num_nodes", "NUM_NODES", "num_node"} <= {
        slip.name for slip in made
    }


def test_a_sweep_over_something_careless_is_noticed(bench: ModuleType) -> None:
    careless = {"nothing": ("field", lambda _: None), "always wrong": ("field", lambda _: "seed")}
    tallies = bench.sweep(careless, 0.02)
    assert len(tallies["nothing"].accepted) == tallies["nothing"].tried > 0
    assert tallies["always wrong"].suggested < 0.2
