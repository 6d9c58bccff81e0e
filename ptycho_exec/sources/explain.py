"""What a field is, where its value came from, and what that shadowed: as text, JSON, or a notebook's table.

Credentials are hidden in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ptycho_exec.errors import Finding, SettingsError, redact
from ptycho_exec.fields.choices import CHOICES
from ptycho_exec.fields.spec import FieldSpec, format_value, table_specs
from ptycho_exec.sources.origins import Kind, Origin
from ptycho_exec.sources.suggestions import unknown_name


def shown(value: Any) -> str:
    """Write a value for one line of text: credentials hidden, control characters as escapes."""
    text = format_value(redact(value))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield rows as text with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        yield "  ".join(
            [cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[-1]]
        ).rstrip()


def changed(origins: Mapping[str, Origin]) -> list[str]:
    """Return the fields that somebody set."""
    return [name for name, origin in origins.items() if origin.kind is not Kind.DEFAULT]


def rows_of(spec: FieldSpec, value: Any, origin: Origin) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and place of a field; of a table with values, those of each."""
    rows = [(spec.name, value, origin)]
    if spec.table and value:
        rows = [(f"{spec.name}.{name}", value[name], origin.part(name)) for name in value]
    for name, part, place in rows:
        yield name, shown(part), redact(place.describe())


def checked_name(name: str, specs: Mapping[str, FieldSpec], *, where: str) -> str:
    """Return the name of a field, or `FIELD.NAME` of what its table holds.

    Raises:
        SettingsError: there is no such field.
    """
    table, _, inner = name.partition(".")
    rows = table_specs(specs[table]) if inner and table in specs else {}
    if name in specs or inner in rows:
        return name
    if rows:
        where = f"{table}, {where}"
        found = unknown_name(inner, tuple(rows), where=where, noun=f"name in {table}")
        raise SettingsError.from_findings([found])
    raise SettingsError.from_findings([unknown_name(name, tuple(specs), where=where)])


def explain_field(
    spec: FieldSpec, value: Any, origin: Origin, notices: Sequence[Finding] = ()
) -> Iterator[str]:
    """Yield the lines about one field: value, origin, what it shadowed, what it means and accepts."""
    yield f"{spec.full_name} = {shown(value)}"
    yield f"  from      {_given_as(origin)}"
    for name, part in origin.parts if spec.table else ():
        yield f"  of these  {name} = {shown(part.value)} from {_given_as(part)}"
    for other in origin.shadowed:
        yield f"  shadows   {shown(other.value)} from {_given_as(other)}"
    for notice in notices:
        if notice.field == spec.name:
            yield f"  {'unset' if notice.code == 'empty-variable' else 'note':<8}  {notice.what}"
    yield f"  meaning   {spec.sentence}"
    yield f"  accepts   {spec.expected()}"
    inner = [(f"    {name}", row.expected()) for name, row in table_specs(spec).items()]
    yield from table(inner) if inner else ()
    meanings = [(f"    {word}", meaning) for word, meaning in CHOICES.get(spec.name, {}).items()]
    yield from table(meanings) if meanings else ()
    yield f"  effect    {spec.effect.value}"
    yield f"  set with  {spec.ways}"


def _given_as(origin: Origin) -> str:
    raw = redact(origin.raw) if origin.raw is not None else None
    given = f", given as {raw!r}" if raw is not None and raw != format_value(redact(origin.value)) else ""
    return f"{redact(origin.describe())}{given}"


def explain_json(values: Mapping[str, Any], origins: Mapping[str, Origin]) -> dict[str, Any]:
    """Return field -> value, origin and what it shadowed, as plain JSON data."""
    return {
        name: {
            "value": redact(value),
            "origin": origins[name].to_json(),
            "shadowed": [{"value": redact(o.value), **o.to_json()} for o in origins[name].shadowed],
        }
        for name, value in values.items()
    }


def explain_html(
    title: str,
    specs: Mapping[str, FieldSpec],
    values: Mapping[str, Any],
    origins: Mapping[str, Origin],
    notices: Sequence[Finding] = (),
) -> str:
    """Return a table of every value with its origin, as a notebook shows it; those that were set are bold."""
    rows = []
    for name, spec in specs.items():
        origin = origins.get(name) or Origin(Kind.OTHER, "")
        mark = "td" if origin.kind in (Kind.DEFAULT, Kind.OTHER) else "th"
        for row in rows_of(spec, values[name], origin):
            cells = "".join(f"<{mark}>{escape(text)}</{mark}>" for text in row)
            rows.append(f'<tr title="{escape(spec.sentence)}">{cells}</tr>')
    notes = "".join(f"<p>note: {escape(notice.what)}</p>" for notice in notices)
    head = "<tr><th>setting</th><th>value</th><th>from</th></tr>"
    return f"<table><caption>{escape(title)}</caption>{head}{''.join(rows)}</table>{notes}"
