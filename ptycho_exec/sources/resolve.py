"""Where settings come from, in one order, decided here and nowhere else.

`SOURCES` is the precedence, highest first:

1. arguments of the call, then an `overrides` mapping, then flags, then `override_settings` blocks
2. environment: `PTYCHO_EXEC_<FIELD>`
3. `.env` in the working directory
4. the file named by `--settings FILE` or `PTYCHO_EXEC_SETTINGS_FILE` (TOML, YAML or JSON)
5. `ptycho_exec.toml` from the working directory upward, then `[tool.ptycho_exec]` in `pyproject.toml`
6. the user's file, `~/.config/ptycho_exec/settings.toml`
7. the profile, shipped or `[profiles.NAME]` in one of the files
8. factory defaults that a workflow derives
9. the model's own defaults

One pass reads every source, checks every name in it, and keeps for each value its origin and what it
shadowed. pydantic-settings gets the merged result, because its own merge keeps no provenance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, ValidationError

from ptycho_exec.errors import Finding, SettingsError
from ptycho_exec.fields.model import ExecutionFields
from ptycho_exec.fields.spec import FieldSpec, decode_text, field_specs, format_value
from ptycho_exec.sources.discovery import Reader, Request
from ptycho_exec.sources.env_vars import dotenv_findings, tracker_notes, variables_layer
from ptycho_exec.sources.messages import explain_error, inactive_values
from ptycho_exec.sources.origins import Kind, Layer, Origin, Resolution
from ptycho_exec.sources.profiles import (
    Profile,
    document_layer,
    find_profile,
    own_profile_names,
    profile_layer,
)
from ptycho_exec.sources.suggestions import MOST_UNKNOWN, more_unknown_names, unknown_name


class Resolved(Protocol):
    """Settings that were resolved before: every field as an attribute, and where each came from."""

    @property
    def origins(self) -> Mapping[str, Origin]: ...


# Words that a call takes beside the settings; a misspelt one is reported as such.
CONTROLS = ("profile", "settings_file", "overrides", "factory_defaults")

_CONTEXT: ContextVar[tuple[Mapping[str, Any], ...]] = ContextVar("ptycho_exec_overrides", default=())


class Factory(NamedTuple):
    """A default that a workflow derives, with its reason."""

    value: Any
    reason: str = ""


# --- the sources, each a function from the reader to a layer --------------------------------------------


def from_arguments(reader: Reader) -> Layer:
    request = reader.request
    return _given(request.model, request.arguments, Kind.ARGUMENT, request.place, also=CONTROLS)


def from_overrides(reader: Reader) -> Layer:
    return _given(reader.request.model, reader.request.overrides, Kind.OVERRIDE, "overrides")


def from_flags(reader: Reader) -> Layer:
    flags = reader.request.flags.items()
    return Layer({name: flag_origin(reader.specs[name], texts) for name, texts in flags})


def flag_origin(spec: FieldSpec, texts: str | Sequence[str]) -> Origin:
    """Return the origin of a flag's value: the last of its texts counts and shadows those before it."""
    typed = (texts,) if isinstance(texts, str) else texts
    last, *before = (
        Origin(Kind.FLAG, spec.flag, decode_text(spec, text), raw=text) for text in reversed(typed)
    )
    return last.shadowing(before)


def from_context(reader: Reader) -> Layer:
    layer = Layer()
    for overrides in _CONTEXT.get():  # the blocks in force belong to the calling context, not to the request
        inner = _given(reader.request.model, overrides, Kind.CONTEXT, "override_settings()").entries
        for name, origin in inner.items():
            outer = layer.entries.get(name)
            layer.entries[name] = origin.shadowing((outer, *outer.shadowed) if outer else ())
    return layer


def from_environment(reader: Reader) -> Layer:
    rows = ((name, text, None) for name, text in reader.environ.items())
    return variables_layer(reader.request.model, Kind.ENVIRONMENT, rows)


def from_dotenv(reader: Reader) -> Layer:
    model, rows, file = reader.request.model, reader.dotenv, str(reader.cwd / ".env")
    layer = variables_layer(model, Kind.DOTENV, rows, file)
    return replace(layer, findings=[*layer.findings, *dotenv_findings(model, rows, file)])


def _from_document(kind: Kind) -> Callable[[Reader], Layer]:
    def read(reader: Reader) -> Layer:
        document = reader.documents.get(kind)
        return document_layer(document, reader.specs) if document else Layer()

    return read


def from_factory(reader: Reader) -> Layer:
    return _factory(reader.request.model, reader.request.factory_defaults)


