"""Does training succeed whatever the seed? Trains the same scan with several seeds and scores each.

python benchmarks/training_seeds.py                     # the demo's scan
python benchmarks/training_seeds.py --scan scan.npz     # a scan with a known object
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ptycho_exec import ExecutionSettings
from ptycho_torch import (
    ScienceConfig,
    TrainingConfig,
    evaluate,
    read_scan,
    run_cdi_example_torch,
    simulate_scan,
)
from ptycho_torch.cli import DEMO
from ptycho_torch.data.scan import ScanData
from ptycho_torch.factory import TRAINING_DEFAULTS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scan", type=Path, help="scan file with a known object; none simulates the demo's")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=10)
    space = parser.parse_args()
    scan = read_scan(space.scan) if space.scan else simulate_scan(object_kind="siemens_star", **DEMO)
    print(f"{space.scan or 'demo scan'}: {len(scan)} patterns, {space.epochs} epochs per seed")
    print("seed  first loss  last loss  amplitude SSIM  phase SSIM  NRMSE  seconds")
    reached = [train_once(scan, seed, space.epochs) for seed in range(space.seeds)]
    amplitude, phase = (sorted(row[index] for row in reached) for index in (0, 1))
    print(f"min {amplitude[0]:.3f} / {phase[0]:.3f}, median {amplitude[len(reached) // 2]:.3f} / "
          f"{phase[len(reached) // 2]:.3f}; {len(reached)} of {space.seeds} trained")  # fmt: skip


def train_once(scan: ScanData, seed: int, epochs: int) -> tuple[float, float]:
    """Train and score one seed; a collapse or a plateau raises, as it does for a user."""
    values = {"seed": seed, "logger_backend": None, "enable_progress_bar": False}
    settings = ExecutionSettings.from_values(values).with_factory_defaults(**TRAINING_DEFAULTS)
    science = ScienceConfig(training=TrainingConfig(epochs=epochs))
    start = time.perf_counter()
    _, _, results = run_cdi_example_torch(scan, None, science, execution_config=settings)
    seconds = time.perf_counter() - start
    made = results["inference"]
    assert scan.object_guess is not None
    score = evaluate(made["object"], scan.object_guess, coverage=made["coverage"])
    losses = results["history"]["train_loss"]
    print(
        f"{seed:4}  {losses[0]:10.4f}  {losses[-1]:9.4f}  {score.amplitude_ssim:14.3f}  "
        f"{score.phase_ssim:10.3f}  {score.nrmse:5.3f}  {seconds:7.1f}",
        flush=True,
    )
    return score.amplitude_ssim, score.phase_ssim


if __name__ == "__main__":
    main()
