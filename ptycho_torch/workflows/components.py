"""The order of events. Train: configs, data, plan, network, Trainer. Infer: configs, data, plan, stitch.

`plan_training` and `plan_inference` resolve settings and science, read the data, and plan with what is known
then, each once; all that can be refused is refused there. `run_training` and `run_inference` do what was
planned. `train` and `reconstruct` are both steps in one call.

Nothing global is mutated beyond the run; what took effect is in the `applied` block of every result. Missing
data, a failed stitch or a network that did not learn are errors, never a result that was made up.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ptycho_exec.errors import DataError
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.machine.ranks import is_rank_zero
from ptycho_exec.plan import ModuleTraits, Plan, announce, resolve_plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.alone import needs_trainer
from ptycho_exec.trainer.build import (
    DriftReport,
    build_trainer,
    inference_loader_kwargs,
    process_flags,
    requested_and_effective,
    seed_run,
    train_loader_kwargs,
    unknown_to_lightning,
)
from ptycho_exec.trainer.handover import handed_over
from ptycho_exec.trainer.loggers import close_logger
from ptycho_torch.config import InferenceConfig, ScienceConfig
from ptycho_torch.data.containers import dataset_of, optics_of, scan_of, selected
from ptycho_torch.data.dataset import Batch, GlobalBatches, PtychoDataset, collate
from ptycho_torch.data.grouping import inference_groups
from ptycho_torch.data.judge import announce_scans
from ptycho_torch.data.other_files import from_here
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.factory import (
    INFERENCE_DEFAULTS,
    TRAINING_DEFAULTS,
    execution_settings,
    inference_science,
    science_of,
    split_overrides,
    started_science,
)
from ptycho_torch.network.predictor import Predictor, estimate_intensity_scale, load_module, measured_as
from ptycho_torch.quick_start import import_lightning
from ptycho_torch.reconstruction.refine import HELD_OUT_FROM, RefineOptions, RefineResult, refine_object
from ptycho_torch.reconstruction.stitch import StitchResult
from ptycho_torch.reconstruction.verdict import Verdict, judge_object
from ptycho_torch.reconstruction.yardsticks import spread
from ptycho_torch.settings import changed, flat
from ptycho_torch.workflows.clock import Clock, Parts
from ptycho_torch.workflows.dose import fitted_to_dose, tell_noise
from ptycho_torch.workflows.predicting import predict_all
from ptycho_torch.workflows.preparing import AUTO, Say, decision_on, prepared
from ptycho_torch.workflows.results import InferenceResult, TrainingResult
from ptycho_torch.workflows.starting import Start, begin_with, start_of
from ptycho_torch.workflows.stitching import ObjectWriter

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

REFINES_ALONE = "only the first process refined; the others ended with the object before it"
SCALE_SAMPLES = 256
"""At most so many samples, spread over the scan, give the photon scale of a new network."""
SCALE_VALUES = 2**22
"""Fewer where their pixels are more than this, but never less than an eighth."""
FLAT_SAMPLES = 32
"""At most so many give the loss of a flat object, where a training begins with a trained network."""
HOLDS_OUT = "a refinement holds some out, try --refine 5"
HELD_OUT, MOST_HELD_OUT, ENOUGH_HELD_OUT = 1 / 32, 1 / 16, 24
"""Part that is held out, and the most, so that there are enough of them."""


def _configs(
    config: Any, execution_config: Any, overrides: Mapping[str, Any] | None, defaults: Mapping[str, Any]
) -> tuple[ScienceConfig, ExecutionSettings]:
    """Return complete configs; those that are complete already are returned as they are."""
    science, carried = science_of(config)
    science, execution = split_overrides(overrides or {}, science)
    return from_here(science), execution_settings(execution_config, execution, {**defaults, **carried})


def _applied(overrides: Mapping[str, Any], plan: Plan, drift: DriftReport) -> dict[str, Any]:
    """Return what took effect by name, with `read_back`: what Trainer and loaders have, where it is known."""
    effective = {name: row.value for name, row in plan.effective.items()}
    read_back = {row.name: row.effective for row in drift.rows if row.verdict != "unknown"}
    return {**overrides, **effective, "read_back": read_back}


# --- train ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """A training that can begin: everything is resolved, read, grouped and planned; nothing runs yet."""

    container: Any
    test_container: Any
    samples: PtychoDataset
    test_samples: PtychoDataset | None
    science: ScienceConfig
    plan: Plan
    overrides: Mapping[str, Any]
    clock: Clock
    start: Start | None = None
    for_a_beam: bool = False
    """Whether the network is for scans that are measured later, each with a photon scale of its own."""

    def loaders(self) -> dict[str, DataLoader[Batch]]:
        """Return the loaders, `train` and, with validation samples, `validation`."""
        kwargs, seed = train_loader_kwargs(self.plan.requested, self.plan), self.plan.requested.seed

        def loader(samples: PtychoDataset, shuffle: bool) -> DataLoader[Batch]:
            shared = shares_work(self.plan)
            order = samples.order(kwargs["batch_size"], shuffle=shuffle, seed=seed, shared=shared)
            return DataLoader(samples, sampler=order, collate_fn=collate, **kwargs)

        loaders = {"train": loader(self.samples, shuffle=True)}
        if self.test_samples is not None:
            loaders["validation"] = loader(self.test_samples, shuffle=False)
        return loaders


def shares_work(plan: Plan) -> bool:
    """Return whether the processes of a run share its samples; on one device each has them all for itself."""
    return plan.settings.strategy != "auto"


def plan_training(
    train_container: Any,
    test_container: Any = None,
    config: Any = None,
    execution_config: Any = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    start_from: Any = None,
    clock: Clock | None = None,
    facts: MachineFacts | None = None,
    say: Say = lambda _: None,
) -> Training:
    """Resolve, read and plan a training; see `train` for the arguments and the errors.

    `say` takes a line where the preparation of a scan takes long, or decides something.
    """
    clock = clock or Clock()
    start, handed = start_of(start_from), handed_over()
    if handed is not None:
        science, settings = handed.more, handed.plan.requested
    else:
        science, settings = _configs(config, execution_config, overrides, TRAINING_DEFAULTS)
        if start is not None:
            science = started_science(science, start.science, start.place)
    data = science.data
    with clock.phase("read"):
        train, test = (
            read_scan(given, data) if isinstance(given, (str, Path)) else given
            for given in (train_container, test_container)
        )
    with clock.phase("prepare"):
        train = prepared(train, data, seed=settings.seed, say=say)
        if data.orient == AUTO and isinstance(train, ScanData):
            found = decision_on(
                train, "orient"
            )  # what the network learned with holds for the scans it will see
            science = changed(science, "data", {"orient": found.value}, found.evidence)
            data = science.data
        science = fitted_to_dose(science, train, say)
        test = prepared(test, data, probe=False, seed=settings.seed, say=say)
        if isinstance(train, ScanData):
            optics_of(train)  # refuses a scan without a probe
        samples = dataset_of(train, data, settings.seed)
        if start is not None:
            start.require_side(samples.n_pixels)
        held_back = round(science.training.val_fraction * len(samples)) if test is None else 0
        test_samples = None if test is None else dataset_of(test, data, settings.seed)
        if held_back:
            order = np.random.default_rng([settings.seed, 1]).permutation(len(samples))
            test_samples = samples.part(np.sort(order[:held_back]))
            samples = samples.part(np.sort(order[held_back:]))
    validates = test_samples is not None
    traits = ModuleTraits(
        logged_metrics=("train_loss", "val_loss") if validates else ("train_loss",),
        has_validation=validates,
        train_samples=len(samples),
    )
    with clock.phase("plan"):
        plan = handed.plan if handed else resolve_plan(settings, facts or MachineFacts.probe(), traits)
    return Training(train, test, samples, test_samples, science, plan, overrides or {}, clock, start)


def run_training(
    training: Training,
    *,
    run_dir: str | Path | None = None,
    resume_from: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    """Build the network and the Trainer, read the Trainer back, and fit."""
    from ptycho_exec.trainer.stop import stoppable
    from ptycho_exec.trainer.together import on_all_processes
    from ptycho_torch.workflows.callbacks import History
    from ptycho_torch.workflows.images import image_callbacks
    from ptycho_torch.workflows.times import PartTimes

    plan, science, clock = training.plan, training.science, training.clock
    history = History()
    images = image_callbacks(training.container, science.data.gridsize, plan)
    with process_flags(plan.settings):
        seed_run(plan.settings)
        with clock.phase("prepare"):
            loaders = training.loaders()
            module = build_module(training.container, training.samples, science, plan.settings)
            if training.start is not None:
                begin_with(module, training.start, spread_batch(training.samples, FLAT_SAMPLES))
        times = PartTimes()
        trainer = build_trainer(
            plan.requested,
            max_epochs=science.training.epochs,
            run_dir=run_dir,
            plan=plan,
            callbacks=(history, *images, *callbacks),
            profiler=times,
            identity=_identity(training, run_dir, resume_from),
            announce=False,
        )
        announce(unknown_to_lightning(plan))
        drift = requested_and_effective(
            trainer, plan.requested, plan, loaders=loaders, writes=run_dir is not None, profiler=times
        )
        with clock.phase("fit"), on_all_processes(trainer, plan, science, resume_from), stoppable(trainer):
            trainer.fit(
                module,
                train_dataloaders=loaders["train"],
                val_dataloaders=loaders.get("validation"),
                ckpt_path=None if resume_from is None else str(resume_from),
            )
        close_logger(getattr(trainer, "logger", None))
    if training.for_a_beam:
        module.forward_model.forget_scale()
    return _trained(training, module, trainer, history.values, drift, times)


def _trained(
    training: Training, module: Any, trainer: Any, history: Any, drift: DriftReport, times: Parts
) -> TrainingResult:
    """Return what a fit that ended gave."""
    plan, science = training.plan, training.science
    # A report that a callback made inside fit saw more than the one before it.
    reports: list[Any] = [getattr(callback, "report", None) for callback in getattr(trainer, "callbacks", ())]
    drift = next((report for report in reports if getattr(report, "rows", None)), drift)
    return TrainingResult(
        history=history,
        models={"lightning_module": module, "trainer": trainer},
        train_container=training.container,
        test_container=training.test_container,
        science=science,
        settings=plan.requested,
        plan=plan,
        drift=drift,
        times=times,
        applied=_applied(training.overrides, plan, drift),
    )


def _identity(
    training: Training, run_dir: str | Path | None, resume_from: str | Path | None
) -> dict[str, tuple[Any, str]]:
    """Return what every process of this training must have alike, besides the settings."""
    science = training.science
    origins = science.origins
    rows: dict[str, tuple[Any, str]] = {
        name: (value, origins[name].describe() if name in origins else "the configs")
        for name, value in flat(science).items()
    }
    scans = {"training scan": training.container, "validation scan": training.test_container}
    for name, scan in scans.items():
        if isinstance(scan, ScanData):
            rows[f"SHA-256 of the {name}"] = scan.sha256, f"{scan.source}, as this process reads it"
    if training.start is not None:
        rows["weights to start from"] = training.start.sha256, training.start.place
    rows["training samples"] = len(training.samples), "the data and how they are grouped"
    place = f"the command, in {Path.cwd()}"
    rows["run directory"] = None if run_dir is None else str(Path(run_dir).absolute()), place
    rows["checkpoint to continue from"] = None if resume_from is None else str(resume_from), place
    return rows


def build_module(
    container: Any, samples: PtychoDataset, science: ScienceConfig, settings: ExecutionSettings
) -> Any:
    """Build a network; its class is looked up when called and gets the arguments that its signature takes."""
    from ptycho_torch import model

    probe, good_pixels = optics_of(container)
    amplitude = spread_batch(samples, SCALE_SAMPLES)["amplitude"]
    arguments: dict[str, Any] = {
        "model_config": science.model,
        "data_config": science.data.model_copy(update={"N": int(amplitude.shape[-1])}),
        "training_config": science.training,
        "inference_config": science.inference,
        "execution_config": settings,
        "probe": probe,
        "good_pixels": good_pixels,
        "intensity_scale": None if probe is None else estimate_intensity_scale(amplitude, probe, good_pixels),
    }
    parameters = inspect.signature(model.PtychoPINN_Lightning).parameters
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    taken = {name: value for name, value in arguments.items() if every or name in parameters}
    module = model.PtychoPINN_Lightning(**taken)
    if isinstance(container, ScanData) and hasattr(module, "noise_floor"):
        tell_noise(module, container)
    return module


def spread_batch(samples: PtychoDataset, most: int) -> Batch:
    """Return at most so many samples, spread over the scan, as one batch; fewer where they are large."""
    most = min(most, max(most // 8, SCALE_VALUES // samples.n_pixels**2))
    numbers = np.linspace(0, len(samples) - 1, num=min(len(samples), most)).astype(int)
    return collate(samples.__getitems__(np.unique(numbers).tolist()))


def train(
    train_container: Any,
    test_container: Any = None,
    config: Any = None,
    execution_config: Any = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    run_dir: str | Path | None = None,
    resume_from: str | Path | None = None,
    start_from: Any = None,
    clock: Clock | None = None,
    facts: MachineFacts | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    """Train the network on a scan.

    Args:
        train_container: a scan or its path, a dict with `X` (see `PtychoDataset`), or an object with such
            attributes.
        test_container: the same for validation, or None.
        config: science configs; see `ptycho_torch.factory.science_of`.
        execution_config: settings; see `ptycho_torch.factory.execution_settings`.
        overrides: values of either kind that win over both.
        run_dir: where checkpoints and logs go; None writes nothing.
        resume_from: a checkpoint to continue from.
        start_from: the network to begin with (fine-tuning): run directory, model file, or the result of a
            training. Its shape is taken, too; probe and photon scale are those of the new scan.
        clock: takes the seconds of each phase.
        facts: of this machine, where they are known already; None asks it, which takes seconds with a GPU.
        callbacks: the caller's own, for the Trainer.

    Raises:
        SettingsError: settings that cannot be honored.
        DataError: data that cannot be used.
        UserError: the training went wrong (NaN, collapse, plateau).
    """
    training = plan_training(
        train_container,
        test_container,
        config,
        execution_config,
        overrides,
        start_from=start_from,
        clock=clock,
        facts=facts,
    )
    training.plan.raise_if_blocked(include_trainer_refusals=False)
    training.plan.announce()
    announce_scans((training.container, training.test_container))
    return run_training(training, run_dir=run_dir, resume_from=resume_from, callbacks=callbacks)


_train_with_lightning = train


# --- infer ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inference:
    """An inference that can begin: the network loaded, the scan read, all of it planned; nothing runs yet."""

    module: Any
    scan: ScanData
    science: ScienceConfig
    plan: Plan
    overrides: Mapping[str, Any]
    clock: Clock


def plan_inference(
    model_or_bundle: Any,
    data: Any,
    config: Any = None,
    execution_config: Any = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    clock: Clock | None = None,
    facts: MachineFacts | None = None,
    say: Say = lambda _: None,
) -> Inference:
    """Load, resolve, read and plan an inference; see `reconstruct` for the arguments and the errors.

    `say` takes a line where the preparation of a scan takes long, or decides something.
    """
    clock = clock or Clock()
    with clock.phase("load model"):
        module, trained = model_or_bundle, getattr(model_or_bundle, "science", None) or ScienceConfig()
        if isinstance(model_or_bundle, (str, Path)):
            module, trained = load_module(Predictor, model_or_bundle)
        elif isinstance(model_or_bundle, Mapping):
            module, trained = model_or_bundle["models"]["lightning_module"], model_or_bundle["science"]
    handed = handed_over()
    if handed is None and config is None and module is not None:
        named = isinstance(model_or_bundle, (str, Path))
        config = inference_science(trained, str(model_or_bundle) if named else "the trained model")
    if handed is not None:
        science, settings = handed.more, handed.plan.requested
    else:
        science, settings = _configs(config, execution_config, overrides, INFERENCE_DEFAULTS)
    if module is None and science.inference.start == "network":
        raise DataError("there is no network to predict with", fix="pass a trained model, or start=flat")
    with clock.phase("read"):
        scan = scan_of(data, science.data)
    with clock.phase("prepare"):
        if not isinstance(data, ScanData):
            flat_start = science.inference.start == "flat"  # a network has a probe of its own
            scan = prepared(scan, science.data, probe=flat_start, seed=settings.seed, say=say)
        if getattr(getattr(module, "forward_model", None), "scale_of_each_scan", False):
            rows = spread(np.arange(len(scan)), scan.n_pixels)
            module = measured_as(module, scan.amplitude(rows), scan.good_pixels)
    if module is None:
        optics_of(scan)  # refuses a scan without a probe
    traits = ModuleTraits(logged_metrics=("train_loss",), has_validation=False, trains=False)
    with clock.phase("plan"):
        plan = handed.plan if handed else resolve_plan(settings, facts or MachineFacts.probe(), traits)
    if type(module) is Predictor and needs_trainer(plan):
        with clock.phase("import"):
            import_lightning()
        with clock.phase("load model"):
            module = _for_trainer(module)
    return Inference(module, scan, science, plan, overrides or {}, clock)


def _for_trainer(module: Predictor) -> Any:
    """Return a network as the module that a Trainer takes; its class is looked up when called."""
    from ptycho_torch import model

    made = model.PtychoPINN_Lightning(**module.arguments())
    made.load_state_dict(module.state_dict())
    made.forward_model.scale_of_each_scan = module.forward_model.scale_of_each_scan
    return made.eval()


def run_inference(inference: Inference) -> InferenceResult:
    """Predict and stitch, refine, and check how well the object explains the patterns."""
    module, science, plan = inference.module, inference.science, inference.plan
    scan = selected(inference.scan, science.data, plan.requested.seed)
    inference = replace(inference, scan=scan)
    predicted, refined = None, None
    with process_flags(plan.settings):
        seed_run(plan.settings)
        if science.inference.start == "network":
            predicted = _predict(inference)
        refines = science.inference.refine > 0
        if refines and is_rank_zero():
            refined = _refine(inference, predicted)
        best = refined or predicted or _flat(scan)
        probe = getattr(module, "probe", None) if refined is None else refined.probe
        with inference.clock.phase("check"):
            verdict = _judge(inference, best.object, probe, refined)
    drift = DriftReport(()) if predicted is None else predicted.drift
    processes = inference.plan.facts.launcher.world_size if predicted is None else predicted.processes
    alone = (REFINES_ALONE,) if refines and processes > 1 else ()
    return InferenceResult(
        object=best.object,
        coverage=best.coverage,
        n_patches=len(scan) if predicted is None or refined is not None else predicted.n_patches,
        verdict=verdict,
        notices=(
            *(predicted.notices if predicted else ()),
            *(refined.notices if refined else ()),
            *(("\n".join(verdict.lines()),) if verdict.warns else ()),
            *alone,
        ),
        scan=scan,
        science=science,
        settings=plan.requested,
        plan=plan,
        drift=drift,
        applied=_applied(inference.overrides, plan, drift),
        times=predicted.times if predicted else None,
        phases_turned_rad=predicted.phases_turned_rad if predicted else None,
        probe=refined.probe if refined else None,
        refine_losses=refined.losses if refined else None,
        refinement=refined,
        network_object=predicted.object if predicted and refined else None,
    )


def _judge(
    inference: Inference, obj: NDArray[np.complex64], probe: Any, refined: RefineResult | None
) -> Verdict:
    """Judge an object, by patterns that took no part where it was refined."""
    scan, science = inference.scan, inference.science
    found = {row["field"]: row["value"] for row in scan.report.get("decisions", ())}
    if "orient" in found:  # whatever was found, looking again finds the same
        found["orient"] = AUTO
    used = {**science.data.model_dump(), **science.inference.model_dump(), **found}
    if refined is None:
        verdict = judge_object(scan, obj, probe, fitted=False)
        if verdict.status == "cannot-judge" and verdict.patterns >= HELD_OUT_FROM:
            verdict = replace(verdict, reason=f"{verdict.reason}; {HOLDS_OUT}")
        return verdict.beyond(used)
    moved, decision = refined.positions_px, refined.probe_decision
    asked = science.inference.refine_probe
    verdict = judge_object(
        scan if moved is None else replace(scan, positions_px=moved),
        obj,
        probe,
        held_out=refined.held_out,
        background=refined.background,
        probe_refined=asked is True or (decision is not None and decision.refined),
    )
    return verdict.beyond(used)


def held_out_part(patterns: int) -> float:
    """Return which part of a scan's patterns a refinement holds out: about 1 in 32, of few patterns none."""
    if patterns < HELD_OUT_FROM:
        return 0.0
    return max(HELD_OUT, min(ENOUGH_HELD_OUT / patterns, MOST_HELD_OUT))


