"""Network or iteration? Scores of each method against the photons of a pattern and the number of patterns.

Each scan is made from a known object and probe: patterns by the forward model, counts drawn anew for each
seed. `photons` are those of a pattern on average. Fewer patterns are drawn at random from the scan. "new"
rows reconstruct an object (the same, turned by 90 degrees) with a network that never saw it.

    network          the network alone
    network+refine   and refined, as `infer --refine N` does it; denoised where that is decided
    beam, beam+refine  the same of a network that was trained for the beam (`--beam RUN`)
    iteration        refined from a flat object, likelihood by dose, not denoised
    iteration+denoise the same, denoised where that is decided

    python benchmarks/dose_and_overlap.py [--scan FILE] [--photons 1e6 1e4 ...] [--patterns 1000 100 ...]
        [--seeds 3] [--epochs 15] [--gridsizes 1 2] [--jobs 2] [--peer]

Without `--scan` the objects are simulated: dead leaves and a Siemens star. `--peer` adds Pty-Chi's LSQML.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_exec.errors import UserError
from ptycho_torch import simulate_scan
from ptycho_torch.config import DataConfig, InferenceConfig, ScienceConfig, TrainingConfig
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.evaluation.metrics import evaluate
from ptycho_torch.reconstruction.refine import enough_epochs
from ptycho_torch.reconstruction.stitch import probe_coverage
from ptycho_torch.simulate import diffract
from ptycho_torch.workflows import components

QUIET = {"enable_progress_bar": False, "logger_backend": None, "num_threads": 1, "early_stop_patience": None}
SIMULATED = ("dead_leaves", "siemens_star")


class Case(NamedTuple):
    """One scan to reconstruct, and how."""

    source: str
    """Path of a scan, or kind of a simulated object."""
    photons: float
    patterns: int
    seed: int
    gridsize: int
    epochs: int
    refine: int
    peer: bool
    accelerator: str
    beam: str | None
    """A run of `ptycho-torch pretrain` for the scan's probe."""


@cache
def true_scan(source: str) -> ScanData:
    """Return a scan whose object and probe are known."""
    if source in SIMULATED:
        return simulate_scan(n=64, patterns=1000, photons=1e6, object_kind=source, seed=1)  # type: ignore[arg-type]
    return read_scan(Path(source))


def counted(scan: ScanData, obj: NDArray[np.complex64], photons: float, seed: int) -> ScanData:
    """Return the scan with patterns of this object, as counts of so many photons each on average."""
    probe = np.asarray(scan.probe)
    modes = probe[None] if probe.ndim == 2 else probe
    intensity = diffract(obj, modes, scan.positions_px).astype(np.float64)
    gain = photons / intensity.sum(axis=(1, 2)).mean()
    counts = np.random.default_rng([seed, 17]).poisson(gain * intensity)
    return replace(
        scan,
        patterns=counts.astype(np.uint32),
        domain="intensity",
        probe=(math.sqrt(gain) * probe).astype(np.complex64),
        object_guess=obj,
        labels=None,
        report={},
    )


def turned(scan: ScanData) -> NDArray[np.complex64]:
    """Return the scan's object turned by 90 degrees, on its canvas."""
    obj = np.asarray(scan.object_guess)
    side = min(obj.shape)
    result = obj.copy()
    result[:side, :side] = np.rot90(obj[:side, :side])
    return result


def drawn(scan: ScanData, patterns: int, seed: int) -> ScanData:
    """Return so many patterns of a scan, drawn at random."""
    if patterns >= len(scan):
        return scan
    return scan.subset(np.sort(np.random.default_rng([seed, 5]).choice(len(scan), patterns, replace=False)))


