"""`ScienceSettings`: what to run, from every place that can set it.

On the engine of the execution settings, with prefix `PTYCHO_TORCH_`, file `ptycho_torch.toml` and table
`[tool.ptycho_torch]`. The two share no field, so one file named by `--settings` can hold both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, model_validator
from pydantic_settings import SettingsConfigDict

from ptycho_exec.settings import ResolvedSettings
from ptycho_exec.sources.origins import Kind, Origin, Resolution
from ptycho_torch.config import (
    DataConfig,
    InferenceConfig,
    ModelConfig,
    ScienceConfig,
    TrainingConfig,
    refuse_unseen_probe,
)

SECTIONS: Mapping[str, type[DataConfig | ModelConfig | TrainingConfig | InferenceConfig]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "inference": InferenceConfig,
}
"""Part of a `ScienceConfig` -> its class."""


# pydantic takes the fields of the last base first.
class ScienceSettings(InferenceConfig, TrainingConfig, ModelConfig, DataConfig, ResolvedSettings):
    """What to run: every field of the four science configs, flat, resolved with an origin for each value.

    Raises:
        SettingsError: misspelt names, malformed values or contradictions, all of them in one report.
    """

    program: ClassVar[str] = "ptycho_torch"
    explained_by: ClassVar[str] = "ptycho-torch explain"

    model_config = SettingsConfigDict(
        env_prefix="PTYCHO_TORCH_",
        use_attribute_docstrings=False,  # nothing to read here; looking takes a while
    )

    @model_validator(mode="after")
    def _probe_is_seen(self) -> ScienceSettings:
        refuse_unseen_probe(self.probe_trainable, self.loss)
        return self

    @classmethod
    def from_config(cls, science: ScienceConfig) -> Self:
        """Return the settings of configs that are there; values written in code have that as their origin."""
        if not science.origins:
            return cls.from_values(flat(science), place="the configs")
        return cls.from_resolution(Resolution(cls, values=flat(science), origins=science.origins))

    @property
    def config(self) -> ScienceConfig:
        """The four configs, with the origins of these settings."""
        parts: dict[str, Any] = {
            section: part(**{name: getattr(self, name) for name in part.model_fields})
            for section, part in SECTIONS.items()
        }
        return with_origins(ScienceConfig(**parts), self.origins)


def with_origins(science: ScienceConfig, origins: Mapping[str, Origin]) -> ScienceConfig:
    """Return a copy that knows where its values came from."""
    known = science.model_copy()
    known._origins = dict(origins)  # type: ignore[misc]
    return known


def changed(science: ScienceConfig, section: str, values: Mapping[str, Any], reason: str) -> ScienceConfig:
    """Return a copy with derived `values` in one section; their origin is the `reason`."""
    part = getattr(science, section).model_copy(update=dict(values))
    revised = science.model_copy(update={section: part})
    derived = {
        name: Origin(Kind.FACTORY, "factory", value, reason=reason).shadowing(
            [origin] if (origin := science.origins.get(name)) else []
        )
        for name, value in values.items()
    }
    return with_origins(revised, {**science.origins, **derived}) if science.origins else revised


def flat(science: ScienceConfig) -> dict[str, Any]:
    """Return every science value by the name of its field."""
    parts: list[BaseModel] = [getattr(science, section) for section in SECTIONS]
    return {name: value for part in parts for name, value in part}
