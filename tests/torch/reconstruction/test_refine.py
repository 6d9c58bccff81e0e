"""Refinement: the hand-written gradient is the model's, and known objects and probes come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ptycho_exec.errors import DataError, UserError
from ptycho_torch.data.scan import ScanData
from ptycho_torch.evaluation.metrics import Evaluation, evaluate
from ptycho_torch.physics import forward as physics
from ptycho_torch.reconstruction import refine
from ptycho_torch.reconstruction.refine import RefineOptions, refine_object
from ptycho_torch.reconstruction.stitch import probe_coverage
from ptycho_torch.simulate import simulate_scan

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=32, patterns=144, photons=1e7, seed=3)


def coverage(scan: ScanData) -> NDArray[np.float32]:
    assert scan.probe is not None
    positions, probe = torch.from_numpy(scan.positions_px), torch.from_numpy(scan.probe)
    return probe_coverage(positions, probe, scan.canvas_shape).numpy()


def score(scan: ScanData, obj: NDArray[Any]) -> Evaluation:
    assert scan.object_guess is not None
    return evaluate(obj, scan.object_guess, coverage=coverage(scan))


def random_complex(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("modes", [1, 3])
def test_the_hand_written_gradient_is_that_of_the_forward_model(modes: int) -> None:
    patches = random_complex(4, 16, 16, seed=1).requires_grad_()
    probe = random_complex(modes, 16, 16, seed=2).requires_grad_()
    amplitude = torch.rand(4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    good = torch.ones(16, 16, dtype=torch.bool)
    good[3, 5] = good[8:10, 8:12] = False

    model = physics.forward_intensity(patches[:, None], probe).sqrt()[:, 0]
    loss = (good * (model - amplitude) ** 2).sum()
    loss.backward()

    ours, mask = (torch.fft.ifftshift(x, dim=(-2, -1)) for x in (amplitude, good.double()))
    with torch.no_grad():
        update, error, power = refine.wave_update(patches, probe[None], ours, mask)
        toward_object = (update * probe.conj()).sum(dim=1)
        toward_probe = (update * patches.conj()[:, None]).sum(dim=0)
    torch.testing.assert_close(error, loss.detach())
    torch.testing.assert_close(power, (amplitude[:, good] ** 2).sum())
    torch.testing.assert_close(-2 * toward_object, patches.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(-2 * toward_probe, probe.grad, rtol=1e-9, atol=1e-9)


def test_linear_interpolation_and_its_adjoint_are_adjoint_and_exact_on_planes() -> None:
    fraction = torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block, patches = random_complex(5, 9, 9, seed=1), random_complex(5, 8, 8, seed=2)
    forth = (refine.lerp(block, fraction) * patches.conj()).sum()
    back = (block * refine.lerp_adjoint(patches, fraction).conj()).sum()
    torch.testing.assert_close(forth, back)
    y, x = (axis.double() for axis in torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"))
    plane = (2 * y - 3j * x).expand(5, 9, 9)
    expected = plane[:, :8, :8] + (2 * fraction[:, 0] - 3j * fraction[:, 1])[:, None, None]
    torch.testing.assert_close(refine.lerp(plane.contiguous(), fraction), expected)


def test_blocks_are_cut_where_they_are_asked_for() -> None:
    canvas = random_complex(20, 17)
    corners = torch.tensor([[0, 0], [12, 9], [3, 7]])
    for (y, x), block in zip(corners.tolist(), refine.cut(canvas, corners, 8), strict=True):
        assert torch.equal(block, canvas[y : y + 8, x : x + 8])


def test_from_a_flat_start_with_the_known_probe_the_object_comes_back(scan: ScanData) -> None:
    result = refine_object(scan, "flat", 30)
    result_score = score(scan, result.object)
    assert result.placement == "probe"
    assert len(result.losses) == 30
    assert result.losses[-1] < 0.1 * result.losses[0]
    assert result_score.amplitude_ssim > 0.95
    assert result_score.phase_ssim > 0.97
    assert result_score.nrmse < 0.05
    assert np.array_equal(result.probe, scan.probe)
    np.testing.assert_allclose(result.coverage, coverage(scan))


def test_a_better_start_needs_fewer_steps(scan: ScanData) -> None:
    assert scan.object_guess is not None
    blurred = gaussian_filter(scan.object_guess.real, 1.5) + 1j * gaussian_filter(scan.object_guess.imag, 1.5)
    from_blurred = refine_object(scan, blurred, 3, placement="probe")
    from_flat = refine_object(scan, torch.ones(*scan.canvas_shape), 3, placement="probe")
    assert from_blurred.losses[-1] < from_flat.losses[-1]
    assert score(scan, from_blurred.object).nrmse < 0.5 * score(scan, from_flat.object).nrmse
    assert score(scan, from_blurred.object).nrmse < 0.7 * score(scan, blurred).nrmse


def test_flat_is_a_start_of_ones(scan: ScanData) -> None:
    ones = np.ones(scan.canvas_shape, np.complex64)
    first, second = (refine_object(scan, start, 2, placement="probe") for start in ("flat", ones))
    assert np.array_equal(first.object, second.object)


def test_an_unknown_probe_is_found_together_with_the_object(scan: ScanData) -> None:
    assert scan.probe is not None
    rng = np.random.default_rng(5)
    noise = gaussian_filter(rng.normal(size=(2, 32, 32)), (0, 2, 2))
    noise = (noise[0] + 1j * noise[1]) * np.abs(scan.probe[0])
    frequency = np.fft.fftfreq(32)
    defocus = np.exp(6j * (frequency[:, None] ** 2 + frequency**2))
    guess = np.fft.ifft2(np.fft.fft2(scan.probe) * defocus)
    guess = guess + 0.2 * noise * np.linalg.norm(scan.probe) / np.linalg.norm(noise)
    fixed = refine_object(scan, "flat", 40, probe=guess)
    joint = refine_object(scan, "flat", 40, probe=guess, options=RefineOptions(refine_probe=True))
    result_score = score(scan, joint.object)
    assert result_score.amplitude_ssim > 0.9
    assert result_score.phase_ssim > 0.95
    assert result_score.nrmse < 0.6 * score(scan, fixed.object).nrmse
    overlap = (
        np.abs(np.vdot(joint.probe, scan.probe)) / np.linalg.norm(joint.probe) / np.linalg.norm(scan.probe)
    )
    assert overlap > 0.98
    assert np.array_equal(fixed.probe, guess.astype(np.complex64))


@pytest.mark.slow
def test_incoherent_modes_and_bad_pixels_are_part_of_the_model() -> None:
    scan = simulate_scan(n=32, patterns=144, photons=1e7, seed=4, modes=2, bad_pixels=6)
    assert scan.probe is not None
    whole = refine_object(scan, "flat", 25)
    single = refine_object(scan, "flat", 25, probe=scan.probe[:1])
    assert score(scan, whole.object).nrmse < 0.6 * score(scan, single.object).nrmse
    blind = replace(scan, good_pixels=np.ones((32, 32), bool))
    assert score(scan, whole.object).nrmse < 0.5 * score(scan, refine_object(blind, "flat", 25).object).nrmse


def test_auto_finds_out_that_the_object_was_interpolated(scan: ScanData) -> None:
    from ptycho_torch.data.detect import bilinear_patch

    assert scan.object_guess is not None
    assert scan.probe is not None
    patches = np.stack([bilinear_patch(scan.object_guess, origin, 32) for origin in scan.origins_px])
    waves = np.fft.fft2(patches * scan.probe[0], norm="ortho")
    counts = np.fft.fftshift(np.abs(waves) ** 2, axes=(-2, -1)).astype(np.float32)
    interpolated = replace(scan, patterns=counts)
    auto = refine_object(interpolated, "flat", 12)
    other = refine_object(interpolated, "flat", 12, placement="probe")
    assert auto.placement == "object"
    assert score(interpolated, auto.object).nrmse < score(interpolated, other.object).nrmse


def test_equal_seeds_give_equal_bits_and_another_seed_does_not(scan: ScanData) -> None:
    runs = [refine_object(scan, "flat", 3, seed=seed) for seed in (7, 7, 8)]
    assert np.array_equal(runs[0].object, runs[1].object)
    assert runs[0].losses == runs[1].losses
    assert not np.array_equal(runs[0].object, runs[2].object)


def test_patterns_that_are_not_kept_in_memory_give_the_same_result(
    scan: ScanData, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = refine_object(scan, "flat", 2)
    monkeypatch.setattr(refine, "CACHE_BYTES", 0)
    assert np.array_equal(kept.object, refine_object(scan, "flat", 2).object)


def test_a_scan_split_into_regions_converges_to_the_same_object(
    scan: ScanData, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = refine_object(scan, "flat", 25, placement="probe")
    monkeypatch.setattr(refine, "REGION_PATTERNS", 80)
    split = refine_object(scan, "flat", 25, placement="probe")
    assert score(scan, whole.object).nrmse < 0.01
    assert score(scan, split.object).nrmse < 0.03


def test_a_minibatch_lights_a_quarter_of_the_field_within_bounds() -> None:
    probe = torch.zeros(2, 32, 32, dtype=torch.complex64)
    probe[0, 10:20, 10:20] = 1 + 1j  # lights 100 pixels
    counts = [refine.default_batch_size(probe, 22 + side, 22 + side) for side in (10, 60, 80, 400)]
    assert counts == [8, 10, 18, 32]
    assert refine.default_batch_size(probe / 7, 82, 82) == 10


def test_a_dense_scan_is_reconstructed_in_a_few_epochs_by_small_minibatches() -> None:
    dense = simulate_scan(n=32, patterns=400, photons=1e8, step_px=1.0, seed=6)
    small, large = (
        score(dense, refine_object(dense, "flat", 3, options=RefineOptions(batch_size=size)).object)
        for size in (None, 32)
    )
    assert small.phase_ssim > 0.97
    assert small.nrmse < 0.5 * large.nrmse


def test_regions_are_compact_and_hold_every_pattern_once() -> None:
    corners = torch.randint(0, 2000, (5000, 2), generator=torch.Generator().manual_seed(0))
    regions = refine.split_scan(corners)
    assert torch.equal(torch.sort(torch.cat(regions)).values, torch.arange(5000))
    spans = torch.stack([corners[rows].amax(dim=0) - corners[rows].amin(dim=0) for rows in regions])
    assert int(spans.max()) <= refine.REGION_SIDE_PX
    assert max(len(rows) for rows in regions) <= refine.REGION_PATTERNS
    same_place = torch.zeros(5000, 2, dtype=torch.long)
    assert len(refine.split_scan(same_place)) == 1


def test_patches_that_overhang_the_canvas_are_refined_all_the_same(scan: ScanData) -> None:
    cut = (slice(6, -5), slice(4, -7))
    assert scan.object_guess is not None
    truth = np.ascontiguousarray(scan.object_guess[cut])
    small = replace(
        scan,
        object_guess=truth,
        canvas_shape=truth.shape,
        positions_px=scan.positions_px - np.array([6.0, 4.0]),
    )
    whole, inner = refine_object(scan, "flat", 4), refine_object(small, "flat", 4)
    assert inner.object.shape == truth.shape
    np.testing.assert_allclose(inner.object, whole.object[cut], atol=2e-5)


def test_the_number_of_threads_does_not_matter_and_is_restored(scan: ScanData) -> None:
    before = torch.get_num_threads()
    first = refine_object(scan, "flat", 2)
    try:
        torch.set_num_threads(3)
        second = refine_object(scan, "flat", 2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(first.object, second.object)


def test_progress_is_told_after_every_epoch(scan: ScanData) -> None:
    seen: list[tuple[int, int, float]] = []
    result = refine_object(scan, "flat", 3, progress=lambda *args: seen.append(args))
    assert [args[:2] for args in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1][2] == result.losses[-1]


def test_a_probe_of_another_power_is_scaled_with_a_notice(scan: ScanData) -> None:
    assert scan.probe is not None
    plain = refine_object(scan, "flat", 3)
    scaled = refine_object(scan, "flat", 3, probe=scan.probe * 1e-3)
    assert plain.notices == ()
    assert "probe was multiplied by" in scaled.notices[0]
    assert scaled.losses[-1] < 2 * plain.losses[-1]


def test_the_last_steps_shrink_and_average_the_noise() -> None:
    noisy = simulate_scan(n=32, patterns=144, photons=3e4, seed=3)
    rough = refine_object(noisy, "flat", 20, options=RefineOptions(settle=0))
    smooth = refine_object(noisy, "flat", 20)
    assert score(noisy, smooth.object).nrmse < score(noisy, rough.object).nrmse
    assert [refine.settling(epoch, 10, 0.0) for epoch in range(10)] == [1.0] * 10
    steps = [refine.settling(epoch, 10, 0.5) for epoch in range(10)]
    assert steps[:5] == [1.0] * 5
    assert steps == sorted(steps, reverse=True)
    assert 0 < steps[-1] < 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "at least one step"),
        ({"start": np.ones((3, 3))}, r"the object to start from, \(3, 3\)"),
        ({"start": "round"}, 'unknown start "round"'),
        ({"options": RefineOptions(step_size=0)}, "step_size = 0"),
        ({"options": RefineOptions(momentum=1)}, "momentum = 1"),
        ({"probe": np.ones((5, 5))}, r"the probe \(1, 5, 5\)"),
        ({"probe": np.zeros((32, 32))}, "is empty"),
    ],
)
def test_what_cannot_be_refined_is_refused(scan: ScanData, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        refine_object(scan, **({"start": "flat", "steps": 1} | arguments))


def test_a_scan_without_a_probe_is_refused(scan: ScanData) -> None:
    with pytest.raises(DataError, match="needs a probe"):
        refine_object(replace(scan, probe=None), "flat", 1)


def test_divergence_is_an_error_not_a_picture(scan: ScanData) -> None:
    broken = replace(scan, patterns=np.full(scan.patterns.shape, np.inf, np.float32))
    with pytest.raises(UserError, match="diverged in epoch 1"):
        refine_object(broken, "flat", 2, placement="probe", probe=scan.probe)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the shared data folder ../shared is not there")
def test_the_semi_real_scan_is_reconstructed_in_ten_epochs() -> None:
    from ptycho_torch.data.read import read_scan

    semi_real = read_scan(SHARED / "semireal_run1084_sim.npz")
    result = refine_object(semi_real, "flat", 10)
    result_score = score(semi_real, result.object)
    assert result_score.amplitude_ssim > 0.99
    assert result_score.phase_ssim > 0.99
    assert result_score.nrmse < 0.03
