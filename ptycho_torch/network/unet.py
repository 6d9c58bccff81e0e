"""From a diffraction pattern and the probe to an object patch: a small U-net between two physical steps.

Shape legend: B samples, C patterns of a group, P probe modes, N x N pixels, F feature channels.

    measured amplitude --(modulus update of a flat object)--> first guess --(U-net)--> amplitude, phase
    --(modulus updates)--> patch

The first guess, the measured modulus with the phase that the bare probe has on the detector, already holds
the sub-pixel shift of the probe and most of the fine detail; the U-net has to repair it rather than learn the
Fourier transform. The last updates put back detail that the U-net smoothed. Each pattern is treated by itself
with the same weights, so a prediction does not depend on its group or batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ptycho_exec.errors import SettingsError
from ptycho_torch.config import ModelConfig
from ptycho_torch.physics.forward import from_polar
from ptycho_torch.physics.modulus import ModulusUpdates

_FEATURES = 3
"""Square root of the measured amplitude (its range is wide); real and imaginary part of the first guess."""
_TRAINING_STEP = 0.7
_PREDICTION_STEP = 1.0
_PREDICTION_MOMENTUM = 0.7
"""The first few updates then overshoot, and the average of overlapping patches gains by it."""
_FOLD = 4
"""Blocks of 4 x 4 pixels become channels: far less time than full-size maps, at equal quality."""
_BOTTOM = 3
"""Convolutions at the coarsest level: they cost little there, and the phase gains by what they see."""
_REFERENCE_SIDE = 64
"""`ModelConfig.depth` counts levels for patterns of this side; each doubling of the side adds one."""


class UNet(nn.Module):
    """Convolutions on a pixel-unshuffled grid, with skips that add up levels of equal size.

    Adding instead of concatenating halves the dearest convolution, at equal quality.

    Args:
        inputs: feature channels F.
        outputs: channels that come out.
        widths: channels of each level, finest first.
        bottom: convolutions at the coarsest level; the others have one.
        fold: side of the pixel blocks that are folded into channels on entry and unfolded at the end.
    """

    def __init__(self, inputs: int, outputs: int, widths: Sequence[int], bottom: int, fold: int) -> None:
        super().__init__()
        coarser = list(pairwise(widths))
        self.fold = fold
        self.stem = _convolution(inputs * fold**2, widths[0])
        counts = [1] * len(coarser) + [bottom]
        self.encoders = nn.ModuleList(
            _convolution(width, width, count) for width, count in zip(widths, counts, strict=True)
        )
        self.downs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(fine, coarse, 2, stride=2), nn.ReLU(inplace=True))
            for fine, coarse in coarser
        )
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(coarse, 4 * fine, 1), nn.PixelShuffle(2)) for fine, coarse in coarser
        )
        self.decoders = nn.ModuleList(_convolution(fine, fine) for fine, _ in coarser)
        self.head = nn.Conv2d(widths[0], outputs * fold**2, 3, padding=1)
        # He et al. 2015 for the rectified layers; the head starts near zero, which means a flat object.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.head.weight, std=1e-3)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F, N, N) -> (B, outputs, N, N)."""
        level = self.encoders[0](self.stem(fold_blocks(features, self.fold)))
        skips = []
        for down, encoder in zip(self.downs, self.encoders[1:], strict=True):
            skips.append(level)
            level = encoder(down(level))
        for up, decoder, skip in zip(self.ups[::-1], self.decoders[::-1], skips[::-1], strict=True):
            level = decoder(up(level) + skip)
        return unfold_blocks(self.head(level), self.fold)


def fold_blocks(images: Tensor, side: int) -> Tensor:
    """Turn blocks of pixels into channels, (B, F, N, N) -> (B, F side^2, N/side, N/side), channels last.

    As `torch.nn.PixelUnshuffle`, whose result would have to be copied to bring the channels last.
    """
    folded: Tensor = _Folded.apply(images, side)  # type: ignore[no-untyped-call]
    return folded


def unfold_blocks(channels: Tensor, side: int) -> Tensor:
    """Turn channels back into blocks of pixels: the inverse of `fold_blocks`."""
    unfolded: Tensor = _Unfolded.apply(channels, side)  # type: ignore[no-untyped-call]
    return unfolded


