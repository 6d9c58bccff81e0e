"""One pass over the sources of a settings class: every name checked, every value with its origin.

Which sources there are, and in which order, is the tuple that the class's `settings_customise_sources`
returns; `standard_sources` is what it returns unless a subclass decides otherwise:

1. arguments of the call, then an `overrides` mapping, then flags, then `override_settings` blocks
2. environment: `<PREFIX><FIELD>`
3. `.env` in the working directory
4. the file named by `--settings FILE` or `<PREFIX>SETTINGS_FILE` (TOML, YAML or JSON)
5. `<program>.toml` from the working directory upward, then `[tool.<program>]` in `pyproject.toml`
6. the user's file, `~/.config/<program>/settings.toml`
7. a secrets directory, where one is given
8. profiles, shipped or `[profiles.NAME]` in one of the files
9. factory defaults that a workflow derives
10. the class's own defaults

The engine keeps for each value its origin and what it shadowed; the merge of pydantic-settings keeps neither.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache, cached_property
from traceback import walk_tb
from typing import Any, NamedTuple, Protocol, cast

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from ptycho_exec.errors import Finding, SettingsError, redact
from ptycho_exec.fields.base import converted, fill
from ptycho_exec.fields.spec import (
    HIDDEN,
    FieldSpec,
    as_data,
    decode_text,
    decode_texts,
    field_specs,
    format_value,
    source_specs,
)
from ptycho_exec.sources.discovery import Reader, Request
from ptycho_exec.sources.env_vars import dotenv_findings, secrets_layer, tracker_notes, variables_layer
from ptycho_exec.sources.messages import explain_error, explain_failure, inactive_values
from ptycho_exec.sources.origins import Kind, Layer, Origin, Resolution, caller, passes_on
from ptycho_exec.sources.profiles import (
    document_layer,
    own_profile_names,
    profile_chain,
    profile_layer,
)
from ptycho_exec.sources.renames import with_new_names
from ptycho_exec.sources.suggestions import MOST_UNKNOWN, more_unknown_names, unknown_name
from ptycho_exec.sources.validators import may_change


class Resolved(Protocol):
    """Settings that were resolved before: every field as an attribute, where each came from, and notes."""

    @property
    def origins(self) -> Mapping[str, Origin]: ...

    @property
    def notices(self) -> tuple[Finding, ...]: ...


# Words that a call takes beside the settings; a misspelt one is reported as such.
CONTROLS = ("profile", "settings_file", "overrides", "factory_defaults")

_Block = tuple[type[BaseModel], Mapping[str, Any], tuple[str, int]]
_CONTEXT: ContextVar[tuple[_Block, ...]] = ContextVar("ptycho_exec_overrides", default=())


class Factory(NamedTuple):
    """A default that a workflow derives, with its reason."""

    value: Any
    reason: str = ""


# --- the sources --------------------------------------------------------------------------------------------


class LayerSource(PydanticBaseSettingsSource):
    """A source of pydantic-settings that also knows where each of its values came from."""

    def __init__(self, kind: Kind, reader: Reader, read: Callable[[Reader], Layer]) -> None:
        super().__init__(cast(Any, reader.request.model))
        self.kind, self.reader, self._read = kind, reader, read

    @cached_property
    def layer(self) -> Layer:
        """What the source supplies; read when first asked for."""
        return _finished(self._read(self.reader), self.reader.request.model)

    def __call__(self) -> dict[str, Any]:
        return {name: origin.value for name, origin in self.layer.entries.items()}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        del field
        origin = self.layer.entries.get(field_name)
        return (origin.value if origin else None), field_name, False

    @property
    def __name__(self) -> str:
        """The key in `settings_sources_data` of later sources: the one of pydantic-settings, or the kind."""
        return _NAMES.get(self.kind, self.kind.value)

    def __repr__(self) -> str:
        """Name the kind; values stay out, for they may hold credentials."""
        return f"LayerSource({self.kind})"


_NAMES = {
    Kind.ARGUMENT: "InitSettingsSource",
    Kind.ENVIRONMENT: "EnvSettingsSource",
    Kind.DOTENV: "DotEnvSettingsSource",
    Kind.SECRET: "SecretsSettingsSource",
}


def from_arguments(reader: Reader) -> Layer:
    request = reader.request
    place = request.place or f"{request.model.__name__}()"
    return _given(request.model, request.arguments, Kind.ARGUMENT, place, also=CONTROLS)


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
    model, layer = reader.request.model, Layer()
    for owner, overrides, at in _CONTEXT.get():  # of the calling context, not of the request
        if not issubclass(model, owner):
            continue
        given = _given(model, overrides, Kind.CONTEXT, "override_settings()", at=at)
        layer.findings += given.findings
        for name, origin in given.entries.items():
            outer = layer.entries.get(name)
            layer.entries[name] = origin.shadowing((outer, *outer.shadowed) if outer else ())
    return layer


def from_environment(reader: Reader) -> Layer:
    rows = ((name, text, None) for name, text in reader.environ.items())
    return variables_layer(reader.request.model, Kind.ENVIRONMENT, rows)


def from_dotenv(reader: Reader) -> Layer:
    model, whole = reader.request.model, Layer()
    for file, rows in reader.dotenv:  # the file that wins comes first
        _put_below(whole, variables_layer(model, Kind.DOTENV, rows, file))
        whole.findings += dotenv_findings(model, rows, file)
    return whole


def from_secrets(reader: Reader) -> Layer:
    """Read a file per variable from the secrets directories, as containers mount them; the last one wins."""
    whole = Layer()
    given = reader.places.secrets if reader.request.secrets is None else reader.request.secrets
    for folder in (reader.cwd / os.path.expanduser(name) for name in reversed(given)):
        if not folder.is_dir():
            what, fix = "the secrets directory is not there", "correct the path, or do not name one"
            whole.findings.append(Finding(what, str(folder), "a directory", fix, code="unreadable-file"))
            continue
        _put_below(whole, secrets_layer(reader.request.model, folder))
    return whole


def _put_below(whole: Layer, layer: Layer) -> None:
    """Add a layer that those before it win over."""
    whole.findings += layer.findings
    for name, origin in layer.entries.items():
        won = whole.entries.get(name)
        whole.entries[name] = won.shadowing((*won.shadowed, origin, *origin.shadowed)) if won else origin


def _from_document(kind: Kind) -> Callable[[Reader], Layer]:
    def read(reader: Reader) -> Layer:
        document = reader.documents.get(kind)
        return document_layer(document, reader.specs) if document else Layer()

    return read


def from_factory(reader: Reader) -> Layer:
    return _factory(reader.request.model, reader.request.factory_defaults)


READERS: Mapping[Kind, Callable[[Reader], Layer]] = {
    Kind.ARGUMENT: from_arguments,
    Kind.OVERRIDE: from_overrides,
    Kind.FLAG: from_flags,
    Kind.CONTEXT: from_context,
    Kind.ENVIRONMENT: from_environment,
    Kind.DOTENV: from_dotenv,
    Kind.SETTINGS_FILE: _from_document(Kind.SETTINGS_FILE),
    Kind.PROJECT_FILE: _from_document(Kind.PROJECT_FILE),
    Kind.PYPROJECT: _from_document(Kind.PYPROJECT),
    Kind.USER_FILE: _from_document(Kind.USER_FILE),
    Kind.SECRET: from_secrets,
    Kind.PROFILE: profile_layer,
    Kind.FACTORY: from_factory,
}
"""How each kind of source is read, highest precedence first."""


def standard_sources(
    model: type[BaseModel],
    init_settings: PydanticBaseSettingsSource,
    env_settings: PydanticBaseSettingsSource,
    dotenv_settings: PydanticBaseSettingsSource,
    file_secret_settings: PydanticBaseSettingsSource,
) -> tuple[PydanticBaseSettingsSource, ...]:
    """Return all sources in the documented order; the four that pydantic-settings knows are handed in."""
    reader = init_settings.reader if isinstance(init_settings, LayerSource) else Reader(Request(model))
    own = {kind: LayerSource(kind, reader, read) for kind, read in READERS.items()}
    known = (init_settings, env_settings, dotenv_settings, file_secret_settings)
    kinds = (Kind.ARGUMENT, Kind.ENVIRONMENT, Kind.DOTENV, Kind.SECRET)
    return tuple((own | dict(zip(kinds, known, strict=True))).values())


def _sources(reader: Reader) -> tuple[PydanticBaseSettingsSource, ...]:
    """Return what the class chooses, after sources that the call itself brought."""
    model = cast(Any, reader.request.model)

    def known(kind: Kind) -> LayerSource:
        return LayerSource(kind, reader, READERS[kind])

    try:
        chosen: tuple[PydanticBaseSettingsSource, ...] = model.settings_customise_sources(
            model,
            init_settings=known(Kind.ARGUMENT),
            env_settings=known(Kind.ENVIRONMENT),
            dotenv_settings=known(Kind.DOTENV),
            file_secret_settings=known(Kind.SECRET),
        )
    except SettingsError:
        raise
    except Exception as error:
        found = _failed(f"settings_customise_sources of {model.__name__}", error)
        raise SettingsError.from_findings([found]) from None
    return (*reader.request.extra_sources, *chosen)


def _layers(sources: Iterable[Any], model: type[BaseModel]) -> Iterator[Layer]:
    """Yield what each source supplies; one from elsewhere gets what those before it gave."""
    chains: dict[str, list[Origin]] = {}
    states: dict[str, dict[str, Any]] = {}
    for source in sources:
        if isinstance(source, PydanticBaseSettingsSource) and not isinstance(source, LayerSource):
            won = {name: first.shadowing(rest).value for name, (first, *rest) in chains.items()}
            source._set_current_state(won)
            source._set_settings_sources_data(states)
        layer = _layer_of(source, model)
        key = getattr(source, "__name__", type(source).__name__)
        states[key] = {name: origin.value for name, origin in layer.entries.items()}
        for name, origin in layer.entries.items():
            chains.setdefault(name, []).append(origin)
        yield layer


def _layer_of(source: Any, model: type[BaseModel]) -> Layer:
    """Return what a source supplies; texts of one from elsewhere are typed by their fields."""
    if isinstance(source, LayerSource):
        return source.layer
    specs, name = field_specs(model), type(source).__name__
    try:
        values = source()
    except SettingsError as error:
        return Layer(findings=list(error.findings))
    except Exception as error:
        return Layer(findings=[_failed(f"the source {name}", error)])
    layer = _given(model, values, Kind.OTHER, name)
    for field, origin in layer.entries.items():
        raw = origin.value if isinstance(origin.value, str) else origin.raw
        layer.entries[field] = replace(origin, value=decode_texts(specs[field], origin.value), raw=raw)
    return layer


def _failed(who: str, error: Exception) -> Finding:
    """Return the finding about code of a class, or of another package, that fails while sources are read."""
    steps = list(walk_tb(error.__traceback__))
    frame, line = next((step for step in steps if not passes_on(step[0])), steps[-1])
    locals_ = [step.f_locals for step, _ in steps]
    files = [str(names["file_path"]) for names in locals_ if "file_path" in names]  # of pydantic-settings
    reading = f" at {files[-1]}" if files else ""
    said = f"{type(error).__name__}: {error}".partition("\n")[0]
    return Finding(
        redact(f"{who} fails{reading}: {said}"),
        where=f"{frame.f_code.co_filename}:{line}",
        expected="names and values of settings",
        fix="correct what it reads, or the source",
        file=frame.f_code.co_filename,
        line=line,
        code="failed",
    )


# --- the engine -----------------------------------------------------------------------------------------


def resolve(request: Request) -> Resolution:
    """Read every source once and merge, highest first. Findings are kept; `check` raises them together."""
    return _resolve(Reader(request))


def resolve_together(*requests: Request) -> list[Resolution]:
    """Resolve several settings classes of one run.

    One file that is named holds values of all of them; a profile needs to be known to one of them only; and
    a profile or file that was asked for through the variables of one counts for the others too.
    """
    readers = [Reader(request) for request in requests]
    for reader in readers:
        reader.beside = tuple(other for other in readers if other is not reader)
    found = [_resolve(reader) for reader in readers]
    for number, resolution in enumerate(found):
        others = [*found[:number], *found[number + 1 :]]
        found[number] = replace(resolution, findings=tuple(_not_better_said(resolution.findings, others)))
    first, *rest = found
    said = {(f.what, f.where) for f in first.findings if f.field == "profile"}
    return [first, *(_without(resolution, said) for resolution in rest)]


def _without(resolution: Resolution, said: Collection[tuple[str, str]]) -> Resolution:
    """Leave out findings that are reported for the run already."""
    kept = tuple(f for f in resolution.findings if (f.what, f.where) not in said)
    return replace(resolution, findings=kept)


def _not_better_said(findings: Iterable[Finding], others: Sequence[Resolution]) -> Iterator[Finding]:
    """Yield the findings about names that no other class of the run knows, or knows better.

    A profile that one of them has is no unknown one. A name in a file of both is reported once, by the class
    that has a name like it.
    """
    for finding in findings:
        same = [
            [f for f in other.findings if (f.what, f.where) == (finding.what, finding.where)]
            for other in others
        ]
        if finding.code != "unknown-name" and finding.field not in ("profile", "settings_file"):
            known = False
        elif finding.field in ("profile", "settings_file"):
            known = any(not twins for twins in same)
        else:
            known = any(
                twin.fix.startswith("write ") or not finding.fix.startswith("write ")
                for t in same
                for twin in t
            )
        if not known:
            yield finding


def _resolve(reader: Reader) -> Resolution:
    request = reader.request
    layers = list(_layers(_sources(reader), request.model))
    chains: dict[str, list[Origin]] = {}
    for layer in layers:
        for name, origin in layer.entries.items():
            chains.setdefault(name, []).extend((origin, *origin.shadowed))
    origins = _with_defaults(request.model, chains)
    shadowed = [(name, origin) for name, chain in chains.items() for origin in chain[1:]]
    asked = reader.profile
    names = {*reader.environ, *(row.name for _, rows in reader.dotenv for row in rows)}
    notes = [*_all_given(request, shadowed), *_without_effect(reader, origins, chains)]
    if "logger_backend" in reader.specs:
        backend = chains["logger_backend"][0].value if "logger_backend" in chains else None
        notes = [*tracker_notes(request.model, names, backend), *notes]
    return Resolution(
        request.model,
        values={name: origins[name].value for name in chains},
        origins=origins,
        searched=tuple(reader.searched),
        findings=(*reader.findings, *(finding for layer in layers for finding in layer.findings), *notes),
        inactive=(*shadowed, *(entry for layer in layers for entry in layer.inactive)),
        profile=asked.value if asked else None,
        profile_asked_by=asked.describe() if asked else "",
    )


def _without_effect(
    reader: Reader, origins: Mapping[str, Origin], chains: Mapping[str, Sequence[Origin]]
) -> Iterator[Finding]:
    """Yield a note for a profile or a file that was asked for and of which no value acts."""
    won = [part for name in chains for _, part in origins[name].parts or (("", origins[name]),)]
    acting = {origin.place if origin.kind is Kind.PROFILE else origin.kind for origin in won}
    given = {origin.place for chain in chains.values() for origin in chain}
    one_acts = len(reader.profiles) == 1 and any(origin.kind is Kind.PROFILE for origin in won)
    for asked in () if one_acts else reader.profiles:
        chain = profile_chain(asked, reader)
        extended = {f"profile:{profile.name}" for profile in chain.profiles}
        if chain.missing is None and not acting & extended:
            why = "all its values are set above it" if given & extended else "it sets nothing"
            what = f"profile {asked.value} has no effect: {why}"
            yield Finding(what, where=asked.describe(), level="note", code="no-effect", field="profile")
    document = reader.documents.get(Kind.SETTINGS_FILE)
    other = {"profile", "profiles"} | (set(document.data) - set(reader.specs) if document else set())
    if document and Kind.SETTINGS_FILE not in acting and not (other - {"$schema"}) & set(document.data):
        why = "all its values are set above it" if set(document.data) & set(chains) else "it sets nothing"
        what = f"{document.path} has no effect: {why}"
        yield Finding(what, level="note", code="no-effect", field="settings_file")


def profile_conflicts(request: Request) -> Iterator[Finding]:
    """Yield the contradictions that each profile of the files here has, with them and the defaults.

    What is set for this one call, or in this environment, takes no part.
    """
    reader = Reader(request)
    environ = {name: text for name, text in reader.environ.items() if name in ("HOME", "XDG_CONFIG_HOME")}
    for name in own_profile_names(reader):
        named = _named(reader)
        resolution = resolve(
            Request(request.model, environ=environ, cwd=reader.cwd, settings_file=named, profile=name)
        )
        try:
            fill(request.model.__new__(request.model), resolution.values)
        except ValidationError as error:
            for finding in explain_error(error, resolution):
                if finding.code == "conflict":
                    yield replace(finding, what=f"profile {name}: {finding.what}")


def _named(reader: Reader) -> str | None:
    return reader.settings_file.value if reader.settings_file else None


def _all_given(request: Request, shadowed: Sequence[tuple[str, Origin]]) -> Iterator[Finding]:
    """Yield a finding, and warn, where a call passes every field, as parsers do that pass on all defaults."""
    given = request.arguments
    if not field_specs(request.model).keys() <= given.keys():
        return
    hidden = {origin.place for name, origin in shadowed if origin.value != given[name]}
    if not hidden:
        return
    places = ", ".join(sorted(hidden))
    what = f"every field was given in the call, so these have no effect: {places}"
    fix = "pass on only what somebody set (docs/how-to/your-own-project.md)"
    warnings.warn_explicit(f"{what}: {fix}", UserWarning, *(caller() if caller()[0] else ("<call>", 1)))
    yield Finding(what, fix=fix, level="note", code="no-effect")


def _with_defaults(model: type[BaseModel], chains: Mapping[str, Sequence[Origin]]) -> dict[str, Origin]:
    origins = dict(_defaults(model))
    for name, (first, *rest) in chains.items():
        default = (origins[name],) if name in origins else ()
        origins[name] = first.shadowing((*rest, *default))
    return origins


@cache
def _defaults(model: type[BaseModel]) -> dict[str, Origin]:
    specs = field_specs(model).items()
    own = dict.fromkeys(_restated(model), f"default of {model.__name__}")
    return {
        name: Origin(Kind.DEFAULT, own.get(name, "default"), spec.default)
        for name, spec in specs
        if not spec.required
    }


def resolve_values(
    model: type[BaseModel],
    values: Mapping[str, Any],
    *,
    place: str,
    texts: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Resolution:
    """Resolve `overrides`, then `values`, over the defaults alone: no environment and no disk is read.

    With `texts` a string among the values is typed by its field, as the text of a variable is.
    """
    layer, specs = _given(model, values, Kind.ARGUMENT, place), field_specs(model)
    for name, origin in layer.entries.items():
        if texts:
            layer.entries[name] = replace(origin, value=decode_texts(specs[name], origin.value))
    return _alone(model, _given(model, overrides or {}, Kind.OVERRIDE, "overrides"), layer)


def resolve_profile(model: type[BaseModel], name: str) -> Resolution:
    """Resolve one profile, as the files of this place define it, over the defaults alone."""
    reader = Reader(Request(model, profile=name))
    layer = _finished(profile_layer(reader), model)
    return _alone(model, replace(layer, findings=[*reader.findings, *layer.findings]))


def _alone(model: type[BaseModel], *layers: Layer) -> Resolution:
    chains: dict[str, list[Origin]] = {}
    for layer in layers:
        for name, origin in layer.entries.items():
            chains.setdefault(name, []).append(origin)
    origins = _with_defaults(model, chains)
    return Resolution(
        model,
        values={name: origins[name].value for name in chains},
        origins=origins,
        findings=tuple(finding for layer in layers for finding in layer.findings),
    )


def resolve_onto(settings: Resolved, overrides: Mapping[str, Any], *, place: str) -> Resolution:
    """Put `overrides` above everything that `settings` was resolved from."""
    layer = _given(cast(type[BaseModel], type(settings)), overrides, Kind.OVERRIDE, place)
    return _restack(settings, layer, lambda _: True)


_SAID = (Kind.ARGUMENT, Kind.OVERRIDE, Kind.FLAG, Kind.CONTEXT)


def resolve_recorded(settings: Resolved, values: Mapping[str, Any], *, place: str) -> Resolution:
    """Put `values` that are kept with a trained model, say, above all but what the call itself says."""
    layer = _given(cast(type[BaseModel], type(settings)), values, Kind.RECORDED, place)
    return _restack(settings, layer, lambda old: old is None or old.kind not in _SAID)


def resolve_under(settings: Resolved, defaults: Mapping[str, Any]) -> Resolution:
    """Put a workflow's factory `defaults` under everything that somebody set in `settings`."""
    layer = _factory(cast(type[BaseModel], type(settings)), defaults)
    return _restack(settings, layer, lambda old: old is None or old.kind is Kind.DEFAULT)


