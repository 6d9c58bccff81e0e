"""Batches of patches add up to the object, and one that is no object is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_exec.errors import DataError
from ptycho_torch.config import InferenceConfig
from ptycho_torch.workflows.stitching import ObjectWriter
from tests.torch.workflows.tiny_runs import settings


def written(scan: Any, patches: torch.Tensor, **inference: Any) -> ObjectWriter:
    """Return a writer that was given patches, in two batches, at the scan's positions."""
    module = SimpleNamespace(probe=torch.from_numpy(scan.probe))
    writer = ObjectWriter(scan, module, InferenceConfig(**inference), settings())
    positions = torch.from_numpy(scan.positions_px)
    for rows in (slice(0, 20), slice(20, None)):
        made = {"patches": patches[rows], "positions_px": positions[rows]}
        writer.add(made)
    writer.finish()
    return writer


def test_batches_add_up_to_the_object_that_their_patches_were_cut_from(scan: Any) -> None:
    on_pixels = replace(scan, positions_px=np.round(scan.positions_px - 0.5) + 0.5)
    corners = (on_pixels.positions_px - 15.5).astype(int)
    cut = np.stack([scan.object_guess[y : y + 32, x : x + 32] for y, x in corners])
    writer = written(on_pixels, torch.from_numpy(cut.astype(np.complex64)), align_phases=False)
    made = writer.result()
    covered = made.coverage.numpy() > 0
    assert made.n_patches == len(scan)
    assert covered.mean() > 0.2
    np.testing.assert_allclose(made.object.numpy()[covered], scan.object_guess[covered], atol=1e-5)
    assert writer.moved_rad == 0


def test_an_object_that_is_not_finite_or_not_covered_is_refused(scan: Any) -> None:
    patches = torch.ones(len(scan), 32, 32, dtype=torch.complex64)
    writer = written(scan, patches, align_phases=False)
    assert writer.result().n_patches == len(scan)
    height, width = scan.canvas_shape
    writer.stitcher.canvas[0, height // 2, width // 2] = float("nan")  # as another process may add it
    with pytest.raises(DataError, match="stitched object has values that are not finite"):
        writer.result()
    empty = ObjectWriter(
        scan, SimpleNamespace(probe=torch.from_numpy(scan.probe)), InferenceConfig(), settings()
    )
    with pytest.raises(DataError, match="no patch covers the canvas"):
        empty.result()
