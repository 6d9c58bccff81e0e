"""Iterative refinement of an object through the forward model; if wanted, of probe, positions and background.

Shape legend: M patterns, P probe modes, N x N pixels of a patch and of the detector, H x W object canvas.

Starting from a flat object it is a plain iterative engine; starting from a stitched network prediction it
needs only a few steps. Large scans are worked on region by region, so the cost is linear in M. The steps are
in `engine`, what the patterns leave open in a probe in `probe_gauge`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_exec.errors import DataError
from ptycho_exec.progress import steps as shown_steps
from ptycho_torch.reconstruction.denoise import DENOISED_BELOW, Denoising, denoise, rounds
from ptycho_torch.reconstruction.engine import (
    LOW_DOSE,
    Engine,
    Placement,
    RefineOptions,
    mean_power,
    photons_per_pixel,
)
from ptycho_torch.reconstruction.probe_decision import ProbeDecision
from ptycho_torch.reconstruction.probe_gauge import mode_powers, with_modes
from ptycho_torch.reconstruction.waves import Amplitudes
from ptycho_torch.reconstruction.yardsticks import sample_of

if TYPE_CHECKING:
    from ptycho_torch.data.scan import ScanData

__all__ = ["Placement", "RefineOptions", "RefineResult", "choose_placement", "refine_object"]

COMPARED_PATTERNS = 256
"""Patterns on which the power of the probe is measured."""
PATTERNS_SEEN, MOST_EPOCHS = 20_000, 1_000
"""Epochs times patterns that form an object where patterns hardly overlap; and the most epochs."""
HELD_OUT_FROM = 64
"""Patterns of which some can be held out, to judge an object by, and from which on counts are followed
without being asked: of fewer, which hardly overlap, amplitudes made the better object."""
SMALL_PATTERN = 128
"""Up to this side of a pattern one thread of the processor is used."""
SURROUND = 6
"""Neighbors that a held-out pattern lies in the middle of."""


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
    mode_powers: tuple[float, ...] = ()
    """Part of the probe's power in each mode."""
    probe_decision: ProbeDecision | None = None
    """Why the probe was refined or kept, where that was to be found out."""
    positions_px: NDArray[np.float64] | None = None
    """(M, 2), corrected; None where they were not refined."""
    position_affine: NDArray[np.float64] | None = None
    """(2, 2): scale, rotation and shear in the correction. A position at p from the middle of the scan moves
    by `position_affine @ p`, and by what belongs to it alone."""
    background: NDArray[np.float32] | None = None
    """(N, N) intensity under every pattern, zero frequency at N // 2; None where none was estimated."""
    held_out: NDArray[np.int64] | None = None
    """Rows of the patterns that were not refined on."""
    held_out_losses: tuple[float, ...] = ()
    """Their loss after each epoch."""
    notices: tuple[str, ...] = ()
    unit: float | None = None
    """Intensity of one count, if the steps followed the likelihood of counts."""
    denoising: Denoising | None = None
    """How far the object was denoised, where it was asked for."""

    def more_arrays(self) -> dict[str, NDArray[Any]]:
        """Return by name what was found besides object and probe, for a file."""
        found = {
            "mode_powers": np.array(self.mode_powers),
            "positions_px": self.positions_px,
            "position_affine": self.position_affine,
            "background": self.background,
        }
        return {name: values for name, values in found.items() if values is not None}

    def record(self) -> dict[str, Any]:
        """Return what was decided and found, as plain data."""
        decision = self.probe_decision
        return {
            "placement": self.placement,
            "loss": self.losses[-1],
            "likelihood": "amplitude" if self.unit is None else "counts",
            "denoising": None if self.denoising is None else asdict(self.denoising),
            "losses": list(self.losses),
            "held_out_losses": list(self.held_out_losses),
            "mode_powers": list(self.mode_powers),
            "probe_decision": None
            if decision is None
            else {**asdict(decision), "unexplained": decision.unexplained},
            "position_affine": None if self.position_affine is None else self.position_affine.tolist(),
            "background_mean": None if self.background is None else float(self.background.mean()),
        }


Progress = Callable[[int, int, float], None]
"""Called after each epoch with the number of epochs done, the number of all, and the loss so far."""


