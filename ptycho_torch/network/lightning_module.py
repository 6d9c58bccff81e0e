"""`PtychoPINN_Lightning`: the network, the forward model around it, and how both are trained.

Shape legend: B samples, C patterns of a group, P probe modes, N x N pixels.

A batch is a dict as `ptycho_torch.data.dataset` makes it. Every measured amplitude is compared with

    intensity_scale * sqrt(sum over modes of |far_field(probe shifted by the sub-pixel rest * patch)|^2)

where the patches lie on whole pixels of the object canvas; patches of a group are merged there first.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import lightning
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from numpy.typing import ArrayLike
from pydantic import BaseModel
from torch import Tensor, nn

from ptycho_exec.errors import DataError, SettingsError, UserError
from ptycho_exec.fields.model import METRIC_DRIVEN
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import DataConfig, InferenceConfig, ModelConfig, TrainingConfig
from ptycho_torch.data.dataset import Batch, samples_in
from ptycho_torch.data.storage.patterns import at_once
from ptycho_torch.network.checkpoint import read_checkpoint
from ptycho_torch.network.flat_adam import FlatAdam
from ptycho_torch.network.health import TrainingHealth, check_weights
from ptycho_torch.network.ranks import agreed, mean_over_ranks, of_each_rank, on_ranks, several
from ptycho_torch.network.schedulers import STEP_DRIVEN, build_scheduler
from ptycho_torch.network.unet import build_network
from ptycho_torch.physics import forward as physics
from ptycho_torch.physics import losses

Config = TypeVar("Config", bound=BaseModel)

_POISSON_FLOOR = 1e-3
"""Smallest expected intensity in the Poisson loss, in units of the mean intensity."""

_WHOLE_WEIGHTS = (SingleDeviceStrategy, DDPStrategy)
"""Strategies under which every process has all weights, each in one piece."""

_CONFIGS = ("model_config", "data_config", "training_config", "inference_config")

_FORWARD_RATE = 0.02
"""Learning rate of probe and photon scale, relative to that of the network."""


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


class PtychoPINN(lightning.LightningModule):
    """Physics-informed network that learns diffraction -> object patch from the measurement alone.

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

    loss_name = "train_loss"
    val_loss_name = "val_loss"
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
        configs = {name: getattr(self, name).model_dump(mode="json") for name in _CONFIGS}
        # Plain dicts only, so that a checkpoint loads with weights_only=True.
        plain = {**configs, "execution_config": asdict(self.optimization)}
        self.save_hyperparameters(plain, ignore=["probe", "good_pixels"])
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
        self.health = TrainingHealth()

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Rebuild a module from a checkpoint, as Lightning does; configs among `kwargs` win over stored ones.

        Raises:
            DataError: the file is damaged, or holds code, which some versions of torch would run.
        """
        if isinstance(checkpoint_path, (str, Path)) and kwargs.get("weights_only") is not False:
            read_checkpoint(checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

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
        return self._predict(amplitude, probe, self.model_config.prediction_updates, predicting=True)

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
                "the model was never trained: its photon scale is not known",
                expected="weights from a training, or intensity_scale",
                fix="train first, or load a checkpoint",
            )
        positions = _full_precision(batch["positions_px"])
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

    # --- losses

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Return the loss of one batch and log it as `train_loss`."""
        del batch_idx
        if not bool(self.forward_model.scale_known):
            self._estimate_scale(batch)
        loss, patches = self.loss(batch)
        samples = samples_in(batch)
        mean, total = mean_over_ranks(self._trainer, loss, samples)
        self._judge(loss, mean, total * batch["amplitude"].shape[1])
        self._last = patches.detach(), samples
        if self._trainer is not None:
            self.log(self.loss_name, mean, on_step=True, on_epoch=True, prog_bar=True, batch_size=total)
        # Gradients are averaged over the processes, of which each counts as its samples do.
        return loss * (samples * self.trainer.world_size / total) if several(self._trainer) else loss

    def _judge(self, loss: Tensor, mean: Tensor, patterns: int) -> None:
        """Stop all processes where the loss of one is not finite."""
        try:
            self.health.after_step(float(mean), patterns)
        except UserError as error:
            finite = of_each_rank(self._trainer, math.isfinite(float(loss.detach())))
            ranks = [rank for rank, fine in enumerate(finite) if not fine]
            raise (on_ranks(error, ranks) if several(self._trainer) else error) from None

    def validation_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Return the loss of one held-back batch and log it as `val_loss`."""
        del batch_idx
        if not bool(self.forward_model.scale_known):
            self._estimate_scale(batch)
        loss, _ = self.loss(batch)
        if self._trainer is not None:
            self.log(self.val_loss_name, loss, prog_bar=True, batch_size=samples_in(batch), sync_dist=True)
        return loss

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of one batch (scalar) and the patches (B, C, N, N) that the network predicted for it."""
        amplitude, positions = batch["amplitude"], _full_precision(batch["positions_px"])
        config, device_type = self.training_config, amplitude.device.type
        grid, rest = physics.split_position(positions, amplitude.shape[-1])
        with torch.autocast(device_type, enabled=False):
            probe = self.forward_model.shifted_probe(rest)
        patches = self._predict(amplitude, probe, self.model_config.modulus_updates, predicting=False)
        with torch.autocast(device_type, enabled=False):
            if config.loss == "supervised":
                error = self._supervised_error(batch, patches, rest)
            else:
                expected = self.forward_model.expected_intensity(self._merged(patches, grid), probe)
                error = self._misfit(expected, amplitude / self.forward_model.reference_rms)
            penalty = patches.new_zeros((), dtype=patches.real.dtype)
            if config.tv_weight:
                penalty = penalty + config.tv_weight * losses.total_variation(patches)
            if config.mean_deviation_weight:
                penalty = penalty + config.mean_deviation_weight * losses.mean_deviation(patches)
            return error + penalty, patches

    def _misfit(self, expected: Tensor, measured: Tensor) -> Tensor:
        """Loss of an expected intensity against a measured amplitude, both in the network's unit."""
        if self.training_config.loss == "poisson":
            return losses.poisson_nll(expected, measured.square(), self.good_pixels, floor=_POISSON_FLOOR)
        return losses.amplitude_mae(physics.amplitude(expected), measured, self.good_pixels)

    @torch.no_grad()
    def noise_floor(self, amplitude: Tensor) -> float:
        """Return the loss that counting noise alone leaves, for patterns like these, roots of counts.

        From one sample: counts around the measured ones are off by what the measured ones are off the true.
        """
        if self.training_config.loss == "supervised":
            return 0.0
        counts = amplitude.square()
        noisy = torch.poisson(counts, generator=torch.Generator(counts.device).manual_seed(0))
        unit = self.forward_model.reference_rms
        return float(self._misfit(counts / unit.square(), noisy.sqrt() / unit))

    def _merged(self, patches: Tensor, grid: Tensor) -> Tensor:
        """Patches as parts of one object, when they are grouped and the model says so."""
        if patches.shape[1] == 1 or not self.model_config.object_big:
            return patches
        offsets = grid - grid[:, :1]
        offsets = offsets - torch.round(offsets.mean(dim=1, keepdim=True))
        illumination = physics.intensity(self.probe).detach()
        trust = illumination + 1e-3 * illumination.max()
        return physics.overlap_constraint(physics.common_phase(patches, offsets, trust), offsets, trust)

    def _supervised_error(self, batch: Batch, patches: Tensor, rest: Tensor) -> Tensor:
        if "labels" not in batch:
            raise DataError(
                "supervised training needs labels, and the data have none",
                expected="Y, or label_amp and label_phase, in the training file",
                fix="choose TrainingConfig.loss = mae or poisson, which learn from the measurement alone",
            )
        labels = physics.shift_subpixel(batch["labels"], rest)
        size, _ = mean_over_ranks(self._trainer, labels.abs().mean(), samples_in(batch))
        return losses.supervised(patches, labels / size, physics.intensity(self.probe).detach())

    # --- photon scale

    def _estimate_scale(self, batch: Batch) -> None:
        self._require_probe()
        scale = estimate_intensity_scale(batch["amplitude"], self.probe, self.good_pixels)
        if several(self._trainer):
            counts = torch.tensor(scale**2, dtype=torch.float64, device=self.device)
            scale = math.sqrt(mean_over_ranks(self._trainer, counts, samples_in(batch))[0])
        self.forward_model.set_scale(scale)

    def _require_probe(self) -> None:
        if not bool((self.probe != 0).any()):
            raise DataError(
                "the forward model has no probe",
                expected="probeGuess in the training file, (N, N) or (P, N, N) complex",
                fix="add a probe estimate to the file; it can be refined with ModelConfig.probe_trainable",
            )

    # --- optimization

    def setup(self, stage: str) -> None:
        """Check what training needs, and compile the network when asked."""
        if stage == "fit":
            self._require_probe()
        if self.optimization.compile:
            self.network.unet.compile()

    def configure_optimizers(self) -> Any:
        """Adam with the schedule that the settings name; metric-driven ones follow the monitored metric."""
        rate = self.optimization.learning_rate
        weights = list(self.network.parameters())
        more: list[dict[str, Any]] = []
        # Probe and scale start near the truth; at the full rate they run away while the network does not yet
        # know the object.
        slow = [weight for weight in self.forward_model.parameters() if weight.requires_grad]
        if slow:
            more.append({"params": slow, "lr": _FORWARD_RATE * rate})
        # Fused: one kernel for the whole step. Lightning refuses to clip for it in any mixed precision.
        mixed = self._trainer is not None and str(self._trainer.precision).endswith("-mixed")
        fused = self.device.type in ("cpu", "cuda") and not mixed
        optimizer: torch.optim.Adam
        if self._trainer is None or isinstance(self._trainer.strategy, _WHOLE_WEIGHTS):
            optimizer = FlatAdam(weights, more, lr=rate, fused=fused)
        else:
            optimizer = torch.optim.Adam([{"params": weights}, *more], lr=rate, fused=fused)
        name = self.optimization.scheduler
        total = self._total_steps(name)
        mode: Literal["min", "max"] = "max" if self.optimization.checkpoint_mode == "max" else "min"
        schedule = build_scheduler(
            name, optimizer, total_steps=total, patterns_per_step=self._patterns_per_step(), mode=mode
        )
        if schedule is None:
            return optimizer
        timing: dict[str, Any] = {"interval": "step"}
        if name in METRIC_DRIVEN:
            monitor = self.monitored_metric()
            timing = {"interval": "epoch", "monitor": monitor, "reduce_on_plateau": True}
            if monitor.startswith("val_") and self._trainer is not None:
                # Its value is new only where validation has run.
                timing["frequency"] = int(self._trainer.check_val_every_n_epoch or 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, **timing}}

    def monitored_metric(self) -> str:
        """The metric that the settings name; `train_loss` when nothing is validated."""
        asked = self.optimization.checkpoint_monitor_metric
        validates = self._trainer is not None and bool(self._trainer.enable_validation)
        return self.loss_name if asked.startswith("val_") and not validates else asked

    def _total_steps(self, scheduler: str) -> int:
        total = self.trainer.estimated_stepping_batches if self._trainer is not None else 1
        if math.isfinite(total):
            return int(total)
        if scheduler in STEP_DRIVEN:
            raise SettingsError(
                f"scheduler {scheduler} needs to know how long the training will be",
                expected="a number of epochs",
                fix="set the number of epochs, or choose scheduler=ReduceLROnPlateau, Adaptive or Default",
            )
        return 1

    def _patterns_per_step(self) -> int:
        """Patterns of one optimizer step: samples x patterns per sample x accumulation x devices."""
        trainer = self._trainer
        loader = getattr(trainer, "train_dataloader", None) if trainer is not None else None
        size = getattr(loader, "batch_size", None)
        if trainer is None or not isinstance(size, int):
            return 1
        grouped = self.data_config.gridsize**2
        return size * grouped * int(trainer.accumulate_grad_batches) * int(trainer.world_size)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the settings say: agc here, norm and value by Lightning."""
        limit = self.optimization.gradient_clip_val
        if self.optimization.gradient_clip_algorithm == "agc" and limit is not None:
            # All trainable weights but the head's: the paper leaves the last layer alone.
            head = {id(weight) for weight in self.network.unet.head.parameters()}
            weights = (weight for weight in self.parameters() if weight.requires_grad)
            adaptive_gradient_clip((weight for weight in weights if id(weight) not in head), limit)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # --- health

    def on_train_start(self) -> None:
        """Silence what Lightning says of a loss that is the same in every process when it is logged."""
        if several(self._trainer):
            warnings.filterwarnings("ignore", message=f".*self.log.'{self.loss_name}'.*sync_dist=True.*")

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        """Stop a training that diverged, collapsed or does not learn, in all processes alike."""
        agreed(self._trainer, lambda: check_weights(self.named_parameters()))
        patches, samples = self._last
        spread = float(mean_over_ranks(self._trainer, amplitude_spread(patches, self.probe), samples)[0])
        self.log("amplitude_spread", spread, sync_dist=True)
        self.health.after_epoch(spread)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what judging the training needs."""
        checkpoint["training_health"] = self.health.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on judging where the interrupted training stopped."""
        if "training_health" in checkpoint:
            self.health.load_state_dict(checkpoint["training_health"])


def weights_do_not_fit(detail: str, where: str = "its weights") -> DataError:
    """Return the error for weights of another network."""
    return DataError(
        f"the weights do not fit the network that this version builds: {detail}",
        where=where,
        expected="a model that this version trained, with the same n_filters and depth",
        fix="train again, or use the version that wrote the model",
    )


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
    modes = _as_modes(torch.as_tensor(probe).detach())
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


def amplitude_spread(patches: Tensor, probe: Tensor) -> Tensor:
    """Standard deviation of the patches' amplitude over its mean, where the probe is. Scalar."""
    illumination = physics.intensity(probe)
    weight = illumination / (illumination.sum() * patches[..., 0, 0].numel())
    size = patches.abs()
    mean = (size * weight).sum()
    return ((size - mean).square() * weight).sum().sqrt() / mean.clamp_min(1e-30)


