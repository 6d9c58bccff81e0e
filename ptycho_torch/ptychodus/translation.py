"""From the keywords that Ptychodus sends to science configs and execution settings; no keyword is lost.

`KEYWORDS` says of each where it goes, or why it has no effect here. A keyword without effect is reported only
when its value is another than Ptychodus sends by itself: an ordinary run is not buried in remarks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, get_args

from ptycho_exec.errors import Finding, SettingsError
from ptycho_exec.fields.model import SPAWNING, Strategy
from ptycho_exec.fields.spec import format_value
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.discovery import Request
from ptycho_exec.sources.origins import Kind
from ptycho_exec.sources.resolve import Factory, resolve
from ptycho_torch.config import ModelConfig as ScienceModel
from ptycho_torch.config import ScienceConfig
from ptycho_torch.factory import INFERENCE_DEFAULTS, TRAINING_DEFAULTS, split_overrides
from ptycho_torch.ptychodus.keywords import DataConfig, InferenceConfig, Keywords, ModelConfig, TrainingConfig
from ptycho_torch.settings import SECTIONS as SCIENCE_PARTS
from ptycho_torch.settings import flat

PLACE = "Ptychodus"
FILTERS = 12
"""`n_filters` of one unit of `n_filters_scale`: Ptychodus's 2 is this network's usual width."""

BYTES_PER_PIXEL, BYTES_PER_MODE = 100, 42
"""Memory of a prediction per pixel of a batch, and what each probe mode adds; measured with 1, 4 and 10."""


class Target(NamedTuple):
    """Where a keyword goes: config fields and settings, or nowhere (then `note` says why)."""

    to: str
    note: str = ""


def _nowhere(why: str) -> Target:
    return Target("", why)


_NO_SUCH_LAYER = "this network has no such layer"
_STAGES = "training has one stage"

KEYWORDS: Mapping[str, Mapping[str, Target]] = {
    "data": {
        "N": Target("DataConfig.N", "the side of the patterns, when it differs"),
        "C": Target("DataConfig.gridsize", "groups are squares: the square root, rounded down, at most 8"),
        "normalize": _nowhere("patterns are scaled by one number for the whole scan, which training finds"),
        "neighbor_function": Target("DataConfig.grouping"),
        "scan_pattern": _nowhere("neighbors are found from the positions themselves, whatever the pattern"),
        "probe_normalize": _nowhere("the photon scale between probe and patterns is found from the patterns"),
        "x_bounds": Target("DataConfig.x_bounds", "for training; a reconstruction covers the whole scan"),
        "y_bounds": Target("DataConfig.y_bounds", "for training; a reconstruction covers the whole scan"),
        "min_neighbor_distance": Target("DataConfig.min_neighbor_distance_px", "with Min_dist"),
        "max_neighbor_distance": Target("DataConfig.max_neighbor_distance_px", "with Min_dist"),
        "K_quadrant": Target("DataConfig.neighbor_count", "with 4_quadrant"),
        "n_subsample": Target("DataConfig.n_groups", "with C above 1: so many groups per pattern"),
        "probe_scale": _nowhere("the photon scale between probe and patterns is found from the patterns"),
        "K": Target("DataConfig.neighbor_count", "with Nearest and Min_dist; at least C - 1"),
        "grid_size": _nowhere("C, the number of patterns in a group, says it all"),
        "probe_ramp_removal": _nowhere("the probe's phase ramp tells where the pattern lies on the detector"),
        "data_scaling": _nowhere(
            "patterns are scaled by one number for the whole scan, which training finds"
        ),
        "phase_subtraction": Target("labels", "with Supervised: each label has mean phase 0 under the probe"),
    },
    "model": {
        "mode": Target("TrainingConfig.loss", "Supervised learns from the object in the training data"),
        "object_big": Target("ModelConfig.object_big", "with C above 1, not with Supervised"),
        "probe_big": _nowhere("a predicted patch always is as large as the probe"),
        "loss_function": Target("TrainingConfig.loss", "Poisson, or MAE of amplitudes"),
        "amp_activation": Target("ModelConfig.amp_activation"),
        "cbam_encoder": _nowhere(_NO_SUCH_LAYER),
        "decoder_last_amp_channels": _nowhere("C says it all"),
        "use_shared_decoder": _nowhere("amplitude and phase always share the decoder"),
        "intensity_scale_trainable": Target("ModelConfig.intensity_scale_trainable", "not with Supervised"),
        "intensity_scale": _nowhere("the scale is found from the patterns and the probe"),
        "max_position_jitter": _nowhere("patches lie where the positions say, whatever the jitter"),
        "num_datasets": _nowhere("all training files of the directory are used; they share one photon scale"),
        "C_model": _nowhere("C says it all"),
        "C_forward": _nowhere("C says it all"),
        "amp_loss": Target("TrainingConfig.tv_weight, TrainingConfig.mean_deviation_weight"),
        "phase_loss": Target(
            "TrainingConfig.tv_weight",
            "the variation of the complex patch; of both losses, the larger coefficient",
        ),
        "amp_loss_coeff": Target(
            "TrainingConfig.tv_weight, TrainingConfig.mean_deviation_weight", "with amp_loss"
        ),
        "phase_loss_coeff": Target("TrainingConfig.tv_weight", "with phase_loss"),
        "n_filters_scale": Target("ModelConfig.n_filters", f"{FILTERS} times"),
        "probe_mask": _nowhere("the probe is used as it is"),
        "eca_decoder": _nowhere(_NO_SUCH_LAYER),
        "batch_norm": _nowhere(_NO_SUCH_LAYER),
        "edge_pad": _nowhere(_NO_SUCH_LAYER),
        "decoder_last_c_outer_fraction": _nowhere(_NO_SUCH_LAYER),
        "cbam_bottleneck": _nowhere(_NO_SUCH_LAYER),
        "cbam_decoder": _nowhere(_NO_SUCH_LAYER),
        "spatial_decoder": _nowhere(_NO_SUCH_LAYER),
        "decoder_spatial_kernel": _nowhere(_NO_SUCH_LAYER),
        "eca_encoder": _nowhere(_NO_SUCH_LAYER),
        "offset": _nowhere("offsets within a group come from the positions"),
        "probe_reference_coeff": _nowhere("there is no such loss here"),
        "amplitude_variance_loss": _nowhere("there is no such loss here"),
        "amplitude_variance_coeff": _nowhere("there is no such loss here"),
    },
    "training": {
        "epochs": Target("TrainingConfig.epochs"),
        "batch_size": Target("batch_size"),
        "learning_rate": Target("learning_rate"),
        "n_devices": Target("devices", "for training; a reconstruction takes one"),
        "num_workers": Target("num_workers", "for training"),
        "accum_steps": Target("accum_steps"),
        "epochs_fine_tune": _nowhere(_STAGES),
        "fine_tune_gamma": _nowhere(_STAGES),
        "gradient_clip_val": Target("gradient_clip_val"),
        "nll": Target("TrainingConfig.loss", "false means MAE, with Poisson"),
        "device": Target("accelerator"),
        "strategy": Target(
            "strategy",
            "with n_devices above 1; all but ddp_spawn, ddp_fork and ddp_notebook become ddp_spawn",
        ),
        "framework": _nowhere("training always runs under Lightning"),
        "orchestrator": _nowhere("PTYCHO_EXEC_LOGGER_BACKEND says where metrics go"),
        "scheduler": Target("scheduler", "Cosine is WarmupCosine"),
        "warmup_epochs": _nowhere(
            "WarmupCosine warms up over 2,000 patterns, at most a tenth of the training"
        ),
        "min_lr_ratio": _nowhere("the schedules have floors of their own"),
        "notes": Target("manifest.json"),
        "model_name": Target("manifest.json"),
        **{
            field.name: _nowhere(_STAGES)
            for field in fields(TrainingConfig)
            if field.name.startswith(("enable_staged", "finetune_")) and field.name != "finetune_val_split"
        },
        "finetune_val_split": Target(
            "TrainingConfig.val_fraction", "of the whole training; something is left to learn from"
        ),
    },
    "inference": {
        "batch_size": Target(
            "inference_batch_size",
            "at most what a quarter of the memory holds, with 100 + 42 bytes a probe mode per pixel",
        ),
        "middle_trim": Target("middle_trim", "at most the side of a pattern"),
        "experiment_number": _nowhere("Ptychodus sends one scan to reconstruct"),
        "patch_weighting": Target("InferenceConfig.patch_weighting"),
        "pad_eval": Target("pad_eval"),
        "window": _nowhere("the object comes back in the shape it was sent; nothing is cut off at its edge"),
    },
}
"""Section -> keyword -> where it goes. specs/ptychodus.md has the same table, and a test compares them."""

SECTIONS: Mapping[str, type[Keywords]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "inference": InferenceConfig,
}
_GROUPINGS = {"Nearest": "nearest", "Min_dist": "distance", "4_quadrant": "quadrant"}
SCHEDULERS = {"Cosine": "WarmupCosine"}
_GROUPED_ONLY = ("n_subsample", "K", "K_quadrant", "neighbor_function", "object_big")
_LOSS_ONLY = ("loss_function", "nll", "intensity_scale_trainable")
_WINDOW = ("min_neighbor_distance", "max_neighbor_distance")
_LOSSES = {"amp_loss": ("Total_Variation", "Mean_Deviation"), "phase_loss": ("Total_Variation",)}


@dataclass(frozen=True)
class Configs:
    """The four keyword classes that say something."""

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    inference: InferenceConfig

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return section -> keyword -> value."""
        return {section: getattr(self, section).to_dict() for section in SECTIONS}

    @classmethod
    def from_dict(cls, sections: Mapping[str, Mapping[str, Any]]) -> Configs:
        """Rebuild them from `to_dict`."""
        return cls(**{name: kind(**sections.get(name, {})) for name, kind in SECTIONS.items()})  # type: ignore[arg-type]

    @property
    def gridsize(self) -> int:
        """Side g of the square groups that C means."""
        return max(1, min(8, math.isqrt(max(int(self.data.C), 1))))

    @property
    def supervised(self) -> bool:
        return self.model.mode.casefold() == "supervised"