def _restack(settings: Resolved, layer: Layer, wins: Callable[[Origin | None], bool]) -> Resolution:
    model = cast(type[BaseModel], type(settings))
    origins, values = _as_given(settings, model)
    for name, new in layer.entries.items():
        old = origins.get(name)
        if wins(old):
            origins[name] = new.shadowing((old, *old.shadowed) if old else ())
            values[name] = origins[name].value
    findings = tuple(dict.fromkeys((*settings.notices, *layer.findings)))
    return Resolution(model, values=values, origins=origins, findings=findings)


def _as_given(settings: Resolved, model: type[BaseModel]) -> tuple[dict[str, Origin], dict[str, Any]]:
    """Return origins and values of settings as they were before validators, which run again on a copy.

    A default is no value: no validator has seen it.
    """
    origins, values = dict(settings.origins) or dict(_defaults(model)), dict[str, Any]()
    for name in field_specs(model):
        value, origin = vars(settings)[name], origins.get(name)
        if origin and origin.changed and _equal(value, origin.value):
            before = origin.given
            if before is None:
                del origins[name]
                continue
            origins[name], origin, value = before, before, before.value
        default = field_specs(model)[name].default
        if not (origin and origin.kind is Kind.DEFAULT and _equal(value, default)):
            values[name] = value
    return origins, values


