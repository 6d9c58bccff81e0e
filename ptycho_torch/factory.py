"""From a call's arguments to complete configs: science apart from execution, every override accounted for.

`overrides` may hold names of both kinds; each goes to the config that owns it, an unknown one is an error.
What took effect is listed in `overrides_applied`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ptycho_exec.errors import DataError, Finding, SettingsError
from ptycho_exec.fields.spec import field_specs, format_value
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.messages import bad_value
from ptycho_exec.sources.origins import PASSED_THROUGH, Kind, Origin
from ptycho_exec.sources.resolve import Factory
from ptycho_exec.sources.suggestions import unknown_name
from ptycho_torch.config import DataConfig, InferenceConfig, ModelConfig, ScienceConfig, TrainingConfig

PASSED_THROUGH.add(__name__.partition(".")[0])  # a value that a caller gave is shown with the caller's line

TRAINING_DEFAULTS: Mapping[str, Factory] = {
    "batch_size": Factory(8, "more optimizer steps per pattern reach a good object sooner"),
    "learning_rate": Factory(4e-3, "the largest rate that trains every seed with warm-up and clipping"),
    "scheduler": Factory("WarmupCosine", "a PINN started at full rate can settle on a flat object"),
    "gradient_clip_val": Factory(1.0, "early gradients are large while the object is flat"),
}
"""Execution values that training chooses where nobody did."""

INFERENCE_DEFAULTS: Mapping[str, Factory] = {
    "inference_batch_size": Factory(64, "large enough to be fast, small enough for any memory"),
}
"""Execution values that inference chooses where nobody did."""

ALIASES = {
    "nepochs": "epochs",
    "max_epochs": "epochs",
    "K": "neighbor_count",
    "n_images": "n_patterns",
    "n_subsample": "n_patterns",
    "n_filters_scale": "n_filters",
}
"""Names of the project that this one takes over from, with ours."""

_SECTIONS: Mapping[str, type[DataConfig | ModelConfig | TrainingConfig | InferenceConfig]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "inference": InferenceConfig,
}


@dataclass(frozen=True)
class TrainingPayload:
    """All that a training run needs, complete and validated before any data is read."""

    train_data_file: Path
    test_data_file: Path | None
    output_dir: Path
    science: ScienceConfig
    settings: ExecutionSettings
    overrides_applied: Mapping[str, Any] = field(default_factory=dict)

    @property
    def execution_config(self) -> ExecutionSettings:
        """The settings, under the name that code of the earlier project reads."""
        return self.settings


@dataclass(frozen=True)
class InferencePayload:
    """All that an inference run needs, complete and validated before any data is read."""

    model_path: Path | None
    test_data_file: Path
    output_dir: Path
    science: ScienceConfig
    settings: ExecutionSettings
    overrides_applied: Mapping[str, Any] = field(default_factory=dict)

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
) -> TrainingPayload:
    """Resolve and validate everything for a training run; `overrides` may name a `test_data_file`.

    Raises:
        SettingsError: an unknown name or a bad value in `overrides` or `execution_config`.
        DataError: a data file that is not there, or whose probe does not match `N`.
    """
    given = dict(overrides or {})
    test = given.pop("test_data_file", None)
    science, execution = split_overrides(given, science or ScienceConfig())
    settings = execution_settings(execution_config, execution, TRAINING_DEFAULTS)
    train = _existing(train_data_file, "training scan")
    science = with_size(science, train)
    applied = _applied(given, science, settings)
    if test is not None:
        applied["test_data_file"] = str(test)
    test_file = None if test is None else _existing(test, "test scan")
    return TrainingPayload(train, test_file, Path(output_dir), science, settings, applied)


def create_inference_payload(
    model_path: str | Path | None,
    test_data_file: str | Path,
    output_dir: str | Path,
    overrides: Mapping[str, Any] | None = None,
    execution_config: object = None,
) -> InferencePayload:
    """Resolve and validate everything for an inference run; the science comes from the trained model.

    `model_path` may be None with `start="flat"`, which uses no network.

    Raises:
        SettingsError: an unknown name or a bad value in `overrides` or `execution_config`.
        DataError: a model or scan that is not there or cannot be read.
    """
    from ptycho_torch.network.checkpoint import find_model, read_science

    given = dict(overrides or {})
    model = None if model_path is None else find_model(model_path)
    trained = ScienceConfig() if model is None else whole_scan(read_science(model))
    science, execution = split_overrides(given, trained)
    if model is None and science.inference.start != "flat":
        raise DataError(
            "no trained model is named",
            expected="a run directory or model file, or a reconstruction without a network",
            fix="name the --out directory of a training, or give --start flat --refine N",
        )
    settings = execution_settings(execution_config, execution, INFERENCE_DEFAULTS)
    scan = _existing(test_data_file, "scan")
    return InferencePayload(
        model, scan, Path(output_dir), science, settings, _applied(given, science, settings)
    )


def infer_probe_size(data_file: str | Path) -> int:
    """Return N, the side of the probe (and so of a pattern) in pixels, without reading the patterns.

    Raises:
        DataError: the file cannot be read or holds no probe.
    """
    from ptycho_torch.data.read import open_scan

    with open_scan(Path(data_file)) as files:
        product = files["positions"]
        name = product.format.probe(product.archive)
        shape = () if name is None else product.archive.member(name).shape
    if len(shape) < 2:
        raise DataError(
            "there is no probe in this scan",
            where=str(data_file),
            expected="a probe: (N, N), or (P, N, N) with P incoherent modes",
            fix="give N, or a file with a probe",
        )
    return shape[-2]  # the last axis of some files has length 1


def with_size(science: ScienceConfig, data_file: Path) -> ScienceConfig:
    """Fill in N from the probe where the config leaves it open."""
    if science.data.N is not None:
        return science
    data = science.data.model_copy(update={"N": infer_probe_size(data_file)})
    return science.model_copy(update={"data": data})


def whole_scan(science: ScienceConfig) -> ScienceConfig:
    """Return a trained model's science for inference, which covers all of a scan unless asked otherwise."""
    chosen = ("x_bounds", "y_bounds", "n_patterns", "n_groups")
    reset = {name: DataConfig.model_fields[name].default for name in chosen}
    return science.model_copy(update={"data": science.data.model_copy(update=reset)})


