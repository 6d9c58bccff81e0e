"""A run once more, from its manifest alone, and whether its results are the same.

The same means bit for bit; on another number of processes, which add up in another order, it means within
`TOLERANCE`. Settings, science and places of the files are read from `manifest.json`; no environment variable,
`.env` or settings file takes part. The data and the model must be the ones that the run had, by their hashes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ptycho_exec.errors import DataError, UserError
from ptycho_exec.fields.model import Effect
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.files import file_sha256
from ptycho_exec.record import read_manifest, settings_from_manifest, write_manifest
from ptycho_torch.config import ScienceConfig
from ptycho_torch.factory import InferencePayload, PretrainingPayload, TrainingPayload
from ptycho_torch.network.checkpoint import find_model, read_model
from ptycho_torch.workflows import runs
from ptycho_torch.workflows.artifacts import model_weights_sha256, read_reconstruction
from ptycho_torch.workflows.runs import Run, Say

TOLERANCE = 1e-5
"""Largest difference of objects or weights on other numbers of processes, relative to the largest value."""
SHARING = ("devices", "num_nodes", "strategy", "batch_size", "global_batch_size", "accum_steps")
"""Settings that only share out the work, as long as an optimizer step has as many samples in all."""
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
    difference: float | None = None
    """Relative to the largest value, where runs of different numbers of processes are compared."""

    @property
    def same(self) -> bool:
        return bool(self.before == self.now) or (self.difference is not None and self.difference <= TOLERANCE)


def rerun(
    run: Path,
    out: Path | None = None,
    *,
    places: Places | None = None,
    overrides: Mapping[str, Any] | None = None,
    say: Say = lambda _: None,
) -> Run[Any]:
    """Repeat a training, pretraining or inference from its manifest and leave a new run directory.

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
    manifest, places = read_manifest(run), places or Places()
    settings = settings_from_manifest(run, overrides)
    science = ScienceConfig.model_validate(manifest["science"])
    task, data = manifest.get("task"), manifest["data"]
    out = new_name(run) if out is None else out
    rest = (out, science, settings, manifest["overrides_applied"])
    repeated_run: Run[Any]
    if task == "train":
        scan = same_data(data["train"], places.data, "--data")
        test = None if data["test"] is None else same_data(data["test"], places.test, "--test")
        resume = _same_checkpoint(manifest, places.resume)
        start = _same_model(manifest, places.model, "started_from", "started_weights")
        payload = TrainingPayload(scan, test, *rest, start_from=start)
        repeated_run = runs.train(payload, resume=resume, say=say)
    elif task == "pretrain":
        file, array = same_data(data["train"], places.data, "--data"), data["train"]["report"]["array"]
        probe = file if array is None else Path(f"{file}:{array}")
        resume = _same_checkpoint(manifest, places.resume)
        low, high = manifest["photons"]
        repeated_run = runs.train(
            PretrainingPayload(probe, None, *rest, photons=(low, high)), resume=resume, say=say
        )
    elif task == "infer":
        scan = same_data(data["test"], places.data, "--data")
        model = _same_model(manifest, places.model, "model", "model_weights")
        repeated_run = runs.infer(InferencePayload(model, scan, *rest), say=say)
    else:
        raise UserError(
            "the manifest does not say what was run", where=str(run), expected="train, pretrain or infer"
        )
    origin = {"manifest": os.path.abspath(run), "created": manifest["created"]}
    write_manifest(repeated_run.folder, rerun_of=origin)
    return repeated_run


def new_name(run: Path) -> Path:
    """Return the run's name with `-rerun` after it, and a number where that is taken."""
    given = Path(os.path.abspath(run))
    folder = given if given.is_dir() else given.parent
    endings = ("-rerun", *(f"-rerun-{number}" for number in range(2, 10_000)))
    paths = (folder.with_name(folder.name + ending) for ending in endings)
    return next(path for path in paths if not path.exists())


# --- the same files -------------------------------------------------------------------------------------


def same_data(record: Mapping[str, Any], moved_to: Path | None, flag: str) -> Path:
    """Return where a scan is, if it is still the one that the manifest describes, with its mask, probe ...

    Raises:
        DataError: it is not there, or a file of it or beside it has another hash.
    """
    place = Path(record["source"]) if moved_to is None else moved_to
    hashes: Mapping[str, str] = record["report"]["files"]
    for name, wanted in hashes.items():
        file = place / name if place.is_dir() else place if len(hashes) == 1 else place.parent / name
        _require(file, wanted, "the data of this run", f"say where it is now: {flag} FILE")
    for option, other in record["report"].get("other_files", {}).items():
        file = Path(other["path"])
        if moved_to is not None and file.parent == Path(record["source"]).parent:  # it goes with the scan
            file = (place if place.is_dir() else place.parent) / file.name
        _require(file, other["sha256"], f"the contents of {option}", "bring the file back here")
    return place


