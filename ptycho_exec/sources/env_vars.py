"""Names of variables, in the environment and in `.env`: ours, misspelt ones, and those of other programs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

from pydantic import BaseModel

from ptycho_exec.errors import Finding
from ptycho_exec.fields.spec import FieldSpec, decode_text, field_specs, source_specs, table_specs
from ptycho_exec.sources.discovery import places_of
from ptycho_exec.sources.origins import Kind, Layer, Origin
from ptycho_exec.sources.settings_files import duplicate_key, is_file, may_be_meant, read_text
from ptycho_exec.sources.suggestions import MOST_UNKNOWN, distance, more_unknown_names, unknown_name

# Kubernetes and old Docker inject these for a service whose name starts like our prefix.
_SERVICE_LINK = r"(?:^|_)(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)$"
_STRAY = ("PL_TRAINER_", "PL_GLOBAL_SEED", "LT_")

Row = tuple[str, str, int | None]
"""Name and text of a variable, and its line where it is one of a file."""


def variables_layer(
    model: type[BaseModel], kind: Kind, rows: Iterable[Row], file: str | None = None
) -> Layer:
    """Return the values among `rows`, and findings about names that are misspelt or have no effect."""
    layer, stray, variables, more = Layer(), list[str](), _by_variable(model), 0
    for name, text, line in rows:
        if name in variables:
            spec = variables[name]
            if not text.strip():
                what = f"{name} is empty{f' ({file}:{line})' if file else ''} and counts as unset"
                field = spec.name if spec else ""
                layer.findings.append(Finding(what, level="note", code="empty-variable", field=field))
            elif spec is not None:
                value = decode_text(spec, text)
                _enter(layer, spec, Origin(kind, name, value, text, file=file, line=line))
        elif name.startswith(_STRAY):
            stray.append(name)
        elif name.startswith(_inherited_prefixes(model)) and not name.startswith(places_of(model).prefix):
            what = f"{name} has no effect: {model.__name__} reads {places_of(model).prefix}... in its place"
            layer.findings.append(
                Finding(what, file=file or "", line=line or 0, level="note", code="no-effect")
            )
        elif len(layer.findings) >= MOST_UNKNOWN:
            more += may_be_meant(places_of(model).prefix).search(name) is not None
        elif finding := _misspelt(name, model):
            where = f"{file}:{line}" if file else f"{kind.value} variable"
            layer.findings.append(replace(finding, where=where, file=file or "", line=line or 0))
    if more:
        layer.findings.append(more_unknown_names(more, file or f"{kind.value} variables", file or ""))
    if stray:
        names = ", ".join(sorted(stray))
        what = f"no effect here, the Trainer is built from these settings alone: {names}"
        layer.findings.insert(0, Finding(what, level="note", code="no-effect"))
    return layer


def secrets_layer(model: type[BaseModel], folder: Path) -> Layer:
    """Return the values in a folder that has a file for each variable, its name in any case.

    Other files are left alone, unless the name has our prefix: a misspelt one is an error, another a note.
    """
    layer, variables = Layer(), _by_variable(model)
    try:
        files = sorted(path for path in folder.iterdir() if is_file(path))
    except OSError as error:
        what, fix = f"the secrets directory cannot be read: {error.strerror}", "make it readable"
        layer.findings.append(Finding(what, str(folder), "a readable directory", fix, code="unreadable-file"))
        return layer
    for path in files:
        spec = variables.get(path.name.upper())
        if spec is not None:
            text = read_text(path, layer.findings)
            if text is not None and text.strip():
                _enter(layer, spec, Origin(Kind.SECRET, str(path), decode_text(spec, text.strip())))
            elif text is not None:
                what = f"{path} is empty and counts as unset"
                layer.findings.append(Finding(what, level="note", code="empty-variable", field=spec.name))
        elif path.name.upper() in variables:
            what = f"{path} is not read: a secret is the value of a setting"
            layer.findings.append(Finding(what, level="note", code="not-read"))
        elif finding := _misspelt(path.name.upper(), model):
            if finding.fix.startswith("remove"):
                what = f"{path} is not read: no setting has that name"
                finding = Finding(what, level="note", code="not-read")
            else:
                fix = finding.fix.replace("write ", "rename it to ")
                finding = replace(finding, where=str(path), fix=fix)
            layer.findings.append(replace(finding, file=str(path)))
    return layer


def _enter(layer: Layer, spec: FieldSpec, origin: Origin) -> None:
    """Put a value into a layer; one that a table has joins the others, and wins over the table's variable."""
    if spec.within is None:
        below = layer.entries.get(spec.name)
        table = below is not None and below.parts and origin.place != below.place
        layer.entries[spec.name] = below.shadowing((origin,)) if below and table else origin
        return
    table_origin = replace(origin, value={spec.name: origin.value}, parts=((spec.name, origin),))
    below = layer.entries.get(spec.within.name)
    layer.entries[spec.within.name] = table_origin.shadowing((below, *below.shadowed) if below else ())