def scored(
    method: str, case: Case, result: Any, truth: NDArray[np.complex64], seconds: float
) -> dict[str, Any]:
    """Return one row of the table."""
    try:
        scores = evaluate(result.object, truth, coverage=result.coverage)
    except UserError as error:  # too little of the object is covered
        return {**described(method, case), "error": str(error).splitlines()[0]}
    verdict = getattr(result, "verdict", None)
    return {
        **described(method, case),
        "nrmse": float(scores.nrmse),
        "amplitude_ssim": float(scores.amplitude_ssim),
        "phase_ssim": float(scores.phase_ssim),
        "verdict": None if verdict is None else verdict.status,
        "seconds": seconds,
    }


def described(method: str, case: Case) -> dict[str, Any]:
    """Return what a row is about."""
    return {
        "method": method,
        **{k: v for k, v in case._asdict().items() if k not in ("peer", "accelerator", "beam")},
    }


def measure(case: Case) -> list[dict[str, Any]]:
    """Train on one scan, and reconstruct it and a new object by every method."""
    warnings.filterwarnings("ignore")
    scan, quiet = true_scan(case.source), {**QUIET, "seed": case.seed, "accelerator": case.accelerator}
    science = ScienceConfig(
        data=DataConfig(gridsize=case.gridsize),
        training=TrainingConfig(epochs=max(1, case.epochs)),
        inference=InferenceConfig(),
    )
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    same = counted(scan, np.asarray(scan.object_guess), case.photons, case.seed)
    network: Any = None
    try:
        network = components.train(same, None, science, quiet) if case.epochs else None
    except UserError as error:
        rows.append({**described("network", case), "error": str(error).splitlines()[0]})
    trained_s = time.perf_counter() - began
    new = counted(scan, turned(scan), case.photons, case.seed + 1000)
    for name, whole in (("", same), (" new", new)):
        part = drawn(whole, case.patterns, case.seed)
        truth = np.asarray(whole.object_guess)
        ways: list[tuple[str, Any, dict[str, Any]]] = [
            ("iteration", None, {"start": "flat", "refine": case.refine, "denoise": False}),
            ("iteration+denoise", None, {"start": "flat", "refine": case.refine}),
        ]
        if network is not None:
            ways += [("network", network, {}), ("network+refine", network, {"refine": case.refine})]
        if case.beam is not None:
            ways += [("beam", case.beam, {}), ("beam+refine", case.beam, {"refine": case.refine})]
        for method, model, asked in ways:
            began = time.perf_counter()
            try:
                found = components.reconstruct(
                    model, part, None if model is case.beam else science, quiet, asked
                )
            except UserError as error:
                rows.append({**described(method + name, case), "error": str(error).splitlines()[0]})
                continue
            seconds = time.perf_counter() - began + (trained_s if model is network is not None else 0)
            rows.append(scored(method + name, case, found, truth, seconds))
        if case.peer:
            rows.append(by_peer(part, truth, name, case))
    return rows


def by_peer(scan: ScanData, truth: NDArray[np.complex64], name: str, case: Case) -> dict[str, Any]:
    """Return the row of Pty-Chi's LSQML."""
    import engines

    began = time.perf_counter()
    task = engines.load("ptychi").begin(scan)
    task.run(case.refine)
    probe = torch.from_numpy(np.asarray(scan.probe)).reshape(-1, scan.n_pixels, scan.n_pixels)
    coverage = probe_coverage(torch.from_numpy(scan.positions_px), probe, scan.canvas_shape)
    found = argparse.Namespace(object=task.read(), coverage=coverage.numpy(), verdict=None)
    return scored("LSQML" + name, case, found, truth, time.perf_counter() - began)


def cases(space: argparse.Namespace) -> Iterator[Case]:
    """Yield what is to be measured: doses on the whole scan, and patterns at the highest dose."""
    sources = [str(space.scan)] if space.scan else list(SIMULATED)
    for source in sources:
        most = len(true_scan(source))
        counts = [min(count, most) for count in space.patterns]
        wanted = {(dose, max(counts)) for dose in space.photons}
        wanted |= {(max(space.photons), count) for count in counts}
        for (dose, count), seed, gridsize in itertools.product(
            sorted(wanted), range(space.seeds), space.gridsizes
        ):
            refine = max(space.refine, enough_epochs(count))
            yield Case(
                source,
                dose,
                count,
                seed,
                gridsize,
                space.epochs,
                refine,
                space.peer,
                space.accelerator,
                space.beam,
            )


