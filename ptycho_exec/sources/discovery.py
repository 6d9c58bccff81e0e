"""What one resolution may read, and where it finds it: `.env`, the settings files, the profile's name.

Nothing here decides a precedence: `ptycho_exec.sources.resolve` does. Every file is read once, when first
asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ptycho_exec.errors import Finding, redact
from ptycho_exec.fields.model import ENV_PREFIX, ExecutionFields
from ptycho_exec.fields.spec import FieldSpec, field_specs
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

SETTINGS_FILE_VARIABLE = ENV_PREFIX + "SETTINGS_FILE"
PROFILE_VARIABLE = ENV_PREFIX + "PROFILE"
PROJECT_FILE = "ptycho_exec.toml"
PYPROJECT_TABLE = ("tool", "ptycho_exec")


@dataclass(frozen=True)
class Request:
    """What one resolution may read. `environ` and `cwd` default to the process's own.

    A flag that was given several times has all its texts, of which the last one counts.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    profile: str | Sequence[str] | None = None
    settings_file: str | Path | None = None
    factory_defaults: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] | None = field(default=None, repr=False)
    cwd: Path | None = None
    place: str = "ExecutionSettings()"
    model: type[BaseModel] = ExecutionFields

    def __repr__(self) -> str:
        """Name what was asked for; values stay out, for they may hold credentials."""
        names = sorted({*self.arguments, *self.overrides, *self.flags})
        return f"Request({', '.join(names)}, profile={self.profile!r}, settings_file={self.settings_file!r})"


class Reader:
    """What one resolution reads, each once; the environment is as it was at its beginning."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.environ = dict(os.environ if request.environ is None else request.environ)
        self.searched: list[SearchedFile] = []
        self.findings: list[Finding] = []

    @property
    def specs(self) -> Mapping[str, FieldSpec]:
        """The fields of the model that is resolved."""
        return field_specs(self.request.model)

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
    def dotenv(self) -> list[Assigned]:
        """The assignments of `.env` in the working directory."""
        path = self.cwd / ".env"
        found = is_file(path)
        self._note_odd(path)
        self.searched.append(SearchedFile(Kind.DOTENV, str(path), found))
        for other in (folder / ".env" for folder in self.cwd.parents):
            if is_file(other) and mentions(other, ENV_PREFIX):
                self.note(f"{other} is not read: only the .env of the working directory is")
        return read_dotenv(path, self.findings, self.environ) if found else []

    def control(self, given: str | Path | None, variable: str, flag: str) -> Origin | None:
        """Return what was asked for a control such as the profile: argument, then variable, then `.env`."""
        if given is not None:
            return Origin(Kind.ARGUMENT, flag, str(given))
        if self.environ.get(variable, "").strip():
            return Origin(Kind.ENVIRONMENT, variable, self.environ[variable].strip())
        file = str(self.cwd / ".env")
        hits = [row for row in self.dotenv if row.name == variable and row.text.strip()]
        last = hits[-1] if hits else None
        return Origin(Kind.DOTENV, variable, last.text.strip(), file=file, line=last.line) if last else None

    @cached_property
    def documents(self) -> dict[Kind, Document]:
        """The settings files that exist, by kind, in the order of precedence."""
        candidates = (self._named_file, self._project_file, self._pyproject, self._user_file)
        found = [document for document in (read() for read in candidates) if document is not None]
        return {document.kind: document for document in found}

    @cached_property
    def settings_file(self) -> Origin | None:
        """The file that was named, and by whom."""
        return self.control(self.request.settings_file, SETTINGS_FILE_VARIABLE, "settings_file (--settings)")

    def _named_file(self) -> Document | None:
        asked = self.settings_file
        if asked is None:
            named = f"none was named (--settings, {SETTINGS_FILE_VARIABLE})"
            self.searched.append(SearchedFile(Kind.SETTINGS_FILE, named, False))
            return None
        path = self.cwd / os.path.expanduser(asked.value)
        found = is_file(path)
        self.searched.append(SearchedFile(Kind.SETTINGS_FILE, str(path), found))
        if not found:
            self.findings.append(_not_there(path, asked))
            return None
        return read_document(path, Kind.SETTINGS_FILE, self.findings)

    def _project_file(self) -> Document | None:
        path = find_upward(self.cwd, PROJECT_FILE)
        self._note_odd(self.cwd / PROJECT_FILE)
        self._note_misnamed(self.cwd, PROJECT_FILE)
        self._searched_upward(Kind.PROJECT_FILE, path, PROJECT_FILE)
        return read_document(path, Kind.PROJECT_FILE, self.findings) if path else None

    def _pyproject(self) -> Document | None:
        path = find_upward(self.cwd, "pyproject.toml", has_table(PYPROJECT_TABLE))
        self._searched_upward(Kind.PYPROJECT, path, "pyproject.toml")
        return read_document(path, Kind.PYPROJECT, self.findings, PYPROJECT_TABLE) if path else None

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
        path = Path(xdg, "ptycho_exec", "settings.toml")
        self._note_misnamed(path.parent, path.name)
        self._note_odd(path)
        self.searched.append(SearchedFile(Kind.USER_FILE, str(path), is_file(path)))
        return read_document(path, Kind.USER_FILE, self.findings) if is_file(path) else None

    @cached_property
    def profile(self) -> Origin | None:
        """The profiles that were asked for, as `ci,repro`: by argument, variable, `.env`, or a file's key."""
        given = self.request.profile
        given = given if given is None or isinstance(given, str) else ",".join(given)
        asked = self.control(given, PROFILE_VARIABLE, "profile (--profile)")
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
