"""`PtychoPINN_Lightning`: how the network and the forward model around it are trained.

Shapes and batches are those of `ptycho_torch.network.predictor`, which holds all that prediction needs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from numpy.typing import ArrayLike
from torch import Tensor

from ptycho_exec.errors import DataError, SettingsError, UserError
from ptycho_exec.fields.model import METRIC_DRIVEN
from ptycho_torch.config import DataConfig, InferenceConfig, ModelConfig, TrainingConfig
from ptycho_torch.data.dataset import Batch, samples_in
from ptycho_torch.network.checkpoint import read_checkpoint
from ptycho_torch.network.flat_adam import FlatAdam
from ptycho_torch.network.health import TrainingHealth, check_weights
from ptycho_torch.network.predictor import Predictor, estimate_intensity_scale, full_precision
from ptycho_torch.network.ranks import agreed, mean_over_ranks, of_each_rank, on_ranks, several
from ptycho_torch.network.schedulers import STEP_DRIVEN, build_scheduler
from ptycho_torch.physics import forward as physics
from ptycho_torch.physics import losses
from ptycho_torch.physics.counts import key_of, split_amplitude

_POISSON_FLOOR = 1e-3
"""Smallest expected intensity in the Poisson loss, in units of the mean intensity."""

_WHOLE_WEIGHTS = (SingleDeviceStrategy, DDPStrategy)
"""Strategies under which every process has all weights, each in one piece."""

_FORWARD_RATE = 0.02
"""Learning rate of probe and photon scale, relative to that of the network."""


class PtychoPINN(Predictor, lightning.LightningModule):
    """Physics-informed network that learns diffraction -> object patch from the measurement alone.

    See `Predictor` for the arguments and the errors.
    """

    loss_name = "train_loss"
    val_loss_name = "val_loss"
    count_unit = 1.0
    """Intensity of one count in the patterns."""

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
        configs = model_config, data_config, training_config, inference_config
        super().__init__(*configs, execution_config, probe, good_pixels, intensity_scale)
        # Plain dicts only, so that a checkpoint loads with weights_only=True.
        self.save_hyperparameters(self.arguments(), ignore=["probe", "good_pixels"])
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
        amplitude, positions = batch["amplitude"], full_precision(batch["positions_px"])
        config, device_type = self.training_config, amplitude.device.type
        grid, rest = physics.split_position(positions, amplitude.shape[-1])
        shown, compared = self._halves(batch) if config.split_counts is True else (amplitude, amplitude)
        with torch.autocast(device_type, enabled=False):
            probe = self.forward_model.shifted_probe(rest)
        patches = self._predict(shown, probe, self.model_config.updates(predicting=False), predicting=False)
        with torch.autocast(device_type, enabled=False):
            if config.loss == "supervised":
                error = self._supervised_error(batch, patches, rest, probe)
            else:
                expected = self.forward_model.expected_intensity(self._merged(patches, grid), probe)
                unit = self.forward_model.reference_rms
                error = self._misfit(expected, compared / unit, self.good_pixels)
            penalty = patches.new_zeros((), dtype=patches.real.dtype)
            if config.tv_weight:
                penalty = penalty + config.tv_weight * losses.total_variation(patches)
            if config.mean_deviation_weight:
                penalty = penalty + config.mean_deviation_weight * losses.mean_deviation(patches)
            return error + penalty, patches

    def _halves(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Amplitudes of both halves of the counts; another draw in each epoch, one for validation."""
        index = batch.get("index")
        if index is None:
            shape = batch["amplitude"].shape[:2]
            index = torch.arange(math.prod(shape), device=batch["amplitude"].device).reshape(shape)
        key = key_of(self.optimization.seed, self.current_epoch + 1 if self.training else 0, index)
        return split_amplitude(batch["amplitude"], self.count_unit, key)

    def _misfit(self, expected: Tensor, measured: Tensor, good_pixels: Tensor | None) -> Tensor:
        """Loss of an expected intensity against a measured amplitude, both in the network's unit."""
        if self.training_config.loss == "poisson":
            return losses.poisson_nll(expected, measured.square(), good_pixels, floor=_POISSON_FLOOR)
        return losses.amplitude_mae(physics.amplitude(expected), measured, good_pixels)

    @torch.no_grad()
    def noise_floor(self, intensity: Tensor) -> float:
        """Return the loss that counting noise alone leaves of these true intensities, in the file's unit."""
        config = self.training_config
        if config.loss == "supervised":
            return 0.0
        share = 0.5 if config.split_counts is True else 1.0
        counts = share * intensity / self.count_unit
        noisy = torch.poisson(counts, generator=torch.Generator(counts.device).manual_seed(0)) / share
        unit = self.forward_model.reference_rms
        return float(self._misfit(intensity / unit.square(), (noisy * self.count_unit).sqrt() / unit, None))

    def _merged(self, patches: Tensor, grid: Tensor) -> Tensor:
        """Patches as parts of one object, when they are grouped and the model says so."""
        if patches.shape[1] == 1 or not self.model_config.object_big:
            return patches
        offsets = grid - grid[:, :1]
        offsets = offsets - torch.round(offsets.mean(dim=1, keepdim=True))
        illumination = physics.intensity(self.probe).detach()
        trust = illumination + 1e-3 * illumination.max()
        return physics.overlap_constraint(physics.common_phase(patches, offsets, trust), offsets, trust)

    def _supervised_error(self, batch: Batch, patches: Tensor, rest: Tensor, probe: Tensor) -> Tensor:
        if "labels" not in batch:
            raise DataError(
                "supervised training needs labels, and the data have none",
                expected="Y, or label_amp and label_phase, in the training file",
                fix="choose TrainingConfig.loss = mae or poisson, which learn from the measurement alone",
            )
        labels = physics.shift_subpixel(batch["labels"], rest)
        # In the network's unit, true patches give the measured energy.
        with torch.no_grad():
            given = self.forward_model.expected_intensity(labels, probe)[..., self.good_pixels].mean()
            found = batch["amplitude"][..., self.good_pixels].square().mean()
            unit = self.forward_model.reference_rms
            given, found = (
                mean_over_ranks(self._trainer, one, samples_in(batch))[0] for one in (given, found)
            )
            labels = labels * (found / given).sqrt() / unit
        return losses.supervised(patches, labels, physics.intensity(self.probe).detach())

    # --- photon scale

    def _estimate_scale(self, batch: Batch) -> None:
        self._require_probe()
        scale = estimate_intensity_scale(batch["amplitude"], self.probe, self.good_pixels)
        if several(self._trainer):
            counts = torch.tensor(scale**2, dtype=torch.float64, device=self.device)
            scale = math.sqrt(mean_over_ranks(self._trainer, counts, samples_in(batch))[0])
        self.forward_model.set_scale(scale)

    # --- optimization

    def setup(self, stage: str) -> None:
        """Check what training needs, and compile the network when asked."""
        if stage == "fit":
            self._require_probe()
        self.compile_as_asked()

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
