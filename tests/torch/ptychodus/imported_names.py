"""The names that the installed Ptychodus imports from a module of ours, read from its source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest


def imported_by_ptychodus(module: str) -> set[str]:
    installed = pytest.importorskip(
        "ptychodus.model.ptychopinn_torch", reason="the ptychodus extra is not installed"
    )
    nodes = [
        node
        for file in Path(installed.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
    ]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == module]
    return {alias.name for node in imports for alias in node.names}