@dataclass(frozen=True)
class Translation:
    """What keywords mean here: complete science, execution values, and what the user should know.

    Attributes:
        notes: lines on what was asked and is not done so; each begins with its keyword.
        usual: the same on values that nobody changed, and that do not fit this scan or this machine.
    """

    science: ScienceConfig
    execution: Mapping[str, Any]
    notes: tuple[str, ...]
    usual: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, science: ScienceConfig, execution: Mapping[str, Any], notes: Iterable[str], configs: Configs
    ) -> Translation:
        """Tell the two kinds of notes apart."""
        lines = tuple(notes)
        usual = tuple(line for line in lines if is_usual(line, configs))
        return cls(science, execution, tuple(line for line in lines if line not in usual), usual)


# --- science --------------------------------------------------------------------------------------------


def to_science(configs: Configs, base: ScienceConfig | None = None) -> ScienceConfig:
    """Return the science that the keywords mean; fields that no keyword reaches are those of `base`.

    Raises:
        SettingsError: a value that is out of its range, all of them in one report.
    """
    model, training = configs.model, configs.training
    poisson = model.loss_function == "Poisson" and training.nll
    values: dict[str, Any] = {
        **_data_values(configs),
        "object_big": model.object_big,
        "intensity_scale_trainable": model.intensity_scale_trainable,
        "n_filters": round(FILTERS * model.n_filters_scale),
        "epochs": training.epochs,
        "loss": "supervised" if configs.supervised else "poisson" if poisson else "mae",
        "tv_weight": max(_variations(model).values(), default=0.0),
        "mean_deviation_weight": float(model.amp_loss_coeff) if model.amp_loss == "Mean_Deviation" else 0.0,
    }
    if model.amp_activation in _activations():
        values["amp_activation"] = model.amp_activation
    if configs.inference.patch_weighting in ("probe", "uniform"):
        values["patch_weighting"] = configs.inference.patch_weighting
    return _science(values, base or ScienceConfig(), configs)


