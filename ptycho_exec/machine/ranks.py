"""Which of a run's processes this one is."""

from __future__ import annotations

import os


def is_rank_zero() -> bool:
    """Return whether this process writes for all of them, from the launcher's variables."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank == "0" for rank in ranks if rank is not None), True)