def adaptive_gradient_clip(weights: Iterable[Tensor], limit: float, floor: float = 1e-3) -> None:
    """Scale each unit's gradient to at most `limit` times the norm of its weights, in place.

    Adaptive gradient clipping of Brock, De, Smith and Simonyan 2021 (arXiv:2102.06171, eq. 3): a unit is one
    output channel; biases and scalars are units by themselves. `floor` lets zero weights move.
    """
    for weight in weights:
        if weight.grad is None:
            continue
        size = _unit_norm(weight.detach()).clamp_min(floor) * limit
        gradient = _unit_norm(weight.grad)
        weight.grad.mul_(torch.where(gradient > size, size / gradient.clamp_min(1e-12), 1.0))


def _unit_norm(tensor: Tensor) -> Tensor:
    if tensor.ndim <= 1:
        return tensor.abs()
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)
    return norm


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


def _as_modes(probe: Tensor) -> Tensor:
    return probe.unsqueeze(0) if probe.ndim == 2 else probe


def _probe_modes(probe: Any, n: int) -> Tensor:
    """(P, N, N) complex64; one mode of zeros when there is no probe."""
    if probe is None:
        return torch.zeros(1, n, n, dtype=torch.complex64)
    modes = _as_modes(torch.as_tensor(np.asarray(probe)).to(torch.complex64))
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


def _full_precision(positions_px: Tensor) -> Tensor:
    """Positions in half precision are off by whole pixels; no reconstruction survives that."""
    if positions_px.element_size() < 4:
        raise SettingsError(
            "a half-precision Trainer rounds scan positions to whole pixels or worse",
            where=f"batch positions in {positions_px.dtype}",
            expected="positions in 32 bits",
            fix="choose precision bf16-mixed or 16-mixed instead of bf16-true or 16-true",
        )
    return positions_px
