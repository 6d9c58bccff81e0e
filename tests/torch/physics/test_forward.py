"""Operators by identity on complex random data, and against plain numpy and independent oracles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.physics import forward as physics
from ptycho_torch.physics import losses

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
TOLERANCE = {torch.complex64: 2e-5, torch.complex128: 1e-12}
DTYPES = tuple(TOLERANCE)
N = 16


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none")


def inner(a: Tensor, b: Tensor) -> complex:
    return complex((a.conj() * b).sum())


def assert_equal(got: Tensor, want: Tensor) -> None:
    dtype = got.dtype if got.is_complex() else got.dtype.to_complex()
    tolerance = TOLERANCE[dtype]
    scale = float(want.abs().max())
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * max(scale, 1))


OFFSETS = torch.tensor([[[-2.0, 1.0], [2.0, -1.0], [0.0, 3.0]], [[0.3, -0.8], [1.6, 0.25], [-1.9, 0.55]]])


class TestFarField:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_intensity_is_that_of_its_parts(self, random: Callable[..., Tensor], dtype: torch.dtype) -> None:
        wave = random(2, 3, 2, N, N, dtype=dtype)
        want = (wave.real**2 + wave.imag**2).sum(dim=-3)
        assert_equal(physics.intensity(wave), want)
        assert_equal(physics.intensity(wave.conj()), want)
        assert_equal(physics.intensity(wave.requires_grad_()).detach(), want)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_conserves_energy(self, random: Callable[..., Tensor], dtype: torch.dtype) -> None:
        wave = random(2, 3, 2, N, N, dtype=dtype)
        assert_equal(physics.intensity(physics.far_field(wave)).sum(), physics.intensity(wave).sum())

    @pytest.mark.parametrize("side", [8, 9])
    def test_adjoint_is_inverse(self, random: Callable[..., Tensor], side: int) -> None:
        x, y = random(1, side, side), random(1, side, side)
        adjoint = inner(physics.far_field_adjoint(y), x)
        assert inner(y, physics.far_field(x)) == pytest.approx(adjoint, rel=1e-12)
        assert_equal(physics.far_field_adjoint(physics.far_field(x)), x)

    def test_constant_goes_to_the_center(self) -> None:
        spectrum = physics.far_field(torch.ones(N, N, dtype=torch.complex128))
        assert spectrum.abs().argmax() == (N // 2) * N + N // 2

    def test_equals_numpy_sum(self, random: Callable[..., Tensor]) -> None:
        wave = random(N, N)
        k = np.arange(N) - N // 2
        kernel = np.exp(-2j * np.pi * np.outer(k, np.arange(N)) / N) / np.sqrt(N)
        assert_equal(physics.far_field(wave), torch.from_numpy(kernel @ wave.numpy() @ kernel.T))

    def test_shift_of_the_wave_changes_only_the_phase(self, random: Callable[..., Tensor]) -> None:
        wave = random(1, N, N)
        rolled = torch.roll(wave, (3, -2), dims=(-2, -1))
        assert_equal(physics.far_field(rolled).abs(), physics.far_field(wave).abs())


class TestExitWave:
    def test_linear_in_patches(self, random: Callable[..., Tensor]) -> None:
        a, b, probe = random(2, 3, N, N), random(2, 3, N, N), random(2, N, N)
        mixed = physics.exit_wave(2j * a + b, probe)
        assert_equal(mixed, 2j * physics.exit_wave(a, probe) + physics.exit_wave(b, probe))

    @pytest.mark.parametrize("own_probe", [False, True])
    def test_adjoint(self, random: Callable[..., Tensor], own_probe: bool) -> None:
        patches, waves = random(2, 3, N, N), random(2, 3, 2, N, N)
        probe = random(2, 3, 2, N, N) if own_probe else random(2, N, N)
        adjoint = inner(physics.exit_wave_adjoint(waves, probe), patches)
        assert inner(waves, physics.exit_wave(patches, probe)) == pytest.approx(adjoint, rel=1e-12)


class TestIntensity:
    def test_modes_add_incoherently(self, random: Callable[..., Tensor]) -> None:
        patches, probe = random(1, 2, N, N), random(2, N, N)
        alone = [physics.forward_intensity(patches, probe[k : k + 1]) for k in range(2)]
        assert_equal(physics.forward_intensity(patches, probe), alone[0] + alone[1])
        coherent = physics.forward_intensity(patches, probe.sum(dim=0, keepdim=True))
        assert (coherent - alone[0] - alone[1]).abs().max() > 1

    def test_dark_extra_mode_changes_nothing(self, random: Callable[..., Tensor]) -> None:
        patches, probe = random(1, 2, N, N), random(1, N, N)
        more = torch.cat([probe, torch.zeros_like(probe)])
        assert_equal(physics.forward_intensity(patches, more), physics.forward_intensity(patches, probe))

    def test_equals_numpy(self, random: Callable[..., Tensor]) -> None:
        patches, probe = random(1, 2, N, N), random(3, N, N)
        waves = patches.numpy()[:, :, None] * probe.numpy()
        spectrum = np.fft.fftshift(np.fft.fft2(waves), axes=(-2, -1)) / N
        want = (np.abs(spectrum) ** 2).sum(axis=2)
        assert_equal(physics.forward_intensity(patches, probe), torch.from_numpy(want))

    def test_amplitude_of_a_dark_pixel_has_a_finite_gradient(self) -> None:
        counts = torch.zeros(2, requires_grad=True)
        physics.amplitude(counts).sum().backward()
        assert counts.grad is not None
        assert torch.isfinite(counts.grad).all()

    def test_gradient(self, random: Callable[..., Tensor]) -> None:
        patches, probe = random(1, 2, 6, 6).requires_grad_(), random(2, 6, 6).requires_grad_()
        assert torch.autograd.gradcheck(physics.forward_intensity, (patches, probe))
        own = random(1, 2, 2, 6, 6).requires_grad_()  # each pattern's own probe
        assert torch.autograd.gradcheck(physics.forward_intensity, (patches, own))

    def test_complex_numbers_from_amplitude_and_phase(self, random: Callable[..., Tensor]) -> None:
        size, phase = (random(3, 4).real.requires_grad_() for _ in range(2))
        torch.testing.assert_close(physics.from_polar(size.abs(), phase), torch.polar(size.abs(), phase))
        assert torch.autograd.gradcheck(physics.from_polar, (size, phase))


class TestShiftSubpixel:
    def test_whole_pixels_roll(self, random: Callable[..., Tensor]) -> None:
        image = random(N, N)
        shifted = physics.shift_subpixel(image, torch.tensor([2.0, -3.0]))
        assert_equal(shifted, torch.roll(image, (2, -3), dims=(-2, -1)))

    def test_moves_a_band_limited_image_exactly(self) -> None:
        y, x = torch.meshgrid(*2 * [torch.arange(N, dtype=torch.float64)], indexing="ij")

        def wave(dy: float, dx: float) -> Tensor:
            return torch.exp(2j * torch.pi * (3 * (y - dy) - 2 * (x - dx)) / N) + 0.5

        shifted = physics.shift_subpixel(wave(0, 0), torch.tensor([0.31, -0.47]))
        torch.testing.assert_close(shifted, wave(0.31, -0.47), rtol=0, atol=1e-7)

    def test_there_and_back(self, random: Callable[..., Tensor]) -> None:
        spectrum = random(1, 15, 15)
        shift = torch.tensor([[0.4, -0.2]], dtype=torch.float64)
        back = physics.shift_subpixel(physics.shift_subpixel(spectrum, shift), -shift)
        assert_equal(back, spectrum)

    def test_real_images_stay_real(self, random: Callable[..., Tensor]) -> None:
        image = random(N, N).real.to(torch.complex128)
        assert physics.shift_subpixel(image, torch.tensor([0.3, 0.2])).imag.abs().max() < 1e-12

    def test_one_shift_for_each_pattern(self, random: Callable[..., Tensor]) -> None:
        probe, shifts = random(2, N, N), torch.tensor([[[0.1, 0.4], [-0.3, 0.2]]])
        each = physics.shift_subpixel(probe, shifts.unsqueeze(-2))
        assert each.shape == (1, 2, 2, N, N)
        assert_equal(each[0, 1], physics.shift_subpixel(probe, shifts[0, 1]))


class TestPlacement:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_extract_is_the_adjoint_of_place(self, random: Callable[..., Tensor], dtype: torch.dtype) -> None:
        patches, canvas = random(2, 3, N, N, dtype=dtype), random(2, 24, 24, dtype=dtype)
        placed = inner(canvas, physics.place_patches(patches, OFFSETS, 24))
        cut = inner(physics.extract_patches(canvas, OFFSETS, N), patches)
        assert placed == pytest.approx(cut, rel=1e-4 if dtype is torch.complex64 else 1e-12)

    def test_whole_pixel_offsets_copy(self, random: Callable[..., Tensor]) -> None:
        canvas = random(1, 24, 24)
        cut = physics.extract_patches(canvas, OFFSETS[:1], N)
        for patch, (dy, dx) in zip(cut[0], OFFSETS[0].int().tolist(), strict=True):
            assert_equal(patch, canvas[0, 4 + dy : 4 + dy + N, 4 + dx : 4 + dx + N])

    def test_subpixel_offsets_interpolate_linearly(self) -> None:
        y, x = torch.meshgrid(*2 * [torch.arange(24, dtype=torch.float64)], indexing="ij")
        plane = (2 * y - 3 * x + 1j * x)[None]
        cut = physics.extract_patches(plane, torch.tensor([[[0.25, -0.6]]]), N)[0, 0]
        want = plane[0, 4 : 4 + N, 4 : 4 + N] + 2 * 0.25 + (3 - 1j) * 0.6
        torch.testing.assert_close(cut, want, rtol=0, atol=1e-6)

    def test_moving_all_patches_moves_the_canvas(self, random: Callable[..., Tensor]) -> None:
        patches = random(1, 3, N, N)
        moved = physics.place_patches(patches, OFFSETS[:1] + torch.tensor([1.0, -2.0]), 30)
        want = torch.roll(physics.place_patches(patches, OFFSETS[:1], 30), (1, -2), dims=(-2, -1))
        assert_equal(moved, want)

    def test_canvas_holds_every_patch(self, random: Callable[..., Tensor]) -> None:
        size = physics.canvas_size(OFFSETS, N)
        placed = physics.place_patches(torch.ones(2, 3, N, N), OFFSETS, size)
        torch.testing.assert_close(placed.sum(dim=(-2, -1)), torch.full((2,), 3.0 * N * N))


class TestMerge:
    def test_consistent_patches_come_back(self, random: Callable[..., Tensor]) -> None:
        canvas = random(1, 24, 24)
        patches = physics.extract_patches(canvas, OFFSETS[:1], N)
        assert_equal(physics.overlap_constraint(patches, OFFSETS[:1]), patches)

    def test_overlap_is_the_weighted_mean(self) -> None:
        patches = torch.stack([torch.full((4, 4), 1 + 1j), torch.full((4, 4), 3 - 1j)])[None]
        weights = torch.stack([torch.full((4, 4), 1.0), torch.full((4, 4), 3.0)])[None]
        offsets = torch.tensor([[[0.0, -1.0], [0.0, 1.0]]])
        canvas, coverage = physics.merge_patches(patches, offsets, weights, size=8)
        first, both, second = 1 + 1j, 2.5 - 0.5j, 3 - 1j
        want = torch.tensor([0, first, first, both, both, second, second, 0])
        torch.testing.assert_close(canvas[0, 4], want)
        assert coverage[0, 4].tolist() == [0, 1, 1, 4, 4, 3, 3, 0]
        assert coverage[0, 0].sum() == 0

    def test_patches_do_not_vanish_at_the_border(self, random: Callable[..., Tensor]) -> None:
        patches = random(1, 1, N, N)
        assert_equal(physics.overlap_constraint(patches, torch.zeros(1, 1, 2)), patches)

    def test_gradient(self, random: Callable[..., Tensor]) -> None:
        patches = random(1, 2, 5, 5).requires_grad_()
        offsets = torch.tensor([[[0.3, -0.8], [-0.4, 0.9]]], dtype=torch.float64)
        weights = random(5, 5).abs() + 0.1
        assert torch.autograd.gradcheck(lambda p: physics.overlap_constraint(p, offsets, weights), (patches,))

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
    def test_backward_repeats_bit_for_bit(
        self, random: Callable[..., Tensor], device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Under deterministic algorithms torch raises where a backward pass would not repeat."""
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        patches = random(2, 3, N, N, dtype=torch.complex64).to(device)
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            gradients = [self.gradients(patches, OFFSETS.to(device)) for _ in range(2)]
        finally:
            torch.use_deterministic_algorithms(before)
        for first, second in zip(*gradients, strict=True):
            assert first is not None
            assert torch.equal(first, second)

    @staticmethod
    def gradients(patches: Tensor, offsets: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Send a gradient back through merging, cutting out, the shifted probe and the far field."""
        leaf = patches.clone().requires_grad_()
        probe = patches[0, :2].clone().requires_grad_()
        merged = physics.overlap_constraint(leaf, offsets)
        shifted = physics.shift_subpixel(probe, (offsets % 1).unsqueeze(-2))
        physics.forward_intensity(merged, shifted).square().sum().backward()
        return leaf.grad, probe.grad


class TestSplitPosition:
    @pytest.mark.parametrize("side", [64, 63])
    def test_parts_add_up_and_the_origin_is_whole(self, side: int) -> None:
        positions = torch.rand(50, 2, dtype=torch.float64) * 100
        grid, rest = physics.split_position(positions, side)
        torch.testing.assert_close(grid + rest, positions)
        assert torch.equal((grid - (side - 1) / 2) % 1, torch.zeros_like(grid))
        assert rest.abs().max() <= 0.5


def load_fixture(name: str) -> tuple[Tensor, Tensor, Tensor, float, dict[str, Tensor]]:
    path = SHARED / "upstream_forward_fixtures" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"the shared forward fixtures are not here: {path}")
    with np.load(path) as file:
        parts = {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fi"}
    patches = torch.complex(parts["x_real"], parts["x_imag"]).to(torch.complex128)
    probe = torch.complex(parts["probe_real"], parts["probe_imag"]).to(torch.complex128)[None]
    # The reference moves the canvas against the patch, so its positions are the negative [x, y] offsets.
    offsets = -parts["positions"][:, :, 0].flip(-1)
    return patches, probe, offsets, float(parts["scale"]), parts


def central_window(side: int, first: int, last: int) -> Tensor:
    window = torch.zeros(side, side, dtype=torch.float64)
    window[first:last, first:last] = 1
    return window


FIXTURES = ("c1_bigF", "c1_bigT_probe", "c1_bigT_uniform", "c4_bigT_probe", "c4_bigT_uniform")


def fixture_intensity(name: str) -> tuple[Tensor, dict[str, Tensor]]:
    patches, probe, offsets, scale, parts = load_fixture(name)
    if "bigT" in name:
        weights = physics.intensity(probe)
        if name == "c4_bigT_uniform":
            weights = central_window(64, 16, 48)
        elif name == "c1_bigT_uniform":
            # A single patch sampled on a rounded grid touches one more row and column, but not their corner.
            weights = central_window(64, 16, 49)
            weights[48, 48] = 0
        patches = physics.overlap_constraint(patches, offsets, weights)
    return scale**2 * physics.forward_intensity(patches, probe), parts


def sampled_at(images: Tensor, shift_px: Tensor, dtype: torch.dtype) -> Tensor:
    """Sample images (C, S, S) at their pixels plus shifts (C, 2), on a grid from -1 to 1 of a precision."""
    side = images.shape[-1]
    base = torch.linspace(-1, 1, side, dtype=dtype)
    y, x = (base + 2 * shift_px[:, axis, None].to(dtype) / (side - 1) for axis in (0, 1))
    grid = torch.stack(
        [x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1
    )  # -> (C, S, S, 2)
    parts = torch.stack([images.real, images.imag], dim=1).to(dtype)
    moved = torch.nn.functional.grid_sample(parts, grid, padding_mode="zeros", align_corners=True)
    return torch.complex(moved[:, 0], moved[:, 1])


def fixture_intensity_by_grid_sampling(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Merge the patches of a fixture as the reference does: by grid sampling, in its precision."""
    patches, probe, offsets, scale, parts = load_fixture(name)
    shift, margin = offsets[0].double(), 5 if name.startswith("c1") else 7
    weights = central_window(64, 16, 48) if "uniform" in name else physics.intensity(probe)
    padding = (margin,) * 4
    padded = torch.complex(*(torch.nn.functional.pad(p[0], padding) for p in (patches.real, patches.imag)))
    trust = torch.nn.functional.pad((weights / weights.sum()).expand(patches.shape)[0], padding) + 0j
    moved, moved_trust = (sampled_at(images, -shift, dtype) for images in (padded, trust))
    total = moved_trust.real.sum(dim=0)
    total = torch.where(total > 1e-12, total, torch.inf)  # where next to nothing was placed, nothing is
    canvas = (moved * moved_trust.real).sum(dim=0) / total
    merged = sampled_at(canvas.expand(len(shift), -1, -1), shift, dtype)
    merged = merged[None, :, margin:-margin, margin:-margin].to(torch.complex128)
    return scale**2 * physics.forward_intensity(merged, probe), parts["expected_forward"].double()


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


class TestIndependentOracles:
    """The fixtures with merging hold the rounding of the reference, which samples on a float32 grid.

    Without merging ours agrees with the reference to 1e-6 as it stands. With merging the reference differs
    from the exact sum by 5e-6; that this is its rounding and no other physics, two tests show: sampled as the
    reference does it, in its precision, the fixtures come back to 1e-6; sampled the same way in double
    precision, it is ours to 1e-9.
    """

    @pytest.mark.parametrize("name", FIXTURES)
    def test_forward_fixtures(self, name: str) -> None:
        got, parts = fixture_intensity(name)
        assert relative_error(got, parts["expected_forward"].double()) < (1e-6 if name == "c1_bigF" else 6e-6)

    @pytest.mark.parametrize("name", [name for name in FIXTURES if "bigT" in name])
    def test_forward_fixtures_with_the_rounding_of_the_reference(self, name: str) -> None:
        assert relative_error(*fixture_intensity_by_grid_sampling(name, torch.float32)) < 1e-6

    # A single patch under a window has an edge that rounding alone decides; it has no exact answer.
    @pytest.mark.parametrize(
        "name", [name for name in FIXTURES if name not in ("c1_bigF", "c1_bigT_uniform")]
    )
    def test_merging_is_that_of_the_reference_in_double_precision(self, name: str) -> None:
        ours, _ = fixture_intensity(name)
        theirs, _ = fixture_intensity_by_grid_sampling(name, torch.float64)
        assert relative_error(ours, theirs) < 1e-9

    @pytest.mark.parametrize("name", FIXTURES)
    def test_loss_fixtures(self, name: str) -> None:
        got, parts = fixture_intensity(name)
        counts = parts["I_raw"].double()
        likelihood = losses.poisson_nll(got, counts, full=True) * counts.numel()
        rounding = 1e-6 if name == "c1_bigF" else 2e-6
        assert float(likelihood) == pytest.approx(float(parts["expected_poisson_loss"]), rel=rounding)
        # The reference squares its prediction once more before it takes the mean absolute error.
        assert float(losses.amplitude_mae(got.square(), counts)) == pytest.approx(
            float(parts["expected_mae_loss"]), rel=2e-5
        )

    def test_golden_noiseless_patterns(self) -> None:
        folder = SHARED / "ptychodus170_golden"
        if not folder.exists():
            pytest.skip(f"the shared golden files are not here: {folder}")
        with np.load(folder / "train_data.npz") as file:
            positions = np.stack([file["ycoords"], file["xcoords"]], axis=1)[:16]
            probe, image = torch.from_numpy(file["probeGuess"]), torch.from_numpy(file["objectGuess"])
        with np.load(folder / "noiseless_first16.npz") as file:
            want = torch.from_numpy(file["ideal"]).double()
        grid, rest = physics.split_position(torch.from_numpy(positions)[:, None], 64)
        patches = cut_patches(image, grid)
        got = physics.forward_intensity(patches, physics.shift_subpixel(probe, rest.unsqueeze(-2)))[:, 0]
        assert float((got - want).norm() / want.norm()) < 1e-3
        assert float((got.sqrt() - want.sqrt()).norm() / want.sqrt().norm()) < 1e-3


def cut_patches(image: Tensor, grid: Tensor) -> Tensor:
    origins: NDArray[np.int64] = (grid[:, 0] - 31.5).round().numpy().astype(np.int64)
    return torch.stack([image[y : y + 64, x : x + 64] for y, x in origins])[:, None]
