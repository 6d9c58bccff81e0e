"""Names of variables, in the environment and in `.env`: ours, misspelt ones, and those of other programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache

from pydantic import BaseModel

from ptycho_exec.errors import Finding
from ptycho_exec.fields.spec import FieldSpec, decode_text, field_specs
from ptycho_exec.sources.discovery import PROFILE_VARIABLE, SETTINGS_FILE_VARIABLE
from ptycho_exec.sources.origins import Kind, Layer, Origin
from ptycho_exec.sources.settings_files import MAY_BE_OURS, duplicate_key
from ptycho_exec.sources.suggestions import distance, unknown_name

# Kubernetes and old Docker inject these for a service whose name starts like our prefix.
_SERVICE_LINK = re.compile(
    r"(?:^|_)(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)$"
)
_STRAY = ("PL_TRAINER_", "PL_GLOBAL_SEED", "LT_")

Row = tuple[str, str, int | None]
"""Name and text of a variable, and its line where it is one of a file."""


def variables_layer(
    model: type[BaseModel], kind: Kind, rows: Iterable[Row], file: str | None = None
) -> Layer:
    """Return the values among `rows`, and findings about names that are misspelt or have no effect."""
    layer, stray = Layer(), list[str]()
    specs, prefix = _by_variable(model), str(model.model_config.get("env_prefix", ""))
    for name, text, line in rows:
        where = f"{file}:{line}" if file else f"{kind.value} variable"
        if name in specs:
            spec = specs[name]
            if spec is not None and text.strip():
                value = decode_text(spec, text)
                layer.entries[spec.name] = Origin(kind, name, value, text, file=file, line=line)
            elif not text.strip():
                what = f"{name} is empty{f' ({where})' if file else ''} and counts as unset"
                field = spec.name if spec else ""
                layer.findings.append(Finding(what, level="note", code="empty-variable", field=field))
        elif name.startswith(_STRAY):
            stray.append(name)
        elif _folded(name).startswith(prefix):
            if not _SERVICE_LINK.search(name.removeprefix(prefix)):
                layer.findings.append(unknown_name(name, tuple(specs), where=where, file=file, line=line))
        elif MAY_BE_OURS.search(name) and (meant := misspelt_prefix(name, model)):
            what = f"{name} is ignored: its prefix is misspelt"
            layer.findings.append(_rename(what, meant, where, file, line))
    if stray:
        names = ", ".join(sorted(stray))
        what = f"no effect here, the Trainer is built from these settings alone: {names}"
        layer.findings.insert(0, Finding(what, level="note", code="no-effect"))
    return layer


def dotenv_findings(model: type[BaseModel], rows: Iterable[Row], file: str) -> Iterator[Finding]:
    """Yield findings about `.env` lines that name a field without the prefix, or a variable a second time."""
    lines: dict[str, int | None] = {}
    for name, _, line in rows:
        spec = field_specs(model).get(_folded(name).lower())
        if spec is not None:
            what = f"{name} in .env is ignored: it lacks the prefix"
            yield _rename(what, spec.variable, f"{file}:{line}", file, line)
        if name in lines and name in _by_variable(model):
            yield duplicate_key(name, file, line or 0, lines[name])
        lines[name] = line


def _rename(what: str, meant: str, where: str, file: str | None, line: int | None) -> Finding:
    fix = f"rename it to {meant}"
    return Finding(what, where, meant, fix, file=file or "", line=line or 0, code="wrong-prefix")


def _folded(name: str) -> str:
    return name.upper().replace("-", "_")


@cache
def _by_variable(model: type[BaseModel]) -> dict[str, FieldSpec | None]:
    """Return every variable that is read, with its field; those that name a file and a profile have none."""
    specs: dict[str, FieldSpec | None] = {spec.variable: spec for spec in field_specs(model).values()}
    return {**specs, SETTINGS_FILE_VARIABLE: None, PROFILE_VARIABLE: None}


@lru_cache(maxsize=1024)
def misspelt_prefix(name: str, model: type[BaseModel]) -> str | None:
    """Return the variable that was meant by a name whose prefix is wrong: `PTYCHO_BATCH_SIZE`."""
    folded = _folded(name)
    for variable in _by_variable(model):
        if folded == variable.replace("_EXEC_", "_", 1):
            return variable
    near = (variable for variable in _by_variable(model) if abs(len(variable) - len(folded)) <= 3)
    score, meant = min(((distance(folded, variable), variable) for variable in near), default=(99, ""))
    return meant if score <= 3 else None
