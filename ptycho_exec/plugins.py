"""Plugins that other packages hang into pydantic, and why none of them sees our models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "PYDANTIC_DISABLE_PLUGINS"


@contextmanager
def without_plugins() -> Iterator[None]:
    """Build pydantic models inside the block without plugins; other packages' models keep theirs.

    A plugin is loaded when the first model is built. One that records what is validated would be shown
    credentials in addresses; and loading it can take longer than all the rest of `ptycho-exec show`, or
    fail over a line in somebody else's table of `pyproject.toml`.
    """
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "__all__"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
