"""Fixtures of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exec.trainer.linear_runs import (
    process_state,
)


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    """No test may leave a flag, a variable or a warning filter behind."""
    before = process_state()
    yield
    assert process_state() == before


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home and a working directory that must stay empty; returns the run directory."""
    places = [tmp_path / name for name in ("home", "cwd")]
    for place in places:
        place.mkdir()
    monkeypatch.setenv("HOME", str(places[0]))
    monkeypatch.chdir(places[1])
    yield tmp_path / "run"
    left = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert left == []
