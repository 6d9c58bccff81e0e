"""Ptychodus's own window, under an X server: what a person sees and does there.

With the variable SCREENSHOTS, its screenshots are kept in the directory that it names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.cli import main
from ptycho_torch.data.formats.ptychodus import write_ptychodus
from ptycho_torch.data.read import read_scan
from ptycho_torch.evaluation.metrics import evaluate
from ptycho_torch.ptychodus.labels import LABELS
from ptycho_torch.reconstruction.stitch import probe_coverage
from ptycho_torch.simulate import simulate_scan

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT.parent / "shared" / "data" / "ptychodus170_golden"
SCREENSHOTS = "SCREENSHOTS"
EPOCHS = 500
"""More than any machine trains until somebody presses Stop in the second one that is shown."""
pytestmark = [
    pytest.mark.skipif(find_spec("PyQt5") is None, reason="needs the gui extra"),
    pytest.mark.skipif(shutil.which("Xvfb") is None, reason="needs the program Xvfb"),
]


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """An X server of its own."""
    read, write = os.pipe()
    words = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1600x1000x24", "-nolisten", "tcp"]
    with subprocess.Popen(words, pass_fds=[write], stderr=subprocess.DEVNULL) as server:
        os.close(write)
        with os.fdopen(read) as file:
            number = file.readline().strip()
        assert number, "Xvfb did not start"
        yield f":{number}"
        server.terminate()


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A small scan as Ptychodus holds it, with a hot pixel."""
    made = simulate_scan(n=32, patterns=64, photons=1e6, seed=5)
    patterns = np.asarray(made.patterns).astype(np.int64)
    patterns[:, 5, 7] = 30_000
    write_ptychodus(replace(made, patterns=patterns), tmp_path / "scan")
    return tmp_path / "scan"


def settings_file(folder: Path, **changed: Any) -> Path:
    """Return our settings file, with other values."""
    path = folder / "settings.ini"
    assert main(["ptychodus-settings", "--out", str(path)]) == 0
    text = path.read_text()
    for name, value in changed.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.M)
    path.write_text(text)
    return path


def play(scenario: str, scan: Path, settings: Path, display: str) -> tuple[dict[str, Any], str]:
    """Run a scenario in a directory of its own; return what it saw, and what the terminal shows."""
    place = scan.parent / scenario
    place.mkdir()
    variables = {**os.environ, "DISPLAY": display, "PTYCHO_EXEC_SEED": "3"}
    variables |= {"QT_QPA_PLATFORM": "xcb", "XDG_RUNTIME_DIR": str(place), "XDG_CONFIG_HOME": str(place)}
    program = Path(__file__).with_name("ptychodus_window.py")
    with (place / "terminal.txt").open("w") as file:
        done = subprocess.run(
            [sys.executable, str(program), scenario, str(scan), str(settings)],
            cwd=place,
            env=variables,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if kept := os.environ.get(SCREENSHOTS):
        for picture in place.glob("*.png"):
            Path(kept).mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, Path(kept) / f"{scenario}-{picture.name}")
    terminal = (place / "terminal.txt").read_text()
    assert done.returncode in (0, -9), terminal
    return json.loads((place / "seen.json").read_text()), terminal


def manifest_of(scan: Path) -> dict[str, Any]:
    (run,) = scan.glob("run_*")
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return found


