"""Iterative refinement of the object, and if wanted the probe, through the forward model.

Shape legend: M patterns, b patterns of a minibatch, P probe modes, N x N pixels of a patch and of the
detector, H x W object canvas, n = N or N + 1 canvas pixels that a patch touches.

Each minibatch makes one step of the regularized ptychographic engine with momentum (rPIE, mPIE: Maiden,
Johnson and Li, Optica 4, 736 (2017)). Its direction is the exact gradient of the amplitude loss
sum (|Psi| - A)^2, written by hand - one transform forth and one back per mode - and divided by the
illumination that each object pixel got:

    Psi = F(P O),  dpsi = F*((A / |Psi| - 1) Psi),  dO = sum P* dpsi / ((1 - a) sum |P|^2 + a max sum |P|^2)

Starting from a flat object it is a plain iterative engine; starting from a stitched network prediction it
needs only a few steps. Large scans are worked on region by region, so the cost is linear in M.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_exec.errors import DataError, UserError
from ptycho_torch.physics.forward import fourier_ramp, intensity, over_modes
from ptycho_torch.reconstruction.stitch import probe_coverage

if TYPE_CHECKING:
    from ptycho_torch.data.scan import ScanData

Placement = Literal["object", "probe"]
"""Which of the two is moved by the sub-pixel part of a position: the object, by linear interpolation, or
the probe, by the Fourier shift theorem. Simulators differ; measured data want the probe."""

CACHE_BYTES = 64 * 2**20
"""Measured amplitudes are kept in memory up to this size, and read again in every epoch beyond it."""
REGION_PATTERNS = 1200
REGION_SIDE_PX = 320
"""A scan with more patterns, or farther spread, is split into regions that are visited in turn."""
COMPARED_PATTERNS = 256
"""Patterns on which the power of the probe is measured and the two placements are compared."""
SMALL_PATTERN = 128
"""Up to this side of a pattern one thread of the processor is used."""
TRIAL_PATTERNS = 400
TRIAL_EPOCHS = 3
PART_PER_STEP = 0.28
"""Part of a region that one minibatch illuminates. With more, the patterns of a step repeat each other; with
less, momentum carries pixels on that no pattern of the next steps corrects."""
CLEARLY = 0.05
"""The trial of a placement ends early when one has a loss lower by this part."""


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
    settle: float = 0.4
    """Last part of the run in which steps shrink to nothing, which averages the noise of minibatches."""
    refine_probe: bool = False
    """Refine the probe together with the object."""
    probe_delay: int = 1
    """Epochs before the probe starts to move."""


_TRIAL = RefineOptions(step_size=0.5, momentum=0.7, damping=0.1, settle=0.0)


@dataclass(frozen=True)
class RefineResult:
    """The refined object and probe, and how the error fell."""

    object: NDArray[np.complex64]
    """(H, W)."""
    probe: NDArray[np.complex64]
    """(P, N, N), refined or as given."""
    coverage: NDArray[np.float32]
    """(H, W): how well the probe illuminates each pixel; 1 is one pattern at the probe's brightest pixel."""
    losses: list[float]
    """Per epoch: sum (|Psi| - A)^2 / sum A^2 over the good pixels, each minibatch before its step."""
    seconds: float
    placement: Placement
    notices: tuple[str, ...] = ()


Progress = Callable[[int, int, float], None]
"""Called after each epoch with the number of epochs done, the number of all, and the loss so far."""


