"""What ran, with what, from where: run directories, manifests, fingerprints."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

from ptycho_exec.errors import Finding, SettingsError, UserError, redact
from ptycho_exec.fields.base import converted
from ptycho_exec.fields.model import Effect
from ptycho_exec.fields.spec import HIDDEN, as_data, decode_text, field_specs, source_specs
from ptycho_exec.files import write_atomically
from ptycho_exec.interrupts import Interrupted
from ptycho_exec.machine.children import lives
from ptycho_exec.machine.facts import MachineFacts, package_versions
from ptycho_exec.machine.ranks import is_rank_zero
from ptycho_exec.plan import Plan, announce, asked
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind, Origin
from ptycho_exec.sources.resolve import resolve_values, values_given
from ptycho_exec.sources.validators import OF_THE_CLASS, as_given

MANIFEST = "manifest.json"
SETTINGS_FILE = "settings.toml"
MANIFEST_VERSION = 1
LOCK = ".running"
"""The file in a run directory that the first process of a run holds a lock on."""


AnySettings = TypeVar("AnySettings", bound=ExecutionSettings)


# --- fingerprint --------------------------------------------------------------------------------------------


def names_of(settings: ExecutionSettings) -> list[str]:
    """Return the fields whose values, given again, make the same settings, those of a subclass too.

    A `batch_size` that nobody asked for beside `global_batch_size` is none of them: it follows from that.
    """
    follows = settings.global_batch_size is not None and not asked(settings, "batch_size")
    return [name for name in field_specs(type(settings)) if not (follows and name == "batch_size")]


def values_of(settings: ExecutionSettings) -> dict[str, Any]:
    """Return the values of `names_of` as plain JSON data, but those of `Field(exclude=True)`."""
    specs = field_specs(type(settings))
    return {name: as_data(vars(settings)[name]) for name in names_of(settings) if not specs[name].excluded}


def numerics(settings: ExecutionSettings) -> dict[str, Any]:
    """Return the values that can change results."""
    specs = field_specs(type(settings))
    return {
        name: value for name, value in values_of(settings).items() if specs[name].effect is Effect.NUMERICS
    }


def fingerprint(settings: ExecutionSettings | Mapping[str, Any]) -> str:
    """Return the SHA-256 of the numerics fields; the same for settings that can give the same results.

    Accepts the settings, or a mapping that `numerics` returned.

    Examples:
        >>> from ptycho_exec import ExecutionSettings, fingerprint
        >>> settings = ExecutionSettings.from_values({"seed": 7})
        >>> fingerprint(settings) == fingerprint(settings.with_overrides(num_workers=4))
        True
        >>> fingerprint(settings) == fingerprint(settings.with_overrides(seed=8))
        False
    """
    values = numerics(settings) if isinstance(settings, ExecutionSettings) else settings
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# --- run directory ------------------------------------------------------------------------------------------


def new_run_dir(path: str | Path) -> Path:
    """Create an empty run directory and return its absolute path.

    Raises:
        UserError: the path is a file, a directory with something in it, or cannot be written.
    """
    folder = Path(path).expanduser().absolute()
    if folder.is_dir() and not holds_nothing(folder):
        raise UserError(
            f"the output directory exists and is not empty: {folder}",
            expected="a new or an empty directory; a second run never overwrites the first",
            fix="choose another name, or remove the directory",
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"the output path is a file: {folder}", fix="choose the name of a new directory")
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        for parent in created:
            with suppress(OSError):
                parent.rmdir()
        raise UserError(
            f"cannot write the output directory: {error.strerror}",
            where=str(folder),
            fix="choose a place that you may write to",
        ) from None
    return folder


def holds_nothing(folder: Path) -> bool:
    """Return whether a directory is empty, but for what a run leaves that died before it began."""
    return all(path.name == LOCK for path in folder.iterdir())


@contextmanager
def reserved_dir(path: str | Path, *, begun: bool = False) -> Iterator[Path]:
    """Create the run directory first, so that a bad place is reported at once; undo it if the body fails.

    Of several processes the first one does; the others are given its path. With `begun` the directory may
    hold a run already.
    """
    target = Path(path).expanduser().absolute()
    created = [folder for folder in (target, *target.parents) if not folder.exists()]
    if not is_rank_zero():
        yield target
        return
    folder = target if begun and target.is_dir() else new_run_dir(target)
    try:
        yield folder
    except BaseException:
        for empty in created:
            with suppress(OSError):
                empty.rmdir()
        raise


@contextmanager
def undone_if_interrupted(path: str | Path) -> Iterator[None]:
    """Remove what a run left in its new directory, and that directory, when somebody interrupts it."""
    target = Path(path).expanduser().absolute()
    created = [folder for folder in (target, *target.parents) if not folder.exists()]
    new = target in created or (target.is_dir() and holds_nothing(target))
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        if new and is_rank_zero():
            for item in target.iterdir() if target.is_dir() else ():
                shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
            for folder in created:
                with suppress(OSError):
                    folder.rmdir()
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run directory for the time of a run; the lock ends with the process, however it ends.

    Raises:
        UserError: another process runs there.
    """
    if not is_rank_zero():
        yield
        return
    try:
        import fcntl
    except ImportError:  # Windows has no such locks: the manifest alone says whether something runs
        if _runs_here(folder):
            raise _in_use(folder) from None
        yield
        return
    path = folder / LOCK
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write the output directory: {error.strerror}",
            where=str(folder),
            fix="choose a place that you may write to",
        ) from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN) or _runs_here(folder):
                raise _in_use(folder) from None  # else a file system without locks
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _in_use(folder: Path) -> UserError:
    known = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    process, host = known.get("process", "not known"), known.get("host", "an unknown host")
    return UserError(
        f"another process runs in this directory: process {process} on {host}",
        where=str(folder),
        expected="a directory in which nothing runs",
        fix="wait for it, or end it first",
    )


