"""What a training and an inference return: typed, and readable as mappings, as earlier callers do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.plan import Plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.build import DriftReport
from ptycho_torch.config import ScienceConfig
from ptycho_torch.data.scan import ScanData
from ptycho_torch.reconstruction.r_factor import RFactor
from ptycho_torch.reconstruction.refine import RefineResult
from ptycho_torch.workflows.times import PartTimes


class Result(MutableMapping[str, Any]):
    """Every attribute is an item of the same name."""

    def __getitem__(self, name: str) -> Any:
        return self.__dict__[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __delitem__(self, name: str) -> None:
        del self.__dict__[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __len__(self) -> int:
        return len(self.__dict__)


@dataclass(eq=False, kw_only=True)
class TrainingResult(Result):
    """A finished training.

    Attributes:
        history: metric -> value of each epoch.
        models: `lightning_module` and `trainer`.
        train_container, test_container: what was learned from and validated on.
        settings, plan: what was asked for, and what this machine does of it.
        drift: what was asked of the Trainer beside what it has.
        times: seconds of the parts of fit.
        applied: values that took effect, with `read_back`: what Trainer and loaders have.
        inference: of the same call, where it also reconstructed.
    """

    history: dict[str, list[float]]
    models: dict[str, Any]
    train_container: Any
    test_container: Any
    science: ScienceConfig
    settings: ExecutionSettings
    plan: Plan
    drift: DriftReport
    times: PartTimes
    applied: Mapping[str, Any]
    inference: InferenceResult | None = None

    @property
    def module(self) -> Any:
        return self.models["lightning_module"]

    @property
    def samples_per_second(self) -> float | None:
        """Training samples per second without the first step; None when there was no second one."""
        callbacks = self.models["trainer"].callbacks
        return next((cb.samples_per_second for cb in callbacks if hasattr(cb, "samples_per_second")), None)

    def summary(self) -> dict[str, Any]:
        """Return how long was trained, how fast, and the last value of each metric, as plain data."""
        return {
            "epochs": self.models["trainer"].current_epoch,
            "optimizer_steps": self.models["trainer"].global_step,
            "samples_per_second": self.samples_per_second,
            "last": {name: values[-1] for name, values in self.history.items() if values},
        }


@dataclass(eq=False, kw_only=True)
class InferenceResult(Result):
    """A finished reconstruction; every process of a run has one, a refinement only the first.

    Attributes:
        object: complex64 (H, W).
        coverage: float32 (H, W), summed patch weights; 0 is uncovered.
        amplitude, phase: float32 (H, W) of the object, the phase in radians.
        n_patches: patterns that the object was reconstructed from.
        consistency: how well the object explains its patterns; None where that cannot be known.
        notices: what the user should know of the result.
        drift, applied: as in a training.
        times: seconds of the parts of predict; None without a network.
        phases_turned_rad: root mean square of the phases by which patches were rotated.
        probe, refine_losses, network_object: of a refinement: complex64 (P, N, N), loss of each epoch, and
            the network's own object where there was one.
        refinement: all that the refinement found: placement, probe modes, positions, background.
    """

    object: NDArray[np.complex64]
    coverage: NDArray[np.float32]
    n_patches: int
    consistency: RFactor | None
    notices: tuple[str, ...]
    scan: ScanData
    science: ScienceConfig
    settings: ExecutionSettings
    plan: Plan
    drift: DriftReport
    applied: Mapping[str, Any]
    times: PartTimes | None = None
    phases_turned_rad: float | None = None
    probe: NDArray[np.complex64] | None = None
    refine_losses: list[float] | None = None
    network_object: NDArray[np.complex64] | None = None
    refinement: RefineResult | None = None
    amplitude: NDArray[np.float32] = field(init=False)
    phase: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.amplitude, self.phase = np.abs(self.object), np.angle(self.object)
