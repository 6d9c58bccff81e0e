"""How fast does refinement converge, and from where? Error against iterations and seconds, on one thread.

Starts: flat; the prediction of a trained network (--run); flat with a probe that is 20 % wrong and out of
focus, refined together with the object. An iteration is one minibatch; a row is one call as a user makes it.

python benchmarks/refinement.py --scan scan.npz --run RUN
python benchmarks/refinement.py --peer ptychi xptycho     # and Pty-Chi's LSQML and PMACE on the same file

Patterns per processor second are taken in turn in each round, so that a busy machine slows all alike. The
goal is amplitude and phase SSIM of 0.954 and 0.976; LSQML takes 50 epochs on the semi-real scan.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import engines
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ptycho_torch import evaluate, read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.model import load_model
from ptycho_torch.reconstruction.engine import Engine, RefineOptions
from ptycho_torch.reconstruction.refine import refine_object
from ptycho_torch.reconstruction.stitch import probe_coverage
from ptycho_torch.reconstruction.waves import Amplitudes
from ptycho_torch.workflows.components import run_inference_with_lightning

GOAL = (0.954, 0.976)
GOAL_TEXT = f"SSIM {GOAL[0]} / {GOAL[1]}"
EPOCHS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50)
LEVELS = (0.3, 0.2, 0.1, 0.07, 0.05, 0.03, 0.02)
RATE_EPOCHS = 5
OURS = "ours, 5 epochs"
PEER_EPOCHS = (5, 10, 20, 30, 40, 50, 75, 100, 150)


@dataclass(frozen=True)
class Start:
    """What a refinement begins with, and what it took to get there."""

    object: Any
    probe: np.ndarray[Any, Any]
    options: RefineOptions


@dataclass(frozen=True)
class Point:
    """Scores after some epochs, and the wall seconds of the whole call."""

    epochs: int
    amplitude_ssim: float
    phase_ssim: float
    nrmse: float
    seconds: float

    @property
    def good(self) -> bool:
        return self.amplitude_ssim >= GOAL[0] and self.phase_ssim >= GOAL[1]


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--run", type=Path, metavar="RUN", help="run directory of a network to start from")
    parser.add_argument(
        "--peer", nargs="+", choices=list(engines.ENGINES), default=[], help="also run these, where installed"
    )
    parser.add_argument("--peer-seconds", type=float, default=90.0, help="at most, of each one's curve [90]")
    space = parser.parse_args()
    others = {key: engines.load(key) for key in space.peer}
    torch.set_num_threads(1)
    common.print_machine()
    with tempfile.TemporaryDirectory(prefix="bench_refinement_") as folder:
        scan = read_scan(common.scan_file(space.scan, Path(folder)))
    judge = Judge(scan)
    curves: dict[str, list[Point]] = {}
    traces: dict[str, dict[str, int | None]] = {}
    for name, start in _starts(scan, space.run).items():
        curves[name] = _curve(scan, start, judge)
        _print_curve(name, len(scan), curves[name])
        if not start.options.refine_probe:
            traces[name] = _iterations(scan, start, judge)
    _print_traces(traces)
    for engine in others.values():
        curves[engine.name] = _curve_of(engine, scan, judge, space.peer_seconds)
        _print_curve(engine.name, len(scan), curves[engine.name])
    per_s = rates(scan, list(others.values()), space.rounds)
    _print_rates(per_s, curves)
    results = {"patterns": len(scan), "curves": {n: [vars(p) for p in c] for n, c in curves.items()}}
    results |= {"patterns_per_cpu_s": {name: row["per_s"] for name, row in per_s.items()}}
    results |= {"times_the_peer": {name: row["ratio"] for name, row in per_s.items() if "ratio" in row}}
    common.write_json("refinement", {**results, "iterations_to_nrmse": traces}, space.json)


class Judge:
    """Scores of an object against the scan's own, where the scan lights it."""

    def __init__(self, scan: ScanData) -> None:
        if scan.object_guess is None or scan.probe is None:
            raise SystemExit("this scan has no known object or probe; name another with --scan")
        positions, probe = torch.from_numpy(scan.positions_px), torch.from_numpy(scan.probe)
        self.truth = scan.object_guess
        self.coverage = probe_coverage(positions, probe, scan.canvas_shape).numpy()

    def point(self, made: np.ndarray[Any, Any], epochs: int, seconds: float) -> Point:
        found = evaluate(made, self.truth, coverage=self.coverage)
        return Point(epochs, found.amplitude_ssim, found.phase_ssim, found.nrmse, seconds)


