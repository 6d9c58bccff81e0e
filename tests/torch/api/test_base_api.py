"""The released Ptychodus calls us as it does in its child processes: train, keep the model, reconstruct."""

from __future__ import annotations

import csv
import json
import logging
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from ptycho_exec.errors import DataError, SettingsError, UserError
from ptycho_exec.machine.facts import MachineFacts
from ptycho_torch.api.base_api import (
    ConfigManager,
    DataloaderFormats,
    InferenceEngine,
    PtychoDataLoader,
    PtychoModel,
    Trainer,
)
from ptycho_torch.config_params import DataConfig, DatagenConfig, InferenceConfig, ModelConfig, TrainingConfig
from ptycho_torch.data.formats.npz import write_npz
from ptycho_torch.data.formats.ptychodus import write_ptychodus
from ptycho_torch.data.grouping import select_patterns
from ptycho_torch.data.scan import ScanData
from ptycho_torch.evaluation.metrics import Evaluation, evaluate
from ptycho_torch.lightning_utils import find_best_checkpoint
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.ptychodus import translation
from ptycho_torch.reconstruction.stitch import probe_coverage
from ptycho_torch.simulate import simulate_scan

N, EPOCHS = 32, 12


class Queue(list[Any]):
    """Stands for the queue to Ptychodus's own process."""

    put = list.append


@dataclass
class Session:
    """What one training left."""

    scan: ScanData
    sent: dict[str, Any]
    output: Any
    checkpoint: Path
    run_dir: Path
    log: list[logging.LogRecord]

    def warnings(self) -> list[str]:
        return [
            r.getMessage() for r in self.log if r.name == "ptychopinn-torch" and r.levelno == logging.WARNING
        ]


@pytest.fixture(autouse=True, scope="module")
def quiet_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No settings of the machine that runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PTYCHO_EXEC_")]:
            patch.delenv(name)
        place = tmp_path_factory.mktemp("cwd")
        patch.setenv("XDG_CONFIG_HOME", str(place / "none"))
        patch.chdir(place)
        yield


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """Collect what Ptychodus's window would show."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler, root = Keep(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield records
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@pytest.fixture(scope="module")
def scan() -> ScanData:
    """A scan whose object does not lie around it evenly, so that a guessed shape would be wrong."""
    made = simulate_scan(n=N, patterns=100, photons=1e6, seed=5, bad_pixels=1)
    assert made.object_guess is not None
    canvas = np.pad(made.object_guess, ((3, 10), (1, 6)), mode="edge")
    return replace(
        made,
        object_guess=canvas,
        canvas_shape=canvas.shape,
        positions_px=made.positions_px + np.array([3.0, 1.0]),
    )


def entry_points() -> Any:
    return pytest.importorskip(
        "ptychodus.model.ptychopinn_torch._subprocess", reason="needs the ptychodus extra"
    )


def reconstruct_input(scan: ScanData, folder: Path) -> Any:
    """Return a scan as Ptychodus holds it."""
    io = pytest.importorskip("ptychodus.api.io", reason="needs the ptychodus extra")
    from ptychodus.api.reconstruct import prepare_reconstruct_input

    write_ptychodus(scan, folder)
    data = io.load_diffraction_data(folder / "diffraction.h5")
    return prepare_reconstruct_input(data, io.load_product(folder / "product.h5"))


def keywords(mode: str = "Unsupervised", **training: Any) -> dict[str, Any]:
    given = {
        "epochs": EPOCHS,
        "batch_size": 8,
        "learning_rate": 4e-3,
        "num_workers": 0,
        "scheduler": "Cosine",
    }
    return {
        "data_config": DataConfig(C=1, C_unknown=3),
        "model_config": ModelConfig(mode=mode, C_model=1, C_forward=1, decoder_last_amp_channels=1),
        "training_config": TrainingConfig(
            **{
                **given,
                "gradient_clip_val": 1.0,
                "notes": "beamtime 7",
                "finetune_val_split": 0.1,
                **training,
            }
        ),
        "inference_config": InferenceConfig(middle_trim=24),
        "datagen_config": DatagenConfig(),
    }


def trained(scan: ScanData, folder: Path, mode: str) -> Session:
    """Export as Ptychodus does, and train as its child process does, from pickled keywords."""
    calls = entry_points()
    from ptychodus.api.io import save_ptychopinn_training_data
    from ptychodus.model.ptychopinn_torch._payload import TrainPayload

    (folder / "in").mkdir()
    save_ptychopinn_training_data(folder / "in" / "train_data.npz", reconstruct_input(scan, folder / "pair"))
    sent, queue = keywords(mode), Queue()
    payload = TrainPayload(
        **sent, input_path=folder / "in", output_path=folder / "out", visible_gpu_indices=""
    )
    with logged() as log:
        calls.run_train(pickle.loads(pickle.dumps(payload)), queue)
    (first, output), (second, path) = queue
    assert (first, second) == ("train_output", "model_saved")
    run_dir = Path(path).parents[1]
    return Session(scan, sent, pickle.loads(output), Path(path), run_dir, log)


@pytest.fixture(scope="module")
def unsupervised(scan: ScanData, tmp_path_factory: pytest.TempPathFactory) -> Session:
    return trained(scan, tmp_path_factory.mktemp("unsupervised"), "Unsupervised")


@pytest.fixture(scope="module")
def supervised(scan: ScanData, tmp_path_factory: pytest.TempPathFactory) -> Session:
    return trained(scan, tmp_path_factory.mktemp("supervised"), "Supervised")


def reconstructed(
    scan: ScanData, checkpoint: Path, folder: Path, mode: str = "Unsupervised"
) -> tuple[Any, list[logging.LogRecord]]:
    """Return Ptychodus's own object after `run_reconstruct`, and what was logged."""
    calls = entry_points()
    from ptychodus.model.ptychopinn_torch._payload import ReconstructPayload

    payload = ReconstructPayload(mode, checkpoint, reconstruct_input(scan, folder))
    queue = Queue()
    with logged() as log:
        calls.run_reconstruct(payload, queue)
    ((tag, output),) = queue
    assert tag == "output"
    return pickle.loads(output).product.object_, log


