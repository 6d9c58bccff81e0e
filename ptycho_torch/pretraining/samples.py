"""Simulated patterns of random objects under one beam, made when they are asked for.

Shape legend: B samples, P modes, N x N pixels.

Sample number k is always the same, whoever asks for it and in which order: its object is number
k // `PATCHES`, and everything else of it follows from (seed, k). So a training of any length holds the
objects of one epoch in memory, and a resumed one sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.data.dataset import Batch, GlobalBatches, PtychoDataset
from ptycho_torch.physics import forward as physics
from ptycho_torch.pretraining.textures import random_object

PATCHES = 128
"""Patches that are cut out of one object."""
DEFOCUS_RAD = 0.2
"""A beam's focus wanders: rms of the phase that defocus adds to the probe at most, weighted by intensity."""
CURRENT = 0.05
"""So does its current: each pattern is brighter or dimmer than the probe says by up to this part."""
MARGIN_PX, LEAST_MARGIN = 96, 0.5
"""An object is so many pixels wider than a patch, and at least by this part of it."""


class FreshBatches(GlobalBatches):
    """In each epoch other samples: epoch e of n samples has those from e n to (e + 1) n."""

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        for number in super().__iter__():
            yield number + first if number >= 0 else number - first


class SimulatedSamples(PtychoDataset):
    """Patterns of random objects, each of a dose of its own, with the true patches as labels.

    Positions lie within half a pixel of the center of a patch: all that a single pattern knows of its place.

    Args:
        probe: (P, N, N) complex, in whose unit the amplitudes are.
        photons: fewest and most photons of a pattern; their logarithm is uniform.
        count: samples of an epoch.
        seed: of everything.

    What a beam does in the course of days is in the patterns and not in the probe that the network knows: its
    focus and its current wander (`DEFOCUS_RAD`, `CURRENT`).
    """

    def __init__(
        self, probe: NDArray[np.complex64], photons: tuple[float, float], count: int, seed: int = 0
    ) -> None:
        self._energy = float(np.sum(np.abs(probe) ** 2, dtype=np.float64))
        wave = torch.from_numpy(np.asarray(probe / np.sqrt(self._energy), dtype=np.complex64))
        self._spectrum = torch.fft.fft2(wave)
        self._bend = _defocus(self._spectrum)
        self._photons, self._count, self._seed = photons, count, seed
        # Shuffled, an epoch asks for all its objects in turn; those of the one before may be asked for last.
        self._object = lru_cache(maxsize=2 * -(-count // PATCHES))(self._draw_object)

    def __len__(self) -> int:
        return self._count

    @property
    def channels(self) -> int:
        """One: a pattern is predicted alone."""
        return 1

    @property
    def n_pixels(self) -> int:
        """N, the side of a pattern."""
        return int(self._spectrum.shape[-1])

    def order(self, batch_size: int, *, shuffle: bool, seed: int, shared: bool) -> GlobalBatches:
        """Return the order in which a loader asks for samples: in each epoch for others."""
        return FreshBatches(self, batch_size, shuffle=shuffle, seed=seed, shared=shared)

    def _draw_object(self, number: int) -> NDArray[np.complex64]:
        side = self.n_pixels + max(MARGIN_PX, round(LEAST_MARGIN * self.n_pixels))
        return random_object(np.random.default_rng([self._seed, 2, number]), side)

    @torch.no_grad()
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return a batch of samples; ~k is sample k as padding."""
        asked = torch.as_tensor(indices, dtype=torch.int64)
        numbers = torch.where(asked < 0, ~asked, asked)
        draws = [np.random.default_rng([self._seed, 3, number]) for number in numbers.tolist()]
        cut = [self._patch(rng, number) for rng, number in zip(draws, numbers.tolist(), strict=True)]
        patches = torch.from_numpy(np.stack(cut))[:, None]
        shift = _drawn([rng.uniform(-0.5, 0.5, (1, 2)) for rng in draws])
        defocus = _drawn([rng.uniform(-DEFOCUS_RAD, DEFOCUS_RAD, (1, 1, 1, 1)) for rng in draws])
        current = _drawn([rng.uniform(1 - CURRENT, 1 + CURRENT, (1, 1, 1)) for rng in draws])
        photons = [math.exp(rng.uniform(*np.log(self._photons))) for rng in draws]
        n = self.n_pixels
        ramp = physics.fourier_ramp(shift, (n, n), torch.float32).unsqueeze(-3)
        probe = torch.fft.ifft2(self._spectrum * ramp * torch.polar(torch.ones(()), defocus * self._bend))
        expected = (current * physics.forward_intensity(patches, probe)).numpy()
        counts = [
            rng.poisson(dose * one) / dose for rng, dose, one in zip(draws, photons, expected, strict=True)
        ]
        batch = {
            # As if measured for as long as the probe says: the dose is no property of an object.
            "amplitude": _drawn(counts).mul_(self._energy).sqrt_(),
            "positions_px": (n - 1) / 2 + shift,
            "offsets_px": torch.zeros_like(shift),
            "index": numbers[:, None],
            "labels": physics.shift_subpixel(patches, -shift),
        }
        if bool((asked < 0).any()):
            batch["padding"] = asked < 0
        return batch

    def _patch(self, rng: np.random.Generator, number: int) -> NDArray[np.complex64]:
        """Cut a patch out of the sample's object, turned and mirrored at random."""
        whole, n = self._object(number // PATCHES), self.n_pixels
        row, column = rng.integers(0, len(whole) - n + 1, 2)
        patch = np.rot90(whole[row : row + n, column : column + n], int(rng.integers(4)))
        return np.asarray(patch.T if rng.random() < 0.5 else patch)


def _drawn(values: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.stack(values).astype(np.float32))


def _defocus(spectrum: Tensor) -> Tensor:
    """Phase (N, N) of defocus over the spectrum (P, N, N) of a beam; its rms, weighted by intensity, is 1."""
    frequency = torch.fft.fftfreq(spectrum.shape[-1]).square()
    square = frequency[:, None] + frequency[None, :]
    weight = physics.intensity(spectrum)
    weight = weight / weight.sum()
    bend: Tensor = square - (weight * square).sum()
    spread: Tensor = (weight * bend.square()).sum().sqrt()
    return bend / spread.clamp_min(torch.finfo(bend.dtype).tiny)
