"""Objects of many kinds, drawn at random, for a network that is to see objects it was never shown.

Each is made of one or two textures: clouds of a power-law spectrum, domains with walls, rectangles as of a
circuit, ovals as of cells and particles, stripes and spokes. Its absorption and its phase follow the same
texture, related ones or different ones, from none at all to strong ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float64]
Texture = Callable[[np.random.Generator, int], Image]

MOST_ABSORPTION = 0.8
"""Amplitude that the densest part of an object takes away, at most."""
MOST_PHASE_RAD = 4.5
"""Difference of phase between the ends of a texture, at most."""
MOST_SHAPES = 250
"""Shapes of one texture, at most: more would take longer than a network needs to learn from it."""


def random_object(rng: np.random.Generator, side: int) -> NDArray[np.complex64]:
    """Return a random object (side, side); its mean intensity is 1, the unit in which a network works."""
    absorption = random_texture(rng, side)
    relation = rng.random()
    if relation < 0.4:
        phase = absorption
    elif relation < 0.7:
        part = rng.random()
        phase = part * absorption + (1 - part) * random_texture(rng, side)
    else:
        phase = random_texture(rng, side)
    strength = rng.uniform(0, MOST_ABSORPTION) * (rng.random() < 0.85)
    turn = rng.uniform(0.2, MOST_PHASE_RAD) * rng.choice((-1, 1)) * (rng.random() < 0.93)
    found = (1 - strength * absorption) * np.exp(1j * turn * phase)
    return np.asarray(found / np.sqrt(np.mean(np.abs(found) ** 2)), dtype=np.complex64)


def random_texture(rng: np.random.Generator, side: int) -> Image:
    """Return a texture (side, side) of values from 0 to 1, half of them blends of two kinds."""
    one = _texture(rng, side)
    if rng.random() < 0.5:
        return one
    part = rng.uniform(0.1, 0.6)
    return (1 - part) * one + part * _texture(rng, side)


def clouds(rng: np.random.Generator, side: int) -> Image:
    """Smooth variation without scale, as of biological matter."""
    return np.clip(0.5 + _power_law(rng, side, rng.uniform(1.3, 3), (128, 64)) / 5, 0, 1)


def domains(rng: np.random.Generator, side: int) -> Image:
    """Plateaus of two to four levels with winding walls, sharp or soft, as of magnets and etched films."""
    field = _power_law(rng, side, rng.uniform(1.2, 3), (96, 48, 30))
    wall, levels = rng.uniform(0.02, 0.5), np.sort(rng.uniform(-1.2, 1.2, rng.integers(1, 4)))
    steps = np.sum([np.tanh((field - level) / wall) for level in levels], axis=0)
    return _from_0_to_1(_blurred(steps, rng.uniform(0, 0.7)))


def rectangles(rng: np.random.Generator, side: int) -> Image:
    """Rectangles over each other, all along two directions or along any, as of a circuit."""
    return _shapes(rng, side, lambda along, across: np.minimum(1 - np.abs(along), 1 - np.abs(across)))


def ovals(rng: np.random.Generator, side: int) -> Image:
    """Ovals over each other, as of cells and particles."""
    return _shapes(rng, side, lambda along, across: 1 - np.hypot(along, across))


def stripes(rng: np.random.Generator, side: int) -> Image:
    """Stripes, bent a little, or spokes around a center."""
    y, x = np.mgrid[:side, :side]
    if rng.random() < 0.5:
        angle, period = rng.uniform(0, math.pi), rng.uniform(5, 40)
        turns = (x * math.cos(angle) + y * math.sin(angle)) / period
        turns = turns + rng.uniform(0, 0.3) * _power_law(rng, side, 2, (96,))
    else:
        center = rng.uniform(0, side, 2)
        turns = np.arctan2(y - center[0], x - center[1]) * rng.integers(8, 40) / (2 * math.pi)
    wave = np.tanh(np.sin(2 * math.pi * turns) / rng.uniform(0.1, 1))
    return _from_0_to_1(_blurred(wave, rng.uniform(0.3, 0.8)))


KINDS: tuple[Texture, ...] = (clouds, domains, domains, rectangles, ovals, stripes)
"""Kinds of texture, each as often as it is named."""


def _texture(rng: np.random.Generator, side: int) -> Image:
    return KINDS[rng.integers(len(KINDS))](rng, side)


def _power_law(rng: np.random.Generator, side: int, power: float, coarsest: tuple[int, ...]) -> Image:
    """Return a field of unit spread whose amplitude falls with frequency^-power, above a lowest frequency."""
    size = rng.choice((0, *coarsest))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = 1
    spectrum = frequency**-power
    spectrum[0, 0] = 0
    if size:
        spectrum[frequency < 1 / size] = 0
    field = np.fft.irfft2(spectrum * np.fft.rfft2(rng.standard_normal((side, side))), s=(side, side))
    return np.asarray(field / field.std())


def _blurred(image: Image, width_px: float) -> Image:
    """Return the image as through a Gaussian of this standard deviation, periodic at its edges."""
    side = len(image)
    rows = np.exp(-2 * (math.pi * width_px * np.fft.fftfreq(side)) ** 2)
    columns = np.exp(-2 * (math.pi * width_px * np.fft.rfftfreq(side)) ** 2)
    return np.fft.irfft2(np.fft.rfft2(image) * rows[:, None] * columns[None, :], s=image.shape)


def _from_0_to_1(image: Image) -> Image:
    return np.asarray((image - image.min()) / max(float(np.ptp(image)), 1e-9))


def _shapes(rng: np.random.Generator, side: int, inside: Callable[[Image, Image], Image]) -> Image:
    """Lay shapes over each other: many small and few large ones, of few values or of any.

    inside: positive within the shape, 1 at its middle, from coordinates that are 1 at its ends.
    """
    image = np.full((side, side), rng.random())
    shortest, longest = rng.uniform(2, 8), rng.uniform(8, 45)
    values = rng.random(rng.integers(2, 5)) if rng.random() < 0.4 else None
    grid = None if rng.random() < 0.5 else rng.uniform(0, math.pi)
    area, covered = rng.uniform(1, 4) * side**2, 0.0
    for _ in range(MOST_SHAPES):
        # Half-lengths follow a power law with exponent -3, cut off at both ends.
        half = (shortest**-2 + rng.random() * (longest**-2 - shortest**-2)) ** -0.5
        width = half * rng.uniform(0.15, 1)
        angle = rng.uniform(0, math.pi) if grid is None else grid + rng.integers(2) * math.pi / 2
        center, reach = rng.uniform(0, side, 2), math.ceil(1.5 * half) + 2
        low = np.maximum(center.astype(int) - reach, 0)
        high = np.minimum(center.astype(int) + reach + 1, side)
        y = np.arange(low[0], high[0])[:, None] - center[0]
        x = np.arange(low[1], high[1])[None, :] - center[1]
        along = (x * math.cos(angle) + y * math.sin(angle)) / half
        across = (y * math.cos(angle) - x * math.sin(angle)) / width
        cover = np.clip(inside(along, across) * width + 0.5, 0, 1)
        value = rng.random() if values is None else rng.choice(values)
        part = image[low[0] : high[0], low[1] : high[1]]
        part += cover * (value * (1 + 0.15 * rng.standard_normal() * along) - part)
        covered += 4 * half * width
        if covered > area:
            break
    return np.clip(_blurred(image, rng.uniform(0, 0.8)), 0, 1)
