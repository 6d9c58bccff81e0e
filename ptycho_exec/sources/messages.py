"""Malformed and contradicting values in words: what, where, what was expected, how to fix."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from os import PathLike
from traceback import walk_tb
from typing import Any
from unicodedata import normalize

from pydantic import ValidationError

from ptycho_exec.errors import Finding, redact
from ptycho_exec.fields.lightning_words import NOTHING, Meaning, meanings
from ptycho_exec.fields.model import Contradiction, malformed
from ptycho_exec.fields.spec import (
    FieldSpec,
    decode_text,
    field_specs,
    format_value,
    table_specs,
    why_no_table,
)
from ptycho_exec.sources.origins import Kind, Origin, Resolution, passes_on
from ptycho_exec.sources.settings_files import assignment, syntax
from ptycho_exec.sources.suggestions import RETIRED, nearest, unknown_name
from ptycho_exec.sources.validators import changed_by, fits_alone

_LONGEST = 60
_QUOTES = "\"'`“”‘’«»„"
_CALLED = (Kind.ARGUMENT, Kind.OVERRIDE, Kind.CONTEXT)
_TYPED = (Kind.ENVIRONMENT, Kind.DOTENV, Kind.FLAG)


def explain_error(error: ValidationError, resolution: Resolution) -> Iterator[Finding]:
    """Yield a finding for each field, and each contradiction, that a validation complains about."""
    items = error.errors(include_url=False, include_input=False)
    specs = field_specs(resolution.model)
    for rule in (rule for item in items if item["type"] == "conflict" for rule in item["ctx"]["conflicts"]):
        yield _conflict(rule, resolution)
    for item in (item for item in items if not item["loc"] and item["type"] != "conflict"):
        yield _own_rule(item["msg"], resolution)
    for name in dict.fromkeys(str(item["loc"][0]) for item in items if item["loc"]):
        if name not in specs or _by_validator(items, name, resolution):
            yield _wrong_validator(name, resolution)
        elif name in resolution.origins:
            wrong = list(_bad_parts(specs[name], resolution.origins[name]))
            if wrong:
                yield from wrong
                continue
            found = bad_value(specs[name], resolution.origins[name])
            why = "; ".join(said_by_validators(items, specs[name]))
            said = why and found.what.endswith("is not allowed")
            yield replace(found, what=f"{found.what}: {why}") if said else found
        else:
            yield _missing(specs[name], resolution)


def explain_failure(error: Exception, resolution: Resolution) -> Finding:
    """Return the finding about a validator of a class that fails otherwise than by refusing a value.

    Raises:
        Exception: the error itself, where no validator of the class was called.
    """
    steps = walk_tb(error.__traceback__)
    own = next(((frame, line) for frame, line in steps if not passes_on(frame)), None)
    if own is None:
        raise error
    frame, line = own
    code, model = frame.f_code, resolution.model
    said = redact(f"{type(error).__name__}: {error}".partition("\n")[0])
    return Finding(
        f"validator {code.co_name} of {model.__name__} fails: {said}",
        where=f"{code.co_filename}:{line}",
        expected="a validator that takes the value, or raises ValueError with the reason",
        fix="correct the validator",
        file=code.co_filename,
        line=line,
        code="bad-value",
    )


def _by_validator(items: Sequence[Mapping[str, Any]], name: str, resolution: Resolution) -> bool:
    """Return whether a value that was given is right, and only what a validator made of it is refused."""
    said = ("value_error", "assertion_error")
    if name not in resolution.origins or any(i["type"] in said for i in items if name in i["loc"][:1]):
        return False
    return fits_alone(resolution.model, name, resolution.origins[name].value)


def _wrong_validator(name: str, resolution: Resolution) -> Finding:
    specs, model = field_specs(resolution.model), resolution.model
    return Finding(
        f"{name}: what {changed_by(model, name)} makes of it is not allowed",
        where=f"{model.__module__}.{model.__qualname__}",
        expected=specs[name].expected() if name in specs else "a field of the class",
        fix="correct the validator",
        code="bad-value",
        field=name,
    )


def said_by_validators(items: Sequence[Mapping[str, Any]], spec: FieldSpec) -> Iterator[str]:
    """Yield what validators of a field say, and limits that `expected` has no words for."""
    for item in (item for item in items if item["loc"] and item["loc"][0] == spec.name):
        if item["type"] in ("value_error", "assertion_error"):
            yield redact(str(item["ctx"]["error"]).partition("\n")[0])
        elif item["type"] in _LIMITS and (not _LIMITS[item["type"]] or _LIMITS[item["type"]] in spec.words):
            yield item["msg"]


_LIMITS = {
    **dict.fromkeys(("string_pattern_mismatch", "string_too_short", "string_too_long"), "a string"),
    **dict.fromkeys(("too_short", "too_long", "missing"), "a list"),
    **dict.fromkeys(("multiple_of", "finite_number"), ""),
    **dict.fromkeys(("decimal_max_digits", "decimal_max_places", "decimal_whole_digits"), ""),
}
"""Types of pydantic's errors about limits, and how a field is described that does not name them itself."""