class _Folded(torch.autograd.Function):
    """Blocks to channels; the derivative is the way back."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, side: int) -> Tensor:
        ctx.side = side
        count, features, height, width = images.shape
        runs, length = _in_runs(images.contiguous(), side)
        blocks = runs.view(count, features, height // side, side, width // side, length)
        folded = blocks.permute(0, 2, 4, 1, 3, 5).contiguous().view(images.dtype)
        return folded.view(count, height // side, width // side, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return unfold_blocks(gradient, ctx.side), None


class _Unfolded(torch.autograd.Function):
    """Channels to blocks; the derivative is the way back."""

    @staticmethod
    def forward(ctx: Any, channels: Tensor, side: int) -> Tensor:
        ctx.side = side
        count, _, height, width = channels.shape
        runs, length = _in_runs(channels.permute(0, 2, 3, 1).contiguous(), side)
        blocks = runs.view(count, height, width, -1, side, length)
        unfolded = blocks.permute(0, 3, 1, 4, 2, 5).contiguous().view(channels.dtype)
        return unfolded.view(count, -1, height * side, width * side)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return fold_blocks(gradient, ctx.side), None


def _in_runs(numbers: Tensor, side: int) -> tuple[Tensor, int]:
    """Return contiguous numbers with each run of `side` as one wide number, and the length of a run then.

    Only its bytes are moved: on a CPU several times as fast as one number after the other.
    """
    wide = _WIDE.get(side * numbers.element_size())
    if wide is None or numbers.device.type != "cpu" or torch.compiler.is_compiling():
        return numbers, side
    return numbers.view(wide), 1


_WIDE = {4: torch.int32, 8: torch.int64, 16: torch.complex128}
"""Bytes -> a type that has as many."""


def _convolution(inputs: int, outputs: int, count: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (inputs, *[outputs] * (count - 1)):
        layers += [nn.Conv2d(before, outputs, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class PatchNetwork(nn.Module):
    """Predict the object patch under the probe from one diffraction pattern; amplitudes are near 1."""

    def __init__(self, config: ModelConfig, n: int) -> None:
        super().__init__()
        fold, depth = network_shape(n, config.depth)
        widths = [config.n_filters * 2**level for level in range(depth)]
        # Convolutions are faster with channels last, about a tenth faster on CPUs and more on GPUs.
        self.unet = UNet(_FEATURES, 2, widths, _BOTTOM, fold)
        self.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.amp_activation = config.amp_activation

    def forward(
        self,
        measured: Tensor,
        probe: Tensor,
        good_pixels: Tensor,
        updates: int,
        *,
        predicting: bool = False,
    ) -> Tensor:
        """Predict patches.

        Args:
            measured: (B, C, N, N) amplitude.
            probe: (B, C, P, N, N) complex, shifted by the sub-pixel part of each position, in the units
                of the amplitude: a flat object of 1 gives about the measured energy.
            good_pixels: (N, N) bool.
            updates: modulus updates after the U-net.
            predicting: take the larger steps, with momentum, that suit patches which are averaged next.

        Returns:
            (B, C, N, N) complex patches on whole pixels of the object canvas.
        """
        measured = torch.where(good_pixels, measured, 0)
        update = ModulusUpdates(probe, measured, good_pixels)
        guess = update.of_flat_object()
        features = torch.stack([measured.sqrt(), guess.real, guess.imag], dim=2)
        raw = self.unet(features.flatten(0, 1)).unflatten(0, measured.shape[:2])
        size, phase = raw.to(measured.dtype).unbind(dim=2)
        patches = from_polar(self.activation(size), 3 * phase)
        step, momentum = (_PREDICTION_STEP, _PREDICTION_MOMENTUM) if predicting else (_TRAINING_STEP, 0.0)
        return update(patches, updates, step, momentum)

    def activation(self, raw: Tensor) -> Tensor:
        """Amplitude from the U-net's output: non-negative and 1 at 0, so that the object starts flat."""
        if self.amp_activation == "sigmoid":
            return 2 * torch.sigmoid(raw)
        if self.amp_activation == "softplus":
            return nn.functional.softplus(2 * raw + math.log(math.e - 1))
        return nn.functional.silu(raw + 0.98972) + 0.27846


def network_shape(n: int, depth: int) -> tuple[int, int]:
    """Return the side of the folded blocks and the number of levels for patterns of n x n pixels.

    Raises:
        SettingsError: the folded grid cannot be halved that often.
    """
    fold = next(side for side in (_FOLD, 2, 1) if n % side == 0)
    levels = max(1, depth + round(math.log2(n / _REFERENCE_SIDE)))
    if (n // fold) % 2 ** (levels - 1):
        raise SettingsError(
            f"a network of depth {depth} does not fit patterns of {n} x {n} pixels",
            where="ModelConfig.depth",
            expected=f"{n // fold} pixels that can be halved {levels - 1} times",
            fix="choose a smaller depth, or crop the patterns to a power of two",
        )
    return fold, levels


def build_network(config: ModelConfig, n: int) -> PatchNetwork:
    """Return the network for patterns of n x n pixels; its weights come from torch's random state."""
    return PatchNetwork(config, n)
