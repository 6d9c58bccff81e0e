"""One run and its directory: what `ptycho-torch train | infer | evaluate` do, callable from Python too.

What can be refused is refused before anything is left in the directory, which is then removed again; from
then on the manifest says how far the run came, also when it fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError, UserError, redact
from ptycho_exec.files import file_sha256
from ptycho_exec.interrupts import RESUME, Interrupted
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.machine.ranks import is_rank_zero
from ptycho_exec.progress import counted
from ptycho_exec.record import (
    locked,
    manifest_parts,
    recorded,
    reserved_dir,
    undone_if_interrupted,
    write_manifest,
    write_settings_toml,
)
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.build import trainer_kwargs
from ptycho_exec.trainer.handover import handed_over
from ptycho_torch.config import DataConfig
from ptycho_torch.data.judge import lines
from ptycho_torch.data.read import open_scan, read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.evaluation import plots
from ptycho_torch.evaluation.metrics import Evaluation, evaluate
from ptycho_torch.factory import InferencePayload, PretrainingPayload, TrainingPayload
from ptycho_torch.network.checkpoint import MODEL_NAME, read_checkpoint, save_model
from ptycho_torch.reconstruction.yardsticks import photons_at_peak
from ptycho_torch.settings import ScienceSettings
from ptycho_torch.workflows import components
from ptycho_torch.workflows.advice import Times, advice, limited_threads, shares
from ptycho_torch.workflows.artifacts import (
    content_sha256,
    model_weights_sha256,
    output_hashes,
    read_reconstruction,
    write_arrays,
    write_json,
    write_reconstruction,
    write_report_data,
)
from ptycho_torch.workflows.clock import Clock
from ptycho_torch.workflows.continuing import (
    Begun,
    began_with,
    continues_line,
    look_for,
    progress_of,
    require_same_job,
)
from ptycho_torch.workflows.preparing import AUTO
from ptycho_torch.workflows.pretraining import plan_pretraining
from ptycho_torch.workflows.reconstructing import plan_reconstruction
from ptycho_torch.workflows.reports import COMPARISON, labels_of, write_run_report
from ptycho_torch.workflows.results import InferenceResult, TrainingResult

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

METRICS = "metrics.json"
WARNING = "warning: "
"""What a line begins with that says what is odd about the data."""
Say = Callable[[str], None]
ResultT = TypeVar("ResultT", TrainingResult, InferenceResult)


@dataclass(frozen=True)
class Run(Generic[ResultT]):
    """A finished run: its directory, what it wrote, its results, the seconds of each phase, advice.

    Attributes:
        evaluation: of an inference against the true object, where that was asked for and is known.
    """

    folder: Path
    written: tuple[Path, ...]
    results: ResultT
    clock: Clock
    notices: tuple[str, ...] = ()
    advice: str | None = None
    evaluation: Evaluation | None = None


def train(
    payload: TrainingPayload,
    *,
    resume: Path | None = None,
    say: Say = lambda _: None,
    training: components.Training | None = None,
    callbacks: Sequence[Callback] = (),
    about: Mapping[str, Any] | None = None,
    odd_lines: Callable[..., list[str]] = lines,
    again: str = RESUME,
    clock: Clock | None = None,
) -> Run[TrainingResult]:
    """Train on the payload's scan and leave a complete run directory.

    Args:
        payload: from `create_training_payload`.
        resume: an earlier run, or a checkpoint of one, to continue from.
        say: takes a line for the user now and then.
        training: the payload's training, where the caller has read and planned it.
        callbacks: the caller's own, for the Trainer.
        about: more that the model file should hold about its origin, as plain data.
        odd_lines: what is odd about scans, in lines for this user.
        again: how this user goes on after a stop, a sentence.
        clock: of the command, where the run is all of it.

    Raises:
        SettingsError, DataError, UserError: before the directory exists, or recorded in its manifest.
    """
    checkpoint = None if resume is None else os.path.abspath(find_checkpoint(resume))
    with ExitStack() as held:
        with reserved_dir(payload.output_dir) as folder, ExitStack() as planning:
            planning.enter_context(locked(folder))
            training = training or _planned(payload, say, clock)
            training.plan.raise_if_blocked()
            held.push(planning.pop_all())
        how = Begun(checkpoint)
        return _train(
            folder,
            payload,
            training,
            how,
            False,
            say,
            callbacks=callbacks,
            about=about,
            odd_lines=odd_lines,
            again=again,
        )


def continue_training(
    payload: TrainingPayload, *, say: Say = lambda _: None, clock: Clock | None = None
) -> Run[TrainingResult] | None:
    """Train as `train` does; in a directory where the same training began and did not end, go on with it.

    Of several processes the first one looks, and the others do as it does.

    Returns:
        the finished run, or None where the directory holds it complete already.

    Raises:
        UserError: another process runs there, or what lies there is no training.
        SettingsError: another job lies there; with every difference.
    """
    from ptycho_exec.trainer.together import decided_by_first

    now = _job(payload)
    with ExitStack() as held:
        with reserved_dir(payload.output_dir, begun=True) as folder, ExitStack() as planning:

            def look() -> dict[str, Any]:
                planning.enter_context(locked(folder))
                return asdict(look_for(folder, now))

            handed = handed_over()
            if handed is not None:
                begun = Begun(None if handed.checkpoint is None else str(handed.checkpoint))
            else:
                begun = Begun(**decided_by_first(look, payload.settings.start_timeout))
            if begun.completed:
                say(f"{folder} is complete already; nothing is done")
                return None
            training = _planned(payload, say, clock)
            training.plan.raise_if_blocked()
            if begun.manifest is not None:
                require_same_job(folder, begun.manifest, {**now, **_known(training)})
                say(continues_line(folder, begun))
            held.push(planning.pop_all())
        return _train(folder, payload, training, begun, True, say)


def _planned(payload: TrainingPayload, say: Say, clock: Clock | None) -> components.Training:
    if isinstance(payload, PretrainingPayload):
        return plan_pretraining(payload, say=say, clock=clock)
    scans = payload.train_data_file, payload.test_data_file
    return components.plan_training(
        *scans, payload.science, payload.settings, start_from=payload.start_from, say=say, clock=clock
    )


def _train(
    folder: Path,
    payload: TrainingPayload,
    training: components.Training,
    begun: Begun,
    requeue: bool,
    say: Say,
    *,
    callbacks: Sequence[Callback] = (),
    about: Mapping[str, Any] | None = None,
    odd_lines: Callable[..., list[str]] = lines,
    again: str = RESUME,
) -> Run[TrainingResult]:
    """Run what was planned, and record it."""
    from ptycho_exec.trainer.stop import leaving_in_order

    plan, scan, clock, checkpoint = training.plan, training.container, training.clock, begun.checkpoint
    say(_beam_line(training) if training.for_a_beam else _scan_line(scan))
    scans = () if training.for_a_beam else (scan, training.test_container)
    odd = _say_what_is_odd(say, odd_lines(*scans))
    say(f"effective batch: {plan.totals}")
    parts = {
        **manifest_parts(payload.settings, plan=plan),
        **_asked(payload),
        **_known(training),
        "resumed_from": checkpoint,
        "resumed_sha256": None if checkpoint is None else file_sha256(checkpoint),
        **began_with(begun),
    }
    with (
        leaving_in_order(requeue=requeue, again=again),
        recorded(folder, parts, reached=lambda: progress_of(folder)) as notices,
    ):
        notices += odd
        write_settings_toml(folder / "settings.toml", payload.settings)
        epochs = payload.science.training.epochs
        snapshot = trainer_kwargs(payload.settings, max_epochs=epochs, run_dir=folder, plan=plan)
        if is_rank_zero():
            write_json(folder / "trainer_kwargs_snapshot.json", redact(snapshot))
        result = components.run_training(
            training, run_dir=folder, resume_from=checkpoint, callbacks=callbacks
        )
        if not is_rank_zero():
            return Run(folder, (), result, clock)
        with clock.phase("write"):
            source = {"train_data_file": str(payload.train_data_file), "sha256": scan.sha256}
            written = _write_training(folder, result, {**source, **_started(training), **(about or {})})
        weights = model_weights_sha256(folder)
        done = {"trained": result.summary(), "history": result.history, "content": {"weights": weights}}
        _complete(folder, result, clock, written, **done)
        with clock.phase("report"):
            written.append(write_run_report(folder))
    return _run(folder, written, result, clock, notices, scan, said=odd)


def _write_training(folder: Path, result: TrainingResult, about: Mapping[str, Any]) -> list[Path]:
    """Write the model file, with what is known about its origin, and what the page shows."""
    model = folder / MODEL_NAME
    save_model(model, result.module, result.science, {**about, "trained": result.summary()})
    probe = getattr(result.module, "probe", None)
    shown = {} if probe is None else {"probe": probe.detach().cpu().numpy()}
    return [
        model,
        plots.save_loss_curve(result.curves(), folder / "loss.png"),
        write_report_data(folder, result.train_container, **shown),
    ]


def _job(payload: TrainingPayload) -> dict[str, Any]:
    """Return what a manifest says of a training before its data are read."""
    return {**manifest_parts(payload.settings), **_asked(payload)}


def _known(training: components.Training) -> dict[str, Any]:
    """Return what a manifest says of a training once it is planned."""
    scans = {"train": training.container, "test": training.test_container}
    return {"plan": training.plan.to_json(), "data": _data(**scans), **_started(training)}


def _started(training: components.Training) -> dict[str, str]:
    """Return where the weights came from that a training began with, if they were not new."""
    return {} if training.start is None else training.start.record()


def _asked(payload: TrainingPayload | InferencePayload) -> dict[str, Any]:
    """Return what the manifests of all tasks say of what was asked, beside the settings."""
    return {
        "task": payload.task,
        "science": payload.science.model_dump(mode="json"),
        "science_origins": {
            name: {**origin.to_json(), "shadowed": [other.to_json() for other in origin.shadowed]}
            for name, origin in payload.science.origins.items()
        },
        "overrides_applied": dict(payload.overrides_applied),
        **({"photons": list(payload.photons)} if isinstance(payload, PretrainingPayload) else {}),
    }


def _data(**scans: ScanData | None) -> dict[str, Any]:
    """Return what a manifest says of the scans, by their role."""
    return {
        role: None
        if scan is None
        else {
            "source": str(None if scan.source is None else os.path.abspath(scan.source)),
            "sha256": scan.sha256,
            "report": scan.report,
        }
        for role, scan in scans.items()
    }


def _complete(
    folder: Path, result: TrainingResult | InferenceResult, clock: Clock, written: list[Path], **parts: Any
) -> None:
    """Write into the manifest that the run is complete, what took effect, where the time went, and hashes."""
    times = result.times
    record = _times(clock, result)
    if times is not None and times.first_step_at is not None:
        record["first_step_at"] = times.first_step_at
    write_manifest(
        folder,
        status="completed",
        applied=result.applied,
        drift=result.drift.to_json(),
        outputs=output_hashes(folder, written),
        **record,
        **parts,
    )


def _times(clock: Clock, result: TrainingResult | InferenceResult) -> dict[str, Any]:
    """Return what the manifest says of where the time went."""
    inner = result.times.seconds if result.times else {}
    return {"timings": dict(clock.seconds), "shares": shares(Times(clock.seconds, inner))}


def record_times(run: Run[Any], last: str) -> None:
    """Write where all of a finished run's time went into its manifest; what passed of late is `last`'s."""
    run.clock.mark(last)
    write_manifest(run.folder, **_times(run.clock, run.results))


def _run(
    folder: Path,
    written: list[Path],
    result: ResultT,
    clock: Clock,
    notices: list[str],
    scan: ScanData,
    *,
    said: Sequence[str],
) -> Run[ResultT]:
    """Return the finished run; what was `said` before the work is in the manifest, and not said again."""
    settings, parts = result.plan.settings, result.times.seconds if result.times else {}
    source = None if scan.source is None else Path(scan.source)
    hint = advice(Times(clock.seconds, parts, limited_threads(settings), source), settings, result.plan.facts)
    news = tuple(notice for notice in notices if notice not in said)
    return Run(folder, tuple(written), result, clock, news, hint)


def find_checkpoint(place: str | Path) -> Path:
    """Return the checkpoint to continue from: the file itself, or the last one of a run directory.

    Raises:
        DataError: there is none, or it is damaged, or holds more than tensors and plain data.
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
    read_checkpoint(file)
    return file


