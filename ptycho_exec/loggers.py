"""The logger that a plan asks for; all of them write below the run directory."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho_exec.errors import SettingsError
from ptycho_exec.plan import Plan
from ptycho_exec.settings import ExecutionSettings

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

LOG_FOLDER = "logs"


def build_logger(plan: Plan, run_dir: str | Path) -> Logger | None:
    """Return the logger for `logger_backend`, or None for none and for a smoke test.

    Raises:
        SettingsError: the backend's package is missing; the message names the extra that installs it.
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
    return MLFlowLogger(experiment_name=settings.experiment_name, run_name=run_dir.name, tracking_uri=uri)


def _wandb(settings: ExecutionSettings, run_dir: Path) -> Logger:
    _need("wandb", settings, "wandb")
    from lightning.pytorch.loggers import WandbLogger

    folder = run_dir / LOG_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(project=settings.experiment_name, name=run_dir.name, save_dir=folder, offline=True)


BUILDERS: dict[str, Callable[[ExecutionSettings, Path], Logger]] = {
    "csv": _csv,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}


def _need(extra: str, settings: ExecutionSettings, *modules: str) -> None:
    if any(importlib.util.find_spec(module) for module in modules):
        return
    origin = settings.origins.get("logger_backend")
    raise SettingsError(
        f"logger_backend={extra}: the package {modules[0]} is not installed",
        where=origin.describe() if origin else "",
        expected="csv, none, or an installed logger",
        fix=f"pip install 'ptycho-exec[{extra}]', or set logger_backend=csv",
    )