@dataclass(frozen=True)
class Predicted:
    """The object that the network alone gives, complex64 (H, W), and its coverage, float32 (H, W)."""

    object: NDArray[np.complex64]
    coverage: NDArray[np.float32]
    n_patches: int
    notices: tuple[str, ...]
    phases_turned_rad: float
    drift: DriftReport
    times: Parts | None
    processes: int = 1


def _flat(scan: ScanData) -> Predicted:
    """Return what a refinement starts from without a network, for a process that does not refine."""
    flat, uncovered = np.ones(scan.canvas_shape, np.complex64), np.zeros(scan.canvas_shape, np.float32)
    return Predicted(flat, uncovered, 0, (), 0.0, DriftReport(()), None)


def _predict(inference: Inference) -> Predicted:
    """Predict all patches and stitch them one batch at a time; the module is left in the mode it came in.

    A network that was loaded for one process on one device is predicted with in a loop of our own: to import
    Lightning takes longer than many a prediction. Both ways give the same object.
    """
    if getattr(inference.module, "predicts_single_patterns", False):
        # A pattern's group makes no difference to it: with gridsize 2, a fourth of the work.
        science = inference.science
        single = science.data.model_copy(update={"gridsize": 1})
        inference = replace(inference, science=science.model_copy(update={"data": single}))
    return (_predict_alone if type(inference.module) is Predictor else _predict_with_trainer)(inference)