def infer(
    payload: InferencePayload,
    *,
    say: Say = lambda _: None,
    inference: components.Inference | Callable[[], components.Inference] | None = None,
    clock: Clock | None = None,
    scores: bool = False,
) -> Run[InferenceResult]:
    """Reconstruct the payload's scan with a trained model and leave a complete output directory.

    Args:
        payload: from `create_inference_payload`.
        say: takes a line for the user now and then.
        inference: the payload's inference, where the caller has read and planned it, or what does so as soon
            as the directory is there.
        clock: of the command, where the run is all of it.
        scores: compare with the scan's true object, where it has one.

    Raises:
        SettingsError, DataError, UserError: before the directory exists, or recorded in its manifest.
    """
    with undone_if_interrupted(payload.output_dir):
        return _infer(payload, say, inference, clock, scores)


def infer_each(
    payloads: Sequence[InferencePayload], *, say: Say = lambda _: None, clock: Clock | None = None
) -> Iterator[tuple[InferencePayload, Run[InferenceResult] | UserError]]:
    """Reconstruct scans one after the other with one network, which is loaded once, and score; see `infer`.

    Args:
        payloads: from `create_inference_payload`, all of one model.
        say: takes a line for the user now and then.
        clock: of the command; it takes the seconds of the first scan, each further one has its own.

    Yields:
        each payload with its finished run, or, where there are several, with the error that it ended with.
    """
    facts: MachineFacts | None = None
    model: Any = payloads[0].model_path
    for number, payload in enumerate(payloads):
        own = clock if clock is not None and number == 0 else Clock()

        def planned(payload: InferencePayload = payload, own: Clock = own) -> components.Inference:
            nonlocal facts, model
            scan, asked, settings = payload.test_data_file, payload.science, payload.settings
            planned = components.plan_inference(model, scan, asked, settings, say=say, clock=own, facts=facts)
            facts = planned.plan.facts
            if planned.module is not None:
                model = {"models": {"lightning_module": planned.module}, "science": planned.science}
            return planned

        try:
            yield payload, infer(payload, say=say, inference=planned, scores=True)
        except UserError as error:
            if len(payloads) == 1:
                raise
            yield payload, error
        except Interrupted as stop:
            if number:
                done = f"of {len(payloads)} scans the first {number} were worked on"
                stop.kept = f"{done}, their results are in {payload.output_dir.parent}"
            raise