def _starts(scan: ScanData, run: Path | None) -> dict[str, Start]:
    assert scan.probe is not None
    starts = {"flat": Start("flat", scan.probe, RefineOptions())}
    if run is not None:
        module, _ = load_model(run)
        began = time.perf_counter()
        made = run_inference_with_lightning(module, scan)
        predicted = np.where(made["coverage"] > 0, made["object"], 1)
        print(f"prediction and stitching: {time.perf_counter() - began:.2f} s")
        probe = (module.probe * module.intensity_scale).detach().cpu().numpy()
        starts["network"] = Start(predicted, probe, RefineOptions())
    starts["flat, wrong probe"] = Start("flat", wrong_probe(scan.probe), RefineOptions(refine_probe=True))
    return starts


def wrong_probe(probe: np.ndarray[Any, Any], part: float = 0.2, seed: int = 5) -> np.ndarray[Any, Any]:
    """Return a probe (P, N, N) out of focus, with a smooth error of `part` of its norm on top."""
    n = probe.shape[-1]
    frequency = np.fft.fftfreq(n)
    defocus = np.exp(20j * (frequency[:, None] ** 2 + frequency**2))
    blurred = np.fft.ifft2(np.fft.fft2(probe) * defocus)
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(2, n, n)), (0, 2, 2))
    error = (noise[0] + 1j * noise[1]) * np.abs(probe[0])
    return (blurred + part * error * np.linalg.norm(probe) / np.linalg.norm(error)).astype(np.complex64)


def _curve(scan: ScanData, start: Start, judge: Judge) -> list[Point]:
    """Refine anew for each number of epochs, as `ptycho-torch infer --refine` would, until all is well."""
    points = []
    for epochs in EPOCHS:
        began = time.perf_counter()
        made = refine_object(scan, start.object, epochs, probe=start.probe, options=start.options)
        points.append(judge.point(made.object, epochs, time.perf_counter() - began))
        if points[-1].nrmse < 0.005:
            break
    return points


def _iterations(scan: ScanData, start: Start, judge: Judge, most: int = 20) -> dict[str, int | None]:
    """Return the minibatches until the goal, and until the error first falls to each level.

    The calm steps at the end, which every call of a user has, are left out.
    """
    data = Amplitudes(scan, torch.device("cpu"))
    kind = refine_object(scan, start.object, 1, probe=start.probe).placement
    engine = Engine(scan, data, start.object, torch.from_numpy(start.probe).clone(), kind, start.options, 0)
    reached: dict[str, int | None] = {GOAL_TEXT: None} | {f"NRMSE {level}": None for level in LEVELS}
    for done, point in _steps(engine, judge, start.options.step_size, most):
        passed = {GOAL_TEXT: point.good} | {f"NRMSE {level}": point.nrmse <= level for level in LEVELS}
        for name, is_passed in passed.items():
            if is_passed and reached[name] is None:
                reached[name] = done
        if point.nrmse <= LEVELS[-1]:
            break
    return reached


def _steps(engine: Engine, judge: Judge, size: float, most: int) -> Iterator[tuple[int, Point]]:
    done = 0
    yield done, judge.point(engine.object(), 0, 0.0)
    for _ in range(most):
        for rows, region in engine.batches():
            engine.step(rows, region, size)
            done += 1
            if done % 4 == 0:
                yield done, judge.point(engine.object(), 0, 0.0)


