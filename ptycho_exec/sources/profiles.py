"""What a settings file holds: settings, profiles, and keys that are neither; and where a profile is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ptycho_exec.errors import Finding
from ptycho_exec.fields.spec import FieldSpec
from ptycho_exec.sources.discovery import Reader, profile_names_in
from ptycho_exec.sources.origins import KeyPath, Kind, Layer, Origin
from ptycho_exec.sources.settings_files import Document, read_document
from ptycho_exec.sources.suggestions import MOST_UNKNOWN, more_unknown_names, unknown_name

PROFILE_KEYS = ("extends", "description")


Specs = Mapping[str, FieldSpec]


def document_layer(document: Document, specs: Specs) -> Layer:
    """Return the settings of one file, with a finding for every key that is none, in any of its tables."""
    layer, unknown = Layer(findings=list(document.findings)), list[str]()
    for name, value in document.data.items():
        if name in specs:
            layer.entries[name] = document.origin((name,))
        elif name == "profiles":
            _read_profiles(document, layer, specs)
        elif name == "profile" and isinstance(value, Mapping):
            what, fix = "table [profile] is not read", "rename the table to [profiles.NAME]"
            layer.findings.append(document.finding((name,), what, "[profiles.NAME]", fix, "wrong-table"))
        elif name == "profile" and not profile_names_in(value):
            what, fix = (
                "profile must be the name of a profile, or a list of names",
                "write the name, or remove it",
            )
            layer.findings.append(document.finding((name,), what, '"ci" or ["ci", "repro"]', fix))
        elif name not in ("profile", "$schema"):
            unknown.append(name)
    layer.findings += _unknown(document, (), unknown, specs, also=("profile", "profiles"))
    return layer


def _unknown(
    document: Document, path: KeyPath, names: Sequence[str], specs: Specs, also: tuple[str, ...]
) -> Iterator[Finding]:
    """Report the keys of a table that are no settings: each, or their number where there are too many."""
    for name in names[:MOST_UNKNOWN]:
        yield from _misplaced(document, (*path, name), specs, also)
    if len(names) > MOST_UNKNOWN:
        more = len(names) - MOST_UNKNOWN
        yield more_unknown_names(more, document.place(path) if path else document.path, document.path)


def _read_profiles(document: Document, layer: Layer, specs: Specs) -> None:
    if not isinstance(document.data["profiles"], Mapping):
        what, expected, fix = (
            "profiles is not a table",
            "tables [profiles.NAME]",
            "remove it, or write tables",
        )
        layer.findings.append(document.finding(("profiles",), what, expected, fix, "wrong-table"))
    for name, table in document.table_at(("profiles",)).items():
        path = ("profiles", name)
        if isinstance(table, Mapping):
            layer.inactive += profile_entries(document, path, name, specs).items()
            layer.findings += profile_findings(document, path, specs)
        else:
            what, expected = f"profile {name} is not a table", f"[profiles.{name}] with settings in it"
            fix = (
                f"move {name} out of [profiles]"
                if name in specs
                else f"remove it, or begin a table with [profiles.{name}]"
            )
            layer.findings.append(document.finding(path, what, expected, fix, "wrong-table"))


def profile_entries(document: Document, path: KeyPath, name: str, specs: Specs) -> dict[str, Origin]:
    """Return the settings of one profile's table."""
    return {
        key: document.origin((*path, key), kind=Kind.PROFILE, place=f"profile:{name}")
        for key in document.table_at(path)
        if key in specs
    }


def profile_findings(document: Document, path: KeyPath, specs: Specs) -> Iterator[Finding]:
    """Report keys of a profile's table that are no settings, and an `extends` that is no name."""
    table = document.table_at(path)
    unknown = [key for key in table if key not in specs and key not in PROFILE_KEYS]
    yield from _unknown(document, path, unknown, specs, also=PROFILE_KEYS)
    for key in PROFILE_KEYS:
        if key in table and not (isinstance(table[key], str) and table[key].strip()):
            what, fix = f"{key} must be a string", "correct or remove the line"
            yield document.finding((*path, key), what, f'{key} = "..."', fix)


_DEEPEST = 5  # a YAML file can contain itself


def _misplaced(
    document: Document, path: KeyPath, specs: Specs, also: tuple[str, ...] = ()
) -> Iterator[Finding]:
    """Report an unknown key, or the settings in a table, at any depth, that belong somewhere else."""
    node = document.table_at(path)
    if len(path) > _DEEPEST or not _holds_settings(node, specs):
        where, line = document.place(path), document.line(path)
        yield unknown_name(path[-1], (*specs, *also), where=where, file=document.path, line=line)
        return
    unknown = 0
    for key in node:
        if key in specs:
            what = f"{key} is ignored in [{'.'.join((*document.table, *path))}]"
            expected, fix = f"{key} {document.home()}", "move the line there"
            yield document.finding((*path, key), what, expected, fix, "misplaced-key")
        elif (unknown := unknown + 1) <= MOST_UNKNOWN:
            yield from _misplaced(document, (*path, key), specs)
    if unknown > MOST_UNKNOWN:
        yield more_unknown_names(unknown - MOST_UNKNOWN, document.place(path), document.path)


def _holds_settings(node: Mapping[str, Any], specs: Specs, depth: int = 0) -> bool:
    inner = [value for value in node.values() if isinstance(value, Mapping)]
    deeper = depth < _DEEPEST and any(_holds_settings(value, specs, depth + 1) for value in inner)
    return bool(set(node) & set(specs)) or deeper


