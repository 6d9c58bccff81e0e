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
shadowed. pydantic-settings is handed the merged result, because its own merge keeps no provenance.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from ptycho_exec.documents import Document, find_upward, read_document, read_dotenv
from ptycho_exec.errors import Finding, SettingsError
from ptycho_exec.fields import FieldSpec, decode_text, field_specs, text_of
from ptycho_exec.names import unknown_name
from ptycho_exec.origins import Kind, Looked, Origin, Resolution, redact
from ptycho_exec.settings import ENV_PREFIX, Conflict

if TYPE_CHECKING:
    from ptycho_exec.settings import ExecutionSettings

SETTINGS_FILE_VARIABLE = ENV_PREFIX + "SETTINGS_FILE"
PROFILE_VARIABLE = ENV_PREFIX + "PROFILE"
PROJECT_FILE = "ptycho_exec.toml"
SHIPPED_PROFILES = Path(__file__).parent / "profiles"

_CONTEXT: ContextVar[tuple[Mapping[str, Any], ...]] = ContextVar("ptycho_exec_overrides", default=())


class Factory(NamedTuple):
    """A default that a workflow derives, with its reason."""

    value: Any
    reason: str = ""


@dataclass(frozen=True)
class Request:
    """What one resolution may read. `environ` and `cwd` default to the process's own."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    profile: str | None = None
    settings_file: str | Path | None = None
    factory_defaults: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] | None = None
    cwd: Path | None = None
    place: str = "ExecutionSettings()"


@dataclass
class Layer:
    """What one source supplied: an origin (with its value) for each field, and what was wrong in it."""

    entries: dict[str, Origin] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


class Reader:
    """One resolution's view of the world. Every file and variable is read once, when first asked for."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.environ: Mapping[str, str] = os.environ if request.environ is None else request.environ
        self.looked: list[Looked] = []
        self.findings: list[Finding] = []

    @cached_property
    def cwd(self) -> Path:
        return self.request.cwd or Path.cwd()

    @cached_property
    def dotenv(self) -> list[tuple[str, str, int]]:
        """The assignments of `.env` in the working directory: (name, text, line)."""
        path = self.cwd / ".env"
        found = path.is_file()
        self.looked.append(Looked(Kind.DOTENV, str(path), found))
        return read_dotenv(path, self.findings) if found else []

    def _dotenv_control(self, name: str) -> tuple[str, str] | None:
        hits = [
            (text, f"{self.cwd / '.env'}:{line}") for key, text, line in self.dotenv if key == name and text
        ]
        return hits[-1] if hits else None

    def control(self, given: str | Path | None, variable: str, asked: str) -> tuple[str, str] | None:
        """Return (text, place) of a control such as the profile: argument, then variable, then `.env`."""
        if given is not None:
            return str(given), asked
        if self.environ.get(variable):
            return self.environ[variable], f"environment {variable}"
        return self._dotenv_control(variable)

    @cached_property
    def documents(self) -> dict[Kind, Document]:
        """The settings files that exist, by kind, in the order of precedence."""
        candidates = (self._named_file, self._project_file, self._pyproject, self._user_file)
        found = [document for document in (read() for read in candidates) if document is not None]
        return {document.kind: document for document in found}

    def _named_file(self) -> Document | None:
        asked = self.control(self.request.settings_file, SETTINGS_FILE_VARIABLE, "settings_file argument")
        if asked is None:
            return None
        path = self.cwd / Path(asked[0]).expanduser()
        self.looked.append(Looked(Kind.SETTINGS_FILE, str(path), path.is_file()))
        if not path.is_file():
            self.findings.append(
                Finding(
                    f"settings file not found: {path}",
                    where=asked[1],
                    expected="an existing TOML, YAML or JSON file",
                    fix="correct the path, or do not name a file; `ptycho-exec init` writes a starter file",
                )
            )
            return None
        return read_document(path, Kind.SETTINGS_FILE, self.findings)

    def _project_file(self) -> Document | None:
        path = find_upward(self.cwd, PROJECT_FILE)
        self.looked.append(Looked(Kind.PROJECT_FILE, str(path or self.cwd / PROJECT_FILE), path is not None))
        return read_document(path, Kind.PROJECT_FILE, self.findings) if path else None

    def _pyproject(self) -> Document | None:
        path = find_upward(self.cwd, "pyproject.toml", containing=r"^\s*\[.*ptycho|ptycho_exec")
        self.looked.append(Looked(Kind.PYPROJECT, str(path or self.cwd / "pyproject.toml"), path is not None))
        if path is None:
            return None
        return read_document(path, Kind.PYPROJECT, self.findings, table=("tool", "ptycho_exec"))

    def _user_file(self) -> Document | None:
        home = self.environ.get("XDG_CONFIG_HOME") or str(
            Path(self.environ.get("HOME", "~")).expanduser() / ".config"
        )
        path = Path(home) / "ptycho_exec" / "settings.toml"
        self.looked.append(Looked(Kind.USER_FILE, str(path), path.is_file()))
        return read_document(path, Kind.USER_FILE, self.findings) if path.is_file() else None

    @cached_property
    def profile(self) -> tuple[str, str] | None:
        """Name of the asked profile and who asked: argument, variable, `.env`, or a file's `profile` key."""
        asked = self.control(self.request.profile, PROFILE_VARIABLE, "profile argument")
        if asked is not None:
            return asked
        for document in self.documents.values():
            if isinstance(document.data.get("profile"), str):
                return document.data["profile"], document.place(("profile",))
        return None


