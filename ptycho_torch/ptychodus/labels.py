"""What a message says in Ptychodus: the labels of its window for keywords and for our own names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ptycho_exec.fields.model import ExecutionFields
from ptycho_torch.ptychodus.translation import KEYWORDS, PLACE, SCHEDULERS

LABELS: Mapping[str, str] = {
    # Data
    "N": "Model Size",
    "C": "Channels",
    "normalize": "Normalize",
    "neighbor_function": "Neighbor Function",
    "scan_pattern": "Scan Pattern",
    "probe_normalize": "Normalize Probe",
    "x_bounds": "X Lower Bound and X Upper Bound",
    "y_bounds": "Y Lower Bound and Y Upper Bound",
    "min_neighbor_distance": "Min Neighbor Distance [px]",
    "max_neighbor_distance": "Max Neighbor Distance [px]",
    "K_quadrant": "Nearest Neighbors for Quadrant Lookup",
    "n_subsample": "Coordinate Subsampling Factor",
    "probe_scale": "Probe Scale",
    "K": "Nearest Neighbors for Lookup",
    "grid_size": "Grid Size Y and Grid Size X",
    "probe_ramp_removal": "Probe Ramp Removal",
    "data_scaling": "Data Scaling",
    "phase_subtraction": "Subtract Phase",
    # Model
    "object_big": "Object Big",
    "probe_big": "Probe Big",
    "loss_function": "Loss Function",
    "amp_activation": "Amplitude Activation",
    "cbam_encoder": "CBAM Encoder",
    "use_shared_decoder": "Shared Decoder",
    "intensity_scale_trainable": "Intensity Scale Trainable",
    "intensity_scale": "Intensity Scale",
    "max_position_jitter": "Max Position Jitter",
    "num_datasets": "Datasets",
    "amp_loss": "Auxiliary Amplitude Loss Function",
    "amp_loss_coeff": "Auxiliary Amplitude Loss Coefficient",
    "phase_loss": "Auxiliary Phase Loss Function",
    "phase_loss_coeff": "Auxiliary Phase Loss Coefficient",
    "n_filters_scale": "Num Filters Scale",
    "eca_decoder": "ECA Decoder",
    "batch_norm": "Use Batch Normalization",
    "edge_pad": "Edge Padding",
    "decoder_last_c_outer_fraction": "Decoder Last C Outer Fraction",
    "cbam_bottleneck": "CBAM Bottleneck",
    "cbam_decoder": "CBAM Decoder",
    "spatial_decoder": "Decoder Spatial Attention",
    "decoder_spatial_kernel": "Decoder Spatial Atttention Kernel",
    "eca_encoder": "ECA Encoder",
    "offset": "Offset",
    "probe_reference_coeff": "Probe Reference Loss Coefficient",
    "amplitude_variance_loss": "Amplitude Variance Loss",
    "amplitude_variance_coeff": "Amplitude Variance Coefficient",
    # Inference
    "batch_size": "Batch Size",
    "middle_trim": "Middle Trim",
    "experiment_number": "Experiment Number",
    "patch_weighting": "Patch Weighting Method",
    "pad_eval": "Pad Evaluation Edges",
    "window": "Window Padding",
    # Training
    "epochs": "Default Epochs",
    "learning_rate": "Learning Rate",
    "num_workers": "Dataloader Workers",
    "accum_steps": "Gradient Accumulation Steps",
    "epochs_fine_tune": "Fine Tune Epochs",
    "fine_tune_gamma": "Fine Tune Gamma",
    "gradient_clip_val": "Gradient Clip Value",
    "nll": "Use Negative Log Likelihood Loss",
    "device": "Device",
    "n_devices": "Number of GPUs",
    "strategy": "Distributed Strategy",
    "scheduler": "Learning Rate Scheduler",
    "warmup_epochs": "Warmup Epochs",
    "min_lr_ratio": "Min Learning Rate Ratio",
    "notes": "MLflow Notes",
    "model_name": "MLflow Model Name",
    "enable_staged_finetuning": "Enable Staged Fine Tuning",
    "finetune_stage1_epochs": "Fine Tune Stage 1 Epochs",
    "finetune_stage2_epochs": "Fine Tune Stage 2 Epochs",
    "finetune_stage3_epochs": "Fine Tune Stage 3 Epochs",
    "finetune_stage1_lr_decoder": "Fine Tune Stage 1 LR Decoder",
    "finetune_stage2_lr_encoder_top": "Fine Tune Stage 2 LR Encoder Top",
    "finetune_stage2_lr_decoder": "Fine Tune Stage 2 LR Decoder",
    "finetune_stage2_lr_phase_head": "Fine Tune Stage 2 LR Phase Head",
    "finetune_stage3_lr_encoder_bottom": "Fine Tune Stage 3 LR Encoder Bottom",
    "finetune_stage3_lr_encoder_top": "Fine Tune Stage 3 LR Encoder Top",
    "finetune_stage3_lr_decoder": "Fine Tune Stage 3 LR Decoder",
    "finetune_stage3_lr_phase_head": "Fine Tune Stage 3 LR Phase Head",
    "finetune_skip_stage3": "Skip Fine Tune Stage 3",
    "finetune_early_stop_patience": "Fine Tune Early Stop Patience",
    "finetune_val_split": "Fine Tune Validation Split",
}
"""Keyword -> the label of what sets it in the window, where a test looks it up; nothing sets the others."""

_OURS: Mapping[str, str] = {
    place.rpartition(".")[2]: LABELS[keyword]
    for rows in KEYWORDS.values()
    for keyword, goes in rows.items()
    if keyword in LABELS and keyword not in ("nll", "phase_loss", "phase_loss_coeff", "notes", "model_name")
    for place in goes.to.split(", ")
    if place
}
"""Setting or science field -> the label of what sets it in the window."""
_WORDS_THERE = {ours: theirs for theirs, ours in SCHEDULERS.items()}
_KEYWORD = r"(?P<name>[A-Za-z]\w*)"


def in_words_of_the_window(text: str) -> str:
    """Return a text with the names of the window, and for other settings the variable that reaches them."""
    for pattern, new in _REPLACEMENTS:
        text = re.sub(pattern, new, text)
    return text


def _keyword(match: re.Match[str]) -> str:
    return LABELS.get(match["name"], _OURS.get(match["name"], match["name"]))


def _own(match: re.Match[str]) -> str:
    name, value = match["name"], match["value"]
    if name == "gridsize" and value.isdecimal():
        return f"Channels = {int(value) ** 2}"
    if name in LABELS or name in _OURS:
        return f"{LABELS.get(name) or _OURS[name]} = {_WORDS_THERE.get(value, value)}"
    if name in ExecutionFields.model_fields and match["sign"] == "=":
        return f"PTYCHO_EXEC_{name.upper()}={value} in the environment of {PLACE}"
    return match[0]


_REPLACEMENTS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (rf"^{_KEYWORD}(?=: )", _keyword),
    (r"(?<![\w.])(?P<name>[A-Za-z]\w*_\w+|[NCK])(?= is )", _keyword),
    (r"\bC(?=, the number| says| above)", LABELS["C"]),
    (rf"(?<![\w./-])(?:[A-Z]\w+Config\.)?{_KEYWORD}(?P<sign> ?= ?)(?P<value>[^\s,;]+)", _own),
    (r"\ba smaller gridsize\b", "fewer Channels"),
    (rf"(?<=\ba smaller ){_KEYWORD}", _keyword),
    (r"\banother seed\b", f"another seed (PTYCHO_EXEC_SEED in the environment of {PLACE})"),
)
