"""From a call's arguments to complete configs: science apart from execution, every override accounted for.

`overrides` may hold names of both kinds; each goes to the config that owns it, an unknown one is an error.
What took effect is listed in `overrides_applied`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ptycho_exec.errors import DataError, Finding, SettingsError
from ptycho_exec.fields.spec import field_specs, format_value
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind
from ptycho_exec.sources.resolve import Factory
from ptycho_exec.sources.suggestions import unknown_name
from ptycho_torch.config import DataConfig, InferenceConfig, ModelConfig, ScienceConfig
from ptycho_torch.settings import SECTIONS, ScienceSettings, changed, flat

TRAINING_DEFAULTS: Mapping[str, Factory] = {
    "batch_size": Factory(8, "more optimizer steps per pattern reach a good object sooner"),
    "learning_rate": Factory(4e-3, "the largest rate that trains every seed with warm-up and clipping"),
    "scheduler": Factory("WarmupCosine", "a PINN started at full rate can settle on a flat object"),
    "gradient_clip_val": Factory(1.0, "early gradients are large while the object is flat"),
}
"""Execution values that training chooses where nobody did."""

PRETRAINING_DEFAULTS: Mapping[str, Factory] = {
    **TRAINING_DEFAULTS,
    "batch_size": Factory(
        16, "more patterns per second than 8, and of simulated ones there are as many as wanted"
    ),
    "learning_rate": Factory(2e-3, "the rate that was measured on scans that no training saw"),
}
"""The same for a training on simulated objects."""

PRETRAINING_SCIENCE: Mapping[str, Factory] = {
    "epochs": Factory(40, "330,000 patterns: a quarter of an hour on two cores for 64 x 64 pixels"),
}
"""Science values of such a training where nobody chose."""

INFERENCE_DEFAULTS: Mapping[str, Factory] = {
    "inference_batch_size": Factory(64, "large enough to be fast, small enough for any memory"),
}
"""Execution values that inference chooses where nobody did."""

RECONSTRUCTION_DEFAULTS: Mapping[str, Factory] = {
    "start": Factory("flat", "no trained network takes part"),
    "refine": Factory(30, "a probe that moves as well needs so many epochs"),
}
"""Science values that a reconstruction without a network begins with where nobody chose."""

NETWORK_SHAPE = ("n_filters", "depth", "amp_activation")
"""Fields that decide what the weights of a network mean."""
NETWORK_USE = ("modulus_updates", "prediction_updates")
"""Fields that the weights of a network have got used to."""

ALIASES = {
    "nepochs": "epochs",
    "max_epochs": "epochs",
    "K": "neighbor_count",
    "n_images": "n_patterns",
    "n_subsample": "n_patterns",
    "n_filters_scale": "n_filters",
}
"""Names of the project that this one takes over from, with ours."""


@dataclass(frozen=True)
class TrainingPayload:
    """All that a training run needs, complete and validated before any data is read."""

    train_data_file: Path
    test_data_file: Path | None
    output_dir: Path
    science: ScienceConfig
    settings: ExecutionSettings
    overrides_applied: Mapping[str, Any] = field(default_factory=dict)
    start_from: Path | None = None
    """The model file whose network the training begins with; None begins with a new one."""

    task: ClassVar[str] = "train"

    @property
    def execution_config(self) -> ExecutionSettings:
        """The settings, under the name that code of the earlier project reads."""
        return self.settings


PHOTONS = (1e3, 1e7)
"""Fewest and most photons of a simulated pattern."""
LEAST_PHOTONS, MOST_PHOTONS = 1.0, 1e9
"""What they may be: of less than one there is no pattern, and more than that are no noise any more."""


@dataclass(frozen=True)
class PretrainingPayload(TrainingPayload):
    """The same for a training on simulated objects; its `train_data_file` is that of the probe."""

    photons: tuple[float, float] = PHOTONS
    """Fewest and most photons of a pattern."""

    task: ClassVar[str] = "pretrain"


@dataclass(frozen=True)
class InferencePayload:
    """All that an inference run needs, complete and validated before any data is read."""

    model_path: Path | None
    test_data_file: Path
    output_dir: Path
    science: ScienceConfig
    settings: ExecutionSettings
    overrides_applied: Mapping[str, Any] = field(default_factory=dict)

    task: ClassVar[str] = "infer"

    @property
    def execution_config(self) -> ExecutionSettings:
        """The settings, under the name that code of the earlier project reads."""
        return self.settings


def create_training_payload(
    train_data_file: str | Path,
    output_dir: str | Path,
    overrides: Mapping[str, Any] | None = None,
    execution_config: object = None,
    *,
    science: ScienceConfig | None = None,
    start_from: str | Path | None = None,
) -> TrainingPayload:
    """Resolve and validate everything for a training run; `overrides` may name a `test_data_file`.

    Science and settings that are not given are resolved from environment, files and profile. `start_from` is
    a run directory or model file whose network the training begins with; see `started_science`.

    Raises:
        SettingsError: an unknown name or a bad value in `overrides` or `execution_config`, or another network
            than the one to start from.
        DataError: a data file that is not there, or whose probe does not match `N`; no model to start from.
    """
    from ptycho_torch.data.other_files import from_here
    from ptycho_torch.network.checkpoint import find_model, read_science

    given = dict(overrides or {})
    test = given.pop("test_data_file", None)
    science, execution = split_overrides(given, science)
    start = None if start_from is None else find_model(start_from)
    settings = execution_settings(execution_config, execution, TRAINING_DEFAULTS)
    train = _existing(train_data_file, "training scan")
    science = from_here(with_size(science, train))
    if start is not None:
        science = started_science(science, read_science(start), str(start))
    applied = _applied(given, science, settings)
    if test is not None:
        applied["test_data_file"] = str(test)
    test_file = None if test is None else _existing(test, "test scan")
    return TrainingPayload(train, test_file, Path(output_dir), science, settings, applied, start)


def create_pretraining_payload(
    probe: str | Path,
    output_dir: str | Path,
    photons: tuple[float, float] = PHOTONS,
    execution_config: object = None,
    *,
    science: ScienceConfig | None = None,
) -> PretrainingPayload:
    """Resolve and validate everything for a training on simulated objects under a probe.

    Args:
        probe: a scan, a result of ours, a product, or a file with an array; of several arrays in a file the
            name follows a colon.
        output_dir: new directory for the run.
        photons: fewest and most of a pattern.
        execution_config: as in `create_training_payload`.
        science: as there.

    Raises:
        SettingsError: as there, or photons that are no range.
    """
    low, high = photons
    if not LEAST_PHOTONS <= low <= high <= MOST_PHOTONS:
        raise SettingsError(
            f"photons from {low:g} to {high:g} are no range of doses",
            where="--photons",
            expected=f"fewest and most photons of a pattern, between {LEAST_PHOTONS:g} and {MOST_PHOTONS:g}",
            fix=f"give two numbers, the fewest first, as in --photons {PHOTONS[0]:g} {PHOTONS[1]:g}",
        )
    if science is None:
        science = ScienceSettings().with_factory_defaults(**PRETRAINING_SCIENCE).config
    settings = execution_settings(execution_config, {}, PRETRAINING_DEFAULTS)
    applied = _applied({}, science, settings)
    return PretrainingPayload(
        Path(probe), None, Path(output_dir), science, settings, applied, photons=(float(low), float(high))
    )


def create_inference_payload(
    model_path: str | Path | None,
    test_data_file: str | Path,
    output_dir: str | Path,
    overrides: Mapping[str, Any] | None = None,
    execution_config: object = None,
    *,
    science: ScienceSettings | None = None,
) -> InferencePayload:
    """Resolve and validate everything for an inference run; the science comes from the trained model.

    `science` is what was asked for; None resolves it from environment, files and profile. What a trained
    model decides is said at `inference_science`.

    `model_path` may be None with `start="flat"`, which uses no network.

    Raises:
        SettingsError: an unknown name or a bad value in `overrides` or `execution_config`.
        DataError: a model or scan that is not there or cannot be read.
    """
    from ptycho_torch.data.other_files import from_here
    from ptycho_torch.network.checkpoint import find_model, read_science

    given = dict(overrides or {})
    model = None if model_path is None else find_model(model_path)
    asked = None if science is None else science.config
    if model is not None:
        asked = inference_science(read_science(model), str(model), science)
    whole, execution = split_overrides(given, asked)
    if model is None and whole.inference.start != "flat":
        raise DataError(
            "no trained model is named",
            expected="a run directory or model file, or a reconstruction without a network",
            fix="name the --out directory of a training, or give --start flat --refine N",
        )
    whole = from_here(whole)
    settings = execution_settings(execution_config, execution, INFERENCE_DEFAULTS)
    scan = _existing(test_data_file, "scan")
    return InferencePayload(model, scan, Path(output_dir), whole, settings, _applied(given, whole, settings))


def infer_probe_size(data_file: str | Path, data: DataConfig | None = None) -> int:
    """Return N, the side of the probe (and so of a pattern) in pixels, without reading the patterns.

    Raises:
        DataError: the file cannot be read or holds no probe.
    """
    from ptycho_torch.data.read import open_scan

    with open_scan(Path(data_file), data) as files:
        product = files["positions"]
        name = product.format.probe(product.archive)
        shape = () if name is None else product.archive.member(name).shape
    if len(shape) < 2:
        raise DataError(
            "there is no probe in this scan",
            where=str(data_file),
            expected="a probe: (N, N), or (P, N, N) with P incoherent modes",
            fix="--probe FILE takes it from elsewhere; --map probe=NAME says where the file has it",
        )
    return shape[-2]  # the last axis of some files has length 1


def with_size(science: ScienceConfig, data_file: Path) -> ScienceConfig:
    """Fill in N from the patterns, after preprocessing, where the config leaves it open."""
    if science.data.N is not None:
        return science
    from ptycho_torch.data.read import pattern_size

    size = pattern_size(data_file, science.data)
    return changed(science, "data", {"N": size}, f"side of the patterns in {data_file}")


def whole_scan(science: ScienceConfig) -> ScienceConfig:
    """Return a trained model's science for inference, which covers all of a scan unless asked not to.

    What belongs to the scan of the training alone is left out: what was dropped of it, and the probe that the
    network has learned.
    """
    chosen = ("x_bounds", "y_bounds", "n_patterns", "n_groups", "drop", "probe")
    reset = {name: DataConfig.model_fields[name].default for name in chosen}
    return changed(science, "data", reset, "an inference covers the whole scan")


# --- configs out of what a caller has ---------------------------------------------------------------------


def split_overrides(
    overrides: Mapping[str, Any], science: ScienceConfig | None
) -> tuple[ScienceConfig, dict[str, Any]]:
    """Put each override into the config that owns its name; return the science and what is the execution's.

    Without `science` the rest of it is resolved from environment, files and profile.

    Raises:
        SettingsError: one finding per unknown name or bad value.
    """
    execution = {name: value for name, value in overrides.items() if name in field_specs()}
    own = {ALIASES.get(name, name): value for name, value in overrides.items() if name not in execution}
    specs = field_specs(ScienceSettings)
    findings = [
        unknown_name(name, (*specs, *field_specs()), where="overrides", noun="override")
        for name in own
        if name not in specs
    ]
    known = {name: value for name, value in own.items() if name in specs}
    if science is not None and not own:
        return science, execution
    try:
        if science is None:
            settings = ScienceSettings(overrides=known)
        else:
            settings = ScienceSettings.from_config(science).with_overrides(**known)
    except SettingsError as error:
        findings += error.findings
    if findings:
        raise SettingsError.from_findings(findings)
    return settings.config, execution


def science_of(config: object) -> tuple[ScienceConfig, dict[str, Factory]]:
    """Read the science out of whatever config a caller has.

    None resolves it from environment, files and profile; a mapping does too, under its values. A
    ScienceConfig is taken as it is, and so is an object with attributes (with parts `data`, `model`,
    `training`, `inference`, as earlier callers pass it). Execution values that such an object carries, a
    `batch_size` say, count as factory defaults: anything set in the execution settings wins over them.

    Raises:
        SettingsError: unknown names in a mapping, or bad values.
    """
    if isinstance(config, ScienceConfig):
        return config, {}
    if config is None or isinstance(config, Mapping):
        science, execution = split_overrides(config or {}, None)
    else:
        values: dict[str, Any] = {}
        names = {*field_specs(ScienceSettings), *ALIASES, *field_specs()}
        for part in (config, *(getattr(config, section, None) for section in SECTIONS)):
            plain = (bool, int, float, str, tuple, list)
            values |= {name: value for name in names if isinstance(value := getattr(part, name, None), plain)}
        science, execution = split_overrides(values, ScienceConfig())
    return science, {name: Factory(value, "from the config") for name, value in execution.items()}


def inference_science(
    trained: ScienceConfig, place: str, asked: ScienceSettings | None = None
) -> ScienceConfig:
    """Return the science for an inference with a trained model.

    How the data are grouped, the network and its training are the model's: only arguments and flags change
    them. How to stitch and refine is free; where nobody says, it is as the model was trained. The whole scan
    is covered.

    Args:
        trained: the model's own.
        place: where that is kept.
        asked: what this inference asks for; None resolves it from environment, files and profile.
    """
    whole = flat(whole_scan(trained))
    fixed = {name: value for name, value in whole.items() if name not in InferenceConfig.model_fields}
    free = {
        name: Factory(value, "as in the training")
        for name, value in trained.inference
        if value != InferenceConfig.model_fields[name].default
    }
    settings = (asked or ScienceSettings()).with_factory_defaults(**free)
    return settings.with_recorded(fixed, place=place).config


def started_science(science: ScienceConfig, trained: ScienceConfig, place: str) -> ScienceConfig:
    """Return the science of a training that begins with the network of another.

    What shapes the network is the other's; how many modulus updates follow it is, where nobody says.

    Args:
        science: of the new training.
        trained: of the other one.
        place: where that is kept.

    Raises:
        SettingsError: a call or a flag asks for another network, or the patterns have another side.
    """
    model = dict(trained.model)
    shape = {name: model[name] for name in NETWORK_SHAPE}
    use = {name: Factory(model[name], f"as in {place}") for name in NETWORK_USE}
    if science.origins:
        settings = ScienceSettings.from_config(science)
    else:  # configs written in code: of the network's fields only what is written there was chosen
        unset = ModelConfig.model_fields.keys() - science.model.model_fields_set
        chosen = {name: value for name, value in flat(science).items() if name not in unset}
        settings = ScienceSettings.from_values(chosen, place="the configs")
    settings = settings.with_recorded(shape, place=place).with_factory_defaults(**use)
    findings = [
        Finding(
            f"{name} is {format_value(getattr(settings, name))}, and the network to start from has "
            f"{format_value(value)}",
            where=f"{settings.origins[name].describe()}; the network: {place}",
            expected="the shape of that network",
            fix=f"leave {name} out; or train anew, without a network to start from",
            code="another-network",
            field=name,
        )
        for name, value in shape.items()
        if getattr(settings, name) != value
    ]
    findings += other_side(settings.N, trained.data.N, place)
    if findings:
        raise SettingsError.from_findings(findings)
    return settings.config


def other_side(side: int | None, trained: int | None, place: str) -> Iterator[Finding]:
    """Yield a finding where patterns have another side, in pixels, than those that a network saw."""
    if side is not None and trained is not None and side != trained:
        change = "crop" if side > trained else "pad"
        yield Finding(
            f"the patterns have {side} x {side} pixels, and the network to start from saw {trained} x "
            f"{trained}",
            where=place,
            expected=f"patterns of {trained} x {trained} pixels",
            fix=f"{change} = {trained}; or train anew, without a network to start from",
            code="another-network",
            field="N",
        )


def overruled(science: ScienceConfig) -> Iterator[Finding]:
    """Yield a note for each value of environment and files that the trained model's takes the place of."""
    for name, origin in science.origins.items():
        for other in origin.shadowed[:1] if origin.kind is Kind.RECORDED else ():
            if other.kind is not Kind.DEFAULT and other.value != origin.value:
                given, trained = format_value(other.value), format_value(origin.value)
                what = f"{name} = {given} ({other.describe()}) has no effect: the model has {trained}"
                yield Finding(what, level="note", code="no-effect", field=name)