def _predict_alone(inference: Inference) -> Predicted:
    module, plan, clock, times = inference.module, inference.plan, inference.clock, Parts()
    with clock.phase("prepare"):
        loader = _build_inference_dataloader(inference.scan, inference.science, plan.requested, plan=plan)
        writer = ObjectWriter(inference.scan, module, inference.science.inference, plan.settings)
        module.compile_as_asked()
    with clock.phase("predict and stitch"):
        drift = predict_all(module, loader, plan, writer.add, times)
        with times.part("stitch"):
            writer.finish()
        stitched = writer.result()
    return _predicted(writer, stitched, drift, times)


def _predict_with_trainer(inference: Inference) -> Predicted:
    from ptycho_exec.trainer.together import on_all_processes
    from ptycho_torch.workflows.callbacks import StitchWriter
    from ptycho_torch.workflows.times import PartTimes

    module, scan, plan, clock = inference.module, inference.scan, inference.plan, inference.clock
    science, training = inference.science, bool(getattr(module, "training", False))
    try:
        with clock.phase("prepare"):
            loader = _build_inference_dataloader(scan, science, plan.requested, plan=plan)
            writer = StitchWriter(scan, module, science.inference, plan.settings)
            times = PartTimes()
            trainer = build_trainer(
                plan.requested, plan=plan, callbacks=(writer,), profiler=times, announce=False
            )
            loaders = {"inference": loader}
            drift = requested_and_effective(
                trainer, plan.requested, plan, loaders=loaders, writes=False, profiler=times
            )
        with clock.phase("predict and stitch"):
            with on_all_processes(trainer, plan, inference.science):
                trainer.predict(module, loader, return_predictions=False)
            stitched = writer.result()
    finally:
        if training and hasattr(module, "train"):
            module.train()
    return _predicted(writer, stitched, drift, times, trainer.world_size)


