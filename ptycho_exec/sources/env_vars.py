"""Names of variables, in the environment and in `.env`: ours, nearly ours, and those of other programs."""

from __future__ import annotations

import re
from functools import cache, lru_cache

from ptycho_exec.errors import Finding
from ptycho_exec.fields.model import ENV_PREFIX
from ptycho_exec.fields.spec import FieldSpec, decode_text, field_specs
from ptycho_exec.sources.discovery import PROFILE_VARIABLE, SETTINGS_FILE_VARIABLE
from ptycho_exec.sources.origins import Kind, Layer, Origin
from ptycho_exec.sources.suggestions import distance, least_distance, unknown_name

# Kubernetes and old Docker inject these for a service whose name starts like our prefix.
_SERVICE_LINK = re.compile(
    r"(?:^|_)(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)$"
)
_STRAY = ("PL_TRAINER_", "PL_GLOBAL_SEED", "LT_")


def take_variable(
    layer: Layer, kind: Kind, name: str, text: str, *, file: str | None = None, line: int | None = None
) -> None:
    """Put a variable into the layer: a value, a finding when it is misspelt, nothing when it is foreign."""
    if not _folded(name).startswith(ENV_PREFIX):
        meant = misspelt_prefix(name)
        if meant:
            layer.findings.append(_wrong_prefix(Origin(kind, name, file=file, line=line), meant))
        return
    origin = Origin(kind, name, raw=text, file=file, line=line)
    if name in _by_variable() or name in (SETTINGS_FILE_VARIABLE, PROFILE_VARIABLE):
        _take_ours(layer, origin, text)
    elif not _SERVICE_LINK.search(name.removeprefix(ENV_PREFIX)):
        layer.findings.append(unknown_name(name, our_variables(), where=_where(origin), file=file, line=line))


@lru_cache(maxsize=4096)
def _folded(name: str) -> str:
    return name.upper().replace("-", "_")


def _take_ours(layer: Layer, origin: Origin, text: str) -> None:
    spec = _by_variable().get(origin.place)
    if not text.strip():
        place = f" ({_where(origin)})" if origin.file else ""
        layer.notices.append(f"{origin.place} is empty{place} and counts as unset")
    elif spec is not None:
        value = decode_text(spec, text)
        layer.entries[spec.name] = Origin(
            origin.kind, origin.place, value, text, file=origin.file, line=origin.line
        )


def stray_notice(names: list[str]) -> list[str]:
    """Return a notice about Lightning's own variables, which have no effect on a Trainer that we build."""
    stray = [name for name in names if name.startswith(_STRAY)]
    if not stray:
        return []
    return [f"no effect here, the Trainer is built from these settings alone: {', '.join(sorted(stray))}"]


@cache
def our_variables() -> tuple[str, ...]:
    """Return the name of every variable that is read."""
    return (*_by_variable(), SETTINGS_FILE_VARIABLE, PROFILE_VARIABLE)


@cache
def _by_variable() -> dict[str, FieldSpec]:
    return {spec.variable: spec for spec in field_specs().values()}


def _where(origin: Origin) -> str:
    return f"{origin.file}:{origin.line}" if origin.file else f"{origin.kind.value} variable"


def _pairs(word: str) -> set[str]:
    return {word[i : i + 2] for i in range(len(word) - 1)}


_PREFIX_PAIRS = _pairs(ENV_PREFIX)


@lru_cache(maxsize=4096)
def misspelt_prefix(name: str) -> str | None:
    """Return the variable that was meant by a name whose prefix is wrong: `PTYCHO_BATCH_SIZE`.

    One slip destroys at most three of the pairs of letters that make up the prefix, so that few names of
    other programs come as far as the slow comparison.
    """
    folded = _folded(name)
    if len(_pairs(folded[: len(ENV_PREFIX) + 2]) & _PREFIX_PAIRS) < 6:
        return None
    for variable in our_variables():
        if folded == variable.replace("_EXEC_", "_", 1):
            return variable
    near = (variable for variable in our_variables() if least_distance(folded, variable) <= 3)
    scored = sorted((distance(folded, variable), variable) for variable in near)
    return scored[0][1] if scored and scored[0][0] <= 3 else None


def _wrong_prefix(origin: Origin, meant: str) -> Finding:
    return Finding(
        f"{origin.place} sets nothing: its prefix is misspelt",
        where=_where(origin),
        expected=meant,
        fix=f"rename it to {meant}",
        file=origin.file or "",
        line=origin.line or 0,
    )


def unprefixed(name: str, file: str, line: int) -> Finding | None:
    """Return the finding about a `.env` line that names a field without the prefix, if it does."""
    spec = field_specs().get(_folded(name).lower())
    if spec is None:
        return None
    return Finding(
        f"{name} in .env sets nothing: it lacks the prefix",
        where=f"{file}:{line}",
        expected=spec.variable,
        fix=f"rename it to {spec.variable}",
        file=file,
        line=line,
    )