SOURCES: tuple[tuple[Kind, Callable[[Reader], Layer]], ...] = (
    (Kind.ARGUMENT, from_arguments),
    (Kind.OVERRIDE, from_overrides),
    (Kind.FLAG, from_flags),
    (Kind.CONTEXT, from_context),
    (Kind.ENVIRONMENT, from_environment),
    (Kind.DOTENV, from_dotenv),
    (Kind.SETTINGS_FILE, _from_document(Kind.SETTINGS_FILE)),
    (Kind.PROJECT_FILE, _from_document(Kind.PROJECT_FILE)),
    (Kind.PYPROJECT, _from_document(Kind.PYPROJECT)),
    (Kind.USER_FILE, _from_document(Kind.USER_FILE)),
    (Kind.PROFILE, profile_layer),
    (Kind.FACTORY, from_factory),
)


# --- the engine -----------------------------------------------------------------------------------------


def resolve(request: Request) -> Resolution:
    """Read every source once and merge, highest first. Findings are kept; `check` raises them together."""
    reader = Reader(request)
    layers = [read(reader) for _, read in SOURCES]
    chains: dict[str, list[Origin]] = {}
    for layer in layers:
        for name, origin in layer.entries.items():
            chains.setdefault(name, []).extend((origin, *origin.shadowed))
    shadowed = [(name, origin) for name, chain in chains.items() for origin in chain[1:]]
    asked = reader.profile
    backend = chains["logger_backend"][0].value if "logger_backend" in chains else None
    names = {*reader.environ, *(row.name for row in reader.dotenv)}
    notes = [*tracker_notes(request.model, names, backend), *_without_effect(reader, chains)]
    return Resolution(
        values={name: chain[0].value for name, chain in chains.items()},
        origins=_with_defaults(request.model, chains),
        model=request.model,
        searched=tuple(reader.searched),
        findings=(*reader.findings, *(finding for layer in layers for finding in layer.findings), *notes),
        inactive=(*shadowed, *(entry for layer in layers for entry in layer.inactive)),
        profile=asked.value if asked else None,
        profile_asked_by=asked.describe() if asked else "",
    )


def _without_effect(reader: Reader, chains: Mapping[str, Sequence[Origin]]) -> Iterator[Finding]:
    """Yield a note for a profile or a file that was asked for and of which no value acts."""
    acting = {chain[0].place if chain[0].kind is Kind.PROFILE else chain[0].kind for chain in chains.values()}
    given = {origin.place for chain in chains.values() for origin in chain}
    one_acts = len(reader.profiles) == 1 and any(chain[0].kind is Kind.PROFILE for chain in chains.values())
    for asked in () if one_acts else reader.profiles:
        extended = _extended(reader, asked.value)
        if extended and not acting & extended:
            why = "all its values are set above it" if given & extended else "it sets nothing"
            what = f"profile {asked.value} has no effect: {why}"
            yield Finding(what, where=asked.describe(), level="note", code="no-effect")
    document = reader.documents.get(Kind.SETTINGS_FILE)
    other = {"profile", "profiles"} | (set(document.data) - set(reader.specs) if document else set())
    if document and Kind.SETTINGS_FILE not in acting and not (other - {"$schema"}) & set(document.data):
        why = "all its values are set above it" if set(document.data) & set(chains) else "it sets nothing"
        yield Finding(f"{document.path} has no effect: {why}", level="note", code="no-effect")


def _extended(reader: Reader, name: str) -> set[str]:
    """Return the places that a profile and those it extends are named by; none where one is not defined."""
    places, seen = set[str](), list[Profile]()
    while name:
        profile = find_profile(name, reader, [p for p in seen if p.name == name])
        if profile is None:
            return set()
        seen.append(profile)
        places.add(f"profile:{name}")
        name = profile.extends
    return places


def profile_conflicts(request: Request) -> Iterator[Finding]:
    """Yield the contradictions that each profile of the files here has, with them and the defaults.

    What is set for this one call, or in this environment, takes no part.
    """
    reader = Reader(request)
    environ = {name: text for name, text in reader.environ.items() if name in ("HOME", "XDG_CONFIG_HOME")}
    for name in own_profile_names(reader):
        resolution = resolve(
            Request(
                environ=environ,
                cwd=reader.cwd,
                settings_file=_named(reader),
                profile=name,
                model=request.model,
            )
        )
        try:
            request.model(**resolution.values)
        except ValidationError as error:
            for finding in explain_error(error, resolution):
                if finding.code == "conflict":
                    yield replace(finding, what=f"profile {name}: {finding.what}")


def _named(reader: Reader) -> str | None:
    return reader.settings_file.value if reader.settings_file else None


def _with_defaults(model: type[BaseModel], chains: Mapping[str, Sequence[Origin]]) -> dict[str, Origin]:
    origins = dict(_defaults(model))
    for name, (first, *rest) in chains.items():
        origins[name] = first.shadowing((*rest, origins[name]))
    return origins