# --- the sources, each a function from the reader to a layer --------------------------------------------


def from_arguments(reader: Reader) -> Layer:
    return _given(reader.request.arguments, Kind.ARGUMENT, reader.request.place)


def from_overrides(reader: Reader) -> Layer:
    return _given(reader.request.overrides, Kind.OVERRIDE, "overrides")


def from_flags(reader: Reader) -> Layer:
    layer = Layer()
    for name, text in reader.request.flags.items():
        spec = field_specs()[name]
        layer.entries[name] = Origin(Kind.FLAG, spec.flag, decode_text(spec, text), raw=text)
    return layer


def from_context(reader: Reader) -> Layer:
    del reader  # the blocks in force belong to the calling context, not to the request
    layer = Layer()
    for overrides in _CONTEXT.get():
        layer.entries |= _given(overrides, Kind.CONTEXT, "override_settings()").entries
    return layer


def from_environment(reader: Reader) -> Layer:
    layer = Layer()
    for name, text in reader.environ.items():
        if name.startswith(("PL_TRAINER_", "PL_GLOBAL_SEED", "LT_")):
            layer.notices.append(f"{name} has no effect here: the Trainer is built from these settings alone")
        _take_variable(layer, Kind.ENVIRONMENT, name, text, place=name)
    return layer


def from_dotenv(reader: Reader) -> Layer:
    layer = Layer()
    file = str(reader.cwd / ".env")
    for name, text, line in reader.dotenv:
        if name.lower() in field_specs():
            where = f"{file}:{line}"
            layer.findings.append(
                Finding(
                    f"{name} in .env sets nothing: it lacks the prefix",
                    where=where,
                    expected=field_specs()[name.lower()].variable,
                    fix=f"write {field_specs()[name.lower()].variable}={redact(text)}",
                    file=file,
                    line=line,
                )
            )
        _take_variable(layer, Kind.DOTENV, name, text, place=name, file=file, line=line)
    return layer


def _from_document(kind: Kind) -> Callable[[Reader], Layer]:
    def read(reader: Reader) -> Layer:
        document = reader.documents.get(kind)
        return document_layer(document) if document else Layer()

    return read


def from_profile(reader: Reader) -> Layer:
    layer = Layer()
    if reader.profile is None:
        return layer
    name, asked = reader.profile
    seen: list[tuple[str, str]] = []
    while name:
        found = find_profile(name, reader, skip={key for key in seen if key[0] == name})
        if found is None:
            layer.findings.append(_no_such_profile(name, asked, reader))
            break
        key, document, prefix = found
        seen.append(key)
        table = document.table_at(prefix)
        for spec_name in table:
            if spec_name in field_specs():
                layer.entries.setdefault(
                    spec_name,
                    document.origin((*prefix, spec_name), kind=Kind.PROFILE, place=f"profile:{name}"),
                )
        if document.shipped:
            layer.findings += document_layer(document).findings
        name, asked = str(table.get("extends", "")), document.place((*prefix, "extends"))
    return layer


