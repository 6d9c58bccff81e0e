"""Whether a directory holds a run that this command continues: the same job, begun there and not complete."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ptycho_exec.errors import Finding, SettingsError, UserError
from ptycho_exec.fields.model import Effect
from ptycho_exec.fields.spec import field_specs, format_value
from ptycho_exec.record import MANIFEST, holds_nothing, plain, read_manifest

FIX = "give it as before; or go on with other values in a new directory: --resume {run} --out NEW"


@dataclass(frozen=True)
class Begun:
    """What an earlier attempt left in a run directory.

    Attributes:
        checkpoint: to go on from; None where it died before the first one.
        manifest: its manifest; None in an empty directory.
    """

    checkpoint: str | None = None
    manifest: Mapping[str, Any] | None = None

    @property
    def completed(self) -> bool:
        return self.manifest is not None and self.manifest.get("status") == "completed"


def look_for(folder: Path, now: Mapping[str, Any]) -> Begun:
    """Return what there is to continue in a run directory.

    Args:
        now: what the manifest of this job would say, as far as it is known before the data are read.

    Raises:
        UserError: no run of a training lies there. SettingsError: another job does.
    """
    if holds_nothing(folder):
        return Begun()
    if not (folder / MANIFEST).is_file():
        raise UserError(
            "the output directory is not empty and holds no run",
            where=str(folder),
            expected="a new directory, an empty one, or the one of the run to continue",
            fix="choose another name, or remove the directory",
        )
    before = read_manifest(folder)
    if before.get("task") != now["task"]:
        raise UserError(
            f"the output directory holds no run of {now['task']}, but one of: {before.get('task')}",
            where=str(folder),
            fix="choose another --out",
        )
    require_same_job(folder, before, now)
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists():
        return Begun(str(last), before)
    earlier = before.get("resumed_from")  # where the first attempt began, if not at the beginning
    return Begun(earlier, before)


def require_same_job(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare what decides the results: settings, science, data.

    Raises:
        SettingsError: with every difference, both values and where they came from.
    """
    findings = list(_changes(folder, before, plain(now)))
    if findings:
        error = SettingsError.from_findings(findings)
        error.spoken_by = 0
        raise error


def _changes(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Finding]:
    for name, one, other, place_before, place_now in _compared(before, now):
        if one != other:
            yield Finding(
                f"{name} is {format_value(other)} now and was {format_value(one)} when this run began",
                where=f"now: {place_now}; before: {place_before}, in {folder}",
                expected="the same job: settings that can change results, science, data",
                fix=FIX.format(run=folder),
                code="another-job",
                field=name,
            )


def _compared(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any, str, str]]:
    """Yield name, value before, value now, and where both came from."""

    def place(manifest: Mapping[str, Any], group: str, name: str) -> str:
        origin = manifest.get(group, {}).get(name, {})
        return str(origin.get("place") or origin.get("kind") or "default")

    numeric = [name for name, spec in field_specs().items() if spec.effect is Effect.NUMERICS]
    for name in numeric:
        one, other = (manifest["intent"].get(name) for manifest in (before, now))
        yield name, one, other, place(before, "origins", name), place(now, "origins", name)
    for group, fields in now["science"].items():
        for name, other in fields.items():
            one = before["science"].get(group, {}).get(name)
            where = [place(manifest, "science_origins", name) for manifest in (before, now)]
            yield name, one, other, where[0], where[1]
    yield "photons", before.get("photons"), now.get("photons"), "flag --photons", "flag --photons"
    for role, scan in now.get("data", {}).items():
        scans = before["data"].get(role), scan
        one, other = (None if found is None else found["sha256"] for found in scans)
        where = ["no file" if found is None else str(found["source"]) for found in scans]
        yield f"SHA-256 of the {role} scan", one, other, where[0], where[1]
    if "plan" in now:
        one, other = (manifest.get("started_weights") for manifest in (before, now))
        where = [str(manifest.get("started_from", "a new network")) for manifest in (before, now)]
        yield "SHA-256 of the weights to start from", one, other, where[0], where[1]
        for name in numeric:
            rows = [manifest["plan"]["effective"].get(name, {}) for manifest in (before, now)]
            where = [str(row.get("reason") or "the settings") for row in rows]
            yield f"{name} in effect", rows[0].get("value"), rows[1].get("value"), where[0], where[1]


def progress_of(folder: Path) -> dict[str, int]:
    """Return the whole epochs and the optimizer steps of a run up to its last checkpoint, if it has one."""
    file = folder / "checkpoints" / "last.ckpt"
    if not file.is_file():
        return {}
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        epochs = found["loops"]["fit_loop"]["epoch_progress"]["total"]["processed"]
        return {"epochs": int(epochs), "steps": int(found["global_step"])}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnpicklingError):
        return {}


def began_with(begun: Begun) -> dict[str, Any]:
    """Return the parts of a manifest that stay those of the first attempt, for a rerun of the whole."""
    names = ("resumed_from", "resumed_sha256")
    return {} if begun.manifest is None else {name: begun.manifest.get(name) for name in names}


def continues_line(folder: Path, begun: Begun) -> str:
    """Return a line for the user."""
    attempt = len((begun.manifest or {}).get("attempts", ())) + 1
    if begun.checkpoint is None:
        return f"{os.path.relpath(folder)}: no checkpoint yet, starts anew (attempt {attempt})"
    at = progress_of(folder)
    after = f" after {at['epochs']} epochs, step {at['steps']}" if at else ""
    return f"{os.path.relpath(folder)}: continues{after} (attempt {attempt})"
