"""Settings under the name that they had before: honored with a warning until one version, then refused."""

from __future__ import annotations

import warnings
from typing import Any

from pydantic import BaseModel

from ptycho_exec.errors import Finding
from ptycho_exec.fields.spec import is_refused, renamed_fields
from ptycho_exec.sources.origins import Layer, Origin, caller


def with_new_names(layer: Layer, model: type[BaseModel]) -> Layer:
    """Return a layer in which every old name is the new one, with a finding, and a warning, for each.

    Where a source has both names, the new one counts.
    """
    table = renamed_fields(model)
    moved = Layer(findings=list(layer.findings))
    for name, origin in layer.entries.items():
        if name in table:
            moved.findings.append(_finding(name, origin, model))
        if name not in table or table[name].new not in layer.entries:
            moved.entries[table[name].new if name in table else name] = origin
    moved.inactive = [(table[name].new if name in table else name, origin) for name, origin in layer.inactive]
    return moved


def _finding(name: str, origin: Origin, model: type[BaseModel]) -> Finding:
    row = renamed_fields(model)[name]
    new, refused_from = row
    about: dict[str, Any] = {
        "code": "renamed",
        "field": new,
        "file": origin.file or "",
        "line": origin.line or 0,
    }
    where, fix = origin.describe(), f"write {new}"
    if is_refused(row, model):
        return Finding(f"{name} is now called {new}", where, new, fix, **about)
    what = f"{name} is now called {new}, and is refused from version {refused_from} on ({where})"
    file, line = (origin.file, origin.line or 1) if origin.file else caller()
    warnings.warn_explicit(f"{what}: {fix}", DeprecationWarning, file, line)
    return Finding(what, where, new, fix, level="note", **about)