@cache
def _defaults(model: type[BaseModel]) -> dict[str, Origin]:
    return {name: Origin(Kind.DEFAULT, "default", spec.default) for name, spec in field_specs(model).items()}


def resolve_values(
    values: Mapping[str, Any],
    *,
    place: str,
    kind: Kind = Kind.ARGUMENT,
    file: str | None = None,
    model: type[BaseModel] = ExecutionFields,
) -> Resolution:
    """Resolve `values` over the defaults alone: nothing of the environment or the disk is read."""
    return _alone(_given(model, values, kind, place, file=file), model)


def resolve_profile(name: str) -> Resolution:
    """Resolve one profile, as the files of this place define it, over the defaults alone."""
    reader = Reader(Request(profile=name))
    layer = profile_layer(reader)
    return _alone(replace(layer, findings=[*reader.findings, *layer.findings]), reader.request.model)


def _alone(layer: Layer, model: type[BaseModel]) -> Resolution:
    return Resolution(
        values={name: origin.value for name, origin in layer.entries.items()},
        origins=_with_defaults(model, {name: [origin] for name, origin in layer.entries.items()}),
        model=model,
        findings=tuple(layer.findings),
    )


def resolve_onto(settings: Resolved, overrides: Mapping[str, Any], *, place: str) -> Resolution:
    """Put `overrides` above everything that `settings` was resolved from."""
    return _restack(settings, _given(ExecutionFields, overrides, Kind.OVERRIDE, place), lambda _: True)


def resolve_under(settings: Resolved, defaults: Mapping[str, Any]) -> Resolution:
    """Put a workflow's factory `defaults` under everything that somebody set in `settings`."""
    return _restack(settings, _factory(ExecutionFields, defaults), lambda old: old.kind is Kind.DEFAULT)


def _restack(settings: Resolved, layer: Layer, wins: Callable[[Origin], bool]) -> Resolution:
    origins = dict(settings.origins) or dict(_defaults(ExecutionFields))
    values = {name: getattr(settings, name) for name in origins}
    for name, new in layer.entries.items():
        old = origins[name]
        if wins(old):
            origins[name] = new.shadowing((old, *old.shadowed))
            values[name] = new.value
    return Resolution(values=values, origins=origins, findings=tuple(layer.findings))


def check(resolution: Resolution, validate: Callable[[Mapping[str, Any]], None]) -> None:
    """Validate the merged values and raise everything that is wrong, anywhere, as one report.

    Raises:
        SettingsError: with one finding per problem.
    """
    findings = list(resolution.errors)
    try:
        validate(resolution.values)
    except ValidationError as error:
        findings += list(explain_error(error, resolution))
    findings += list(inactive_values(resolution))
    if findings:
        raise SettingsError.from_findings(list(dict.fromkeys(findings))) from None


@contextmanager
def override_settings(**overrides: Any) -> Iterator[None]:
    """Override settings for everything resolved inside the block, in this thread or task only.

    Raises:
        SettingsError: a name that is no field.
    """
    findings = _given(ExecutionFields, overrides, Kind.CONTEXT, "override_settings()").findings
    if findings:
        raise SettingsError.from_findings(findings)
    token = _CONTEXT.set((*_CONTEXT.get(), dict(overrides)))
    try:
        yield
    finally:
        _CONTEXT.reset(token)


# --- values that a call passes ----------------------------------------------------------------------------


def _given(
    model: type[BaseModel],
    values: Mapping[str, Any],
    kind: Kind,
    place: str,
    *,
    file: str | None = None,
    also: tuple[str, ...] = (),
) -> Layer:
    layer, specs, where = Layer(), field_specs(model), f"{kind.value} of {place}"
    if not isinstance(values, Mapping):
        what = f"settings must be a mapping of names to values, not {type(values).__name__}"
        layer.findings.append(Finding(what, where, "a mapping", "pass a dict", code="bad-value"))
        return layer
    unknown = [str(name) for name in values if name not in specs]
    for name, value in values.items():
        if name in specs:
            layer.entries[name] = Origin(kind, place, value, raw=format_value(value), file=file)
    for name in unknown[:MOST_UNKNOWN]:
        layer.findings.append(unknown_name(name, (*specs, *also), where=where))
    if len(unknown) > MOST_UNKNOWN:
        layer.findings.append(more_unknown_names(len(unknown) - MOST_UNKNOWN, where))
    return layer


def _factory(model: type[BaseModel], defaults: Mapping[str, Any]) -> Layer:
    plain = {name: item.value if isinstance(item, Factory) else item for name, item in defaults.items()}
    layer = _given(model, plain, Kind.FACTORY, "factory")
    for name, item in defaults.items():
        if isinstance(item, Factory) and name in layer.entries:
            layer.entries[name] = replace(layer.entries[name], reason=item.reason)
    return layer
