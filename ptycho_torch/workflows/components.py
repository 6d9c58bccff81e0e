"""The order of events. Train: configs, seeds, data, network, Trainer. Infer: configs, seeds, data, stitch.

Settings and science configs are complete before anything else happens; nothing global is mutated beyond
the run; what took effect is in the `applied` block of every result. Missing data, a failed stitch or a
network that did not learn are errors, never a made-up result.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ptycho_exec.errors import DataError, SettingsError
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import ModuleTraits, Plan, resolve_plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.build import (
    DriftReport,
    build_trainer,
    inference_loader_kwargs,
    process_flags,
    requested_and_effective,
    seed_run,
    train_loader_kwargs,
)
from ptycho_exec.trainer.loggers import close_logger
from ptycho_torch import model
from ptycho_torch.config import InferenceConfig, ScienceConfig
from ptycho_torch.data.containers import dataset_of, optics_of, scan_of, selected
from ptycho_torch.data.dataset import Batch, EpochShuffle, PtychoDataset, collate
from ptycho_torch.data.grouping import inference_groups
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.factory import (
    INFERENCE_DEFAULTS,
    TRAINING_DEFAULTS,
    execution_settings,
    science_of,
    split_overrides,
    whole_scan,
)
from ptycho_torch.network.lightning_module import estimate_intensity_scale
from ptycho_torch.reconstruction.phase_sync import PhaseAligner
from ptycho_torch.reconstruction.r_factor import r_factor
from ptycho_torch.reconstruction.refine import RefineOptions, refine_object
from ptycho_torch.reconstruction.stitch import Stitcher, StitchResult, probe_weights
from ptycho_torch.workflows.images import picture_callbacks
from ptycho_torch.workflows.times import PartTimes

Samples = PtychoDataset | Subset[Batch]
SPAWNING = ("ddp_spawn", "ddp_fork", "ddp_notebook")


@dataclass
class Clock:
    """Seconds that each phase of a run took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


# --- train ---------------------------------------------------------------------------------------------


