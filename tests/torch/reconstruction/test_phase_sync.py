"""Patches of a known object with invented phases get a common phase back, in bounded memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ptycho_torch.physics import forward as physics
from ptycho_torch.reconstruction import phase_sync
from ptycho_torch.reconstruction.phase_sync import PhaseAligner
from ptycho_torch.reconstruction.stitch import Stitcher

N, CANVAS = 32, (96, 128)


@pytest.fixture
def scene() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Object with slow and strong phase changes, its patches on whole pixels, their positions, weights."""
    y, x = torch.meshgrid(*(torch.linspace(0, 1, extent) for extent in CANVAS), indexing="ij")
    obj = torch.polar(1 - 0.3 * x * y, 3 * torch.sin(5 * x) + 2 * torch.cos(4 * y))
    corners = torch.cartesian_prod(torch.arange(0, 65, 6), torch.arange(0, 97, 6))
    patches = torch.stack([obj[a : a + N, b : b + N] for a, b in corners.tolist()])
    radius = (torch.arange(N) - (N - 1) / 2).square()
    weights = torch.exp(-(radius[:, None] + radius) / (2 * 6.0**2))
    return obj, patches, corners + (N - 1) / 2, weights


def stitched(patches: Tensor, positions: Tensor, weights: Tensor, *, align: bool, batch: int = 16) -> Tensor:
    stitcher = Stitcher(CANVAS, N, weights=weights)
    aligner = PhaseAligner(CANVAS, N, weights)
    for part, place in zip(patches.split(batch), positions.split(batch), strict=True):
        stitcher.add(aligner.align(part, place) if align else part, place)
    if align:
        for rows, factor in aligner.fields():
            stitcher.rotate_phase(factor, rows)
    return stitcher.result().object


def field(aligner: PhaseAligner) -> Tensor:
    return torch.cat([factor for _, factor in aligner.fields()])


def error(image: Tensor, truth: Tensor) -> float:
    """NRMSE after one global phase, over the covered part."""
    inside = image != 0
    rotation = torch.vdot(image[inside], truth[inside])
    gap = image[inside] * rotation / rotation.abs() - truth[inside]
    return float(gap.abs().square().mean().sqrt() / truth[inside].abs().square().mean().sqrt())


@pytest.mark.parametrize("batch", [1, 16, 1000])
def test_random_phases_are_undone_whatever_the_batches(scene, batch):
    obj, patches, positions, weights = scene
    generator = torch.Generator().manual_seed(1)
    phases = 2 * math.pi * torch.rand(len(patches), generator=generator)
    wrong = patches * torch.polar(torch.ones_like(phases), phases)[:, None, None]
    assert error(stitched(wrong, positions, weights, align=False), obj) > 0.5
    assert error(stitched(wrong, positions, weights, align=True, batch=batch), obj) < 0.05


def test_patches_without_their_mean_phase_give_the_slow_phase_back(scene):
    """What a network predicts that sees one pattern at a time."""
    obj, patches, positions, weights = scene
    mean = (weights * patches).sum(dim=(1, 2))
    flattened = patches * (mean.conj() / mean.abs())[:, None, None]
    assert error(stitched(flattened, positions, weights, align=False), obj) > 0.3
    assert error(stitched(flattened, positions, weights, align=True), obj) < 0.05


def test_patches_that_agree_are_hardly_changed(scene):
    obj, patches, positions, weights = scene
    image = stitched(patches, positions, weights, align=True)
    assert error(image, obj) < 0.02
    flat = torch.ones_like(patches)
    torch.testing.assert_close(
        stitched(flat, positions, weights, align=True), stitched(flat, positions, weights, align=False)
    )


def test_a_scan_in_random_order_is_aligned_as_well(scene):
    obj, patches, positions, weights = scene
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(patches)))
    mean = (weights * patches).sum(dim=(1, 2))
    flattened = patches * (mean.conj() / mean.abs())[:, None, None]
    assert error(stitched(flattened[order], positions[order], weights, align=True), obj) < 0.05


