"""What a training and an inference return: typed, and readable as mappings, as earlier callers do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.plan import Plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.build import DriftReport
from ptycho_torch.config import ScienceConfig
from ptycho_torch.data.scan import ScanData
from ptycho_torch.display import facts_html, facts_text
from ptycho_torch.evaluation import plots
from ptycho_torch.reconstruction.refine import RefineResult
from ptycho_torch.reconstruction.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ptycho_torch.workflows.clock import Parts


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

    def _facts(self) -> dict[str, Any]:
        """Return what is to be known of the result at a glance."""
        return {}

    def __repr__(self) -> str:
        return facts_text(type(self).__name__, self._facts())

    def _repr_html_(self) -> str:
        return facts_html(type(self).__name__, self._facts())

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)


@dataclass(eq=False, kw_only=True, repr=False)
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
    times: Parts
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

    def _facts(self) -> dict[str, Any]:
        losses = {name: values[-1] for name, values in self.curves().items()}
        return {
            "epochs": self.models["trainer"].current_epoch,
            "optimizer steps": self.models["trainer"].global_step,
            **{f"last {name}": value for name, value in losses.items()},
            "patterns per second": self.samples_per_second,
        }

    def curves(self) -> dict[str, list[float]]:
        """Return the losses of training and, where there is one, validation, epoch by epoch."""
        return {name: self.history[name] for name in ("train_loss", "val_loss") if self.history.get(name)}

    def plot(self) -> Figure:
        """Return a figure of the losses."""
        return plots.loss_figure(self.curves())

    def summary(self) -> dict[str, Any]:
        """Return how long was trained, how fast, and the last value of each metric, as plain data."""
        return {
            "epochs": self.models["trainer"].current_epoch,
            "optimizer_steps": self.models["trainer"].global_step,
            "samples_per_second": self.samples_per_second,
            "last": {name: values[-1] for name, values in self.history.items() if values},
        }


@dataclass(eq=False, kw_only=True, repr=False)
class InferenceResult(Result):
    """A finished reconstruction; every process of a run has one, a refinement only the first.

    Attributes:
        object: complex64 (H, W).
        coverage: float32 (H, W), summed patch weights; 0 is uncovered.
        amplitude, phase: float32 (H, W) of the object, the phase in radians.
        n_patches: patterns that the object was reconstructed from.
        verdict: whether the object is right, as far as its patterns can tell, and likely causes where it is
            not.
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
    verdict: Verdict
    notices: tuple[str, ...]
    scan: ScanData
    science: ScienceConfig
    settings: ExecutionSettings
    plan: Plan
    drift: DriftReport
    applied: Mapping[str, Any]
    times: Parts | None = None
    phases_turned_rad: float | None = None
    probe: NDArray[np.complex64] | None = None
    refine_losses: list[float] | None = None
    network_object: NDArray[np.complex64] | None = None
    refinement: RefineResult | None = None
    amplitude: NDArray[np.float32] = field(init=False)
    phase: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.amplitude, self.phase = np.abs(self.object), np.angle(self.object)

    def _facts(self) -> dict[str, Any]:
        height, width = self.object.shape
        refined = self.refinement
        return {
            "object": f"{height} x {width}, from {self.n_patches} patterns",
            "verdict": self.verdict.line(),
            **{f"likely cause {number}": cause.line() for number, cause in enumerate(self.verdict.causes, 1)},
            "refined": None
            if refined is None
            else f"{len(refined.losses)} epochs, loss {refined.losses[-1]:.4g}",
            "probe modes": None if self.probe is None else len(self.probe),
        }

    def plot(self) -> Figure:
        """Return a figure of amplitude and phase where the scan covers the object."""
        return plots.object_figure(self.object, coverage=self.coverage, pixel_size_m=self.scan.pixel_size_m)
