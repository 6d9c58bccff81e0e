"""One run and its directory: what `ptycho-torch train | infer | evaluate` do, callable from Python too.

Everything that can be refused is refused before the directory exists; from then on the manifest says how
far the run came, also when it fails.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback

from ptycho_exec.errors import DataError
from ptycho_exec.files import file_sha256
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import Plan
from ptycho_exec.record import manifest_parts, new_run_dir, read_manifest, write_manifest, write_settings_toml
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.build import trainer_kwargs
from ptycho_torch.data.read import open_scan, read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.evaluation import plots
from ptycho_torch.evaluation.html_report import write_report
from ptycho_torch.evaluation.metrics import Evaluation, evaluate
from ptycho_torch.factory import InferencePayload, TrainingPayload
from ptycho_torch.network.checkpoint import MODEL_NAME, save_model
from ptycho_torch.workflows import components
from ptycho_torch.workflows.advice import Times, advice, limited_threads, shares
from ptycho_torch.workflows.artifacts import (
    content_sha256,
    model_weights_sha256,
    output_hashes,
    read_reconstruction,
    write_json,
    write_reconstruction,
)
from ptycho_torch.workflows.components import Clock

METRICS = "metrics.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A finished run: where it lies, what it wrote, what came of it, seconds of each phase, advice."""

    folder: Path
    written: tuple[Path, ...]
    results: Mapping[str, Any]
    seconds: Mapping[str, float]
    notices: tuple[str, ...] = ()
    advice: str | None = None


def train(
    payload: TrainingPayload,
    *,
    resume: Path | None = None,
    say: Say = lambda _: None,
    scan: ScanData | None = None,
    callbacks: Sequence[Callback] = (),
    about: Mapping[str, Any] | None = None,
    facts: MachineFacts | None = None,
) -> Run:
    """Train on the payload's scan and leave a complete run directory.

    Args:
        payload: from `create_training_payload`.
        resume: an earlier run, or a checkpoint of one, to continue from.
        say: takes a line for the user now and then.
        scan: the training scan, where the caller has read it; None reads the payload's file.
        callbacks: the caller's own, for the Trainer.
        about: more that the model file should say of its making, as plain data.
        facts: of this machine, where they are known already.

    Raises:
        SettingsError, DataError, UserError: before the directory exists, or recorded in its manifest.
    """
    clock = Clock()
    settings, science = payload.settings, payload.science
    validates = payload.test_data_file is not None or science.training.val_fraction > 0
    plan = components.plan_for(settings, validates=validates, facts=facts)
    plan.raise_if_blocked()
    checkpoint = None if resume is None else find_checkpoint(resume)
    with reserved_dir(payload.output_dir) as folder, clock.phase("read"):
        scan = read_scan(payload.train_data_file, science.data) if scan is None else scan
        test = None if payload.test_data_file is None else read_scan(payload.test_data_file, science.data)
    say(_scan_line(scan))
    with _recorded(folder, _training_parts(payload, plan, scan, test, checkpoint)) as notices:
        _write_settings(folder, settings, plan, science.training.epochs)
        results = components._train_with_lightning(
            scan,
            test,
            science,
            settings,
            run_dir=folder,
            resume_from=checkpoint,
            clock=clock,
            facts=plan.facts,
            callbacks=callbacks,
        )
        with clock.phase("write"):
            written = _write_training(folder, results, payload, scan, about or {})
        write_manifest(
            folder,
            status="completed",
            trained=_trained(results),
            applied=results["applied"],
            drift=results["drift"].to_json(),
            **_time_record(clock, results),
            outputs=output_hashes(folder, written),
            content={"weights": model_weights_sha256(folder)},
        )
    return Run(folder, tuple(written), results, clock.seconds, tuple(notices), _advice(clock, results, scan))


def _write_settings(folder: Path, settings: ExecutionSettings, plan: Plan, epochs: int) -> None:
    """Leave the settings, and what the Trainer will get of them, in a run directory."""
    write_settings_toml(folder / "settings.toml", settings)
    snapshot = trainer_kwargs(settings, max_epochs=epochs, run_dir=folder, plan=plan)
    write_json(folder / "trainer_kwargs_snapshot.json", snapshot)


def _training_parts(
    payload: TrainingPayload, plan: Plan, scan: ScanData, test: ScanData | None, checkpoint: Path | None
) -> dict[str, Any]:
    """Return what the manifest of a training says before it begins."""
    return {
        **_parts("train", payload, plan),
        "data": {"train": _data_record(scan), "test": None if test is None else _data_record(test)},
        "resumed_from": None if checkpoint is None else os.path.abspath(checkpoint),
        "resumed_sha256": None if checkpoint is None else file_sha256(checkpoint),
    }


def _parts(task: str, payload: TrainingPayload | InferencePayload, plan: Plan) -> dict[str, Any]:
    """Return what the manifests of both tasks have in common."""
    return {
        **manifest_parts(payload.settings, plan=plan),
        "task": task,
        "science": payload.science.model_dump(mode="json"),
        "overrides_applied": dict(payload.overrides_applied),
    }


