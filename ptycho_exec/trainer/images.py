"""Reconstruction images sent to the loggers during training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from ptycho_exec.trainer.loggers import log_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import LightningModule, Trainer
    from numpy.typing import NDArray


class Images(Callback):
    """Send images to the loggers every so many epochs, and after the last one.

    Args:
        render: takes the module and returns images (H, W, 3) in bytes by name, such as `amplitude`.
        every_n_epochs: `log_images_every_n_epochs`.
    """

    def __init__(
        self, render: Callable[[LightningModule], dict[str, NDArray[np.uint8]]], every_n_epochs: int
    ) -> None:
        self.render, self.every_n_epochs = render, every_n_epochs
        self._sent = -1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._send(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._sent != trainer.global_step:
            self._send(trainer, pl_module)

    def _send(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sent = trainer.global_step
        if not trainer.is_global_zero or not trainer.loggers:
            return
        training = pl_module.training
        pl_module.eval()
        with torch.no_grad():
            images = self.render(pl_module)
        pl_module.train(training)
        for logger in trainer.loggers:
            for name, image in images.items():
                log_image(logger, name, image, trainer.global_step)