def _train_with_lightning(
    train_container: Any,
    test_container: Any,
    config: Any,
    execution_config: Any = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    run_dir: str | Path | None = None,
    resume_from: str | Path | None = None,
    clock: Clock | None = None,
    facts: MachineFacts | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train the network on a container and return what came of it.

    Args:
        train_container: a ScanData, a dict with `X` (see `PtychoDataset`), or an object with such attributes.
        test_container: the same for validation, or None.
        config: science configs; see `ptycho_torch.factory.science_of`.
        execution_config: settings; see `ptycho_torch.factory.execution_settings`.
        overrides: values of either kind that win over both.
        run_dir: where checkpoints and logs go; None writes nothing.
        resume_from: a checkpoint to continue from.
        clock: takes the seconds of each phase.
        facts: of this machine, where they are known already; None asks it, which takes seconds with a GPU.
        callbacks: the caller's own, for the Trainer.

    Returns:
        `history` (metric -> value per epoch), `models` (`lightning_module`, `trainer`), the containers,
        `science`, `settings`, `plan`, `drift`, `times` (seconds of the parts of fit), and `applied`: what
        took effect.

    Raises:
        SettingsError: settings that cannot be honored. DataError: data that cannot be used.
        UserError: the training went wrong (NaN, collapse, plateau).
    """
    clock = clock or Clock()
    science, settings, applied = _configs(config, execution_config, overrides, TRAINING_DEFAULTS)
    validates = test_container is not None or science.training.val_fraction > 0
    samples = _samples(train_container, science)
    plan = plan_for(settings, validates=validates, samples=samples, facts=facts)
    plan.raise_if_blocked(include_trainer_refusals=False)
    pictures = picture_callbacks(train_container, science.data.gridsize, plan)
    with process_flags(plan.settings):
        seed_run(plan.settings)
        with clock.phase("prepare"):
            train_set, test_set = _datasets(train_container, test_container, science, settings.seed)
            loaders = _loaders(train_set, test_set, settings, plan)
            module = _build_module(train_container, train_set, science, plan.settings)
        extra = (*pictures, *callbacks)
        made = _fit(module, loaders, plan, science.training.epochs, extra, run_dir, resume_from, clock)
    return {
        **made,
        "train_container": train_container,
        "test_container": test_container,
        "science": science,
        "settings": settings,
        "plan": plan,
        "applied": {**applied, **_effective(plan), "read_back": _read_back(made["drift"])},
    }


def _samples(container: Any, science: ScienceConfig) -> int | None:
    """Return the number of training samples where it is known before the data are grouped."""
    return science.data.n_groups or (len(container) if isinstance(container, ScanData) else None)


def _fit(
    module: Any,
    loaders: Mapping[str, DataLoader[Batch]],
    plan: Plan,
    epochs: int,
    callbacks: Sequence[Callback],
    run_dir: str | Path | None,
    resume_from: str | Path | None,
    clock: Clock,
) -> dict[str, Any]:
    """Build the Trainer, read it back, and fit; return what only the Trainer knows."""
    history, times, settings = History(), PartTimes(), plan.requested
    trainer = build_trainer(
        settings,
        max_epochs=epochs,
        run_dir=run_dir,
        plan=plan,
        extra_callbacks=(history, *callbacks),
        profiler=times,
    )
    drift = requested_and_effective(
        trainer, settings, plan, loaders=loaders, writes=run_dir is not None, profiler=times
    )
    with clock.phase("fit"):
        trainer.fit(
            module,
            train_dataloaders=loaders["train"],
            val_dataloaders=loaders.get("validation"),
            ckpt_path=None if resume_from is None else str(resume_from),
        )
    close_logger(getattr(trainer, "logger", None))
    return {
        "history": history.values,
        "models": {"lightning_module": module, "trainer": trainer},
        "drift": _latest_drift(trainer, drift),
        "times": times,
    }


def _configs(
    config: Any, execution_config: Any, overrides: Mapping[str, Any] | None, defaults: Mapping[str, Any]
) -> tuple[ScienceConfig, ExecutionSettings, dict[str, Any]]:
    """Return complete configs, and what the overrides came to."""
    science, carried = science_of(config)
    science, execution = split_overrides(overrides or {}, science)
    settings = execution_settings(execution_config, execution, {**defaults, **carried})
    return science, settings, dict(overrides or {})


def plan_for(
    settings: ExecutionSettings,
    *,
    validates: bool,
    samples: int | None = None,
    facts: MachineFacts | None = None,
) -> Plan:
    """Return the plan for this machine, for what our module logs, and for the number of training samples."""
    logged = ("train_loss", "val_loss") if validates else ("train_loss",)
    traits = ModuleTraits(logged_metrics=logged, has_validation=validates, train_samples=samples)
    return resolve_plan(settings, facts or MachineFacts.probe(), traits)


def _effective(plan: Plan) -> dict[str, Any]:
    return {name: row.value for name, row in plan.effective.items()}


def _read_back(report: DriftReport) -> dict[str, Any]:
    """Return what Trainer and loaders really have, by name, where it can be known."""
    return {row.name: row.effective for row in report.rows if row.verdict != "unknown"}


def _datasets(train: Any, test: Any, science: ScienceConfig, seed: int) -> tuple[Samples, Samples | None]:
    """Return training and validation samples; without a test scan `val_fraction` is held back."""
    whole = dataset_of(train, science.data, seed)
    if test is not None:
        return whole, dataset_of(test, science.data, seed)
    held = round(science.training.val_fraction * len(whole))
    if not held:
        return whole, None
    order = np.random.default_rng([seed, 1]).permutation(len(whole))
    kept, out = (np.sort(part).tolist() for part in (order[held:], order[:held]))
    return Subset(whole, kept), Subset(whole, out)


def _loaders(
    train: Samples,
    test: Samples | None,
    settings: ExecutionSettings,
    plan: Plan,
) -> dict[str, DataLoader[Batch]]:
    kwargs = train_loader_kwargs(settings, plan)
    order = EpochShuffle(len(train), settings.seed)
    loaders: dict[str, DataLoader[Batch]] = {
        "train": DataLoader(train, sampler=order, collate_fn=collate, **kwargs)
    }
    if test is not None:
        loaders["validation"] = DataLoader(test, shuffle=False, collate_fn=collate, **kwargs)
    return loaders


def _build_module(
    container: Any, dataset: Samples, science: ScienceConfig, settings: ExecutionSettings
) -> Any:
    """Build the module through its module, so that it can be substituted; pass what its signature takes."""
    probe, good_pixels = optics_of(container)
    sample = _spread_sample(dataset)
    arguments = {
        "model_config": science.model,
        "data_config": science.data.model_copy(update={"N": int(sample.shape[-1])}),
        "training_config": science.training,
        "inference_config": science.inference,
        "execution_config": settings,
        "probe": probe,
        "good_pixels": good_pixels,
        "intensity_scale": None if probe is None else estimate_intensity_scale(sample, probe, good_pixels),
    }
    module = _call_with_known(model.PtychoPINN_Lightning, arguments)
    if isinstance(container, ScanData) and container.holds_counts and hasattr(module, "noise_floor"):
        module.health.noise_floor = module.noise_floor(sample)
    return module


def _call_with_known(build: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    parameters = inspect.signature(build).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return build(**arguments)
    return build(**{name: value for name, value in arguments.items() if name in parameters})


def _spread_sample(dataset: Samples, most: int = 256) -> torch.Tensor:
    """Return the measured amplitude of samples spread over the scan, (B, C, N, N)."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, num=min(len(dataset), most)).astype(int))
    return collate(dataset.__getitems__(rows.tolist()))["amplitude"]


class History(Callback):
    """Keeps the epoch's value of every logged metric: name -> list over epochs."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        del pl_module
        for name, value in trainer.callback_metrics.items():
            self.values.setdefault(name, []).append(float(value))


def _latest_drift(trainer: Any, before: Any) -> Any:
    """Return the report made inside fit, which saw more; the one made before fit where there is none."""
    callbacks: Sequence[Any] = getattr(trainer, "callbacks", None) or ()
    for callback in callbacks:
        report = getattr(callback, "report", None)
        if report is not None and getattr(report, "rows", None):
            return report
    return before


POOR_OBJECT = (
    "the object explains its patterns poorly; refine it (refine = 5 or more), train with gridsize = 2, "
    "or check probe and positions with `ptycho-torch inspect`"
)


# --- infer ---------------------------------------------------------------------------------------------


def run_inference_with_lightning(
    model_or_bundle: Any,
    data: Any,
    config: Any = None,
    execution_config: Any = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    clock: Clock | None = None,
    facts: MachineFacts | None = None,
) -> dict[str, Any]:
    """Predict every patch of a scan and stitch them on its object's canvas.

    Args:
        model_or_bundle: a trained module, a model file or run directory, or a training result; None only with
            `start="flat"`.
        data: a scan, the path of one, or a plain container with `X` and `coords_nominal`.
        config: science configs; None takes those of the trained model.
        execution_config: settings; see `ptycho_torch.factory.execution_settings`.
        overrides: values of either kind that win over both.
        clock: takes the seconds of each phase.
        facts: of this machine, where they are known already; None asks it, which takes seconds with a GPU.

    Returns:
        `object` complex64 (H, W), `coverage` float32 (H, W), `amplitude`, `phase`, `consistency`, `notices`,
        `scan`, `science`, `settings`, `plan`, `drift`, `times` (with a network), `applied`: what took effect.

    Raises:
        SettingsError, DataError: as in training; a patch outside the canvas, or nothing to stitch.
    """
    clock = clock or Clock()
    with clock.phase("load model"):
        module, trained = _trained(model_or_bundle)
    science, settings, applied = _configs(
        whole_scan(trained) if config is None else config, execution_config, overrides, INFERENCE_DEFAULTS
    )
    plan = plan_for(settings, validates=False, facts=facts)
    plan.raise_if_blocked(include_trainer_refusals=False)
    with process_flags(plan.settings):
        seed_run(plan.settings)
        with clock.phase("read"):
            scan = selected(scan_of(data, science.data), science.data, settings.seed)
        made: dict[str, Any] = {"drift": DriftReport(())}
        if science.inference.start == "network":
            made = _predict_and_stitch(module, scan, science, plan, clock)
        if science.inference.refine:
            made |= _refine(module, made, scan, science, plan, clock)
        with clock.phase("check"):
            made |= _check_consistency(made, scan, module)
    return {
        **made,
        "amplitude": np.abs(made["object"]),
        "phase": np.angle(made["object"]),
        "scan": scan,
        "science": science,
        "settings": settings,
        "plan": plan,
        "applied": {**applied, **_effective(plan), "read_back": _read_back(made["drift"])},
    }


def _check_consistency(made: Mapping[str, Any], scan: ScanData, module: Any) -> dict[str, Any]:
    """Say how well the object explains the patterns, and collect what the user should be told."""
    found = r_factor(scan, made["object"], made.get("probe", getattr(module, "probe", None)))
    poor = (f"{POOR_OBJECT}: {found.line()}",) if found is not None and found.poor else ()
    notices = (*made.get("stitch_notices", ()), *made.get("refine_notices", ()), *poor)
    return {"consistency": found, "notices": notices}


def _predict_and_stitch(
    module: Any, scan: ScanData, science: ScienceConfig, plan: Plan, clock: Clock
) -> dict[str, Any]:
    """Predict all patches and stitch them batch by batch."""
    if module is None:
        raise DataError("there is no network to predict with", fix="pass a trained model, or start=flat")
    _refuse_spawning(plan)
    with clock.phase("prepare"), _evaluating(module):
        loader = _build_inference_dataloader(scan, _ungrouped(module, science), plan.requested, plan=plan)
        stitcher = _stitcher(scan, module, science.inference, plan.settings)
        writer = StitchWriter(stitcher, _aligner(scan, module, science.inference))
        times = PartTimes()
        trainer = build_trainer(plan.requested, plan=plan, extra_callbacks=(writer,), profiler=times)
        drift = requested_and_effective(
            trainer, plan.requested, plan, loaders={"inference": loader}, writes=False, profiler=times
        )
    with clock.phase("predict and stitch"), _evaluating(module):
        trainer.predict(module, loader, return_predictions=False)
        made = {"phases_turned_rad": writer.moved_rad, "drift": drift, "times": times}
        return {**_arrays(stitcher.result()), **made}


def _ungrouped(module: Any, science: ScienceConfig) -> ScienceConfig:
    """Predict each pattern once where its group makes no difference: with gridsize 2 a fourth of the work."""
    if not getattr(module, "predicts_single_patterns", False):
        return science
    return science.model_copy(update={"data": science.data.model_copy(update={"gridsize": 1})})


def _refine(
    module: Any, made: Mapping[str, Any], scan: ScanData, science: ScienceConfig, plan: Plan, clock: Clock
) -> dict[str, Any]:
    """Refine the stitched object, or a flat one, through the forward model.

    The network's object has a mean amplitude near 1; its photon scale goes with the probe.
    """
    start: Any = "flat"
    probe = scan.probe
    if science.inference.start == "network":
        start = np.where(made["coverage"] > 0, made["object"], 1)
        probe = (module.probe * module.intensity_scale).detach().cpu().numpy()
    with clock.phase("refine"):
        refined = refine_object(
            scan,
            start,
            science.inference.refine,
            probe=probe,
            options=RefineOptions(refine_probe=science.inference.refine_probe),
            device=_device(plan),
            seed=plan.settings.seed,
        )
    return {
        "object": refined.object,
        "coverage": refined.coverage,
        "probe": refined.probe,
        "refine_losses": refined.losses,
        "refine_notices": refined.notices,
        "network_object": made.get("object"),
        "n_patches": len(scan),
    }


def _device(plan: Plan) -> str:
    accelerator = plan.settings.accelerator
    return {"gpu": "cuda", "cuda": "cuda", "mps": "mps"}.get(accelerator, "cpu")


def _trained(source: Any) -> tuple[Any, ScienceConfig]:
    from ptycho_torch.model import load_model

    if source is None:
        return None, ScienceConfig()
    if isinstance(source, (str, Path)):
        return load_model(source)
    if isinstance(source, Mapping):
        return source["models"]["lightning_module"], source["science"]
    return source, getattr(source, "science", None) or ScienceConfig()


def _refuse_spawning(plan: Plan) -> None:
    strategy, devices = plan.settings.strategy, plan.settings.devices
    if strategy in SPAWNING and devices not in (1, (0,)):
        raise SettingsError(
            f"inference cannot run under strategy={strategy} on several devices",
            where=plan.settings.origin_of("strategy"),
            expected="ddp, whose processes can add up their parts of the object",
            fix="set strategy=ddp, or devices=1",
        )


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """Leave the module in the mode it came in."""
    training = bool(getattr(module, "training", False))
    try:
        yield
    finally:
        if training and hasattr(module, "train"):
            module.train()


def _build_inference_dataloader(
    container: Any, config: Any, execution_config: Any = None, *, plan: Plan | None = None
) -> DataLoader[Batch]:
    """Return the loader of all patterns of a container, in order, in batches of `inference_batch_size`.

    Every pattern leads exactly one group, so it is predicted at least once. A `batch_size` that the config
    carries counts as a factory default.

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
    return DataLoader(dataset, collate_fn=collate, **inference_loader_kwargs(settings, plan))


def _stitcher(
    scan: ScanData, module: Any, inference: InferenceConfig, settings: ExecutionSettings
) -> Stitcher:
    weights = probe_weights(module.probe.detach()).cpu() if inference.patch_weighting == "probe" else None
    return Stitcher(
        scan.canvas_shape,
        scan.n_pixels,
        weights=weights,
        middle_trim=settings.middle_trim,
        pad_eval=settings.pad_eval,
        window=inference.window,
        out_of_canvas=inference.out_of_canvas,
    )


def _aligner(scan: ScanData, module: Any, inference: InferenceConfig) -> PhaseAligner | None:
    if not inference.align_phases:
        return None
    return PhaseAligner(scan.canvas_shape, scan.n_pixels, probe_weights(module.probe.detach()).cpu())


class StitchWriter(BasePredictionWriter):
    """Adds each predicted batch to the canvas at once, so memory does not grow with the scan."""

    def __init__(self, stitcher: Stitcher, aligner: PhaseAligner | None = None) -> None:
        super().__init__("batch")
        self.stitcher = stitcher
        self.aligner = aligner

    @property
    def moved_rad(self) -> float:
        """Root mean square of the phases by which patches were turned; 0 when none were."""
        return 0.0 if self.aligner is None else self.aligner.moved_rad

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        del trainer, pl_module, batch_indices, batch, batch_idx, dataloader_idx
        n = prediction["patches"].shape[-1]
        patches = prediction["patches"].reshape(-1, n, n).cpu()
        positions = prediction["positions_px"].reshape(-1, 2).cpu()
        if self.aligner is not None:
            patches = self.aligner.align(patches, positions)
        self.stitcher.add(patches, positions)

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Take out what phase is left, and add up the canvases of all processes."""
        del pl_module
        if self.aligner is not None:
            self.stitcher.rotate_phase(self.aligner.field())
            if trainer.world_size > 1:
                self._turn_to_first_process(trainer, self.aligner.total)
        if trainer.world_size > 1:
            self.stitcher.canvas = trainer.strategy.reduce(self.stitcher.canvas, reduce_op="sum")

    def _turn_to_first_process(self, trainer: Any, own: Tensor) -> None:
        """Each process has aligned its own patches; bring them to the phase of the first one's."""
        device = trainer.strategy.root_device
        first = trainer.strategy.broadcast(torch.view_as_real(own).to(device), src=0)
        agreement = torch.vdot(own, torch.view_as_complex(first.cpu()))
        self.stitcher.rotate_phase(torch.polar(torch.ones(()), agreement.angle()))


def _arrays(stitched: StitchResult) -> dict[str, Any]:
    obj: NDArray[np.complex64] = stitched.object.numpy()
    coverage: NDArray[np.float32] = stitched.coverage.numpy()
    if not stitched.n_patches or not coverage.any():
        raise DataError("no patch covers the canvas", fix="check the scan's positions and its object's size")
    if not np.isfinite(obj).all():
        raise DataError(
            "the stitched object has values that are not finite",
            expected="finite numbers",
            fix="the network's weights are damaged or diverged: train again, with a smaller learning_rate",
        )
    return {
        "object": obj,
        "coverage": coverage,
        "n_patches": stitched.n_patches,
        "stitch_notices": stitched.notices,
    }


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
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None, dict[str, Any]]:
    """Train on one scan and reconstruct another: the whole example in one call.

    Args:
        train_data, test_data: scans or their paths; without `test_data` the training scan is reconstructed.
        config: science configs.
        flip_x, flip_y, transpose: how to turn the result for display.
        M: keep the central M x M pixels of each patch in stitching; None leaves it to `middle_trim`.
        do_stitching: False trains only and returns None for both images.
        execution_config, overrides: settings and values that win over everything.

    Returns:
        amplitude float32 (H, W), phase float32 (H, W) in radians, and the results of both parts.
    """
    science, _ = science_of(config)
    train = read_scan(train_data, science.data) if isinstance(train_data, (str, Path)) else train_data
    test = read_scan(test_data, science.data) if isinstance(test_data, (str, Path)) else test_data
    results = _train_with_lightning(train, test, config, execution_config, overrides)
    if not do_stitching:
        return None, None, results
    trimmed = {} if M is None else {"middle_trim": M}
    inference = run_inference_with_lightning(
        results, train if test is None else test, None, execution_config, {**(overrides or {}), **trimmed}
    )
    results["inference"] = inference
    amplitude, phase = (
        _turned(inference[name], flip_x=flip_x, flip_y=flip_y, transpose=transpose)
        for name in ("amplitude", "phase")
    )
    return amplitude, phase, results


def _turned(
    image: NDArray[np.float32], *, flip_x: bool, flip_y: bool, transpose: bool
) -> NDArray[np.float32]:
    image = image.T if transpose else image
    image = image[:, ::-1] if flip_x else image
    return image[::-1] if flip_y else image
