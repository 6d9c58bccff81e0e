"""A place of its own for each test: an empty working directory, an empty home, an environment to fill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Resolution
from ptycho_exec.sources.resolve import Request, resolve


@dataclass
class Place:
    """A working directory below a home, with everything a resolution can see."""

    home: Path
    cwd: Path
    environ: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, text: str) -> Path:
        path = self.cwd / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    def write_user_file(self, text: str) -> Path:
        return self.write(str(self.home / ".config" / "ptycho_exec" / "settings.toml"), text)

    def resolve(self, **request: Any) -> Resolution:
        environ = {"HOME": str(self.home), **self.environ}
        return resolve(Request(ExecutionSettings, environ=environ, cwd=self.cwd, **request))

    def settings(self, **request: Any) -> ExecutionSettings:
        return ExecutionSettings.from_resolution(self.resolve(**request))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    home = tmp_path / "home"
    cwd = home / "work"
    cwd.mkdir(parents=True)
    return Place(home, cwd)


@pytest.fixture
def clean_process(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Make the place the process's own: working directory, home, and no variable of ours or Lightning's."""
    import os

    for name in os.environ:
        if name.upper().startswith(("PTYCHO", "PL_", "LT_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(place.home))
    monkeypatch.chdir(place.cwd)
    return place


def as_toml(values: Mapping[str, Any]) -> str:
    return "".join(f"{name} = {_toml(value)}\n" for name, value in values.items())


def _toml(value: Any) -> str:
    return '"none"' if value is None else json.dumps(value)


@pytest.fixture
def toml() -> Any:
    """Write settings as the text of a TOML file."""
    return as_toml