def score(scan: ScanData, obj: Any) -> Evaluation:
    """Compare with the truth where the probe shone."""
    assert scan.object_guess is not None
    assert scan.probe is not None
    positions, probe = torch.from_numpy(scan.positions_px), torch.from_numpy(scan.probe)
    light = probe_coverage(positions, probe, scan.canvas_shape).numpy()
    return evaluate(obj, scan.object_guess, coverage=light)


# --- training


@pytest.mark.parametrize("mode", ["unsupervised", "supervised"])
@pytest.mark.slow
def test_training_streams_its_losses_and_keeps_the_best(mode: str, request: pytest.FixtureRequest) -> None:
    session: Session = request.getfixturevalue(mode)
    for losses, column in (("training_loss", "train_loss_epoch"), ("validation_loss", "val_loss")):
        curve = getattr(session.output, losses)
        assert [point.epoch for point in curve] == list(range(EPOCHS))
        assert curve[-1].value < curve[0].value
        with (session.run_dir / "logs" / "metrics.csv").open() as file:
            written = [float(row[column]) for row in csv.DictReader(file) if row.get(column)]
        np.testing.assert_allclose([point.value for point in curve], written, rtol=1e-6)
    assert session.output.progress == EPOCHS
    assert session.checkpoint == find_best_checkpoint(session.run_dir.parent)
    best = min(session.output.validation_loss, key=lambda point: point.value)
    assert session.checkpoint.name.startswith(f"epoch{best.epoch:04d}")


def test_one_warning_says_what_could_not_be_done(scan: ScanData, tmp_path: Path) -> None:
    trainer, _, loader, _ = session_of(scan, tmp_path / "in", epochs=1, min_lr_ratio=0.5)
    with logged() as log:
        trainer.train()
    (told,) = [r.getMessage() for r in log if r.name == "ptychopinn-torch" and r.levelno == logging.WARNING]
    assert told.splitlines()[1:] == [
        "- Min Learning Rate Ratio = 0.5 has no effect: the schedules have floors of their own"
    ]
    assert told in json.loads((loader.output_dir / "manifest.json").read_text())["warnings"]


