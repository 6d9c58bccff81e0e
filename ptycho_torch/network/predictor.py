"""The network and the forward model around it, as far as prediction needs them: a plain module of torch.

Shape legend: B samples, C patterns of a group, P probe modes, N x N pixels.

A batch is a dict as `ptycho_torch.data.dataset` makes it. Every measured amplitude is compared with

    intensity_scale * sqrt(sum over modes of |far_field(probe shifted by the sub-pixel rest * patch)|^2)

where the patches lie on whole pixels of the object canvas; patches of a group are merged there first.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import BaseModel
from torch import Tensor, nn

from ptycho_exec.errors import DataError, SettingsError
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import DataConfig, InferenceConfig, ModelConfig, ScienceConfig, TrainingConfig
from ptycho_torch.data.dataset import Batch
from ptycho_torch.data.storage.patterns import at_once
from ptycho_torch.network.checkpoint import MODEL_KEY, find_model, read_model
from ptycho_torch.network.unet import build_network
from ptycho_torch.physics import forward as physics

Config = TypeVar("Config", bound=BaseModel)

_CONFIGS = ("model_config", "data_config", "training_config", "inference_config")


@dataclass(frozen=True, slots=True)
class OptimizationSettings:
    """The execution settings that act inside the module, rather than in the Trainer or the loaders."""

    learning_rate: float
    scheduler: str
    gradient_clip_val: float | None
    gradient_clip_algorithm: str
    checkpoint_monitor_metric: str
    checkpoint_mode: str
    compile: bool
    seed: int

    @classmethod
    def of(cls, execution: Any) -> OptimizationSettings:
        """Read them from an object with these attributes or a dict; what is absent takes its default."""
        read = execution.get if isinstance(execution, Mapping) else partial(getattr, execution)
        defaults = ExecutionSettings.model_fields
        return cls(**{f.name: read(f.name, defaults[f.name].default) for f in fields(cls)})


class ForwardModel(nn.Module):
    """The measurement: probe, photon scale and detector mask. Stays in 32 bits or more at any precision."""

    probe_parts: Tensor
    log_intensity_scale: Tensor
    good_pixels: Tensor
    reference_rms: Tensor
    scale_known: Tensor
    scale_of_each_scan = False
    """Whether a scan that is reconstructed gives the scale, as for a network that was trained for a beam."""

    def __init__(
        self, probe: Tensor, good_pixels: Tensor, *, train_probe: bool = False, train_scale: bool = False
    ) -> None:
        super().__init__()
        self.probe_parts = nn.Parameter(torch.view_as_real(probe).clone(), requires_grad=train_probe)
        self.log_intensity_scale = nn.Parameter(torch.zeros(()), requires_grad=train_scale)
        self.register_buffer("good_pixels", good_pixels.clone())
        self.register_buffer("reference_rms", torch.ones(()))
        self.register_buffer("scale_known", torch.zeros((), dtype=torch.bool))

    @property
    def probe(self) -> Tensor:
        """Probe modes (P, N, N) complex, as given; refined when it is trainable."""
        return torch.view_as_complex(self.probe_parts)

    @property
    def intensity_scale(self) -> Tensor:
        """s in: amplitude = s |far_field(probe * patch)|. Positive scalar."""
        return self.log_intensity_scale.exp()

    @torch.no_grad()
    def set_scale(self, scale: float) -> None:
        """Fix the scale's starting value and with it the unit in which amplitudes are near 1.

        Raises:
            DataError: the scale is not a positive number.
        """
        if not (math.isfinite(scale) and scale > 0):
            raise DataError(f"intensity_scale is {scale}", expected="a positive number")
        energy = float(physics.intensity(self.probe).sum())
        self.log_intensity_scale.fill_(math.log(scale))
        self.reference_rms.fill_(scale * math.sqrt(energy) / self.good_pixels.shape[-1])
        self.scale_known.fill_(True)

    @torch.no_grad()
    def forget_scale(self) -> None:
        """Leave the scale to each scan, as in a network that was trained for a beam."""
        self.scale_known.fill_(False)
        self.scale_of_each_scan = True

    def shifted_probe(self, shift_px: Tensor) -> Tensor:
        """Probe for each pattern, in the network's unit: shift (B, C, 2) -> (B, C, P, N, N)."""
        unit = (self.intensity_scale / self.reference_rms).detach()
        return physics.shift_subpixel(self.probe * unit, shift_px.unsqueeze(-2))

    def expected_intensity(self, patches: Tensor, shifted_probe: Tensor) -> Tensor:
        """Intensity (B, C, N, N) in the network's unit, with a gradient to patches, probe and scale."""
        gain = (
            self.log_intensity_scale - self.log_intensity_scale.detach()
        ).exp()  # 1, but it has a gradient
        return gain.square() * physics.forward_intensity(patches, shifted_probe)

    def _apply(self, fn: Any, recurse: bool = True) -> ForwardModel:
        """Follow moves between devices and to 64 bits, never to half precision."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            narrower = moved.is_floating_point() and moved.element_size() < tensor.element_size() <= 4
            return tensor.to(moved.device) if narrower else moved

        super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take the checkpoint's probe and mask even when the module was built with other shapes."""
        for name in ("probe_parts", "good_pixels"):
            stored, own = state_dict.get(prefix + name), getattr(self, name)
            if stored is not None and stored.shape != own.shape:
                own.data = torch.zeros(stored.shape, dtype=own.dtype, device=own.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Predictor(nn.Module):
    """Predicts object patches from diffraction patterns, with the weights of a training.

    Args:
        model_config, data_config, training_config, inference_config: classes of `ptycho_torch.config`, or
            plain dicts with their fields; none takes the defaults. `data_config.N` must be the side of a
            pattern, unless a probe or mask gives it.
        execution_config: object with the attributes of `ExecutionSettings`, a dict of them, or none.
        probe: (P, N, N) or (N, N) complex; needed to train.
        good_pixels: (N, N) bool, True where the detector can be trusted; none trusts all.
        intensity_scale: measured amplitude divided by that of a flat object under the probe (see
            `estimate_intensity_scale`); none estimates it from the first training batch.

    Raises:
        DataError: probe and mask do not fit, or hold NaN.
        SettingsError: N is not known, or the network does not fit it.
    """

    predicts_single_patterns = True
    """A prediction depends on its own pattern alone, so that inference need not form groups."""

    def __init__(
        self,
        model_config: ModelConfig | Mapping[str, Any] | None = None,
        data_config: DataConfig | Mapping[str, Any] | None = None,
        training_config: TrainingConfig | Mapping[str, Any] | None = None,
        inference_config: InferenceConfig | Mapping[str, Any] | None = None,
        execution_config: Any = None,
        probe: ArrayLike | Tensor | None = None,
        good_pixels: ArrayLike | Tensor | None = None,
        intensity_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.model_config = _config(ModelConfig, model_config)
        self.training_config = _config(TrainingConfig, training_config)
        self.inference_config = _config(InferenceConfig, inference_config)
        self.optimization = OptimizationSettings.of(execution_config)
        data = _config(DataConfig, data_config)
        n = _pattern_side(data, probe, good_pixels)
        self.data_config = data.model_copy(update={"N": n})
        self.network = build_network(self.model_config, n)
        # In supervised training nothing depends on photon scale or probe.
        physical = self.training_config.loss != "supervised"
        self.forward_model = ForwardModel(
            _probe_modes(probe, n),
            _mask(good_pixels, n),
            train_probe=self.model_config.probe_trainable and physical,
            train_scale=self.model_config.intensity_scale_trainable and physical,
        )
        if intensity_scale is not None:
            self.forward_model.set_scale(float(intensity_scale))

    def arguments(self) -> dict[str, Any]:
        """Return what builds such a module again, without probe and weights, as plain dicts."""
        configs = {name: getattr(self, name).model_dump(mode="json") for name in _CONFIGS}
        return {**configs, "execution_config": asdict(self.optimization)}

    def compile_as_asked(self) -> None:
        """Compile the network where the settings that it was built with say so."""
        if self.optimization.compile:
            self.network.unet.compile()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Take weights, as torch does.

        Raises:
            DataError: they belong to another network.
        """
        try:
            return super().load_state_dict(*args, **kwargs)
        except RuntimeError as error:
            raise weights_do_not_fit(str(error).splitlines()[-1].strip()) from error

    @property
    def probe(self) -> Tensor:
        """Probe modes (P, N, N) complex."""
        return self.forward_model.probe

    @property
    def good_pixels(self) -> Tensor:
        """(N, N) bool, True where the detector can be trusted."""
        return self.forward_model.good_pixels

    @property
    def intensity_scale(self) -> Tensor:
        """s in: measured amplitude = s |far_field(probe * patch)|."""
        return self.forward_model.intensity_scale

    # --- prediction

    def forward(self, amplitude: Tensor, positions_px: Tensor) -> Tensor:
        """Predict object patches on whole pixels of the canvas.

        Args:
            amplitude: (B, C, N, N) measured amplitude in the file's units.
            positions_px: (B, C, 2) canvas index of the patch centers.

        Returns:
            (B, C, N, N) complex; pixel k lies at canvas index round(position - (N-1)/2) + k. A mean amplitude
            near 1: `intensity_scale` carries the counts.
        """
        _, rest = physics.split_position(positions_px, amplitude.shape[-1])
        probe = self.forward_model.shifted_probe(rest)
        return self._predict(amplitude, probe, self.model_config.updates(predicting=True), predicting=True)

    def _predict(self, amplitude: Tensor, probe: Tensor, updates: int, *, predicting: bool) -> Tensor:
        measured = amplitude / self.forward_model.reference_rms
        patches: Tensor = self.network(
            measured, probe.detach(), self.good_pixels, updates, predicting=predicting
        )
        return patches

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        """Return patches (B, C, N, N), the positions they lie at (B, C, 2) and their index (B, C)."""
        del batch_idx
        self._require_probe()
        if not bool(self.forward_model.scale_known):
            raise DataError(
                "the photon scale of these patterns is not known to the model",
                expected="weights from a training on a scan, or intensity_scale",
                fix="train first, or load a checkpoint; a model of `ptycho-torch pretrain` gets that of a "
                "scan from `ptycho-torch infer`, or from `ptycho_torch.reconstruct`",
            )
        positions = full_precision(batch["positions_px"])
        grid, _ = physics.split_position(positions, batch["amplitude"].shape[-1])
        index = batch.get("index")
        if index is None:
            index = torch.arange(grid[..., 0].numel(), device=grid.device).reshape(grid.shape[:-1])
        amplitude = batch["amplitude"]
        # On a CPU in pieces, whose size follows that of the patterns: large ones would take much memory.
        pieces = at_once(amplitude.shape[-1]) if amplitude.device.type == "cpu" else len(amplitude)
        parts = zip(torch.split(amplitude, pieces), torch.split(positions, pieces), strict=True)
        patches = [self(*part) for part in parts]
        return {
            "patches": torch.cat(patches) if len(patches) > 1 else patches[0],
            "positions_px": grid,
            "index": index,
        }

    def _require_probe(self) -> None:
        if not bool((self.probe != 0).any()):
            raise DataError(
                "the forward model has no probe",
                expected="probeGuess in the training file, (N, N) or (P, N, N) complex",
                fix="add a probe estimate to the file; it can be refined with ModelConfig.probe_trainable",
            )


PredictorT = TypeVar("PredictorT", bound=Predictor)


def load_module(kind: type[PredictorT], path: str | Path) -> tuple[PredictorT, ScienceConfig]:
    """Rebuild the module of a model file, on the CPU and in evaluation mode.

    Raises:
        DataError: as `read_model`; or the weights belong to another network.
    """
    checkpoint = read_model(path)
    module = kind(**checkpoint["hyper_parameters"])
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except DataError as error:
        place = str(find_model(path))
        raise DataError.from_findings(
            [replace(finding, where=place) for finding in error.findings]
        ) from error
    if not bool(module.forward_model.scale_known):
        module.forward_model.forget_scale()
    return module.eval(), ScienceConfig.model_validate(checkpoint[MODEL_KEY]["science"])


def estimate_intensity_scale(
    amplitude: ArrayLike | Tensor, probe: ArrayLike | Tensor, good_pixels: ArrayLike | Tensor | None = None
) -> float:
    """Scale s that gives a flat object of 1 the measured energy: sqrt(mean counts / probe energy).

    Args:
        amplitude: (..., N, N) measured amplitude of some patterns, any units.
        probe: (P, N, N) or (N, N) complex, any units.
        good_pixels: (N, N) bool; both energies count the good pixels only.

    Raises:
        DataError: the patterns or the probe are zero everywhere, or not finite.
    """
    measured = torch.as_tensor(amplitude).detach()
    modes = as_modes(torch.as_tensor(probe).detach())
    bare = physics.intensity(physics.far_field(modes))
    good = torch.ones_like(bare, dtype=torch.bool) if good_pixels is None else torch.as_tensor(good_pixels)
    counts = measured.square().reshape(-1, *bare.shape).double().mean(dim=0)
    ratio = float(counts[good].sum()) / max(float(bare[good].double().sum()), 1e-300)
    if not (math.isfinite(ratio) and ratio > 0 and float(bare.sum()) > 0):
        raise DataError(
            "the photon scale cannot be estimated: patterns or probe have no intensity",
            expected="finite patterns and a finite probe that are not zero everywhere",
            fix="check both with `ptycho-torch inspect`",
        )
    return math.sqrt(ratio)


def measured_as(
    module: PredictorT, amplitude: ArrayLike | Tensor, good_pixels: ArrayLike | Tensor
) -> PredictorT:
    """Return a copy of a network that was trained for a beam, with the photon scale and the mask of a scan.

    Args:
        module: a network that knows its probe.
        amplitude: (..., N, N) of some patterns, as `estimate_intensity_scale` takes it.
        good_pixels: (N, N) bool, those of the scan.

    Raises:
        DataError: patterns of another side than the network's, or without intensity.
    """
    model, good = copy.deepcopy(module), torch.as_tensor(good_pixels)
    side = model.good_pixels.shape[-1]
    if good.shape[-1] != side:
        raise DataError(
            f"the patterns have {good.shape[-1]} pixels on a side, and the network was trained for {side}",
            expected=f"patterns of {side} x {side}",
            fix="crop, pad or bin the patterns, or train a network for a probe of their size",
        )
    model.forward_model.good_pixels.copy_(good)
    model.forward_model.set_scale(estimate_intensity_scale(amplitude, model.probe, good))
    return model


def weights_do_not_fit(detail: str, where: str = "its weights") -> DataError:
    """Return the error for weights of another network."""
    return DataError(
        f"the weights do not fit the network that this version builds: {detail}",
        where=where,
        expected="a model that this version trained, with the same n_filters and depth",
        fix="train again, or use the version that wrote the model",
    )


def _config(kind: type[Config], given: Any) -> Config:
    if isinstance(given, kind):
        return given
    return kind.model_validate({} if given is None else dict(given))


def _pattern_side(data: DataConfig, probe: Any, good_pixels: Any) -> int:
    sides = {"DataConfig.N": data.N}
    for name, array in (("probe", probe), ("good_pixels", good_pixels)):
        sides[name] = None if array is None else int(array.shape[-1])
    known = {name: side for name, side in sides.items() if side is not None}
    if not known:
        raise SettingsError(
            "the side of a diffraction pattern is not known",
            where="DataConfig.N",
            expected="a number of pixels",
            fix="set DataConfig.N, or pass a probe",
        )
    if len(set(known.values())) > 1:
        raise DataError(
            "the sides of patterns, probe and mask differ",
            where=", ".join(f"{name} {side}" for name, side in known.items()),
            expected="one number of pixels for all",
            fix="crop or pad the probe to the size of the patterns",
        )
    return next(iter(known.values()))


def as_modes(probe: Tensor) -> Tensor:
    return probe.unsqueeze(0) if probe.ndim == 2 else probe


def _probe_modes(probe: Any, n: int) -> Tensor:
    """(P, N, N) complex64; one mode of zeros when there is no probe."""
    if probe is None:
        return torch.zeros(1, n, n, dtype=torch.complex64)
    modes = as_modes(torch.as_tensor(np.asarray(probe)).to(torch.complex64))
    if modes.ndim != 3 or modes.shape[1:] != (n, n):
        raise DataError(f"the probe has shape {tuple(modes.shape)}", expected=f"(P, {n}, {n}) or ({n}, {n})")
    if not bool(torch.isfinite(torch.view_as_real(modes)).all()):
        raise DataError("the probe holds NaN or infinite values", expected="finite numbers")
    return modes


def _mask(good_pixels: Any, n: int) -> Tensor:
    if good_pixels is None:
        return torch.ones(n, n, dtype=torch.bool)
    mask = torch.as_tensor(np.asarray(good_pixels)).bool()
    if mask.shape != (n, n) or not bool(mask.any()):
        raise DataError(
            f"the mask has shape {tuple(mask.shape)} and {int(mask.sum())} good pixels",
            expected=f"({n}, {n}) bool with good pixels",
        )
    return mask


def full_precision(positions_px: Tensor) -> Tensor:
    """Positions in half precision are off by whole pixels; no reconstruction survives that."""
    if positions_px.element_size() < 4:
        raise SettingsError(
            "a half-precision Trainer rounds scan positions to whole pixels or worse",
            where=f"batch positions in {positions_px.dtype}",
            expected="positions in 32 bits",
            fix="choose precision bf16-mixed or 16-mixed instead of bf16-true or 16-true",
        )
    return positions_px