def execution_settings(
    execution_config: object, overrides: Mapping[str, Any], factory_defaults: Mapping[str, Any]
) -> ExecutionSettings:
    """Return complete settings: `overrides` over `execution_config` over what a workflow derives.

    None resolves environment, files and profile; a mapping of values does too, under those values. Settings
    that are complete already are returned as they are.

    Raises:
        SettingsError: unknown names or bad values.
    """
    if execution_config is None or isinstance(execution_config, Mapping):
        both = {**(execution_config or {}), **overrides}
        return ExecutionSettings(overrides=both, factory_defaults=factory_defaults)
    settings = execution_config
    if not isinstance(settings, ExecutionSettings):
        known = {name: getattr(settings, name) for name in field_specs() if hasattr(settings, name)}
        settings = ExecutionSettings.from_values(known, place=type(execution_config).__name__)
    unset = {
        name: default
        for name, default in factory_defaults.items()
        if name not in settings.origins or settings.origins[name].kind is Kind.DEFAULT
    }
    settings = settings.with_factory_defaults(**unset) if unset else settings
    return settings.with_overrides(**overrides) if overrides else settings


def _existing(path: str | Path, what: str) -> Path:
    if not Path(path).exists():
        raise DataError(
            f"{what} not found", where=str(path), expected="an existing file", fix="correct the path"
        )
    return Path(path)


_ASKED = (Kind.ARGUMENT, Kind.OVERRIDE, Kind.FLAG, Kind.CONTEXT)


def _applied(
    overrides: Mapping[str, Any], science: ScienceConfig, settings: ExecutionSettings
) -> dict[str, Any]:
    """Return the value that each override, and each derived value, has in the finished configs."""
    applied = {name: getattr(settings, name) for name in overrides if name in field_specs()}
    asked = {name for name, origin in science.origins.items() if origin.kind in _ASKED}
    own = {ALIASES.get(name, name) for name in overrides} | asked | {"N"}
    return applied | {name: value for name, value in flat(science).items() if name in own}