def test_what_nobody_chose_is_fitted_without_a_warning(unsupervised: Session) -> None:
    assert unsupervised.warnings() == []
    (told,) = [r.getMessage() for r in unsupervised.log if "fitted to this scan" in r.getMessage()]
    assert "- Model Size: 128 became 32, the side of the patterns" in told
    assert "- Device: cuda became cpu" in told


def test_every_epoch_is_told_as_it_ends(unsupervised: Session) -> None:
    told = [
        r.getMessage()
        for r in unsupervised.log
        if r.name == "ptychopinn-torch" and "epoch " in r.getMessage()
    ]
    assert [line.split(":")[0] for line in told] == [f"epoch {k + 1} of {EPOCHS}" for k in range(EPOCHS)]
    losses = (unsupervised.output.training_loss[-1].value, unsupervised.output.validation_loss[-1].value)
    line = f"train_loss {losses[0]:.4g}, val_loss {losses[1]:.4g}; 0 s left"
    assert told[-1].removesuffix("; best so far").endswith(line)


def test_the_window_says_what_is_read(unsupervised: Session) -> None:
    shown = [r.getMessage() for r in unsupervised.log if r.name == "ptychopinn-torch"]
    assert any("100 patterns of 32 x 32 (" in line and ", canvas " in line for line in shown), shown


def test_the_run_directory_is_complete(unsupervised: Session) -> None:
    manifest = json.loads((unsupervised.run_dir / "manifest.json").read_text())
    assert manifest["status"] == "completed"
    assert manifest["ptychodus"]["training"]["notes"] == "beamtime 7"
    assert manifest["ptychodus"]["training"]["model_name"] == "PtychoPINNv2"
    assert manifest["ptychodus"]["model"]["mode"] == "Unsupervised"
    assert manifest["applied"]["learning_rate"] == 4e-3
    assert manifest["plan"]["effective"]["scheduler"]["value"] == "WarmupCosine"
    assert manifest["science"]["training"]["loss"] == "poisson"
    assert manifest["origins"]["batch_size"]["place"] == "Ptychodus"
    assert manifest["data"]["train"]["source"].endswith("train_data.npz")
    assert {"model.ckpt", "settings.toml", "loss.png"} <= {
        path.name for path in unsupervised.run_dir.iterdir()
    }


def test_bad_pixels_that_ptychodus_filled_are_known(unsupervised: Session) -> None:
    module = PtychoPINN_Lightning.load_from_checkpoint(unsupervised.checkpoint)
    np.testing.assert_array_equal(module.good_pixels.cpu().numpy(), unsupervised.scan.good_pixels)


def test_phase_subtraction_of_ptychodus_acts_on_labels(scan: ScanData, tmp_path: Path) -> None:
    write_npz(scan, tmp_path / "a.npz")
    labels = {}
    for flag in (True, False):
        given = {**keywords("Supervised"), "data_config": DataConfig(C=1, phase_subtraction=flag)}
        loader = PtychoDataLoader(tmp_path, ConfigManager(**given), output_dir=tmp_path)
        labels[flag] = loader.scan.label_patches([0])
    np.testing.assert_allclose(np.abs(labels[True]), np.abs(labels[False]), rtol=1e-5)
    assert np.abs(labels[True] - labels[False]).max() > 0.01


def test_a_second_training_has_a_directory_of_its_own(scan: ScanData, tmp_path: Path) -> None:
    write_npz(scan, tmp_path / "a.npz")
    manager = ConfigManager(**keywords())
    loaders = []
    for _ in range(2):
        loaders.append(
            PtychoDataLoader(tmp_path, manager, DataloaderFormats("lightning_only_module"), tmp_path)
        )
        loaders[-1].output_dir.mkdir()
    assert loaders[0].output_dir != loaders[1].output_dir
    assert manager.data_config.N == N


def test_a_failed_training_says_so_in_one_block(scan: ScanData, tmp_path: Path) -> None:
    calls = entry_points()
    from ptychodus.model.ptychopinn_torch._payload import TrainPayload

    payload = TrainPayload(
        **keywords(), input_path=tmp_path, output_path=tmp_path / "out", visible_gpu_indices=""
    )
    with pytest.raises(DataError) as caught:
        calls.run_train(payload, Queue())
    words = str(pickle.loads(pickle.dumps(caught.value)))
    for part in ("nothing to learn from", "where:", "expected:", "fix:", "Export Training Data"):
        assert part in words


