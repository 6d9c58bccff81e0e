"""The network's shapes, its flat start, and that it does not collapse for large patterns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ptycho_exec.errors import SettingsError
from ptycho_torch.config import ModelConfig
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.network.unet import UNet, build_network, fold_blocks, network_shape, unfold_blocks
from ptycho_torch.physics import forward as physics
from ptycho_torch.physics.losses import amplitude_mae
from ptycho_torch.physics.modulus import modulus_update


def disk_probe(n: int, modes: int = 1) -> Tensor:
    """A soft disk with defocus, of energy n * n: (P, N, N)."""
    axis = torch.arange(n) - (n - 1) / 2
    radius = torch.hypot(axis[:, None], axis[None]) / (n / 4)
    mode = torch.exp(-(radius**4)) * torch.exp(2j * radius**2)
    probe = torch.stack([mode * torch.exp(1j * k * axis[None]) for k in range(modes)]).to(torch.complex64)
    return probe * n / physics.intensity(probe).sum().sqrt()


def blobs(n: int, count: int) -> Tensor:
    """Smooth random objects with amplitude 0.6 to 1.2 and phase up to 1 rad: (count, 1, N, N) complex."""
    noise = torch.randn(2, count, n, n)
    frequency = torch.fft.fftfreq(n)
    low = torch.exp(-((frequency[:, None] ** 2 + frequency[None] ** 2) * (n / 2) ** 1.5))
    smooth = torch.fft.ifft2(torch.fft.fft2(noise) * low).real
    smooth = smooth / smooth.abs().amax(dim=(-2, -1), keepdim=True)
    return torch.polar(0.9 + 0.3 * smooth[0], smooth[1]).unsqueeze(1)


def small(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate({"n_filters": 8, **changes})


class TestShapes:
    @pytest.mark.parametrize("n", [32, 64, 128, 256])
    @pytest.mark.parametrize("gridsize", [1, 2, 3])
    def test_patches_have_the_shape_of_the_patterns(self, n: int, gridsize: int) -> None:
        probe = disk_probe(n, modes=2)
        measured = torch.rand(1, gridsize**2, n, n)
        patches = build_network(small(), n)(measured, probe, torch.ones(n, n, dtype=torch.bool), updates=1)
        assert patches.shape == measured.shape
        assert patches.dtype == torch.complex64

    @pytest.mark.parametrize(
        ("n", "want"), [(32, (4, 1)), (64, (4, 2)), (128, (4, 3)), (256, (4, 4)), (100, (4, 3))]
    )
    def test_levels_grow_with_the_pattern(self, n: int, want: tuple[int, int]) -> None:
        if n == 100:
            with pytest.raises(SettingsError, match="does not fit patterns of 100 x 100"):
                network_shape(n, 2)
        else:
            assert network_shape(n, 2) == want

    def test_width_and_depth_reach_the_layers(self) -> None:
        net = build_network(small(n_filters=12, depth=3), 64).unet
        assert [encoder[0].out_channels for encoder in net.encoders] == [12, 24, 48]
        assert [sum(isinstance(layer, torch.nn.Conv2d) for layer in encoder) for encoder in net.encoders] == [
            1,
            1,
            3,
        ]

    def test_odd_fields_of_view_fold_less(self) -> None:
        assert network_shape(62, 1) == (2, 1)
        assert network_shape(63, 1) == (1, 1)


class TestStart:
    @pytest.mark.parametrize("activation", ["softplus", "sigmoid", "silu"])
    def test_object_starts_flat(self, activation: str) -> None:
        net = build_network(small(amp_activation=activation), 32)
        torch.nn.init.zeros_(net.unet.head.weight)
        good = torch.ones(32, 32, dtype=torch.bool)
        patches = net(torch.rand(2, 1, 32, 32), disk_probe(32), good, updates=0)
        torch.testing.assert_close(patches, torch.ones_like(patches), rtol=0, atol=1e-4)

    @pytest.mark.parametrize("activation", ["softplus", "sigmoid", "silu"])
    def test_amplitude_is_never_negative(self, activation: str) -> None:
        net = build_network(small(amp_activation=activation), 32)
        x = torch.linspace(-50, 50, 1001)
        assert net.activation(x).min() >= 0
        assert float(net.activation(torch.zeros(1))) == pytest.approx(1, abs=1e-4)

    def test_sigmoid_is_bounded_by_twice_the_mean(self) -> None:
        net = build_network(small(amp_activation="sigmoid"), 32)
        assert float(net.activation(torch.tensor([90.0]))) == pytest.approx(2)

    def test_same_random_state_same_weights(self) -> None:
        weights = []
        for _ in range(2):
            torch.manual_seed(5)
            weights.append(build_network(small(), 32).state_dict())
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("side", [1, 2, 4])
def test_folding_is_pixel_unshuffling_with_channels_last(side: int) -> None:
    images = torch.randn(3, 2, 8, 12)
    folded = fold_blocks(images, side)
    assert torch.equal(folded, torch.nn.functional.pixel_unshuffle(images, side))
    assert folded.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(unfold_blocks(folded, side), images)
    assert torch.equal(unfold_blocks(folded.contiguous(), side), images)


class TestPrediction:
    def test_modulus_updates_come_closer_to_the_measurement(self) -> None:
        torch.manual_seed(0)
        probe, truth, good = disk_probe(32), blobs(32, 4), torch.ones(32, 32, dtype=torch.bool)
        measured = physics.forward_intensity(truth, probe).sqrt()
        errors = []
        for updates in (0, 1, 4):
            torch.manual_seed(1)
            patches = build_network(small(), 32)(measured, probe, good, updates)
            expected = physics.forward_intensity(patches, probe).sqrt()
            errors.append(float(amplitude_mae(expected, measured).detach()))
        assert errors[0] > 1.3 * errors[1] > 1.3 * errors[2]

    @pytest.mark.parametrize(("predicting", "step", "momentum"), [(False, 0.7, 0.0), (True, 1.0, 0.7)])
    @pytest.mark.parametrize("learning", [False, True])
    def test_updates_are_those_of_the_task_with_and_without_a_gradient(
        self, predicting: bool, step: float, momentum: float, learning: bool
    ) -> None:
        torch.manual_seed(0)
        net, probe, good = build_network(small(), 32), disk_probe(32), torch.ones(32, 32, dtype=torch.bool)
        measured = physics.forward_intensity(blobs(32, 4), probe).sqrt()
        with torch.set_grad_enabled(learning):
            got = net(measured, probe, good, 3, predicting=predicting)
            patches, velocity = net(measured, probe, good, 0), torch.zeros(())
            for _ in range(3):
                velocity = momentum * velocity + step * modulus_update(patches, probe, measured, good)
                patches = patches + velocity
        torch.testing.assert_close(got, patches, rtol=1e-4, atol=1e-4)

    def test_a_pattern_does_not_see_its_neighbors(self) -> None:
        torch.manual_seed(0)
        net, probe, good = build_network(small(), 32), disk_probe(32), torch.ones(32, 32, dtype=torch.bool)
        measured = physics.forward_intensity(blobs(32, 12), probe).sqrt().reshape(3, 4, 32, 32)
        together = net(measured, probe, good, 2)
        alone = net(measured[1:2, 2:3], probe, good, 2)
        torch.testing.assert_close(together[1:2, 2:3], alone, rtol=0, atol=1e-5)

    def test_bad_pixels_do_not_matter(self) -> None:
        net = build_network(small(), 32)
        good = torch.ones(32, 32, dtype=torch.bool)
        good[4, 9] = False
        measured = torch.rand(1, 1, 32, 32)
        hot = measured.clone()
        hot[..., 4, 9] = 1e5
        assert torch.equal(net(measured, disk_probe(32), good, 2), net(hot, disk_probe(32), good, 2))

    def test_unet_mixes_levels_of_its_own_size(self) -> None:
        net = UNet(3, 2, [4, 8, 16], bottom=2, fold=2)
        assert net(torch.rand(2, 3, 32, 32)).shape == (2, 2, 32, 32)


@pytest.mark.slow
def test_amplitude_does_not_collapse_at_128_pixels(record_property: pytest.RecordProperty) -> None:
    torch.manual_seed(0)
    n, probe = 128, disk_probe(128)
    truth, good = blobs(n, 24), torch.ones(n, n, dtype=torch.bool)
    measured = physics.forward_intensity(truth, probe).sqrt()
    net = build_network(small(n_filters=16), n)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    history = []
    for step in range(60):
        rows = torch.arange(8) + 8 * (step % 3)
        expected = physics.forward_intensity(net(measured[rows], probe, good, 1), probe)
        loss = amplitude_mae(physics.amplitude(expected), measured[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1)
        optimizer.step()
        history.append(float(loss.detach()))
    illuminated = physics.intensity(probe) > 0.1 * physics.intensity(probe).max()
    spread = float(net(measured, probe, good, 1).abs()[..., illuminated].std().detach())
    record_property("amplitude_std", spread)
    print(
        f"amplitude standard deviation {spread:.3f}, truth {float(truth.abs()[..., illuminated].std()):.3f}"
    )
    assert spread > 0.02
    assert history[-1] < 0.7 * history[0]


def test_every_weight_learns_at_256_pixels() -> None:
    """Network and physics, forward and backward, at the largest usual side."""
    n = 256
    module = PtychoPINN_Lightning({"n_filters": 8}, {"N": n}, probe=disk_probe(n), intensity_scale=1.0)
    generator = torch.Generator().manual_seed(0)
    amplitude = torch.rand(1, 1, n, n, generator=generator)
    positions = torch.full((1, 1, 2), 300.25)
    loss, patches = module.loss({"amplitude": amplitude, "positions_px": positions})
    loss.backward()
    assert patches.shape == (1, 1, n, n)
    for name, weight in module.network.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.any(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("side", [1, 2, 4])
def test_folding_and_unfolding_have_the_derivatives_of_shuffling(side: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 16, dtype=dtype, requires_grad=True)
    channels = torch.randn(2, 3 * side**2, 8 // side, 16 // side, dtype=dtype, requires_grad=True)
    for values, ours, theirs in (
        (images, fold_blocks, torch.nn.functional.pixel_unshuffle),
        (channels, unfold_blocks, torch.nn.functional.pixel_shuffle),
    ):
        weight = torch.randn_like(theirs(values, side))
        (mine,) = torch.autograd.grad(ours(values, side), values, weight)
        (wanted,) = torch.autograd.grad(theirs(values, side), values, weight)
        assert torch.equal(mine, wanted)
    part = torch.randn(2, 6, 8, 16, dtype=dtype)[:, ::2]  # does not lie in one piece
    assert torch.equal(fold_blocks(part, side), torch.nn.functional.pixel_unshuffle(part, side))
