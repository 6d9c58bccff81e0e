"""The mutation test of the settings does what its report says."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from ptycho_exec import ExecutionSettings
from tests.mutation import CARRIERS, severed, without

ROOT = Path(__file__).parents[1]
HEAD = "import pytest\nfrom ptycho_exec import *\nfrom ptycho_exec.trainer.build import train_loader_kwargs\n"
SEES = """
@pytest.mark.acts("batch_size", "the loader's batches")
def test_sees():
    given = ExecutionSettings.from_values({"batch_size": 3})
    assert train_loader_kwargs(given)["batch_size"] == 3
"""
BLIND = """
@pytest.mark.acts("batch_size", "nothing")
def test_blind():
    assert ExecutionSettings.from_values({"batch_size": 3}).batch_size == 3
"""
ONE_CASE = """
@pytest.mark.acts("batch_size", "the loader's batches", ["3"])
@pytest.mark.parametrize("size", [3, 16])
def test_case(size):
    assert train_loader_kwargs(ExecutionSettings.from_values({"batch_size": size}))["batch_size"] == size
"""
CRASHES = """
@pytest.mark.acts("batch_size", "nothing")
def test_crashes():
    import os
    os._exit(3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tests", "code", "line"),
    [
        (SEES, 0, "1 passed"),
        (BLIND, 1, "passed, although batch_size had its default"),
        pytest.param(SEES + BLIND, 1, "1 failed, 1 passed", marks=pytest.mark.thorough),
        (ONE_CASE, 0, "1 passed"),
        (CRASHES, 1, "or a crash"),
        ("def test_unmarked(): pass", 4, "no test is marked to see what these do: batch_size"),
    ],
    ids=["sees", "blind", "both", "one case", "crash", "unmarked"],
)
def test_a_cut_is_noticed_or_reported(tests: str, code: int, line: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(HEAD + tests)
    words = [
        "-q",
        "-p",
        "tests.mutation",
        "-p",
        "no:cacheprovider",
        f"--rootdir={tmp_path}",
        "--cut=batch_size",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert line in done.stdout + done.stderr


def test_the_carriers_are_functions() -> None:
    for place in CARRIERS:
        module, name = place.split(":")
        assert callable(getattr(import_module(module), name))


def test_cutting_replaces_one_field_and_nothing_else() -> None:
    whole = ExecutionSettings.from_values({"seed": 7, "batch_size": 3})
    cut = severed(whole, "seed")
    assert (cut.seed, cut.batch_size, cut.origins) == (42, 3, whole.origins)
    assert severed("anything else", "seed") == "anything else"
    assert without("seed", lambda settings: settings.seed)(whole) == 42
