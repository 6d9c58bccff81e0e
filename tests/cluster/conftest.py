"""A SLURM for the tests of this folder, where it is installed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm, why_not


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """One node with two CPUs."""
    yield from _running(1)


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[Slurm]:
    """Two virtual nodes with one CPU each."""
    yield from _running(2)


def _running(nodes: int) -> Iterator[Slurm]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm_", ignore_cleanup_errors=True) as name:
        found = Slurm(Path(name) / "test", nodes)
        Path(name).chmod(0o755)
        try:
            found.up()
            yield found
        finally:
            found.down()
