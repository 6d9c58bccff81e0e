"""`train --resume auto`: the same command in the same directory goes on, and nothing else does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ptycho_exec.errors import SettingsError, UserError
from ptycho_exec.record import LOCK, locked, read_manifest, write_manifest
from ptycho_exec.trainer.stop import Stopped
from ptycho_torch.cli import main
from ptycho_torch.factory import TrainingPayload
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.simulate import save
from ptycho_torch.workflows import runs
from tests.torch.workflows.tiny_runs import science, settings, tiny_scan


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_scan(), tmp_path_factory.mktemp("scan") / "scan.npz")


def payload(scan: Path, out: Path, epochs: int = 3, **values: Any) -> TrainingPayload:
    values = {"batch_size": 8, "logger_backend": "csv", "log_every_n_steps": 1, **values}
    return TrainingPayload(scan, None, out, science(epochs, val_fraction=0.25), settings(**values))


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
    """Tell the run to stop before a step, or let it fail there; an epoch has five."""

    def hook(net: Any, *_: Any) -> None:
        if net.global_step == step:
            if error is not None:
                raise error
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PtychoPINN_Lightning, "on_train_batch_start", hook, raising=False)


def weights_of(run: Path) -> str:
    return str(read_manifest(run)["content"]["weights"])


def test_it_goes_on_in_place_bit_for_bit_and_keeps_all_of_the_record(
    scan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runs.continue_training(payload(scan_file, tmp_path / "whole"))
    assert whole is not None
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(6, patch)
        with pytest.raises(Stopped):
            runs.continue_training(payload(scan_file, out))
    with monkeypatch.context() as patch:
        stop_at(12, patch, RuntimeError("out of luck"))
        with pytest.raises(RuntimeError, match="luck"):
            runs.continue_training(payload(scan_file, out, num_workers=1))
    said: list[str] = []
    rest = runs.continue_training(payload(scan_file, out), say=said.append)
    assert rest is not None
    assert weights_of(out) == weights_of(tmp_path / "whole")
    assert "continues after 2 epochs, step 10 (attempt 3)" in said[0]
    manifest = read_manifest(out)
    rows = [(row["status"], row["epochs"], row["steps"]) for row in manifest["attempts"]]
    assert rows == [("interrupted", 1, 7), ("failed", 2, 10), ("completed", 3, 15)]
    assert manifest["status"] == "completed"
    assert not manifest.keys() & {"error", "signal"}
    assert manifest["resumed_from"] is None
    assert manifest["trained"]["optimizer_steps"] == 15
    for name in ("train_loss", "val_loss"):
        assert rest.results.history[name] == whole.results.history[name]
    logs = [sorted(path.name for path in (out / name).iterdir()) for name in ("logs", "logs-2", "logs-3")]
    assert all("metrics.csv" in names for names in logs)
    assert not (out / LOCK).exists()


def test_a_complete_run_is_left_alone(
    scan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.continue_training(payload(scan_file, tmp_path / "run", epochs=1))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert runs.continue_training(payload(scan_file, tmp_path / "run", epochs=1)) is None
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_run_that_died_before_its_first_checkpoint_starts_anew_there(
    scan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(2, patch, RuntimeError("early"))
        with pytest.raises(RuntimeError, match="early"):
            runs.continue_training(payload(scan_file, out, epochs=1))
    write_manifest(out, status="running", attempts=[{"status": "running"}])
    said: list[str] = []
    assert runs.continue_training(payload(scan_file, out, epochs=1), say=said.append) is not None
    assert "no checkpoint yet, starts anew (attempt 2)" in said[0]
    assert [row["status"] for row in read_manifest(out)["attempts"]] == ["died", "completed"]


def test_another_job_is_refused_with_every_difference(
    scan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(6, patch)
        with pytest.raises(Stopped):
            runs.continue_training(payload(scan_file, out))
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(SettingsError) as caught:
        runs.continue_training(payload(scan_file, out, epochs=5, batch_size=4))
    assert {finding.field for finding in caught.value.findings} == {"batch_size", "epochs"}
    assert "batch_size is 4 now and was 8 when this run began" in str(caught.value)
    other = save(tiny_scan(), tmp_path / "other.npz", domain="amplitude")
    with pytest.raises(SettingsError, match="SHA-256 of the train scan"):
        runs.continue_training(payload(other, out))
    assert (out / "manifest.json").read_bytes() == before
    # The remedy: in a new directory other values are welcome.
    assert runs.train(payload(scan_file, tmp_path / "new", epochs=2), resume=out).folder.exists()


def test_what_is_no_run_is_refused(scan_file: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no run"):
        runs.continue_training(payload(scan_file, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / LOCK).touch()
    assert runs.continue_training(payload(scan_file, empty, epochs=1)) is not None


HOLDS = """
import sys
from pathlib import Path
from ptycho_exec.record import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_live_run_is_not_touched(scan_file: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.json", process=1, host="there", status="running")
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process runs in this directory: process 1 on there"):
            runs.continue_training(payload(scan_file, tmp_path))
        other.kill()
    with locked(tmp_path):
        pass


@pytest.mark.slow
def test_a_killed_command_goes_on_when_it_is_typed_again(scan_file: Path, tmp_path: Path) -> None:
    small = ["--n-filters", "4", "--depth", "1", "--batch-size", "8", "--checkpoint-every-n-steps", "2"]
    words = ["train", str(scan_file), *small, "--epochs", "6", "--enable-progress-bar", "false"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ptycho_torch", *words, "--out", str(out), "--resume", "auto"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3]) as process:
        deadline = time.monotonic() + 240
        while not (out / "checkpoints" / "last.ckpt").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert json.loads((out / "manifest.json").read_text())["status"] == "running"
    assert main([*words, "--out", str(out), "--resume", "auto"]) == 0
    assert weights_of(out) == weights_of(tmp_path / "whole")
    assert [row["status"] for row in read_manifest(out)["attempts"]] == ["died", "completed"]


@pytest.mark.thorough
@pytest.mark.slow
def test_under_torchrun_the_first_process_looks_for_all(scan_file: Path, tmp_path: Path) -> None:
    """The second command finds the run complete, the third one another job; both processes end alike."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "ptycho_torch", "train", str(scan_file), "--out", str(tmp_path / "run")]
    small = ["--n-filters", "4", "--depth", "1", "--epochs", "1", "--enable-progress-bar", "false"]
    said = []
    for more, code in (([], 0), ([], 0), (["--batch-size", "5"], 1)):
        done = subprocess.run(
            [*launch, *words, *small, "--resume", "auto", *more],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=Path(__file__).parents[3],
        )
        said.append(done.stdout + done.stderr)
        assert done.returncode == code, said[-1]
    assert said[1].count("complete already; nothing is done") == 1
    assert said[2].count("batch_size is 5 now and was") == 1
