"""A small network that learns from the counts themselves what in a refined object is noise.

At low dose a refined object carries the noise of its photons, and neighboring pixels know better. The counts
of the scan are split at random (`physics.counts`): three quarters are refined from a flat object, and a
network that is given this object learns to predict the last quarter of every pattern through the forward
model, by its likelihood. Its photons are independent of the others, so what the network can learn is the
object, not the noise (Noise2Noise: Lehtinen et al., arXiv:1803.04189). No truth and no other scan take part.

Then it is given the object refined on all counts. How much of its answer is taken, from nothing to all, is
decided by patterns that were held out from everything. So an object is denoised as far as unseen counts bear.

Shape legend: M patterns, b patterns of a minibatch, N x N pixels, H x W canvas.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ptycho_torch.data.assemble import on_own_canvas
from ptycho_torch.network.unet import UNet
from ptycho_torch.physics.counts import key_of, split_counts
from ptycho_torch.physics.forward import intensity
from ptycho_torch.reconstruction.engine import Engine, RefineOptions
from ptycho_torch.reconstruction.waves import BARE, Amplitudes

if TYPE_CHECKING:
    from ptycho_torch.data.scan import ScanData

DENOISED_BELOW = 500.0
"""Photons on a pixel of the object above which there is nothing to gain."""
SHOWN = 0.75
"""Part of the counts that is refined, and shown to the network."""
DRAWS, DRAW_EPOCHS = 2, 10
"""How often the counts are split anew, and epochs of refinement of each part."""
MOST_PATTERNS = 1200
"""Patterns in the middle of the scan that the network learns from, so that its time does not grow with it."""
STEPS, PATTERNS_PER_STEP = 200, 32
WIDTHS, RATE, WARM_UP = (24, 48), 3e-3, 30
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_TILE, _HALO = 512, 32
"""A large object is denoised in tiles, which share a border wider than what a pixel of the result sees."""


@dataclass(frozen=True)
class Denoising:
    """What was found out about the noise of an object."""

    weight: float
    """Part of the network's answer in the object; 0 leaves it as refined."""
    misfits: tuple[float, ...]
    """Per weight of `WEIGHTS`: mean negative log likelihood of held-out counts per pixel, less that at 0."""
    seconds: float

    def line(self) -> str:
        """One line for the user."""
        if not self.weight:
            return "denoising was tried and left out: held-out counts are predicted no better with it"
        return (
            f"denoised by {100 * self.weight:.0f} %, by a network that learned from split counts; held-out "
            "counts are predicted better with it (--denoise false leaves the object as refined)"
        )


class Denoiser(nn.Module):
    """Corrects an object, (H, W) complex with a mean phase of 0, by a residual that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(2, 2, WIDTHS, bottom=2, fold=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        nn.init.zeros_(self.unet.head.weight)

    def forward(self, obj: Tensor) -> Tensor:
        """(H, W) -> (H, W)."""
        height, width = obj.shape
        channels = torch.stack([obj.real - 1, obj.imag])[None]
        even = nn.functional.pad(channels, (0, width % 2, 0, height % 2), mode="replicate")
        real, imag = self.unet(even)[0, :, :height, :width]
        return obj + torch.complex(real, imag)


class SplitCounts(Amplitudes):
    """Amplitudes of one part of a scan's counts, `SHOWN` of them or the rest, as one draw splits them."""

    def __init__(self, scan: ScanData, device: torch.device, unit: float, draw: int, *, shown: bool) -> None:
        self.unit, self.draw, self.shown = unit, draw, shown
        super().__init__(scan, device)

    def _read(self, rows: Tensor) -> Tensor:
        counts = (super()._read(rows).square() / self.unit).round()
        key = key_of(self.draw, 0, rows.to(counts.device))
        half = split_counts(counts, key)
        quarter = split_counts(counts - half, key_of(self.draw, 1, rows.to(counts.device)))
        return (self.unit * (counts - quarter if self.shown else quarter)).sqrt()