def _science(values: Mapping[str, Any], base: ScienceConfig, configs: Configs) -> ScienceConfig:
    """Return `base` with values of ours; errors are reported as what is wrong with the keywords sent."""
    try:
        return split_overrides(values, base)[0]
    except SettingsError as error:
        findings = list(error.findings)
    for number, finding in enumerate(findings):
        field = finding.field
        owners = (part.__name__ for part in SCIENCE_PARTS.values() if field in part.model_fields)
        place = ".".join([next(owners, "DataConfig"), *([field] if field else [])])
        sources = _sources_of(place, configs)
        if not sources:
            continue
        sent = {name: getattr(config, name) for name, config in sources.items()}
        expected = finding.expected if field else finding.what
        if field and (value := values.get(field)) not in sent.values():
            expected = f"{place} {expected}; it came to {format_value(value)}"
        usual = (f"{name} = {format_value(getattr(type(config), name))}" for name, config in sources.items())
        findings[number] = Finding(
            f"{', '.join(f'{name} = {format_value(value)}' for name, value in sent.items())} is not allowed",
            where=f"{PLACE}, {', '.join(sent)}",
            expected=expected,
            fix=f"choose another value; Ptychodus begins with {', '.join(usual)}",
            code=finding.code,
        )
    raise SettingsError.from_findings(findings)


