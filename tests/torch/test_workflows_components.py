"""The workflows: what reaches the Trainer, the module and the loaders, with substitutes and for real."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

import ptycho_torch.model
from ptycho_exec import ExecutionSettings, SettingsError
from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig, ModelConfig, ScienceConfig, TrainingConfig
from ptycho_torch.evaluation.metrics import evaluate
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.network.lightning_module import estimate_intensity_scale
from ptycho_torch.physics.forward import overlap_constraint
from ptycho_torch.reconstruction.stitch import probe_weights
from ptycho_torch.simulate import simulate_scan
from ptycho_torch.workflows.components import (
    _build_inference_dataloader,
    _train_with_lightning,
    run_cdi_example_torch,
    run_inference_with_lightning,
)


class RecordedTrainer:
    """Stands in for lightning.pytorch.Trainer and keeps what it is given."""

    made: list[RecordedTrainer]

    def __init__(self, **kwargs: Any) -> None:
        self.kwargs = kwargs
        self.fitted: dict[str, Any] = {}
        type(self).made.append(self)

    def fit(self, module: Any, **loaders: Any) -> None:
        self.fitted = {"module": module, **loaders}


class StubModule:
    """A module without any attributes of its own."""

    def __init__(self, **kwargs: Any) -> None:
        del kwargs


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[RecordedTrainer]:
    RecordedTrainer.made = []
    monkeypatch.setattr("lightning.pytorch.Trainer", RecordedTrainer)
    monkeypatch.setattr("ptycho_torch.model.PtychoPINN_Lightning", StubModule)
    return RecordedTrainer.made


@pytest.fixture
def container() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "X": rng.random((10, 64, 64, 1), dtype=np.float32),
        "coords_relative": np.zeros((10, 1, 2, 1), np.float32),
    }


def settings(**values: Any) -> ExecutionSettings:
    return ExecutionSettings.from_values({"logger_backend": None, "enable_progress_bar": False, **values})


class CallerConfig:
    """A config of an earlier caller: it mixes science with an execution value."""

    N = 64
    gridsize = 1
    nepochs = 2
    batch_size = 16


class TestTrainWithLightningGreen:
    def test_execution_config_overrides_trainer(
        self, recorded: list[RecordedTrainer], container: dict[str, Any]
    ) -> None:
        asked = settings(accelerator="gpu", deterministic=False, gradient_clip_val=1.0, num_workers=4)
        result = _train_with_lightning(container, None, CallerConfig(), execution_config=asked)
        (trainer,) = recorded
        assert trainer.kwargs["accelerator"] == "gpu"
        assert trainer.kwargs["deterministic"] is False
        assert trainer.kwargs["gradient_clip_val"] == 1.0
        assert trainer.kwargs["max_epochs"] == 2
        assert trainer.fitted["train_dataloaders"].num_workers == 4
        assert trainer.fitted["train_dataloaders"].batch_size == 16
        assert isinstance(trainer.fitted["module"], StubModule)
        assert result["applied"]["num_workers"] == 4

    def test_execution_config_controls_determinism(
        self, recorded: list[RecordedTrainer], container: dict[str, Any]
    ) -> None:
        _train_with_lightning(container, None, CallerConfig(), execution_config=settings(deterministic=True))
        assert recorded[0].kwargs["deterministic"] is True
        _train_with_lightning(
            container, None, CallerConfig(), execution_config=settings(deterministic="warn")
        )
        assert recorded[1].kwargs["deterministic"] == "warn"

    def test_overrides_win_over_the_execution_config(
        self, recorded: list[RecordedTrainer], container: dict[str, Any]
    ) -> None:
        overrides = {"accum_steps": 3, "epochs": 5}
        _train_with_lightning(container, None, None, settings(accum_steps=2), overrides)
        assert recorded[0].kwargs["accumulate_grad_batches"] == 3
        assert recorded[0].kwargs["max_epochs"] == 5

    def test_a_misspelt_override_is_refused(self, container: dict[str, Any]) -> None:
        with pytest.raises(SettingsError, match="unknown override 'batch_sise'"):
            _train_with_lightning(container, None, None, settings(), {"batch_sise": 3})

    def test_missing_patterns_are_an_error_not_random_numbers(self) -> None:
        with pytest.raises(DataError, match="X"):
            _train_with_lightning({"coords_relative": np.zeros((4, 1, 2, 1))}, None, None, settings())


class TestInferenceExecutionConfig:
    def test_inference_uses_execution_batch_size(self) -> None:
        container = {
            "X": np.zeros((20, 64, 64), np.float32),
            "coords_nominal": np.zeros((20, 2), np.float32),
        }
        loader = _build_inference_dataloader(container, CallerConfig(), settings(inference_batch_size=2))
        assert loader.batch_size == 2
        assert [len(batch["amplitude"]) for batch in loader] == [2] * 10
        assert _build_inference_dataloader(container, CallerConfig(), settings()).batch_size == 16
        assert _build_inference_dataloader(container, CallerConfig(), settings(batch_size=5)).batch_size == 5

    def test_missing_patterns_are_an_error(self) -> None:
        with pytest.raises(DataError, match="X"):
            _build_inference_dataloader({"coords_nominal": np.zeros((3, 2))}, None, settings())

    def test_a_container_without_positions_cannot_be_stitched(self, scan: Any) -> None:
        module = ptycho_torch.model.PtychoPINN_Lightning(**small(), probe=scan.probe, intensity_scale=1.0)
        with pytest.raises(DataError, match="coords_nominal"):
            run_inference_with_lightning(module, {"X": np.ones((2, 32, 32), np.float32)}, None, settings())


# --- the same with a real Trainer -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scan() -> Any:
    return simulate_scan(n=32, patterns=48, photons=1e5, seed=3)


def small(**training: Any) -> dict[str, Any]:
    return {
        "model_config": ModelConfig(n_filters=4, depth=1),
        "data_config": DataConfig(N=32),
        "training_config": TrainingConfig(epochs=1, **training),
    }


def science(epochs: int = 1, gridsize: int = 1, **training: Any) -> ScienceConfig:
    return ScienceConfig(
        data=DataConfig(N=32, gridsize=gridsize),
        model=ModelConfig(n_filters=4, depth=1),
        training=TrainingConfig(epochs=epochs, **training),
    )


class Seen(pl.Callback):
    """Looks, inside fit, at what a run really uses."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []
        self.norms: list[float] = []
        self.deterministic: bool | None = None
        self.accelerator = ""
        self.strategy = ""
        self.workers = -1
        self.steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.deterministic = torch.are_deterministic_algorithms_enabled()
        self.accelerator = type(trainer.accelerator).__name__
        self.strategy = type(trainer.strategy).__name__
        loader = trainer.train_dataloader
        assert isinstance(loader, torch.utils.data.DataLoader)
        self.workers = loader.num_workers

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch_sizes.append(len(batch["amplitude"]))

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        grads = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
        if grads:
            self.norms.append(float(torch.stack(grads).norm()))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps += 1


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Add the observer to every real Trainer that is built."""
    watcher = Seen()

    class Watched(pl.Trainer):
        def __init__(self, **kwargs: Any) -> None:
            kwargs["callbacks"] = [*kwargs["callbacks"], watcher]
            super().__init__(**kwargs)

    monkeypatch.setattr("lightning.pytorch.Trainer", Watched)
    return watcher


class TestRealTrainer:
    def test_determinism_is_on_inside_fit_and_restored_after(self, scan: Any, seen: Seen) -> None:
        before = torch.are_deterministic_algorithms_enabled()
        _train_with_lightning(scan, None, science(), settings(deterministic=True))
        assert seen.deterministic is True
        assert torch.are_deterministic_algorithms_enabled() == before
        _train_with_lightning(scan, None, science(), settings(deterministic=False))
        assert seen.deterministic is False

    @pytest.mark.acts("batch_size", "length of the batches that arrive in the training step")
    @pytest.mark.acts("num_workers", "processes that load the samples")
    def test_accelerator_strategy_batch_size_and_workers(self, scan: Any, seen: Seen) -> None:
        _train_with_lightning(
            scan, None, science(), settings(accelerator="cpu", batch_size=10, num_workers=1)
        )
        assert (seen.accelerator, seen.strategy) == ("CPUAccelerator", "SingleDeviceStrategy")
        assert seen.batch_sizes == [10, 10, 10, 10, 8]
        assert seen.workers == 1

    @pytest.mark.acts(
        "accum_steps", "optimizer steps per epoch; the accumulated gradient is that of one large batch"
    )
    def test_accumulation_makes_fewer_steps(self, scan: Any, seen: Seen) -> None:
        result = _train_with_lightning(scan, None, science(), settings(batch_size=8, accum_steps=3))
        assert seen.steps == 2
        assert result["models"]["lightning_module"].optimizer_steps == 2

    def test_what_trainer_and_loaders_really_have_is_told_with_what_was_applied(self, scan: Any) -> None:
        result = _train_with_lightning(scan, scan, science(), settings(batch_size=12, accum_steps=2))
        found = result["applied"]["read_back"]
        assert (found["train.batch_size"], found["validation.num_workers"]) == (12, 0)
        assert (found["accumulate_grad_batches"], found["optimizer_steps_per_epoch"]) == (2, 2)
        assert (found["deterministic"], found["seed"], found["world_size"]) == (True, 42, 1)
        made = run_inference_with_lightning(result, scan, None, settings(inference_batch_size=20))
        assert made["applied"]["read_back"]["inference.inference_batch_size"] == 20

    def test_clipping_bounds_the_gradient(self, scan: Any, seen: Seen) -> None:
        limit = 1e-3
        _train_with_lightning(scan, None, science(), settings(gradient_clip_val=limit))
        assert seen.norms
        assert max(seen.norms) <= limit * 1.001

    def test_a_gpu_that_is_not_there_is_refused_with_the_origin(self, scan: Any) -> None:
        if torch.cuda.is_available() or torch.backends.mps.is_available():
            pytest.skip("this machine has a GPU, which is then not refused")
        with pytest.raises(SettingsError, match="accelerator") as caught:
            _train_with_lightning(scan, None, science(), settings(accelerator="gpu"))
        assert "from_values" in str(caught.value)

    def test_without_validation_data_the_training_loss_is_monitored(self, scan: Any) -> None:
        result = _train_with_lightning(scan, None, science(), settings())
        row = result["plan"].effective["checkpoint_monitor_metric"]
        assert row.value == "train_loss"
        assert "validation" in row.reason
        assert "val_loss" not in result["history"]

    def test_held_back_groups_validate(self, scan: Any, seen: Seen) -> None:
        result = _train_with_lightning(scan, None, science(val_fraction=0.25), settings(batch_size=12))
        assert sum(seen.batch_sizes) == 36
        assert len(result["history"]["val_loss"]) == 1
        assert result["plan"].effective["checkpoint_monitor_metric"].value == "val_loss"

    def test_the_settings_of_the_environment_are_used(
        self, scan: Any, seen: Seen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PTYCHO_EXEC_BATCH_SIZE", "24")
        monkeypatch.setenv("PTYCHO_EXEC_LOGGER_BACKEND", "none")
        result = _train_with_lightning(scan, None, science())
        assert seen.batch_sizes == [24, 24]
        assert result["settings"].origins["batch_size"].place == "PTYCHO_EXEC_BATCH_SIZE"
        assert result["settings"].scheduler == "WarmupCosine"

    def test_nothing_is_written_without_a_run_directory(
        self, scan: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        _train_with_lightning(scan, None, science(), settings(logger_backend="csv"))
        assert os.listdir(tmp_path) == []


def weights(result: Any) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = result["models"]["lightning_module"].state_dict()
    return state


@pytest.mark.parametrize("workers", [0, 2])
def test_two_equal_runs_have_equal_bits(scan: Any, workers: int) -> None:
    asked = settings(batch_size=8, accum_steps=2, num_workers=workers)
    first, second = (weights(_train_with_lightning(scan, None, science(epochs=2), asked)) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = weights(_train_with_lightning(scan, None, science(epochs=2), asked.with_overrides(seed=7)))
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_the_reconstruction_does_not_depend_on_the_batch_size(scan: Any, gridsize: int) -> None:
    trained = _train_with_lightning(scan, None, science(gridsize=gridsize), settings())
    made = [
        run_inference_with_lightning(trained, scan, None, settings(inference_batch_size=size))["object"]
        for size in (1, 7, 64)
    ]
    assert made[0].shape == scan.object_guess.shape
    assert made[0].dtype == np.complex64
    for other in made[1:]:
        np.testing.assert_allclose(other, made[0], rtol=0, atol=1e-5)


def test_middle_trim_and_pad_eval_reach_the_stitching(scan: Any) -> None:
    trained = _train_with_lightning(scan, None, science(), settings())

    def covered(**values: Any) -> Any:
        return run_inference_with_lightning(trained, scan, None, settings(**values))["coverage"] > 0

    assert covered(middle_trim=8).sum() < covered().sum()


def test_the_whole_example_in_one_call(scan: Any, tmp_path: Path) -> None:
    amplitude, phase, results = run_cdi_example_torch(scan, None, science(), execution_config=settings())
    assert amplitude is not None
    assert phase is not None
    assert amplitude.shape == phase.shape == scan.canvas_shape
    np.testing.assert_allclose(amplitude, np.abs(results["inference"]["object"]))
    turned, _, _ = run_cdi_example_torch(
        scan, None, science(), flip_x=True, transpose=True, M=16, execution_config=settings()
    )
    assert turned is not None
    assert turned.shape == scan.canvas_shape[::-1]
    none, _, _ = run_cdi_example_torch(scan, None, science(), do_stitching=False, execution_config=settings())
    assert none is None


def test_bounds_choose_what_is_learned_from_and_inference_still_covers_all(scan: Any, seen: Seen) -> None:
    half = ScienceConfig(
        data=DataConfig(N=32, x_bounds=(0.0, 0.5)),
        model=ModelConfig(n_filters=4, depth=1),
        training=TrainingConfig(epochs=1),
    )
    trained = _train_with_lightning(scan, None, half, settings(batch_size=4))
    assert 0 < sum(seen.batch_sizes) < len(scan)
    everything = run_inference_with_lightning(trained, scan, None, settings())
    assert everything["n_patches"] == len(scan)
    some = run_inference_with_lightning(trained, scan, None, settings(), {"n_patterns": 7})
    assert some["n_patches"] == 7


@pytest.mark.acts("log_images_every_n_epochs", "pictures beside the metrics, and their steps")
def test_pictures_reach_the_logger_and_do_not_change_the_training(scan: Any, tmp_path: Path) -> None:
    asked = settings(logger_backend="csv", batch_size=12)
    plain = _train_with_lightning(scan, None, science(epochs=2), asked, run_dir=tmp_path / "plain")
    drawn = _train_with_lightning(
        scan, None, science(epochs=2), asked, {"log_images_every_n_epochs": 1}, run_dir=tmp_path / "drawn"
    )
    assert all(torch.equal(weights(plain)[name], tensor) for name, tensor in weights(drawn).items())
    pictures = sorted(path.name for path in (tmp_path / "drawn").rglob("*.png"))
    assert len(pictures) == 4
    assert not list((tmp_path / "plain").rglob("*.png"))


def test_pictures_of_a_container_without_a_canvas_are_refused(container: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="log_images_every_n_epochs"):
        _train_with_lightning(
            container | {"probe": np.ones((64, 64), complex)},
            None,
            None,
            settings(log_images_every_n_epochs=1, logger_backend="csv"),
        )


@pytest.mark.acts("enable_progress_bar", "what is printed during training and inference")
def test_the_progress_of_training_and_inference_is_shown_when_asked(
    scan: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = settings(enable_progress_bar=True, batch_size=12)
    trained = _train_with_lightning(scan, None, science(epochs=2), asked)
    shown = capsys.readouterr().out
    assert "epoch 2/2" in shown
    assert "8/8" in shown
    run_inference_with_lightning(trained, scan, None, asked)
    shown = capsys.readouterr().out
    assert "reconstructing" in shown
    assert "remaining" in shown


def test_refinement_improves_the_network_s_object_and_needs_no_network_from_flat(scan: Any) -> None:
    trained = _train_with_lightning(scan, None, science(), settings())
    rough = run_inference_with_lightning(trained, scan, None, settings())
    refined = run_inference_with_lightning(trained, scan, None, settings(), {"refine": 8})
    flat = run_inference_with_lightning(None, scan, None, settings(), {"refine": 8, "start": "flat"})

    def error(made: dict[str, Any]) -> float:
        return evaluate(made["object"], scan.object_guess, coverage=flat["coverage"]).nrmse

    assert error(refined) < 0.5 * error(rough)
    assert error(flat) < 0.5 * error(rough)
    assert refined["refine_losses"][-1] < refined["refine_losses"][0]
    np.testing.assert_array_equal(refined["network_object"], rough["object"])


def test_a_start_without_refinement_is_refused() -> None:
    with pytest.raises(SettingsError, match="refine"):
        run_inference_with_lightning(None, None, None, settings(), {"start": "flat"})


# --- phases, groups and the judgment of the result ----------------------------------------------------------


class PhaseOfItsOwn(PtychoPINN_Lightning):
    """Predicts well, but gives each patch a phase, as a network may that sees one pattern at a time."""

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Any:
        made = super().predict_step(batch, batch_idx)
        phase = 2.4 * made["index"].float()
        return made | {
            "patches": made["patches"] * torch.polar(torch.ones_like(phase), phase)[..., None, None]
        }


def untrained(kind: type[PtychoPINN_Lightning], scan: Any, gridsize: int = 1) -> PtychoPINN_Lightning:
    torch.manual_seed(0)
    parts = small() | {"data_config": DataConfig(N=32, gridsize=gridsize)}
    scale = estimate_intensity_scale(scan.amplitude(range(16)), scan.probe)
    return kind(**parts, probe=scan.probe, intensity_scale=scale)


def predicted(scan: Any, gridsize: int = 1) -> dict[str, Any]:
    module = untrained(PtychoPINN_Lightning, scan, gridsize)
    return run_inference_with_lightning(module, scan, science(gridsize=gridsize), settings())


def phase_blind_gap(made: Any, wanted: Any) -> float:
    turn = np.vdot(made, wanted)
    return float(np.linalg.norm(made * turn / abs(turn) - wanted) / np.linalg.norm(wanted))


def test_align_phases_reaches_the_stitching(scan: Any) -> None:
    wanted = run_inference_with_lightning(untrained(PtychoPINN_Lightning, scan), scan, None, settings())[
        "object"
    ]
    module = untrained(PhaseOfItsOwn, scan)
    on, off = (
        run_inference_with_lightning(module, scan, None, settings(), {"align_phases": asked})
        for asked in (True, False)
    )
    assert phase_blind_gap(on["object"], wanted) < 0.1
    assert phase_blind_gap(off["object"], wanted) > 0.3
    assert on["phases_turned_rad"] > 1
    assert off["phases_turned_rad"] == 0


def test_a_group_s_own_phases_hardly_count_in_training(scan: Any) -> None:
    """Phases of 0.3 rad rms, as networks have them, between flat patches that agree otherwise."""
    module = untrained(PtychoPINN_Lightning, scan, gridsize=2)
    generator = torch.Generator().manual_seed(1)
    phases = 0.3 * torch.randn(16, 4, 1, 1, generator=generator)
    patches = torch.polar(torch.ones(16, 4, 32, 32), phases.expand(16, 4, 32, 32).contiguous())
    grid = 100.5 + torch.tensor([[0, 0], [0, 3], [3, 0], [3, 3]]).expand(16, 4, 2)
    merged = module._merged(patches, grid)
    plain = overlap_constraint(patches, grid - 102, probe_weights(module.probe.detach()))
    lit = probe_weights(module.probe.detach()) > 0.1 * probe_weights(module.probe.detach()).max()
    loss_of_amplitude = [float((1 - image[..., lit].abs()).mean()) for image in (merged, plain)]
    assert loss_of_amplitude[0] < 0.2 * loss_of_amplitude[1]


def test_inference_with_groups_predicts_each_pattern_once(scan: Any) -> None:
    single, grouped = predicted(scan, 1), predicted(scan, 2)
    assert grouped["n_patches"] == len(scan)
    np.testing.assert_array_equal(grouped["object"], single["object"])


def test_an_object_that_explains_its_patterns_poorly_is_told(scan: Any) -> None:
    mixed_up = replace(scan, patterns=np.asarray(scan.patterns[:])[::-1].copy())
    module = untrained(PtychoPINN_Lightning, scan)
    wrong = run_inference_with_lightning(module, mixed_up, None, settings())
    assert any("explains its patterns poorly" in notice for notice in wrong["notices"])
    good = run_inference_with_lightning(None, scan, None, settings(), {"start": "flat", "refine": 15})
    assert not any("explains its patterns poorly" in notice for notice in good["notices"])


TWO_PROCESSES = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import test_workflows_components as t
scan = t.simulate_scan(n=32, patterns=48, photons=1e5, seed=3)
asked = t.settings(accelerator="cpu", devices=2, strategy="ddp")
made = t.run_inference_with_lightning(t.untrained(t.PhaseOfItsOwn, scan), scan, None, asked)
import torch.distributed
if torch.distributed.get_rank() == 0:
    np.save(sys.argv[2], made["object"])
"""


@pytest.mark.slow
def test_two_processes_bring_their_parts_to_one_phase(scan: Any, tmp_path: Path) -> None:
    script, target = tmp_path / "two.py", tmp_path / "object.npy"
    script.write_text(TWO_PROCESSES)
    words = [sys.executable, "-W", "ignore", str(script), str(Path(__file__).parent), str(target)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    wanted = run_inference_with_lightning(untrained(PtychoPINN_Lightning, scan), scan, None, settings())[
        "object"
    ]
    assert phase_blind_gap(np.load(target), wanted) < 0.1


def test_training_knows_the_noise_of_counts(scan: Any) -> None:
    counts = replace(scan, patterns=np.round(np.square(scan.patterns)).astype(np.uint16), domain="intensity")
    roots = replace(scan, patterns=scan.amplitude(np.arange(len(scan))), domain="amplitude")
    results = [_train_with_lightning(given, None, science(), settings()) for given in (counts, roots)]
    floors = [result["models"]["lightning_module"].health.noise_floor for result in results]
    assert floors[0] > 0
    assert floors[1] == 0
