"""The network that a training begins with, where it is not a new one: its weights, and where they came from.

Probe, photon scale and everything else of the forward model are those of the new scan.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptycho_exec.errors import DataError, SettingsError
from ptycho_torch.config import ScienceConfig
from ptycho_torch.data.dataset import Batch
from ptycho_torch.factory import other_side
from ptycho_torch.network.checkpoint import MODEL_KEY, find_model, read_model
from ptycho_torch.network.predictor import weights_do_not_fit
from ptycho_torch.workflows.artifacts import content_sha256

NETWORK = "network."
"""What the names of the network's weights begin with in a module."""


@dataclass(frozen=True)
class Start:
    """A trained network to begin with.

    Attributes:
        place: the model file, or words for a network in memory.
        science: it was trained under.
        weights: of the network alone, by their names in it.
        sha256: of all weights of the model, as its run's manifest has it.
    """

    place: str
    science: ScienceConfig
    weights: Mapping[str, Tensor]
    sha256: str

    def record(self) -> dict[str, str]:
        """Return what a manifest says of it."""
        return {"started_from": self.place, "started_weights": self.sha256}

    def require_side(self, n: int) -> None:
        """Refuse patterns of another side than those that the network saw.

        Raises:
            SettingsError: they have another.
        """
        findings = list(other_side(n, self.science.data.N, self.place))
        if findings:
            raise SettingsError.from_findings(findings)


def start_of(given: Any) -> Start | None:
    """Return the network that a path or a training's result means; None of nothing.

    Raises:
        DataError: there is no model, or something else.
    """
    if given is None or isinstance(given, Start):
        return given
    if isinstance(given, (str, Path)):
        place, model = os.path.abspath(find_model(given)), read_model(given)
        state, science = model["state_dict"], ScienceConfig.model_validate(model[MODEL_KEY]["science"])
    elif isinstance(given, Mapping) and {"models", "science"} <= given.keys():
        place, science = "the result of an earlier training", given["science"]
        state = {
            name: value.detach().clone()
            for name, value in given["models"]["lightning_module"].state_dict().items()
        }
    else:
        raise DataError(
            f"a training cannot start from a {type(given).__name__}",
            where="start_from",
            expected="a run directory, a model file, or the result of a training",
            fix="pass the path of a run",
        )
    weights = {name.removeprefix(NETWORK): value for name, value in state.items() if name.startswith(NETWORK)}
    return Start(place, science, weights, content_sha256(state))


@torch.no_grad()
def begin_with(module: Any, start: Start, batch: Batch) -> None:
    """Put a trained network into a new module, which afterwards still knows what an untrained one is worth.

    Args:
        module: with a network that predicts a flat object.
        start: the network to take.
        batch: of the new scan, for the loss of a flat object.

    Raises:
        DataError: the weights are of another network.
    """
    module.health.begin_trained(float(module.loss(batch)[0]))
    try:
        module.network.load_state_dict(start.weights)
    except RuntimeError as error:
        finding = weights_do_not_fit(str(error).splitlines()[-1].strip(), start.place).findings[0]
        fix = "train without a network to start from, or use the version that wrote it"
        raise DataError.from_findings([replace(finding, fix=fix)]) from error
