"""The released program itself, without a window: `ptychodus -b train`, then `-b reconstruct`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.data.formats.ptychodus import write_ptychodus
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.evaluation.metrics import Evaluation, evaluate
from ptycho_torch.reconstruction.stitch import probe_coverage
from ptycho_torch.simulate import simulate_scan

pytestmark = pytest.mark.skipif(find_spec("ptychodus") is None, reason="needs the ptychodus extra")

SETTINGS = """
[Processing]
Algorithm = PtychoPINN-Torch_Unsupervised

[PtychoPINNTorchData]
num_channels = 1

[PtychoPINNTorchTraining]
epochs = 8
batch_size = 8
learning_rate = 0.004
num_dataloader_workers = 0
learning_rate_scheduler = Cosine
gradient_clip_val = 1.0

[PtychoPINNTorchInference]
middle_trim = 24
"""


def ptychodus(*words: object, cwd: Path) -> tuple[int, str]:
    """Run the program as a user does; return its exit status and what it printed."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PTYCHO_EXEC_")}
    variables |= {"QT_QPA_PLATFORM": "offscreen", "XDG_CONFIG_HOME": str(cwd / "none")}
    variables |= {"PTYCHO_EXEC_SEED": "3"}
    variables.pop("DISPLAY", None)
    done = subprocess.run(
        [sys.executable, "-m", "ptychodus", *map(str, words)],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


def score(scan: ScanData, obj: NDArray[np.complex64]) -> Evaluation:
    """Compare with the truth where the probe shone."""
    assert scan.object_guess is not None
    assert scan.probe is not None
    positions, probe = torch.from_numpy(scan.positions_px), torch.from_numpy(scan.probe)
    light = probe_coverage(positions, probe, scan.canvas_shape).numpy()
    return evaluate(obj, scan.object_guess, coverage=light)


@pytest.mark.slow
@pytest.mark.thorough
def test_train_and_reconstruct_without_a_window(tmp_path: Path) -> None:
    scan = simulate_scan(n=32, patterns=100, photons=1e6, seed=5)
    data, out, result = (tmp_path / name for name in ("data", "out", "result"))
    write_ptychodus(scan, data)
    (data / "settings.ini").write_text(SETTINGS)
    status, said = ptychodus("-b", "train", "-i", data, "-o", out, cwd=tmp_path)
    assert status == 0, said
    assert "this training is not in all as Ptychodus asked" not in said
    assert "- Model Size: 128 became 32" in said
    (run,) = out.glob("run_*")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "completed"
    assert (manifest["applied"]["seed"], manifest["applied"]["batch_size"]) == (3, 8)
    shutil.copy(run / "model.ckpt", data)
    status, said = ptychodus("-b", "reconstruct", "-i", data, "-o", result, cwd=tmp_path)
    assert status == 0, said
    shutil.copy(data / "diffraction.h5", result)
    made = read_scan(result / "product.000001.h5")
    assert made.object_guess is not None
    assert scan.object_guess is not None
    assert made.object_guess.shape == scan.object_guess.shape
    np.testing.assert_allclose(made.positions_px, scan.positions_px, atol=1e-6)
    found, flat = (score(scan, obj) for obj in (made.object_guess, np.ones_like(scan.object_guess)))
    assert found.nrmse < 0.7 * flat.nrmse
    assert np.abs(found.alignment.shift_px).max() < 0.1


@pytest.mark.thorough
@pytest.mark.slow
def test_a_failed_training_is_a_failed_program_that_says_why(tmp_path: Path) -> None:
    scan = simulate_scan(n=16, patterns=25, photons=1e5, seed=5)
    write_ptychodus(scan, tmp_path / "data")
    words = SETTINGS.replace("learning_rate = 0.004", "learning_rate = 0")
    (tmp_path / "data" / "settings.ini").write_text(words)
    status, said = ptychodus("-b", "train", "-i", tmp_path / "data", "-o", tmp_path / "out", cwd=tmp_path)
    assert status != 0
    for part in ("Learning Rate = 0.0", "argument Ptychodus", "expected:", "fix:"):
        assert part in said
    assert "Traceback" not in said
