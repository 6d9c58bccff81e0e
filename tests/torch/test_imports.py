"""A command imports what it uses: whatever it takes to start is waited for every time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ptycho_torch.simulate import save, simulate_scan

HEAVY = ("lightning", "torchmetrics", "torch._dynamo", "sympy", "scipy.signal", "matplotlib.pyplot")


@pytest.mark.parametrize("words", [["infer", "--start=flat", "--refine=1"], ["reconstruct"]])
def test_a_reconstruction_without_a_network_does_without_lightning(words: list[str], tmp_path: Path) -> None:
    scan = save(simulate_scan(n=32, patterns=40, seed=0), tmp_path / "scan.npz")
    argv = [words[0], str(scan), *words[1:], "--out", str(tmp_path / "out")]
    program = (
        "import sys; from ptycho_torch.cli import main; code = main(sys.argv[1:]);"
        f"print('imported', *(name for name in {HEAVY!r} if name in sys.modules)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *argv], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported"