def _infer(
    payload: InferencePayload,
    say: Say,
    inference: components.Inference | Callable[[], components.Inference] | None,
    clock: Clock | None,
    scores: bool,
) -> Run[InferenceResult]:
    model = payload.model_path
    with reserved_dir(payload.output_dir) as folder:
        if inference is None:
            scan_file = payload.test_data_file
            inference = components.plan_inference(
                model, scan_file, payload.science, payload.settings, say=say, clock=clock
            )
        elif callable(inference):
            inference = inference()
        inference.plan.raise_if_blocked()
    scan, clock, payload = inference.scan, inference.clock, replace(payload, science=inference.science)
    say(_scan_line(scan))
    odd = _say_what_is_odd(say, lines(scan))
    parts = {
        **manifest_parts(payload.settings, plan=inference.plan),
        **_asked(payload),
        "data": _data(test=scan),
        "model": None if model is None else os.path.abspath(model),
        "model_weights": None if model is None else model_weights_sha256(model),
    }
    with recorded(folder, parts) as notices:
        notices += odd
        write_settings_toml(folder / "settings.toml", payload.settings)
        result = components.run_inference(inference)
        if not is_rank_zero():
            return Run(folder, (), result, clock)
        notices += result.notices
        if not result.verdict.warns:  # what warns is among the notices
            say(result.verdict.line())
        with clock.phase("score"):
            truth = _truth(payload.test_data_file, scan, inference.science.data) if scores else None
        written, evaluation = _write_inference(folder, scan, result, clock, notices, truth, say)
    finished = _run(folder, written, result, clock, notices, scan, said=odd)
    return replace(finished, evaluation=evaluation)


