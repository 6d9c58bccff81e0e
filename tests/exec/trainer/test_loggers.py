"""Loggers for real: metrics, settings and pictures arrive, and nothing lands outside the run directory."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from socket import socket
from typing import Any, get_args

import lightning.pytorch as pl
import numpy as np
import pytest

from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.choices import CHOICES, LoggerWord
from ptycho_exec.machine.facts import LOGGER_PACKAGES, PACKAGES
from ptycho_exec.plan import resolve_plan
from ptycho_exec.trainer.loggers import (
    BACKENDS,
    LoggerBackend,
    backend_of,
    build_logger,
    close_logger,
    log_image,
    log_settings,
)
from ptycho_exec.trainer.process import process_flags
from ptycho_torch.simulate import save, simulate_scan
from tests.exec.trainer.logged_runs import FACTS, fit, settings

# What these packages themselves use that newer Pythons or libraries deprecate is not ours to fix.
third_party = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.acts("log_images_every_n_epochs", "pictures beside the metrics, and their steps")
def test_csv_gets_metrics_settings_and_pictures(elsewhere: Path) -> None:
    fit(settings(), elsewhere)
    with (elsewhere / "logs" / "metrics.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len([row for row in found if row["train_loss"]]) == 3
    assert len([row for row in found if row["val_loss"]]) == 3
    assert [float(row["lr-SGD"]) for row in found if row["lr-SGD"]] == [1e-3] * 12
    assert "batch_size: 4" in (elsewhere / "logs" / "hparams.yaml").read_text()
    pictures = sorted(path.name for path in (elsewhere / "logs" / "pictures").iterdir())
    assert pictures == ["amplitude-0000008.png", "amplitude-0000012.png"]


@pytest.mark.acts("log_every_n_steps", "rows of step metrics in `metrics.csv`")
def test_log_every_n_steps_thins_the_rows(elsewhere: Path) -> None:
    fit(settings(log_every_n_steps=4, log_images_every_n_epochs=None), elsewhere)
    with (elsewhere / "logs" / "metrics.csv").open() as file:
        assert len([row for row in csv.DictReader(file) if row["lr-SGD"]]) == 3


@pytest.mark.acts("logger_backend", "files in `logs/`")
def test_none_logs_nothing(elsewhere: Path) -> None:
    trainer = fit(settings(logger_backend=None), elsewhere)
    assert trainer.loggers == []
    assert sorted(path.name for path in elsewhere.iterdir()) == ["checkpoints"]


def test_a_smoke_test_has_no_logger(tmp_path: Path) -> None:
    assert build_logger(resolve_plan(settings(fast_dev_run=1), FACTS), tmp_path) is None


def test_credentials_are_not_sent(tmp_path: Path) -> None:
    plan = resolve_plan(settings(tracking_uri="http://me:hunter2@host/"), FACTS)
    logger = build_logger(plan, tmp_path)
    assert logger is not None
    log_settings(logger, plan.settings)
    logger.log_metrics({"x": 1.0}, step=0)
    close_logger(logger)
    text = (tmp_path / "logs" / "hparams.yaml").read_text()
    assert "hunter2" not in text
    assert "***" in text


def test_every_backend_has_a_row_and_its_packages_are_recorded() -> None:
    words = [row.word for row in BACKENDS]
    assert set(words) == set(CHOICES["logger_backend"]) == set(get_args(LoggerWord))
    assert len(words) == len(set(words))
    assert set(LOGGER_PACKAGES) <= set(words)
    assert {name for names in LOGGER_PACKAGES.values() for name in names} <= set(PACKAGES)


@pytest.mark.parametrize("row", BACKENDS, ids=lambda row: row.word)
def test_a_row_names_a_logger_of_lightning(row: LoggerBackend) -> None:
    kind = getattr(pl.loggers, row.kind)
    assert backend_of(object.__new__(kind)) is row
    assert backend_of(object()) is None


def test_an_image_for_an_unknown_logger_is_an_error() -> None:
    with pytest.raises(TypeError, match="object is no logger that images can be sent to"):
        log_image(object(), "amplitude", np.zeros((2, 2, 3), np.uint8), 0)  # type: ignore[arg-type]


HIDDEN = """
import importlib.metadata as metadata, sys
blocked = sys.argv[1].split(",")
sys.modules.update(dict.fromkeys(blocked))  # importing them now fails, as where they are not installed
version = metadata.version
def hide(name):
    if name in blocked:
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = hide
"""


COMMAND = "from ptycho_torch.cli import main; sys.exit(main(sys.argv[2:]))"


# The plan is of another machine, where the package is.
LOGGER = """
from ptycho_exec.errors import SettingsError
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import resolve_plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.loggers import build_logger
settings = ExecutionSettings.from_values({"logger_backend": sys.argv[2]})
plan = resolve_plan(settings, MachineFacts(packages=dict.fromkeys(blocked, "1")))
assert not plan.problems
try:
    build_logger(plan, "run")
except SettingsError as error:
    sys.exit(str(error))
