"""What a field is, where its value came from, and what that shadowed: as text, JSON, or a notebook's table.

Credentials are hidden in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from pydantic import BaseModel

from ptycho_exec.errors import Finding, SettingsError, redact
from ptycho_exec.fields.choices import CHOICES
from ptycho_exec.fields.spec import HIDDEN, FieldSpec, as_data, field_specs, format_value, table_specs
from ptycho_exec.sources.classes import spec_elsewhere
from ptycho_exec.sources.origins import Kind, Origin
from ptycho_exec.sources.suggestions import unknown_name


def shown(value: Any) -> str:
    """Write a value for one line of text: credentials hidden, control characters as escapes."""
    text = format_value(redact(value))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown_of(spec: FieldSpec, value: Any) -> str:
    """Write a value of a field as `shown` does; one that the field hides as `***`."""
    return HIDDEN if spec.hidden else shown(value)


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield rows as text with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        yield "  ".join(
            [cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[-1]]
        ).rstrip()


def changed(origins: Mapping[str, Origin]) -> list[str]:
    """Return the fields that somebody set, or a validator."""
    return [name for name, origin in origins.items() if not origin.is_default]


def part_of(row: FieldSpec, origin: Origin) -> Origin:
    """Return the origin of one name of a table, also of one that nobody set."""
    if isinstance(origin.value, Mapping) and row.name in origin.value:
        return origin.part(row.name)
    return Origin(Kind.DEFAULT, "default", row.default)


def rows_of(spec: FieldSpec, value: Any, origin: Origin | None) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and place of a field; of a table with values, those of each."""
    rows = [(spec.name, shown_of(spec, value), origin)]
    if spec.table and value and not spec.hidden:
        rows = [
            (f"{spec.name}.{name}", _shown_in(name, part), origin and origin.part(name))
            for name, part in value.items()
        ]
    for name, text, place in rows:
        yield name, text, redact(place.describe()) if place else ""


def _shown_in(name: str, value: Any) -> str:
    """Write a value of a table: hidden, too, where its name says that it is a credential."""
    return shown(redact({name: value}).get(name, HIDDEN))


def checked_name(name: str, model: type[BaseModel], *, where: str) -> str:
    """Return the name of a field, or `FIELD.NAME` of what its table holds.

    Raises:
        SettingsError: there is no such field; it names what explains one of another settings class.
    """
    specs = field_specs(model)
    field, _, inner = name.partition(".")
    rows = table_specs(specs[field]) if inner and field in specs else {}
    if name in specs or inner in rows:
        return name
    if rows:
        found = unknown_name(inner, tuple(rows), where=f"{field}, {where}", noun=f"name in {field}")
        raise SettingsError.from_findings([found])
    other = spec_elsewhere(field)
    if other is None or issubclass(model, other.model) or (inner and inner not in table_specs(other)):
        raise SettingsError.from_findings([unknown_name(name, tuple(specs), where=where)])
    command = vars(other.model).get("explained_by", "")  # of the class itself: one below has other fields
    asked = f"{other.name}.{inner}" if inner else other.name
    call = f"{other.model.__name__}().explain({asked!r})"
    raise SettingsError(
        f"{shown(name)} is a setting of {getattr(other.model, 'program', other.model.__name__)}",
        where=where,
        expected=f"a setting of {getattr(model, 'program', model.__name__)}",
        fix=f"run {command} {asked}" if command and where == COMMAND_LINE else f"call {call}",
        code="unknown-name",
        field=other.name,
    )


COMMAND_LINE = "command line"


def explain_field(
    spec: FieldSpec, value: Any, origin: Origin, notices: Sequence[Finding] = ()
) -> Iterator[str]:
    """Yield the lines about one field: value, origin, what it shadowed, what it means and accepts."""
    yield f"{spec.full_name} = {_shown_in(spec.name, value) if spec.within else shown_of(spec, value)}"
    yield f"  from      {_given_as(origin)}"
    for name, part in origin.parts if spec.table and not spec.hidden else ():
        yield f"  of these  {name} = {_shown_in(name, part.value)} from {_given_as(part)}"
    for other in origin.shadowed:
        yield f"  shadows   {shown_of(spec, other.value)} from {_given_as(other)}"
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
    same = raw in (None, HIDDEN, format_value(redact(origin.value)))
    given = "" if same else f", given as {raw!r}"
    return f"{redact(origin.describe())}{given}"


def explain_json(values: Mapping[str, Any], origins: Mapping[str, Origin]) -> dict[str, Any]:
    """Return field -> value, origin and what it shadowed, as plain JSON data."""
    return {
        name: {
            "value": HIDDEN if origins[name].raw == HIDDEN else redact(as_data(value)),
            "origin": origins[name].to_json(),
            "shadowed": [{"value": redact(as_data(o.shown)), **o.to_json()} for o in origins[name].shadowed],
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
        origin = origins.get(name)
        mark = "th" if origin and not origin.is_default else "td"
        for row in rows_of(spec, values[name], origin):
            cells = "".join(f"<{mark}>{escape(text)}</{mark}>" for text in row)
            rows.append(f'<tr title="{escape(spec.sentence)}">{cells}</tr>')
    notes = "".join(f"<p>note: {escape(notice.what)}</p>" for notice in notices)
    head = "<tr><th>setting</th><th>value</th><th>from</th></tr>"
    return f"<table><caption>{escape(title)}</caption>{head}{''.join(rows)}</table>{notes}"