def _missing(spec: FieldSpec, resolution: Resolution) -> Finding:
    return Finding(
        f"{spec.name} is required and nothing sets it",
        where=resolution.model.__name__,
        expected=spec.expected(),
        fix=f"set {spec.variable}, or {spec.name} = ... in a settings file, or pass {spec.name}=...",
        code="missing-value",
        field=spec.name,
    )


def _own_rule(message: str, resolution: Resolution) -> Finding:
    """Return the finding about what a validator of a subclass refuses; it may say `what; what to do`."""
    what, _, fix = message.removeprefix("Value error, ").partition("; ")
    fix = fix or "change one of the values that the message names"
    where = resolution.model.__name__
    return Finding(what, where=where, expected="values that go together", fix=fix, code="conflict")


def inactive_values(resolution: Resolution) -> Iterator[Finding]:
    """Yield a finding for each malformed value that does not act now: shadowed, or of another profile."""
    batches: list[dict[str, Origin]] = []  # each is validated at once, so it has one value per field
    count: Counter[str] = Counter()
    for name, origin in resolution.inactive:
        if count[name] == len(batches):
            batches.append({})
        batches[count[name]][name] = origin
        count[name] += 1
    for batch in batches:
        for name in malformed({name: origin.value for name, origin in batch.items()}, resolution.model):
            spec = field_specs(resolution.model)[name]
            yield from list(_bad_parts(spec, batch[name])) or [bad_value(spec, batch[name])]


def _bad_parts(spec: FieldSpec, origin: Origin) -> Iterator[Finding]:
    """Yield a finding for each wrong name and value of a table."""
    rows = table_specs(spec)
    for name in origin.value if rows and isinstance(origin.value, Mapping) else ():
        part = origin.part(name)
        if name not in rows:
            yield _unknown_in_table(spec, str(name), part)
        elif not rows[name].accepts(part.value):
            yield bad_value(rows[name], part)


def _unknown_in_table(spec: FieldSpec, name: str, origin: Origin) -> Finding:
    fields, where = field_specs(spec.model), origin.describe()
    field = name if name in fields else RETIRED.get(name, "")
    file, line = origin.file or "", origin.line or 0
    if field not in fields or field == spec.name:
        rows = tuple(table_specs(spec))
        found = unknown_name(name, rows, where=where, noun=f"name in {spec.name}", file=file, line=line)
        return replace(found, field=spec.name)
    what, expected = f"{spec.name}.{name} is decided by the setting {field}", f"the setting {field}"
    fix = f"remove it and set {field} instead"
    return Finding(what, where, expected, fix, file=file, line=line, code="decided-twice", field=field)


def bad_value(spec: FieldSpec, origin: Origin) -> Finding:
    """Return the finding about a value that its field does not accept."""
    value = origin.value
    text = redact(origin.raw if origin.raw is not None else format_value(value))
    texts = isinstance(value, list) and any(isinstance(item, str) for item in value)
    if texts and origin.kind not in _TYPED and not spec.hidden:
        text = repr(redact(value))  # with its quotes: they may be what is wrong
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
    if isinstance(value, str):
        text = repr(text)
    elif value is not None and not isinstance(value, (bool, int, float, list, tuple, dict)):
        text = f"{text} (of type {type(value).__name__})"
    twice = why_no_table(value) if isinstance(value, str) and spec.tabled else ""
    return Finding(
        f"{spec.full_name} = {text} is not allowed{f': {twice}' if twice else ''}",
        where=origin.describe(),
        expected=spec.expected(),
        fix=_remedy(spec, origin),
        file=origin.file or "",
        line=origin.line or 0,
        code="bad-value",
        field=spec.full_name,
        given=text,
    )