def from_factory(reader: Reader) -> Layer:
    return _factory(reader.request.factory_defaults)


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
    (Kind.PROFILE, from_profile),
    (Kind.FACTORY, from_factory),
)


# --- the engine -----------------------------------------------------------------------------------------


def resolve(request: Request) -> Resolution:
    """Read every source once and merge, highest first. Findings are kept; `fill` raises them together."""
    reader = Reader(request)
    layers = [read(reader) for _, read in SOURCES]
    chains: dict[str, list[Origin]] = {}
    for layer in layers:
        for name, origin in layer.entries.items():
            chains.setdefault(name, []).append(origin)
    return Resolution(
        values={name: chain[0].value for name, chain in chains.items()},
        origins=_with_defaults(chains),
        looked=tuple(reader.looked),
        notices=tuple(notice for layer in layers for notice in layer.notices),
        findings=(*reader.findings, *(finding for layer in layers for finding in layer.findings)),
        profile=reader.profile[0] if reader.profile else None,
    )


def _with_defaults(chains: Mapping[str, list[Origin]]) -> dict[str, Origin]:
    origins = {}
    for name, spec in field_specs().items():
        default = Origin(Kind.DEFAULT, "default", spec.default)
        chain = [*chains.get(name, []), default]
        origins[name] = chain[0].shadowing(chain[1:])
    return origins


def resolve_values(
    values: Mapping[str, Any], *, place: str, kind: Kind = Kind.ARGUMENT, file: str | None = None
) -> Resolution:
    """Resolve `values` over the defaults alone: nothing of the environment or the disk is read."""
    layer = _given(values, kind, place, file=file)
    chains = {name: [origin] for name, origin in layer.entries.items()}
    return Resolution(
        values={name: origin.value for name, origin in layer.entries.items()},
        origins=_with_defaults(chains),
        findings=tuple(layer.findings),
    )


def resolve_onto(settings: ExecutionSettings, overrides: Mapping[str, Any], *, place: str) -> Resolution:
    """Put `overrides` above everything that `settings` was resolved from."""
    return _restack(settings, _given(overrides, Kind.OVERRIDE, place), lambda _: True)


def resolve_under(settings: ExecutionSettings, defaults: Mapping[str, Any]) -> Resolution:
    """Put a workflow's factory `defaults` under everything that somebody set in `settings`."""
    return _restack(settings, _factory(defaults), lambda old: old.kind is Kind.DEFAULT)


def _restack(settings: ExecutionSettings, layer: Layer, wins: Callable[[Origin], bool]) -> Resolution:
    origins = dict(settings.origins) or _with_defaults({})
    values = {name: getattr(settings, name) for name in field_specs()}
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
    findings = list(resolution.findings)
    try:
        validate(resolution.values)
    except ValidationError as error:
        findings += list(_explain(error, resolution))
    if findings:
        raise SettingsError.from_findings(findings) from None


@contextmanager
def override_settings(**overrides: Any) -> Iterator[None]:
    """Override settings for everything resolved inside the block, in this thread or task only.

    Raises:
        SettingsError: a name that is no field.
    """
    findings = _given(overrides, Kind.CONTEXT, "override_settings()").findings
    if findings:
        raise SettingsError.from_findings(findings)
    token = _CONTEXT.set((*_CONTEXT.get(), dict(overrides)))
    try:
        yield
    finally:
        _CONTEXT.reset(token)


# --- helpers of the sources -----------------------------------------------------------------------------


def _given(values: Mapping[str, Any], kind: Kind, place: str, *, file: str | None = None) -> Layer:
    layer = Layer()
    for name, value in values.items():
        if name in field_specs():
            layer.entries[name] = Origin(kind, place, value, raw=text_of(value), file=file)
        else:
            layer.findings.append(unknown_name(name, tuple(field_specs()), where=f"{kind.value} of {place}"))
    return layer


def _factory(defaults: Mapping[str, Any]) -> Layer:
    plain = {name: item.value if isinstance(item, Factory) else item for name, item in defaults.items()}
    layer = _given(plain, Kind.FACTORY, "factory")
    for name, item in defaults.items():
        if isinstance(item, Factory) and name in layer.entries:
            layer.entries[name] = replace(layer.entries[name], reason=item.reason)
    return layer