def _equal(one: Any, other: Any) -> bool:
    try:
        return one is other or bool(one == other)
    except (TypeError, ValueError):
        return False


def values_given(
    model: type[BaseModel], values: Mapping[str, Any], origins: Mapping[str, Any]
) -> dict[str, Any]:
    """Return kept values as they were before validators changed them, so that these can run again.

    Args:
        origins: of each value, as `Origin.to_json` writes it.
    """
    given, specs = dict(values), field_specs(model)
    for name, value in values.items() if may_change(model) else ():
        origin = origins.get(name, {})
        if "given" in origin and HIDDEN not in str(origin["given"]):
            given[name] = origin["given"]
        elif origin.get("kind") == Kind.DEFAULT and name in specs and as_data(specs[name].default) == value:
            del given[name]
    return given


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
    except Exception as error:
        findings += [explain_failure(error, resolution)]
    findings += list(inactive_values(resolution))
    if findings:
        raise SettingsError.from_findings(list(dict.fromkeys(findings))) from None


@contextmanager
def overriding(model: type[BaseModel], overrides: Mapping[str, Any]) -> Iterator[None]:
    """Override settings of a class, and of those below it, for everything resolved inside the block.

    The block counts in this thread or task only.

    Raises:
        SettingsError: a name that is no field.
    """
    layer = _given(model, overrides, Kind.CONTEXT, "override_settings()")
    findings = [finding for finding in layer.findings if finding.level == "error"]
    if findings:
        raise SettingsError.from_findings(findings)
    token = _CONTEXT.set((*_CONTEXT.get(), (model, dict(overrides), caller())))
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
    at: tuple[str, int] | None = None,
    also: tuple[str, ...] = (),
) -> Layer:
    """Return the values that a call passed, or what is wrong with them; `at` is the call's file and line."""
    if at is None:
        at = caller() if place.endswith("()") or kind is Kind.OVERRIDE else ("", 0)
    layer, specs, where = Layer(), source_specs(model), f"{kind.value} of {place}"
    file, line = at[0] or None, at[1] or None
    where += f" ({file}:{line})" if file else ""
    if not isinstance(values, Mapping):
        what = f"settings must be a mapping of names to values, not {type(values).__name__}"
        layer.findings.append(Finding(what, where, "a mapping", "pass a dict", code="bad-value"))
        return layer
    unknown = [str(name) for name in values if name not in specs]
    for name, value in values.items():
        if name in specs:
            layer.entries[name] = Origin(kind, place, value, raw=format_value(value), file=file, line=line)
    for name in unknown[:MOST_UNKNOWN]:
        layer.findings.append(unknown_name(name, (*specs, *also), where=where, file=file, line=line))
    if len(unknown) > MOST_UNKNOWN:
        layer.findings.append(more_unknown_names(len(unknown) - MOST_UNKNOWN, where))
    return _finished(layer, model)