# --- configs out of what a caller has ---------------------------------------------------------------------


def split_overrides(
    overrides: Mapping[str, Any], science: ScienceConfig
) -> tuple[ScienceConfig, dict[str, Any]]:
    """Put each override into the config that owns its name; return the science and what is the execution's.

    Raises:
        SettingsError: one finding per unknown name or bad value.
    """
    execution = {name: value for name, value in overrides.items() if name in field_specs()}
    owners = {name: section for section, config in _SECTIONS.items() for name in config.model_fields}
    changes: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    findings: list[Finding] = []
    for name, value in overrides.items():
        own = ALIASES.get(name, name)
        if own in owners:
            changes[owners[own]][own] = value
        elif name not in execution:
            findings.append(unknown_name(name, (*owners, *field_specs()), where="overrides", noun="override"))
    updated = {
        section: _revised(getattr(science, section), values, findings) for section, values in changes.items()
    }
    if not findings:
        try:
            return ScienceConfig(**updated), execution
        except ValidationError as error:
            findings.append(_contradiction(error, "science configs"))
    raise SettingsError.from_findings(findings)


def _revised(config: Any, changes: Mapping[str, Any], findings: list[Finding]) -> Any:
    """Validate a config with changes; what is wrong goes to `findings`."""
    section, specs = type(config).__name__, field_specs(type(config))
    bad = [
        replace(bad_value(specs[name], Origin(Kind.OVERRIDE, "", value)), where=f"{section}.{name}")
        for name, value in changes.items()
        if not specs[name].accepts(value)
    ]
    findings += bad
    try:
        return config if bad or not changes else type(config)(**{**dict(config), **changes})
    except ValidationError as error:
        values = ", ".join(f"{name} = {format_value(value)}" for name, value in changes.items())
        finding = _contradiction(error, section)
        findings.append(replace(finding, expected=f"{finding.expected}, unlike {values}"))
        return config


def _contradiction(error: ValidationError, where: str) -> Finding:
    """Return the finding about a rule between fields; its message has the form `what; what to do`."""
    message = str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ")
    what, _, fix = message.partition("; ")
    return Finding(what, where=where, expected="values that go together", fix=fix, code="conflict")


def science_of(config: object) -> tuple[ScienceConfig, dict[str, Factory]]:
    """Read the science out of whatever config a caller has.

    Takes a ScienceConfig, a mapping, or an object with attributes (with parts `data`, `model`, `training`,
    `inference`, as earlier callers pass it). Execution values that such an object carries, a `batch_size`
    say, count as factory defaults: anything set in the execution settings wins over them.

    Raises:
        SettingsError: unknown names in a mapping, or bad values.
    """
    if config is None:
        return ScienceConfig(), {}
    if isinstance(config, ScienceConfig):
        return config, {}
    if isinstance(config, Mapping):
        values = dict(config)
    else:
        values = {}
        names = {name for section in _SECTIONS.values() for name in section.model_fields}
        names |= set(ALIASES) | set(field_specs())
        for part in (config, *(getattr(config, section, None) for section in _SECTIONS)):
            plain = (bool, int, float, str, tuple, list)
            values |= {name: value for name in names if isinstance(value := getattr(part, name, None), plain)}
    science, execution = split_overrides(values, ScienceConfig())
    return science, {name: Factory(value, "from the config") for name, value in execution.items()}


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


def _applied(
    overrides: Mapping[str, Any], science: ScienceConfig, settings: ExecutionSettings
) -> dict[str, Any]:
    """Return the value that each override, and each derived value, has in the finished configs."""
    applied = {name: getattr(settings, name) for name in overrides if name in field_specs()}
    for section in _SECTIONS:
        config = getattr(science, section)
        own = {ALIASES.get(name, name) for name in overrides} | {"N"}
        applied |= {name: getattr(config, name) for name in type(config).model_fields if name in own}
    return applied
