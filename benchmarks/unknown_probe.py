"""Is the right object found where nobody knows the probe? Simulated scans of many kinds, each with its truth.

X-ray-like scans: a strong object, a zone plate with or without a stop, 1e5 to 3e6 photons per pattern.
Electron-like ones: a weak phase object, a wide aperture that fills much of the detector, 1e4 to 1e5. Probes:
defocused; aberrated; structured by a diffuser; two or three incoherent modes; a soft disk of the object's
plane. Defocus of both signs, rasters and spirals with jitter, Poisson noise.

The probe is estimated from the patterns, and the object refined from it. Agreement is the correlation of the
object's contrast with that of the truth, its mean taken away, free of phase, ramp and shift; right is 0.9.
With --orient, the positions are turned at random, and the orientation is asked for, at 1e3 to 1e6 photons.

    python benchmarks/unknown_probe.py [--scans 30] [--orient 20] [--jobs 1]
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import common
import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.data.assemble import fit_canvas, scan_from_arrays
from ptycho_torch.data.scan import ScanData
from ptycho_torch.evaluation.metrics import evaluate
from ptycho_torch.reconstruction.orientation import ORIENTATIONS, find_orientation, orient_positions
from ptycho_torch.reconstruction.probe_estimate import estimate_probe
from ptycho_torch.reconstruction.refine import RefineOptions, refine_object
from ptycho_torch.reconstruction.stitch import probe_coverage
from ptycho_torch.simulate import diffract, make_object, make_probe, scan_positions

N = 64
RIGHT = 0.9
PROBES = ("defocused", "aberrated", "diffuser", "modes", "soft disk")
GEOMETRIES = ("x-ray", "electron")
OBJECTS = ("dead_leaves", "star_and_leaves", "siemens_star")
REFINED = RefineOptions(refine_probe=True)


@dataclass(frozen=True)
class Row:
    """One scan: what it is, and what was found."""

    number: int
    probe: str
    geometry: str
    photons: float
    step_px: float
    chosen: str
    agreement: float
    certain: bool
    margin: float
    explained: float
    search_s: float
    refine_s: float

    @property
    def right(self) -> bool:
        return self.agreement >= RIGHT


def lens_probe(
    rng: np.random.Generator,
    aperture: float,
    k: float,
    aberration_rad: float,
    diffuser_rad: float,
    stop: float,
) -> NDArray[np.complex64]:
    """Return (1, N, N), the focus of a lens.

    aperture: its radius in cycles per pixel. k: defocus, as phase k f^2. aberration_rad: rms of astigmatism,
    coma, trefoil and spherical aberration. diffuser_rad: rms of a random phase, correlated over 6 pixels.
    stop: radius of a central stop, as a part of the aperture's.
    """
    frequency = (np.arange(N) - N // 2) / N
    y, x = frequency[:, None] / aperture, frequency[None, :] / aperture
    r = np.hypot(y, x)
    soft = 0.7 / (aperture * N)
    pupil = 1 / (1 + np.exp((r - 1) / soft))
    if stop:
        pupil *= 1 / (1 + np.exp((stop - r) / soft))
    shapes = (
        y * y - x * x,
        2 * y * x,
        (3 * r * r - 2) * y,
        (3 * r * r - 2) * x,
        6 * r**4 - 6 * r * r,
        y * (y * y - 3 * x * x),
    )
    bent = sum(weight * shape for weight, shape in zip(rng.standard_normal(len(shapes)), shapes, strict=True))
    low_pass = np.exp(-2 * (6 * np.pi) ** 2 * (np.fft.fftfreq(N)[:, None] ** 2 + np.fft.fftfreq(N) ** 2))
    rough = np.fft.ifft2(np.fft.fft2(rng.standard_normal((N, N))) * low_pass).real
    phase = k * (aperture * r) ** 2
    phase = phase + aberration_rad * bent / np.std(bent[r < 1]) + diffuser_rad * rough / rough.std()
    wave = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(pupil * np.exp(1j * phase))))
    return np.asarray(wave[None], dtype=np.complex64)


def make_scan(number: int, patterns: int, photons: float | None = None) -> tuple[ScanData, dict[str, Any]]:
    """Return a scan that holds its truth, and what it is; equal numbers give equal scans."""
    rng = np.random.default_rng(1000 + number)
    kind, geometry = PROBES[number % len(PROBES)], GEOMETRIES[number // len(PROBES) % len(GEOMETRIES)]
    x_ray = geometry == "x-ray"
    aperture = rng.uniform(0.12, 0.2) if x_ray else rng.uniform(0.25, 0.38)
    k = rng.choice((-1, 1)) * rng.uniform(0.07, 0.16) * N * math.pi / (aperture / math.sqrt(2))
    drawn = 10 ** (rng.uniform(5, 6.5) if x_ray else rng.uniform(4, 5))
    stop = 0.35 if x_ray and kind != "modes" and rng.random() < 0.5 else 0.0
    if kind == "soft disk":
        radius, curvature = rng.uniform(0.12, 0.22) * N, rng.choice((-1, 1)) * rng.uniform(1, 5)
        probe = make_probe(N, 1, 1, radius, curvature, rng.uniform(0, 0.5))
    else:
        aberration = 0.8 if kind == "aberrated" else 0.2
        probe = lens_probe(rng, aperture, k, aberration, 1.0 if kind == "diffuser" else 0.0, stop)
    probe = with_modes(probe, int(rng.integers(2, 4)) if kind == "modes" else 1)
    powers = 0.3 ** np.arange(len(probe))
    norms = np.sqrt(np.square(np.abs(probe)).sum(axis=(1, 2)))
    scale = np.sqrt((photons or drawn) * powers / powers.sum()) / norms
    probe = np.asarray(probe * scale[:, None, None], dtype=np.complex64)
    step = float(np.clip(rng.uniform(0.25, 0.6) * math.sqrt(2) * radius_px(probe), 2, 12))
    centers = scan_positions(patterns, step, "raster" if rng.random() < 0.5 else "fermat")
    centers += rng.uniform(-0.15 * step, 0.15 * step, centers.shape)
    canvas, shift = fit_canvas(centers, N)
    truth = make_object(canvas, OBJECTS[int(rng.integers(3))], rng, 1.0 if x_ray else 0.5)  # type: ignore[arg-type]
    if not x_ray:
        truth = np.asarray(truth / np.abs(truth), dtype=np.complex64)
    counts = rng.poisson(diffract(truth, probe, centers + shift)).astype(np.uint32)
    scan = scan_from_arrays(counts, centers + shift, probe=probe, object_guess=truth, domain="intensity")
    facts = {"probe": kind, "geometry": geometry, "photons": photons or drawn, "step_px": step}
    return scan, facts


def with_modes(probe: NDArray[np.complex64], modes: int) -> NDArray[np.complex64]:
    """Return a probe of `modes` modes (P, N, N); further ones are the first times y, x, y^2, yx ..."""
    if len(probe) >= modes:
        return probe[:modes]
    n = probe.shape[-1]
    first = probe[0].astype(np.complex128)
    weight = np.square(np.abs(first))
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    y, x = (axis - (weight * axis).sum() / weight.sum() for axis in (y, x))
    radius = math.sqrt(float((weight * (y**2 + x**2)).sum() / weight.sum()))
    orders = sorted((i + j, j, i) for i in range(modes) for j in range(modes))[len(probe) : modes]
    made = [mode.astype(np.complex128).ravel() for mode in probe]
    for _, j, i in orders:
        mode = (first * (y / radius) ** i * (x / radius) ** j).ravel()
        for other in made:
            mode -= other * (np.vdot(other, mode) / max(float(np.vdot(other, other).real), 1e-300))
        power = 0.1 * float(np.linalg.norm(made[-1])) ** 2
        made.append(mode * (math.sqrt(power) / max(float(np.linalg.norm(mode)), 1e-150)))
    return np.stack(made).reshape(modes, n, n).astype(np.complex64)


def radius_px(probe: NDArray[np.complex64]) -> float:
    """Return the root-mean-square distance of the light of a probe (P, N, N) from its middle."""
    weight = np.square(np.abs(probe)).sum(axis=0)
    y, x = np.mgrid[:N, :N] - (N - 1) / 2
    return math.sqrt(float((weight * (y**2 + x**2)).sum() / weight.sum()))


def agreement(obj: NDArray[np.complex64], scan: ScanData) -> float:
    """Return the correlation of the contrast of an object with that of the scan's truth, 0 to 1."""
    assert scan.object_guess is not None
    assert scan.probe is not None
    positions, probe = torch.from_numpy(scan.positions_px), torch.from_numpy(scan.probe)
    coverage = probe_coverage(positions, probe, scan.canvas_shape).numpy()
    found = evaluate(obj, scan.object_guess, coverage=coverage, max_shift_px=N / 3)
    ours, true = (image - image.mean() for image in (found.reconstruction, found.truth))
    return float(abs(np.vdot(ours, true)) / (np.linalg.norm(ours) * np.linalg.norm(true)))


