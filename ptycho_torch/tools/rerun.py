"""A run once more, from its manifest alone, and whether the same came out.

Settings, science and places of the files are read from `manifest.json`; no environment variable, `.env` or
settings file takes part. The data and the model must be the ones that the run had, by their hashes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ptycho_exec.errors import DataError, UserError
from ptycho_exec.files import file_sha256
from ptycho_exec.record import read_manifest, settings_from_manifest, write_manifest
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import ScienceConfig
from ptycho_torch.factory import InferencePayload, TrainingPayload
from ptycho_torch.network.checkpoint import find_model
from ptycho_torch.workflows import runs
from ptycho_torch.workflows.artifacts import model_weights_sha256
from ptycho_torch.workflows.runs import Run, Say

SURROUNDINGS = ("versions", "git", "facts")
"""Parts of a manifest that say where a run ran: they may differ, and explain why results do."""


@dataclass(frozen=True)
class Places:
    """Where to look for files that are no longer where the manifest says."""

    data: Path | None = None
    test: Path | None = None
    model: Path | None = None
    resume: Path | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """One thing of a run before and now; `result` decides whether the run was repeated."""

    name: str
    before: Any
    now: Any
    kind: Literal["result", "surroundings"]

    @property
    def same(self) -> bool:
        return bool(self.before == self.now)


def rerun(
    run: Path,
    out: Path | None = None,
    *,
    places: Places | None = None,
    overrides: Mapping[str, Any] | None = None,
    say: Say = lambda _: None,
) -> Run:
    """Repeat a training or inference from its manifest and leave a new run directory.

    Args:
        run: the run directory, or its manifest alone.
        out: the new directory; None takes the run's name with `-rerun` after it.
        places: files that were moved.
        overrides: settings that differ on purpose.
        say: takes a line for the user now and then.

    Raises:
        UserError: no manifest, or one of another task. DataError: data, model or checkpoint are missing, or
            are not those of the run.
    """
    manifest = read_manifest(run)
    settings = settings_from_manifest(run, overrides)
    science = ScienceConfig.model_validate(manifest["science"])
    repeat = {"train": _train, "infer": _infer}.get(str(manifest.get("task")))
    if repeat is None:
        raise UserError("the manifest does not say what was run", where=str(run), expected="train or infer")
    target = _free_folder(run) if out is None else out
    done = repeat(manifest, settings, science, target, places or Places(), say)
    write_manifest(done.folder, rerun_of={"manifest": os.path.abspath(run), "created": manifest["created"]})
    return done


def _train(
    manifest: Mapping[str, Any],
    settings: ExecutionSettings,
    science: ScienceConfig,
    out: Path,
    places: Places,
    say: Say,
) -> Run:
    data = manifest["data"]
    train = same_data(data["train"], places.data, "--data")
    test = None if data["test"] is None else same_data(data["test"], places.test, "--test")
    resume = _same_checkpoint(manifest, places.resume)
    payload = TrainingPayload(train, test, out, science, settings, manifest["overrides_applied"])
    return runs.train(payload, resume=resume, say=say)


def _infer(
    manifest: Mapping[str, Any],
    settings: ExecutionSettings,
    science: ScienceConfig,
    out: Path,
    places: Places,
    say: Say,
) -> Run:
    scan = same_data(manifest["data"]["test"], places.data, "--data")
    model = _same_model(manifest, places.model)
    payload = InferencePayload(model, scan, out, science, settings, manifest["overrides_applied"])
    return runs.infer(payload, say=say)


def _free_folder(run: Path) -> Path:
    given = Path(os.path.abspath(run))
    folder = given if given.is_dir() else given.parent
    numbers = ("-rerun", *(f"-rerun-{number}" for number in range(2, 10_000)))
    names = (folder.with_name(folder.name + ending) for ending in numbers)
    return next(path for path in names if not path.exists())


# --- the same files -------------------------------------------------------------------------------------


def same_data(record: Mapping[str, Any], moved_to: Path | None, flag: str) -> Path:
    """Return where a scan is, if it is still the one that the manifest describes.

    Raises:
        DataError: it is not there, or a file of it has another hash.
    """
    place = Path(record["source"]) if moved_to is None else moved_to
    hashes: Mapping[str, str] = record["report"]["files"]
    for name, wanted in hashes.items():
        file = place / name if place.is_dir() else place if len(hashes) == 1 else place.parent / name
        _require(file, wanted, "the data of this run", flag)
    return place


def _require(file: Path, wanted: str, what: str, flag: str) -> None:
    if not file.is_file():
        raise DataError(
            f"{what} are not where they were",
            where=str(file),
            expected=f"the file with SHA-256 {wanted}",
            fix=f"say where it is now: {flag} FILE",
        )
    found = file_sha256(file)
    if found != wanted:
        raise DataError(
            f"{what} have changed: SHA-256 {found}",
            where=str(file),
            expected=f"SHA-256 {wanted}",
            fix=f"bring the original file back, or say where it is: {flag} FILE",
        )


def _same_checkpoint(manifest: Mapping[str, Any], moved_to: Path | None) -> Path | None:
    place = manifest.get("resumed_from")
    if place is None:
        return None
    file = Path(place) if moved_to is None else runs.find_checkpoint(moved_to)
    _require(file, manifest["resumed_sha256"], "the checkpoint and its contents", "--resume")
    return file


def _same_model(manifest: Mapping[str, Any], moved_to: Path | None) -> Path | None:
    """Compare the weights, not the file: the same training written again has the same weights."""
    place = manifest.get("model")
    if place is None:
        return None
    try:
        file = find_model(Path(place) if moved_to is None else moved_to)
    except DataError:
        raise DataError(
            "the model of this run is not where it was",
            where=str(place if moved_to is None else moved_to),
            expected=f"a model whose weights have SHA-256 {manifest['model_weights']}",
            fix="say where it is now: --model FILE",
        ) from None
    found = model_weights_sha256(file)
    if found != manifest["model_weights"]:
        raise DataError(
            f"the model has changed: its weights have SHA-256 {found}",
            where=str(file),
            expected=f"SHA-256 {manifest['model_weights']}",
            fix="bring the original model back, or say where it is: --model FILE",
        )
    return file


# --- the same results -----------------------------------------------------------------------------------


def verify(run: Path, again: Path) -> tuple[Compared, ...]:
    """Compare two runs: data and results, which must be the same, and what was around them.

    The outcome is also written into the manifest of `again`.

    Raises:
        UserError: one of them did not complete, or its manifest has no hashes of its results.
    """
    before, now = read_manifest(run), read_manifest(again)
    for place, manifest in ((run, before), (again, now)):
        if manifest.get("status") != "completed" or not manifest.get("content"):
            raise UserError(
                f"there are no results to compare: status {manifest.get('status')}",
                where=str(place),
                expected="a run that completed, with the hashes of its results in the manifest",
                fix="rerun without --verify",
            )
    rows = [*_results(before, now), *_surroundings(before, now)]
    told = [{"name": row.name, "before": row.before, "now": row.now, "same": row.same} for row in rows]
    write_manifest(again, verification={"same": repeated(rows), "compared": told})
    return tuple(rows)


def repeated(rows: list[Compared] | tuple[Compared, ...]) -> bool:
    """Tell whether data and results are the same."""
    return all(row.same for row in rows if row.kind == "result")


def _results(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Compared]:
    found = [(f"{role} data", _hash(before, role), _hash(now, role)) for role in before["data"]]
    found.append(("settings that can change results", before["fingerprint"], now["fingerprint"]))
    names = {**before["content"], **now["content"]}
    found += [(name, before["content"].get(name), now["content"].get(name)) for name in names]
    return [Compared(name, one, other, "result") for name, one, other in found]


def _hash(manifest: Mapping[str, Any], role: str) -> Any:
    return (manifest["data"].get(role) or {}).get("sha256")


def _surroundings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Compared]:
    rows = []
    for part in SURROUNDINGS:
        one, other = (manifest.get(part) or {} for manifest in (before, now))
        for name in {**one, **other}:
            rows.append(Compared(f"{part}: {name}", one.get(name), other.get(name), "surroundings"))
    return rows
