"""The science of a run: what the data are, which network, which loss, how to stitch. Never execution.

Light on purpose: no torch, so a GUI can build and pickle these without starting CUDA. How to run
(accelerator, batch size, learning rate, loaders ...) is `ptycho_exec.ExecutionSettings`; the two
never share a field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Lt
from pydantic import BeforeValidator, ConfigDict, PrivateAttr, field_validator, model_validator

from ptycho_exec.fields.base import FrozenModel
from ptycho_exec.fields.model import (
    Contradiction,
    NoneWord,
    NonNegative,
    Positive,
    as_integer,
    contradiction,
    plain,
)


class _Science(FrozenModel):
    """Frozen, strict about names, every default stated once."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, defer_build=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _take_other_libraries(cls, value: Any) -> Any:
        return plain(value)


Extent = Annotated[tuple[float, float], "of two fractions with 0 <= low < high <= 1"]


class DataConfig(_Science):
    """How to read a scan and group its diffraction patterns."""

    N: Annotated[Positive | None, NoneWord] = None
    """Side of a diffraction pattern in pixels; none takes what the file has, a number must match it."""
    gridsize: Annotated[int, Interval(ge=1, le=8), BeforeValidator(as_integer)] = 1
    """g groups C = g*g neighboring patterns into one sample, coupled by the overlap constraint."""
    domain: Literal["auto", "amplitude", "intensity"] = "auto"
    """What the stored numbers are; auto detects it and refuses when it cannot be sure."""
    pattern_axes: Literal["auto", "first", "last"] = "auto"
    """Where the scan axis of the pattern stack lies; auto finds the axis as long as the positions."""
    patch_center: Literal["auto", "half-pixel", "pixel"] = "auto"
    """Which point of a patch a position means: index (N-1)/2 (half-pixel, Ptychodus 1.7) or N/2 (pixel).

    auto takes the file's declaration, else measures it with the file's own probe and object, else goes by
    the program that wrote the file.
    """
    canvas: Literal["auto", "positions"] = "auto"
    """auto reconstructs on the grid of the file's object; positions leaves that object out."""
    translation: Literal["auto", "probe", "sample"] = "auto"
    """What a CXI file's translations move; auto: the probe in Ptychodus files, else the sample (standard)."""
    grouping: Literal["nearest", "distance", "quadrant"] = "nearest"
    """How neighbors are chosen: nearest; within a distance window; spread over the four quadrants."""
    neighbor_count: Annotated[Positive | None, NoneWord] = None
    """K candidates per pattern, of which C - 1 neighbors are drawn; none takes the larger of 6 and C - 1."""
    min_neighbor_distance_px: Annotated[float, Ge(0)] = 0.0
    """Lower bound of the distance window in object pixels, for `grouping = "distance"`."""
    max_neighbor_distance_px: Annotated[Annotated[float, Gt(0)] | None, NoneWord] = None
    """Upper bound of the distance window in object pixels, for `grouping = "distance"`; none: no bound."""
    n_groups: Annotated[Positive | None, NoneWord] = None
    """Number of training groups; none makes one per pattern. More than patterns oversamples."""
    sequential: bool = False
    """Lead the groups with the patterns in scan order; false draws them with the run's seed."""
    x_bounds: Extent = (0.0, 1.0)
    """Part of the scan's horizontal extent that is used, as fractions."""
    y_bounds: Extent = (0.0, 1.0)
    """Part of the scan's vertical extent that is used, as fractions."""
    n_patterns: Annotated[Positive | None, NoneWord] = None
    """Use only this many patterns, drawn with the run's seed; none uses all."""
    allow_pickle: bool = False
    """Read NPZ members that need pickle. A pickle can run code: only for files that you trust."""

    allow_links: bool = False
    """Read HDF5 data that lie in other files, which the file names. Only for files that you trust."""

    @field_validator("x_bounds", "y_bounds")
    @classmethod
    def _ordered_fractions(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        low, high = bounds
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(f"got ({low}, {high}); two fractions with 0 <= low < high <= 1 are expected")
        return bounds

    @model_validator(mode="after")
    def _grouping_agrees(self) -> DataConfig:
        needed = self.gridsize**2 - 1
        if self.neighbor_count is not None and self.neighbor_count < needed:
            have = self.neighbor_count
            why = f"gridsize {self.gridsize} needs {needed} neighbors and neighbor_count is {have}"
            fix = f"choose neighbor_count >= {needed}, or leave it out"
            raise contradiction(Contradiction(("gridsize", "neighbor_count"), why, fix))
        low, high = self.min_neighbor_distance_px, self.max_neighbor_distance_px
        if self.grouping != "distance" and (low > 0 or high is not None):
            bound = "max_neighbor_distance_px" if high is not None else "min_neighbor_distance_px"
            why = f"a distance window has no effect with grouping = {self.grouping}"
            fix = "choose grouping = distance, or leave the window out"
            raise contradiction(Contradiction(("grouping", bound), why, fix))
        if high is not None and high <= low:
            bounds = ("min_neighbor_distance_px", "max_neighbor_distance_px")
            why = f"the distance window is empty: from {low} to {high} pixels"
            raise contradiction(Contradiction(bounds, why, "choose a larger upper bound"))
        return self


class ModelConfig(_Science):
    """The network and the forward model around it."""

    n_filters: Annotated[int, Interval(ge=4, le=4096), BeforeValidator(as_integer)] = 24
    """Width of the network's first level; each level down doubles it."""
    depth: Annotated[int, Interval(ge=1, le=6), BeforeValidator(as_integer)] = 2
    """Number of levels of the network for patterns of 64 x 64; each doubling of the side adds one."""
    modulus_updates: Annotated[int, Interval(ge=0, le=20), BeforeValidator(as_integer)] = 1
    """Steps after the network that bring each patch closer to its measured amplitude, in training."""
    prediction_updates: Annotated[int, Interval(ge=0, le=100), BeforeValidator(as_integer)] = 3
    """The same in prediction, in larger steps; the object is sharpest at three or four."""
    object_big: bool = True
    """Merge the patches of a group on a common canvas (the overlap constraint) before illumination."""
    probe_trainable: bool = False
    """Refine the probe together with the network."""
    intensity_scale_trainable: bool = True
    """Let the photon scale that ties normalised amplitude to counts move; supervised training has none."""
    amp_activation: Literal["softplus", "sigmoid", "silu"] = "softplus"
    """Function that keeps the network's amplitude non-negative; sigmoid bounds it to twice the mean."""


class TrainingConfig(_Science):
    """What is minimised and for how long."""

    epochs: Positive = 60
    """Number of passes over the training groups."""
    loss: Literal["mae", "poisson", "supervised"] = "mae"
    """mae: amplitude error; poisson: negative log likelihood of the counts; supervised: against labels."""
    tv_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of the total variation of the predicted patches."""
    mean_deviation_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of the deviation of the predicted amplitude from its mean."""
    val_fraction: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Part of the training groups held back for validation when no test scan is given."""


class InferenceConfig(_Science):
    """How predicted patches become one object."""

    patch_weighting: Literal["probe", "uniform"] = "probe"
    """Weight of a pixel in the stitched object: probe intensity, or all alike."""
    window: Literal["none", "hann"] = "none"
    """Extra taper of each patch towards its edge."""
    align_phases: bool = True
    """Rotate all patches to a common phase before they are averaged; a pattern does not determine its own."""
    out_of_canvas: Literal["error", "crop"] = "error"
    """Patches that reach outside the object canvas: refuse, or crop with a counted warning."""
    refine: NonNegative = 0
    """Epochs of iterative refinement of the stitched object through the forward model; 0 refines nothing."""
    start: Literal["network", "flat"] = "network"
    """What refinement starts from; flat needs no network and is a plain iterative reconstruction."""
    refine_probe: Literal["auto"] | bool = "auto"
    """Refine the probe with the object; auto does where the given one explains the patterns poorly."""
    probe_modes: Annotated[int, Interval(ge=1, le=64), BeforeValidator(as_integer)] = 1
    """Incoherent modes of the probe, for a partially coherent beam; those not given are refined."""
    refine_positions: bool = False
    """Correct the scan positions together with the object."""
    position_limit_px: Annotated[Annotated[float, Gt(0)] | None, NoneWord] = None
    """How far a position may move beside common scale, rotation and shear; none: 1/8 of a pattern's side."""
    refine_background: bool = False
    """Estimate a smooth intensity that lies under every pattern, such as scattered light or dark counts."""

    @model_validator(mode="after")
    def _refine_when_asked(self) -> InferenceConfig:
        asked = {
            "start": self.start == "flat",
            "refine_probe": self.refine_probe is True,
            "probe_modes": self.probe_modes > 1,
            "refine_positions": self.refine_positions,
            "refine_background": self.refine_background,
        }
        names = [name for name, is_asked in asked.items() if is_asked]
        if names and not self.refine:
            why = f"epochs of refinement are needed for {', '.join(names)}, and refine is 0"
            raise contradiction(Contradiction(("refine", names[0]), why, "choose refine >= 1"))
        if self.probe_modes > 1 and self.refine_probe is False:
            why = f"{self.probe_modes} probe modes are found by refinement, and refine_probe is false"
            fix = "choose refine_probe = true, or leave it out"
            raise contradiction(Contradiction(("probe_modes", "refine_probe"), why, fix))
        if self.position_limit_px is not None and not self.refine_positions:
            why = "position_limit_px has no effect on positions that are not refined"
            fix = "choose refine_positions = true, or leave it out"
            raise contradiction(Contradiction(("position_limit_px", "refine_positions"), why, fix))
        return self


def refuse_unseen_probe(probe_trainable: bool, loss: str) -> None:
    """Refuse to train a probe that the loss never sees.

    Raises:
        PydanticCustomError: for a validator to raise.
    """
    if probe_trainable and loss == "supervised":
        why = "probe_trainable has no effect on a loss that compares with labels, not with patterns"
        fix = "choose loss = mae or poisson, or leave it out"
        raise contradiction(Contradiction(("probe_trainable", "loss"), why, fix))


class ScienceConfig(_Science):
    """The four science configs of one run, and where their values came from if they were resolved."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()

    _origins: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _probe_is_seen(self) -> ScienceConfig:
        refuse_unseen_probe(self.model.probe_trainable, self.training.loss)
        return self

    def __eq__(self, other: object) -> bool:
        """Compare values only: the same science from different places is the same science."""
        return isinstance(other, ScienceConfig) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    @property
    def origins(self) -> Mapping[str, Any]:
        """The origin of each field's value, by its name; empty for configs that were written in code."""
        return self._origins