def probe_row(number: int, patterns: int, epochs: int, jobs: int) -> Row:
    """Estimate the probe of one scan, refine from it, and compare with the truth."""
    scan, facts = make_scan(number, patterns)
    assert scan.probe is not None
    began = time.perf_counter()
    found = estimate_probe(replace(scan, probe=None), modes=len(scan.probe), jobs=jobs)
    searched = time.perf_counter()
    refined = refine_object(scan, "flat", epochs, probe=found.probe, options=REFINED, placement="probe")
    took = (searched - began, time.perf_counter() - searched)
    alike = agreement(refined.object, scan)
    return Row(
        number, **facts, chosen=found.chosen, agreement=alike, certain=found.certain, margin=found.margin,
        explained=found.explained, search_s=took[0], refine_s=took[1],
    )  # fmt: skip


def measure_probes(space: argparse.Namespace) -> list[Row]:
    rows = []
    for number in range(space.first, space.first + space.scans):
        rows.append(probe_row(number, space.patterns, space.epochs, space.jobs))
        print(f"scan {number}: agreement {rows[-1].agreement:.3f}, certain {rows[-1].certain}", flush=True)
    head = (
        "probe",
        "geometry",
        "photons",
        "step",
        "agreement",
        "certain",
        "margin",
        "explained",
        "chosen",
        "s",
    )
    common.print_table(
        head,
        [
            (
                row.probe, row.geometry, f"{row.photons:.0e}", f"{row.step_px:.1f}", f"{row.agreement:.3f}",
                row.certain, f"{row.margin:.3f}", f"{row.explained:.2f}", row.chosen, f"{row.search_s:.0f}",
            )
            for row in rows
        ],
    )  # fmt: skip
    wrong = [row for row in rows if not row.right]
    print(
        f"right object in {len(rows) - len(wrong)} of {len(rows)}; wrong but certain: "
        f"{sum(row.certain for row in wrong)}; right but not certain: "
        f"{sum(not row.certain for row in rows if row.right)}"
    )
    return rows