def table(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[object, ...]]:
    """Yield a line per object, dose, patterns, gridsize and method: medians over the seeds."""
    keys = ("source", "photons", "patterns", "gridsize", "method")
    named = sorted({tuple(row[key] for key in keys) for row in rows}, key=str)
    for name in named:
        own = [row for row in rows if tuple(row[key] for key in keys) == name]
        good = [row for row in own if "nrmse" in row]
        shown = (Path(name[0]).stem, f"{name[1]:g}", *name[2:])
        if not good:
            yield *shown, own[0]["error"][:60], "", "", ""
            continue
        middle = [np.median([row[key] for row in good]) for key in ("nrmse", "amplitude_ssim", "phase_ssim")]
        verdicts = "/".join(sorted({str(row["verdict"]) for row in good}))
        yield *shown, *(f"{value:.3f}" for value in middle), verdicts


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the medians against dose and against the number of patterns, a panel each for every object."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sources = sorted({row["source"] for row in rows})
    figure, axes = plt.subplots(len(sources), 2, figsize=(11, 4 * len(sources)), squeeze=False)
    for line, source in zip(axes, sources, strict=True):
        own = [row for row in rows if row["source"] == source and "nrmse" in row]
        for panel, key, fixed in zip(line, ("photons", "patterns"), ("patterns", "photons"), strict=True):
            most = max(row[fixed] for row in own)
            here = [row for row in own if row[fixed] == most]
            for gridsize, method in sorted({(row["gridsize"], row["method"]) for row in here}):
                mine = [row for row in here if (row["gridsize"], row["method"]) == (gridsize, method)]
                at = sorted({row[key] for row in mine})
                middle = [np.median([row["nrmse"] for row in mine if row[key] == x]) for x in at]
                label = f"{method} (gridsize {gridsize})" if method.startswith("network") else method
                panel.loglog(at, middle, "o-", label=label, markersize=3)
            panel.set(xlabel="photons per pattern" if key == "photons" else "patterns", ylabel="NRMSE")
            panel.set_title(f"{Path(source).stem}, {fixed}: {most:g}")
        line[0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def parser() -> argparse.ArgumentParser:
    """Return what the command line takes."""
    space = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    space.add_argument("--scan", type=Path, help="scan with its true object and probe")
    space.add_argument("--photons", type=float, nargs="+", default=[1e6, 1e5, 1e4, 3e3, 1e3, 3e2])
    space.add_argument("--patterns", type=int, nargs="+", default=[1000, 100, 50, 25, 12])
    space.add_argument("--seeds", type=int, default=3)
    space.add_argument("--epochs", type=int, default=15, help="of the network; 0 trains none")
    space.add_argument("--refine", type=int, default=20, help="epochs; of few patterns more")
    space.add_argument("--gridsizes", type=int, nargs="+", default=[1])
    space.add_argument("--accelerator", default="cpu")
    space.add_argument("--jobs", type=int, default=1, help="scans at once")
    space.add_argument("--beam", metavar="RUN", help="a run of `ptycho-torch pretrain` for the scan's probe")
    space.add_argument("--peer", action="store_true", help="add Pty-Chi's LSQML")
    space.add_argument("--json", type=Path)
    return space


def main() -> int:
    """Measure, print the table, write the figures."""
    space = parser().parse_args()
    common.print_machine()
    work = list(cases(space))
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(space.jobs) as pool:
        for done, found in enumerate(pool.map(measure, work), start=1):
            rows += found
            print(f"{done} of {len(work)}: {work[done - 1][:5]}", flush=True)
    common.print_table(
        ("object", "photons", "patterns", "g", "method", "NRMSE", "amp SSIM", "phase SSIM", "verdict"),
        table(rows),
    )
    written = common.write_json("dose_and_overlap", {"rows": rows}, space.json)
    draw(rows, written.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