def _print_curve(name: str, patterns: int, points: list[Point]) -> None:
    rows = [
        (
            f"{name}, {p.epochs} epochs",
            f"{p.amplitude_ssim:.3f} / {p.phase_ssim:.3f}",
            f"{p.nrmse:.4f}",
            f"{p.seconds:.2f}",
            f"{patterns * p.epochs / p.seconds:.0f}",
        )
        for p in points
    ]
    common.print_table(("start", "amplitude / phase SSIM", "NRMSE", "seconds", "patterns/s"), rows)
    first = _first_good(points)
    reached = "not reached" if first is None else f"{first.epochs} epochs, {first.seconds:.2f} s"
    print(f"to {GOAL[0]} / {GOAL[1]}: {reached}\n")


def _first_good(points: list[Point]) -> Point | None:
    return next((point for point in points if point.good), None)


def _print_traces(traces: dict[str, dict[str, int | None]]) -> None:
    if "network" not in traces:
        return
    rows = []
    for level, flat in traces["flat"].items():
        network = traces["network"][level]
        ratio = "-" if not flat or network is None else f"{network / flat:.2f}"
        rows.append((level, str(flat), str(network), ratio))
    common.print_table(("iterations to", "flat", "network", "network / flat"), rows)
    print()


# --- others, and rates -----------------------------------------------------------------------------------


def _curve_of(engine: engines.Engine, scan: ScanData, judge: Judge, seconds_at_most: float) -> list[Point]:
    """Run another engine from a flat object with the known probe, until it is good or has no time."""
    task = engine.begin(scan)
    points: list[Point] = []
    done, seconds = 0, 0.0
    for epochs in PEER_EPOCHS:
        began = time.perf_counter()
        task.run(epochs - done)
        seconds += time.perf_counter() - began
        done = epochs
        points.append(judge.point(task.read(), epochs, seconds))
        if points[-1].good or seconds > seconds_at_most:
            break
    return points


def rates(
    scan: ScanData, others: Sequence[engines.Engine], rounds: int
) -> dict[str, dict[str, common.Spread]]:
    """Return patterns per processor second, ours first, and how many times that of each other ours is.

    Ours is a whole call of five epochs, start and end included; theirs are epochs of a run that goes on.
    """

    def rate(run: Callable[[], object], epochs: int) -> Callable[[], float]:
        def call() -> float:
            began = time.process_time()
            run()
            return epochs * len(scan) / (time.process_time() - began)

        return call

    calls = {OURS: rate(lambda: refine_object(scan, "flat", RATE_EPOCHS), RATE_EPOCHS)}
    for engine in others:
        task = engine.begin(scan)
        task.run(1)  # what happens only once is not counted
        calls[engine.name] = rate(lambda task=task: task.run(1), 1)  # type: ignore[misc]
    calls[OURS]()
    taken = common.in_turn(calls, rounds)
    found = {name: {"per_s": common.spread(values)} for name, values in taken.items()}
    for engine in others:
        found[engine.name]["ratio"] = common.ratios(taken[engine.name], taken[OURS])
    return found


def _print_rates(found: dict[str, dict[str, common.Spread]], curves: dict[str, list[Point]]) -> None:
    own = _first_good(curves["flat"])
    rows = []
    for name, row in found.items():
        goal = None if name == OURS else _first_good(curves[name])
        faster = "-" if own is None or goal is None else f"{goal.seconds / own.seconds:.1f}"
        rows.append((name, row["per_s"], row.get("ratio", "1"), faster))
    head = ("engine, flat start", "patterns per processor s", "ours is times", "and to the goal")
    common.print_table(head, rows)
    for name in found:
        if name != OURS and _first_good(curves[name]) is None:
            print(f"{name} did not reach the goal in {curves[name][-1].epochs} epochs")


if __name__ == "__main__":
    main()
