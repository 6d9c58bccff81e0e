"""A settings file that Ptychodus opens, with this package's own values in place of the window's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ptycho_torch.config import ScienceConfig
from ptycho_torch.config import TrainingConfig as ScienceTraining
from ptycho_torch.factory import TRAINING_DEFAULTS
from ptycho_torch.ptychodus.translation import KEYWORDS, SCHEDULERS, Configs, from_science

ALGORITHM = "PtychoPINN-Torch_Unsupervised"
EPOCHS = 15
"""Epochs of a first look: with the other values they reach about what the window's defaults need 50 for."""
NAMES: Mapping[str, tuple[str, Mapping[str, str | tuple[str, str]]]] = {
    "data": (
        "PtychoPINNTorchData",
        {
            "C": "num_channels",
            "x_bounds": ("x_lower_bound", "x_upper_bound"),
            "y_bounds": ("y_lower_bound", "y_upper_bound"),
        },
    ),
    "model": (
        "PtychoPINNTorchModel",
        {
            "loss_function": "loss_function",
            "intensity_scale_trainable": "intensity_scale_trainable",
            "n_filters_scale": "num_filters_scale",
        },
    ),
    "training": (
        "PtychoPINNTorchTraining",
        {
            "epochs": "epochs",
            "batch_size": "batch_size",
            "learning_rate": "learning_rate",
            "num_workers": "num_dataloader_workers",
            "gradient_clip_val": "gradient_clip_val",
            "scheduler": "learning_rate_scheduler",
        },
    ),
    "inference": ("PtychoPINNTorchInference", {"middle_trim": "middle_trim"}),
}
"""Section -> its group in the file, and keyword -> the name there; a pair of values has a pair of names.

What is no choice of the window, such as our amp_activation, is not there: it would show another one.
"""


def factory_keywords() -> Configs:
    """Return the keywords that mean what `ptycho-torch train` does where nobody chose anything."""
    configs = from_science(ScienceConfig(training=ScienceTraining(epochs=EPOCHS)))
    there = {ours: theirs for theirs, ours in SCHEDULERS.items()}
    for keyword, goes in KEYWORDS["training"].items():
        if goes.to in TRAINING_DEFAULTS:
            value = TRAINING_DEFAULTS[goes.to].value
            setattr(configs.training, keyword, there.get(value, value))
    configs.training.num_workers = 0  # the patterns are in memory
    configs.model.n_filters_scale = round(configs.model.n_filters_scale)
    return configs


def settings_ini() -> str:
    """Return the text of a `settings.ini`: the algorithm, and our values of what acts here."""
    return "\n".join(_lines(factory_keywords()))


def _lines(configs: Configs) -> Iterator[str]:
    yield "# Open it by `ptychodus -s settings.ini`."
    yield from ("[Processing]", f"Algorithm = {ALGORITHM}", "")
    for section, (group, names) in NAMES.items():
        yield f"[{group}]"
        for keyword, name in names.items():
            value: Any = getattr(getattr(configs, section), keyword)
            pairs = [(name, value)] if isinstance(name, str) else zip(name, value, strict=True)
            yield from (f"{there} = {part}" for there, part in pairs)
        yield ""
