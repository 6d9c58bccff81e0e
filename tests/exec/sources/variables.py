"""What several test files of this folder use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def variable(name: str) -> str:
    return f"PTYCHO_EXEC_{name.upper()}"
