"""Simulated samples: each follows from its number alone, and its labels explain its pattern."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ptycho_torch.data.dataset import collate
from ptycho_torch.physics import forward as physics
from ptycho_torch.pretraining import samples as module
from ptycho_torch.pretraining.samples import FreshBatches, SimulatedSamples
from ptycho_torch.simulate import make_probe

N = 32
PROBE = make_probe(N, 1e5, modes=2)


def simulated(photons: tuple[float, float] = (1e3, 1e6), count: int = 300, seed: int = 0) -> SimulatedSamples:
    return SimulatedSamples(PROBE, photons, count, seed)


def test_a_sample_is_the_same_whoever_asks_for_it_and_beside_whatever() -> None:
    together = simulated().__getitems__([7, 290, 31])
    alone = simulated().__getitems__([31])
    for name, values in alone.items():
        assert torch.equal(values[0], together[name][2]), name
    assert not torch.equal(simulated(seed=1).__getitems__([31])["labels"], alone["labels"])


def test_every_epoch_has_other_samples_and_all_of_its_own() -> None:
    order = FreshBatches(simulated(count=20), 4, shuffle=True, seed=3)
    epochs = []
    for epoch in (0, 1, 5):
        order.set_epoch(epoch)
        epochs.append(list(order))
    assert [sorted(numbers) for numbers in epochs] == [
        list(range(first, first + 20)) for first in (0, 20, 100)
    ]
    assert epochs[0] != sorted(epochs[0])


def test_padding_of_a_later_epoch_is_told() -> None:
    batch = simulated().__getitems__([~305, 305])
    assert batch["padding"].tolist() == [True, False]
    assert torch.equal(batch["amplitude"][0], batch["amplitude"][1])


def test_loader_processes_make_the_same_samples() -> None:
    def of(workers: int) -> list[torch.Tensor]:
        samples = simulated(count=12)
        order = samples.order(4, shuffle=True, seed=0, shared=False)
        loader = DataLoader(samples, sampler=order, batch_size=4, collate_fn=collate, num_workers=workers)
        return [batch["amplitude"] for batch in loader]

    assert all(torch.equal(one, other) for one, other in zip(of(0), of(1), strict=True))


def test_the_true_patch_gives_the_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEFOCUS_RAD", 0.0)
    monkeypatch.setattr(module, "CURRENT", 0.0)
    batch = simulated(photons=(1e9, 1e9)).__getitems__(range(6))
    probe = torch.from_numpy(PROBE)
    _, rest = physics.split_position(batch["positions_px"], N)
    patches = physics.shift_subpixel(batch["labels"], rest)
    expected = physics.forward_intensity(patches, physics.shift_subpixel(probe, rest.unsqueeze(-2)))
    gap = (expected.sqrt() - batch["amplitude"]).norm() / batch["amplitude"].norm()
    assert float(gap) < 2e-3


def test_focus_and_current_wander_and_the_patch_stays() -> None:
    batch = simulated(photons=(1e9, 1e9)).__getitems__(range(40))
    probe, rest = torch.from_numpy(PROBE), physics.split_position(batch["positions_px"], N)[1]
    patches = physics.shift_subpixel(batch["labels"], rest)
    expected = physics.forward_intensity(patches, physics.shift_subpixel(probe, rest.unsqueeze(-2)))
    measured = batch["amplitude"].square()
    current = (measured.sum(dim=(-2, -1)) / expected.sum(dim=(-2, -1))).flatten()
    assert 0.015 < float(current.std()) < 0.045
    gap = (measured - expected).abs().sum() / expected.sum()
    assert 0.03 < float(gap) < 0.4


def test_noise_is_that_of_the_photons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEFOCUS_RAD", 0.0)
    monkeypatch.setattr(module, "CURRENT", 0.0)
    energy = float(np.sum(np.abs(PROBE) ** 2))
    for photons in (300.0, 3e4):
        batch = simulated(photons=(photons, photons)).__getitems__(range(20))
        counts = batch["amplitude"].square() * (photons / energy)
        assert torch.allclose(counts, counts.round(), atol=0.02)
        clean = simulated(photons=(1e10, 1e10)).__getitems__(range(20))["amplitude"].square() * (
            photons / energy
        )
        excess = (counts - clean).square().sum() / clean.sum()
        assert float(excess) == pytest.approx(1, abs=0.1)


def test_doses_spread_evenly_over_their_logarithm() -> None:
    energy = float(np.sum(np.abs(PROBE) ** 2))
    batch = simulated(photons=(100, 1e6)).__getitems__(range(80))
    # One photon is energy / photons: the smallest step above nothing.
    steps = torch.where(batch["amplitude"] > 0, batch["amplitude"].square(), torch.inf).amin(dim=(-2, -1))
    doses = (energy / steps).log10().flatten()
    assert 1.9 < float(doses.min()) < 3
    assert 4 < float(doses.max()) < 6.1


def test_objects_of_two_epochs_at_most_are_kept() -> None:
    samples = simulated(count=300)
    for first in (0, 300, 600, 900):
        samples.__getitems__(range(first, first + 300, 25))
    held = samples._object.cache_info()
    assert held.currsize <= held.maxsize == 2 * -(-300 // module.PATCHES)