def _truth(scan_file: Path, scan: ScanData, data: DataConfig) -> NDArray[np.complex64] | None:
    """Return the true object of a scan on the canvas that its file gives; None where it is not known."""
    own = data.model_copy(update={"canvas": "auto"})
    if not has_truth(scan_file, own):
        return None
    as_in_file = data.canvas == "auto" and data.orient != AUTO
    return scan.object_guess if as_in_file else read_scan(scan_file, own).object_guess


def _write_inference(
    folder: Path,
    scan: ScanData,
    result: InferenceResult,
    clock: Clock,
    notices: list[str],
    truth: NDArray[np.complex64] | None,
    say: Say,
) -> tuple[list[Path], Evaluation | None]:
    """Write what was reconstructed, its score where there is a truth, the manifest and the report."""
    refined = result.refinement
    with clock.phase("write"):
        used = scan if refined is None or refined.positions_px is None else result.scan
        written = write_reconstruction(
            folder, result.object, result.coverage, used, result.probe, refined, result.network_object
        )
        written.append(write_report_data(folder, used, **_shown_of(result, used)))
    evaluation, scored = None, {}
    if truth is not None:
        with clock.phase("score"):
            try:
                evaluation = evaluate(
                    result.object, truth, coverage=result.coverage, pixel_size_m=scan.pixel_size_m
                )
            except DataError as error:  # the reconstruction is there; only its score is not
                what = error.findings[0].what
                say(f"note: it is not scored against the object in {scan.source}: {what}")
            else:
                written += _write_score(folder, evaluation, truth)
                scored = {"metrics": evaluation.to_json(), "truth": str(scan.source)}
    arrays = {name: result[name] for name in ("object", "coverage", "probe") if result[name] is not None}
    _complete(
        folder,
        result,
        clock,
        written,
        warnings=notices,
        patterns=len(scan),
        refinement=None if refined is None else refined.record(),
        verdict={"line": result.verdict.line(), **result.verdict.to_json()},
        content={name: content_sha256({name: array}) for name, array in arrays.items()},
        **scored,
    )
    with clock.phase("report"):
        return [*written, write_run_report(folder)], evaluation