def _require(file: Path, wanted: str, what: str, remedy: str) -> None:
    if not file.is_file():
        raise DataError(
            f"{what} are not where they were",
            where=str(file),
            expected=f"the file with SHA-256 {wanted}",
            fix=remedy,
        )
    found = file_sha256(file)
    if found != wanted:
        raise DataError(
            f"{what} have changed: SHA-256 {found}",
            where=str(file),
            expected=f"SHA-256 {wanted}",
            fix=f"bring the original file back; or {remedy}",
        )


def _same_checkpoint(manifest: Mapping[str, Any], moved_to: Path | None) -> Path | None:
    place = manifest.get("resumed_from")
    if place is None:
        return None
    file = Path(place) if moved_to is None else runs.find_checkpoint(moved_to)
    moved = "say where it is now: --resume FILE"
    _require(file, manifest["resumed_sha256"], "the checkpoint and its contents", moved)
    return file


def _same_model(manifest: Mapping[str, Any], moved_to: Path | None, name: str, weights: str) -> Path | None:
    """Compare the weights, not the file: the same training written again has the same weights.

    name, weights: where the manifest has the place of the model, and the hash of its weights.
    """
    place = manifest.get(name)
    if place is None:
        return None
    try:
        file = find_model(Path(place) if moved_to is None else moved_to)
    except DataError:
        raise DataError(
            "the model of this run is not where it was",
            where=str(place if moved_to is None else moved_to),
            expected=f"a model whose weights have SHA-256 {manifest[weights]}",
            fix="say where it is now: --model FILE",
        ) from None
    found = model_weights_sha256(file)
    if found != manifest[weights]:
        raise DataError(
            f"the model has changed: its weights have SHA-256 {found}",
            where=str(file),
            expected=f"SHA-256 {manifest[weights]}",
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
    rows = _compared(before, now)
    if _processes(before) != _processes(now):
        rows = [_within_tolerance(row, before, now, run, again) for row in rows]
    compared = [{**asdict(row), "same": row.same} for row in rows]
    write_manifest(again, verification={"same": repeated(rows), "compared": compared})
    return tuple(rows)


def _compared(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Compared]:
    """Return data, settings and results of two manifests side by side, and what was around them."""
    pairs = []
    for role in before["data"]:
        old, new = ((manifest["data"].get(role) or {}).get("sha256") for manifest in (before, now))
        pairs.append((f"{role} data", old, new))
    pairs.append(("settings that can change results", before["fingerprint"], now["fingerprint"]))
    names = {**before["content"], **now["content"]}
    pairs += [(name, before["content"].get(name), now["content"].get(name)) for name in names]
    rows = [Compared(*pair, "result") for pair in pairs]
    for part in SURROUNDINGS:
        past, present = (manifest.get(part) or {} for manifest in (before, now))
        for name in {**past, **present}:
            rows.append(Compared(f"{part}: {name}", past.get(name), present.get(name), "surroundings"))
    return rows


def _processes(manifest: Mapping[str, Any]) -> int:
    return int(manifest["plan"].get("totals", {}).get("world_size", 1))


def _within_tolerance(
    row: Compared, before: Mapping[str, Any], now: Mapping[str, Any], run: Path, again: Path
) -> Compared:
    """Compare what another number of processes changes by its value, not by its hash."""
    if row.same or row.kind != "result":
        return row
    if row.name == "settings that can change results":
        return replace(row, difference=0.0) if _share_out_alike(before, now) else row
    if row.name in before["content"]:
        with suppress(DataError):  # of a manifest alone there is nothing but the hashes
            return replace(row, difference=largest_difference(row.name, run, again))
    return row


def _share_out_alike(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether two runs only share out the work otherwise, with as many samples in each step."""
    specs = field_specs()
    own = [name for name in specs if specs[name].effect is Effect.NUMERICS and name not in SHARING]
    values = [[manifest["plan"]["effective"][name]["value"] for name in own] for manifest in (before, now)]
    trains = before["task"] in ("train", "pretrain")
    sizes = [manifest["plan"]["totals"]["samples_per_step"] for manifest in (before, now)]
    return values[0] == values[1] and (not trains or sizes[0] == sizes[1])


def largest_difference(name: str, run: Path, again: Path) -> float:
    """Return by how much a result of two runs differs, relative to its largest value."""
    if name == "weights":
        pairs = [read_model(find_model(folder))["state_dict"] for folder in (run, again)]
        arrays = [
            np.concatenate([np.ravel(value.detach().cpu().numpy()) for _, value in sorted(state.items())])
            for state in pairs
        ]
    else:
        arrays = [read_reconstruction(folder)[name] for folder in (run, again)]
    if arrays[0].shape != arrays[1].shape:
        return float("inf")
    return float(np.abs(arrays[0] - arrays[1]).max() / max(np.abs(arrays[0]).max(), 1e-30))


def repeated(rows: Sequence[Compared]) -> bool:
    """Tell whether data and results are the same."""
    return all(row.same for row in rows if row.kind == "result")
