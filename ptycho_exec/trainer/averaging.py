"""A moving average of the weights, validated and kept in place of the last ones.

Lightning has it from version 2.6 on; the plan refuses `ema_decay` before.
"""

from __future__ import annotations

from lightning.pytorch.callbacks import EMAWeightAveraging


class MovingAverage(EMAWeightAveraging):
    """Average the weights after every step, w <- d w + (1 - d) (weights of the step), from the first on.

    Buffers are those of the last step: an average of masks or counters would be none. Checkpoints hold the
    average as the module's weights and, to go on, the last ones beside it.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay, use_buffers=False)
        self.decay = decay