def _sources_of(place: str, configs: Configs) -> dict[str, Keywords]:
    """Return keyword -> its config, of those that go to a config field: the changed ones, or else all.

    A place without a field is a rule between fields; what Ptychodus sends can only break one of those.
    """
    between = place == "DataConfig"
    sources = {
        name: getattr(configs, section)
        for section, rows in KEYWORDS.items()
        for name, goes in rows.items()
        if place in goes.to.split(", ") or (between and name in _WINDOW)
    }
    changed = {name: config for name, config in sources.items() if _differs(config, name)}
    return sources if between else changed or sources


def _data_values(configs: Configs) -> dict[str, Any]:
    data, g = configs.data, configs.gridsize
    values: dict[str, Any] = {
        "gridsize": g,
        "neighbor_count": None,
        "min_neighbor_distance_px": 0.0,
        "max_neighbor_distance_px": None,
        "grouping": "nearest",
        "x_bounds": tuple(data.x_bounds),
        "y_bounds": tuple(data.y_bounds),
    }
    if g == 1:
        return values
    values["grouping"] = _GROUPINGS.get(data.neighbor_function, "nearest")
    count = data.K_quadrant if values["grouping"] == "quadrant" else data.K
    values["neighbor_count"] = max(int(count), g * g - 1)
    if values["grouping"] == "distance":
        values["min_neighbor_distance_px"] = float(data.min_neighbor_distance)
        high = float(data.max_neighbor_distance)
        values["max_neighbor_distance_px"] = None if math.isinf(high) else high
    return values


def _activations() -> tuple[str, ...]:
    return get_args(ScienceModel.model_fields["amp_activation"].annotation)


def _variations(model: ModelConfig) -> dict[str, float]:
    """Return keyword -> weight of the variation losses that are asked for."""
    names = [loss for loss in ("amp_loss", "phase_loss") if getattr(model, loss) == "Total_Variation"]
    return {f"{loss}_coeff": float(getattr(model, f"{loss}_coeff")) for loss in names}


def from_science(science: ScienceConfig) -> Configs:
    """Return keywords that mean the given science: for a model that was not trained by way of Ptychodus."""
    data, model, training = science.data, science.model, science.training
    words = {ours: theirs for theirs, ours in _GROUPINGS.items()}
    g = data.gridsize
    count = (
        {} if data.neighbor_count is None else {"K": data.neighbor_count, "K_quadrant": data.neighbor_count}
    )
    high = data.max_neighbor_distance_px
    return Configs(
        data=DataConfig(
            N=data.N,
            C=g * g,
            grid_size=(g, g),
            neighbor_function=words[data.grouping],
            x_bounds=data.x_bounds,
            y_bounds=data.y_bounds,
            n_subsample=1,
            min_neighbor_distance=data.min_neighbor_distance_px,
            max_neighbor_distance=math.inf if high is None else high,
            **count,
        ),
        model=ModelConfig(
            mode="Supervised" if training.loss == "supervised" else "Unsupervised",
            object_big=model.object_big,
            loss_function="MAE" if training.loss in ("auto", "mae") else "Poisson",
            amp_activation=model.amp_activation,
            intensity_scale_trainable=model.intensity_scale_trainable,
            n_filters_scale=model.n_filters / FILTERS,
            C_model=g * g,
            C_forward=g * g,
            decoder_last_amp_channels=g * g,
            amp_loss="Total_Variation" if training.tv_weight else None,
            amp_loss_coeff=training.tv_weight or 1.0,
        ),
        training=TrainingConfig(epochs=training.epochs, nll=training.loss not in ("auto", "mae")),
        inference=InferenceConfig(patch_weighting=science.inference.patch_weighting, middle_trim=0),
    )


# --- training and inference -----------------------------------------------------------------------------


