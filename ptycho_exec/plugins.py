"""Plugins that other packages hang into pydantic, and why none of them sees our models."""

from __future__ import annotations

from contextlib import AbstractContextManager

from ptycho_exec.environment import variable

VARIABLE = "PYDANTIC_DISABLE_PLUGINS"


def without_plugins() -> AbstractContextManager[None]:
    """Build pydantic models inside the block without plugins; other packages' models keep theirs.

    A plugin is loaded when the first model is built. One that records what is validated would be shown
    credentials in addresses; and loading it can take longer than all the rest of `ptycho-exec show`, or
    fail over a line in somebody else's table of `pyproject.toml`.
    """
    return variable(VARIABLE, "__all__")