def denoise(
    scan: ScanData,
    engine: Engine,
    *,
    seed: int = 0,
    step: Callable[[], None] = lambda: None,
) -> Denoising:
    """Denoise the object of a refinement that followed counts and held patterns out, in place.

    scan: as it was refined, with the positions that were found.
    step: called after each draw and each tenth of the training, `rounds()` times in all.
    """
    began = time.perf_counter()
    assert engine.unit is not None
    turn = _mean_phase(engine.frame)
    network = learn(scan, engine, seed=seed, step=step)
    refined = engine.frame * turn.conj()
    answer = _in_tiles(network, refined) - refined
    misfits = []
    for weight in WEIGHTS:
        engine.frame = (refined + weight * answer) * turn
        misfits.append(misfit_of_counts(engine, engine.held_out))
    best = int(np.argmin(misfits))
    engine.frame = (refined + WEIGHTS[best] * answer) * turn
    return Denoising(
        WEIGHTS[best], tuple(value - misfits[0] for value in misfits), time.perf_counter() - began
    )


def rounds() -> int:
    """Return how often `denoise` calls its `step`."""
    return DRAWS + 10


def learn(scan: ScanData, engine: Engine, *, seed: int, step: Callable[[], None]) -> Denoiser:
    """Train a denoiser on the middle of a scan, with the probe of a refinement."""
    unit, device = engine.unit, engine.frame.device
    assert unit is not None
    used = np.setdiff1d(np.arange(len(scan)), engine.held_out.numpy())
    part = on_own_canvas(scan, used[np.sort(scan.subset(used).middle_rows(MOST_PATTERNS))])
    options = RefineOptions(likelihood="counts", settle=engine.settle)
    draws = []
    for draw in range(DRAWS):
        shown = SplitCounts(part, device, unit, 2 * draw + seed, shown=True)
        weak = engine.probe * math.sqrt(SHOWN)
        refined = Engine(part, shown, "flat", weak, engine.placement, options, seed + draw, None, unit)
        for _ in range(DRAW_EPOCHS):
            refined.epoch(DRAW_EPOCHS)
        refined.frame *= _mean_phase(refined.frame).conj()
        hidden = SplitCounts(part, device, unit, 2 * draw + seed, shown=False)
        draws.append((refined, hidden))
        step()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Denoiser().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate)
    rng = np.random.default_rng([seed, 3])
    share = math.sqrt((1 - SHOWN) / SHOWN)
    for number in range(STEPS):
        refined, hidden = draws[int(rng.integers(DRAWS))]
        rows = torch.from_numpy(rng.choice(len(part), min(PATTERNS_PER_STEP, len(part)), replace=False))
        patches, probes = refined.place_on(network(refined.frame), rows)
        loss = _misfit(patches, probes * share, hidden[rows], hidden.good, unit)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (number + 1) % (STEPS // 10) == 0:
            step()
    return network


@torch.no_grad()
def misfit_of_counts(engine: Engine, rows: Tensor) -> float:
    """Return the mean negative log likelihood of the counts of some patterns per pixel, less a constant."""
    total = 0.0
    background = None if engine.background is None else engine.background.intensity
    for part in torch.split(rows, 32):
        patches, probes = engine.place_on(engine.frame, part)
        amplitude, unit = engine.data[part], engine.unit
        assert unit is not None
        total += len(part) * float(_misfit(patches, probes, amplitude, engine.data.good, unit, background))
    return total / len(rows)


def _misfit(
    patches: Tensor,
    probes: Tensor,
    amplitude: Tensor,
    good: Tensor,
    unit: float,
    background: Tensor | None = None,
) -> Tensor:
    detector = torch.fft.fft2(patches[:, None] * probes, norm="ortho")
    expected = intensity(detector)
    if background is not None:
        expected = expected + background
    expected = expected / unit
    loss = expected - amplitude.square() / unit * (expected + BARE * 0.01).log()
    return (loss * good).sum() / (good.sum() * len(patches))


def _rate(step: int) -> float:
    return min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / STEPS)) / 2


def _mean_phase(obj: Tensor) -> Tensor:
    mean = obj.mean()
    return mean / mean.abs().clamp_min(1e-30)


@torch.no_grad()
def _in_tiles(network: Denoiser, obj: Tensor) -> Tensor:
    """Return the network's answer for an object of any size, in bounded memory."""
    result = torch.empty_like(obj)
    height, width = obj.shape
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            y, x = max(top - _HALO, 0), max(left - _HALO, 0)
            answer = network(obj[y : top + _TILE + _HALO, x : left + _TILE + _HALO])
            own = result[top : top + _TILE, left : left + _TILE]
            own.copy_(answer[top - y :, left - x :][: own.shape[0], : own.shape[1]])
    return result
