"""The logger that a plan asks for, and how settings and pictures reach it; all below the run directory."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ptycho_exec.errors import SettingsError, redact
from ptycho_exec.plan import Plan
from ptycho_exec.settings import ExecutionSettings

if TYPE_CHECKING:
    import numpy as np
    from lightning.pytorch.loggers import Logger
    from numpy.typing import NDArray

LOG_FOLDER = "logs"
PICTURE_FOLDER = "pictures"
SERVER_TIMEOUT_S = 10


def build_logger(plan: Plan, run_dir: str | Path) -> Logger | None:
    """Return the logger for `logger_backend`, or None for none and for a smoke test.

    Raises:
        SettingsError: the backend's package is missing (the message names the extra that installs it), or
            no server answers at `tracking_uri`.
    """
    settings = plan.settings
    if settings.logger_backend is None or settings.fast_dev_run:
        return None
    return BUILDERS[settings.logger_backend](settings, Path(run_dir))


def _csv(settings: ExecutionSettings, run_dir: Path) -> Logger:
    from lightning.pytorch.loggers import CSVLogger

    every = settings.log_every_n_steps
    return CSVLogger(save_dir=run_dir, name="", version=LOG_FOLDER, flush_logs_every_n_steps=every)


def _tensorboard(settings: ExecutionSettings, run_dir: Path) -> Logger:
    _need("tensorboard", settings, "tensorboard", "tensorboardX")
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=run_dir, name="", version=LOG_FOLDER, default_hp_metric=False)


def _mlflow(settings: ExecutionSettings, run_dir: Path) -> Logger:
    _need("mlflow", settings, "mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    uri = settings.tracking_uri or (run_dir.resolve() / LOG_FOLDER / "mlruns").as_uri()
    _require_server(uri, settings)
    with _file_store_allowed():
        logger = MLFlowLogger(
            experiment_name=settings.experiment_name, run_name=run_dir.name, tracking_uri=uri
        )
        logger.experiment  # noqa: B018 (creates the run while the file store is allowed)
    return logger


def _wandb(settings: ExecutionSettings, run_dir: Path) -> Logger:
    _need("wandb", settings, "wandb")
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    folder = run_dir / LOG_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    # Its own logs would land in the home directory; `process_flags` puts the variable back.
    os.environ["WANDB_CACHE_DIR"] = str(folder / "wandb" / "cache")
    quiet = wandb.Settings(silent=True, console="off")
    return WandbLogger(
        project=settings.experiment_name, name=run_dir.name, save_dir=folder, offline=True, settings=quiet
    )


BUILDERS: dict[str, Callable[[ExecutionSettings, Path], Logger]] = {
    "csv": _csv,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}


def _origin(settings: ExecutionSettings, name: str) -> str:
    origin = settings.origins.get(name)
    return origin.describe() if origin else ""


def _need(extra: str, settings: ExecutionSettings, *modules: str) -> None:
    if any(importlib.util.find_spec(module) for module in modules):
        return
    raise SettingsError(
        f"logger_backend={extra}: the package {modules[0]} is not installed",
        where=_origin(settings, "logger_backend"),
        expected="csv, none, or an installed logger",
        fix=f"pip install 'ptycho-exec[{extra}]', or set logger_backend=csv",
    )


def _require_server(uri: str, settings: ExecutionSettings) -> None:
    """Ask once whether anything listens; MLflow itself would retry for minutes."""
    address = urlsplit(uri)
    if address.scheme not in ("http", "https"):
        return
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=SERVER_TIMEOUT_S).close()
    except OSError as error:
        raise SettingsError(
            f"tracking_uri={redact(uri)}: no server answers ({error.strerror or error})",
            where=_origin(settings, "tracking_uri"),
            expected="the address of a running MLflow server, or none",
            fix="start the server, correct the address, or set tracking_uri=none",
        ) from None


@contextmanager
def _file_store_allowed() -> Iterator[None]:
    """MLflow 3.7 and later ask for this variable before they write a plain folder."""
    before = os.environ.get("MLFLOW_ALLOW_FILE_STORE")
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    try:
        yield
    finally:
        del os.environ["MLFLOW_ALLOW_FILE_STORE"]
        if before is not None:
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = before


# --- what reaches it besides metrics ------------------------------------------------------------------------


def log_settings(logger: Logger, settings: ExecutionSettings) -> None:
    """Send every value, as text where a logger knows no lists or none; credentials are hidden."""
    from ptycho_exec.record import values_of

    plain = {name: redact(value) for name, value in values_of(settings).items()}
    logger.log_hyperparams({name: str(v) if isinstance(v, list) else v for name, v in plain.items()})


def log_picture(logger: Logger, name: str, picture: NDArray[np.uint8], step: int) -> None:
    """Send a picture (H, W, 3) of bytes; the CSV logger gets it as a PNG file in its folder."""
    from ptycho_exec.machine.ranks import is_rank_zero

    if is_rank_zero():
        kind = next(base.__name__ for base in type(logger).__mro__ if base.__name__ in PICTURE_SENDERS)
        PICTURE_SENDERS[kind](logger, name, picture, step)


def _to_file(logger: Any, name: str, picture: NDArray[np.uint8], step: int) -> None:
    from PIL import Image

    folder = Path(logger.log_dir) / PICTURE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / f"{name}-{step:07d}.png")


def _to_tensorboard(logger: Any, name: str, picture: NDArray[np.uint8], step: int) -> None:
    logger.experiment.add_image(name, picture, global_step=step, dataformats="HWC")


def _to_mlflow(logger: Any, name: str, picture: NDArray[np.uint8], step: int) -> None:
    logger.experiment.log_image(
        logger.run_id, picture, artifact_file=f"{PICTURE_FOLDER}/{name}-{step:07d}.png"
    )


def _to_wandb(logger: Any, name: str, picture: NDArray[np.uint8], step: int) -> None:
    del step  # a picture belongs to the current step; an older one would be dropped
    logger.log_image(name, [picture])


PICTURE_SENDERS: dict[str, Callable[[Any, str, Any, int], None]] = {
    "CSVLogger": _to_file,
    "TensorBoardLogger": _to_tensorboard,
    "MLFlowLogger": _to_mlflow,
    "WandbLogger": _to_wandb,
}


def close_logger(logger: Logger | None) -> None:
    """Finish writing. Weights & Biases would otherwise hold its run open until the process ends.

    A logger that wrote in other processes has nothing open here; asking it to save would begin its file anew.
    """
    if logger is None or getattr(logger, "_experiment", logger) is None:
        return
    logger.save()
    finish = getattr(getattr(logger, "_experiment", None), "finish", None)
    if type(logger).__name__ == "WandbLogger" and finish is not None:
        finish()
