"""Stitching: known patches at known positions come back, and nothing at the edge is lost in silence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.reconstruction.stitch import Stitcher, StitchResult, probe_coverage, probe_weights

N = 32
CANVAS = (90, 77)  # asymmetric on purpose


class PlaneWaves:
    """A band-limited complex object that is known at every point, not only at pixels."""

    def __init__(self, limit: float, seed: int = 0, count: int = 40) -> None:
        rng = np.random.default_rng(seed)
        radius, angle = limit * np.sqrt(rng.random(count)), rng.random(count) * 2 * np.pi
        self.frequency = np.stack((radius * np.sin(angle), radius * np.cos(angle)), axis=1)
        self.weight = rng.normal(size=count) + 1j * rng.normal(size=count)

    def at(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Return the object on the grid spanned by coordinates y (h,) and x (w,)."""
        rows = np.exp(2j * np.pi * np.outer(self.frequency[:, 0], y))
        columns = np.exp(2j * np.pi * np.outer(self.frequency[:, 1], x))
        return np.einsum("c,cy,cx->yx", self.weight, rows, columns) / np.linalg.norm(self.weight)

    def patch(self, position: NDArray[np.float64], n: int = N) -> NDArray[np.complex128]:
        pixels = np.arange(n) - (n - 1) / 2
        return self.at(position[0] + pixels, position[1] + pixels)

    def canvas(self) -> NDArray[np.complex128]:
        return self.at(np.arange(CANVAS[0], dtype=float), np.arange(CANVAS[1], dtype=float))


def scan(*, whole: bool, count: int = 250, seed: int = 1) -> NDArray[np.float64]:
    """Return random positions in a part of the canvas that is not centered on it."""
    rng = np.random.default_rng(seed)
    origin = rng.random((count, 2)) * (np.array([40, 38])) + np.array([13, 2])
    return (np.round(origin) if whole else origin) + (N - 1) / 2


def as_tensors(truth: PlaneWaves, positions: NDArray[np.float64]) -> tuple[torch.Tensor, torch.Tensor]:
    patches = np.stack([truth.patch(position) for position in positions])
    return torch.from_numpy(patches).to(torch.complex64), torch.from_numpy(positions)


def stitched(truth: PlaneWaves, positions: NDArray[np.float64], **options: object) -> StitchResult:
    stitcher = Stitcher(CANVAS, N, **options)  # type: ignore[arg-type]
    stitcher.add(*as_tensors(truth, positions))
    return stitcher.result()


def worst_error(truth: PlaneWaves, result: StitchResult) -> float:
    covered = result.coverage.numpy() > 0
    assert covered.mean() > 0.2
    return float(np.abs(result.object.numpy() - truth.canvas())[covered].max())


PROBE = np.exp(-(((np.mgrid[:N, :N] - 14.0) / 9) ** 2).sum(0)) * np.exp(1j * np.mgrid[:N, :N][0] / 5)


@pytest.mark.parametrize("weights", [None, torch.from_numpy(np.abs(PROBE) ** 2)], ids=["uniform", "probe"])
@pytest.mark.parametrize(
    "options", [{}, {"middle_trim": 10}, {"pad_eval": True}, {"window": "hann"}], ids=str
)
def test_patches_at_whole_pixels_come_back_to_1e5(options: dict[str, object], weights: torch.Tensor) -> None:
    truth = PlaneWaves(limit=0.5)
    result = stitched(truth, scan(whole=True), weights=weights, **options)
    assert worst_error(truth, result) < 1e-5


@pytest.mark.parametrize(
    ("limit", "bound"), [(0.125, 1e-3), (0.25, 1e-3), (0.35, 1.5e-2)], ids=["quarter", "half", "70%"]
)
def test_sub_pixel_patches_come_back_within_the_stated_error(limit: float, bound: float) -> None:
    truth = PlaneWaves(limit)
    result = stitched(truth, scan(whole=False), weights=probe_weights(torch.from_numpy(PROBE)))
    covered = result.coverage.numpy() > 0
    assert covered.mean() > 0.2
    error = (result.object.numpy() - truth.canvas())[covered]
    assert np.sqrt(np.mean(np.abs(error) ** 2)) < bound  # the truth's root mean square is 1


def test_the_interpolation_is_far_better_than_placing_at_the_nearest_pixel() -> None:
    truth, positions = PlaneWaves(limit=0.25), scan(whole=False)
    patches, exact = as_tensors(truth, positions)
    rounded = Stitcher(CANVAS, N)
    rounded.add(patches, torch.round(exact - 0.5) + 0.5)
    assert worst_error(truth, rounded.result()) > 50 * worst_error(truth, stitched(truth, positions))


