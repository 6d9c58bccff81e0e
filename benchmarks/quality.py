"""Quality against wall time: the network, the network and a few epochs of refinement, refinement from flat.

One training is paused at each mark; the network reconstructs and is scored while the clock stands still. Its
learning rate falls towards the last mark, as for somebody who has that long; `--own-runs` trains anew for
each mark, as for somebody who has just that long. Seconds of refinement are added to those of the training.

    python benchmarks/quality.py [--marks 30 60 120 300 600] [--gridsize 1] [--own-runs]
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import common
import numpy as np
from lightning.pytorch.callbacks import Callback

from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer import build as facade
from ptycho_torch.config import DataConfig, ScienceConfig, TrainingConfig
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.evaluation.metrics import Evaluation, evaluate
from ptycho_torch.factory import INFERENCE_DEFAULTS, TRAINING_DEFAULTS
from ptycho_torch.reconstruction.refine import refine_object
from ptycho_torch.workflows import components

QUIET = {"enable_progress_bar": False, "logger_backend": None, "early_stop_patience": None}


class Point(NamedTuple):
    """Wall seconds that a method took, and what it reached."""

    method: str
    seconds: float
    scores: dict[str, Any]


class Marks(Callback):
    """Scores the network when its training has taken `marks` seconds, not counting the scoring itself."""

    def __init__(self, scan: ScanData, marks: Sequence[float], refine: int, prepared_s: float) -> None:
        self.scan, self.left, self.refine = scan, sorted(marks), refine
        self.points: list[Point] = []
        self._start, self._paused, self._prepared = 0.0, 0.0, prepared_s

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        del trainer, pl_module
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        del rest
        if self.left and self._spent() >= self.left[0]:
            self._score(pl_module)
        if not self.left:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The epochs can be over a little before the last mark: score what they came to, at its true time."""
        del trainer
        if self.left:
            self._score(pl_module)

    def _spent(self) -> float:
        return self._prepared + time.perf_counter() - self._start - self._paused

    def _score(self, module: Any) -> None:
        now, spent = time.perf_counter(), self._spent()
        self.left = [mark for mark in self.left if mark > spent]
        self.points += score_network(module, self.scan, spent, self.refine)
        self._paused += time.perf_counter() - now


def score_network(module: Any, scan: ScanData, spent: float, refine: int) -> list[Point]:
    """Return the point of the network as it is, and that with `refine` epochs more on its object."""
    training = module.training
    settings = ExecutionSettings.from_values(QUIET).with_factory_defaults(**INFERENCE_DEFAULTS)
    science = ScienceConfig(data=module.data_config.model_copy(update={"N": None}))
    made = components.run_inference_with_lightning(_detached(module), scan, science, settings)
    module.train(training)
    points = [Point("network", spent, scored(made["object"], scan, made["coverage"]))]
    if refine:
        start = np.where(made["coverage"] > 0, made["object"], 1)
        probe = (module.probe * module.intensity_scale).detach().cpu().numpy()
        refined = refine_object(scan, start, refine, probe=probe)
        found = scored(refined.object, scan, refined.coverage)
        points.append(Point(f"network + {refine} epochs of refinement", spent + refined.seconds, found))
    return points


def _detached(module: Any) -> Any:
    """Return a copy that no Trainer holds: a second one may not take over a module that is in training."""
    trainer, module._trainer = module._trainer, None
    try:
        return copy.deepcopy(module).eval()
    finally:
        module._trainer = trainer


def scored(obj: np.ndarray[Any, Any], scan: ScanData, coverage: np.ndarray[Any, Any]) -> dict[str, Any]:
    assert scan.object_guess is not None
    found: Evaluation = evaluate(obj, scan.object_guess, coverage=coverage)
    return found.to_json()


def train(scan: ScanData, gridsize: int, epochs: int, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Train as the workflow does, with more callbacks."""
    settings = ExecutionSettings.from_values(QUIET).with_factory_defaults(**TRAINING_DEFAULTS)
    science = ScienceConfig(data=DataConfig(gridsize=gridsize), training=TrainingConfig(epochs=epochs))

    def with_marks(*args: Any, **kwargs: Any) -> Any:
        return facade.build_trainer(*args, **{**kwargs, "callbacks": (*kwargs["callbacks"], *callbacks)})

    clock = components.Clock()
    with patch.object(components, "build_trainer", with_marks):
        results = components._train_with_lightning(scan, None, science, settings, clock=clock)
    return {**results, "seconds": clock.seconds}


def network_points(scan: ScanData, marks: Sequence[float], gridsize: int, refine: int) -> list[Point]:
    """Train once, for as many epochs as the last mark allows, and score at each mark."""
    trial = train(scan, gridsize, 1)["seconds"]
    epochs = max(1, math.ceil(max(marks) / trial["fit"]))
    scorer = Marks(scan, marks, refine, trial["prepare"])
    train(scan, gridsize, epochs, [scorer])
    return scorer.points


def flat_points(scan: ScanData, epochs: Sequence[int]) -> list[Point]:
    """Refine from a flat start, anew for each number of epochs."""
    points = []
    for count in epochs:
        found = refine_object(scan, "flat", count)
        scores = scored(found.object, scan, found.coverage)
        points.append(Point(f"flat start, {count} epochs of refinement", found.seconds, scores))
    return points


COLUMNS = {
    "amplitude SSIM": ("amplitude_ssim", "{:.3f}"),
    "phase SSIM": ("phase_ssim", "{:.3f}"),
    "amplitude PSNR": ("amplitude_psnr_db", "{:.1f}"),
    "phase PSNR": ("phase_psnr_db", "{:.1f}"),
    "FRC half px": ("frc_half_px", "{:.2f}"),
    "NRMSE": ("nrmse", "{:.3f}"),
}


def print_points(points: Sequence[Point]) -> None:
    def cell(point: Point, key: str, form: str) -> str:
        value = point.scores.get(key)
        return "-" if value is None else form.format(value)

    rows = [
        (point.method, f"{point.seconds:.1f}", *(cell(point, *column) for column in COLUMNS.values()))
        for point in points
    ]
    common.print_table(("method", "seconds", *COLUMNS), rows)


def measure(scan: ScanData, space: argparse.Namespace) -> list[Point]:
    groups = [[mark] for mark in space.marks] if space.own_runs else [space.marks]
    networks = [
        point for marks in groups for point in network_points(scan, marks, space.gridsize, space.refine)
    ]
    return sorted(networks, key=lambda point: point.method) + flat_points(scan, space.flat_epochs)


def main() -> int:
    parser = common.arguments(__doc__)
    parser.add_argument("--marks", type=float, nargs="+", default=[30, 60, 120, 300, 600], metavar="SECONDS")
    parser.add_argument("--gridsize", type=int, default=1)
    parser.add_argument("--refine", type=int, default=5, help="epochs after the network [5]; 0 leaves it out")
    parser.add_argument("--flat-epochs", type=int, nargs="*", default=[10, 20, 30, 50], metavar="K")
    parser.add_argument("--own-runs", action="store_true", help="train anew for each mark")
    space = parser.parse_args()
    common.print_machine()
    with tempfile.TemporaryDirectory(prefix="quality_") as folder:
        scan = read_scan(common.scan_file(space.scan, Path(folder)), DataConfig())
    if scan.object_guess is None:
        raise SystemExit("this scan holds no true object to compare with")
    print(f"{len(scan)} patterns, gridsize {space.gridsize}; seconds of computation, scoring not counted")
    points = measure(scan, space)
    print_points(points)
    common.write_json("quality", {"points": [point._asdict() for point in points]}, space.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
