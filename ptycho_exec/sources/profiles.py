"""What stands in a settings file: settings, profiles, and keys that are neither; and where a profile is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ptycho_exec.errors import Finding
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.sources.discovery import Reader
from ptycho_exec.sources.origins import KeyPath, Kind, Layer, Origin
from ptycho_exec.sources.settings_files import Document, read_document
from ptycho_exec.sources.suggestions import unknown_name

SHIPPED_PROFILES = Path(__file__).parents[1] / "profiles"
PROFILE_KEYS = ("extends", "description")


def document_layer(document: Document) -> Layer:
    """Return the settings of one file, with a finding for every key that is none, in any of its tables."""
    layer = Layer(findings=list(document.findings))
    for name in document.data:
        if name in field_specs():
            layer.entries[name] = document.origin((name,))
        elif name == "profiles":
            _read_profiles(document, layer)
        elif name == "profile":
            layer.findings += _check_profile_name(document)
        elif name != "$schema":
            layer.findings += _misplaced(document, (name,), allowed=("profile", "profiles"))
    return layer


def _read_profiles(document: Document, layer: Layer) -> None:
    if not isinstance(document.data["profiles"], Mapping):
        layer.findings.append(
            document.finding(("profiles",), "profiles is not a table", "tables [profiles.NAME]", "rename it")
        )
    for name, table in document.table_at(("profiles",)).items():
        path = ("profiles", name)
        if isinstance(table, Mapping):
            layer.inactive += profile_entries(document, path, name).items()
            layer.findings += profile_findings(document, path)
        else:
            what, expected = f"profile {name} is not a table", f"[profiles.{name}] with settings in it"
            fix = f"move {name} out of [profiles]" if name in field_specs() else "make it a table"
            layer.findings.append(document.finding(path, what, expected, fix))


def _check_profile_name(document: Document) -> Iterator[Finding]:
    value = document.data["profile"]
    if isinstance(value, Mapping):
        yield document.finding(
            ("profile",), "table [profile] is not read", "[profiles.NAME]", "rename the table"
        )
    elif not isinstance(value, str) or not value.strip():
        yield document.finding(
            ("profile",), "profile must be the name of one profile", "a text", 'write profile = "ci"'
        )


def profile_entries(document: Document, path: KeyPath, name: str) -> dict[str, Origin]:
    """Return the settings of one profile's table."""
    return {
        key: document.origin((*path, key), kind=Kind.PROFILE, place=f"profile:{name}")
        for key in document.table_at(path)
        if key in field_specs()
    }


def profile_findings(document: Document, path: KeyPath) -> Iterator[Finding]:
    """Report keys of a profile's table that are no settings, and an `extends` that is no name."""
    table = document.table_at(path)
    for key in table:
        if key not in field_specs() and key not in PROFILE_KEYS:
            yield from _misplaced(document, (*path, key), allowed=PROFILE_KEYS)
    for key in PROFILE_KEYS:
        if key in table and not (isinstance(table[key], str) and table[key].strip()):
            yield document.finding((*path, key), f"{key} must be a text", f'{key} = "..."', "correct it")


def _misplaced(document: Document, path: KeyPath, allowed: tuple[str, ...]) -> Iterator[Finding]:
    """Report an unknown key; a table with settings in it, at any depth, is told where settings stand."""
    node = document.table_at(path)
    if not _holds_settings(node):
        yield _unknown_key(document, path, allowed)
        return
    table = ".".join((*document.table, *path))
    for key, value in node.items():
        if key in field_specs():
            what = f"{key} stands in table [{table}], where it sets nothing"
            yield document.finding((*path, key), what, f"{key} {document.home()}", "move the line there")
        elif isinstance(value, Mapping) and len(path) < _DEEPEST:
            yield from _misplaced(document, (*path, key), ())
        else:
            yield _unknown_key(document, (*path, key), ())


_DEEPEST = 5  # a YAML file can contain itself


def _holds_settings(node: Mapping[str, Any], depth: int = 0) -> bool:
    inner = [value for value in node.values() if isinstance(value, Mapping)]
    found = bool(set(node) & set(field_specs()))
    return found or (depth < _DEEPEST and any(_holds_settings(value, depth + 1) for value in inner))


def _unknown_key(document: Document, path: KeyPath, allowed: tuple[str, ...]) -> Finding:
    candidates = (*field_specs(), *allowed)
    return unknown_name(
        path[-1], candidates, where=document.place(path), file=document.path, line=document.line(path)
    )


# --- profiles -------------------------------------------------------------------------------------------


class Profile(NamedTuple):
    """Where one profile is defined: a table of a document."""

    name: str
    document: Document
    path: KeyPath

    @property
    def extends(self) -> str:
        value = self.document.table_at(self.path).get("extends", "")
        return value.strip() if isinstance(value, str) else ""

    @property
    def description(self) -> str:
        return str(self.document.table_at(self.path).get("description", ""))

    def entries(self) -> dict[str, Origin]:
        return profile_entries(self.document, self.path, self.name)


def profile_layer(reader: Reader) -> Layer:
    """Return the settings of the profile that is asked for, and of those it extends."""
    layer = Layer()
    asked, seen = reader.profile, list[Profile]()
    while asked is not None:
        profile = find_profile(asked.value, reader, [p for p in seen if p.name == asked.value])
        if profile is None:
            layer.findings.append(_no_such_profile(asked, reader))
            break
        seen.append(profile)
        for name, origin in profile.entries().items():
            layer.entries.setdefault(name, origin)
        if profile.document.kind is Kind.PROFILE:
            layer.findings += profile_findings(profile.document, profile.path)
        asked = profile.document.origin((*profile.path, "extends")) if profile.extends else None
    return layer


def find_profile(name: str, reader: Reader, skip: list[Profile]) -> Profile | None:
    """Return where a profile is defined: `[profiles.NAME]` of the highest file, then the shipped ones."""
    used = {profile.document.path for profile in skip}
    for document in reader.documents.values():
        if document.path not in used and isinstance(document.table_at(("profiles",)).get(name), Mapping):
            return Profile(name, document, ("profiles", name))
    path = SHIPPED_PROFILES / f"{name}.toml"
    if name not in shipped_profiles() or str(path) in used:
        return None
    shipped = read_document(path, Kind.PROFILE, reader.findings)
    return Profile(name, shipped, ()) if shipped else None


def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with the package."""
    return tuple(sorted(path.stem for path in SHIPPED_PROFILES.glob("*.toml")))


def profile_names(reader: Reader) -> tuple[str, ...]:
    """Names of all profiles that can be asked for here."""
    own = {name for document in reader.documents.values() for name in document.table_at(("profiles",))}
    return tuple(sorted(own | set(shipped_profiles())))


def _no_such_profile(asked: Origin, reader: Reader) -> Finding:
    name, known = str(asked.value), profile_names(reader)
    finding = unknown_name(
        name, known, where=asked.describe(), noun="profile", file=asked.file, line=asked.line
    )
    if not name.strip():
        return replace(finding, what="the name of the profile is empty")
    if name not in known:
        return finding
    return replace(
        finding,
        what=f"profile {name} extends itself, directly or through others",
        expected="a chain of profiles that ends",
        fix="remove `extends`, or extend another one",
    )