# Kubernetes and old Docker inject these for a service whose name starts like our prefix.
_SERVICE_LINK = re.compile(
    r"(?:^|_)(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)$"
)


def _take_variable(
    layer: Layer,
    kind: Kind,
    name: str,
    text: str,
    *,
    place: str,
    file: str | None = None,
    line: int | None = None,
) -> None:
    folded = name.upper().replace("-", "_")
    if not folded.startswith(ENV_PREFIX):
        if folded.startswith("PTYCH") or folded.endswith(_exec_suffixes()):
            _near_miss(layer, name, folded, kind, file, line)
        return
    if name in (SETTINGS_FILE_VARIABLE, PROFILE_VARIABLE):
        return
    spec = _by_variable().get(name)
    where = f"{file}:{line}" if file else f"{kind.value} variable"
    if spec is None:
        if not _SERVICE_LINK.search(name.removeprefix(ENV_PREFIX)):
            variables = [
                *(s.variable for s in field_specs().values()),
                SETTINGS_FILE_VARIABLE,
                PROFILE_VARIABLE,
            ]
            layer.findings.append(unknown_name(name, variables, where=where, file=file, line=line))
    elif not text.strip():
        layer.notices.append(f"{name} is empty{f' ({where})' if file else ''} and counts as unset")
    else:
        layer.entries[spec.name] = Origin(
            kind, place, decode_text(spec, text), raw=text, file=file, line=line
        )


@cache
def _by_variable() -> dict[str, FieldSpec]:
    return {spec.variable: spec for spec in field_specs().values()}


@cache
def _exec_suffixes() -> tuple[str, ...]:
    return tuple(f"_EXEC_{name.upper()}" for name in field_specs())


def _near_miss(layer: Layer, name: str, folded: str, kind: Kind, file: str | None, line: int | None) -> None:
    """Report a variable whose prefix, not its field, is misspelt: `PTYCH_EXEC_BATCH_SIZE`."""
    spec = next((s for s in field_specs().values() if folded.endswith("_" + s.name.upper())), None)
    prefix = folded.removesuffix(spec.name.upper()) if spec else ""
    if spec is not None and _looks_like_prefix(prefix):
        layer.findings.append(
            Finding(
                f"{name} sets nothing: its prefix is misspelt",
                where=f"{file}:{line}" if file else f"{kind.value} variable",
                expected=spec.variable,
                fix=f"rename it to {spec.variable}",
                file=file or "",
                line=line or 0,
            )
        )


def _looks_like_prefix(prefix: str) -> bool:
    from ptycho_exec.names import distance

    return distance(prefix, ENV_PREFIX) <= 3


def document_layer(document: Document) -> Layer:
    """Return the settings of one file, with a finding for every key that is none, in any of its tables."""
    layer = Layer(findings=list(document.findings))
    for name in document.data:
        if name in field_specs():
            layer.entries[name] = document.origin((name,))
        elif name == "profiles":
            for profile, table in document.table_at(("profiles",)).items():
                layer.findings += _check_profile(document, profile, table)
        elif name == "profile":
            if not isinstance(document.data["profile"], str):
                layer.findings.append(
                    document.finding(
                        ("profile",), "profile must be the name of one profile", "a text", 'profile = "ci"'
                    )
                )
        elif not (document.shipped and name in ("extends", "description")) and name != "$schema":
            layer.findings += _misplaced(document, (name,), allowed=("profile", "profiles"))
    return layer


def _check_profile(document: Document, profile: str, table: object) -> Iterator[Finding]:
    if not isinstance(table, Mapping):
        yield document.finding(
            ("profiles", profile), f"profile {profile} is not a table", "a table of settings", ""
        )
        return
    for name in table:
        if name not in field_specs() and name not in ("extends", "description"):
            yield from _misplaced(document, ("profiles", profile, name), allowed=("extends", "description"))