TRACKERS: dict[str, dict[str, str]] = {
    "mlflow": {
        "MLFLOW_TRACKING_URI": "tracking_uri",
        "MLFLOW_EXPERIMENT_NAME": "experiment_name",
        "MLFLOW_EXPERIMENT_ID": "experiment_name",
        "MLFLOW_RUN_NAME": "",
        "MLFLOW_RUN_ID": "",
    },
    "wandb": {
        "WANDB_PROJECT": "experiment_name",
        "WANDB_MODE": "wandb_mode",
        "WANDB_DISABLED": "logger_backend",
        "WANDB_DIR": "",
        "WANDB_NAME": "",
        "WANDB_RUN_ID": "",
    },
}
"""Logger backend -> variables of it that have no effect, and the field that decides instead, if one does."""


def tracker_notes(model: type[BaseModel], names: Collection[str], backend: object) -> Iterator[Finding]:
    """Yield a note for each variable of the chosen logger that does not act: the settings decide."""
    for name, field in TRACKERS.get(str(backend), {}).items():
        if name in names:
            spec = field_specs(model).get(field)
            instead = f"{spec.variable} sets it" if spec else "the run directory and the settings decide"
            what = f"{name} has no effect on logger {backend} here: {instead}"
            yield Finding(what, level="note", code="no-effect", field=spec.name if spec else "")


def dotenv_findings(model: type[BaseModel], rows: Iterable[Row], file: str) -> Iterator[Finding]:
    """Yield findings about `.env` lines that name a field without the prefix, or a variable a second time."""
    lines: dict[str, int | None] = {}
    for name, _, line in rows:
        spec = field_specs(model).get(_folded(name).lower())
        if spec is not None and not any(name in theirs for theirs in TRACKERS.values()):
            finding = _rename(f"{name} in .env is ignored: it lacks the prefix", spec.variable)
            yield replace(finding, field=spec.name, where=f"{file}:{line}", file=file, line=line or 0)
        if name in lines and name in _by_variable(model):
            yield duplicate_key(name, file, line or 0, lines[name])
        lines[name] = line


def _without_last_word(prefix: str) -> str:
    """`PTYCHO_` for `PTYCHO_EXEC_`: what is left of a prefix when its second half is forgotten."""
    return "_".join(prefix.rstrip("_").split("_")[:-1]) + "_"


def _rename(what: str, meant: str) -> Finding:
    return Finding(what, expected=meant, fix=f"rename it to {meant}", code="wrong-prefix")


def _folded(name: str) -> str:
    return name.upper().replace("-", "_")


@cache
def _inherited_prefixes(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the prefixes of classes above that this one has replaced by its own."""
    prefixes = {places_of(base).prefix for base in model.__mro__[1:] if issubclass(base, BaseModel)}
    return tuple(prefixes - {places_of(model).prefix, ""})


@cache
def _by_variable(model: type[BaseModel]) -> dict[str, FieldSpec | None]:
    """Return every variable that is read, with its field; those that name a file and a profile have none."""
    specs: dict[str, FieldSpec | None] = {spec.variable: spec for spec in source_specs(model).values()}
    tables = [table_specs(spec) for spec in field_specs(model).values() if spec.table]
    specs |= {spec.variable: spec for rows in tables for spec in rows.values()}
    places = places_of(model)
    return {**specs, places.settings_file_variable: None, places.profile_variable: None}


def _ends_like_one(folded: str, model: type[BaseModel]) -> bool:
    """Return whether a name is one of ours but for one error in the prefix, however short that is."""
    prefix, variables = places_of(model).prefix, _by_variable(model)
    cuts = (at + 1 for at, letter in enumerate(folded) if letter == "_")
    heads = ((folded[:cut], prefix + folded[cut:]) for cut in cuts)
    return folded in _moved(model) or any(v in variables and distance(head, prefix) <= 1 for head, v in heads)


@cache
def _moved(model: type[BaseModel]) -> frozenset[str]:
    """Return our variables with the underscore after the prefix left out, or moved by one letter."""
    prefix = places_of(model).prefix
    bare, names = prefix[:-1], [variable.removeprefix(prefix) for variable in _by_variable(model)]
    forms = ((bare + n, f"{bare[:-1]}_{bare[-1:]}{n}", f"{bare}{n[:1]}_{n[1:]}") for n in names)
    return frozenset(form for three in forms for form in three) if prefix.endswith("_") else frozenset()


@lru_cache(maxsize=4096)
def _misspelt(name: str, model: type[BaseModel]) -> Finding | None:
    """Return a finding, without its place, when a name was meant to be a variable of ours but is none."""
    folded, prefix = _folded(name), places_of(model).prefix
    variables = _by_variable(model)
    if prefix and folded.startswith(prefix):
        foreign = re.search(_SERVICE_LINK, name.removeprefix(prefix))
        return None if foreign else unknown_name(name, tuple(variables), where="")
    if not may_be_meant(prefix).search(name) and not _ends_like_one(folded, model):
        return None
    unfinished = (
        variable
        for variable in variables
        if folded == _without_last_word(prefix) + variable.removeprefix(prefix)
    )
    near = ((distance(folded, word), word) for word in variables if abs(len(word) - len(folded)) <= 3)
    score, meant = min(near, default=(99, ""))
    meant = next(unfinished, meant if score <= 3 else "")
    return _rename(f"{name} is ignored: its prefix is misspelt", meant) if meant else None
