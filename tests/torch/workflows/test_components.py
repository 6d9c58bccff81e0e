"""The workflows with a real Trainer: what a run really uses, and what its object is worth."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from ptycho_exec import SettingsError
from ptycho_torch import simulate_scan
from ptycho_torch.config import DataConfig, ModelConfig, ScienceConfig, TrainingConfig
from ptycho_torch.evaluation.metrics import evaluate
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.workflows.components import (
    _train_with_lightning,
    held_out_part,
    run_cdi_example_torch,
    run_inference_with_lightning,
)
from tests.torch.workflows.tiny_runs import science, settings, untrained, weights


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
        assert result["models"]["trainer"].global_step == 2

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


@pytest.mark.acts("enable_progress_bar", "that nothing is printed when nothing is wanted")
def test_the_progress_of_training_and_inference_is_shown_when_asked(
    scan: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DELAY_S", "LINE_S", "LINE_PART"):  # a line for each step, however fast it is
        monkeypatch.setattr(f"ptycho_exec.progress.{name}", 0.0)
    asked = settings(enable_progress_bar=True, batch_size=12)
    trained = _train_with_lightning(scan, None, science(epochs=2), asked)
    shown = capsys.readouterr().err
    assert "epoch 2/2: 8 of 8 batches (100%), train_loss" in shown
    run_inference_with_lightning(trained, scan, None, asked)
    shown = capsys.readouterr().err
    assert "reconstructing: " in shown
    assert " left" in shown
    _train_with_lightning(scan, None, science(epochs=2), settings(enable_progress_bar=False, batch_size=12))
    run_inference_with_lightning(trained, scan, None, settings(enable_progress_bar=False))
    assert not re.search("epoch|reconstructing", capsys.readouterr().err)


def test_where_r_cannot_judge_a_network_refinement_holds_patterns_out_and_can() -> None:
    dim = simulate_scan(n=32, patterns=144, photons=300, seed=1)
    trained = _train_with_lightning(dim, None, science(), settings())
    plain = run_inference_with_lightning(trained, dim, None, settings())["verdict"]
    assert plain.status == "cannot-judge"
    assert plain.reason.endswith("no patterns were held out; a refinement holds some out, try --refine 5")
    refined = run_inference_with_lightning(trained, dim, None, settings(), {"refine": 5})["verdict"]
    assert refined.held_out >= 4
    assert "--refine 5" not in refined.reason


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


def predicted(scan: Any, gridsize: int = 1) -> dict[str, Any]:
    module = untrained(PtychoPINN_Lightning, scan, gridsize)
    return run_inference_with_lightning(module, scan, science(gridsize=gridsize), settings())


def test_inference_with_groups_predicts_each_pattern_once(scan: Any) -> None:
    single, grouped = predicted(scan, 1), predicted(scan, 2)
    assert grouped["n_patches"] == len(scan)
    np.testing.assert_array_equal(grouped["object"], single["object"])


def test_an_object_that_explains_its_patterns_poorly_is_told(scan: Any) -> None:
    mixed_up = replace(scan, patterns=np.asarray(scan.patterns[:])[::-1].copy())
    module = untrained(PtychoPINN_Lightning, scan)
    wrong = run_inference_with_lightning(module, mixed_up, None, settings())
    assert wrong["verdict"].status == "poor"
    assert any("the object is poor" in notice and "likely cause" in notice for notice in wrong["notices"])
    good = run_inference_with_lightning(None, scan, None, settings(), {"start": "flat", "refine": 15})
    assert good["verdict"].status == "good"
    assert not any("likely cause" in notice for notice in good["notices"])


def test_a_refined_object_is_judged_by_patterns_held_out() -> None:
    scan = simulate_scan(n=32, patterns=100, photons=1e5)
    made = run_inference_with_lightning(None, scan, None, settings(), {"start": "flat", "refine": 8})
    assert made["verdict"].status == "good"
    assert made["verdict"].by == "held-out patterns"
    assert made["verdict"].held_out == 6
    assert [held_out_part(count) for count in (63, 64, 10000)] == [0, 1 / 16, 1 / 32]


def test_training_knows_the_noise_of_counts(scan: Any) -> None:
    counts = replace(scan, patterns=np.round(np.square(scan.patterns)).astype(np.uint16), domain="intensity")
    amplitude = scan.amplitude(np.arange(len(scan)))
    roots = replace(scan, patterns=amplitude, domain="amplitude")
    others = replace(scan, patterns=amplitude + 0.3, domain="amplitude", report={})
    results = [_train_with_lightning(given, None, science(), settings()) for given in (counts, roots, others)]
    floors = [result["models"]["lightning_module"].health.noise_floor for result in results]
    assert floors[0] > 0
    assert floors[1] > 0
    assert floors[2] == 0