def test_a_large_noisy_scan_in_random_order_is_aligned_as_in_the_order_of_its_rows():
    """Phases that grow from many places at a time meet at borders; those go, too."""
    canvas = (320, 320)
    y, x = torch.meshgrid(*(torch.linspace(0, 1, extent) for extent in canvas), indexing="ij")
    obj = torch.polar(1 - 0.3 * x * y, 3 * torch.sin(13 * x) + 2 * torch.cos(11 * y))
    corners = torch.cartesian_prod(torch.arange(0, 289, 5), torch.arange(0, 289, 5))
    radius = (torch.arange(N) - (N - 1) / 2).square()
    weights = torch.exp(-(radius[:, None] + radius) / (2 * 6.0**2))
    generator = torch.Generator().manual_seed(0)
    errors = []
    for order in (torch.arange(len(corners)), torch.randperm(len(corners), generator=generator)):
        stitcher, aligner = Stitcher(canvas, N, weights=weights), PhaseAligner(canvas, N, weights)
        for part in corners[order].split(64):
            patches = torch.stack([obj[a : a + N, b : b + N] for a, b in part.tolist()])
            patches += 0.3 * torch.randn(patches.shape, dtype=torch.complex64, generator=generator)
            mean = (weights * patches).sum(dim=(1, 2))
            patches *= (mean.conj() / mean.abs())[:, None, None]
            stitcher.add(aligner.align(patches, part + (N - 1) / 2), part + (N - 1) / 2)
        for rows, factor in aligner.fields():
            stitcher.rotate_phase(factor, rows)
        errors.append(error(stitcher.result().object, obj))
    assert errors[0] < 0.15
    assert errors[1] < 0.25


def test_two_parts_of_a_scan_that_do_not_touch_are_each_aligned(scene):
    _, patches, positions, weights = scene
    left, right = positions[:, 1] < 30, positions[:, 1] > 97
    both = left | right
    aligner = PhaseAligner(CANVAS, N, weights)
    rotated = aligner.align(patches[both] * 1j, positions[both])
    torch.testing.assert_close(rotated, patches[both] * 1j, atol=0.03, rtol=0)


def test_memory_per_patch_is_a_small_part_of_the_patch(scene):
    _, patches, positions, weights = scene
    aligner = PhaseAligner(CANVAS, N, weights)
    aligner.align(patches, positions)
    kept = aligner._kept[0]
    per_patch = sum(t.element_size() * t[0].numel() for t in (kept._parts, kept._corners))
    assert per_patch < 0.16 * patches.element_size() * N * N


def test_patches_are_kept_in_pieces_that_make_no_difference(scene, monkeypatch):
    _, patches, positions, weights = scene
    whole, pieces = (PhaseAligner(CANVAS, N, weights) for _ in range(2))
    whole.align(patches, positions)
    monkeypatch.setattr(phase_sync, "AT_ONCE", 32)
    for part, place in zip(patches.split(7), positions.split(7), strict=True):
        pieces.align(part, place)
    assert [len(kept.sums) for kept in whole._kept] == [len(patches)]
    assert {len(kept.sums) for kept in pieces._kept[:-1]} == {32}
    torch.testing.assert_close(field(pieces), field(whole), rtol=1e-5, atol=1e-5)


def test_patches_beyond_the_canvas_are_accepted(scene):
    _, patches, _, weights = scene
    aligner = PhaseAligner(CANVAS, N, weights)
    far = torch.tensor([[-200.0, -200.0], [500.0, 500.0], [-10.0, 40.0]])
    assert torch.isfinite(torch.view_as_real(aligner.align(patches[:3], far))).all()
    assert field(aligner).shape == CANVAS


@pytest.mark.parametrize("rows", [1, 24, 40])
def test_the_phase_left_is_the_same_however_many_rows_it_comes_in(scene, monkeypatch, rows):
    _, patches, positions, weights = scene
    aligner = PhaseAligner(CANVAS, N, weights)
    phases = 2 * math.pi * torch.rand(len(patches), generator=torch.Generator().manual_seed(1))
    aligner.align(patches * torch.polar(torch.ones_like(phases), phases)[:, None, None], positions)
    ((all_rows, whole),) = aligner.fields()
    assert all_rows == slice(0, CANVAS[0])
    monkeypatch.setattr(phase_sync, "ROWS_AT_ONCE", rows)
    parts = list(aligner.fields())
    assert len(parts) > 2
    assert [row for part, _ in parts for row in range(CANVAS[0])[part]] == list(range(CANVAS[0]))
    torch.testing.assert_close(torch.cat([factor for _, factor in parts]), whole)


def test_no_patches_rotate_nothing():
    aligner = PhaseAligner(CANVAS, N, torch.ones(N, N))
    assert (field(aligner) == 1).all()
    assert aligner.moved_rad == 0


def test_a_group_with_phases_of_its_own_merges_as_one_without(scene):
    _, patches, positions, weights = scene
    group, offsets = patches[None, :4], positions[None, :4] - positions[:4].mean(dim=0).round()
    rotated = group * torch.polar(torch.ones(4), torch.tensor([0.0, 1.0, -1.0, 0.5]))[None, :, None, None]
    merged = physics.overlap_constraint(group, offsets, weights)
    again = physics.overlap_constraint(physics.common_phase(rotated, offsets, weights), offsets, weights)
    illuminated = weights > 0.1
    plain = physics.overlap_constraint(rotated, offsets, weights)
    size = merged[..., illuminated].abs()
    assert (again[..., illuminated].abs() - size).abs().max() < 0.25 * (
        plain[..., illuminated].abs() - size
    ).abs().max()
