"""What Ptychodus asks about checkpoints, under the name by which it imports it."""

from ptycho_torch.ptychodus.checkpoints import find_best_checkpoint

__all__ = ["find_best_checkpoint"]