def refine_object(
    scan: ScanData,
    start: NDArray[Any] | Tensor | Literal["flat"],
    steps: int,
    *,
    probe: NDArray[Any] | Tensor | None = None,
    options: RefineOptions | None = None,
    placement: Literal["auto", "object", "probe"] = "auto",
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
) -> RefineResult:
    """Refine an object against all patterns of a scan, `steps` times.

    start: complex (H, W) on the scan's canvas, such as a stitched prediction; "flat" starts from 1.
    steps: epochs; in each one every pattern is used once, in a seeded order.
    probe: complex (P, N, N), in the units of the measured amplitude; none takes the scan's own.
    placement: see `Placement`; auto tries both on a part of the scan, see `choose_placement`.
    Equal arguments give equal results, bit for bit on a CPU (above N = 128 with equal numbers of threads).
    Raises DataError when sizes do not match or the scan has no probe, UserError when the steps diverge.
    """
    began = time.perf_counter()
    options = options or RefineOptions()
    _check(scan, start, steps, options)
    modes, notices = _probe_in_data_units(scan, probe)
    data = _Amplitudes(scan, torch.device(device))
    with _few_threads(scan.n_pixels, data.device):
        kind = choose_placement(scan, start, modes, seed=seed) if placement == "auto" else placement
        engine = _Engine(scan, data, start, modes, kind, options, seed)
        for done in range(1, steps + 1):
            engine.epoch(steps)
            if progress:
                progress(done, steps, engine.losses[-1])
    return RefineResult(
        object=engine.object(),
        probe=engine.probe.cpu().numpy(),
        coverage=engine.coverage(scan),
        losses=engine.losses,
        seconds=time.perf_counter() - began,
        placement=engine.placement,
        notices=notices,
    )


@contextmanager
def _few_threads(n: int, device: torch.device) -> Iterator[None]:
    """Work on one thread where a minibatch is small, and restore the number of threads afterwards.

    The operations take microseconds. Sharing them between threads gains little on a free machine, and on a
    busy one each waits for a thread that is not scheduled: a hundred times slower.
    """
    before = torch.get_num_threads()
    try:
        if device.type == "cpu" and n <= SMALL_PATTERN:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def choose_placement(
    scan: ScanData, start: NDArray[Any] | Tensor | Literal["flat"], probe: Tensor, *, seed: int = 0
) -> Placement:
    """Return the placement that explains the patterns in the middle of a scan better after a short trial.

    The trial keeps the probe fixed and takes small steps: while the momentum of a real run builds up, or a
    probe that adapts, either placement may be ahead. The probe's, which is the physical one, stays
    unless the object's is clearly better. The trial runs on the CPU.
    """
    distance = np.linalg.norm(scan.positions_px - np.median(scan.positions_px, axis=0), axis=1)
    middle = scan.subset(np.sort(np.argsort(distance, kind="stable")[:TRIAL_PATTERNS]))
    data = _Amplitudes(middle, torch.device("cpu"))
    by_object, by_probe = (
        _Engine(middle, data, start, probe.clone(), kind, _TRIAL, seed) for kind in get_args(Placement)
    )
    ratio = 1.0
    for _ in range(TRIAL_EPOCHS):
        by_object.epoch(TRIAL_EPOCHS)
        by_probe.epoch(TRIAL_EPOCHS)
        ratio = by_object.error() / by_probe.error()
        if abs(ratio - 1) > CLEARLY:
            break
    return "object" if ratio < 1 - CLEARLY else "probe"


