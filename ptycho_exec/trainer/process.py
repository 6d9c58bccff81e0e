"""What a run sets for the whole process - seeds, torch's flags, variables - and how all of it is put back."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ptycho_exec.settings import ExecutionSettings

RUN_VARIABLES = (
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    "CUBLAS_WORKSPACE_CONFIG",
    "WANDB_CACHE_DIR",
    "WANDB_MODE",
    "MLFLOW_ALLOW_FILE_STORE",
)
# Warnings of Lightning about choices that the plan has already checked and reported, as patterns.
ANSWERED_WARNINGS = (
    ".*does not have many workers.*",
    ".*This DataLoader will create .* worker processes.*",
    ".*is smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*You defined a `validation_step` but have no `val_dataloader`.*",
    ".*The dirpath has changed from.*",
    # `Continuity` brings the loaders to the batch at which the run stopped.
    ".*resuming from a checkpoint that ended before the epoch ended.*",
    # A launcher that is missing where it is needed is a problem of the plan.
    ".*The `srun` command is available on your system but is not used.*",
    # The plan says which accelerator it takes, and why.
    ".*GPU available but not used.*",
    # torch 2.13 deprecates a pytree helper that lightning 2.6 still calls in every fit.
    ".*LeafSpec.*",
)

# They report hardware and tips as a run starts; the run's own table has what matters.
LIGHTNING_LOGGERS = ("lightning.pytorch", "lightning.fabric")


def seed_run(settings: ExecutionSettings) -> int:
    """Seed Python, NumPy, torch and the loaders' workers, before anything random happens.

    As Lightning's `seed_everything(seed, workers=True)`, which needs all of Lightning to be imported.
    """
    import random

    import numpy as np
    import torch

    os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"] = str(settings.seed), "1"
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    return settings.seed


def leave_group_at_exit() -> None:
    """Leave the group of processes in order when this one ends.

    Lightning leaves that to the interpreter's last moments, where a thread of gloo that still runs now and
    then aborts a process that had done all its work.
    """
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)


def _leave_group() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def process_flags(settings: ExecutionSettings) -> Iterator[None]:
    """Set what is process-wide for the time of a run, and put all of it back afterwards, also on an error.

    Covers matrix product precision, deterministic algorithms, cuDNN's flags, threads, default dtype, the
    random states, the variables that seeding and determinism set, Lightning's reports about hardware, and
    warnings that the plan already answered.
    """
    with _restored(), warnings.catch_warnings():
        set_process_flags(settings)
        yield


def set_process_flags(settings: ExecutionSettings) -> None:
    """Set what is process-wide for good, in a process that ends with the run: a child of ddp_spawn."""
    import torch

    for message in ANSWERED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for logger in map(logging.getLogger, LIGHTNING_LOGGERS):
        logger.setLevel(max(logger.level, logging.WARNING))
    torch.set_float32_matmul_precision(settings.matmul_precision)
    torch.backends.cudnn.benchmark = settings.benchmark
    _set_deterministic(
        bool(settings.deterministic), warn_only=settings.deterministic == "warn", compiles=settings.compile
    )
    # Filling memory that every operation overwrites anyway costs a few percent and decides nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if settings.deterministic:
        # cuBLAS reads this when it starts, so it must be there before the first product.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)


def _set_deterministic(strict: bool, *, warn_only: bool, compiles: bool) -> None:
    """Set torch's flag, and that of its compiler where it is used: setting that one imports it, a second."""
    import torch

    if compiles:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
    else:
        torch.set_deterministic_debug_mode("default" if not strict else "warn" if warn_only else "error")


@contextmanager
def _restored() -> Iterator[None]:
    """Remember all of the process that a run may change, and put it back."""
    import random

    import numpy as np
    import torch

    variables = {name: os.environ.get(name) for name in RUN_VARIABLES}
    levels = {name: logging.getLogger(name).level for name in LIGHTNING_LOGGERS}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    matmul, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    benchmark, deterministic, tf32 = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    dtype, anomaly = torch.get_default_dtype(), torch.is_anomaly_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.set_float32_matmul_precision(matmul)
        torch.set_num_threads(threads)
        _set_deterministic(strict, warn_only=warn_only, compiles="torch._inductor" in sys.modules)
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = benchmark, deterministic, tf32
        torch.set_default_dtype(dtype)
        torch.autograd.set_detect_anomaly(anomaly)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
