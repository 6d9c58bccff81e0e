"""The science of a run: what the data are, which network, which loss, how to stitch. Never execution.

Light on purpose: no torch, so a GUI can build and pickle these without starting CUDA. How to run
(accelerator, batch size, learning rate, loaders ...) is `ptycho_exec.ExecutionSettings`; the two
never share a field.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Lt
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PrivateAttr,
    StringConstraints,
    field_validator,
    model_validator,
)

from ptycho_exec.fields.base import FrozenModel, ReadOnly, Table, read_sentences
from ptycho_exec.fields.model import (
    Contradiction,
    Line,
    NoneWord,
    NonNegative,
    Positive,
    as_integer,
    contradiction,
    plain,
)


class _Science(FrozenModel):
    """Frozen, strict about names, every default stated once."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _take_other_libraries(cls, value: Any) -> Any:
        return plain(value)


Extent = Annotated[tuple[float, float], "of two fractions with 0 <= low < high <= 1"]


class KeyMap(FrozenModel):
    """Where a file has the parts of a scan: a name in it, with slashes for groups, or another file.

    Another file is written FILE, or FILE:NAME where it holds several arrays: NPY, NPZ, HDF5 or text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    patterns: Annotated[Line | None, NoneWord] = None
    """(M, ky, kx), (ky, kx, M) or (ny, nx, ky, kx); of a group, all stacks in the order of their names."""
    positions: Annotated[Line | None, NoneWord] = None
    """(M, 2) or (2, M), also with two scan axes in the place of M, in the order of positions_order."""
    positions_y: Annotated[Line | None, NoneWord] = None
    """(M,) vertical positions, where each coordinate is an array of its own."""
    positions_x: Annotated[Line | None, NoneWord] = None
    """(M,) horizontal positions."""
    probe: Annotated[Line | None, NoneWord] = None
    """(N, N) or (P, N, N) complex; of further leading axes the first entry is taken."""
    object: Annotated[Line | None, NoneWord] = None
    """(H, W) complex, the truth or an earlier reconstruction."""
    mask: Annotated[Line | None, NoneWord] = None
    """(ky, kx), not 0 where a pixel is bad."""


Unit = Literal["auto", "px", "m", "mm", "um", "nm", "angstrom"]
UNITS_M: Mapping[str, float] = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "nm": 1e-9, "angstrom": 1e-10}
"""Meters in each unit of length of `Unit`."""
Orientation = Literal[
    "none",
    "flip-y",
    "flip-x",
    "flip-yx",
    "transpose",
    "transpose-flip-y",
    "transpose-flip-x",
    "transpose-flip-yx",
]
_POSITIONS = frozenset({"positions", "positions_y", "positions_x"})
_File = Annotated[Line | None, NoneWord]


class Preprocessing(_Science):
    """What is done to a scan between its file and the work, in this order; the defaults do nothing.

    Detector counts are corrected first, then pixels are masked, then the frames are turned, cut and binned;
    what depends on that - probe, mask, object, positions, pixel sizes - follows.
    """

    map: Annotated[Mapping[str, Any], "of parts of a scan with their names in the file", Table(KeyMap)] = (
        ReadOnly()
    )
    """Where the file has the parts of the scan, as `patterns=data,positions=scan`; {} takes known names."""
    positions_order: Literal["yx", "xy"] = "yx"
    """Which coordinate comes first in the positions that `map` names."""
    positions_unit: Unit = "auto"
    """Unit of the positions and of scan_step; auto takes what the file states, else object pixels."""
    pixel_size_m: Annotated[Annotated[FiniteFloat, Gt(0)] | None, NoneWord] = None
    """Side of an object pixel for the patterns as they are stored; none takes what the file has."""
    scan_step: Annotated[Annotated[FiniteFloat, Gt(0)] | tuple[FiniteFloat, FiniteFloat] | None, NoneWord] = (
        None
    )
    """Make the positions of a raster with this step, one number or y,x; none takes the file's positions."""
    scan_shape: Annotated[tuple[Positive, Positive] | None, NoneWord] = None
    """Rows and columns of that raster; none takes them from patterns of shape (ny, nx, ky, kx)."""
    scan_rotation_deg: FiniteFloat = 0.0
    """Turn that raster by this angle, from the x axis towards the y axis."""
    dark_file: _File = None
    """Dark frame that is subtracted: FILE or FILE:NAME, (ky, kx), or several, which are averaged."""
    pedestal: FiniteFloat = 0.0
    """Number that is subtracted from every value after the dark frame; negative where dim pixels are."""
    gain: Annotated[FiniteFloat, Gt(0)] = 1.0
    """Detector units per count; every value is divided by it."""
    clip_negative: bool = False
    """Set negative values to 0 and report how many there were; false refuses them."""
    threshold: Annotated[FiniteFloat, Ge(0)] = 0.0
    """Set values below this to 0, negative ones included, and report how many; 0 sets none."""
    mask_file: _File = None
    """Mask to use beside the file's own: FILE or FILE:NAME, (ky, kx) as stored, not 0 at bad pixels."""
    mask_marks: Literal["auto", "bad", "good"] = "auto"
    """Pixels where the mask file, or else the scan's mask, is not 0; auto is bad unless it looks inverted."""
    mask_suspects: bool = False
    """Mask the pixels that look hot, dead or stuck."""
    zero_frequency: Literal["center", "corner", "first-row", "first-column"] = "center"
    """Where the patterns have their zero frequency; it is moved to N/2 (fftshift along one axis or both)."""
    flip_patterns: Literal["none", "y", "x", "yx"] = "none"
    """Mirror the patterns about their zero frequency: up-down (y), left-right (x) or both; not the probe."""
    transpose_patterns: bool = False
    """Exchange rows and columns of the patterns, after flip_patterns; not of the probe."""
    center: Literal["none", "auto"] | tuple[FiniteFloat, FiniteFloat] = "none"
    """Move the beam to N/2 by whole pixels: from y,x, or from where it is found (auto); none leaves it."""
    crop: Annotated[Positive | None, NoneWord] = None
    """Keep the middle of each pattern, of this side in pixels; the object pixel grows accordingly."""
    pad: Annotated[Positive | None, NoneWord] = None
    """Surround each pattern with masked pixels up to this side; the object pixel shrinks accordingly."""
    bin: Positive = 1
    """Add up squares of so many pixels on a side; the probe's window shrinks, the object pixel stays."""
    orient: Orientation | Literal["auto"] = "none"
    """Exchange y and x of the positions (transpose), then negate coordinates (flip); auto tries them all."""
    position_affine: Annotated[
        tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat], "of four numbers"
    ] = (1.0, 0.0, 0.0, 1.0)
    """Matrix (yy, yx, xy, xx) that multiplies the positions [y, x], after orient."""
    probe: Annotated[str, "of a word or a path"] = "auto"
    """auto: the file's probe, if any; file: it must have one; estimate: from the patterns; else a path.

    A path is a result of ours (directory or reconstruction.npz), a product, a scan, or an array; its probe is
    resampled to the pixel size of this scan.
    """
    propagation: Literal["auto", "far"] = "auto"
    """auto refuses scans whose geometry or product says near field; far takes them as far field."""

    @field_validator("position_affine")
    @classmethod
    def _invertible(cls, matrix: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        yy, yx, xy, xx = matrix
        if abs(yy * xx - yx * xy) < 1e-12:
            raise ValueError(f"got {matrix}; the matrix of positions must be invertible, as 1,0,0,1 is")
        return matrix

    @field_validator("map")
    @classmethod
    def _positions_once(cls, names: Mapping[str, Any]) -> Mapping[str, Any]:
        parts = sorted(names.keys() & {"positions_y", "positions_x"})
        if len(parts) == 1 or (parts and "positions" in names):
            beside = " beside positions" if "positions" in names else " alone"
            raise ValueError(
                f"it names {', '.join(parts)}{beside}; name positions, or positions_y and positions_x"
            )
        return names

    @field_validator("center", "scan_step")
    @classmethod
    def _plain_pair(cls, value: Any) -> Any:
        if isinstance(value, tuple) and min(value) < 0:
            raise ValueError(f"got {value}; two numbers y,x of at least 0 are expected")
        return value

    @model_validator(mode="after")
    def _positions_agree(self) -> Preprocessing:
        for both in _positions_in_two_ways(self):
            raise contradiction(both)
        return self


def _positions_in_two_ways(chosen: Preprocessing) -> Iterator[Contradiction]:
    """Yield what is said twice about the positions, and what has nothing to act on."""
    whole, mapped = "positions" in chosen.map, not chosen.map.keys().isdisjoint(_POSITIONS)
    if chosen.orient == "auto" and chosen.position_affine != (1.0, 0.0, 0.0, 1.0):
        why = (
            "position_affine multiplies positions whose orientation is known, and orient = auto looks for it"
        )
        fix = "choose orient = auto first, then the orientation that it finds beside position_affine"
        yield Contradiction(("orient", "position_affine"), why, fix)
    if chosen.scan_step is None:
        angle = math.radians(chosen.scan_rotation_deg)
        c, s = round(math.cos(angle), 6) + 0.0, round(math.sin(angle), 6) + 0.0
        if chosen.scan_rotation_deg:
            why = "scan_rotation_deg turns the raster of scan_step, and there is none"
            fix = (
                f"choose a scan_step; or turn the file's positions: --position-affine={c},{s},{-s + 0.0},{c}"
            )
            yield Contradiction(("scan_rotation_deg", "scan_step"), why, fix)
        if chosen.scan_shape:
            why = "scan_shape describes the raster of scan_step, and there is none"
            yield Contradiction(("scan_shape", "scan_step"), why, "choose a scan_step, too")
    elif mapped:
        why = "the positions come from the file by map, and from scan_step"
        yield Contradiction(("map", "scan_step"), why, "choose one")
    if chosen.positions_order != "yx" and not whole:
        why = "positions_order is about the array that map names, and it names none"
        fix = "choose positions in map, too; or exchange the coordinates with orient = transpose"
        yield Contradiction(("positions_order", "map"), why, fix)


DROP_WORDS = ("far", "dark", "broken")
_DROP = rf"({'|'.join(DROP_WORDS)}|[0-9]+(-[0-9]+)?)"
_Dropped = Annotated[
    str,
    f"of {', '.join(DROP_WORDS)}, an index, or a range such as 3-7, separated by commas",
    StringConstraints(pattern=rf"^ *{_DROP}( *, *{_DROP})* *$"),
]


class DataConfig(Preprocessing):
    """How to read a scan, what to do to it, and how to group its diffraction patterns."""

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
    min_neighbor_distance_px: Annotated[FiniteFloat, Ge(0)] = 0.0
    """Lower bound of the distance window in object pixels, for `grouping = "distance"`."""
    max_neighbor_distance_px: Annotated[Annotated[FiniteFloat, Gt(0)] | None, NoneWord] = None
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
    drop: Annotated[_Dropped | None, NoneWord] = None
    """Patterns to leave out: `far` from all others, `dark`, `broken` (values that are no counts), or indices.

    Several are separated by commas, and a range of indices is written 3-7; none keeps all patterns.
    """

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


UpTo20 = Annotated[int, Interval(ge=0, le=20), BeforeValidator(as_integer)]
UpTo100 = Annotated[int, Interval(ge=0, le=100), BeforeValidator(as_integer)]


class ModelConfig(_Science):
    """The network and the forward model around it."""

    n_filters: Annotated[int, Interval(ge=4, le=4096), BeforeValidator(as_integer)] = 24
    """Width of the network's first level; each level down doubles it."""
    depth: Annotated[int, Interval(ge=1, le=6), BeforeValidator(as_integer)] = 2
    """Number of levels of the network for patterns of 64 x 64; each doubling of the side adds one."""
    modulus_updates: Literal["auto"] | UpTo20 = "auto"
    """Steps after the network that bring each patch closer to its measured amplitude, in training.

    auto: 1; of few counts, whose noise they would bring back, 0.
    """
    prediction_updates: Literal["auto"] | UpTo100 = "auto"
    """The same in prediction, in larger steps. auto: 3, where the object is sharpest; of few counts 1."""
    object_big: bool = True
    """Merge the patches of a group on a common canvas (the overlap constraint) before illumination."""
    probe_trainable: bool = False
    """Refine the probe together with the network."""
    intensity_scale_trainable: bool = True
    """Let the photon scale that ties normalised amplitude to counts move; supervised training has none."""
    amp_activation: Literal["softplus", "sigmoid", "silu"] = "softplus"
    """Function that keeps the network's amplitude non-negative; sigmoid bounds it to twice the mean."""

    def updates(self, *, predicting: bool) -> int:
        """Return how many modulus updates follow the network; auto means many counts."""
        chosen = self.prediction_updates if predicting else self.modulus_updates
        return UPDATES[predicting] if chosen == "auto" else chosen


UPDATES, UPDATES_OF_FEW_COUNTS = (1, 3), (0, 1)
"""Modulus updates in training and in prediction that `auto` stands for."""


class TrainingConfig(_Science):
    """What is minimised and for how long."""

    epochs: Positive = 60
    """Number of passes over the training groups."""
    loss: Literal["auto", "mae", "poisson", "supervised"] = "auto"
    """mae: amplitude error; poisson: negative log likelihood of the counts; supervised: against labels.

    auto: poisson where the patterns hold few counts, else mae.
    """
    split_counts: Literal["auto"] | bool = "auto"
    """Split the counts of each pattern at random: one half is shown, the other compared (loss = poisson).

    So the network cannot learn the noise of a pattern. auto does where the patterns hold few counts.
    """
    tv_weight: Annotated[FiniteFloat, Ge(0)] = 0.0
    """Weight of the total variation of the predicted patches."""
    mean_deviation_weight: Annotated[FiniteFloat, Ge(0)] = 0.0
    """Weight of the deviation of the predicted amplitude from its mean."""
    val_fraction: Annotated[FiniteFloat, Ge(0), Lt(1)] = 0.0
    """Part of the training groups held back for validation when no test scan is given."""

    @model_validator(mode="after")
    def _halves_are_compared(self) -> TrainingConfig:
        if self.split_counts is True and self.loss not in ("auto", "poisson"):
            why = f"halves of counts are compared by their likelihood, and loss is {self.loss}"
            fix = "choose loss = poisson, or leave one of them out"
            raise contradiction(Contradiction(("split_counts", "loss"), why, fix))
        return self


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
    likelihood: Literal["auto", "counts", "amplitude"] = "auto"
    """What refinement follows: counts with Poisson noise, or amplitudes; auto: counts at low dose,
    of 64 patterns and more."""
    denoise: Literal["auto"] | bool = "auto"
    """Denoise the refined object by a network that learns from split counts; held-out ones decide how far.

    auto does where refinement follows counts, fewer than 500 fell on a pixel, and patterns are held out.
    """
    refine_probe: Literal["auto"] | bool = "auto"
    """Refine the probe with the object; auto does where the given one explains the patterns poorly."""
    probe_modes: Annotated[int, Interval(ge=1, le=64), BeforeValidator(as_integer)] = 1
    """Incoherent modes of the probe, for a partially coherent beam; those not given are refined."""
    refine_positions: bool = False
    """Correct the scan positions together with the object."""
    position_limit_px: Annotated[Annotated[FiniteFloat, Gt(0)] | None, NoneWord] = None
    """How far a position may move beside common scale, rotation and shear; none: 1/8 of a pattern's side."""
    refine_background: bool = False
    """Estimate a smooth intensity that lies under every pattern, such as scattered light or dark counts."""

    @model_validator(mode="after")
    def _refine_when_asked(self) -> InferenceConfig:
        asked = {
            "start": self.start == "flat",
            "likelihood": self.likelihood != "auto",
            "denoise": self.denoise is True,
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
        if self.denoise is True and self.likelihood == "amplitude":
            why = "what is noise is learned from counts, and likelihood is amplitude"
            fix = "choose likelihood = counts, or leave one of them out"
            raise contradiction(Contradiction(("denoise", "likelihood"), why, fix))
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
        fix = "choose loss = auto, mae or poisson, or leave it out"
        raise contradiction(Contradiction(("probe_trainable", "loss"), why, fix))


class ScienceConfig(_Science):
    """The four science configs of one run, and where their values came from if they were resolved."""

    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    inference: InferenceConfig = Field(default_factory=InferenceConfig)

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


read_sentences(KeyMap, Preprocessing, DataConfig, ModelConfig, TrainingConfig, InferenceConfig)