def _shown_of(result: InferenceResult, scan: ScanData) -> dict[str, NDArray[Any]]:
    """Return what the page shows besides the result: single patterns, and photons at the probe's peak."""
    fits, probe = result.verdict.fits, scan.probe if result.probe is None else result.probe
    shown = {} if fits is None else fits.arrays()
    asked = result.science.inference
    by_probe = asked.patch_weighting == "probe" and asked.window == "none"
    if result.refinement is None and (not by_probe or result.plan.settings.middle_trim):
        return shown  # the coverage is not the light that fell on a pixel
    photons = None if probe is None else photons_at_peak(scan, probe)
    return shown if photons is None else {**shown, "photons_at_peak": np.array(photons)}


def _write_score(folder: Path, evaluation: Evaluation, truth: NDArray[np.complex64]) -> list[Path]:
    """Write the scores of a reconstruction, an image beside the truth, and their ring correlation."""
    rings, pixel_size_m = evaluation.rings, evaluation.pixel_size_m
    return [
        write_json(folder / METRICS, evaluation.to_json()),
        plots.save_comparison({"reconstruction": evaluation}, folder / "comparison.png"),
        plots.save_frc({"reconstruction": rings}, folder / "frc.png", pixel_size_m=pixel_size_m),
        write_arrays(folder / COMPARISON, {"truth": truth.astype(np.complex64), **rings.arrays()}),
    ]