def _predicted(
    writer: ObjectWriter, stitched: StitchResult, drift: DriftReport, times: Parts, processes: int = 1
) -> Predicted:
    return Predicted(
        stitched.object.numpy(),
        stitched.coverage.numpy(),
        stitched.n_patches,
        stitched.notices,
        writer.moved_rad,
        drift,
        times,
        processes,
    )


def _refine(inference: Inference, predicted: Predicted | None) -> RefineResult:
    """Refine the stitched object, or a flat one, through the forward model.

    The network's object has a mean amplitude near 1; its photon scale goes with the probe.
    """
    module, scan, plan = inference.module, inference.scan, inference.plan
    start: Any = "flat"
    probe = scan.probe
    if predicted is not None:
        start = np.where(predicted.coverage > 0, predicted.object, 1)
        probe = (module.probe * module.intensity_scale).detach().cpu().numpy()
    asked = inference.science.inference
    accelerators = {"gpu": "cuda", "cuda": "cuda", "mps": "mps"}
    with inference.clock.phase("refine"):
        return refine_object(
            scan,
            start,
            asked.refine,
            probe=probe,
            options=replace(refine_options(asked), held_out=held_out_part(len(scan))),
            device=accelerators.get(plan.settings.accelerator, "cpu"),
            seed=plan.settings.seed,
        )


