"""The state of one refinement and its steps.

Shape legend: M patterns, b patterns of a minibatch, P probe modes, N x N pixels of a patch and of the
detector, H x W object canvas, n = N or N + 1 canvas pixels that a patch touches.

Each minibatch makes one step of the regularized ptychographic engine with momentum (rPIE, mPIE: Maiden,
Johnson and Li, Optica 4, 736 (2017)). Its direction is the exact gradient of the amplitude loss
sum (|Psi| - A)^2, written by hand - one transform forth and one back per mode - and divided by the
illumination that each object pixel got:

    Psi = F(P O),  dpsi = F*((A / |Psi| - 1) Psi),  dO = sum P* dpsi / ((1 - a) sum |P|^2 + a max sum |P|^2)

Where patterns are counts k = A^2, the factor is (k / |Psi|^2 - 1) / 2: half the gradient of their likelihood
(Thibault and Guizar-Sicairos, New J. Phys. 14, 063004 (2012)). Both agree for many counts, and where measured
patterns hold more than the model knows, amplitudes bear it better. For few counts, the mean of a root is
below the root of the mean, and amplitudes lead to an object that is wrong.

What changes once per epoch, where it is asked for: the probe's gauge, the positions, the background.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_exec.errors import UserError
from ptycho_torch.data.storage.patterns import at_once
from ptycho_torch.physics.forward import fourier_ramp, over_modes
from ptycho_torch.reconstruction import positions, probe_gauge
from ptycho_torch.reconstruction.background import Background
from ptycho_torch.reconstruction.positions import PositionCorrection
from ptycho_torch.reconstruction.probe_decision import ProbeDecision, decide, epoch_of_decision
from ptycho_torch.reconstruction.stitch import probe_coverage
from ptycho_torch.reconstruction.waves import (
    CACHE_BYTES,
    Amplitudes,
    Comparison,
    add,
    compare,
    cut,
    lerp,
    lerp_adjoint,
    lerp_slopes,
)

if TYPE_CHECKING:
    from ptycho_torch.data.scan import ScanData

Placement = Literal["object", "probe"]
"""Which of the two is moved by the sub-pixel part of a position: the object, by linear interpolation, or
the probe, by the Fourier shift theorem. Simulators differ; for measured data it is the probe."""

REGION_PATTERNS = 1200
REGION_SIDE_PX = 320
"""A scan with more patterns, or farther spread, is split into regions that are visited in turn."""
PART_PER_STEP = 0.28
"""Part of a region that one minibatch illuminates. With more, the patterns of a step repeat each other; with
less, momentum carries pixels on that no pattern of the next steps corrects."""
SETTLE, SETTLE_LOW = 0.4, 0.7
"""Last part of a run in which steps shrink; and the same at low dose."""
LOW_DOSE, DOSE_PATTERNS = 1000.0, 32
"""Photons per pixel of the object below which the dose is low, and patterns that show it."""
CURVATURE_EPOCHS = 4
"""The curvature of the loss in the positions, which only scales their steps, is taken anew after so many."""


@dataclass(frozen=True)
class RefineOptions:
    """How to step. The defaults hold for known and unknown probes, noisy and clean data."""

    batch_size: int | None = None
    """Patterns per step; none takes so many that they illuminate about a quarter of the region, 8 to 32."""
    step_size: float = 0.3
    """Part of the regularized step that is taken; 0 < step_size <= 1."""
    momentum: float = 0.9
    """Part of the last step that is repeated; 0 turns momentum off."""
    damping: float = 0.2
    """Regularization a of weakly illuminated pixels, 0 to 1; more is slower and less noisy."""
    settle: float | None = None
    """Last part of the run in which steps shrink to nothing, which averages the noise of minibatches; none
    takes more of it where few photons fell on a pixel of the object."""
    likelihood: Literal["auto", "counts", "amplitude"] = "auto"
    """What the steps follow: counts with their Poisson noise, or amplitudes with noise that is the same
    everywhere; auto: counts where the patterns hold them, the dose is low, and patterns are not few."""
    refine_probe: bool | Literal["auto"] = False
    """Refine the probe together with the object; auto: where the given one explains the patterns poorly."""
    probe_delay: int = 1
    """Epochs before the probe starts to move."""
    probe_modes: int = 1
    """Incoherent modes of the probe; those that are not given begin weak and are refined."""
    refine_positions: bool = False
    """Correct the positions together with the object."""
    position_limit_px: float | None = None
    """How far each position may move beside the smooth part; none takes an eighth of the pattern's side."""
    position_delay: int = 2
    """Epochs before the positions start to move."""
    background: bool = False
    """Estimate a smooth intensity that lies under every pattern."""
    held_out: float = 0.0
    """Part of the patterns that are not refined on, and whose loss is measured after each epoch."""
    denoise: bool | Literal["auto"] = False
    """Denoise the refined object by a network that learns from split counts; auto: where counts are followed
    and patterns are held out, which decide how far."""