def for_training(configs: Configs, *, n_pixels: int, n_patterns: int, facts: MachineFacts) -> Translation:
    """Return what a training does with the keywords, on this machine and for a scan of this size.

    Args:
        configs: what Ptychodus sent.
        n_pixels: N, the side of the scan's patterns.
        n_patterns: patterns within the bounds.
        facts: what this machine has.
    """
    science = to_science(configs)
    g = configs.gridsize
    groups = n_patterns * max(1, int(configs.data.n_subsample)) if g > 1 else None
    values: dict[str, Any] = {"N": n_pixels, "n_groups": groups, "out_of_canvas": "crop"}
    # None or at least one group is held back to validate on, and one is left to learn from.
    total, asked = groups or n_patterns, float(configs.training.finetune_val_split)
    held = min(asked, 1 - 1 / max(total, 1))
    values["val_fraction"] = 0.0 if 0 <= round(held * total) < 1 else held
    science = _science(values, science, configs)
    notes = (*_without_effect(configs), *_adapted_science(configs, n_pixels, values["val_fraction"]))
    execution, more = _training_execution(configs.training, facts)
    return Translation.of(science, execution, (*notes, *more), configs)


def for_inference(
    configs: Configs, base: ScienceConfig, n_pixels: int, facts: MachineFacts, *, n_modes: int
) -> Translation:
    """Return what a reconstruction does with the keywords of a trained model on this machine.

    Args:
        configs: what Ptychodus sent.
        base: science of the trained model.
        n_pixels: N, the side of the scan's patterns.
        facts: what this machine has.
        n_modes: P, the modes of the trained model's probe, which take memory.
    """
    inference = configs.inference
    trim = min(int(inference.middle_trim), n_pixels)
    known = [facts.memory_mb, facts.memory_limit_mb, *(gpu.memory_mb for gpu in facts.gpus)]
    smallest = min((mb for mb in known if mb), default=None)
    fits = int(inference.batch_size)
    if smallest is not None:
        pattern_bytes = (BYTES_PER_PIXEL + BYTES_PER_MODE * n_modes) * n_pixels**2
        fits = min(fits, max(1, int(smallest * 2**20 / 4 / pattern_bytes)))
    execution: dict[str, Any] = {
        "inference_batch_size": fits,
        "middle_trim": trim,
        "pad_eval": inference.pad_eval,
    }
    accelerator, notes = _accelerator(configs.training.device)
    if accelerator:
        execution["accelerator"] = accelerator
    if trim != inference.middle_trim:
        notes = (*notes, f"middle_trim: {inference.middle_trim} became {trim}, the side of a pattern")
    if fits != inference.batch_size:
        why = "for which a quarter of the memory is enough; results do not depend on it"
        notes = (*notes, f"batch_size: {inference.batch_size} became {fits}, {why}")
    notes = (*notes, *_plain_without_effect(inference, "inference"))
    changes = {"out_of_canvas": "crop"}
    if inference.patch_weighting in ("probe", "uniform"):
        changes["patch_weighting"] = inference.patch_weighting
    else:
        notes = (*notes, f"patch_weighting = {inference.patch_weighting} is not known here; probe is used")
    science, _ = split_overrides(changes, base)
    # Of the training's keywords only the device acts here.
    sent = replace(configs, training=TrainingConfig(device=configs.training.device))
    return Translation.of(science, execution, notes, sent)


def settings_for(execution: Mapping[str, Any], task: str) -> ExecutionSettings:
    """Resolve the settings: what Ptychodus sends is an argument; variables and files fill in the rest.

    Raises:
        SettingsError: a malformed value, with its place.
    """
    adapt = Factory("adapt", "Ptychodus sends the same words from every machine")
    defaults = {**(TRAINING_DEFAULTS if task == "train" else INFERENCE_DEFAULTS), "on_unsupported": adapt}
    if execution.get("num_workers"):
        defaults["persistent_workers"] = Factory(True, "starting workers anew can take longer than an epoch")
    request = Request(ExecutionSettings, arguments=dict(execution), place=PLACE, factory_defaults=defaults)
    try:
        return ExecutionSettings.from_resolution(resolve(request))
    except SettingsError as error:
        # A setting that Ptychodus sent is named as Ptychodus does: n_devices, and not devices.
        keywords = {goes.to: keyword for rows in KEYWORDS.values() for keyword, goes in rows.items()}
        findings = []
        for finding in error.findings:
            name, _, rest = finding.what.partition(" ")
            if finding.where == f"argument {PLACE}" and name in keywords:
                finding = replace(finding, what=f"{keywords[name]} {rest}")
            findings.append(finding)
        raise SettingsError.from_findings(findings) from None


