"""The background: it starts low, takes what the waves do not explain, and stays smooth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ptycho_torch.reconstruction.background import Background
from ptycho_torch.reconstruction.waves import Amplitudes, compare
from ptycho_torch.simulate import diffract, simulate_scan


def test_with_the_true_object_and_probe_the_background_is_found_smooth_and_past_bad_pixels() -> None:
    scan = simulate_scan(n=32, patterns=64, photons=1e6, seed=2)
    assert scan.object_guess is not None
    assert scan.probe is not None
    y, x = np.mgrid[:32, :32] - 16.0
    under = 3 + 4 * np.exp(-(y**2 + x**2) / 2 / 12**2)
    origin = np.round(scan.origins_px).astype(int)
    clean = diffract(scan.object_guess, scan.probe, origin + 15.5)
    counts = np.random.default_rng(0).poisson(clean + under)
    counts[:, 5, 7] = 60000
    good = scan.good_pixels.copy()
    good[5, 7] = False
    dim = replace(scan, patterns=counts.astype(np.uint32), good_pixels=good)
    data = Amplitudes(dim, torch.device("cpu"))
    background = Background(data)
    canvas = torch.from_numpy(scan.object_guess)
    patches = torch.stack([canvas[a : a + 32, b : b + 32] for a, b in origin])
    probe = torch.from_numpy(scan.probe)[None]
    for _ in range(6):
        background.collect(compare(patches, probe, data[torch.arange(64)], data.good, background.intensity))
        background.step()
    found = torch.fft.fftshift(background.intensity).numpy()
    assert np.abs(found - under)[::31, ::31].max() < 1
    assert np.abs(np.diff(found, axis=0)).max() < 0.5
    assert abs(found.mean() - under.mean()) < 0.6


def test_where_there_is_none_hardly_any_is_found() -> None:
    scan = simulate_scan(n=32, patterns=64, photons=1e4, seed=2)
    data = Amplitudes(scan, torch.device("cpu"))
    start = Background(data).intensity
    assert float(start.max()) < 1e-2 * float(np.asarray(scan.patterns).mean())
    assert float(start.min()) > 0