class Region:
    """Patterns close together, and the part of the canvas that they touch."""

    def __init__(
        self, rows: Tensor, corners: Tensor, probe: Tensor, side: int, batch_size: int | None
    ) -> None:
        self.rows = rows
        self.enclose(corners, side)
        height, width = self.bottom - self.top, self.right - self.left
        self.batch_size = batch_size or default_batch_size(probe, height, width)

    def enclose(self, corners: Tensor, side: int) -> None:
        """Take the part of the canvas that the patterns touch with these corners (M, 2)."""
        self.top, self.left = corners[self.rows].amin(dim=0).tolist()
        self.bottom, self.right = (corners[self.rows].amax(dim=0) + side).tolist()

    def of(self, canvas: Tensor) -> Tensor:
        return canvas[self.top : self.bottom, self.left : self.right]


class Engine:
    """The state of one refinement: object, probe, their momenta, and the random order."""

    def __init__(
        self,
        scan: ScanData,
        data: Amplitudes,
        start: NDArray[Any] | Tensor | Literal["flat"],
        probe: Tensor,
        placement: Placement,
        options: RefineOptions,
        seed: int = 0,
        held_out: NDArray[np.int64] | None = None,
        unit: float | None = None,
    ) -> None:
        self.data, self.placement, self.options, self.unit = data, placement, options, unit
        self.settle = settle_part(scan, unit) if options.settle is None else options.settle
        self.canvas_shape, self.n = scan.canvas_shape, scan.n_pixels
        self.probe = probe.to(data.device)
        self.probe_velocity = torch.zeros_like(self.probe)
        self.generator = torch.Generator().manual_seed(seed)
        self.step_scale = 1.0
        self.losses: list[float] = []
        self.measured = torch.zeros((), device=data.device)  # power of the patterns, of the first epoch
        self.held_out = torch.from_numpy(np.empty(0, np.int64) if held_out is None else held_out)
        self.held_out_losses: list[float] = []
        self.side = scan.n_pixels + (placement == "object")
        every = np.arange(len(scan))
        used = every if held_out is None else np.setdiff1d(every, held_out)
        limit_px = self.n / 8 if options.position_limit_px is None else options.position_limit_px
        self.correction = (
            PositionCorrection(scan.positions_px, used, limit_px) if options.refine_positions else None
        )
        whole = self._split(scan.positions_px)
        # Patches may overhang the canvas: the frame holds them all and is cropped at the end.
        margin = math.ceil(limit_px) + 1 if options.refine_positions else 0
        low = (whole.amin(dim=0) - margin).clamp(max=0)
        high = torch.maximum(whole.amax(dim=0) + self.side + margin, torch.tensor(scan.canvas_shape))
        self.low, self.last_corner = low, high - low - self.side
        self.corners, self.offset = whole - low, (-low).tolist()
        self.frame = torch.ones(*(high - low).tolist(), dtype=torch.complex64, device=data.device)
        if not isinstance(start, str):
            self._inside()[:] = torch.as_tensor(start).to(self.frame)
        self.velocity = torch.zeros_like(self.frame)
        self.regions = [
            Region(rows, self.corners, self.probe, self.side, options.batch_size)
            for rows in split_scan(self.corners, torch.from_numpy(used))
        ]
        self.steps_per_epoch = sum(-(-len(region.rows) // region.batch_size) for region in self.regions)
        self.background = Background(data) if options.background else None
        self.decision: ProbeDecision | None = None
        self.moves_probe = options.refine_probe is True
        self.shifted = self._shifted_probes() if self._stays(len(scan)) else None
        self.power = float(self.probe.abs().square().sum())
        self.rim = probe_gauge.rim_of(self.probe)
        self.most_in_rim = max(probe_gauge.RIM_POWER, probe_gauge.rim_part(self.probe, self.rim))
        bound = probe_gauge.OFF_CENTER * self.n
        self.center = probe_gauge.center_px(self.probe).clamp(-bound, bound)

    def object(self) -> NDArray[np.complex64]:
        return self._inside().cpu().numpy().copy()

    def coverage(self, scan: ScanData) -> NDArray[np.float32]:
        at = scan.positions_px if self.correction is None else self.correction.positions_px
        return probe_coverage(torch.from_numpy(at), self.probe.cpu(), scan.canvas_shape).numpy()

    def epoch(self, of: int) -> None:
        """Use every pattern once, in random order; halve the steps that follow when the error rises."""
        size = self.options.step_size * self.step_scale * settling(len(self.losses), of, self.settle)
        error = torch.zeros((), device=self.frame.device)
        for rows, region in self.batches():
            error += self.step(rows, region, size)
        self.losses.append(float(error / self.measured))
        last = self.losses[-1]
        if not math.isfinite(last):
            raise UserError(
                f"refinement diverged in epoch {len(self.losses)}: the loss is {last}",
                fix="use a smaller step size or momentum, and check the probe's scale and the positions",
            )
        if len(self.losses) > 1 and last > 1.05 * self.losses[-2]:
            self.step_scale *= 0.5
            self.velocity.zero_()
            self.probe_velocity.zero_()
        self._after_epoch(of)

    def _after_epoch(self, of: int) -> None:
        """Do what is done once per epoch; what would change the model waits until an epoch follows."""
        done = len(self.losses)
        if self.moves_probe and done > self.options.probe_delay:
            self._keep_gauge()
        if self.background is not None and done < of:
            self.background.step()
        if self._moves_positions(done - 1) and done < of and self.correction is not None:
            self.correction.step(settling(done, of, self.settle))
            self._move_to(self.correction.positions_px)
        if self.options.refine_probe == "auto" and done == epoch_of_decision(of, self.steps_per_epoch):
            self.decision = decide(self.data, self.losses[-1], done)
            self.moves_probe = self.decision.refined or self.moves_probe
            self.shifted = None if self.moves_probe else self.shifted
        if len(self.held_out):
            self.held_out_losses.append(self.loss_of(self.held_out))

    def loss_of(self, rows: Tensor) -> float:
        """Return the loss on some patterns, without a step."""
        error = power = 0.0
        for part in torch.split(rows, at_once(self.n, 32)):
            amplitude = self.data[part]
            error += float(self._compare(amplitude, *self._place(part)).error)
            power += float((amplitude * self.data.good).square().sum())
        return error / max(power, 1e-30)

    def batches(self) -> Iterator[tuple[Tensor, Region]]:
        """Yield minibatches of pattern numbers, the regions and the patterns in them in random order.

        While positions move, regions take turns: otherwise each one's object settles on positions that the
        next one does not share.
        """
        parts = []
        for index in torch.randperm(len(self.regions), generator=self.generator).tolist():
            region = self.regions[index]
            order = torch.randperm(len(region.rows), generator=self.generator)
            parts += [(region.rows[part], region) for part in torch.split(order, region.batch_size)]
        if self.correction is not None and len(self.regions) > 1:
            parts = [parts[i] for i in torch.randperm(len(parts), generator=self.generator).tolist()]
        yield from parts

    def step(self, rows: Tensor, region: Region, size: float) -> Tensor:
        """Change the object, and the probe, by one minibatch -> its error before."""
        ramps = None if self.placement == "object" or self.shifted is not None else self._ramps(rows)
        patches, probes = self._place(rows, ramps)
        amplitude = self.data[rows]
        if not self.losses:
            self.measured += (amplitude * self.data.good).square_().sum()
        seen = self._compare(amplitude, patches, probes)
        update = seen.update
        toward = over_modes(update * probes.conj().resolve_conj())
        if self.placement == "object":
            toward = lerp_adjoint(toward, self.fraction[rows.to(self.frame.device)])
        if self.background is not None:
            self.background.collect(seen)
        if self._moves_positions(len(self.losses)):
            self._collect_position_derivatives(rows, patches, probes, update, seen)
        if self.moves_probe and len(self.losses) >= self.options.probe_delay:
            self._step_probe(ramps, patches, update, size)
        total = torch.zeros_like(region.of(self.frame))
        illuminated = torch.zeros(total.shape, device=total.device)
        corners = (self.corners[rows] - torch.tensor([region.top, region.left])).tolist()
        add(total, corners, toward)
        # The illumination only scales the step: the unshifted probe at the nearest pixel is exact enough.
        illumination = self.probe.abs().square().sum(dim=0)
        add(illuminated, corners, illumination.expand(len(corners), *illumination.shape))
        damping = self.options.damping
        least = damping * illuminated.max()
        weight = illuminated.mul_(1 - damping).add_(least).reciprocal_()
        velocity = region.of(self.velocity)
        velocity.mul_(self.options.momentum).add_(total.mul_(weight))
        region.of(self.frame).add_(velocity, alpha=size)
        return seen.error

    def _compare(self, amplitude: Tensor, patches: Tensor, probes: Tensor) -> Comparison:
        background = None if self.background is None else self.background.intensity
        return compare(patches, probes, amplitude, self.data.good, background, self.unit)

    def _step_probe(self, ramps: Tensor | None, patches: Tensor, update: Tensor, size: float) -> None:
        toward = update * patches.conj().resolve_conj()[:, None]
        if ramps is not None:
            back = torch.fft.fft2(toward).mul_(ramps.conj().resolve_conj()[:, None])
            total = torch.fft.ifft2(back.sum(dim=0))
        else:
            total = toward.sum(dim=0)
        seen = patches.abs().square().sum(dim=0)
        damping = self.options.damping
        step = total / ((1 - damping) * seen + damping * seen.max())
        self.probe_velocity.mul_(self.options.momentum).add_(step)
        self.probe.add_(self.probe_velocity, alpha=size)

    def _keep_gauge(self) -> None:
        """Bring the probe back: its rim, modes, power and center; the object goes with it."""
        part = probe_gauge.rim_part(self.probe, self.rim)
        if part > self.most_in_rim:
            self.probe[:, self.rim] *= math.sqrt(self.most_in_rim / part)
        if len(self.probe) > 1:
            mixing = probe_gauge.orthogonal_modes(self.probe)
            self.probe, self.probe_velocity = (
                torch.tensordot(mixing, modes, dims=1) for modes in (self.probe, self.probe_velocity)
            )
        scale = math.sqrt(self.power / float(self.probe.abs().square().sum()))
        for image, by in (
            (self.probe, scale),
            (self.probe_velocity, scale),
            (self.frame, 1 / scale),
            (self.velocity, 1 / scale),
        ):
            image *= by
        back = torch.round(self.center - probe_gauge.center_px(self.probe)).int().tolist()
        if any(back):
            self.probe, self.probe_velocity, self.frame, self.velocity = (
                probe_gauge.roll(image, (back[0], back[1]))
                for image in (self.probe, self.probe_velocity, self.frame, self.velocity)
            )

    def _moves_positions(self, epoch: int) -> bool:
        return self.correction is not None and epoch >= self.options.position_delay

    def _collect_position_derivatives(
        self, rows: Tensor, patches: Tensor, probes: Tensor, update: Tensor, seen: Comparison
    ) -> None:
        """Keep how the loss of these patterns changes with their positions."""
        assert self.correction is not None
        if self.placement == "probe":
            spectra = positions.probe_slopes(torch.fft.fft2(probes))
            waves = [torch.fft.ifft2(spectrum) * patches[:, None] for spectrum in spectra]
        else:
            block = cut(self.frame, self.corners[rows], self.side)
            slopes = lerp_slopes(block, self.fraction[rows.to(block.device)])
            waves = [slope[:, None] * probes for slope in slopes]
        self.correction.descent[rows] = positions.descent(waves, update).cpu()
        if (len(self.losses) - self.options.position_delay) % CURVATURE_EPOCHS == 0:
            self.correction.curvature[rows] = positions.curvature(waves, seen, self.data.good).cpu()

    def _split(self, positions_px: NDArray[np.float64]) -> Tensor:
        """Set the sub-pixel part of each patch's origin, and return the whole one (M, 2)."""
        origins = torch.from_numpy(positions_px - (self.n - 1) / 2)
        whole = torch.floor(origins) if self.placement == "object" else torch.round(origins)
        self.fraction = (origins - whole).float().to(self.data.device)
        return whole.long()

    def _move_to(self, positions_px: NDArray[np.float64]) -> None:
        """Take patches from these positions from now on; none leaves the frame."""
        corners = self._split(positions_px) - self.low
        self.corners = torch.minimum(corners.clamp(min=0), self.last_corner)
        for region in self.regions:
            region.enclose(self.corners, self.side)

    def _place(self, rows: Tensor, ramps: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.place_on(self.frame, rows, ramps)

    def place_on(self, frame: Tensor, rows: Tensor, ramps: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return patches (b, N, N) of an object on the frame, and the probes (b or 1, P, N, N) on them.

        ramps: of these rows, where they are known already.
        """
        block = cut(frame, self.corners[rows], self.side)
        if self.placement == "object":
            return lerp(block, self.fraction[rows.to(block.device)]), self.probe[None]
        if self.shifted is not None:
            return block, self.shifted[rows.to(self.shifted.device)]
        return block, self._moved_probes(self._ramps(rows) if ramps is None else ramps)

    def _moved_probes(self, ramps: Tensor) -> Tensor:
        """Return the probe, moved by the sub-pixel parts of positions -> (b, P, N, N)."""
        moved: Tensor = torch.fft.ifft2(torch.fft.fft2(self.probe) * ramps[:, None])
        return moved

    def _stays(self, count: int) -> bool:
        """Return whether the probe at each position is that of every epoch, and all can be kept."""
        moves = self.placement == "object" or self.moves_probe or self.correction is not None
        return not moves and count * self.probe.numel() * self.probe.element_size() <= CACHE_BYTES

    def _shifted_probes(self) -> Tensor:
        """Return the probe at every position, (M, P, N, N)."""
        parts = torch.split(torch.arange(len(self.fraction)), at_once(self.n))
        kept = self.probe.new_empty(len(self.fraction), *self.probe.shape)
        for rows in parts:
            kept[rows[0] : rows[-1] + 1] = self._moved_probes(self._ramps(rows))
        return kept

    def _ramps(self, rows: Tensor) -> Tensor:
        fraction = self.fraction[rows.to(self.frame.device)]
        return fourier_ramp(fraction, self.probe.shape[-2:], torch.float32)

    def _inside(self) -> Tensor:
        (y, x), (height, width) = self.offset, self.canvas_shape
        return self.frame[y : y + height, x : x + width]


def default_batch_size(probe: Tensor, height_px: int, width_px: int) -> int:
    """Return how many patterns (8 to 32) of a probe (P, N, N) illuminate `PART_PER_STEP` of a region."""
    illumination = probe.abs().square().sum(dim=0)
    spot_px = float(illumination.sum() / illumination.max())
    dark = probe.shape[-1] - math.sqrt(spot_px)  # the outer patches reach farther than their illumination
    count = PART_PER_STEP * max(height_px - dark, 1) * max(width_px - dark, 1) / spot_px
    return max(round(count), 8) if count < 32 else 32  # not a number, too, is 32


def split_scan(corners: Tensor, rows: Tensor | None = None) -> list[Tensor]:
    """Split rows of positions (M, 2) at their median, across their longer side, into compact groups."""

    def split(rows: Tensor) -> list[Tensor]:
        spread = corners[rows].amax(dim=0) - corners[rows].amin(dim=0)
        small = len(rows) <= REGION_PATTERNS and int(spread.max()) <= REGION_SIDE_PX
        if small or len(rows) < 64 or not int(spread.max()):
            return [rows]
        order = torch.argsort(corners[rows, int(spread.argmax())], stable=True)
        half = len(rows) // 2
        return split(rows[order[:half]]) + split(rows[order[half:]])

    return split(torch.arange(len(corners)) if rows is None else rows)


def settle_part(scan: ScanData, unit: float | None) -> float:
    """Return in which last part of a run the steps shrink: more of it where noise is most of what they see.

    unit: intensity of one count; None where it is not known.
    """
    return SETTLE if unit is None or photons_per_pixel(scan, unit) > LOW_DOSE else SETTLE_LOW


def photons_per_pixel(scan: ScanData, unit: float) -> float:
    """Return how many photons fell on a pixel of the object, where the scan is.

    unit: intensity of one count.
    """
    rows = np.linspace(0, len(scan) - 1, num=min(len(scan), DOSE_PATTERNS)).astype(int)
    photons = mean_power(scan, rows) / unit * len(scan)
    return float(photons / np.prod(np.ptp(scan.positions_px, axis=0) + scan.n_pixels))


def mean_power(scan: ScanData, rows: NDArray[np.int64]) -> float:
    """Return the mean over these patterns of the sum of squared amplitudes."""
    parts = (scan.amplitude(part) for part in np.split(rows, range(0, len(rows), at_once(scan.n_pixels))[1:]))
    return sum(float(np.square(part, dtype=np.float64).sum()) for part in parts) / len(rows)


def settling(epoch: int, of: int, part: float) -> float:
    """Return 1 at first, then a cosine towards 0 over the last `part` of the epochs."""
    start = (1 - part) * of
    return (
        1.0 if epoch < start else 0.5 * (1 + math.cos(math.pi * (epoch - start + 0.5) / (of - start + 0.5)))
    )