def shadowed(settings: ExecutionSettings) -> Iterator[str]:
    """Say which variables and files lose against what Ptychodus sends."""
    for name, origin in settings.origins.items():
        if origin.place != PLACE:
            continue
        for lost in origin.shadowed:
            if lost.kind not in (Kind.FACTORY, Kind.DEFAULT) and format_value(lost.value) != format_value(
                origin.value
            ):
                sent = f"has no effect: Ptychodus sends {format_value(origin.value)}"
                yield f"{name}={format_value(lost.value)} from {lost.describe()} {sent}"


def unused_science(asked: ScienceConfig, meant: ScienceConfig) -> Iterator[str]:
    """Say which science of variables and files is another one than what Ptychodus sends comes to."""
    values = flat(meant)
    for name, origin in asked.origins.items():
        given, used = format_value(origin.value), format_value(values[name])
        if origin.kind not in (Kind.RECORDED, Kind.FACTORY, Kind.DEFAULT) and given != used:
            yield f"{name}={given} from {origin.describe()} has no effect: with Ptychodus it is {used}"


def _training_execution(
    training: TrainingConfig, facts: MachineFacts
) -> tuple[dict[str, Any], tuple[str, ...]]:
    execution: dict[str, Any] = {
        "batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
        "num_workers": training.num_workers,
        "accum_steps": training.accum_steps,
        "gradient_clip_val": training.gradient_clip_val,
    }
    accelerator, notes_on_device = _accelerator(training.device)
    notes = list(notes_on_device)
    if accelerator:
        execution["accelerator"] = accelerator
    devices, strategy = int(training.n_devices), training.strategy
    if devices > 1 and accelerator in ("cuda", "gpu") and not facts.gpus:
        # A number of GPUs does not become a number of CPU processes.
        notes.append(f"n_devices: {devices} became 1, because this machine has no CUDA device")
        devices = 1
    if devices == 1:
        if strategy not in (TrainingConfig().strategy, "auto"):
            notes.append(f"strategy = {strategy} has no effect: there is one device")
        strategy = "auto"  # in the calling process
    elif strategy not in SPAWNING:  # these alone do not start the calling program again
        why = f"strategy = {strategy} is not known here; ddp_spawn is used"
        if strategy in get_args(Strategy):
            why = f"strategy: {strategy} became ddp_spawn, because {strategy} would start Ptychodus again"
        notes.append(why)
        strategy = "ddp_spawn"
    scheduler = SCHEDULERS.get(training.scheduler, training.scheduler)
    if scheduler in get_args(ExecutionSettings.model_fields["scheduler"].annotation):
        execution["scheduler"] = scheduler
    else:
        notes.append(f"scheduler = {training.scheduler} is not known here; that of the settings is used")
    return {**execution, "devices": devices, "strategy": strategy}, tuple(notes)


def _accelerator(device: str) -> tuple[str | None, tuple[str, ...]]:
    word = device.split(":")[0].casefold()
    if word in ("auto", "cpu", "gpu", "cuda", "mps"):
        return word, ()
    return None, (f"device = {device} is not known here; the best of this machine is used",)


# --- what has no effect -----------------------------------------------------------------------------------


def _without_effect(configs: Configs) -> Iterator[str]:
    """Say which keywords have no effect although their value is not the one that is always sent."""
    for section in SECTIONS:
        if section != "inference":  # those act in a reconstruction, which tells
            yield from _plain_without_effect(getattr(configs, section), section)
    C, data, g = configs.data.C, configs.data, configs.gridsize
    for name in ("C_model", "C_forward", "decoder_last_amp_channels"):
        if getattr(configs.model, name) != C:  # Ptychodus sends C four times
            yield _ignored(name, getattr(configs.model, name), f"C = {C} says it all")
    if data.grid_size != (g, g) and _differs(data, "grid_size"):
        yield _ignored("grid_size", data.grid_size, f"C = {C} says it all")
    if g == 1:
        yield from _if_changed(configs, _GROUPED_ONLY, "groups have one pattern")
    else:
        inactive = ("K",) if data.neighbor_function == "4_quadrant" else ("K_quadrant",)
        yield from _if_changed(configs, inactive, f"neighbor_function is {data.neighbor_function}")
    if g == 1 or data.neighbor_function != "Min_dist":
        yield from _if_changed(configs, _WINDOW, "it acts with neighbor_function = Min_dist on groups")
    yield from _inactive_losses(configs)


