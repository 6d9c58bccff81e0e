"""Malformed and contradicting values in words: what, where, what was expected, how to fix."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from ptycho_exec.errors import Finding, redact
from ptycho_exec.fields.model import Conflict, malformed
from ptycho_exec.fields.spec import FieldSpec, decode_text, field_specs, format_value
from ptycho_exec.sources.origins import Kind, Origin, Resolution
from ptycho_exec.sources.settings_files import assignment
from ptycho_exec.sources.suggestions import nearest

_LONGEST = 60
_QUOTES = "\"'`“”‘’«»„"
_TYPED = (Kind.ENVIRONMENT, Kind.DOTENV, Kind.FLAG)


def explain_error(error: ValidationError, resolution: Resolution) -> Iterator[Finding]:
    """Yield a finding for each field, and each contradiction, that a validation complains about."""
    told: set[str] = set()
    for item in error.errors(include_url=False, include_input=False):
        if item["type"] == "conflict":
            for rule in item["ctx"]["conflicts"]:
                yield _conflict(rule, resolution)
        elif (name := str(item["loc"][0])) not in told:
            told.add(name)
            yield bad_value(name, resolution.origins[name])


def inactive_values(inactive: Iterable[tuple[str, Origin]]) -> Iterator[Finding]:
    """Yield a finding for each malformed value that does not act now: shadowed, or of another profile."""
    rest = list(inactive)
    while rest:
        batch, later = dict[str, Origin](), list[tuple[str, Origin]]()
        for name, origin in rest:
            if name in batch:
                later.append((name, origin))
            else:
                batch[name] = origin
        for name in malformed({name: origin.value for name, origin in batch.items()}):
            yield bad_value(name, batch[name])
        rest = later


def bad_value(name: str, origin: Origin) -> Finding:
    """Return the finding about a value that its field does not accept."""
    spec = field_specs()[name]
    return Finding(
        f"{name} = {_shown(origin)} is not allowed",
        where=origin.describe(),
        expected=spec.expected(),
        fix=_remedy(spec, origin),
        file=origin.file or "",
        line=origin.line or 0,
    )


def _shown(origin: Origin) -> str:
    value = origin.value
    text = redact(origin.raw if origin.raw is not None else format_value(value))
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
    if isinstance(value, str):
        return repr(text)
    plain = value is None or isinstance(value, (bool, int, float, list, tuple, dict))
    return text if plain else f"{text} (of type {type(value).__name__})"


def _remedy(spec: FieldSpec, origin: Origin) -> str:
    value = origin.value
    if isinstance(value, str):
        bare = value.strip().strip(_QUOTES)
        if origin.kind in _TYPED and bare != value and not malformed({spec.name: decode_text(spec, bare)}):
            return f"write {bare}, without quotes"
        close = nearest(value, [format_value(choice) for choice in spec.choices], most=1)
        if origin.kind in _TYPED and close:
            return f"did you mean {close[0]}?"
        meant = decode_text(spec, value)
        if type(meant) is not str and not malformed({spec.name: meant}):
            return f"write {assignment(origin.file, spec.name, format_value(meant))}, without quotes"
        if close:
            return f"did you mean {assignment(origin.file, spec.name, json.dumps(close[0]))}?"
    return f"write another value, or remove it for the default, {format_value(spec.default)}"


def _conflict(rule: Conflict, resolution: Resolution) -> Finding:
    origins = [(name, resolution.origins[name]) for name in rule.fields]
    sides = [
        f"{name} = {redact(format_value(origin.value))} ({origin.describe()})" for name, origin in origins
    ]
    placed: Any = next((origin for _, origin in origins if origin.file), None)
    return Finding(
        f"{' and '.join(rule.fields)} contradict each other: {rule.why}",
        where="; ".join(sides),
        expected="values that can be meant together",
        fix=rule.fix,
        file=placed.file if placed else "",
        line=(placed.line or 0) if placed else 0,
    )