def test_a_training_that_fails_leaves_what_was_asked_and_told(
    scan: ScanData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise UserError("the loss became NaN")

    trainer, _, loader, _ = session_of(scan, tmp_path / "in", min_lr_ratio=0.5)
    monkeypatch.setattr("ptycho_torch.workflows.components.run_training", fail)
    with pytest.raises(UserError, match="became NaN"):
        trainer.train()
    manifest = json.loads((loader.output_dir / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert manifest["ptychodus"]["training"]["notes"] == "beamtime 7"
    assert any("- Min Learning Rate Ratio = 0.5" in told for told in manifest["warnings"])


class Watch(Callback):
    """A callback of the caller; it holds what cannot travel to another process."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, float]] = []
        self.local = lambda: None

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        loss = float(trainer.callback_metrics["train_loss"])
        self.seen.append(("train", trainer.current_epoch, loss))

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(("val", trainer.current_epoch, float(trainer.callback_metrics["val_loss"])))


def session_of(
    scan: ScanData, folder: Path, **training: Any
) -> tuple[Trainer, PtychoModel, PtychoDataLoader, Watch]:
    folder.mkdir(exist_ok=True)
    write_npz(scan, folder / "a.npz")
    manager = ConfigManager(**keywords(**training))
    loader = PtychoDataLoader(folder, manager, DataloaderFormats("lightning_only_module"), folder / "out")
    model = PtychoModel._new_model(model=PtychoPINN_Lightning, config_manager=manager)
    trainer = Trainer._from_lightning(
        model=model, dataloader=loader, orchestration="lightning", config_manager=manager
    )
    watch = Watch()
    trainer._trainer.callbacks.append(watch)
    return trainer, model, loader, watch


@pytest.mark.slow
def test_several_devices_play_their_epochs_to_the_caller(scan: ScanData, tmp_path: Path) -> None:
    trainer, model, loader, watch = session_of(
        scan, tmp_path / "in", device="cpu", n_devices=2, epochs=2, batch_size=25
    )
    untrained = {name: value.clone() for name, value in model.model.state_dict().items()}
    states: list[tuple[str, str]] = []

    def put(message: tuple[str, Any]) -> None:
        manifest = json.loads((loader.output_dir / "manifest.json").read_text())
        states.append((message[0], manifest["status"]))

    handler = logging.NullHandler()
    handler._result_queue = SimpleNamespace(put=put)  # type: ignore[attr-defined]
    logging.getLogger().addHandler(handler)
    try:
        trainer.train(orchestration="lightning", experiment_name="")
    finally:
        logging.getLogger().removeHandler(handler)
    assert ("model_saved", "running") in states  # the window has a model before the training ends
    assert ("train_output", "running") in states
    assert [(kind, epoch) for kind, epoch, _ in watch.seen] == [
        (kind, epoch) for epoch in range(2) for kind in ("val", "train")
    ]
    assert all(np.isfinite(loss) for *_, loss in watch.seen)
    trained_weights = model.model.state_dict()
    assert any(not torch.equal(trained_weights[name], value) for name, value in untrained.items())
    manifest = json.loads((loader.output_dir / "manifest.json").read_text())
    assert manifest["plan"]["effective"]["strategy"]["value"] == "ddp_spawn"
    assert find_best_checkpoint(loader.output_dir) is not None
    assert not (loader.output_dir / "epochs.jsonl").exists()
    with (loader.output_dir / "logs" / "metrics.csv").open() as file:
        assert len([row for row in csv.DictReader(file) if row.get("val_loss")]) == 2


def test_bounds_act_on_each_scan_by_itself(scan: ScanData, tmp_path: Path) -> None:
    alone, _, loader, _ = session_of(scan, tmp_path / "in")
    meant = alone._translated(alone.config_manager.configs, loader.scan, MachineFacts())
    assert meant.science.data.x_bounds == (0.1, 0.9)
    write_npz(scan, tmp_path / "in" / "b.npz")
    both, _, loader, _ = session_of(scan, tmp_path / "in")
    inside = select_patterns(scan.positions_px, x_bounds=(0.1, 0.9), y_bounds=(0.1, 0.9))
    assert len(loader.scan) == 2 * len(inside) < 2 * len(scan)
    meant = both._translated(both.config_manager.configs, loader.scan, MachineFacts())
    assert (meant.science.data.x_bounds, meant.science.data.y_bounds) == ((0.0, 1.0), (0.0, 1.0))


def test_variables_act_where_ptychodus_is_silent(
    scan: ScanData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTYCHO_EXEC_SEED", "11")
    monkeypatch.setenv("PTYCHO_EXEC_BATCH_SIZE", "64")
    monkeypatch.setenv("PTYCHO_EXEC_FAST_DEV_RUN", "1")
    trainer, _, loader, _ = session_of(scan, tmp_path / "in", epochs=1)
    with logged() as log:
        trainer.train(experiment_name="run 7")
    manifest = json.loads((loader.output_dir / "manifest.json").read_text())
    assert manifest["applied"]["seed"] == 11
    assert manifest["origins"]["seed"]["place"] == "PTYCHO_EXEC_SEED"
    assert manifest["applied"]["batch_size"] == 8
    assert manifest["applied"]["experiment_name"] == "run 7"
    told = "\n".join(record.getMessage() for record in log)
    assert "Batch Size = 64 from environment PTYCHO_EXEC_BATCH_SIZE has no effect: Ptychodus sends 8" in told


def test_other_orchestration_is_refused(scan: ScanData, tmp_path: Path) -> None:
    trainer, *_ = session_of(scan, tmp_path / "in")
    with pytest.raises(SettingsError, match="PTYCHO_EXEC_LOGGER_BACKEND=mlflow"):
        trainer.train(orchestration="mlflow")
    with pytest.raises(ValueError, match="tensordict"):
        DataloaderFormats("tensordict")


# --- checkpoints


def test_the_kept_model_explains_itself(unsupervised: Session) -> None:
    found = PtychoModel._extract_configs_from_checkpoint(str(unsupervised.checkpoint))
    sent = unsupervised.sent
    wanted = pickle.loads(pickle.dumps(sent["data_config"]))
    wanted.N = N
    names = ("model_config", "training_config", "inference_config")
    assert found == (wanted, *(sent[name] for name in names))
    stored = torch.load(unsupervised.checkpoint, weights_only=True)
    assert stored["ptycho_torch"]["about"]["ptychodus"]["training"]["epochs"] == EPOCHS
    assert PtychoModel._extract_configs_from_checkpoint(unsupervised.run_dir / "model.ckpt") == found


def loaded(checkpoint: Path) -> PtychoModel:
    data, model, training, inference = PtychoModel._extract_configs_from_checkpoint(checkpoint)
    made = PtychoModel(
        model_config=model, data_config=data, training_config=training, inference_config=inference
    )
    made.model = PtychoPINN_Lightning.load_from_checkpoint(
        checkpoint, model_config=model, data_config=data, training_config=training, inference_config=inference
    )
    return made


def test_a_loaded_model_has_the_weights_and_the_science(unsupervised: Session) -> None:
    model = loaded(unsupervised.checkpoint)
    stored = torch.load(unsupervised.checkpoint, weights_only=True)["state_dict"]
    for name, value in model.model.state_dict().items():
        torch.testing.assert_close(value, stored[name], rtol=0, atol=0)
    assert model.model.model_config.amp_activation == "silu"
    assert (model.model.loss_name, model.model.val_loss_name) == ("train_loss", "val_loss")


def test_configs_given_to_load_from_checkpoint_act(unsupervised: Session) -> None:
    data, model, _, inference = PtychoModel._extract_configs_from_checkpoint(unsupervised.checkpoint)
    model.amp_activation = "sigmoid"
    inference.patch_weighting = "uniform"
    module = PtychoPINN_Lightning.load_from_checkpoint(
        unsupervised.checkpoint, model_config=model, inference_config=inference
    )
    assert module.model_config.amp_activation == "sigmoid"
    assert module.inference_config.patch_weighting == "uniform"
    again = PtychoPINN_Lightning.load_from_checkpoint(unsupervised.checkpoint, data_config=data)
    assert again.data_config == PtychoPINN_Lightning.load_from_checkpoint(unsupervised.checkpoint).data_config
    assert again.data_config.N == N
    data.N = 64
    with pytest.raises(SettingsError, match="trained for patterns of 32"):
        PtychoPINN_Lightning.load_from_checkpoint(unsupervised.checkpoint, data_config=data)


def test_configs_that_do_not_fit_the_network_are_refused(unsupervised: Session) -> None:
    model = loaded(unsupervised.checkpoint)
    manager = ConfigManager.from_loaded_model(model)
    manager.validate_arch_compatibility(model)
    manager.model_config.n_filters_scale = 3
    manager.data_config.N = 64
    with pytest.raises(SettingsError, match="Model Size is 64") as caught:
        manager.validate_arch_compatibility(model)
    assert "Num Filters Scale" in str(caught.value)


def test_another_programs_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": {"model_config": {}}}, tmp_path / "old.ckpt")
    with pytest.raises(DataError, match="was not written by this package"):
        PtychoModel._extract_configs_from_checkpoint(tmp_path / "old.ckpt")


def test_our_command_line_takes_the_kept_model(unsupervised: Session, tmp_path: Path) -> None:
    from ptycho_torch.cli import main

    kept = tmp_path / "kept.ckpt"
    kept.write_bytes(unsupervised.checkpoint.read_bytes())
    write_npz(unsupervised.scan, tmp_path / "scan.npz")
    assert main(["infer", str(kept), str(tmp_path / "scan.npz"), "--out", str(tmp_path / "out")]) == 0
    with np.load(tmp_path / "out" / "reconstruction.npz") as made:
        assert score(unsupervised.scan, made["object"]).nrmse < 0.35


def test_a_model_of_our_command_line_reconstructs_in_ptychodus(scan: ScanData, tmp_path: Path) -> None:
    from ptycho_torch.factory import create_training_payload
    from ptycho_torch.workflows.runs import train

    write_npz(scan, tmp_path / "scan.npz")
    run = train(create_training_payload(tmp_path / "scan.npz", tmp_path / "run", {"epochs": 4}))
    for name in ("model.ckpt", "checkpoints/last.ckpt"):
        obj, _ = reconstructed(scan, run.folder / name, tmp_path / "pair")
        assert obj.get_array().shape == (1, *scan.canvas_shape)
        assert score(scan, obj.get_layer(0)).nrmse < 0.35


# --- reconstruction


@pytest.mark.parametrize("mode", ["unsupervised", "supervised"])
def test_the_object_comes_back_on_the_pixels_of_the_input(
    mode: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    session: Session = request.getfixturevalue(mode)
    obj, log = reconstructed(session.scan, session.checkpoint, tmp_path, mode.capitalize())
    assert obj.get_array().shape == (1, *session.scan.canvas_shape)
    found = score(session.scan, obj.get_layer(0))
    flat = score(session.scan, np.ones(session.scan.canvas_shape, np.complex64))
    assert found.nrmse < (0.5 if mode == "supervised" else 0.7) * flat.nrmse
    assert np.abs(found.alignment.shift_px).max() < 0.1
    told = [record.getMessage() for record in log if record.levelno >= logging.WARNING]
    assert all(text.startswith("the object is ") for text in told)  # its verdict
    assert any("- Device: cuda became cpu" in record.getMessage() for record in log)


def test_an_object_of_several_layers_keeps_its_shape(unsupervised: Session, tmp_path: Path) -> None:
    calls = entry_points()
    from ptychodus.api.object import Object
    from ptychodus.model.ptychopinn_torch._payload import ReconstructPayload

    given = reconstruct_input(unsupervised.scan, tmp_path)
    old = given.product.object_
    layered = Object(
        np.concatenate([old.get_array()] * 2), old.get_pixel_geometry(), old.get_center(), [1e-6]
    )
    given = replace(given, product=replace(given.product, object_=layered))
    queue = Queue()
    calls.run_reconstruct(ReconstructPayload("Unsupervised", unsupervised.checkpoint, given), queue)
    made = pickle.loads(queue[0][1]).product.object_
    assert made.get_array().shape == (2, *unsupervised.scan.canvas_shape)
    assert score(unsupervised.scan, made.get_layers_flattened()).nrmse < 0.35


def loader_of(scan: ScanData, model: PtychoModel, **changes: Any) -> PtychoDataLoader:
    given = {
        "diff_patterns": scan.patterns[:],
        "probe": scan.probe,
        "positions": scan.positions_px,
        **changes,
    }
    return PtychoDataLoader.from_np(config_manager=ConfigManager.from_loaded_model(model), **given)


def test_other_callers_name_the_shape_or_are_told(unsupervised: Session) -> None:
    scan, model = unsupervised.scan, loaded(unsupervised.checkpoint)
    engine = InferenceEngine(ConfigManager.from_loaded_model(model), model)
    named = engine.predict_and_stitch(loader_of(scan, model, object_shape=scan.canvas_shape))
    assert named.shape == scan.canvas_shape
    with logged() as log:
        derived = loader_of(scan, model)
    assert derived.object_shape != scan.canvas_shape
    assert "the object's shape was not given" in log[-1].getMessage()


@pytest.mark.parametrize("shape", [(5,), (2, 2, 64, 64), (N - 1, 90), (0, 64, 64), ()])
def test_a_shape_that_no_object_has_is_refused(
    shape: tuple[int, ...], scan: ScanData, unsupervised: Session
) -> None:
    model = loaded(unsupervised.checkpoint)
    with pytest.raises(DataError, match="is not possible") as caught:
        loader_of(scan, model, object_shape=shape)
    for part in ("where:    object_shape", "H and W of at least 32", "fix:"):
        assert part in str(caught.value)


def test_positions_around_the_origin_have_no_object(scan: ScanData, unsupervised: Session) -> None:
    model = loaded(unsupervised.checkpoint)
    centered = scan.positions_px - scan.positions_px.max(axis=0)
    with pytest.raises(DataError, match="in the middle of no object") as caught:
        loader_of(scan, model, positions=centered)
    for part in ("where:    positions", "expected:", "pass object_shape"):
        assert part in str(caught.value)


def test_another_probe_than_the_trained_one_is_told(unsupervised: Session) -> None:
    scan, model = unsupervised.scan, loaded(unsupervised.checkpoint)
    engine = InferenceEngine(ConfigManager.from_loaded_model(model), model)
    assert scan.probe is not None
    shifted = np.roll(scan.probe, 2, axis=-1)
    with logged() as log:
        engine.predict_and_stitch(loader_of(scan, model, probe=shifted, object_shape=scan.canvas_shape))
        engine.predict_and_stitch(
            loader_of(scan, model, probe=5j * scan.probe, object_shape=scan.canvas_shape)
        )
    told = [record.getMessage() for record in log if record.levelno == logging.WARNING]
    assert sum("the product's probe differs by" in text for text in told) == 1


def test_an_object_that_is_not_good_is_a_warning_with_what_to_do_about_it(unsupervised: Session) -> None:
    """A wrong probe, and patterns off center: causes, findings, and the two commands, but no options."""
    scan, model = unsupervised.scan, loaded(unsupervised.checkpoint)
    noise = np.random.default_rng(0).normal(size=(2, N, N))
    model.model.probe.data = torch.from_numpy(noise[0] + 1j * noise[1]).to(torch.complex64)[None]
    engine = InferenceEngine(ConfigManager.from_loaded_model(model), model)
    moved = replace(scan, patterns=np.roll(scan.patterns[:], (3, 4), axis=(1, 2)))
    with logged() as log:
        engine.predict_and_stitch(loader_of(moved, model, object_shape=scan.canvas_shape))
    odd, told = [r.getMessage() for r in log if r.name == "ptychopinn-torch" and r.levelno == logging.WARNING]
    assert "- the beam lies " in odd
    assert "`ptycho-torch convert SCAN NEW --to ptychodus-npz --center auto` mends this" in odd
    assert re.match(r"the object is (poor|doubtful): ", told), told
    assert re.search(r"likely cause - \w+: ", told)
    assert "`ptycho-torch reconstruct SCAN --out RESULT` looks into all of this" in told
    assert "; try --" not in told


@pytest.mark.slow
def test_a_probe_is_found_where_the_training_data_have_none(scan: ScanData, tmp_path: Path) -> None:
    trainer, _, loader, _ = session_of(replace(scan, probe=None), tmp_path / "in", epochs=1)
    with logged() as log:
        trainer.train()
    told = "\n".join(r.getMessage() for r in log if r.name == "ptychopinn-torch")
    assert "looking for the probe in the patterns" in told
    assert "probe from the patterns: " in told
    decided = json.loads((loader.output_dir / "manifest.json").read_text())["data"]["train"]["report"]
    assert decided["decisions"][0]["value"] == "estimate"


def test_one_warning_tells_lost_variables_and_cut_patches(
    unsupervised: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object smaller than the scan's reach is filled as far as it goes."""
    scan, model = unsupervised.scan, loaded(unsupervised.checkpoint)
    monkeypatch.setenv("PTYCHO_EXEC_MIDDLE_TRIM", "7")
    model.inference_config.pad_eval = False
    shape = tuple(side - 20 for side in scan.canvas_shape)
    engine = InferenceEngine(ConfigManager.from_loaded_model(model), model)
    with logged() as log:
        made = engine.predict_and_stitch(loader_of(scan, model, object_shape=shape))
    assert made.shape == shape
    told = next(r.getMessage() for r in log if r.getMessage().startswith("this reconstruction is not in all"))
    assert "PTYCHO_EXEC_MIDDLE_TRIM has no effect: Ptychodus sends 24" in told
    assert re.search(r"- \d+ .*patch", told), told


def test_the_modes_of_the_probe_count_for_the_batch(
    unsupervised: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, model = unsupervised.scan, loaded(unsupervised.checkpoint)
    modes: list[int] = []
    real = translation.for_inference

    def spy(*args: Any, n_modes: int) -> Any:
        modes.append(n_modes)
        return real(*args, n_modes=n_modes)

    monkeypatch.setattr(translation, "for_inference", spy)
    (parts,) = [value for name, value in model.model.named_parameters() if name.endswith("probe_parts")]
    parts.data = parts.data.repeat(3, 1, 1, 1)
    engine = InferenceEngine(ConfigManager.from_loaded_model(model), model)
    engine.predict_and_stitch(loader_of(scan, model, object_shape=scan.canvas_shape))
    assert modes == [3]


def test_inference_settings_of_ptychodus_act(unsupervised: Session) -> None:
    scan, model = unsupervised.scan, loaded(unsupervised.checkpoint)
    objects = {}
    for trim in (0, 12):
        model.inference_config.middle_trim = trim
        engine = InferenceEngine(ConfigManager.from_loaded_model(model), model)
        objects[trim] = engine.predict_and_stitch(loader_of(scan, model, object_shape=scan.canvas_shape))
    covered = {trim: int((np.abs(obj) > 0).sum()) for trim, obj in objects.items()}
    assert covered[12] < covered[0]


def test_a_variable_refines_what_the_network_gives(
    unsupervised: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, model = unsupervised.scan, loaded(unsupervised.checkpoint)
    engine = InferenceEngine(ConfigManager.from_loaded_model(model), model)
    loader = loader_of(scan, model, object_shape=scan.canvas_shape)
    alone = engine.predict_and_stitch(loader)
    monkeypatch.setenv("PTYCHO_TORCH_REFINE", "5")
    refined = engine.predict_and_stitch(loader)
    assert refined.shape == alone.shape
    assert score(scan, refined).nrmse < 0.8 * score(scan, alone).nrmse


def test_patterns_of_another_size_are_refused(unsupervised: Session) -> None:
    model = loaded(unsupervised.checkpoint)
    other = simulate_scan(n=16, patterns=25, photons=1e5)
    engine = InferenceEngine(ConfigManager.from_loaded_model(model), model)
    with pytest.raises(DataError, match="16 x 16, the network was trained for 32 x 32"):
        engine.predict_and_stitch(loader_of(other, model, object_shape=other.canvas_shape))