def _plain_without_effect(config: Keywords, section: str) -> Iterator[str]:
    for name, goes in KEYWORDS[section].items():
        counted = name in ("C_model", "C_forward", "decoder_last_amp_channels", "grid_size")
        if not goes.to and not counted and _differs(config, name):
            yield _ignored(name, getattr(config, name), goes.note)


def is_usual(line: str, configs: Configs) -> bool:
    """Return whether a line says what became of a value that nobody changed.

    It begins with a keyword, or with the setting that one goes to.
    """
    name = line.partition(":")[0]
    sections = {
        section: keyword
        for section, rows in KEYWORDS.items()
        for keyword, goes in rows.items()
        if name in (keyword, goes.to)
    }
    return bool(sections) and not any(
        _differs(getattr(configs, section), keyword) for section, keyword in sections.items()
    )


def _differs(config: Keywords, name: str) -> bool:
    value, usual = getattr(config, name), getattr(type(config), name)
    return value is not usual and (not isinstance(value, (bool, int, float, str, tuple)) or value != usual)


def _ignored(name: str, value: Any, why: str) -> str:
    shown = str(value) if isinstance(value, (bool, int, float, str, tuple)) else type(value).__name__
    return f"{name} = {shown} has no effect: {why}"


def _inactive_losses(configs: Configs) -> Iterator[str]:
    """Say which keywords of losses have no effect because of another one's value."""
    model = configs.model
    if configs.supervised:
        inactive = _LOSS_ONLY if configs.gridsize == 1 else (*_LOSS_ONLY, "object_big")
        yield from _if_changed(configs, inactive, "Supervised compares with the object in the training data")
    else:
        yield from _if_changed(configs, ("phase_subtraction",), "only Supervised has labels")
        if model.loss_function != "Poisson":
            yield from _if_changed(configs, ("nll",), f"loss_function is {model.loss_function}")
    for loss, known in _LOSSES.items():
        if getattr(model, loss) not in known:
            yield from _if_changed(configs, (f"{loss}_coeff",), f"{loss} is {getattr(model, loss)}")
    weights = _variations(model)
    for name, weight in weights.items():
        if weight < (largest := max(weights.values())):
            yield f"{name}: {weight} became {largest}, because the variation has one weight, the larger"


def _if_changed(configs: Configs, names: tuple[str, ...], why: str) -> Iterator[str]:
    for section in SECTIONS:
        config = getattr(configs, section)
        for name in names:
            if name in KEYWORDS[section] and _differs(config, name):
                yield _ignored(name, getattr(config, name), why)


def _adapted_science(configs: Configs, n_pixels: int, val_fraction: float) -> Iterator[str]:
    """Values that are not possible for this scan or network, with what they became."""
    data, model, g = configs.data, configs.model, configs.gridsize
    if n_pixels != data.N:
        yield f"N: {data.N} became {n_pixels}, the side of the patterns"
    if g * g != data.C:
        yield f"C: {data.C} became {g * g}, because groups are squares of at most 8 x 8 patterns"
    if g > 1:
        if data.neighbor_function not in _GROUPINGS:
            yield f"neighbor_function = {data.neighbor_function} is not known here; Nearest is used"
        name = "K_quadrant" if data.neighbor_function == "4_quadrant" else "K"
        if getattr(data, name) < g * g - 1:
            yield f"{name}: {getattr(data, name)} became {g * g - 1}, the neighbors that a group needs"
    if model.amp_activation not in _activations():
        yield f"amp_activation = {model.amp_activation} is not known here; that of the network is used"
    if model.loss_function not in ("Poisson", "MAE"):
        yield f"loss_function = {model.loss_function} is not known here; MAE is used"
    for name, known in _LOSSES.items():
        value = getattr(model, name)
        if value is not None and value not in known:
            yield _ignored(name, value, "there is no such loss here")
    held = configs.training.finetune_val_split
    if val_fraction < held:
        why = "to leave something to learn from" if val_fraction else "because the scan is small"
        yield f"finetune_val_split: {held} became {val_fraction:.4g}, {why}"