def _remedy(spec: FieldSpec, origin: Origin) -> str:
    """Return what to write instead, with the reason, or that the value should go."""
    other = "write another value"
    if spec.listed and origin.kind in _TYPED:
        other = "write a list in one line as [a, b], with quotes around an element that has a comma"
    if not spec.required:
        other += f", or remove it for the default, {format_value(spec.default)}"
    for meaning in () if spec.hidden else _meanings(spec, origin.value):
        if meaning.value is NOTHING:
            return f"{other} ({meaning.why})"
        if spec.accepts(meaning.value):
            return f"write {_written(spec, origin, meaning.value)} ({meaning.why})"
    choices = {format_value(choice): choice for choice in spec.choices}
    guess = isinstance(origin.value, str) and not spec.hidden
    close = nearest(origin.value, choices, most=1) if guess else ()
    if close:
        return f"did you mean {_written(spec, origin, choices[close[0]])}?"
    return other


def _meanings(spec: FieldSpec, value: Any) -> Iterator[Meaning]:
    """Yield what a refused value could mean: Lightning's word, or a text that needs a little less in it."""
    if isinstance(value, str) and set(value) & set("\t\n\r\f\b\a\v\x1b"):
        yield Meaning(NOTHING, "in double quotes a backslash starts an escape; in single quotes it does not")
    texts = _cleaned(value) if isinstance(value, str) else ((format_value(value), "another type"),)
    for text, why in texts:
        yield from meanings(spec.name, value, text.strip().lower())
        meant = decode_text(spec, text)
        if not isinstance(meant, str) or isinstance(value, (str, PathLike)):
            yield Meaning(meant, why)
    if spec.listed and isinstance(value, (str, int, float)) and not set(str(value)) & set("[](){},"):
        yield Meaning([value], "a list of one")
        yield Meaning(decode_text(spec, f"[{value}]"), "a list of one")


def _cleaned(text: str) -> Iterator[tuple[str, str]]:
    """Yield a text with less and less of what surrounds or groups its characters, and what went."""
    yield text, "without quotes"
    for pattern, replacement, why in _REPAIRS:
        cleaned = re.sub(pattern, replacement, text)
        if cleaned != text:
            yield cleaned, why
        text = cleaned
    plain = normalize("NFKC", text)
    if plain != text:
        yield plain, "in plain digits and letters"
    with suppress(ValueError, OverflowError):
        yield str(int(float(plain))) if float(plain).is_integer() else plain, "an integer"
    if plain.endswith("%"):
        with suppress(ValueError):
            yield str(float(plain[:-1]) / 100), "a fraction"


_REPAIRS = (
    (r"\s+(?:#|//).*$", "", "without the comment"),
    (rf"^\s*[{_QUOTES}]+|[{_QUOTES}]+\s*$", "", "without quotes"),
    (r"[\s,;]+$", "", "without the mark at its end"),
    (r"(?<=\d)_(?=\d)", "", "without underscores"),
    (r"(?<=^\d),(?=\d+$)", ".", "with a decimal point"),
)
"""What often surrounds a value: pattern, replacement, and what the rest is."""


def _written(spec: FieldSpec, origin: Origin, value: Any) -> str:
    """Write a value as its place has it: text of a variable, line of a file, argument in Python."""
    if origin.kind in _TYPED:
        return format_value(value)
    if not origin.file or origin.kind in _CALLED:
        return f"{spec.name}={json.dumps(value) if isinstance(value, str) else repr(value)}"
    none = value is None and syntax(origin.file) == "TOML"  # which has no null
    return assignment(origin.file, spec.name, json.dumps("none" if none else value))


def _conflict(rule: Contradiction, resolution: Resolution) -> Finding:
    origins = {name: resolution.origins[name] for name in rule.fields}
    sides = [f"{name} = {redact(format_value(o.value))} ({o.describe()})" for name, o in origins.items()]
    file, line = next(((o.file, o.line) for o in origins.values() if o.file), (None, None))
    return Finding(
        f"{' and '.join(rule.fields)} contradict each other: {rule.why}",
        where="; ".join(sides),
        expected="values that can be meant together",
        fix=rule.fix,
        file=file or "",
        line=line or 0,
        code="conflict",
    )
