"""The engine's plan: regions, minibatches, and how steps settle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_torch.reconstruction import engine
from ptycho_torch.reconstruction.refine import RefineOptions, RefineResult, refine_object
from ptycho_torch.simulate import simulate_scan


def test_a_minibatch_lights_a_quarter_of_the_field_within_bounds() -> None:
    probe = torch.zeros(2, 32, 32, dtype=torch.complex64)
    probe[0, 10:20, 10:20] = 1 + 1j  # lights 100 pixels
    counts = [engine.default_batch_size(probe, 22 + side, 22 + side) for side in (10, 60, 80, 400)]
    assert counts == [8, 10, 18, 32]
    assert engine.default_batch_size(probe / 7, 82, 82) == 10


def test_regions_are_compact_and_hold_every_pattern_once() -> None:
    corners = torch.randint(0, 2000, (5000, 2), generator=torch.Generator().manual_seed(0))
    regions = engine.split_scan(corners)
    assert torch.equal(torch.sort(torch.cat(regions)).values, torch.arange(5000))
    spans = torch.stack([corners[rows].amax(dim=0) - corners[rows].amin(dim=0) for rows in regions])
    assert int(spans.max()) <= engine.REGION_SIDE_PX
    assert max(len(rows) for rows in regions) <= engine.REGION_PATTERNS
    same_place = torch.zeros(5000, 2, dtype=torch.long)
    assert len(engine.split_scan(same_place)) == 1


@pytest.mark.parametrize("refine_probe", [False, "auto", True])
def test_probes_are_kept_only_while_they_stay_and_give_the_same(monkeypatch, refine_probe) -> None:
    scan = simulate_scan(n=32, patterns=49, seed=0)
    probe = scan.probe * (1 if refine_probe is False else np.exp(6j * np.linspace(-1, 1, 32)[:, None] ** 2))
    kept = []
    shifted = engine.Engine._shifted_probes
    monkeypatch.setattr(engine.Engine, "_shifted_probes", lambda self: kept.append(1) or shifted(self))

    def refined() -> RefineResult:
        options = RefineOptions(refine_probe=refine_probe)
        return refine_object(scan, "flat", 8, probe=probe, options=options, placement="probe")

    with_kept = refined()
    assert len(kept) == (refine_probe is not True)
    monkeypatch.setattr(engine, "CACHE_BYTES", 0)
    without = refined()
    assert len(kept) == (refine_probe is not True)
    assert refine_probe != "auto" or with_kept.probe_decision.refined
    np.testing.assert_allclose(with_kept.object, without.object, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(with_kept.losses, without.losses, rtol=1e-4)