class _Amplitudes:
    """Measured amplitudes on the device, zero frequency at index 0 to spare the model a shift."""

    def __init__(self, scan: ScanData, device: torch.device) -> None:
        self.scan, self.device = scan, device
        self.good = torch.fft.ifftshift(torch.from_numpy(scan.good_pixels)).float().to(device)
        n = scan.n_pixels
        self.cache: Tensor | None = None
        if len(scan) * n * n * 4 <= CACHE_BYTES:
            self.cache = self._read(torch.arange(len(scan)))

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return (b, N, N) float32."""
        return self._read(rows) if self.cache is None else self.cache.index_select(0, rows.to(self.device))

    def _read(self, rows: Tensor) -> Tensor:
        amplitude = torch.from_numpy(self.scan.amplitude(rows.numpy())).to(self.device)
        shifted: Tensor = torch.fft.ifftshift(amplitude, dim=(-2, -1))
        return shifted


class _Region:
    """Patterns close together, and the part of the canvas that they touch."""

    def __init__(
        self, rows: Tensor, corners: Tensor, probe: Tensor, side: int, batch_size: int | None
    ) -> None:
        self.rows = rows
        self.top, self.left = corners[rows].amin(dim=0).tolist()
        self.bottom, self.right = (corners[rows].amax(dim=0) + side).tolist()
        height, width = self.bottom - self.top, self.right - self.left
        self.batch_size = batch_size or default_batch_size(probe, height, width)

    def of(self, canvas: Tensor) -> Tensor:
        return canvas[self.top : self.bottom, self.left : self.right]


class _Engine:
    """The state of one refinement: object, probe, their momenta, and the random order."""

    def __init__(
        self,
        scan: ScanData,
        data: _Amplitudes,
        start: NDArray[Any] | Tensor | Literal["flat"],
        probe: Tensor,
        placement: Placement,
        options: RefineOptions,
        seed: int,
    ) -> None:
        self.data, self.placement, self.options = data, placement, options
        self.canvas_shape = scan.canvas_shape
        self.probe = probe.to(data.device)
        self.probe_velocity = torch.zeros_like(self.probe)
        self.generator = torch.Generator().manual_seed(seed)
        self.step_scale = 1.0
        self.losses: list[float] = []
        self.side = scan.n_pixels + (placement == "object")
        origins = torch.from_numpy(scan.origins_px)
        whole = torch.floor(origins) if placement == "object" else torch.round(origins)
        self.fraction = (origins - whole).float().to(data.device)
        # Patches may overhang the canvas: the frame holds them all and is cropped at the end.
        low = whole.long().amin(dim=0).clamp(max=0)
        high = torch.maximum(whole.long().amax(dim=0) + self.side, torch.tensor(scan.canvas_shape))
        self.corners, self.offset = whole.long() - low, (-low).tolist()
        self.frame = torch.ones(*(high - low).tolist(), dtype=torch.complex64, device=data.device)
        if not isinstance(start, str):
            self._inside()[:] = torch.as_tensor(start).to(self.frame)
        self.velocity = torch.zeros_like(self.frame)
        self.regions = [
            _Region(rows, self.corners, self.probe, self.side, options.batch_size)
            for rows in split_scan(self.corners)
        ]

    def object(self) -> NDArray[np.complex64]:
        return self._inside().cpu().numpy().copy()

    def coverage(self, scan: ScanData) -> NDArray[np.float32]:
        positions = torch.from_numpy(scan.positions_px)
        return probe_coverage(positions, self.probe.cpu(), scan.canvas_shape).numpy()

    def epoch(self, of: int) -> None:
        """Use every pattern once, in random order; halve the steps that follow when the error rises."""
        size = self.options.step_size * self.step_scale * settling(len(self.losses), of, self.options.settle)
        error = torch.zeros((), device=self.frame.device)
        power = torch.zeros_like(error)
        for rows, region in self.batches():
            missed, measured = self.step(rows, region, size)
            error, power = error + missed, power + measured
        self.losses.append(float(error / power))
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

    def error(self) -> float:
        """Return the error on some patterns, without a step."""
        rows = torch.linspace(0, len(self.corners) - 1, min(COMPARED_PATTERNS, len(self.corners))).long()
        error = power = 0.0
        for part in torch.split(rows, 32):
            patches, probes = self._place(part)
            _, missed, measured = wave_update(patches, probes, self.data[part], self.data.good)
            error, power = error + float(missed), power + float(measured)
        return error / power

    def batches(self) -> Iterator[tuple[Tensor, _Region]]:
        """Yield minibatches of pattern numbers, the regions and the patterns in them in random order."""
        for index in torch.randperm(len(self.regions), generator=self.generator).tolist():
            region = self.regions[index]
            order = torch.randperm(len(region.rows), generator=self.generator)
            for part in torch.split(order, region.batch_size):
                yield region.rows[part], region

    def step(self, rows: Tensor, region: _Region, size: float) -> tuple[Tensor, Tensor]:
        """Change the object, and the probe, by one minibatch -> its error before and its measured power."""
        patches, probes = self._place(rows)
        update, missed, measured = wave_update(patches, probes, self.data[rows], self.data.good)
        toward = over_modes(update * probes.conj())
        if self.placement == "object":
            toward = lerp_adjoint(toward, self.fraction[rows.to(self.frame.device)])
        if self.options.refine_probe and len(self.losses) >= self.options.probe_delay:
            self._step_probe(rows, patches, update, size)
        total = torch.zeros_like(region.of(self.frame))
        seen = torch.zeros(total.shape, device=total.device)
        corners = (self.corners[rows] - torch.tensor([region.top, region.left])).tolist()
        _add(total, corners, toward)
        # The illumination only scales the step: the unshifted probe at the nearest pixel is exact enough.
        illumination = self.probe.abs().square().sum(dim=0)
        _add(seen, corners, illumination.expand(len(corners), *illumination.shape))
        damping = self.options.damping
        velocity = region.of(self.velocity)
        velocity.mul_(self.options.momentum).add_(total / ((1 - damping) * seen + damping * seen.max()))
        region.of(self.frame).add_(velocity, alpha=size)
        return missed, measured

    def _step_probe(self, rows: Tensor, patches: Tensor, update: Tensor, size: float) -> None:
        toward = update * patches.conj()[:, None]
        if self.placement == "probe":
            ramp = self._ramps(rows).conj()[:, None]
            total = torch.fft.ifft2((torch.fft.fft2(toward) * ramp).sum(dim=0))
        else:
            total = toward.sum(dim=0)
        seen = patches.abs().square().sum(dim=0)
        damping = self.options.damping
        step = total / ((1 - damping) * seen + damping * seen.max())
        self.probe_velocity.mul_(self.options.momentum).add_(step)
        self.probe.add_(self.probe_velocity, alpha=size)

    def _place(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return object patches (b, N, N) and the probes (b or 1, P, N, N) on them."""
        block = cut(self.frame, self.corners[rows], self.side)
        if self.placement == "object":
            return lerp(block, self.fraction[rows.to(block.device)]), self.probe[None]
        spectrum = torch.fft.fft2(self.probe)[None]
        return block, torch.fft.ifft2(spectrum * self._ramps(rows)[:, None])

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


