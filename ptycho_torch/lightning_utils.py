"""What Ptychodus asks about checkpoints."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptycho_exec.errors import DataError
from ptycho_torch.bundle import read_checkpoint
from ptycho_torch.config_params import LOGGER

logger = logging.getLogger(LOGGER)


def find_best_checkpoint(directory: Path) -> Path | None:
    """Return the checkpoint below a directory whose monitored metric was best; None when there is none.

    The metric is read out of the checkpoints themselves: each records those that were best so far. Of equal
    ones the newest wins; those of which nothing is recorded come last; damaged files are passed over.
    """
    found: list[tuple[Path, Mapping[str, Any]]] = []
    for path in sorted(Path(directory).rglob("*.ckpt")):
        try:
            checkpoint = read_checkpoint(path)
        except DataError as error:
            logger.warning("%s is passed over: %s", path, str(error).splitlines()[0])
            continue
        if "state_dict" in checkpoint:
            found.append((path, checkpoint.get("callbacks") or {}))
    scores = _scores(found)
    ranked = sorted((path for path, _ in found), key=lambda path: _rank(path, scores))
    return ranked[0] if ranked else None


def _scores(found: list[tuple[Path, Mapping[str, Any]]]) -> dict[Path, float]:
    """Return file -> recorded score, turned so that smaller is better, also when the folder was moved."""
    scores: dict[Path, float] = {}
    for file, states in found:
        for key, state in states.items():
            if isinstance(state, Mapping) and isinstance(state.get("best_k_models"), Mapping):
                sign = -1.0 if "'mode': 'max'" in str(key) else 1.0
                for path, score in state["best_k_models"].items():
                    scores[file.parent / Path(path).name] = sign * float(score)
    return scores


def _rank(path: Path, scores: Mapping[Path, float]) -> tuple[float, float, str]:
    score = scores.get(path, math.nan)
    return (math.inf if math.isnan(score) else score, -path.stat().st_mtime_ns, path.name)