def measure_orientations(space: argparse.Namespace) -> list[dict[str, Any]]:
    """Turn the positions of scans at random and ask for the orientation, with the probe unknown."""
    rows: list[dict[str, Any]] = []
    for number in range(space.first, space.first + space.orient):
        photons = 10 ** (3 + number % 20 / 19 * 3)
        scan, facts = make_scan(number, space.patterns, photons)
        name = ORIENTATIONS[number * 3 % len(ORIENTATIONS)]
        turned = replace(scan, probe=None, positions_px=orient_positions(scan.positions_px, name))
        began = time.perf_counter()
        try:
            found = find_orientation(turned, jobs=space.jobs)
        except DataError as error:
            raise SystemExit(f"scan {number}: {error}") from error
        undone = orient_positions(turned.positions_px, found.chosen)
        up = np.ptp(scan.positions_px - undone, axis=0).max() < 1e-6
        down = np.ptp(scan.positions_px + undone, axis=0).max() < 1e-6
        rows.append(
            {
                **facts, "turned": name, "chosen": found.chosen, "right": bool(up or down),
                "clear": found.clear, "margin": found.margin, "explained": found.explained,
                "seconds": time.perf_counter() - began,
            }
        )  # fmt: skip
        print(
            f"orientation {number}: {rows[-1]['right']}, clear {found.clear}, {found.margin:.3f}", flush=True
        )
    head = ("probe", "geometry", "photons", "turned", "chosen", "right", "clear", "margin", "explained", "s")
    common.print_table(
        head,
        [
            (
                row["probe"], row["geometry"], f"{row['photons']:.0e}", row["turned"], row["chosen"],
                row["right"], row["clear"], f"{row['margin']:.3f}", f"{row['explained']:.2f}",
                f"{row['seconds']:.0f}",
            )
            for row in rows
        ],
    )  # fmt: skip
    print(
        f"orientation: {sum(row['right'] for row in rows)} of {len(rows)} right, "
        f"{sum(row['clear'] and not row['right'] for row in rows)} clear and wrong, "
        f"{sum(row['right'] and not row['clear'] for row in rows)} right and not clear"
    )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--json", type=common.Path, metavar="FILE", help="results [benchmarks/results/NAME.json]"
    )
    parser.add_argument("--scans", type=int, default=30, help="scans with an unknown probe [30]")
    parser.add_argument("--first", type=int, default=0, help="number of the first scan [0]")
    parser.add_argument("--orient", type=int, default=20, help="scans with an unknown orientation [20]")
    parser.add_argument("--patterns", type=int, default=225, help="of each scan [225]")
    parser.add_argument("--epochs", type=int, default=20, help="of the refinement after the search [20]")
    parser.add_argument("--jobs", type=int, default=1, help="starts refined at the same time [1]")
    space = parser.parse_args()
    torch.set_num_threads(1)
    common.print_machine()
    probes = measure_probes(space) if space.scans else []
    turned = measure_orientations(space) if space.orient else []
    results = {"probes": [asdict(row) for row in probes], "orientations": turned}
    common.write_json("unknown_probe", results, space.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