def wave_update(
    patches: Tensor, probes: Tensor, amplitude: Tensor, good: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the change of each exit wave that brings it to the measured amplitude, and its error.

    patches: complex (b, N, N). probes: complex (b or 1, P, N, N). amplitude: (b, N, N) with zero frequency
    at index 0. good: (N, N), 1 where the detector can be trusted and 0 elsewhere, likewise.
    Returns the change, complex (b, P, N, N) - minus half the gradient, in the sense of autograd, of the error
    with respect to the exit wave -, the error sum (|Psi| - A)^2, and sum A^2, over good pixels.
    """
    detector = torch.fft.fft2(patches[:, None] * probes, norm="ortho")
    model = intensity(detector).sqrt()
    excess = (amplitude - model) * good
    tiny = torch.finfo(model.dtype).eps * model.amax()
    update = torch.fft.ifft2(detector * (excess / (model + tiny))[:, None], norm="ortho")
    return update, excess.square().sum(), (amplitude * good).square().sum()


def cut(canvas: Tensor, corners: Tensor, side: int) -> Tensor:
    """Return the blocks (b, side, side) of a contiguous canvas (H, W) that start at `corners` (b, 2)."""
    height, width = canvas.shape
    windows = canvas.as_strided((height - side + 1, width - side + 1, side, side), (width, 1, width, 1))
    at = corners.to(canvas.device)
    return windows[at[:, 0], at[:, 1]]


def lerp(block: Tensor, fraction: Tensor) -> Tensor:
    """Interpolate blocks (b, N + 1, N + 1) linearly at `fraction` (b, 2) of a pixel -> (b, N, N)."""
    y, x = _weights(fraction, block)
    pairs = torch.view_as_real(block).flatten(2)  # real parts and imaginary parts in turn: one pixel is two
    rows = torch.lerp(pairs[:, :-1], pairs[:, 1:], y)
    return _complex(torch.lerp(rows[:, :, :-2], rows[:, :, 2:], x))


def lerp_adjoint(patches: Tensor, fraction: Tensor) -> Tensor:
    """Spread patches (b, N, N) over the pixels they were interpolated from -> (b, N + 1, N + 1)."""
    y, x = _weights(fraction, patches)
    pairs = torch.view_as_real(patches).flatten(2)
    count, side, width = pairs.shape
    right = pairs * x
    wide = pairs.new_zeros(count, side, width + 2)
    wide[:, :, 2:] = right
    wide[:, :, :-2] += pairs - right
    lower = wide * y
    block = pairs.new_zeros(count, side + 1, width + 2)
    block[:, 1:] = lower
    block[:, :-1] += wide - lower
    return _complex(block)


def _weights(fraction: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    parts = fraction.to(image.real.dtype)
    return parts[:, 0, None, None], parts[:, 1, None, None]


def _complex(pairs: Tensor) -> Tensor:
    return torch.view_as_complex(pairs.contiguous().unflatten(2, (-1, 2)))  # type: ignore[no-untyped-call]


def split_scan(corners: Tensor) -> list[Tensor]:
    """Split positions (M, 2) at their median, across their longer side, into compact groups of rows."""

    def split(rows: Tensor) -> list[Tensor]:
        spread = corners[rows].amax(dim=0) - corners[rows].amin(dim=0)
        small = len(rows) <= REGION_PATTERNS and int(spread.max()) <= REGION_SIDE_PX
        if small or len(rows) < 64 or not int(spread.max()):
            return [rows]
        order = torch.argsort(corners[rows, int(spread.argmax())], stable=True)
        half = len(rows) // 2
        return split(rows[order[:half]]) + split(rows[order[half:]])

    return split(torch.arange(len(corners)))


def _add(canvas: Tensor, corners: list[list[int]], patches: Tensor) -> None:
    """Add patches (b, n, n) at whole-pixel corners, one after the other: the same sum every time."""
    side = patches.shape[-1]
    target: Any = canvas.numpy() if canvas.device.type == "cpu" else canvas  # numpy slices cost less
    source: Any = patches.numpy() if canvas.device.type == "cpu" else patches
    for (y, x), patch in zip(corners, source, strict=True):
        target[y : y + side, x : x + side] += patch


def settling(epoch: int, of: int, part: float) -> float:
    """Return 1 at first, then a cosine towards 0 over the last `part` of the epochs."""
    start = (1 - part) * of
    return (
        1.0 if epoch < start else 0.5 * (1 + math.cos(math.pi * (epoch - start + 0.5) / (of - start + 0.5)))
    )


def _probe_in_data_units(
    scan: ScanData, probe: NDArray[Any] | Tensor | None
) -> tuple[Tensor, tuple[str, ...]]:
    """Return the probe, scaled if its power is not at all that of the patterns, and a notice then."""
    given = scan.probe if probe is None else probe
    if given is None:
        raise DataError(
            "refinement needs a probe and this scan has none", fix="give a probeGuess in the file"
        )
    modes = torch.as_tensor(given).to(torch.complex64).clone()
    modes = modes[None] if modes.ndim == 2 else modes
    n = scan.n_pixels
    if modes.shape[1:] != (n, n) or not torch.isfinite(torch.view_as_real(modes)).all() or not modes.any():
        raise DataError(f"the probe {tuple(modes.shape)} is empty, not finite, or not (P, {n}, {n})")
    rows = np.linspace(0, len(scan) - 1, min(len(scan), COMPARED_PATTERNS)).astype(np.int64)
    measured = float(np.square(scan.amplitude(rows).astype(np.float64)).sum() / len(rows))
    scale = math.sqrt(measured / float(modes.abs().square().sum()))
    if 0.5 <= scale <= 2:
        return modes, ()
    return modes * scale, (f"the probe was multiplied by {scale:.4g} to have the power of the patterns",)


def _check(
    scan: ScanData, start: NDArray[Any] | Tensor | Literal["flat"], steps: int, options: RefineOptions
) -> None:
    if steps < 1:
        raise DataError(f"refinement needs at least one step, not {steps}")
    if not (0 < options.step_size <= 1 and 0 <= options.momentum < 1 and 0 < options.damping <= 1):
        raise DataError(
            f"step_size = {options.step_size}, momentum = {options.momentum}, damping = {options.damping}",
            expected="0 < step_size <= 1, 0 <= momentum < 1, 0 < damping <= 1",
        )
    if isinstance(start, str):
        if start != "flat":
            raise DataError(f'unknown start "{start}"', expected='"flat" or an object (H, W)')
        return
    values = torch.as_tensor(start)
    if tuple(values.shape) != tuple(scan.canvas_shape) or not torch.isfinite(values.abs()).all():
        raise DataError(
            f"the object to start from, {tuple(values.shape)}, is not finite or not on the scan's canvas",
            expected=f"a finite complex array {tuple(scan.canvas_shape)}",
        )
