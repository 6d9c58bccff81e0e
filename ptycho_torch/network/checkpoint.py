"""`model.ckpt`: a trained network that explains itself and loads without running code.

The file is a Lightning checkpoint (so `load_from_checkpoint` takes it) that holds only tensors and plain
data, plus its origin: science configs, execution settings, and the scan it was trained on.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_exec.errors import DataError
from ptycho_exec.files import atomic_path
from ptycho_torch.config import ScienceConfig
from ptycho_torch.quick_start import import_torch

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

MODEL_NAME = "model.ckpt"
MODEL_KEY = "ptycho_torch"
FORMAT = 1
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
"""What torch raises for a file that is cut short, altered, or something else."""


def save_model(
    path: str | Path, module: LightningModule, science: ScienceConfig, about: Mapping[str, Any]
) -> Path:
    """Write a trained module atomically.

    Args:
        path: where the file goes; it is written to a temporary file and renamed.
        module: the module whose state is written.
        science: the configs it was trained under.
        about: plain JSON data on its origin.
    """
    import lightning
    import torch

    checkpoint = {
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()},
        "hyper_parameters": dict(module.hparams),
        "epoch": 0,
        "global_step": 0,
        MODEL_KEY: model_part(science, about),
    }
    with atomic_path(path) as temporary:
        torch.save(checkpoint, temporary)
    return Path(path)


def find_model(path: str | Path) -> Path:
    """Return the model file that a path means: the file itself, or `model.ckpt` in a run directory.

    Raises:
        DataError: there is none.
    """
    given = Path(path)
    file = given / MODEL_NAME if given.is_dir() else given
    if not file.is_file():
        raise DataError(
            "no trained model is here",
            where=str(file),
            expected=f"a run directory with {MODEL_NAME}, or a model file",
            fix="name the --out directory of a finished `ptycho-torch train`",
        )
    return file


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a Lightning checkpoint, tensors and plain data only, onto the CPU.

    Raises:
        DataError: the file is damaged, holds code, or is no checkpoint.
    """
    file = find_model(path)
    import_torch()
    import torch

    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's words advise to run what the file holds
            reason = "it is no checkpoint, or holds more than tensors and plain data"
        raise DataError(
            f"cannot read the model: {reason}",
            where=str(file),
            expected="a model file that ptycho-torch train wrote",
            fix="train again, or check that the file was copied whole",
        ) from error
    return checkpoint if isinstance(checkpoint, dict) else {}


def read_model(path: str | Path) -> dict[str, Any]:
    """Read a model file, tensors and plain data only.

    Raises:
        DataError: the file is damaged, holds code, or was not written by this program.
    """
    checkpoint = read_checkpoint(path)
    if MODEL_KEY not in checkpoint:
        raise DataError(
            "this checkpoint was not written by ptycho-torch",
            where=str(find_model(path)),
            expected=f"a file with a part named {MODEL_KEY!r}",
            fix=f"name the {MODEL_NAME} of a run directory",
        )
    return checkpoint


def model_part(science: ScienceConfig, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a Lightning checkpoint a model file."""
    return {"format": FORMAT, "science": science.model_dump(mode="json"), "about": dict(about)}


def read_science(path: str | Path) -> ScienceConfig:
    """Return the science configs a model was trained under."""
    return ScienceConfig.model_validate(read_model(path)[MODEL_KEY]["science"])
