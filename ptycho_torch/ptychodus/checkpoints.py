"""Ptychodus's keywords in and out of checkpoints: each checkpoint of a training with it explains itself."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback

from ptycho_exec.errors import DataError, SettingsError
from ptycho_torch.config import ScienceConfig
from ptycho_torch.network.checkpoint import MODEL_KEY, model_part, read_checkpoint
from ptycho_torch.ptychodus.keywords import LOGGER, Keywords
from ptycho_torch.ptychodus.translation import SECTIONS, Configs, from_science, to_science

logger = logging.getLogger(LOGGER)

KEYWORDS_KEY = "ptychodus"
_PLAIN = (bool, int, float, str, type(None))
"""Types, exactly, that a checkpoint may hold; NumPy's scalars, which are floats as well, would need code."""


class SelfDescription(Callback):
    """Makes each checkpoint a model file, with the keywords that Ptychodus sent."""

    def __init__(self, science: ScienceConfig, about: Mapping[str, Any]) -> None:
        self.part = model_part(science, about)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        del trainer, pl_module
        checkpoint[MODEL_KEY] = self.part


def plain_keywords(configs: Configs) -> dict[str, dict[str, Any]]:
    """Return the keywords as plain data, which a checkpoint may hold; what has no plain form is left out.

    NumPy's scalars become Python's, and lists tuples.
    """
    plain = {
        section: {name: _plain(value) for name, value in values.items()}
        for section, values in configs.to_dict().items()
    }
    return {
        section: {name: value for name, value in values.items() if _is_plain(value)}
        for section, values in plain.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_is_plain, value)))


def read_configs(path: str | Path) -> tuple[Configs, ScienceConfig]:
    """Return the keywords and the science that a checkpoint was trained under.

    A checkpoint of `ptycho-torch train` has no keywords; those that mean the same are made up.

    Raises:
        DataError: the file is damaged, or another program's.
    """
    checkpoint = read_checkpoint(path)
    part = checkpoint.get(MODEL_KEY) or {}
    hyper = checkpoint.get("hyper_parameters") or {}
    sections = {section: hyper.get(f"{section}_config") for section in SECTIONS}
    if any(section is None for section in sections.values()):
        raise DataError(
            "this checkpoint was not written by this package",
            where=str(path),
            expected="a model that was trained by way of Ptychodus with it, or by `ptycho-torch train`",
            fix="train again: checkpoints of the earlier PtychoPINN hold another network",
        )
    science = ScienceConfig.model_validate({**(part.get("science") or {}), **sections})
    keywords = (part.get("about") or {}).get(KEYWORDS_KEY)
    return (from_science(science) if keywords is None else Configs.from_dict(keywords)), science


def as_science_configs(path: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return `load_from_checkpoint`'s arguments with Ptychodus's keyword classes translated into ours."""
    names = {f"{section}_config": section for section in SECTIONS}
    given = {
        names[key]: value for key, value in kwargs.items() if isinstance(value, Keywords) and key in names
    }
    if not given:
        return dict(kwargs)
    stored, science = read_configs(path)
    if "data" in given and given["data"].N != science.data.N:
        raise SettingsError(
            f"N = {given['data'].N}, and the network was trained for patterns of {science.data.N} pixels",
            where="data_config",
            expected=f"N = {science.data.N}",
            fix="take the configs that the checkpoint holds, or train a network for the other size",
        )
    sections: dict[str, Any] = {section: getattr(stored, section) for section in SECTIONS}
    meant = to_science(Configs(**{**sections, **given}), science)
    return {**kwargs, **{f"{section}_config": getattr(meant, section) for section in given}}


def find_best_checkpoint(directory: Path) -> Path | None:
    """Return the checkpoint below a directory whose monitored metric was best; None when there is none.

    The metric is read out of the checkpoints themselves: each records those that were best so far. Of equal
    ones the newest wins; those of which nothing is recorded come last; damaged files are passed over.
    """
    paths, scores = [], dict[Path, float]()
    for path in sorted(Path(directory).rglob("*.ckpt")):
        try:
            checkpoint = read_checkpoint(path)
        except DataError as error:
            logger.warning("%s is passed over: %s", path, str(error).splitlines()[0])
            continue
        if "state_dict" in checkpoint:
            paths.append(path)
            scores |= _scores(path, checkpoint.get("callbacks") or {})

    def rank(path: Path) -> tuple[float, float, str]:
        score = scores.get(path, math.nan)
        return (math.inf if math.isnan(score) else score, -path.stat().st_mtime_ns, path.name)

    return min(paths, key=rank, default=None)


def _scores(file: Path, states: Mapping[str, Any]) -> dict[Path, float]:
    """Return file -> recorded score, negative where larger is better, also when the folder was moved."""
    scores: dict[Path, float] = {}
    for key, state in states.items():
        if isinstance(state, Mapping) and isinstance(state.get("best_k_models"), Mapping):
            sign = -1.0 if "'mode': 'max'" in str(key) else 1.0
            for path, score in state["best_k_models"].items():
                scores[file.parent / Path(path).name] = sign * float(score)
    return scores