def _runs_here(folder: Path) -> bool:
    """Return whether the process that the manifest names lives on this machine."""
    known = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    if known.get("status") != "running" or known.get("host") != socket.gethostname():
        return False
    return int(known["process"]) != os.getpid() and lives(int(known["process"]))


# --- manifest -----------------------------------------------------------------------------------------------


def manifest_parts(
    settings: ExecutionSettings, *, plan: Plan | None = None, facts: MachineFacts | None = None
) -> dict[str, Any]:
    """Return the parts of a manifest that the settings, the plan and this process know."""
    specs = field_specs(type(settings))
    parts: dict[str, Any] = {
        "intent": {name: redact(value) for name, value in values_of(settings).items()},
        **_class_part(type(settings)),
        "origins": {name: _places(origin, specs[name].excluded) for name, origin in settings.origins.items()},
        "fingerprint": fingerprint(settings),
        "versions": {"python": sys.version.split()[0], **package_versions()},
        "git": git_state(),
        "command": [redact(word) for word in sys.argv],
        "seeds": {"seed": settings.seed},
    }
    if plan is not None:
        parts["plan"] = plan.to_json()
        for name in (name for name, spec in specs.items() if spec.excluded):
            del parts["plan"]["effective"][name]
        parts["effective_fingerprint"] = fingerprint(plan.settings)
    known = facts or (plan.facts if plan else None)
    if known is not None:
        parts["facts"] = known.model_dump(mode="json")
    return parts


def _places(origin: Origin, excluded: bool) -> dict[str, Any]:
    """Return where a value came from as JSON data, without its texts where the field is excluded."""
    rows = [
        (replace(row, raw=None, parts=(), changed=False) if excluded else row).to_json()
        for row in (origin, *origin.shadowed)
    ]
    return {**rows[0], "shadowed": rows[1:]}


