"""What one resolution may read, and where it finds it: `.env`, the settings files, the profile's name.

Nothing here decides a precedence: the settings class does. Every file is read once, when first asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ptycho_exec.errors import Finding, redact
from ptycho_exec.fields.spec import FieldSpec, source_specs
from ptycho_exec.sources.classes import owner_of
from ptycho_exec.sources.origins import Kind, Origin, SearchedFile
from ptycho_exec.sources.settings_files import (
    Assigned,
    Document,
    find_upward,
    has_table,
    is_file,
    mentions,
    read_document,
    read_dotenv,
)

if TYPE_CHECKING:
    from pydantic_settings import PydanticBaseSettingsSource


@dataclass(frozen=True)
class Places:
    """Where a settings class looks: all names follow from its `env_prefix`, `env_file` and `program`."""

    prefix: str
    program: str
    dotenv: tuple[str, ...] = (".env",)
    secrets: tuple[str, ...] = ()
    shipped_profiles: Path | None = None

    @property
    def settings_file_variable(self) -> str:
        return f"{self.prefix}SETTINGS_FILE"

    @property
    def profile_variable(self) -> str:
        return f"{self.prefix}PROFILE"

    @property
    def project_file(self) -> str:
        return f"{self.program}.toml"

    @property
    def table(self) -> tuple[str, str]:
        return ("tool", self.program)


FILE_KEYS = ("profile", "profiles", "$schema", "extends", "description")
"""Keys of a settings file that are no settings."""


@cache
def places_of(model: type[BaseModel]) -> Places:
    """Return where a settings class looks for its values."""
    config = model.model_config
    return Places(
        prefix=str(config.get("env_prefix", "")).upper(),
        program=getattr(model, "program", ""),
        dotenv=paths_of(config.get("env_file")),
        secrets=paths_of(config.get("secrets_dir")),
        shipped_profiles=getattr(model, "shipped_profiles", None),
    )


def paths_of(given: Any) -> tuple[str, ...]:
    """Return what pydantic-settings takes for `env_file` and `secrets_dir` (none, one, several) as paths."""
    if given is None:
        return ()
    return tuple(map(os.fspath, given)) if isinstance(given, (list, tuple)) else (os.fspath(given),)


@dataclass(frozen=True)
class Request:
    """What one resolution of a settings class may read. `environ` and `cwd` default to the process's own.

    A flag that was given several times has all its texts, of which the last one counts.

    Attributes:
        dotenv, secrets: paths that take the place of the class's own.
        extra_sources: sources of pydantic-settings that win over all others.
    """

    model: type[BaseModel]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    profile: str | Sequence[str] | None = None
    settings_file: str | Path | None = None
    factory_defaults: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] | None = field(default=None, repr=False)
    cwd: Path | None = None
    place: str = ""
    dotenv: tuple[str, ...] | None = None
    secrets: tuple[str, ...] | None = None
    extra_sources: tuple[PydanticBaseSettingsSource, ...] = ()

    def __repr__(self) -> str:
        """Name what was asked for; values stay out, for they may hold credentials."""
        names = sorted({*self.arguments, *self.overrides, *self.flags})
        return f"Request({', '.join(names)}, profile={self.profile!r}, settings_file={self.settings_file!r})"


class Reader:
    """What one resolution reads, each once; the environment is as it was at its beginning."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.beside: tuple[Reader, ...] = ()
        """The readers of other classes in the same run; see `resolve_together`."""
        self.environ = dict(os.environ if request.environ is None else request.environ)
        self.searched: list[SearchedFile] = []
        self.findings: list[Finding] = []

    @property
    def specs(self) -> Mapping[str, FieldSpec]:
        """The names of the class that is resolved, with those that fields had before."""
        return source_specs(self.request.model)

    @property
    def places(self) -> Places:
        """Where that class looks."""
        return places_of(self.request.model)

    def note(self, what: str) -> None:
        self.findings.append(Finding(what, level="note", code="not-read"))

    @cached_property
    def cwd(self) -> Path:
        if self.request.cwd is not None:
            return self.request.cwd
        try:
            return Path.cwd()
        except OSError:
            self.note("the working directory no longer exists, so no file in it was read")
            return Path(os.sep, "working-directory-is-gone")

    @cached_property
    def dotenv(self) -> list[tuple[str, list[Assigned]]]:
        """The assignments of each `.env` file, the ones that win first."""
        files = self.places.dotenv if self.request.dotenv is None else self.request.dotenv
        paths = (self.cwd / os.path.expanduser(name) for name in reversed(files))
        return [(str(path), self._dotenv(path)) for path in paths]

    def _dotenv(self, path: Path) -> list[Assigned]:
        found = is_file(path)
        self._note_odd(path)
        self.searched.append(SearchedFile(Kind.DOTENV, str(path), found))
        if not found and self.request.dotenv is not None:
            what, fix = f"{path.name} is not there", "correct the path, or do not name it"
            expected, where = "a file of variables", f"{path}, named in the call"
            self.findings.append(Finding(what, where, expected, fix, code="unreadable-file"))
        elif not found and path != self.cwd / ".env":
            self.note(f"{path} is not there: env_file of {self.request.model.__name__} names it")
        for other in (folder / ".env" for folder in self.cwd.parents):
            if path.name == ".env" and is_file(other) and mentions(other, self.places.prefix):
                self.note(f"{other} is not read: only the .env of the working directory is")
        return read_dotenv(path, self.findings, self.environ, self.places.prefix) if found else []

    def control(self, given: str | Path | None, variable: str, flag: str) -> Origin | None:
        """Return what was asked for a control such as the profile: argument, then variable, then `.env`."""
        if given is not None:
            return Origin(Kind.ARGUMENT, flag, str(given))
        if self.environ.get(variable, "").strip():
            return Origin(Kind.ENVIRONMENT, variable, self.environ[variable].strip())
        for file, rows in self.dotenv:
            hits = [row for row in rows if row.name == variable and row.text.strip()]
            if hits:
                return Origin(Kind.DOTENV, variable, hits[-1].text.strip(), file=file, line=hits[-1].line)
        return None

    @cached_property
    def documents(self) -> dict[Kind, Document]:
        """The settings files that exist, by kind, in the order of precedence."""
        candidates = (self._named_file, self._project_file, self._pyproject, self._user_file)
        found = [document for document in (read() for read in candidates) if document is not None]
        return {document.kind: document for document in found}

    @cached_property
    def settings_file(self) -> Origin | None:
        """The file that was named, and by whom."""
        others = (reader._own_settings_file for reader in self.beside)
        return self._own_settings_file or next(filter(None, others), None)

    @cached_property
    def _own_settings_file(self) -> Origin | None:
        variable = self.places.settings_file_variable
        return self.control(self.request.settings_file, variable, "settings_file (--settings)")

    def _named_file(self) -> Document | None:
        asked = self.settings_file
        if asked is None:
            named = f"none was named (--settings, {self.places.settings_file_variable})"
            self.searched.append(SearchedFile(Kind.SETTINGS_FILE, named, False))
            return None
        path = self.cwd / os.path.expanduser(asked.value)
        found = is_file(path)
        self.searched.append(SearchedFile(Kind.SETTINGS_FILE, str(path), found))
        if not found:
            self.findings.append(_not_there(path, asked))
            return None
        document = read_document(path, Kind.SETTINGS_FILE, self.findings)
        return document and self._without_others(document)

    def _without_others(self, document: Document) -> Document:
        """Leave out what a named file holds for other settings classes: one file can hold a whole run."""
        tables = [document.data, *document.table_at(("profiles",)).values()]
        names = {name for table in tables if isinstance(table, Mapping) for name in table}
        owners = {name: owner_of(name, self.request.model) for name in names - {*self.specs, *FILE_KEYS}}
        others = {name: owner for name, owner in owners.items() if owner is not None}
        for name, owner in sorted(others.items()):
            if not any(issubclass(reader.request.model, owner) for reader in self.beside):
                program = places_of(owner).program
                self.note(f"{name} in {document.path} is a setting of {program} and has no effect here")
        return document.without(others) if others else document

    def _project_file(self) -> Document | None:
        name = self.places.project_file
        path = find_upward(self.cwd, name)
        self._note_odd(self.cwd / name)
        self._note_misnamed(self.cwd, name)
        self._searched_upward(Kind.PROJECT_FILE, path, name)
        return read_document(path, Kind.PROJECT_FILE, self.findings) if path else None

    def _pyproject(self) -> Document | None:
        table = self.places.table
        path = find_upward(self.cwd, "pyproject.toml", has_table(table))
        self._searched_upward(Kind.PYPROJECT, path, "pyproject.toml")
        return read_document(path, Kind.PYPROJECT, self.findings, table) if path else None

    def _note_odd(self, path: Path) -> None:
        """Note what has the name of a settings file and is none: a folder, a pipe, a link to nothing."""
        environment = path.name == ".env" and path.is_dir()  # a usual name of virtual environments
        if os.path.lexists(path) and not is_file(path) and not environment:
            self.note(f"{path} is not read: it is no file, or a link to none")

    def _note_misnamed(self, folder: Path, name: str) -> None:
        """Note files that look like a settings file but have another name, except one that was named."""
        stem = name.removesuffix(".toml")
        words = dict.fromkeys((stem, stem.replace("_", "-"), stem.replace("_", ""), f".{stem}"))
        names = [f"{word}.{ending}" for word in words for ending in ("toml", "yaml", "yml", "json")]
        named = self.cwd / os.path.expanduser(self.settings_file.value) if self.settings_file else None
        for path in (folder / other for other in names if other != name):
            if is_file(path) and path != named:
                self.note(f"{path} is not read: the settings file here is {name}; --settings names another")

    def _searched_upward(self, kind: Kind, path: Path | None, name: str) -> None:
        place = str(path) if path else f"{self.cwd / name}, and in every folder above"
        self.searched.append(SearchedFile(kind, place, path is not None))

    def _user_file(self) -> Document | None:
        own = os.path.expanduser("~") if self.request.environ is None else ""
        home = self.environ.get("HOME") or own
        xdg = self.environ.get("XDG_CONFIG_HOME", "")
        if not os.path.isabs(xdg):  # the XDG rule: a relative one is ignored
            if not os.path.isabs(home):
                self.searched.append(SearchedFile(Kind.USER_FILE, "this user has no home directory", False))
                return None
            xdg = os.path.join(home, ".config")
        path = Path(xdg, self.places.program, "settings.toml")
        self._note_misnamed(path.parent, path.name)
        self._note_odd(path)
        self.searched.append(SearchedFile(Kind.USER_FILE, str(path), is_file(path)))
        return read_document(path, Kind.USER_FILE, self.findings) if is_file(path) else None

    @cached_property
    def profile(self) -> Origin | None:
        """The profiles that were asked for, as `ci,repro`: by argument, variable, `.env`, or a file's key."""
        others = (reader._own_profile for reader in self.beside)
        return self._own_profile or next(filter(None, others), None)

    @cached_property
    def _own_profile(self) -> Origin | None:
        given = self.request.profile
        given = given if given is None or isinstance(given, str) else ",".join(given)
        asked = self.control(given, self.places.profile_variable, "profile (--profile)")
        if asked is not None:
            return asked
        for document in self.documents.values():
            if names := profile_names_in(document.data.get("profile")):
                return replace(document.origin(("profile",)), value=",".join(names))
        return None

    @property
    def profiles(self) -> tuple[Origin, ...]:
        """Each profile that was asked for, the one that wins first: it was named last."""
        asked = self.profile
        if asked is None:
            return ()
        names = (name.strip() for name in reversed(asked.value.split(",")))
        return tuple(replace(asked, value=name) for name in dict.fromkeys(names))


def profile_names_in(value: Any) -> list[str]:
    """Return the names in the `profile` key of a file: a text or a list of texts; [] where it is neither."""
    names = [value] if isinstance(value, str) else value
    right = isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names)
    return list(names) if right else []


def _not_there(path: Path, asked: Origin) -> Finding:
    try:
        path.stat()
        problem = "is a directory" if path.is_dir() else "is not a regular file"
    except FileNotFoundError:
        problem = "not found"
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return Finding(
        f"settings file {problem}: {redact(str(path))}",
        where=asked.describe(),
        expected="an existing TOML, YAML or JSON file",
        fix="correct the path, or do not name a file; `ptycho-exec init` writes a starter file",
        file=asked.file or "",
        line=asked.line or 0,
        code="unreadable-file",
    )