def refine_options(inference: InferenceConfig) -> RefineOptions:
    """Return how the science asks to refine."""
    return RefineOptions(
        likelihood=inference.likelihood,
        denoise=inference.denoise,
        refine_probe=inference.refine_probe,
        probe_modes=inference.probe_modes,
        refine_positions=inference.refine_positions,
        position_limit_px=inference.position_limit_px,
        background=inference.refine_background,
    )


def _build_inference_dataloader(
    container: Any, config: Any, execution_config: Any = None, *, plan: Plan | None = None
) -> DataLoader[Batch]:
    """Return the loader of all patterns of a container, in order, in batches of `inference_batch_size`.

    Every pattern is the seed of exactly one group, so it is predicted at least once. A `batch_size` that the
    config carries counts as a factory default.

    Raises:
        DataError: the container holds no patterns; nothing is made up in their place.
    """
    science, carried = science_of(config)
    settings = execution_settings(execution_config, {}, carried)
    if isinstance(container, ScanData):
        groups = inference_groups(container.positions_px, gridsize=science.data.gridsize)
        dataset = PtychoDataset(container, groups)
    else:
        dataset = dataset_of(container, science.data, settings.seed)
    kwargs, shared = inference_loader_kwargs(settings, plan), plan is None or shares_work(plan)
    order = GlobalBatches(dataset, kwargs["batch_size"], shuffle=False, shared=shared)
    return DataLoader(dataset, sampler=order, collate_fn=collate, **kwargs)