def reconstruct(
    scan_file: Path,
    out: Path,
    settings: ExecutionSettings,
    asked: ScienceSettings,
    *,
    say: Say = lambda _: None,
    clock: Clock | None = None,
) -> Run[InferenceResult]:
    """Refine the object of a scan without a network, with what nobody set decided from the data.

    Args:
        scan_file: the scan.
        out: the directory to leave; its manifest is that of an inference, which `rerun` repeats.
        settings: how to run.
        asked: what somebody set; see `plan_reconstruction` for the rest.
        say: takes a line per decision, and others now and then.
        clock: of the command, where the run is all of it.

    Raises:
        SettingsError, DataError, UserError: before the directory exists, or recorded in its manifest.
    """
    payload = InferencePayload(None, scan_file, out, asked.config, settings)

    def planned() -> components.Inference:
        return plan_reconstruction(scan_file, asked, settings, say=say, clock=clock)

    return infer(payload, say=say, inference=planned, scores=True)


def has_truth(scan_file: Path, data: DataConfig | None = None) -> bool:
    """Return whether a scan has an object to compare with, without reading its patterns.

    The same number everywhere, which formats that require an object hold for an unknown one, is none.
    """
    with open_scan(scan_file, data) as files:
        product = files["positions"]
        name = product.format.truth(product.archive)
        values = np.empty(0) if name is None else product.archive.array(name)
    return bool((values != values.flat[0]).any()) if values.size else False


def compare(
    folders: Sequence[Path],
    truth_file: Path,
    picture: Path | None = None,
    *,
    data: DataConfig | None = None,
) -> tuple[dict[str, Evaluation], list[Path]]:
    """Compare the reconstructions of output directories with the true object of a scan.

    Writes into each directory its `metrics.json`, an image of truth and reconstruction, their ring
    correlation, and a new report; and all reconstructions beside the truth into `picture`, where given.

    Returns:
        the scores by name of the directory (its path where names repeat), and the files written.

    Raises:
        DataError: no reconstruction, no truth, or they do not lie on the same canvas.
    """
    scan = read_scan(truth_file, data)
    if scan.object_guess is None:
        raise DataError(
            "this scan holds no true object",
            where=str(truth_file),
            expected="objectGuess, the object to compare with",
            fix="name a scan with a known object",
        )
    results, written = {}, []
    found = [read_reconstruction(folder) for folder in folders]
    labeled = zip(labels_of(folders), found, strict=True)
    for label, arrays in counted(labeled, "comparing with the truth", len(folders)):
        results[label] = evaluate(
            arrays["object"],
            scan.object_guess,
            coverage=arrays["coverage"],
            pixel_size_m=scan.pixel_size_m,
        )
    for folder, result in zip(folders, results.values(), strict=True):
        written += _write_score(folder, result, scan.object_guess)
        if (folder / "manifest.json").is_file():
            write_manifest(folder, metrics=result.to_json(), truth=str(truth_file))
            written.append(write_run_report(folder))
    if picture is not None:
        written.append(plots.save_comparison(results, picture))
    return results, written


def _say_what_is_odd(say: Say, odd: list[str]) -> list[str]:
    for text in odd:
        say(f"{WARNING}{text}")
    return odd


def _beam_line(training: components.Training) -> str:
    scan, samples = training.container, training.samples
    low, high = scan.report["photons"]
    n, per_epoch = samples.n_pixels, len(samples)
    return (
        f"{scan.source}: a beam of {n} x {n} pixels; {per_epoch} simulated patterns of {low:g} to {high:g} "
        "photons in an epoch, none of them twice"
    )


def _scan_line(scan: ScanData) -> str:
    n, (height, width) = scan.n_pixels, scan.canvas_shape
    return f"{scan.source}: {len(scan)} patterns of {n} x {n} ({scan.domain}), canvas {height} x {width}"
