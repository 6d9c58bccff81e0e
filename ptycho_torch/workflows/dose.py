"""How the dose of a scan shapes a training: what the network is shown, and what is compared with it.

From few counts a network that is shown a whole pattern learns its noise: more training makes the object
worse. There the counts are split, and their likelihood is followed (`physics.counts`, `physics.losses`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ptycho_exec.errors import DataError
from ptycho_torch.config import UPDATES, UPDATES_OF_FEW_COUNTS, ScienceConfig
from ptycho_torch.data.scan import ScanData
from ptycho_torch.reconstruction.yardsticks import sample_of
from ptycho_torch.settings import changed
from ptycho_torch.workflows.preparing import AUTO, Decision

_UPDATES = "modulus_updates", "prediction_updates"

FEW_COUNTS = 5.0
"""Counts on a good pixel of a pattern, on average, below which the network would learn their noise."""


def fitted_to_dose(
    science: ScienceConfig, scan: Any, say: Callable[[str], None] = lambda _: None
) -> ScienceConfig:
    """Return the science with what its dose decides, the evidence as its origin.

    scan: of other containers than scans the counts are not known.

    Raises:
        DataError: counts are to be split, and the patterns hold none.
    """
    training = science.training
    counts = counts_per_pixel(scan) if isinstance(scan, ScanData) else None
    if training.split_counts is True and counts is None:
        raise no_counts(scan)
    few = counts is not None and counts < FEW_COUNTS
    evidence = "the patterns do not tell their photons" if counts is None else _evidence(counts, few)
    found: dict[str, Any] = {}
    if training.loss == AUTO:
        found["loss"] = "poisson" if few or training.split_counts is True else "mae"
    loss = found.get("loss", training.loss)
    if training.split_counts == AUTO:
        found["split_counts"] = few and loss == "poisson"
    split = found.get("split_counts", training.split_counts)
    numbers = dict(zip(_UPDATES, UPDATES_OF_FEW_COUNTS if split else UPDATES, strict=True))
    updates = {name: number for name, number in numbers.items() if getattr(science.model, name) == AUTO}
    if few:
        for name, value in {**found, **updates}.items():
            say(Decision(name, value, evidence).line())
    science = changed(science, "training", found, evidence) if found else science
    return changed(science, "model", updates, evidence) if updates else science


def counts_per_pixel(scan: ScanData) -> float | None:
    """Return the mean count of a good pixel of a pattern; None where the patterns are no counts."""
    intensity, noise = sample_of(scan)
    if noise.source != "counts" or noise.gain is None:
        return None
    return float(intensity.mean(dtype=np.float64)) / noise.gain


def tell_noise(module: Any, scan: ScanData) -> None:
    """Give a network the unit of its counts, and what their noise leaves of its loss."""
    intensity, noise = sample_of(scan)
    if noise.source == "counts" and noise.gain is not None:
        module.count_unit = noise.gain
        module.health.noise_floor = module.noise_floor(torch.from_numpy(noise.draw(intensity)[0]))


def no_counts(scan: Any) -> DataError:
    """Return the error for counts that are to be split where there are none."""
    return DataError(
        "split_counts splits the photons of each pattern, and the patterns hold no counts",
        where=str(getattr(scan, "source", None) or "the patterns"),
        expected="whole numbers of photons, or a known number of detector units for each",
        fix="--split-counts false; or --gain VALUE, with the detector units of one photon",
    )


def _evidence(counts: float, few: bool) -> str:
    if few:
        return f"{counts:.2g} counts per pixel are few: a network would learn their noise"
    return f"{counts:.2g} counts per pixel are enough"