def _time_record(clock: Clock, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest's blocks about time: seconds of phases, shares of phases and parts, first step."""
    taken = results.get("times")
    parts, first = ({}, None) if taken is None else (taken.seconds, taken.first_step_at)
    record = {"timings": dict(clock.seconds), "shares": shares(Times(clock.seconds, parts))}
    return record if first is None else {**record, "first_step_at": first}


def _advice(clock: Clock, results: Mapping[str, Any], scan: ScanData) -> str | None:
    taken, settings = results.get("times"), results["plan"].settings
    parts = {} if taken is None else taken.seconds
    source = None if scan.source is None else Path(scan.source)
    times = Times(clock.seconds, parts, limited_threads(settings), source)
    return advice(times, settings, results["plan"].facts)


def _write_training(
    folder: Path,
    results: Mapping[str, Any],
    payload: TrainingPayload,
    scan: ScanData,
    more: Mapping[str, Any],
) -> list[Path]:
    module, history = results["models"]["lightning_module"], results["history"]
    about = {
        "train_data_file": str(payload.train_data_file),
        "sha256": scan.sha256,
        "trained": _trained(results),
        **more,
    }
    curves = {name: values for name, values in history.items() if name in ("train_loss", "val_loss")}
    return [
        save_model(folder / MODEL_NAME, module, results["science"], about),
        plots.save_loss_curve(curves, folder / "loss.png"),
    ]


def _trained(results: Mapping[str, Any]) -> dict[str, Any]:
    trainer, module = results["models"]["trainer"], results["models"]["lightning_module"]
    last = {name: values[-1] for name, values in results["history"].items() if values}
    rate = next(
        (cb.samples_per_second for cb in trainer.callbacks if hasattr(cb, "samples_per_second")), None
    )
    return {
        "epochs": trainer.current_epoch,
        "optimizer_steps": module.optimizer_steps,
        "samples_per_second": rate,
        "last": last,
    }


def find_checkpoint(place: str | Path) -> Path:
    """Return the checkpoint to continue from: the file itself, or the last one of a run directory.

    Raises:
        DataError: there is none.
    """
    given = Path(place)
    file = given / "checkpoints" / "last.ckpt" if given.is_dir() else given
    if not file.is_file():
        raise DataError(
            "there is no checkpoint to continue from",
            where=str(file),
            expected="a run directory whose training wrote checkpoints/last.ckpt, or a checkpoint",
            fix="start anew without --resume",
        )
    return file


def infer(payload: InferencePayload, *, say: Say = lambda _: None) -> Run:
    """Reconstruct the payload's scan with a trained model and leave a complete output directory.

    Raises:
        SettingsError, DataError, UserError: before the directory exists, or recorded in its manifest.
    """
    clock = Clock()
    settings, science = payload.settings, payload.science
    plan = components.plan_for(settings, validates=False)
    plan.raise_if_blocked()
    with reserved_dir(payload.output_dir) as folder, clock.phase("read"):
        scan = read_scan(payload.test_data_file, science.data)
    say(_scan_line(scan))
    model = payload.model_path
    parts = {
        **_parts("infer", payload, plan),
        "data": {"test": _data_record(scan)},
        "model": None if model is None else os.path.abspath(model),
        "model_weights": None if model is None else model_weights_sha256(model),
    }
    with _recorded(folder, parts) as notices:
        write_settings_toml(folder / "settings.toml", settings)
        results = components.run_inference_with_lightning(
            payload.model_path, scan, science, settings, clock=clock, facts=plan.facts
        )
        notices += results["notices"]
        found = results["consistency"]
        if found is not None:
            say(found.line())
        with clock.phase("write"):
            written = write_reconstruction(
                folder, results["object"], results["coverage"], scan, results.get("probe")
            )
        write_manifest(
            folder,
            status="completed",
            applied=results["applied"],
            drift=results["drift"].to_json(),
            patterns=len(scan),
            consistency=None if found is None else asdict(found),
            **_time_record(clock, results),
            outputs=output_hashes(folder, written),
            content=_reconstruction_hashes(results),
        )
        written.append(write_run_report(folder))
    return Run(folder, tuple(written), results, clock.seconds, tuple(notices), _advice(clock, results, scan))


def _reconstruction_hashes(results: Mapping[str, Any]) -> dict[str, str]:
    found = {name: results.get(name) for name in ("object", "coverage", "probe")}
    return {name: content_sha256({name: array}) for name, array in found.items() if array is not None}


def has_truth(scan_file: Path) -> bool:
    """Return whether a scan has an object to compare with, without reading its patterns.

    The same number everywhere, which formats that require an object hold for an unknown one, is none.
    """
    with open_scan(scan_file) as files:
        product = files["positions"]
        name = product.format.truth(product.archive)
        values = np.empty(0) if name is None else product.archive.array(name)
    return bool((values != values.flat[0]).any()) if values.size else False


def score(folder: Path, truth_file: Path) -> tuple[Evaluation, list[Path]]:
    """Compare an output directory's reconstruction with the true object of a scan; see `compare`."""
    results, written = compare([folder], truth_file)
    return results[folder.name], written


def compare(
    folders: Sequence[Path], truth_file: Path, picture: Path | None = None
) -> tuple[dict[str, Evaluation], list[Path]]:
    """Compare the reconstructions of output directories with the true object of a scan.

    Writes into each directory its `metrics.json`, a picture of truth and reconstruction, their ring
    correlation, and a new report; and all reconstructions beside the truth into `picture`, where given.

    Returns:
        the scores by name of the directory (its path where names repeat), and the files written.

    Raises:
        DataError: no reconstruction, no truth, or they do not lie on the same canvas.
    """
    scan = read_scan(truth_file)
    names = [folder.name for folder in folders]
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    made = [read_reconstruction(folder) for folder in folders]
    results = {label: _scored(one, scan, truth_file) for label, one in zip(labels, made, strict=True)}
    written = []
    for folder, result in zip(folders, results.values(), strict=True):
        written += _write_scores(folder, result, truth_file)
    if picture is not None:
        written.append(plots.save_comparison(results, picture))
    return results, written


def _scored(made: Mapping[str, Any], scan: ScanData, truth_file: Path) -> Evaluation:
    if scan.object_guess is None:
        raise DataError(
            "this scan holds no true object",
            where=str(truth_file),
            expected="objectGuess, the object to compare with",
            fix="name a scan with a known object",
        )
    return evaluate(
        made["object"], scan.object_guess, coverage=made["coverage"], pixel_size_m=scan.pixel_size_m
    )


def _write_scores(folder: Path, result: Evaluation, truth_file: Path) -> list[Path]:
    written = [
        write_json(folder / METRICS, result.to_json()),
        plots.save_comparison({"reconstruction": result}, folder / "comparison.png"),
        plots.save_frc(
            {"reconstruction": result.rings}, folder / "frc.png", pixel_size_m=result.pixel_size_m
        ),
    ]
    if (folder / "manifest.json").is_file():
        write_manifest(folder, metrics=result.to_json(), truth=str(truth_file))
        written.append(write_run_report(folder))
    return written


def write_run_report(folder: Path) -> Path:
    """Write `report.html` from what lies in a run directory."""
    manifest = read_manifest(folder)
    captions = {
        "comparison.png": "Truth and reconstruction",
        "amplitude.png": "Amplitude",
        "phase.png": "Phase",
        "loss.png": "Loss",
    }
    effective, origins = manifest["plan"]["effective"], manifest["origins"]
    return write_report(
        folder,
        title=f"ptycho-torch {manifest['task']}: {folder.name}",
        subtitle=str(manifest["data"].get("test", manifest["data"].get("train"))["source"]),
        images={text: folder / name for name, text in captions.items() if (folder / name).is_file()},
        metrics=manifest.get("metrics"),
        settings=[
            {"name": name, "value": row["value"], "origin": origins[name]["place"], "reason": row["reason"]}
            for name, row in effective.items()
        ],
        facts={f"seconds: {phase}": round(value, 2) for phase, value in manifest.get("timings", {}).items()},
        notices=manifest.get("warnings", ()),
    )


@contextmanager
def reserved_dir(path: str | Path) -> Iterator[Path]:
    """Make the run directory first, so that a bad place is told at once; undo it if the body fails."""
    target = Path(path).expanduser().absolute()
    made = [folder for folder in (target, *target.parents) if not folder.exists()]
    folder = new_run_dir(target)
    try:
        yield folder
    except BaseException:
        for empty in made:
            empty.rmdir()
        raise


@contextmanager
def _recorded(folder: Path, parts: Mapping[str, Any]) -> Iterator[list[str]]:
    """Keep the manifest true: running from here on, and how the run ended if it does not complete.

    Warnings that arise meanwhile are kept in the manifest's `warnings` and still shown.
    """
    notices: list[str] = [row["text"] for row in parts["plan"]["notices"]]
    write_manifest(folder, status="running", warnings=notices, process=os.getpid(), **parts)
    show = warnings.showwarning

    def keep(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        notices.append(f"{category.__name__}: {message}")
        show(message, category, *where, **more)

    warnings.showwarning = keep
    try:
        yield notices
    except BaseException as error:
        status = "failed" if isinstance(error, Exception) else "interrupted"
        write_manifest(folder, status=status, error=f"{type(error).__name__}: {error}", warnings=notices)
        raise
    finally:
        warnings.showwarning = show
    write_manifest(folder, warnings=notices)


def _data_record(scan: ScanData) -> dict[str, Any]:
    source = None if scan.source is None else os.path.abspath(scan.source)
    return {"source": str(source), "sha256": scan.sha256, "report": scan.report}


def _scan_line(scan: ScanData) -> str:
    n, (height, width) = scan.n_pixels, scan.canvas_shape
    return f"{scan.source}: {len(scan)} patterns of {n} x {n} ({scan.domain}), canvas {height} x {width}"
