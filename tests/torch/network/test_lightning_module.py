"""The Lightning module with a real Trainer: what it computes, logs, steps, clips, saves and refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ptycho_exec.errors import DataError, SettingsError, UserError
from ptycho_torch.config import DataConfig, InferenceConfig, ModelConfig, TrainingConfig
from ptycho_torch.data.storage import patterns as stored
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.network.lightning_module import adaptive_gradient_clip, amplitude_spread
from ptycho_torch.network.predictor import estimate_intensity_scale
from ptycho_torch.physics import forward as physics
from ptycho_torch.physics.counts import split_amplitude
from ptycho_torch.reconstruction.stitch import probe_weights

N = 32
SCALE = 37.0


def make_probe(modes: int = 1) -> Tensor:
    axis = torch.arange(N) - (N - 1) / 2
    radius = torch.hypot(axis[:, None], axis[None]) / (N / 4)
    mode = torch.exp(-(radius**4)) * torch.exp(2j * radius**2)
    return torch.stack([mode * torch.exp(0.7j * k * axis[None]) / (k + 1) for k in range(modes)])


def make_object(side: int = 80) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, side, side, generator=generator)
    f = torch.fft.fftfreq(side)
    smooth = torch.fft.ifft2(torch.fft.fft2(noise) * torch.exp(-((f[:, None] ** 2 + f**2) * 400))).real
    smooth = smooth / smooth.abs().max()
    return torch.polar(0.9 + 0.3 * smooth[0], smooth[1])


def cut(image: Tensor, grid: Tensor) -> Tensor:
    """Whole-pixel patches (B, C, N, N) of an object at grid positions (B, C, 2)."""
    origins = (grid - (N - 1) / 2).round().long()
    patches = [image[y : y + N, x : x + N] for y, x in origins.reshape(-1, 2).tolist()]
    return torch.stack(patches).reshape(*grid.shape[:-1], N, N)


class Scan(Dataset[Any]):
    """Noiseless patterns of a smooth object under a probe that is shifted by the sub-pixel rest."""

    def __init__(self, count: int = 48, channels: int = 1, modes: int = 1, scale: float = SCALE) -> None:
        generator = torch.Generator().manual_seed(2)
        center = 30 + 20 * torch.rand(count, 1, 2, generator=generator)
        self.positions = center + 6 * torch.rand(count, channels, 2, generator=generator) - 3
        self.probe, self.image, self.scale = make_probe(modes), make_object(), scale
        grid, rest = physics.split_position(self.positions, N)
        shifted = physics.shift_subpixel(self.probe, rest.unsqueeze(-2))
        self.truth = cut(self.image, grid)
        self.amplitude = scale * physics.forward_intensity(self.truth, shifted).sqrt()

    def __len__(self) -> int:
        return len(self.positions)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        positions = self.positions[rows]
        index = torch.arange(self.positions[..., 0].numel()).reshape(self.positions.shape[:2])
        return {
            "amplitude": self.amplitude[rows],
            "positions_px": positions,
            "offsets_px": positions - positions.mean(dim=1, keepdim=True),
            "index": index[rows],
        }

    def batch(self, count: int | None = None) -> dict[str, Tensor]:
        return self.__getitems__(list(range(count or len(self))))

    def loader(self, batch_size: int = 8) -> DataLoader[Any]:
        return DataLoader(self, batch_size=batch_size, collate_fn=lambda batch: batch)


SMALL = {"n_filters": 8, "depth": 1}


def make_module(scan: Scan, execution: Any = None, **changes: Any) -> PtychoPINN_Lightning:
    torch.manual_seed(0)
    science = {"model_config": SMALL, "probe": scan.probe, "intensity_scale": scan.scale, **changes}
    return PtychoPINN_Lightning(execution_config=execution, **science)


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., lightning.Trainer]:
    """Train a module quietly; what Lightning says about few batches is not the subject here."""

    def run(module: PtychoPINN_Lightning, scan: Scan, **options: Any) -> lightning.Trainer:
        validation, batch_size = options.pop("validation", None), options.pop("batch_size", 8)
        checkpoint = options.pop("ckpt_path", None)
        asked = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options}
        trainer = lightning.Trainer(
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **asked,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
            trainer.fit(module, scan.loader(batch_size), validation, ckpt_path=checkpoint)
        return trainer

    return run


class TrueNetwork(nn.Module):
    """Knows the object: predicts the true patches, times a weight that has a gradient."""

    def __init__(self, truth: Tensor) -> None:
        super().__init__()
        self.truth, self.gain = truth, nn.Parameter(torch.ones(()))

    def forward(
        self, measured: Tensor, probe: Tensor, good_pixels: Tensor, updates: int, *, predicting: bool = False
    ) -> Tensor:
        return self.truth[: len(measured)] * self.gain


class TestForwardModel:
    @pytest.mark.parametrize(("channels", "modes"), [(1, 1), (4, 1), (4, 2)])
    @pytest.mark.parametrize("loss", ["mae", "poisson"])
    def test_true_patches_fit_their_measurement(self, channels: int, modes: int, loss: str) -> None:
        scan = Scan(channels=channels, modes=modes)
        module = make_module(scan, training_config={"loss": loss})
        untrained = float(module.loss(scan.batch())[0].detach())
        module.network = TrueNetwork(scan.truth)  # type: ignore[assignment]
        assert float(module.loss(scan.batch())[0].detach()) < 0.1 * untrained

    def test_a_group_is_one_object_only_when_asked(self) -> None:
        scan = Scan(channels=4)
        wrong = scan.truth * torch.tensor([1, 1j, -1, -1j])[None, :, None, None]
        losses = {}
        for merged in (True, False):
            module = make_module(scan, model_config={**SMALL, "object_big": merged})
            module.network = TrueNetwork(wrong)  # type: ignore[assignment]
            losses[merged] = float(module.loss(scan.batch())[0].detach())
        assert losses[False] < 1e-4 < 100 * losses[False] < losses[True]

    def test_bad_pixels_do_not_matter(self) -> None:
        scan, good = Scan(), torch.ones(N, N, dtype=torch.bool)
        good[3, 7] = False
        module = make_module(scan, good_pixels=good)
        batch = scan.batch(4)
        clean = module.loss(batch)[0]
        batch["amplitude"] = batch["amplitude"].clone()
        batch["amplitude"][..., 3, 7] = 6e4
        assert torch.equal(module.loss(batch)[0], clean)

    def test_penalties_add_with_their_weights(self) -> None:
        scan = Scan()
        plain = float(make_module(scan).loss(scan.batch(4))[0].detach())
        for name in ("tv_weight", "mean_deviation_weight"):
            one, two = (
                float(make_module(scan, training_config={name: w}).loss(scan.batch(4))[0].detach()) - plain
                for w in (1.0, 2.0)
            )
            assert one > 1e-4
            assert two == pytest.approx(2 * one, rel=1e-3)

    def test_supervised_compares_with_labels_at_the_grid(self) -> None:
        scan = Scan()
        module = make_module(scan, training_config={"loss": "supervised"})
        module.network = TrueNetwork(scan.truth / scan.truth.abs().mean())  # type: ignore[assignment]
        batch = scan.batch()
        _, rest = physics.split_position(batch["positions_px"], N)
        batch["labels"] = physics.shift_subpixel(scan.truth, -rest)
        exact = float(module.loss(batch)[0].detach())
        assert exact < 0.02
        batch["labels"] = 3j * batch["labels"]  # in another unit, under another constant phase
        assert float(module.loss(batch)[0].detach()) == pytest.approx(exact, abs=1e-5)
        batch["labels"] = batch["labels"].conj()
        assert float(module.loss(batch)[0].detach()) > 0.1

    def test_supervised_without_labels_says_so(self) -> None:
        scan = Scan()
        with pytest.raises(DataError, match="supervised training needs labels"):
            make_module(scan, training_config={"loss": "supervised"}).loss(scan.batch(2))


class TestScale:
    def test_estimate_of_a_flat_object_is_exact(self) -> None:
        probe = make_probe(2)
        flat = SCALE * physics.intensity(physics.far_field(probe)).sqrt()
        assert estimate_intensity_scale(flat[None].numpy(), probe.numpy()) == pytest.approx(SCALE, rel=1e-5)

    def test_estimate_leaves_bad_pixels_out(self) -> None:
        probe, good = make_probe(), torch.ones(N, N, dtype=torch.bool)
        good[N // 2, N // 2] = False
        flat = SCALE * physics.intensity(physics.far_field(probe)).sqrt()
        flat[N // 2, N // 2] = 1e6
        assert estimate_intensity_scale(flat, probe, good) == pytest.approx(SCALE, rel=1e-5)

    @pytest.mark.parametrize("dark", ["probe", "patterns"])
    def test_no_light_is_refused(self, dark: str) -> None:
        parts = {"probe": make_probe(), "patterns": torch.ones(2, N, N)}
        parts[dark] = torch.zeros_like(parts[dark])
        with pytest.raises(DataError, match="have no intensity"):
            estimate_intensity_scale(parts["patterns"], parts["probe"])

    def test_first_batch_gives_the_scale_when_none_was_given(self) -> None:
        scan = Scan()
        module = make_module(scan, intensity_scale=None)
        module.training_step(scan.batch(8))
        want = estimate_intensity_scale(scan.amplitude[:8], scan.probe)
        assert float(module.intensity_scale.detach()) == pytest.approx(want, rel=1e-5)

    def test_units_of_probe_and_counts_do_not_matter(self) -> None:
        patches = []
        for probe_unit, count_unit in ((1.0, 1.0), (1e-3, 1.0), (1.0, 1e4)):
            scan = Scan()
            scan.probe, scan.amplitude = scan.probe * probe_unit, scan.amplitude * count_unit
            scale = estimate_intensity_scale(scan.amplitude, scan.probe)
            module = make_module(scan, intensity_scale=scale)
            patches.append(module(scan.amplitude[:4], scan.positions[:4]).detach())
        torch.testing.assert_close(patches[1], patches[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(patches[2], patches[0], rtol=0, atol=1e-4)

    @pytest.mark.parametrize("trainable", [True, False])
    def test_scale_and_probe_move_only_when_trainable(self, trainable: bool, fit: Any) -> None:
        scan = Scan()
        config = {**SMALL, "intensity_scale_trainable": trainable, "probe_trainable": trainable}
        module = make_module(scan, model_config=config)
        fit(module, scan)
        assert (float(module.intensity_scale.detach()) != pytest.approx(SCALE, rel=1e-5)) is trainable
        assert torch.equal(module.probe.detach(), scan.probe.to(torch.complex64)) is not trainable


class TestPredict:
    def test_returns_patches_their_places_and_indices(self) -> None:
        scan = Scan(channels=4)
        out = make_module(scan).predict_step(scan.batch(3))
        assert out["patches"].shape == (3, 4, N, N)
        assert torch.equal(out["index"], torch.arange(12).reshape(3, 4))
        assert (out["positions_px"] - scan.positions[:3]).abs().max() <= 0.5

    def test_does_not_depend_on_the_batch(self) -> None:
        scan, module = Scan(), make_module(Scan())
        together = module.predict_step(scan.batch(8))["patches"]
        alone = [module.predict_step(scan.__getitems__([row]))["patches"] for row in range(8)]
        torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-5)

    def test_a_batch_of_large_patterns_is_predicted_in_pieces(self, monkeypatch) -> None:
        scan, module = Scan(), make_module(Scan())
        whole = module.predict_step(scan.batch(8))["patches"]
        sizes: list[int] = []
        predict = module._predict
        monkeypatch.setattr(
            module, "_predict", lambda a, *p, **k: sizes.append(len(a)) or predict(a, *p, **k)
        )
        monkeypatch.setattr(stored, "_AT_ONCE_PIXELS", 3 * N**2)
        pieces = module.predict_step(scan.batch(8))["patches"]
        assert sizes == [3, 3, 2]
        torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("updates", [0, 5])
    def test_prediction_updates_bring_patches_to_the_measurement(self, updates: int) -> None:
        scan = Scan()
        module = make_module(scan, model_config={**SMALL, "prediction_updates": updates})
        patches = module.predict_step(scan.batch(8))["patches"].detach()
        _, rest = physics.split_position(scan.positions[:8], N)
        probe = physics.shift_subpixel(scan.probe, rest.unsqueeze(-2))
        expected = SCALE * physics.forward_intensity(patches, probe).sqrt()
        error = float((expected - scan.amplitude[:8]).norm() / scan.amplitude[:8].norm())
        assert (error < 0.05) is (updates == 5)

    def test_an_untrained_model_is_refused(self) -> None:
        scan = Scan()
        with pytest.raises(DataError, match="photon scale of these patterns is not known"):
            make_module(scan, intensity_scale=None).predict_step(scan.batch(2))

    def test_training_needs_a_probe(self, fit: Any) -> None:
        module = PtychoPINN_Lightning(SMALL, {"N": N})
        with pytest.raises(DataError, match="has no probe"):
            fit(module, Scan())


class TestCheckpoint:
    def test_loads_weights_only_with_another_probe_shape(self, fit: Any, tmp_path: Path) -> None:
        scan, good = Scan(modes=2), torch.ones(N, N, dtype=torch.bool)
        good[0, 0] = False
        module = make_module(scan, good_pixels=good, inference_config=InferenceConfig(window="hann"))
        trainer = fit(module, scan)
        path = tmp_path / "last.ckpt"
        trainer.save_checkpoint(path)
        stored = torch.load(path, weights_only=True)
        assert set(stored["hyper_parameters"]) >= {"model_config", "data_config", "execution_config"}
        loaded = PtychoPINN_Lightning.load_from_checkpoint(path, map_location="cpu", weights_only=True)
        assert loaded.model_config.n_filters == SMALL["n_filters"]
        assert loaded.inference_config.window == "hann"
        assert torch.equal(loaded.good_pixels, good)
        for name, weight in module.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], weight), name
        batch = scan.batch(3)
        assert torch.equal(loaded.predict_step(batch)["patches"], module.predict_step(batch)["patches"])

    def test_resume_continues_bit_for_bit(self, fit: Any, tmp_path: Path) -> None:
        scan, execution = Scan(), {"scheduler": "WarmupCosine", "learning_rate": 1e-3}
        whole = make_module(scan, execution)
        fit(whole, scan, max_epochs=2)
        first = make_module(scan, execution)
        trainer = fit(first, scan, max_epochs=2, limit_train_batches=6, callbacks=[StopAfter(1)])
        trainer.save_checkpoint(tmp_path / "half.ckpt")
        second = make_module(scan, execution)
        quiet = lightning.Trainer(
            accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
            quiet.fit(second, scan.loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
        for name, weight in whole.state_dict().items():
            assert torch.equal(second.state_dict()[name], weight), name
        assert second.health.state_dict() == whole.health.state_dict()


class StopAfter(lightning.Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


class TestConstruction:
    def test_takes_classes_dicts_or_nothing(self) -> None:
        probe = make_probe()
        from_classes = PtychoPINN_Lightning(
            ModelConfig(n_filters=8), DataConfig(gridsize=2), TrainingConfig(epochs=3), probe=probe
        )
        from_dicts = PtychoPINN_Lightning(
            {"n_filters": 8}, {"gridsize": 2}, {"epochs": 3}, probe=probe.numpy()
        )
        assert from_classes.hparams == from_dicts.hparams
        assert from_dicts.data_config == DataConfig(gridsize=2, N=N)
        assert PtychoPINN_Lightning(probe=probe[0]).model_config == ModelConfig()

    def test_unknown_config_names_are_refused(self) -> None:
        with pytest.raises(ValueError, match="n_filter"):
            PtychoPINN_Lightning({"n_filter": 8}, probe=make_probe())

    def test_execution_settings_may_be_an_object(self) -> None:
        module = make_module(Scan(), SimpleNamespace(learning_rate=3e-4, scheduler="Exponential"))
        assert module.optimization.learning_rate == 3e-4
        assert module.optimization.gradient_clip_algorithm == "norm"
        assert module.hparams["execution_config"]["scheduler"] == "Exponential"

    def test_the_side_of_a_pattern_must_be_known(self) -> None:
        with pytest.raises(SettingsError, match="side of a diffraction pattern is not known"):
            PtychoPINN_Lightning()

    def test_sides_must_agree(self) -> None:
        with pytest.raises(DataError, match="sides of patterns, probe and mask differ"):
            PtychoPINN_Lightning(None, {"N": 64}, probe=make_probe())

    @pytest.mark.parametrize("probe", [np.full((N, N), np.nan + 0j), np.ones((1, 1, N, N), complex)])
    def test_a_broken_probe_is_refused(self, probe: Any) -> None:
        with pytest.raises(DataError, match="the probe"):
            PtychoPINN_Lightning(probe=probe)

    def test_a_broken_mask_is_refused(self) -> None:
        with pytest.raises(DataError, match="0 good pixels"):
            PtychoPINN_Lightning(probe=make_probe(), good_pixels=np.zeros((N, N), bool))

    @pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
    def test_a_broken_scale_is_refused(self, scale: float) -> None:
        with pytest.raises(DataError, match="positive number"):
            make_module(Scan(), intensity_scale=scale)


class TestOptimization:
    def test_logs_both_losses(self, fit: Any) -> None:
        scan = Scan()
        module = make_module(scan)
        trainer = fit(module, scan, validation=scan.loader())
        assert {module.loss_name, module.val_loss_name, "amplitude_spread"} <= set(trainer.callback_metrics)

    @pytest.mark.parametrize(("accumulate", "steps"), [(1, 6), (2, 3)])
    def test_counts_optimizer_steps(self, fit: Any, accumulate: int, steps: int) -> None:
        scan = Scan()
        module = make_module(scan)
        trainer = fit(module, scan, accumulate_grad_batches=accumulate)
        assert trainer.global_step == steps

    def test_accumulation_equals_one_large_batch(self, fit: Any) -> None:
        scan, modules = Scan(count=32), []
        for batch_size, accumulate in ((8, 4), (32, 1)):
            module = make_module(scan)
            fit(module, scan, batch_size=batch_size, accumulate_grad_batches=accumulate)
            modules.append(module)
        for a, b in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
            gap = torch.where((a - b).abs() < 1e-5, 0, (a - b).abs())
            assert gap.mean() < 1e-5

    @pytest.mark.parametrize("name", ["Exponential", "WarmupCosine", "MultiStage"])
    def test_schedules_change_with_every_optimizer_step(self, fit: Any, name: str) -> None:
        module = make_module(Scan(), {"scheduler": name})
        trainer = fit(module, Scan(), max_epochs=2, accumulate_grad_batches=2)
        config = trainer.lr_scheduler_configs[0]
        assert (config.interval, config.scheduler.last_epoch) == ("step", 6)

    @pytest.mark.parametrize("name", ["ReduceLROnPlateau", "Adaptive"])
    @pytest.mark.parametrize("validates", [True, False])
    def test_metric_schedules_watch_the_monitored_metric(self, fit: Any, name: str, validates: bool) -> None:
        scan = Scan()
        module = make_module(scan, {"scheduler": name})
        trainer = fit(module, scan, max_epochs=2, validation=scan.loader() if validates else None)
        config = trainer.lr_scheduler_configs[0]
        assert config.reduce_on_plateau
        assert config.monitor == ("val_loss" if validates else "train_loss")
        assert config.scheduler.best < float("inf")

    def test_default_learning_rate_is_the_settings(self, fit: Any) -> None:
        trainer = fit(make_module(Scan(), {"learning_rate": 7e-4}), Scan())
        assert trainer.optimizers[0].param_groups[0]["lr"] == 7e-4

    def test_step_schedules_need_a_length(self, fit: Any) -> None:
        module = make_module(Scan(), {"scheduler": "WarmupCosine"})
        with pytest.raises(SettingsError, match="needs to know how long"):
            fit(module, Scan(), max_epochs=-1)

    @pytest.mark.parametrize("algorithm", ["norm", "value"])
    def test_lightning_clips_by_norm_and_value(self, fit: Any, algorithm: str) -> None:
        watch = WatchGradients()
        settings = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm}
        module = make_module(Scan(), settings)
        fit(module, Scan(), gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm, callbacks=[watch])
        measure = "norm" if algorithm == "norm" else "largest"
        assert 0 < getattr(watch, measure) <= 1e-3 * 1.001

    def test_agc_clips_units_but_not_the_head(self, fit: Any) -> None:
        watch = WatchGradients()
        module = make_module(Scan(), {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "agc"})
        fit(module, Scan(), callbacks=[watch])
        assert 0 < watch.ratio <= 1e-4 * 1.01  # it is seen after the step, by which the weights moved
        free = WatchGradients()
        fit(make_module(Scan()), Scan(), callbacks=[free])
        assert free.ratio > 1e-3

    def test_bf16_mixed_autocasts_the_network_but_not_the_physics(self, fit: Any) -> None:
        module, seen = make_module(Scan()), []
        module.network.unet.head.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
        fit(module, Scan(), precision="bf16-mixed")
        assert set(seen) == {torch.bfloat16}
        patches = module.predict_step(Scan().batch(2))["patches"]
        assert patches.dtype == torch.complex64

    def test_64_bits_reach_the_forward_model(self, fit: Any) -> None:
        module = make_module(Scan())
        fit(module, Scan(), precision="64-true")
        assert module.probe.dtype == torch.complex128

    def test_half_precision_never_narrows_the_probe(self) -> None:
        module = make_module(Scan()).to(torch.bfloat16)
        assert module.network.unet.head.weight.dtype == torch.bfloat16
        assert module.probe.dtype == torch.complex64

    def test_half_precision_positions_are_refused(self, fit: Any) -> None:
        with pytest.raises(SettingsError, match="rounds scan positions"):
            fit(make_module(Scan()), Scan(), precision="bf16-true")

    @pytest.mark.parametrize("asked", [True, False])
    def test_compile_reaches_the_network(
        self, fit: Any, asked: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module, calls = make_module(Scan(), {"compile": asked}), []
        monkeypatch.setattr(module.network.unet, "compile", lambda: calls.append(1))
        fit(module, Scan())
        assert bool(calls) is asked

    def test_two_equal_runs_give_the_same_bits(self, fit: Any) -> None:
        states = []
        for _ in range(2):
            module = make_module(Scan(channels=4))
            fit(module, Scan(channels=4), max_epochs=2, deterministic=True)
            states.append(module.state_dict())
        torch.use_deterministic_algorithms(False)
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_training_learns(self, fit: Any) -> None:
        module, scan = make_module(Scan(), {"gradient_clip_val": 1.0}), Scan()
        before = float(module.loss(scan.batch())[0].detach())
        fit(module, scan, max_epochs=30, gradient_clip_val=1.0)
        assert float(module.loss(scan.batch())[0].detach()) < 0.6 * before


class WatchGradients(lightning.Callback):
    """Largest gradient norm, value, and unit-wise ratio to the weights that an optimizer step saw."""

    def __init__(self) -> None:
        self.norm = self.largest = self.ratio = 0.0

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        weights = [w for w in pl_module.parameters() if w.grad is not None]
        if not weights:
            return
        self.norm = max(self.norm, float(torch.stack([w.grad.norm() for w in weights]).norm()))
        self.largest = max(self.largest, max(float(w.grad.abs().max()) for w in weights))
        stem = pl_module.network.unet.stem[0].weight
        sizes = stem.detach().flatten(1).norm(dim=1).clamp_min(1e-3)
        self.ratio = max(self.ratio, float((stem.grad.flatten(1).norm(dim=1) / sizes).max()))


class TestAgc:
    def test_scales_each_unit_by_its_own_weights(self) -> None:
        weight = torch.tensor([[3.0, 4.0], [0.3, 0.4]], requires_grad=True)
        weight.grad = torch.tensor([[0.3, 0.4], [3.0, 4.0]])
        adaptive_gradient_clip([weight], limit=0.2)
        torch.testing.assert_close(weight.grad, torch.tensor([[0.3, 0.4], [0.06, 0.08]]))

    def test_zero_biases_can_move(self) -> None:
        bias = torch.zeros(2, requires_grad=True)
        bias.grad = torch.tensor([5.0, -5.0])
        adaptive_gradient_clip([bias], limit=0.1)
        torch.testing.assert_close(bias.grad, torch.tensor([1e-4, -1e-4]))

    def test_weights_without_gradient_are_left_alone(self) -> None:
        weight = torch.ones(2, requires_grad=True)
        adaptive_gradient_clip([weight], limit=0.1)
        assert weight.grad is None


class TestWeightsOfAnotherNetwork:
    def test_they_are_told_wherever_they_come_in(self, fit: Any, tmp_path: Path) -> None:
        scan = Scan()
        trainer = fit(make_module(scan), scan)
        file = tmp_path / "old.ckpt"
        trainer.save_checkpoint(file)
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["state_dict"]["network.unet.stem.0.weight"] = torch.zeros(4, 7, 3, 3)
        torch.save(checkpoint, file)
        with pytest.raises(DataError, match=r"do not fit the network.*stem"):
            PtychoPINN_Lightning.load_from_checkpoint(file)
        with pytest.raises(DataError, match=r"do not fit the network.*stem"):
            fit(make_module(scan), scan, ckpt_path=file)

    def test_a_checkpoint_with_code_is_refused(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {}, "hyper_parameters": Path}, tmp_path / "code.ckpt")
        with pytest.raises(DataError, match="cannot read the model"):
            PtychoPINN_Lightning.load_from_checkpoint(tmp_path / "code.ckpt")


def test_a_loss_does_not_depend_on_whether_it_is_learned_from() -> None:
    module, batch = make_module(Scan()), Scan().batch(4)
    learned = module.loss(batch)[0].detach()
    with torch.no_grad():
        judged = module.loss(batch)[0]
    torch.testing.assert_close(judged, learned, rtol=1e-4, atol=1e-6)


def test_a_prediction_takes_the_steps_of_predictions() -> None:
    module, batch = make_module(Scan(), model_config={**SMALL, "prediction_updates": 2}), Scan().batch(3)
    _, rest = physics.split_position(batch["positions_px"], N)
    with torch.no_grad():
        got = module.predict_step(batch)["patches"]
        measured = batch["amplitude"] / module.forward_model.reference_rms
        probe = module.forward_model.shifted_probe(rest)
        want, other = (
            module.network(measured, probe, module.good_pixels, 2, predicting=predicting)
            for predicting in (True, False)
        )
    torch.testing.assert_close(got, want)
    assert float((got - other).abs().max()) > 1e-3


def test_supervised_training_moves_neither_scale_nor_probe() -> None:
    changes = {"model_config": {**SMALL, "probe_trainable": True}}
    for loss, want in (("mae", True), ("supervised", False)):
        module = make_module(Scan(), training_config={"loss": loss}, **changes)
        assert {weight.requires_grad for weight in module.forward_model.parameters()} == {want}


class TestHealth:
    def test_nan_loss_stops_the_training(self, fit: Any) -> None:
        scan = Scan()
        scan.amplitude[5, 0, 3, 3] = float("nan")
        with pytest.raises(UserError, match="training diverged: the loss became nan") as caught:
            fit(make_module(scan), scan)
        assert "gradient_clip_val" in str(caught.value)

    @pytest.mark.parametrize(
        ("loss", "split"), [("mae", False), ("poisson", False), ("poisson", True)], ids=str
    )
    def test_the_noise_floor_is_the_loss_of_the_truth(self, loss: str, split: bool) -> None:
        module = make_module(Scan(), training_config={"loss": loss, "split_counts": split})
        module.count_unit = 3.0
        truth = 3 * 20 * torch.rand(64, 1, N, N, generator=torch.Generator().manual_seed(1))
        counts = torch.poisson(truth / 3, generator=torch.Generator().manual_seed(2))
        compared = (3 * counts).sqrt()
        if split:
            compared = split_amplitude(compared, 3.0, torch.arange(64)[:, None])[1]
        unit = module.forward_model.reference_rms
        want = float(module._misfit(truth / unit.square(), compared / unit, None).detach())
        assert module.noise_floor(truth) == pytest.approx(want, rel=0.05)

    def test_half_of_the_counts_is_shown_and_the_other_compared(self) -> None:
        scan = Scan()
        module = make_module(scan, training_config={"loss": "poisson", "split_counts": True})
        batch = scan.batch(2)
        batch["amplitude"] = (40 * batch["amplitude"]).square().round().sqrt()
        seen: dict[str, torch.Tensor] = {}

        def predict(amplitude: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            seen["shown"] = amplitude
            return type(module)._predict(module, amplitude, *args, **kwargs)

        def misfit(expected: torch.Tensor, measured: torch.Tensor, good: torch.Tensor) -> torch.Tensor:
            seen["compared"] = measured * module.forward_model.reference_rms
            return type(module)._misfit(module, expected, measured, good)

        module._predict, module._misfit = predict, misfit
        module.loss(batch)
        halves = [seen[name].square() / 2 for name in ("shown", "compared")]
        assert torch.allclose(sum(halves), batch["amplitude"].square(), rtol=1e-3)
        assert all(torch.allclose(half, half.round(), atol=1e-2) for half in halves)
        first = dict(seen)
        module.loss(batch)
        assert torch.equal(seen["shown"], first["shown"]), "one epoch draws once"
        module.eval()
        module.loss(batch)
        assert not torch.equal(seen["shown"], first["shown"]), "validation has a draw of its own"

    def test_spread_is_relative_and_weighed_by_the_probe(self) -> None:
        probe = torch.zeros(1, N, N, dtype=torch.complex64)
        probe[..., : N // 2, :] = 1
        patches = torch.full((2, 1, N, N), 3 + 4j)
        patches[..., N // 2 :, :] = 100
        assert float(amplitude_spread(patches, probe)) == pytest.approx(0, abs=1e-6)
        patches[:1] *= 3
        assert float(amplitude_spread(patches, probe)) == pytest.approx(0.5)


def test_a_group_s_own_phases_hardly_count_in_training() -> None:
    """Phases of 0.3 rad rms, as networks have them, between flat patches that agree otherwise."""
    module = make_module(Scan(channels=4), data_config={"gridsize": 2})
    generator = torch.Generator().manual_seed(1)
    phases = 0.3 * torch.randn(16, 4, 1, 1, generator=generator)
    patches = torch.polar(torch.ones(16, 4, 32, 32), phases.expand(16, 4, 32, 32).contiguous())
    grid = 100.5 + torch.tensor([[0, 0], [0, 3], [3, 0], [3, 3]]).expand(16, 4, 2)
    merged = module._merged(patches, grid)
    plain = physics.overlap_constraint(patches, grid - 102, probe_weights(module.probe.detach()))
    lit = probe_weights(module.probe.detach()) > 0.1 * probe_weights(module.probe.detach()).max()
    loss_of_amplitude = [float((1 - image[..., lit].abs()).mean()) for image in (merged, plain)]
    assert loss_of_amplitude[0] < 0.2 * loss_of_amplitude[1]