# --- profiles -------------------------------------------------------------------------------------------


class Profile(NamedTuple):
    """Where one profile is defined: a table of a document."""

    name: str
    document: Document
    path: KeyPath

    @property
    def key(self) -> tuple[str, str]:
        """What it is recognised by."""
        return self.document.path, self.name

    @property
    def extends(self) -> str:
        value = self.document.table_at(self.path).get("extends", "")
        return value.strip() if isinstance(value, str) else ""

    @property
    def description(self) -> str:
        return str(self.document.table_at(self.path).get("description", ""))

    def entries(self, specs: Specs) -> dict[str, Origin]:
        return profile_entries(self.document, self.path, self.name, specs)


def profile_layer(reader: Reader) -> Layer:
    """Return the settings of the profiles that are asked for, and of those they extend.

    What the other profiles of the files extend is checked too.
    """
    layer, origins, asked_for = Layer(), dict[str, list[Origin]](), set[str]()
    for asked in reader.profiles:
        asked_for.add(asked.value)
        chain = profile_chain(asked, reader)
        layer.findings += _chain_findings(chain, reader)
        for profile in chain.profiles:
            for name, origin in profile.entries(reader.specs).items():
                origins.setdefault(name, []).append(origin)
    layer.entries = {name: first.shadowing(others) for name, (first, *others) in origins.items()}
    layer.findings += _unasked_findings(reader, asked_for)
    return layer


def _unasked_findings(reader: Reader, asked_for: Collection[str]) -> Iterator[Finding]:
    """Report what is wrong in the chains of profiles that nobody asked for; each is visited once."""
    checked = set[tuple[str, str]]()
    for name in own_profile_names(reader):
        if name in asked_for or find_profile(name, reader, []) is None:
            continue  # what is no table is reported with its file
        chain = profile_chain(Origin(Kind.PROFILE, f"profile:{name}", name), reader, checked)
        yield from _chain_findings(chain, reader)
        if len({profile.name for profile in chain.profiles}) == len(chain.profiles):
            checked |= {profile.key for profile in chain.profiles}  # what follows one depends on it alone


class Chain(NamedTuple):
    """A profile and those it extends, and the request for one that is not there, if it ends with that."""

    profiles: list[Profile]
    missing: Origin | None


def profile_chain(asked: Origin, reader: Reader, known: Collection[tuple[str, str]] = ()) -> Chain:
    """Follow what a profile extends, to its end or to a profile that is `known`."""
    profiles, namesakes = list[Profile](), dict[str, list[Profile]]()
    while True:
        used = namesakes.setdefault(asked.value, [])
        profile = find_profile(asked.value, reader, used)
        if profile is None:
            return Chain(profiles, asked)
        if profile.key in known:
            return Chain(profiles, None)
        used.append(profile)
        profiles.append(profile)
        if not profile.extends:
            return Chain(profiles, None)
        asked = profile.document.origin((*profile.path, "extends"))


def _chain_findings(chain: Chain, reader: Reader) -> Iterator[Finding]:
    """Report what is wrong in shipped profiles of a chain, and at its end; files check the others."""
    for profile in chain.profiles:
        if profile.document.kind is Kind.PROFILE:
            yield from profile_findings(profile.document, profile.path, reader.specs)
    if chain.missing is not None:
        yield from _no_such_profile(chain.missing, reader)


def find_profile(name: str, reader: Reader, skip: list[Profile]) -> Profile | None:
    """Return where a profile is defined: `[profiles.NAME]` of the highest file, then the shipped ones."""
    used = {profile.document.path for profile in skip}
    for document in reader.documents.values():
        if document.path not in used and isinstance(document.table_at(("profiles",)).get(name), Mapping):
            return Profile(name, document, ("profiles", name))
    path = (reader.places.shipped_profiles or Path()) / f"{name}.toml"
    if name not in shipped_profiles(reader) or str(path) in used:
        return None
    shipped = read_document(path, Kind.PROFILE, reader.findings)
    return Profile(name, shipped, ()) if shipped else None


def shipped_profiles(reader: Reader) -> tuple[str, ...]:
    """Names of the profiles that come with the program."""
    folder = reader.places.shipped_profiles
    return tuple(sorted(path.stem for path in folder.glob("*.toml"))) if folder else ()


def profile_names(reader: Reader) -> tuple[str, ...]:
    """Names of all profiles that can be asked for here."""
    return tuple(sorted({*own_profile_names(reader), *shipped_profiles(reader)}))


def own_profile_names(reader: Reader) -> tuple[str, ...]:
    """Names of the profiles that the files here define."""
    tables = (document.table_at(("profiles",)) for document in reader.documents.values())
    return tuple(dict.fromkeys(name for table in tables for name in table))


def _no_such_profile(asked: Origin, reader: Reader) -> Iterator[Finding]:
    if any(finding.code == "broken-file" for finding in reader.findings):
        return  # it may be defined where nothing could be read
    name, known, where = str(asked.value), profile_names(reader), asked.describe()
    finding = unknown_name(name, known, where=where, noun="profile", file=asked.file, line=asked.line)
    finding = replace(finding, field="profile")
    if not name.strip():
        yield replace(finding, what="the name of the profile is empty")
    elif name not in known:
        yield finding
    else:
        yield replace(
            finding,
            what=f"profile {name} extends itself, directly or through others",
            expected="a chain of profiles that ends",
            fix="remove `extends`, or extend another one",
            code="endless-profile",
        )
