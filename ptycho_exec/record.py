"""What ran, with what, from where: run directories, manifests, fingerprints."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ptycho_exec.errors import Finding, SettingsError, UserError, redact
from ptycho_exec.fields.model import Effect
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.files import write_atomically
from ptycho_exec.machine.facts import MachineFacts, package_versions
from ptycho_exec.machine.ranks import is_rank_zero
from ptycho_exec.plan import Plan
from ptycho_exec.settings import ExecutionSettings

MANIFEST = "manifest.json"
SETTINGS_FILE = "settings.toml"
MANIFEST_VERSION = 1
LOCK = ".running"
"""The file in a run directory that the first process of a run holds a lock on."""


# --- fingerprint --------------------------------------------------------------------------------------------


def values_of(settings: ExecutionSettings) -> dict[str, Any]:
    """Return every field's value as plain JSON data."""
    values = {name: getattr(settings, name) for name in field_specs()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def numerics(settings: ExecutionSettings) -> dict[str, Any]:
    """Return the values that can change results."""
    specs = field_specs()
    return {
        name: value for name, value in values_of(settings).items() if specs[name].effect is Effect.NUMERICS
    }


def fingerprint(settings: ExecutionSettings | Mapping[str, Any]) -> str:
    """Return the SHA-256 of the numerics fields; the same for settings that can give the same results.

    Accepts the settings, or a mapping that `numerics` returned.
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
def locked(folder: Path) -> Iterator[None]:
    """Hold a run directory for the time of a run; the lock ends with the process, however it ends.

    Raises:
        UserError: another process runs there.
    """
    import fcntl

    if not is_rank_zero():
        yield
        return
    path = folder / LOCK
    try:
        file = path.open("a")
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
    with suppress(OSError):
        os.kill(int(known["process"]), 0)
        return int(known["process"]) != os.getpid()
    return False


# --- manifest -----------------------------------------------------------------------------------------------


def manifest_parts(
    settings: ExecutionSettings, *, plan: Plan | None = None, facts: MachineFacts | None = None
) -> dict[str, Any]:
    """Return the parts of a manifest that the settings, the plan and this process know."""
    parts: dict[str, Any] = {
        "intent": values_of(settings),
        "origins": {
            name: {**origin.to_json(), "shadowed": [other.to_json() for other in origin.shadowed]}
            for name, origin in settings.origins.items()
        },
        "fingerprint": fingerprint(settings),
        "versions": {"python": sys.version.split()[0], **package_versions()},
        "git": git_state(),
        "command": [redact(word) for word in sys.argv],
        "seeds": {"seed": settings.seed},
    }
    if plan is not None:
        parts["plan"] = plan.to_json()
        parts["effective_fingerprint"] = fingerprint(plan.settings)
    known = facts or (plan.facts if plan else None)
    if known is not None:
        parts["facts"] = known.model_dump(mode="json")
    return parts


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
        told = getattr(error, "signal", None)
        if told is not None:
            ended["signal"] = told.name
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


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read a manifest, given its path or its run directory.

    Raises:
        UserError: it is missing or is no manifest.
    """
    target = _manifest_path(path)
    try:
        manifest = json.loads(target.read_text())
    except OSError as error:
        raise UserError(
            f"cannot read the manifest: {error.strerror}",
            where=str(target),
            expected="a run directory that ptycho-torch wrote",
        ) from None
    except ValueError as error:
        raise UserError(f"the manifest is not JSON: {error}", where=str(target)) from None
    if not isinstance(manifest, dict) or "manifest_version" not in manifest:
        raise UserError("this JSON file is not a manifest", where=str(target))
    return manifest


def settings_from_manifest(path: str | Path, overrides: Mapping[str, Any] | None = None) -> ExecutionSettings:
    """Rebuild the settings that a run was asked for, reading nothing but its manifest.

    `overrides` win over it, and stand in for credentials that the manifest hides.

    Raises:
        UserError: there is no manifest. SettingsError: a credential in it was hidden.
    """
    target = _manifest_path(path)
    intent = read_manifest(target).get("intent")
    if not isinstance(intent, dict):
        raise UserError("the manifest has no settings", where=str(target), expected="a part named intent")
    given = dict(overrides or {})
    intent = {name: value for name, value in intent.items() if name not in given}
    hidden = [name for name, value in intent.items() if isinstance(value, str) and "***" in value]
    if hidden:
        raise SettingsError(
            f"the manifest hides credentials in {', '.join(hidden)}",
            where=str(target),
            fix="give the value again, as an argument",
        )
    settings = ExecutionSettings.from_values(intent, place=str(target))
    return settings.with_overrides(**given) if given else settings


def write_settings_toml(path: str | Path, settings: ExecutionSettings) -> None:
    """Write every value as a TOML settings file that loads again, on rank zero; none is written as a word."""
    import tomli_w

    if not is_rank_zero():
        return

    rows = {name: "none" if value is None else redact(value) for name, value in values_of(settings).items()}
    head = "# The settings of this run. Use them again with: --settings settings.toml\n"
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