"""


NEEDS_PACKAGE = pytest.mark.parametrize(
    ("backend", "packages"),
    [
        pytest.param(word, ",".join(names), marks=[pytest.mark.thorough] * (row > 0), id=word)
        for row, (word, names) in enumerate(LOGGER_PACKAGES.items())
    ],
)


@pytest.mark.slow
@NEEDS_PACKAGE
def test_a_missing_package_names_its_extra(backend: str, packages: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HIDDEN + LOGGER, packages, backend]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"logger_backend={backend}: its package is not installed" in done.stderr
    assert f"pip install 'ptycho-exec[{backend}]'" in done.stderr
    assert "argument from_values()" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@NEEDS_PACKAGE
def test_training_where_the_package_is_missing_stops_before_anything_is_written(
    backend: str, packages: str, tmp_path: Path
) -> None:
    save(simulate_scan(n=32, patterns=12), tmp_path / "scan.npz")
    words = ["train", "scan.npz", "--out", "run", f"--logger-backend={backend}"]
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN + COMMAND, packages, *words],
        cwd=tmp_path,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"pip install 'ptycho-exec[{backend}]'" in done.stderr
    assert "flag --logger-backend" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["scan.npz"]


def free_port() -> int:
    with closing(socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.acts("tracking_uri", "address that the tracking client is given, and asked whether it answers")
def test_a_server_that_does_not_answer_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning.pytorch.loggers.MLFlowLogger", None)
    uri = f"http://me:hunter2@127.0.0.1:{free_port()}"
    plan = resolve_plan(settings(logger_backend="mlflow", tracking_uri=uri), FACTS)
    with pytest.raises(SettingsError, match="no server answers") as caught:
        build_logger(plan, tmp_path)
    assert "hunter2" not in str(caught.value)


@third_party
def test_tensorboard_events_are_read_back(elsewhere: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(settings(logger_backend="tensorboard"), elsewhere)
    found = EventAccumulator(str(elsewhere / "logs"))
    found.Reload()
    assert len(found.Scalars("train_loss")) == 3
    assert len(found.Scalars("val_loss")) == 3
    shown = found.Images("amplitude")
    assert [(row.step, row.width, row.height) for row in shown] == [(8, 8, 6), (12, 8, 6)]
    assert "batch_size: 4" in (elsewhere / "logs" / "hparams.yaml").read_text()


def check_mlflow_run(uri: str) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("grain")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.params["batch_size"] == "4"
    assert len(client.get_metric_history(run.info.run_id, "val_loss")) == 3
    names = [row.path for row in client.list_artifacts(run.info.run_id, "pictures")]
    assert names == ["pictures/amplitude-0000008.png", "pictures/amplitude-0000012.png"]


@third_party
def test_mlflow_without_a_server_writes_into_the_run_directory(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    fit(settings(logger_backend="mlflow", experiment_name="grain"), elsewhere)
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    check_mlflow_run((elsewhere / "logs" / "mlruns").as_uri())


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    pytest.importorskip("flask", reason="mlflow-skinny has no server; install mlflow for this test")
    folder, port = tmp_path / "server", free_port()
    folder.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    address = f"http://127.0.0.1:{port}"
    log = (folder / "log").open("wb")
    with log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True) as server:
        try:
            wait_for(f"{address}/health", server)
            yield address
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # with its workers; asked to end they wait for seconds


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=2).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail("the MLflow server did not start")


@pytest.mark.slow
@third_party
def test_mlflow_with_a_server(mlflow_server: str, elsewhere: Path) -> None:
    wanted = settings(logger_backend="mlflow", experiment_name="grain", tracking_uri=mlflow_server)
    fit(wanted, elsewhere)
    assert not (elsewhere / "logs" / "mlruns").exists()
    check_mlflow_run(mlflow_server)


@pytest.mark.slow
@third_party
def test_wandb_writes_an_offline_run(elsewhere: Path) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    trainer = fit(settings(logger_backend="wandb", experiment_name="grain"), elsewhere)
    wandb.teardown()  # the end of a process, at which its writer has written everything
    assert trainer.logger is not None
    assert trainer.logger.name == "grain"
    (folder,) = (elsewhere / "logs" / "wandb").glob("offline-run-*")
    (data,) = folder.glob("run-*.wandb")
    content = data.read_bytes()
    for words in (b"val_loss", b"train_loss", b"batch_size", b"amplitude"):
        assert words in content
    assert len(list((folder / "files" / "media" / "images").glob("amplitude*.png"))) == 2
    assert "WANDB_CACHE_DIR" not in os.environ


@pytest.mark.acts("wandb_mode", "the mode that the run is begun with")
@pytest.mark.parametrize("mode", ["online", "disabled"])
@third_party
def test_wandb_is_begun_in_the_mode_that_was_asked_for(
    mode: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable of Weights & Biases says otherwise and does not win."""
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    wanted = settings(logger_backend="wandb", wandb_mode=mode)
    with process_flags(wanted):
        logger: Any = build_logger(resolve_plan(wanted, FACTS), elsewhere)
        assert (logger._wandb_init["mode"], logger._offline) == (mode, False)
        if mode == "disabled":
            assert logger.experiment.disabled
    assert os.environ["WANDB_MODE"] == "offline"
