"""One run and its directory: one resolution and one plan, and what is refused leaves nothing behind."""

from __future__ import annotations

import html
import inspect
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from ptycho_exec import plan
from ptycho_exec.errors import DataError, SettingsError, SettingsWarning
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources import resolve
from ptycho_exec.sources.discovery import Reader
from ptycho_exec.sources.origins import Kind, Layer
from ptycho_torch.cli import main
from ptycho_torch.factory import create_training_payload
from ptycho_torch.model import load_model
from ptycho_torch.simulate import save, simulate_scan
from ptycho_torch.workflows import components, runs
from ptycho_torch.workflows.artifacts import read_reconstruction

TINY = ["--n-filters=4", "--depth=1", "--epochs=1", "--num-threads=1"]
NO_BATCH = ["--limit-train-batches=0.01", "--batch-size=64", "--accum-steps=9"]


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scan = simulate_scan(n=32, patterns=40, photons=1e5, seed=0)
    return save(scan, tmp_path_factory.mktemp("data") / "scan.npz")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count resolutions, plans, and settings that were validated, whoever asks for them."""
    counts: Counter[str] = Counter()
    fill = ExecutionSettings._fill

    def source(reader: Reader) -> Layer:
        counts[f"{reader.request.model.__name__} resolved"] += 1
        return Layer()

    def rule(_: Any) -> None:
        counts["planned"] += 1

    def filled(self: ExecutionSettings, resolution: Any) -> None:
        counts["validated"] += 1
        fill(self, resolution)

    monkeypatch.setattr(resolve, "READERS", {**resolve.READERS, Kind.OTHER: source})
    monkeypatch.setattr(plan, "RULES", (*plan.RULES, rule))
    monkeypatch.setattr(ExecutionSettings, "_fill", filled)
    return counts


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def test_a_command_resolves_once_and_plans_once_and_the_value_reaches_the_loader(
    scan_file: Path, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    once = {"ExecutionSettings resolved": 1, "ScienceSettings resolved": 1, "planned": 1, "validated": 1}
    batch_sizes: list[int | None] = []

    class Recorded(DataLoader[Any]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            batch_sizes.append(kwargs["batch_size"])
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(components, "DataLoader", Recorded)
    assert main(["train", str(scan_file), "--out", "run", "--batch-size=8", *TINY]) == 0
    assert counted == once
    counted.clear()
    assert main(["infer", "run", str(scan_file), "--out", "out", "--inference-batch-size=16"]) == 0
    assert counted == once
    assert manifest(Path("out"))["verdict"]["status"] in ("good", "doubtful", "poor", "cannot-judge")
    page = html.unescape(Path("out/report.html").read_text())
    verdict = manifest(Path("out"))["verdict"]
    assert f'class="verdict {verdict["status"]}"' in page
    assert f"<p>{verdict['line']}</p>" in page
    assert batch_sizes[:2] == [8, 16]  # Lightning builds a third one out of the second


def test_the_manifest_holds_the_plan_that_the_trainer_ran(
    scan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(scan_file), "--out", "run", *NO_BATCH, "--on-unsupported=adapt", *TINY]
    assert main(words) == 0
    found, printed = manifest(Path("run")), capsys.readouterr().out
    assert found["plan"]["effective"]["limit_train_batches"]["value"] == 1
    assert found["applied"]["read_back"]["limit_train_batches"] == 1
    snapshot = json.loads(Path("run/trainer_kwargs_snapshot.json").read_text())
    assert snapshot["limit_train_batches"] == 1
    for notice in (
        "limit_train_batches: 0.01 became 1",
        "batch_size=64 is more than the 40 training samples",
        "accum_steps=9 is more than the 1 batches of an epoch",
    ):
        assert any(notice in text for text in found["warnings"])
        assert notice in printed
    exact = ["--limit-train-batches=1", *NO_BATCH[1:], "--on-unsupported=adapt", *TINY]
    assert main(["train", str(scan_file), "--out", "exact", *exact]) == 0
    assert found["effective_fingerprint"] == manifest(Path("exact"))["effective_fingerprint"]


def test_a_name_of_the_table_that_this_lightning_does_not_know_is_noted_and_credentials_are_hidden(
    scan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = inspect.signature(Trainer.__init__)
    fewer = [row for name, row in signature.parameters.items() if name != "model_registry"]
    monkeypatch.setattr(Trainer.__init__, "__signature__", signature.replace(parameters=fewer), raising=False)
    table = "--trainer=min_epochs=1,model_registry=https://me:hunter2@example.org"
    text = r"trainer\.model_registry=https://\*\*\*@example\.org has no effect: the installed Lightning"
    with pytest.warns(SettingsWarning, match=text):
        assert main(["train", str(scan_file), "--out", "run", table, *TINY]) == 0
    assert any(re.search(text, line) for line in manifest(Path("run"))["warnings"])
    snapshot = json.loads(Path("run/trainer_kwargs_snapshot.json").read_text())
    assert (snapshot["min_epochs"], snapshot["model_registry"]) == (1, "https://***@example.org")
    found = [path for path in Path("run").rglob("*.[jt]*") if b"hunter2" in path.read_bytes()]
    assert found == []


def test_held_back_samples_are_none_to_train_on(scan_file: Path) -> None:
    words = ["--batch-size=20", "--val-fraction=0.5", "--accum-steps=2", *TINY]
    assert main(["train", str(scan_file), "--out", "run", *words]) == 0
    (text,) = (
        row["text"] for row in manifest(Path("run"))["plan"]["notices"] if row["field"] == "accum_steps"
    )
    assert "more than the 1 batches" in text


def test_a_value_that_the_data_do_not_allow_is_refused_and_leaves_no_directory(
    scan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(scan_file), "--out", "a/run", *NO_BATCH, *TINY]) == 2
    shown = capsys.readouterr().err
    assert "limit_train_batches=0.01: that fraction of 1 batches is no batch at all" in shown
    assert "flag --limit-train-batches" in shown
    assert "Traceback" not in shown
    assert not Path("a").exists()


def test_code_that_trains_gets_the_same_refusal(scan_file: Path) -> None:
    settings = ExecutionSettings.from_values({"limit_train_batches": 0.01, "batch_size": 64})
    payload = create_training_payload(scan_file, "run", {"epochs": 1}, settings)
    with pytest.raises(SettingsError, match="no batch at all"):
        components.train(scan_file, None, payload.science, settings)
    with pytest.raises(SettingsError, match="no batch at all"):
        runs.train(payload)
    assert not Path("run").exists()


def test_a_model_that_is_damaged_leaves_no_directory(scan_file: Path) -> None:
    Path("model.ckpt").write_text("no model")
    assert main(["infer", "model.ckpt", str(scan_file), "--out", "out"]) == 1
    assert not Path("out").exists()


def test_a_used_directory_is_refused_before_the_scan_is_read(scan_file: Path) -> None:
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")
    payload = create_training_payload(scan_file, "run", {"epochs": 1}, ExecutionSettings.from_values({}))
    scan_file = scan_file.rename(scan_file.with_suffix(".moved"))
    try:
        with pytest.raises(Exception, match="not empty") as caught:
            runs.train(payload)
        assert not isinstance(caught.value, DataError)
    finally:
        scan_file.rename(scan_file.with_suffix(".npz"))


def test_a_part_too_small_to_hold_back_is_no_validation(scan_file: Path) -> None:
    assert main(["train", str(scan_file), "--out", "run", "--val-fraction=0.01", *TINY]) == 0
    assert manifest(Path("run"))["plan"]["effective"]["checkpoint_monitor_metric"]["value"] == "train_loss"


def test_the_newer_settings_reach_the_training_command(scan_file: Path) -> None:
    """Averaged weights, rare validation, checkpoints between epochs and a profile, of the command itself."""
    words = [
        "--epochs=4",
        "--val-fraction=0.25",
        "--batch-size=8",
        "--learning-rate=0.001",
        "--ema-decay=0.5",
    ]
    words += ["--check-val-every-n-epoch=2", "--limit-val-batches=1", "--checkpoint-every-n-steps=3"]
    words += ["--profiler=simple", "--scheduler=ReduceLROnPlateau", "--num-sanity-val-steps=1"]
    tiny = [word for word in TINY if not word.startswith(("--epochs", "--batch-size"))]
    assert main(["train", str(scan_file), "--out", "run", *tiny, *words]) == 0
    found = manifest(Path("run"))
    assert found["status"] == "completed"
    verdicts = {row["name"]: row["verdict"] for row in found["drift"]}
    fields = (
        "ema_decay",
        "check_val_every_n_epoch",
        "limit_val_batches",
        "checkpoint_every_n_steps",
        "profile",
    )
    assert {verdicts[name] for name in fields} == {"same"}
    assert "differs" not in verdicts.values()
    assert list(Path("run/profile").iterdir())
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    network, _ = load_model(Path("run"))
    own = network.state_dict()
    assert all(
        torch.equal(value, own[name]) for name, value in checkpoint["state_dict"].items() if name in own
    )
    assert any(
        not torch.equal(value, checkpoint["state_dict"][name])
        for name, value in checkpoint["current_model_state"].items()
    )


def test_training_steps_can_end_a_run(scan_file: Path) -> None:
    tiny = [word for word in TINY if not word.startswith("--epochs")]
    assert main(["train", str(scan_file), "--out", "run", *tiny, "--epochs=9", "--max-steps=3"]) == 0
    assert manifest(Path("run"))["trained"]["epochs"] < 9


def test_what_a_refinement_found_is_written_and_recorded(tmp_path: Path) -> None:
    scan = simulate_scan(n=32, patterns=40, photons=1e5, seed=0)
    scan_file = save(scan, tmp_path / "scan.npz")
    flags = ["--probe-modes=2", "--refine-positions", "--refine-background", "--num-threads=1"]
    command = ["infer", str(scan_file), "--start=flat", "--refine=5", "--out", "out", *flags]
    assert main([*command, "--x-bounds=0,0.8"]) == 0
    arrays = read_reconstruction("out")
    manifest = json.loads(Path("out/manifest.json").read_text())
    found = manifest["refinement"]
    used = len(arrays["positions_px"])
    assert used < 40
    assert arrays["probe"].shape == (2, 32, 32)
    assert arrays["background"].shape == (32, 32)
    assert found["mode_powers"] == arrays["mode_powers"].tolist()
    assert found["position_affine"] == arrays["position_affine"].tolist()
    assert found["placement"] == "probe"
    assert {"out/positions.png", "out/product.h5"} <= {str(path) for path in Path("out").iterdir()}


@pytest.mark.parametrize("poor", [False, True])
def test_the_decision_on_the_probe_is_recorded_and_a_refined_one_is_a_note(
    poor: bool, tmp_path: Path
) -> None:
    scan = simulate_scan(n=32, patterns=40, photons=1e6, seed=0)
    assert scan.probe is not None
    if poor:
        scan = replace(scan, probe=np.abs(scan.probe).astype(np.complex64))
    scan_file = save(scan, tmp_path / "scan.npz")
    assert (
        main(["infer", str(scan_file), "--start=flat", "--refine=20", "--out", "out", "--num-threads=1"]) == 0
    )
    manifest = json.loads(Path("out/manifest.json").read_text())
    decision = manifest["refinement"]["probe_decision"]
    assert decision["refined"] is poor
    assert (decision["unexplained"] > 0.4) is poor
    assert any("the probe is refined" in line for line in manifest["warnings"]) is poor
    assert np.array_equal(read_reconstruction("out")["probe"], scan.probe) is not poor


def test_a_scored_inference_reads_its_scan_once_and_writes_its_page_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = save(simulate_scan(n=32, patterns=60, seed=0), tmp_path / "scan.npz")
    calls: Counter[str] = Counter()
    for module, name in ((runs, "write_run_report"), (runs, "read_scan"), (runs.plots, "save_comparison")):
        work = getattr(module, name)

        def count(*args: Any, _name: str = name, _work: Any = work, **more: Any) -> Any:
            calls[_name] += 1
            return _work(*args, **more)

        monkeypatch.setattr(module, name, count)
    assert main(["infer", "scan.npz", "--start=flat", "--refine=1", "--num-threads=1", "--out=out"]) == 0
    assert calls == {"write_run_report": 1, "save_comparison": 1}
    made = manifest(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == made["metrics"]
    assert made["truth"] == str(scan.relative_to(tmp_path))
    results, written = runs.compare([tmp_path / "out"], scan)
    assert results["out"].to_json() == made["metrics"]
    assert {path.name for path in written} <= set(made["outputs"]) | {"report.html"}


def test_a_score_that_cannot_be_told_is_a_note_and_the_reconstruction_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(simulate_scan(n=32, patterns=60, seed=0), tmp_path / "scan.npz")

    def refuse(*_: Any, **__: Any) -> None:
        raise DataError("the canvases differ")

    monkeypatch.setattr(runs, "evaluate", refuse)
    assert main(["infer", "scan.npz", "--start=flat", "--refine=1", "--num-threads=1", "--out=out"]) == 0
    said = capsys.readouterr().out
    assert "note: it is not scored against the object in scan.npz: the canvases differ" in said
    assert "metrics" not in manifest(tmp_path / "out")
    assert (tmp_path / "out" / "report.html").is_file()
