"""Checkpoint files: written whole or not at all, the best ones kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint

from ptycho_exec.files import atomic_path

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a temporary file beside its place, which is renamed when it is complete.

    Lightning writes to the system's temporary folder and then moves, which copies when that is another file
    system; a kill during the copy leaves half a file under the finished name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not used: checkpoints are local files")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read tensors and plain data only, whatever the version of torch does, unless the caller says no."""
        return torch.load(path, map_location=map_location, weights_only=weights_only is not False)


class BestCheckpoints(ModelCheckpoint):
    """Keep the best checkpoints; a run resumed in another directory takes those it has with it.

    Where nobody asked for the monitored metric (not `strict`) and it is not logged, the newest is kept.
    """

    def __init__(self, *, strict: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.strict = strict

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._do_without(trainer)
        super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._do_without(trainer)
        super().on_validation_end(trainer, pl_module)

    def _do_without(self, trainer: Trainer) -> None:
        if not self.strict and not trainer.sanity_checking and self.monitor not in trainer.callback_metrics:
            self.monitor = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the kept files into this run's folder, so that ranking goes on and the folder is complete.

        If any of them is gone, ranking starts anew, as Lightning does.
        """
        kept = {Path(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        moved = self.dirpath is not None and state_dict.get("dirpath") != self.dirpath
        if moved and kept and all(path.exists() for path in kept):
            folder = Path(str(self.dirpath))
            for path in kept:
                copy_once(path, folder / path.name)
            for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                before = state_dict.get(name)
                state_dict = {**state_dict, name: str(folder / Path(before).name) if before else ""}
            ranked = {str(folder / path.name): score for path, score in kept.items()}
            state_dict = {**state_dict, "dirpath": self.dirpath, "best_k_models": ranked}
        super().load_state_dict(state_dict)


@rank_zero_only
def copy_once(source: Path, target: Path) -> None:
    """Copy a file by way of a temporary one that is renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