def _finished(layer: Layer, model: type[BaseModel]) -> Layer:
    """Return a layer under the names of the fields; texts of hidden ones cannot be read in it."""
    layer, specs = with_new_names(layer, model), field_specs(model)
    if any(spec.hidden for spec in specs.values()):
        layer.entries = {name: _hidden(specs[name], origin) for name, origin in layer.entries.items()}
        layer.inactive = [(name, _hidden(specs[name], origin)) for name, origin in layer.inactive]
    return layer


def _hidden(spec: FieldSpec, origin: Origin) -> Origin:
    if not spec.hidden:
        return origin
    shadowed = tuple(_hidden(spec, other) for other in origin.shadowed)
    value = converted(spec.model, spec.name, origin.value) if spec.secret else origin.value
    return replace(origin, value=value, raw=HIDDEN, shadowed=shadowed)


def _factory(model: type[BaseModel], defaults: Mapping[str, Any]) -> Layer:
    plain = {name: item.value if isinstance(item, Factory) else item for name, item in defaults.items()}
    layer = _given(model, plain, Kind.FACTORY, "factory")
    for name in _restated(model) & layer.entries.keys():
        del layer.entries[name]
    for name, item in defaults.items():
        if isinstance(item, Factory) and name in layer.entries:
            layer.entries[name] = replace(layer.entries[name], reason=item.reason)
    return layer


@cache
def _restated(model: type[BaseModel]) -> frozenset[str]:
    """Return the fields whose inherited default a class has replaced; a workflow's default does not."""
    return frozenset(
        name
        for name, info in model.model_fields.items()
        if any(
            name in base.model_fields and base.model_fields[name].default != info.default
            for base in model.__mro__[1:]
            if issubclass(base, BaseModel) and base is not BaseModel
        )
    )
