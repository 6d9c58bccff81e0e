"""The logger that a plan asks for, and how settings and images reach it; all below the run directory."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ptycho_exec.errors import SettingsError, redact
from ptycho_exec.fields.spec import HIDDEN, field_specs
from ptycho_exec.machine.ranks import is_rank_zero
from ptycho_exec.plan import Plan
from ptycho_exec.record import values_of
from ptycho_exec.settings import ExecutionSettings

if TYPE_CHECKING:
    import numpy as np
    from lightning.pytorch.loggers import Logger
    from numpy.typing import NDArray

LOG_FOLDER = "logs"
IMAGE_FOLDER = "pictures"
SERVER_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class LoggerBackend:
    """One logger backend. The packages that it needs are in `LOGGER_PACKAGES`, where the plan reads them.

    Attributes:
        word: the settings' word for it.
        kind: the name of Lightning's class.
        build: takes that class, the settings and the run directory.
        send_image: takes the logger, the image's name, the image (H, W, 3) in bytes, and the step.
        finish: ends a run that is otherwise open until the process ends.
    """

    word: str
    kind: str
    build: Callable[[Any, ExecutionSettings, Path], Logger]
    send_image: Callable[[Any, str, NDArray[np.uint8], int], object]
    finish: Callable[[Any], object] | None = None


def build_logger(plan: Plan, run_dir: str | Path) -> Logger | None:
    """Return the logger for `logger_backend`, or None for none and for a smoke test.

    Raises:
        SettingsError: the backend's package is missing (the message names the extra that installs it), or
            no server answers at `tracking_uri`.
    """
    settings = plan.settings
    if settings.logger_backend is None or settings.fast_dev_run:
        return None
    from lightning.pytorch import loggers

    backend = next(row for row in BACKENDS if row.word == settings.logger_backend)
    try:
        return backend.build(getattr(loggers, backend.kind), settings, Path(run_dir))
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"logger_backend={backend.word}: its package is not installed ({error})",
            where=settings.origin_of("logger_backend"),
            expected="csv, none, or an installed logger",
            fix=f"pip install 'ptycho-exec[{backend.word}]', or set logger_backend=csv",
        ) from error


def backend_of(logger: Any) -> LoggerBackend | None:
    """Return the backend of a logger, by its class or the first one in its ancestry that has one."""
    kinds = {row.kind: row for row in BACKENDS}
    return next((kinds[base.__name__] for base in type(logger).__mro__ if base.__name__ in kinds), None)


def log_settings(logger: Logger, settings: ExecutionSettings) -> None:
    """Send every value, as text where a logger knows no lists, mappings or none; credentials are hidden.

    So are the values of `Field(repr=False)`.
    """
    specs = field_specs(type(settings))
    plain = {
        name: HIDDEN if specs[name].hidden else redact(value) for name, value in values_of(settings).items()
    }
    logger.log_hyperparams({name: str(v) if isinstance(v, (list, dict)) else v for name, v in plain.items()})


def log_image(logger: Logger, name: str, image: NDArray[np.uint8], step: int) -> None:
    """Send an image (H, W, 3) in bytes; the CSV logger gets it as a PNG file in its folder."""
    backend = backend_of(logger)
    if backend is None:
        raise TypeError(f"{type(logger).__name__} is no logger that images can be sent to")
    if is_rank_zero():
        backend.send_image(logger, name, image, step)


def close_logger(logger: Logger | None) -> None:
    """Finish writing.

    A logger that wrote in other processes has nothing open here; asking it to save would begin its file anew.
    """
    if logger is None or getattr(logger, "_experiment", logger) is None:
        return
    logger.save()
    backend = backend_of(logger)
    if backend is not None and backend.finish is not None:
        backend.finish(logger)


# --- the backends -------------------------------------------------------------------------------------------


def _mlflow(kind: Any, settings: ExecutionSettings, run_dir: Path) -> Logger:
    """Build it for a server that answers, else for a folder. MLflow itself would retry for minutes."""
    uri = settings.tracking_uri or (run_dir.resolve() / LOG_FOLDER / "mlruns").as_uri()
    address = urlsplit(uri)
    if address.scheme in ("http", "https"):
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname or "", port), timeout=SERVER_TIMEOUT_S).close()
        except OSError as error:
            raise SettingsError(
                f"tracking_uri={redact(uri)}: no server answers ({error.strerror or error})",
                where=settings.origin_of("tracking_uri"),
                expected="the address of a running MLflow server, or none",
                fix="start the server, correct the address, or set tracking_uri=none",
            ) from None
    # MLflow 3.7 and later ask for this before they write a folder; `process_flags` puts the variable back.
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    logger: Logger = kind(experiment_name=settings.experiment_name, run_name=run_dir.name, tracking_uri=uri)
    return logger


def _wandb(kind: Any, settings: ExecutionSettings, run_dir: Path) -> Logger:
    import wandb

    folder = run_dir / LOG_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    # Its own logs would land in the home directory; `process_flags` puts the variable back.
    os.environ["WANDB_CACHE_DIR"] = str(folder / "wandb" / "cache")
    quiet = wandb.Settings(silent=True, console="off")
    name, project = run_dir.name, settings.experiment_name
    # A mode that is given wins over the variable WANDB_MODE.
    mode = settings.wandb_mode
    offline = mode == "offline"
    logger: Logger = kind(
        project=project, name=name, save_dir=folder, offline=offline, mode=mode, settings=quiet
    )
    return logger


def _csv(kind: Any, settings: ExecutionSettings, run_dir: Path) -> Logger:
    """Build it for a folder of its own; it would delete what an earlier attempt of the run wrote."""
    names = itertools.chain([LOG_FOLDER], (f"{LOG_FOLDER}-{number}" for number in itertools.count(2)))
    version = next(name for name in names if not any((run_dir / name).glob("*")))
    logger: Logger = kind(
        save_dir=run_dir, name="", version=version, flush_logs_every_n_steps=settings.log_every_n_steps
    )
    return logger


def _save_png(logger: Any, name: str, image: NDArray[np.uint8], step: int) -> None:
    from PIL import Image

    folder = Path(logger.log_dir) / IMAGE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{name}-{step:07d}.png")


BACKENDS: tuple[LoggerBackend, ...] = (
    LoggerBackend(
        "csv",
        "CSVLogger",
        _csv,
        _save_png,
    ),
    LoggerBackend(
        "tensorboard",
        "TensorBoardLogger",
        lambda kind, _, run_dir: kind(save_dir=run_dir, name="", version=LOG_FOLDER, default_hp_metric=False),
        lambda logger, name, image, step: logger.experiment.add_image(name, image, step, dataformats="HWC"),
    ),
    LoggerBackend(
        "mlflow",
        "MLFlowLogger",
        _mlflow,
        lambda logger, name, image, step: logger.experiment.log_image(
            logger.run_id, image, artifact_file=f"{IMAGE_FOLDER}/{name}-{step:07d}.png"
        ),
    ),
    LoggerBackend(
        "wandb",
        "WandbLogger",
        _wandb,
        # An image belongs to the current step: one with the number of an older step would be dropped.
        lambda logger, name, image, _: logger.log_image(name, [image]),
        finish=lambda logger: logger.experiment.finish(),
    ),
)