@pytest.mark.slow
def test_an_error_a_training_a_stop_and_its_model(scan: Path, tmp_path: Path, display: str) -> None:
    """One window does it all: each process that it starts loads for seconds."""
    settings = settings_file(tmp_path, epochs=EPOCHS)
    seen, terminal = play("stopped_after_an_error", scan, settings, display)

    # The settings file has chosen the algorithm. The error is one block, here and there.
    assert seen["algorithm"] == "ptychopinn-torch_unsupervised"
    (block,) = re.findall(r"^\S+ \S+ \[ERROR\] (.*(?:\n  .*)*)", seen["error"], re.M)
    assert [line.split()[0] for line in block.splitlines()[1:]] == ["where:", "expected:", "fix:"]
    assert (seen["error"].count("nothing to learn from"), terminal.count("nothing to learn from")) == (1, 1)
    assert "Traceback" not in terminal

    # The bar and the lines move with the epochs, long before the end.
    bar = [(value, text) for value, of, text in seen["bar"] if of == EPOCHS and value]
    assert len(bar) >= 2
    for value, text in bar:
        assert f"epoch {value} of {EPOCHS}: " in text
    assert re.search(
        rf"epoch 1 of {EPOCHS}: train_loss \S+, val_loss \S+; \d+ s left", seen["at_first_epoch"]
    )
    assert f"epoch {EPOCHS} of {EPOCHS}" not in seen["stopped"]

    # What is odd about the scan is there from the beginning, with what mends it; the usual is no warning.
    assert "[WARNING] ptychopinn-torch: 1 pixels are much brighter" in seen["at_first_epoch"]
    assert "--mask-suspects true` mends this" in seen["at_first_epoch"]
    assert "not in all as Ptychodus asked" not in seen["at_first_epoch"]
    assert "- Model Size: 128 became 32" in seen["at_first_epoch"]

    # Stop ends the training within an epoch, and its best model infers.
    manifest = manifest_of(scan)
    steps = int(re.search(r"after step (\d+)", manifest["error"])[1])  # type: ignore[index]
    assert (manifest["status"], manifest["signal"]) == ("interrupted", "SIGTERM")
    found = re.search(r"stopped after epoch (\d+); Infer takes the model of epoch (\d+), ", seen["stopped"])
    assert found is not None
    stopped, best = map(int, found.groups())
    assert 1 <= best <= stopped
    assert steps < (stopped + 2) * 8
    assert Path(seen["model"]).name == "model.ckpt"
    assert np.load(tmp_path / "stopped_after_an_error" / "object.npy").std() > 0.01
    assert re.search(r"the object is (poor|doubtful|good)", seen["object"])

    # Messages bear the labels that the window has.
    labels: dict[str, set[str]] = {}
    for label, names in seen["labels"]:
        for name in names:
            labels.setdefault(name, set()).add(label)
    for name in ("decoder_last_amp_channels", "C_model", "C_forward"):
        assert labels.pop(name) == {LABELS["C"]}
    assert {name: set(label.split(" and ")) for name, label in LABELS.items()} == labels
    assert seen["left"] == []


@pytest.mark.thorough
@pytest.mark.slow
def test_closing_the_window_ends_its_training(scan: Path, tmp_path: Path, display: str) -> None:
    seen, _ = play("closed", scan, settings_file(tmp_path, epochs=EPOCHS), display)
    assert manifest_of(scan)["status"] == "interrupted"
    assert seen["left"] == []


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_ends_when_its_window_is_killed(
    workers: int, scan: Path, tmp_path: Path, display: str
) -> None:
    import psutil

    settings = settings_file(tmp_path, epochs=EPOCHS, num_dataloader_workers=workers)
    seen, _ = play("killed", scan, settings, display)
    assert seen["children"]
    left = [psutil.Process(pid) for pid in seen["children"] if psutil.pid_exists(pid)]
    assert psutil.wait_procs(left, timeout=120)[1] == []
    assert manifest_of(scan)["status"] == "interrupted"


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the development data")
def test_the_golden_object_lies_where_the_true_one_does(tmp_path: Path, display: str) -> None:
    """And is finer where a variable asks for refinement after the network."""
    for name in ("product.h5", "diffraction.h5"):
        (tmp_path / "scan").mkdir(exist_ok=True)
        shutil.copy(GOLDEN / name, tmp_path / "scan")
    seen, _ = play("trained", tmp_path / "scan", settings_file(tmp_path, epochs=40), display)
    truth = read_scan(GOLDEN)

    alone, refined = (np.load(tmp_path / "trained" / f"{name}.npy")[0] for name in ("object", "refined"))
    assert truth.object_guess is not None
    assert truth.probe is not None
    positions, probe = torch.from_numpy(truth.positions_px), torch.from_numpy(truth.probe)
    covered = probe_coverage(positions, probe, truth.canvas_shape).numpy()
    scores = [evaluate(obj, truth.object_guess, coverage=covered) for obj in (alone, refined)]
    for found in scores:
        assert np.abs(found.alignment.shift_px).max() < 0.1
    assert scores[1].nrmse < 0.8 * scores[0].nrmse
    assert len({value for value, of, _ in seen["bar"] if of == 40 and 0 < value < 40}) >= 10