def _class_part(model: type[ExecutionSettings]) -> dict[str, Any]:
    """Return what a manifest says of a subclass: its name, and the effects of what it adds or changes."""
    if model is ExecutionSettings:
        return {}
    known = field_specs()
    effects = {
        name: spec.effect.value
        for name, spec in field_specs(model).items()
        if name not in known or known[name].effect is not spec.effect
    }
    return {"settings_class": {"name": f"{model.__module__}:{model.__qualname__}", "effects": effects}}


class Intent(NamedTuple):
    """The settings in a manifest, and the subclass that they are of: its name, the effects of its fields."""

    values: dict[str, Any]
    class_name: str
    effects: dict[str, str]

    def others(self, model: type[ExecutionSettings]) -> list[str]:
        """Return the fields that the class has and `model` has not."""
        known = source_specs(model)
        return [name for name in self.values if name in self.effects and name not in known]


def intent_of(manifest: Mapping[str, Any]) -> Intent | None:
    """Return the settings in a manifest, with its credentials still hidden; None where it has none."""
    values, written = manifest.get("intent"), manifest.get("settings_class")
    if not isinstance(values, dict):
        return None
    if not isinstance(written, dict):
        return Intent(values, "", {})
    return Intent(values, written["name"], written["effects"])


def write_manifest(path: str | Path, /, **parts: Any) -> None:
    """Write or update a manifest atomically, on rank zero only; `parts` replace parts of the same name.

    Args:
        path: the manifest, or the run directory it lies in.
        parts: JSON data; credentials in addresses are hidden before anything is written.
    """
    if not is_rank_zero():
        return
    target = _manifest_path(path)
    before = read_manifest(target) if target.exists() else {"manifest_version": MANIFEST_VERSION}
    if "intent" in parts:
        before.pop("settings_class", None)  # it belongs to the intent that is replaced
    now = _now()
    merged = {**before, "created": before.get("created", now), "updated": now, **plain(parts)}
    write_atomically(target, json.dumps(merged, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def recorded(
    folder: Path,
    parts: Mapping[str, Any],
    notices: Iterable[Finding] | None = None,
    *,
    reached: Callable[[], Mapping[str, Any]] = dict,
) -> Iterator[list[str]]:
    """Keep the manifest true: running from here on, and how the run ended if it does not complete.

    Each time that a run begins or goes on is one of its `attempts`. Warnings that arise meanwhile are kept in
    the manifest's `warnings`, after the `notices` (by default the plan's), and still shown. Yields that list.

    Args:
        reached: how far the run has come, for the attempt that ends, and for one that ended without a word.
    """
    known = [row["text"] for row in parts["plan"]["notices"]]
    lines = known if notices is None else [notice.what for notice in notices]
    attempts = _begin_attempt(folder, reached)
    here = {"process": os.getpid(), "host": socket.gethostname()}
    write_manifest(folder, status="running", warnings=lines, attempts=attempts, **here, **parts)
    show = warnings.showwarning

    def keep(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        lines.append(f"{category.__name__}: {message}")
        show(message, category, *where, **more)

    def end(**ended: Any) -> None:
        if is_rank_zero():
            attempts[-1] |= {**ended, "ended": _now(), **reached()}
        write_manifest(folder, warnings=lines, attempts=attempts)

    warnings.showwarning = keep
    try:
        yield lines
    except BaseException as error:
        status = "failed" if isinstance(error, Exception) else "interrupted"
        ended = {"status": status, "error": f"{type(error).__name__}: {error}"}
        received = getattr(error, "signal", None)
        if received is not None:
            ended["signal"] = received.name
        write_manifest(folder, **ended)
        end(**ended)
        raise
    finally:
        warnings.showwarning = show
    end(status="completed")


ENDINGS = ("error", "signal")
"""Parts of a manifest that say how an attempt failed; they are gone when the run goes on."""


def _begin_attempt(folder: Path, reached: Callable[[], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the attempts with a new one; the last one before it may have died without a word."""
    if not is_rank_zero():
        return []
    target, attempts = folder / MANIFEST, []
    if target.exists():
        before = read_manifest(target)
        attempts = list(before.get("attempts", ()))
        if attempts and attempts[-1]["status"] == "running":
            attempts[-1] |= {"status": "died", "ended": None, **reached()}
        kept = {name: value for name, value in before.items() if name not in ENDINGS}
        write_atomically(target, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
    here: dict[str, Any] = {"status": "running", "started": _now(), "host": socket.gethostname()}
    if "SLURM_JOB_ID" in os.environ:
        here["slurm_job"] = os.environ["SLURM_JOB_ID"]
        here["slurm_restart"] = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    return [*attempts, here]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _manifest_path(path: str | Path) -> Path:
    target = Path(path)
    return target / MANIFEST if target.is_dir() else target


def plain(value: Any) -> Any:
    """Return JSON data with credentials hidden; paths, dates and other objects become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    return redact(str(value))


_A_RUN: dict[str, Any] = {
    "expected": "a directory that a run wrote, with manifest.json in it",
    "fix": "name the directory that the run was given (--out of a command)",
}


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read a manifest, given its path or its run directory.

    Raises:
        UserError: it is missing or is no manifest.
    """
    target = _manifest_path(path)
    try:
        manifest = json.loads(target.read_text("utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read the manifest: {error.strerror}",
            where=str(target),
            **_A_RUN,
        ) from None
    except ValueError as error:
        raise UserError(f"the manifest is not JSON: {error}", where=str(target), **_A_RUN) from None
    if not isinstance(manifest, dict) or "manifest_version" not in manifest:
        raise UserError("this JSON file is not a manifest", where=str(target), **_A_RUN)
    return manifest


@overload
def settings_from_manifest(
    path: str | Path, overrides: Mapping[str, Any] | None = None
) -> ExecutionSettings: ...


@overload
def settings_from_manifest(
    path: str | Path, overrides: Mapping[str, Any] | None = None, *, model: type[AnySettings]
) -> AnySettings: ...


def settings_from_manifest(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    model: type[ExecutionSettings] = ExecutionSettings,
) -> ExecutionSettings:
    """Rebuild the settings that a run was asked for, reading nothing but its manifest.

    `overrides` win over it, and stand in for credentials that the manifest hides. Settings of a subclass need
    that class as `model`; without it, fields of its own are left out, and a warning and a notice name them,
    as they name fields of `Field(exclude=True)` that were set and are not given again.

    Raises:
        UserError: there is no manifest.
        SettingsError: a credential in it was hidden.
    """
    target = _manifest_path(path)
    manifest = read_manifest(target)
    found = intent_of(manifest)
    if found is None:
        raise UserError("the manifest has no settings", where=str(target), expected="a part named intent")
    others = found.others(model)
    values = values_given(model, found.values, manifest.get("origins", {}))
    given = {name: _read(value, name, model) for name, value in values.items() if name not in others}
    intent, missed = _shown(given, overrides or {}, model)
    if missed:
        raise SettingsError(
            f"the manifest hides credentials in {', '.join(missed)}",
            where=str(target),
            fix="give the value again, as an argument",
        )
    notes = [_left_out(others, found.class_name, str(target))] if others else []
    anew = {*intent, *(overrides or {})}
    notes += [_not_kept(name, str(target)) for name in _excluded(manifest, model) if name not in anew]
    announce(notes)
    resolution = resolve_values(model, intent, place=str(target), overrides=overrides)
    return model.from_resolution(replace(resolution, findings=(*resolution.findings, *notes)))


def _read(value: Any, name: str, model: type[ExecutionSettings]) -> Any:
    """Return a value of a manifest as its field has it; JSON has no word for infinity, say."""
    spec = source_specs(model).get(name)
    if spec is None or not isinstance(value, str) or spec.accepts(value):
        return value
    return decode_text(spec, value)


def _shown(
    values: Mapping[str, Any], given: Mapping[str, Any], model: type[ExecutionSettings]
) -> tuple[dict[str, Any], list[str]]:
    """Return the values without hidden credentials, and the names of those that are not given anew.

    A table keeps what is not hidden in it.
    """
    specs, shown, missed = source_specs(model), dict(values), list[str]()
    for name in [name for name, value in values.items() if HIDDEN in json.dumps(value, default=str)]:
        value, anew = shown.pop(name), given.get(name)
        if name in specs and specs[name].table and isinstance(value, Mapping):
            shown[name] = {key: item for key, item in value.items() if HIDDEN not in str(item)}
            anew = anew if isinstance(anew, Mapping) else {}
            missed += [f"{name}.{key}" for key in value if key not in {*shown[name], *anew}]
        elif name not in given:
            missed.append(name)
    return shown, missed


def _left_out(names: Sequence[str], class_name: str, where: str) -> Finding:
    return Finding(
        f"settings of {class_name} are left out: {', '.join(names)}",
        where=where,
        fix=f"pass the class: settings_from_manifest(..., model={re.split('[:.]', class_name)[-1]})",
        level="note",
        code="left-out",
    )


def _excluded(manifest: Mapping[str, Any], model: type[ExecutionSettings]) -> Iterator[str]:
    """Yield the fields that somebody set and whose values a manifest never has."""
    origins = manifest.get("origins", {})
    for name, spec in field_specs(model).items():
        if spec.excluded and origins.get(name, {}).get("kind", Kind.DEFAULT) != Kind.DEFAULT:
            yield name


def _not_kept(name: str, where: str) -> Finding:
    return Finding(
        f"{name} was set in that run, and its value is kept in no manifest: Field(exclude=True)",
        where=where,
        fix=f'give it again: settings_from_manifest(..., {{"{name}": ...}})',
        level="note",
        code="left-out",
        field=name,
    )


def _toml(value: Any) -> Any:
    """Return data as TOML has them: none is a word."""
    if isinstance(value, Mapping):
        return {name: _toml(item) for name, item in value.items()}
    return "none" if value is None else value


def write_settings_toml(path: str | Path, settings: ExecutionSettings) -> None:
    """Write every value as a TOML settings file that loads again, on rank zero; none is written as a word.

    What validators changed is written as they got it. What TOML cannot hold, credentials of a secret type,
    fields that are excluded, and what only the class can give are left out, with a line that says so.
    """
    import tomli_w

    if not is_rank_zero():
        return

    model = type(settings)
    given = as_given(settings, settings.origins, model.from_values)
    rows = {name: _toml(redact(as_data(given[name]))) for name in values_of(settings) if name in given}
    head = "# The settings of this run. Use them again with: --settings settings.toml\n"
    if model is not ExecutionSettings:
        head += f"# They are of the class {model.__module__}:{model.__qualname__}.\n"
    for name in (name for name, spec in field_specs(model).items() if spec.excluded):
        head += f"# {name} is left out: Field(exclude=True)\n"
    for name in (name for name in values_of(settings) if name not in given):
        head += f"# {name} is left out: {OF_THE_CLASS}\n"
    changed = {name for name in rows if given[name] is not vars(settings)[name]}
    for name in [name for name in rows if name not in field_specs() or name in changed]:
        try:
            text = tomli_w.dumps({name: rows[name]})
            again = converted(model, name, tomllib.loads(text)[name])
            fits = again == converted(model, name, given[name])
        except (TypeError, ValueError):
            fits = False
        if not fits:
            del rows[name]
            head += f"# {name} is left out: it holds credentials, or TOML cannot hold it\n"
    write_atomically(path, head + tomli_w.dumps(rows))


# --- where the code and the data came from ------------------------------------------------------------------


def git_state(folder: str | Path | None = None) -> dict[str, Any] | None:
    """Return commit, branch and whether files are changed in the checkout of this package, or None."""
    where = Path(folder) if folder is not None else Path(__file__).parent
    commit = _git(where, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(where, "status", "--porcelain", "--untracked-files=no")
    branch = _git(where, "rev-parse", "--abbrev-ref", "HEAD")
    return {"commit": commit, "branch": branch, "dirty": bool(changed)}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
