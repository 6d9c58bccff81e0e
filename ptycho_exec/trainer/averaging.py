"""Averages of the weights, validated and kept in place of the last ones.

Lightning has them from version 2.6 on; the plan refuses `ema_decay` and `swa_epoch_start` before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging

from ptycho_exec.errors import SettingsError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class MovingAverage(EMAWeightAveraging):
    """Average the weights after every step, w <- d w + (1 - d) (weights of the step), from the first on.

    Buffers are those of the last step: an average of masks or counters would be none. Checkpoints hold the
    average as the module's weights and, to go on, the last ones beside it.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay, use_buffers=False)
        self.decay = decay


class MeanOfEpochs(WeightAveraging):
    """Average the weights at the ends of epochs, from epoch `start` on (stochastic weight averaging).

    Until then the average is a copy of the weights. The learning rate is left to the scheduler. Validation in
    an epoch is of the average of those before it.

    Attributes:
        start: index of the first epoch in the average, or the fraction of epochs that come before it.
    """

    def __init__(self, start: float) -> None:
        super().__init__(use_buffers=False)
        self.start = start
        self._first = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        epochs = trainer.max_epochs or 0
        if stage == "fit" and isinstance(self.start, float) and epochs < 1:
            raise SettingsError(
                f"swa_epoch_start={self.start} is a fraction of a number of epochs that is not known",
                fix="set the number of epochs, or swa_epoch_start to an integer",
            )
        self._first = int(self.start * epochs) if isinstance(self.start, float) else self.start

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        del step_idx
        return epoch_idx is not None and epoch_idx >= self._first

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        """Copy the weights as long as nothing is averaged."""
        super().on_train_batch_end(trainer, pl_module, *rest)
        if trainer.current_epoch < self._first and self._average_model is not None:
            self._average_model.update_parameters(pl_module)
            self._average_model.n_averaged.zero_()