def enough_epochs(patterns: int) -> int:
    """Return the epochs after which a refinement from a flat object gains little, for a number of patterns.

    The less patterns overlap, the more epochs their object takes: of 100 patterns of a scan, 200 leave an
    eighth of the error of 20; of 25 patterns, 1,000 leave a thirtieth.
    """
    return min(MOST_EPOCHS, math.ceil(PATTERNS_SEEN / patterns))


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
    placement: see `Placement`; auto asks `choose_placement`.
    Equal arguments give equal results, bit for bit on a CPU (above N = 128 with equal numbers of threads).
    Raises DataError when sizes do not match or the scan has no probe, UserError when the steps diverge.
    """
    began = time.perf_counter()
    options = options or RefineOptions()
    _check(scan, start, steps, options)
    modes, notices = _probe_in_data_units(scan, probe)
    if options.probe_modes > len(modes):
        modes, options = with_modes(modes, options.probe_modes), replace(options, refine_probe=True)
    data = Amplitudes(scan, torch.device(device))
    held_out = held_out_rows(scan.positions_px, options.held_out, seed)
    kind = choose_placement(scan) if placement == "auto" else placement
    with _few_threads(scan.n_pixels, data.device):
        unit = count_unit(scan, options.likelihood)
        denoises = _denoises(scan, options, unit, held_out)
        engine = Engine(scan, data, start, modes, kind, options, seed, held_out, unit)
        with shown_steps("refining", steps, unit="epochs") as step:
            for done in range(1, steps + 1):
                engine.epoch(steps)
                step(note=f"loss {engine.losses[-1]:.4g}")
                if progress:
                    progress(done, steps, engine.losses[-1])
        denoising = _denoised(scan, engine, seed) if denoises else None
    return _result(scan, engine, denoising, notices, time.perf_counter() - began)


def _result(
    scan: ScanData, engine: Engine, denoising: Denoising | None, notices: tuple[str, ...], seconds: float
) -> RefineResult:
    decision, correction, background = engine.decision, engine.correction, engine.background
    if decision is not None and decision.refined:
        notices = (*notices, decision.line())
    if denoising is not None:
        notices = (*notices, denoising.line())
    return RefineResult(
        object=engine.object(),
        probe=engine.probe.cpu().numpy(),
        coverage=engine.coverage(scan),
        losses=engine.losses,
        seconds=seconds,
        placement=engine.placement,
        mode_powers=tuple(mode_powers(engine.probe).tolist()),
        probe_decision=decision,
        positions_px=None if correction is None else correction.positions_px,
        position_affine=None if correction is None else correction.linear,
        unit=engine.unit,
        denoising=denoising,
        background=None if background is None else torch.fft.fftshift(background.intensity).cpu().numpy(),
        held_out=engine.held_out.numpy() if len(engine.held_out) else None,
        held_out_losses=tuple(engine.held_out_losses),
        notices=notices,
    )


def _denoises(
    scan: ScanData, options: RefineOptions, unit: float | None, held_out: NDArray[np.int64] | None
) -> bool:
    """Return whether the object will be denoised, before any work is done.

    Raises:
        DataError: it is asked for, and no counts are followed or no patterns held out.
    """
    able = unit is not None and held_out is not None
    if options.denoise is True and not able:
        lacking = "no patterns are held out" if held_out is None else "no counts are followed"
        raise DataError(
            f"the object cannot be denoised: {lacking}",
            where=str(scan.source or "the patterns"),
            expected="a refinement that follows counts (--likelihood counts) "
            f"of at least {HELD_OUT_FROM} patterns",
            fix="--denoise false, or auto" + ("" if held_out is None else "; or --likelihood counts"),
        )
    if options.denoise == "auto":
        return unit is not None and able and photons_per_pixel(scan, unit) <= DENOISED_BELOW
    return options.denoise


def _denoised(scan: ScanData, engine: Engine, seed: int) -> Denoising:
    """Denoise the object of a finished refinement, at the positions that it found."""
    moved = engine.correction
    found = scan if moved is None else replace(scan, positions_px=moved.positions_px)
    with shown_steps("denoising", rounds(), unit="rounds") as step:
        return denoise(found, engine, seed=seed, step=step)


def count_unit(scan: ScanData, likelihood: Literal["auto", "counts", "amplitude"]) -> float | None:
    """Return the intensity of one count, for steps that follow the likelihood of counts; else None.

    Raises:
        DataError: counts are asked for, and the patterns hold none.
    """
    by_itself = len(scan) >= HELD_OUT_FROM and _is_low_dose(scan)
    if likelihood == "amplitude" or (likelihood == "auto" and not by_itself):
        return None
    noise = sample_of(scan)[1]
    if noise.source == "counts":
        return noise.gain
    if likelihood == "counts":
        raise DataError(
            "the likelihood of counts is asked for, and the patterns hold none",
            where=str(scan.source or "the patterns"),
            expected="whole numbers of photons, or a known number of detector units for each",
            fix="--likelihood amplitude; or --gain VALUE, with the detector units of one photon",
        )
    return None


def _is_low_dose(scan: ScanData) -> bool:
    """Return whether few photons fell on a pixel of the object, if the patterns are counts."""
    stated = scan.report.get("units_per_count") or scan.report.get("count_quantum") or 1.0
    return photons_per_pixel(scan, float(stated)) < LOW_DOSE


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


def choose_placement(scan: ScanData) -> Placement:
    """Return what the sub-pixel part of a position moves in this scan: the probe, as in a measurement.

    The object only where the file shows it: with its own probe and object, both exact in a simulation,
    interpolating the object explains the patterns far better. A trial on the patterns alone does not tell:
    linear interpolation smooths the object, and so lowers the loss of the first epochs.
    """
    check = scan.report.get("forward_check") or {}
    return "object" if check.get("placement") == "object" else "probe"


def held_out_rows(positions_px: NDArray[np.float64], part: float, seed: int) -> NDArray[np.int64] | None:
    """Return which patterns to hold out, sorted: one, drawn by the seed, of each run of `1 / part` patterns.

    Patterns at the border of the scan are left in: part of their object is seen by no other pattern.
    """
    from scipy.spatial import cKDTree

    count = len(positions_px)
    wanted = round(part * count)
    if not wanted:
        return None
    neighbors = min(SURROUND + 1, count)
    found = cKDTree(positions_px).query(positions_px, k=neighbors)
    distance, near = np.asarray(found[0]), np.asarray(found[1])
    middle = positions_px[near[:, 1:]].mean(axis=1)
    off = np.linalg.norm(middle - positions_px, axis=1) / np.maximum(distance[:, 1:].mean(axis=1), 1e-12)
    inner = np.sort(np.argsort(off, kind="stable")[: max(count // 2, wanted)])
    rng = np.random.default_rng([seed, 2])
    return np.array([rng.choice(run) for run in np.array_split(inner, wanted)], dtype=np.int64)


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
    scale = math.sqrt(mean_power(scan, rows) / float(modes.abs().square().sum()))
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