def _misplaced(document: Document, path: tuple[str, ...], allowed: tuple[str, ...]) -> Iterator[Finding]:
    """Report an unknown key; a table with settings in it is told where settings stand instead."""
    node = document.table_at(path)
    if not set(node) & set(field_specs()):
        yield _unknown_key(document, path, allowed)
        return
    for key in node:
        if key in field_specs():
            yield document.finding(
                (*path, key),
                f"{key} stands in table [{'.'.join((*document.table, *path))}], where it sets nothing",
                f"{key} {document.home()}",
                "move the line there",
            )
        else:
            yield _unknown_key(document, (*path, key), ())


def _unknown_key(document: Document, path: tuple[str, ...], allowed: tuple[str, ...]) -> Finding:
    candidates = (*field_specs(), *allowed)
    return unknown_name(
        path[-1], candidates, where=document.place(path), file=document.path, line=document.line(path)
    )


def find_profile(
    name: str, reader: Reader, skip: set[tuple[str, str]]
) -> tuple[tuple[str, str], Document, tuple[str, ...]] | None:
    """Return where a profile is defined: `[profiles.NAME]` of the highest file, then the shipped ones."""
    for document in reader.documents.values():
        key = (name, document.path)
        if key not in skip and isinstance(document.table_at(("profiles",)).get(name), Mapping):
            return key, document, ("profiles", name)
    path = SHIPPED_PROFILES / f"{name}.toml"
    key = (name, str(path))
    if key in skip or name not in shipped_profiles():
        return None
    shipped = read_document(path, Kind.PROFILE, reader.findings)
    return (key, replace(shipped, shipped=True), ()) if shipped else None


def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with the package."""
    return tuple(sorted(path.stem for path in SHIPPED_PROFILES.glob("*.toml")))


def profile_names(reader: Reader) -> tuple[str, ...]:
    """Names of all profiles that can be asked for here."""
    own = {name for document in reader.documents.values() for name in document.table_at(("profiles",))}
    return tuple(sorted(own | set(shipped_profiles())))


def _no_such_profile(name: str, asked: str, reader: Reader) -> Finding:
    finding = unknown_name(name, profile_names(reader), where=asked, noun="profile")
    if name in profile_names(reader):
        return replace(
            finding, what=f"profile {name} extends itself", fix="remove `extends`, or extend another one"
        )
    return finding


# --- validation errors in words -------------------------------------------------------------------------


def _explain(error: ValidationError, resolution: Resolution) -> Iterator[Finding]:
    told: set[str] = set()
    for item in error.errors(include_url=False, include_input=False):
        if item["type"] == "conflict":
            for rule in item["ctx"]["conflicts"]:
                yield _conflict(rule, resolution)
        elif (name := str(item["loc"][0])) not in told:
            told.add(name)
            yield _bad_value(name, resolution.origins[name])


def _bad_value(name: str, origin: Origin) -> Finding:
    from ptycho_exec.names import nearest

    spec = field_specs()[name]
    shown = redact(origin.raw if origin.raw is not None else text_of(origin.value))
    choices = [text_of(choice) for choice in spec.choices]
    close = nearest(shown.lower(), choices) if choices else []
    quoted = isinstance(origin.value, str) and origin.raw is None
    meant = decode_text(spec, origin.value) if quoted else origin.value
    fix = f"did you mean {close[0]}?" if close else f"see `ptycho-exec explain {name}`"
    if meant != origin.value:
        fix = f"write {name} = {text_of(meant)}, without quotes"
    return Finding(
        f"{name} = {shown!r} is not allowed"
        if isinstance(origin.value, str)
        else f"{name} = {shown} is not allowed",
        where=origin.describe(),
        expected=spec.expected(),
        fix=fix,
        file=origin.file or "",
        line=origin.line or 0,
    )


def _conflict(rule: Conflict, resolution: Resolution) -> Finding:
    sides = [
        f"{name} = {redact(text_of(resolution.origins[name].value))} ({resolution.origins[name].describe()})"
        for name in rule.fields
    ]
    first = next((o for o in (resolution.origins[name] for name in rule.fields) if o.file), None)
    return Finding(
        f"{' and '.join(rule.fields)} contradict each other: {rule.why}"
        if len(sides) > 1
        else f"{sides[0]}: {rule.why}",
        where="; ".join(sides),
        expected=rule.why if len(sides) == 1 else "values that can be meant together",
        fix=rule.fix,
        file=first.file or "" if first else "",
        line=first.line or 0 if first else 0,
    )
