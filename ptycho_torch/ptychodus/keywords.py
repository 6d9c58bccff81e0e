"""The keyword classes that Ptychodus fills in (its backend "PtychoPINN-Torch", release 1.7 and later).

Ptychodus builds these in its own process, pickles them, and hands them to a child process that trains. So
they are mutable, and importing this module loads no torch, lightning or numpy and does nothing else. They mix
science and execution, as Ptychodus's settings do; `ptycho_torch.ptychodus.translation` takes them apart and
says where each keyword goes (the table: specs/ptychodus.md).

Defaults are the values that Ptychodus sends when nobody changed anything.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from typing import Any

LOGGER = "ptychopinn-torch"
"""The logger whose records Ptychodus shows in the window of a training or reconstruction."""

logger = logging.getLogger(LOGGER)

UNKNOWN = "unknown_keywords"
"""Attribute that holds keywords of a later release, by name."""


@dataclass(init=False)
class Keywords:
    """Attributes by keyword; unknown ones are kept apart and reported: a later Ptychodus still runs."""

    def __init__(self, **given: Any) -> None:
        known = {field.name for field in fields(self)}
        for field in fields(self):
            self.__dict__[field.name] = given.get(field.name, field.default)
        self._keep_unknown({name: value for name, value in given.items() if name not in known})

    def __setattr__(self, name: str, value: Any) -> None:
        """Ptychodus assigns after construction, too; a name that is not known is reported, not dropped."""
        if name in {field.name for field in fields(self)}:
            self.__dict__[name] = value
        else:
            self._keep_unknown({name: value})

    def __getattr__(self, name: str) -> Any:
        """Give back what was kept apart; called only for names that are no field."""
        kept = self.__dict__.get(UNKNOWN, {})
        if name in kept:
            return kept[name]
        raise AttributeError(f"{type(self).__name__} has no keyword {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the known keywords as a plain dict."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _keep_unknown(self, unknown: dict[str, Any]) -> None:
        if not unknown:
            return
        self.__dict__.setdefault(UNKNOWN, {}).update(unknown)
        from ptycho_exec.sources.suggestions import nearest

        known = [field.name for field in fields(self)]
        close = {name: nearest(name, known, most=1) for name in unknown}
        listed = "; ".join(
            f"{name} (the nearest known is {names[0]})" if names else name for name, names in close.items()
        )
        logger.warning(
            "%s: %s without effect, because this ptycho_torch does not know %s: %s",
            type(self).__name__,
            "1 keyword is" if len(unknown) == 1 else f"{len(unknown)} keywords are",
            "it" if len(unknown) == 1 else "them",
            listed,
        )


@dataclass(init=False)
class DataConfig(Keywords):
    """What the patterns are and how they are grouped."""

    N: int = 128
    C: int = 4
    normalize: str = "Batch"
    neighbor_function: str = "Nearest"
    scan_pattern: str = "Isotropic"
    probe_normalize: bool = True
    x_bounds: tuple[float, float] = (0.1, 0.9)
    y_bounds: tuple[float, float] = (0.1, 0.9)
    min_neighbor_distance: float = 0.0
    max_neighbor_distance: float = 3.0
    K_quadrant: int = 30
    n_subsample: int = 7
    probe_scale: float = 4.0
    K: int = 6
    grid_size: tuple[int, int] = (2, 2)
    probe_ramp_removal: bool = False
    data_scaling: str = "Parseval"
    phase_subtraction: bool = True


@dataclass(init=False)
class ModelConfig(Keywords):
    """The network and what it minimizes."""

    mode: str = "Unsupervised"
    object_big: bool = True
    probe_big: bool = True
    loss_function: str = "Poisson"
    amp_activation: str = "silu"
    cbam_encoder: bool = True
    decoder_last_amp_channels: int = 4
    use_shared_decoder: bool = False
    intensity_scale_trainable: bool = False
    intensity_scale: float = 10000.0
    max_position_jitter: int = 10
    num_datasets: int = 1
    C_model: int = 4
    C_forward: int = 4
    amp_loss: str | None = None
    phase_loss: str | None = None
    amp_loss_coeff: float = 1.0
    phase_loss_coeff: float = 1.0
    n_filters_scale: float = 2
    probe_mask: Any = None
    eca_decoder: bool = False
    batch_norm: bool = False
    edge_pad: int = 10
    decoder_last_c_outer_fraction: float = 0.125
    cbam_bottleneck: bool = False
    cbam_decoder: bool = False
    spatial_decoder: bool = False
    decoder_spatial_kernel: int = 7
    eca_encoder: bool = False
    offset: int = 6
    probe_reference_coeff: float = 0.0
    amplitude_variance_loss: bool = False
    amplitude_variance_coeff: float = 0.01


@dataclass(init=False)
class TrainingConfig(Keywords):
    """How long, how fast, and on what machine."""

    epochs: int = 50
    batch_size: int = 16
    learning_rate: float = 1e-3
    n_devices: int = 1
    num_workers: int = 4
    accum_steps: int = 1
    epochs_fine_tune: int = 0
    fine_tune_gamma: float = 0.1
    gradient_clip_val: float | None = None
    nll: bool = True
    device: str = "cuda"
    strategy: str = "ddp_spawn"
    framework: str = "Lightning"
    orchestrator: str = "Lightning"
    scheduler: str = "Default"
    warmup_epochs: int = 0
    min_lr_ratio: float = 0.1
    notes: str = ""
    model_name: str = "PtychoPINNv2"
    enable_staged_finetuning: bool = False
    finetune_stage1_epochs: int = 7
    finetune_stage2_epochs: int = 7
    finetune_stage3_epochs: int = 5
    finetune_stage1_lr_decoder: float = 0.1
    finetune_stage2_lr_encoder_top: float = 0.01
    finetune_stage2_lr_decoder: float = 0.05
    finetune_stage2_lr_phase_head: float = 0.1
    finetune_stage3_lr_encoder_bottom: float = 0.005
    finetune_stage3_lr_encoder_top: float = 0.01
    finetune_stage3_lr_decoder: float = 0.02
    finetune_stage3_lr_phase_head: float = 0.05
    finetune_skip_stage3: bool = True
    finetune_early_stop_patience: int = 3
    finetune_val_split: float = 0.05


@dataclass(init=False)
class InferenceConfig(Keywords):
    """How predicted patches become one object."""

    batch_size: int = 1000
    middle_trim: int = 32
    experiment_number: int = 0
    patch_weighting: str = "probe"
    pad_eval: bool = True
    window: int = 20


@dataclass(init=False)
class DatagenConfig(Keywords):
    """Ptychodus sends it without keywords: it is about simulated training data, which it does not make."""