def test_a_constant_comes_back_as_that_constant_at_any_sub_pixel_shift() -> None:
    stitcher = Stitcher(CANVAS, N, pad_eval=True)
    stitcher.add(torch.full((250, N, N), 0.3 - 2j), torch.from_numpy(scan(whole=False)))
    result = stitcher.result()
    torch.testing.assert_close(
        result.object[result.coverage > 0],
        torch.tensor(0.3 - 2j).expand(int((result.coverage > 0).sum())),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("pad_eval", [False, True])
def test_coverage_needs_no_patches(pad_eval: bool) -> None:
    positions = torch.from_numpy(scan(whole=False, count=70))
    weights = probe_weights(torch.rand(2, N, N, dtype=torch.complex64))
    given, alone = (Stitcher(CANVAS, N, weights=weights, pad_eval=pad_eval) for _ in range(2))
    given.add(torch.ones(70, N, N, dtype=torch.complex64), positions)
    alone.add_weights(positions)
    assert torch.equal(alone.result().coverage, given.result().coverage)
    assert alone.result().n_patches == 70


def test_coverage_counts_fully_weighted_patches_and_is_zero_elsewhere() -> None:
    positions = scan(whole=True, count=40)
    expected = np.zeros(CANVAS, np.float32)
    for y, x in (positions - (N - 1) / 2).astype(int):
        expected[y : y + N, x : x + N] += 1
    result = stitched(PlaneWaves(0.2), positions, weights=torch.full((N, N), 7.0))
    np.testing.assert_allclose(result.coverage.numpy(), expected, rtol=1e-6)
    assert np.all(result.object.numpy()[expected == 0] == 0)
    assert result.n_patches == 40
    assert result.notices == ()


def test_where_patches_disagree_the_weights_decide() -> None:
    weights = torch.rand(N, N, generator=torch.Generator().manual_seed(0)) + 0.1
    stitcher = Stitcher((N, N + 4), N, weights=weights)
    stitcher.add(torch.ones(1, N, N) * 2j, torch.tensor([[15.5, 15.5]]))
    stitcher.add(torch.ones(1, N, N) * 1.0, torch.tensor([[15.5, 19.5]]))
    first, second = weights[:, 4:], weights[:, :-4]
    expected = (2j * first + second) / (first + second)
    torch.testing.assert_close(stitcher.result().object[:, 4:-4], expected)


def test_middle_trim_keeps_exactly_the_central_pixels() -> None:
    result = stitched(PlaneWaves(0.2), np.array([[40.5, 30.5]]), middle_trim=6)
    rows, columns = np.nonzero(result.coverage.numpy())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (38, 43, 28, 33)


def test_hann_window_tapers_the_kept_part_toward_its_edge() -> None:
    coverage = stitched(PlaneWaves(0.2), np.array([[40.5, 30.5]]), middle_trim=8, window="hann").coverage
    row = coverage[40, 27:35].numpy()
    assert np.all(np.diff(row[:4]) > 0)
    np.testing.assert_allclose(row, row[::-1], rtol=1e-5)
    assert 0 < row[0] < 0.05


def test_pad_eval_keeps_the_outermost_pixels_of_a_shifted_patch() -> None:
    position = np.array([[40.8, 30.5]])  # shifted along y by 0.3
    dropped = stitched(PlaneWaves(0.1), position).coverage.numpy()
    kept = stitched(PlaneWaves(0.1), position, pad_eval=True).coverage.numpy()
    assert np.count_nonzero(kept) == N * N
    assert np.count_nonzero(dropped) == (N - 7) * N


def test_pad_eval_accepts_overhang_and_equals_padding_then_cropping() -> None:
    truth = PlaneWaves(0.1)
    positions = np.array([[10.0, 12.25], [84.5, 70.5], [40.5, 30.5]])
    patches, at = as_tensors(truth, positions)
    padded = Stitcher((CANVAS[0] + 2 * N, CANVAS[1] + 2 * N), N, pad_eval=True)
    padded.add(patches, at + N)
    result = stitched(truth, positions, pad_eval=True)
    torch.testing.assert_close(result.object, padded.result().object[N:-N, N:-N])
    torch.testing.assert_close(result.coverage, padded.result().coverage[N:-N, N:-N])
    assert (result.n_cropped, result.n_outside) == (2, 0)


def test_a_patch_outside_the_canvas_is_refused_with_its_number_and_a_remedy() -> None:
    with pytest.raises(DataError, match=r"patch 1 reaches outside the object canvas") as caught:
        stitched(PlaneWaves(0.1), np.array([[40.5, 30.5], [40.5, 63.5]]))
    assert "columns 48 to 79" in str(caught.value)
    assert "out_of_canvas" in str(caught.value)


def test_cropped_patches_are_counted_and_the_part_inside_is_right() -> None:
    truth = PlaneWaves(0.5)
    positions = np.array([[40.5, 30.5], [10.5, 63.5], [500.5, 30.5]])
    result = stitched(truth, positions, out_of_canvas="crop")
    assert (result.n_patches, result.n_cropped, result.n_outside) == (3, 2, 1)
    assert result.notices[0].startswith("2 of 3 patches reach outside the 90 x 77 canvas")
    assert worst_error(truth, result) < 1e-5
    assert result.coverage[0, 76] == 1


def test_adding_in_pieces_equals_adding_at_once_bit_for_bit() -> None:
    patches, positions = as_tensors(PlaneWaves(0.3), scan(whole=False))
    at_once, in_pieces = Stitcher(CANVAS, N), Stitcher(CANVAS, N)
    at_once.add(patches, positions)
    for start in range(0, len(patches), 64):
        in_pieces.add(patches[start : start + 64], positions[start : start + 64])
    assert torch.equal(at_once.result().object, in_pieces.result().object)
    assert torch.equal(at_once.result().coverage, in_pieces.result().coverage)


def test_probe_coverage_is_that_of_stitching_with_the_probe() -> None:
    positions = scan(whole=False, count=80)
    probe = torch.from_numpy(PROBE)[None]
    options = {"weights": probe_weights(probe), "pad_eval": True}
    expected = stitched(PlaneWaves(0.1), positions, **options).coverage
    torch.testing.assert_close(probe_coverage(torch.from_numpy(positions), probe, CANVAS), expected)


def test_probe_weights_add_the_modes_in_intensity() -> None:
    modes = torch.stack((torch.full((4, 4), 3j), torch.full((4, 4), -3j)))
    torch.testing.assert_close(probe_weights(modes), torch.full((4, 4), 18.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"middle_trim": N + 1}, "middle_trim = 33 does not fit"),
        ({"middle_trim": -1}, "middle_trim = -1 does not fit"),
        ({"weights": torch.ones(3, 3)}, r"weights have shape \(3, 3\)"),
        ({"weights": -torch.ones(N, N)}, "not negative"),
        ({"weights": torch.zeros(N, N)}, "not all zero"),
        ({"window": "boxcar"}, 'unknown stitching window "boxcar"'),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Stitcher(CANVAS, N, **options)  # type: ignore[arg-type]


def test_patches_that_are_not_finite_or_of_another_shape_are_refused() -> None:
    stitcher = Stitcher(CANVAS, N)
    patches = torch.ones(3, N, N, dtype=torch.complex64)
    patches[2, 5, 5] = torch.nan
    at = torch.tensor([[40.5, 30.5]]).expand(3, 2)
    with pytest.raises(DataError, match="patch 2 holds values that are not finite"):
        stitcher.add(patches, at)
    with pytest.raises(DataError, match=r"cannot place patches \(3, 32, 32\) at positions \(2, 2\)"):
        stitcher.add(patches, at[:2])
    with pytest.raises(DataError, match="position is not a finite number"):
        stitcher.add(patches[:1], torch.tensor([[torch.nan, 3.0]]))


@pytest.mark.parametrize("options", [{}, {"middle_trim": 8}, {"pad_eval": True}, {"window": "hann"}])
def test_patches_on_whole_pixels_are_placed_as_if_they_were_interpolated(options: dict[str, object]) -> None:
    patches = torch.randn(2, 16, 16, dtype=torch.complex64)
    positions = torch.tensor([[15.5, 16.5], [18.2, 20.9]], dtype=torch.float64)
    weights = torch.rand(16, 16)
    together, apart = (
        Stitcher((40, 40), 16, weights=weights, **options)  # type: ignore[arg-type]
        for _ in range(2)
    )
    together.add(patches, positions)
    for patch, position in zip(patches, positions, strict=True):
        apart.add(patch[None], position[None])
    torch.testing.assert_close(apart.canvas, together.canvas, rtol=1e-5, atol=1e-6)
