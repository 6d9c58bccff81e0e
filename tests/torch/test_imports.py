"""A command imports what it uses: whatever it takes to start is waited for every time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ptycho_torch.config import ScienceConfig
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.network.checkpoint import save_model
from ptycho_torch.simulate import save, simulate_scan
from tests.torch.workflows.tiny_runs import untrained

MODEL, SCAN = "model.ckpt", "scan.npz"
HEAVY = ("lightning", "torchmetrics", "torch._dynamo", "sympy", "scipy.signal", "matplotlib.pyplot")


@pytest.mark.parametrize(
    "words", [["infer", "--start=flat", "--refine=1", SCAN], ["reconstruct", SCAN], ["infer", MODEL, SCAN]]
)
def test_a_reconstruction_in_one_process_does_without_lightning(words: list[str], tmp_path: Path) -> None:
    scan = simulate_scan(n=32, patterns=40, seed=0)
    save_model(tmp_path / MODEL, untrained(PtychoPINN_Lightning, scan), ScienceConfig(), {})
    save(scan, tmp_path / SCAN)
    argv = [*words, "--out", str(tmp_path / "out")]
    program = (
        "import sys; from ptycho_torch.cli import main; code = main(sys.argv[1:]);"
        f"print('imported', *(name for name in {HEAVY!r} if name in sys.modules)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *argv], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported"
