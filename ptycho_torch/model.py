"""The Lightning module under the name by which callers outside look it up, Ptychodus among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from ptycho_torch.config import ScienceConfig
from ptycho_torch.network.lightning_module import PtychoPINN
from ptycho_torch.network.predictor import load_module
from ptycho_torch.ptychodus.checkpoints import as_science_configs


class PtychoPINN_Lightning(PtychoPINN):  # noqa: N801 - the name that earlier callers know
    """`PtychoPINN`, which also takes Ptychodus's keyword classes when it is loaded."""

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Rebuild a module from a checkpoint, as Lightning does.

        Configs among `kwargs` win over the stored ones; they may be Ptychodus's keyword classes, of which
        everything acts that `specs/ptychodus.md` says of them.
        """
        kwargs = as_science_configs(checkpoint_path, kwargs)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)


def load_model(path: str | Path) -> tuple[PtychoPINN_Lightning, ScienceConfig]:
    """Rebuild the module of a model file, on the CPU and in evaluation mode.

    Raises:
        DataError: as `read_model`.
    """
    return load_module(PtychoPINN_Lightning, path)