def reconstruct(
    model_or_bundle: Any,
    data: Any,
    config: Any = None,
    execution_config: Any = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    clock: Clock | None = None,
    facts: MachineFacts | None = None,
) -> InferenceResult:
    """Predict every patch of a scan and stitch them on its object's canvas.

    Args:
        model_or_bundle: a module, model file, run directory or training result; None with `start="flat"`.
        data: a scan, the path of one, or a plain container with `X` and `coords_nominal`.
        config: science configs; None takes those of the trained model. The rest: as in `train`.

    Raises:
        SettingsError, DataError: as in training; a patch outside the canvas, or nothing to stitch.
    """
    inference = plan_inference(
        model_or_bundle, data, config, execution_config, overrides, clock=clock, facts=facts
    )
    inference.plan.raise_if_blocked(include_trainer_refusals=False)
    inference.plan.announce()
    trained = model_or_bundle if isinstance(model_or_bundle, TrainingResult) else None
    if trained is None or not any(
        scan is inference.scan for scan in (trained.train_container, trained.test_container)
    ):
        announce_scans((inference.scan,))  # those of the training were said when it began
    return run_inference(inference)


run_inference_with_lightning = reconstruct


# --- both ----------------------------------------------------------------------------------------------


def run_cdi_example_torch(
    train_data: Any,
    test_data: Any,
    config: Any,
    flip_x: bool = False,
    flip_y: bool = False,
    transpose: bool = False,
    M: int | None = None,
    do_stitching: bool = True,
    execution_config: Any = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None, TrainingResult]:
    """Train on one scan and reconstruct another: the whole example in one call.

    Args:
        train_data, test_data: scans or their paths; without `test_data` the training scan is reconstructed.
        config: science configs.
        flip_x, flip_y, transpose: how to orient the result for display.
        M: keep the central M x M pixels of each patch in stitching; None leaves it to `middle_trim`.
        do_stitching: False trains only and returns None for both images.
        execution_config, overrides: settings and values that win over everything.

    Returns:
        amplitude float32 (H, W), phase float32 (H, W) in radians, and the results of both parts.
    """
    results = train(train_data, test_data, config, execution_config, overrides)
    if not do_stitching:
        return None, None, results
    scan = results.train_container if results.test_container is None else results.test_container
    trimmed = {} if M is None else {"middle_trim": M}
    results.inference = reconstruct(results, scan, None, execution_config, {**(overrides or {}), **trimmed})

    def displayed(image: NDArray[np.float32]) -> NDArray[np.float32]:
        image = image.T if transpose else image
        image = image[:, ::-1] if flip_x else image
        return image[::-1] if flip_y else image

    return displayed(results.inference.amplitude), displayed(results.inference.phase), results
