"""`pretrain --probe PROBE --out RUN`: a network for a beam, which no scan has taught."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_exec.errors import DataError, SettingsError, UserError
from ptycho_exec.record import read_manifest
from ptycho_torch.cli import main
from ptycho_torch.config import DataConfig, ModelConfig, ScienceConfig, TrainingConfig
from ptycho_torch.data.read import read_scan
from ptycho_torch.factory import create_pretraining_payload
from ptycho_torch.model import PtychoPINN_Lightning, load_model
from ptycho_torch.pretraining.samples import PATCHES, SimulatedSamples
from ptycho_torch.simulate import make_probe, save, simulate_scan
from ptycho_torch.tools.rerun import repeated, rerun, verify
from ptycho_torch.workflows import components, pretraining, runs
from ptycho_torch.workflows.artifacts import model_weights_sha256
from tests.torch.workflows.tiny_runs import phase_blind_gap, settings

N = 32
STEPS = 4
QUIET = {
    "logger_backend": None,
    "enable_progress_bar": False,
    "accelerator": "cpu",
    "num_threads": 1,
    "batch_size": 4,
    "limit_train_batches": STEPS,
}


def science(epochs: int = 2, **training: Any) -> ScienceConfig:
    return ScienceConfig(
        model=ModelConfig(n_filters=6, depth=1), training=TrainingConfig(epochs=epochs, **training)
    )


@pytest.fixture(scope="module")
def probe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("beam") / "probe.npy"
    np.save(path, make_probe(N, 1e5))
    return path


@pytest.fixture(scope="module")
def pretrained(probe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(probe_file, tmp_path_factory.mktemp("pretrained") / "run").folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def payload(probe_file: Path, out: str | Path, *, epochs: int = 2, **more: Any) -> Any:
    training = more.pop("training", {})
    how = settings(**{**QUIET, **more.pop("settings", {})})
    return create_pretraining_payload(
        probe_file, out, execution_config=how, science=science(epochs, **training), **more
    )


def begin(probe_file: Path, out: str | Path, **more: Any) -> runs.Run[Any]:
    return runs.train(payload(probe_file, out, **more))


def test_a_run_tells_its_beam_its_doses_and_what_was_decided(probe_file: Path, pretrained: Path) -> None:
    manifest = read_manifest(pretrained)
    assert (manifest["task"], manifest["status"]) == ("pretrain", "completed")
    assert manifest["photons"] == [1e3, 1e7]
    assert manifest["data"]["train"]["source"] == str(probe_file)
    assert list(manifest["data"]["train"]["report"]["files"]) == ["probe.npy"]
    assert manifest["science"]["training"]["loss"] == "auto"
    loaded, learned = load_model(pretrained)
    assert (learned.training.loss, learned.training.split_counts, learned.data.N) == ("supervised", False, N)
    assert not bool(loaded.forward_model.scale_known)
    assert (pretrained / "report.html").is_file()


def test_the_photon_scale_and_the_mask_are_those_of_each_scan(pretrained: Path) -> None:
    scan = simulate_scan(n=N, patterns=30, photons=1e6, seed=4)
    brighter = replace(scan, patterns=np.asarray(scan.patterns, dtype=np.float32) * 9)
    once, again = (components.reconstruct(pretrained, one, None, settings()) for one in (scan, brighter))
    assert phase_blind_gap(once.object, again.object) < 1e-4
    mask = np.ones((N, N), bool)
    mask[3:6] = False
    hidden = components.reconstruct(pretrained, replace(scan, good_pixels=mask), None, settings())
    assert phase_blind_gap(once.object, hidden.object) > 1e-3


def test_several_scans_in_a_row_do_not_share_a_scale(pretrained: Path, tmp_path: Path) -> None:
    for name, photons in (("dim", 1e4), ("bright", 1e6)):
        save(simulate_scan(n=N, patterns=30, photons=photons, seed=4), tmp_path / f"{name}.npz")
    words = ["infer", str(pretrained), "dim.npz", "bright.npz", "--out", "both"]
    assert main(words) == 0
    assert main(["infer", str(pretrained), "bright.npz", "--out", "alone"]) == 0
    together, alone = (
        np.load(place / "reconstruction.npz")["object"] for place in (Path("both/bright"), Path("alone"))
    )
    assert np.array_equal(together, alone)


def test_patterns_of_another_size_are_refused_with_the_way_out(pretrained: Path, tmp_path: Path) -> None:
    save(simulate_scan(n=48, patterns=20, photons=1e5, seed=1), tmp_path / "large.npz")
    for scan in (tmp_path / "large.npz", read_scan(tmp_path / "large.npz")):
        with pytest.raises(UserError) as refused:
            components.reconstruct(pretrained, scan, None, settings())
        assert "48" in str(refused.value)
        assert "32" in str(refused.value)


def test_a_training_begins_with_the_network_of_a_beam(pretrained: Path, tmp_path: Path) -> None:
    scan = save(simulate_scan(n=N, patterns=30, photons=1e6, seed=4), tmp_path / "scan.npz")
    words = ["train", str(scan), "--from", str(pretrained), "--out", "tuned", "--epochs", "1"]
    assert main([*words, "--accelerator", "cpu"]) == 0
    loaded, learned = load_model(tmp_path / "tuned")
    assert learned.training.loss == "mae"
    assert learned.model.n_filters == 6
    assert bool(loaded.forward_model.scale_known)


def test_another_seed_beam_or_dose_is_another_network(probe_file: Path, pretrained: Path) -> None:
    before = model_weights_sha256(pretrained)
    assert model_weights_sha256(begin(probe_file, "again").folder) == before
    assert model_weights_sha256(begin(probe_file, "seed", settings={"seed": 5}).folder) != before
    assert model_weights_sha256(begin(probe_file, "dose", photons=(10, 1e3)).folder) != before


def test_one_that_was_interrupted_goes_on_as_if_it_had_not_been(
    probe_file: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    def stop(module: Any) -> None:
        if module.current_epoch == 1:
            raise StopError

    with monkeypatch.context() as patched:
        patched.setattr(PtychoPINN_Lightning, "on_train_epoch_start", stop, raising=False)
        with pytest.raises(StopError):
            runs.continue_training(payload(probe_file, "broken"))
    finished = runs.continue_training(payload(probe_file, "broken"))
    assert finished is not None
    assert model_weights_sha256(finished.folder) == model_weights_sha256(pretrained)
    assert runs.continue_training(payload(probe_file, "broken")) is None
    with pytest.raises(SettingsError, match="photons"):
        runs.continue_training(payload(probe_file, "broken", photons=(10, 1e3)))


def test_a_training_on_a_scan_does_not_go_on_in_its_directory(pretrained: Path, tmp_path: Path) -> None:
    scan = save(simulate_scan(n=N, patterns=30, photons=1e6, seed=4), tmp_path / "scan.npz")
    words = ["train", str(scan), "--out", str(pretrained), "--resume", "auto"]
    assert main(words) == 1
    assert read_manifest(pretrained)["task"] == "pretrain"


def test_it_is_repeated_from_its_manifest(pretrained: Path) -> None:
    finished = rerun(pretrained, Path("again"))
    assert repeated(verify(pretrained, finished.folder))


def test_one_of_several_arrays_is_the_same_again(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", first=make_probe(N, 1e5, curvature_rad=9), other=make_probe(N, 1e5))
    before = begin(tmp_path / "two.npz:other", "before", epochs=1).folder
    assert repeated(verify(before, rerun(before, Path("after")).folder))
    assert model_weights_sha256(begin(tmp_path / "two.npz:first", "first", epochs=1).folder) != (
        model_weights_sha256(before)
    )


@pytest.mark.parametrize("broken", [np.zeros((N, N)), np.full((N, N), np.nan), np.ones((N, N - 4))])
def test_a_broken_probe_is_refused_with_what_can_be_done_here(broken: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "broken.npy", broken)
    with pytest.raises(DataError) as refused:
        pretraining.plan_pretraining(payload(tmp_path / "broken.npy", "run"))
    assert "mend the file, or name another place of the probe" in str(refused.value)
    assert "estimate" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.thorough
def test_two_processes_of_a_command_learn_what_one_does(probe_file: Path) -> None:
    ways = ["--epochs", "1", "--limit-train-batches", "4", "--n-filters", "4", "--depth", "1"]
    command = [
        sys.executable,
        "-m",
        "ptycho_torch",
        "pretrain",
        "--probe",
        str(probe_file),
        "--photons",
        "1e4",
        "1e5",
    ]
    states = []
    for out, words in (
        ("one", ["--batch-size", "8"]),
        ("two", ["--batch-size", "4", "--devices", "2", "--strategy", "ddp"]),
    ):
        whole = [*command, *ways, *words, "--out", out, "--accelerator", "cpu"]
        done = subprocess.run(whole, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        states.append(load_model(out)[0].network.state_dict())
    for name, value in states[0].items():
        if name.endswith("weight"):
            torch.testing.assert_close(states[1][name], value, rtol=0, atol=0.01 * float(value.abs().max()))


def test_the_beam_may_lie_in_a_scan_and_in_a_result(tmp_path: Path) -> None:
    scan = save(simulate_scan(n=N, patterns=30, photons=1e6, seed=4), tmp_path / "scan.npz")
    given = pretraining.plan_pretraining(payload(scan, "run")).container
    assert np.allclose(given.probe / np.linalg.norm(given.probe), _unit(read_scan(scan).probe), atol=1e-6)


def _unit(probe: Any) -> Any:
    return probe / np.linalg.norm(probe)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--photons", "1e5", "1e3"], "no range of doses"),
        (["--photons", "1e20", "1e21"], "between 1 and 1e+09"),
        (["--photons", "0", "10"], "between 1 and 1e+09"),
        (["--split-counts", "true"], "seen once"),
        (["--val-fraction", "0.1"], "seen once"),
        (["--probe-trainable", "true"], "the one that is given"),
        (["--probe", "nowhere.npy"], "no such probe"),
    ],
    ids=["order", "many", "none", "split_counts", "val_fraction", "probe_trainable", "probe"],
)
def test_what_cannot_be_is_refused_before_the_work_and_the_way_out_works(
    words: list[str], message: str, probe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = ["--epochs", "1", "--limit-train-batches", "1", "--n-filters", "4", "--depth", "1"]
    given = ["pretrain", *([] if "--probe" in words else ["--probe", str(probe_file)]), "--out", "run", *ways]
    assert main([*given, *words]) != 0
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text
    assert "--probe estimate" not in text
    assert "auto, file, estimate" not in text
    assert not Path("run").exists()
    ways += ["--probe", str(probe_file), "--photons", "10", "1e3"]
    assert main(["pretrain", "--out", "run", *ways]) == 0
    assert read_manifest("run")["photons"] == [10, 1e3]
    out = capsys.readouterr().out
    assert "8192 simulated patterns of 10 to 1000 photons in an epoch" in out
    assert "64 patterns" not in out
    assert "warning" not in out


def test_what_files_and_variables_say_of_scans_is_refused_or_told(probe_file: Path) -> None:
    asked = payload(probe_file, "run")
    other = {"N": 48, "gridsize": 2}
    with pytest.raises(SettingsError, match="N = 48, and the probe has 32 pixels"):
        pretraining.plan_pretraining(replace(asked, science=ScienceConfig(data=DataConfig(**other))))
    lines: list[str] = []
    grouped = replace(asked, science=ScienceConfig(data=DataConfig(gridsize=2)))
    planned = pretraining.plan_pretraining(grouped, say=lines.append)
    assert planned.science.data.gridsize == 1
    gridsize, loss = lines
    assert "gridsize = 2 has no effect" in gridsize
    assert loss.startswith("--loss supervised: ")


@pytest.mark.slow
def test_it_learns_what_holds_for_objects_that_it_has_not_seen(probe_file: Path) -> None:
    asked = payload(probe_file, "learned", settings={"limit_train_batches": 200, "batch_size": 16})
    larger = ScienceConfig(model=ModelConfig(n_filters=16), training=TrainingConfig(epochs=4))
    trained = runs.train(replace(asked, science=larger)).results["models"]["lightning_module"]
    begun = PtychoPINN_Lightning(**trained.arguments(), probe=trained.probe.detach())
    begun.load_state_dict({**begun.state_dict(), **trained.forward_model.state_dict(prefix="forward_model.")})
    numbers = range(10**6, 10**6 + 100 * PATCHES, PATCHES)  # of a hundred objects, none of which was shown
    unseen = SimulatedSamples(trained.probe.detach().numpy(), (1e3, 1e7), 100).__getitems__(numbers)
    with torch.inference_mode():
        before, after = (float(module.loss(unseen)[0]) for module in (begun, trained))
    assert after < 0.8 * before


def test_without_a_probe_there_is_no_beam(tmp_path: Path) -> None:
    np.savez(tmp_path / "empty.npz", something=np.ones(3))
    with pytest.raises(DataError):
        pretraining.plan_pretraining(payload(tmp_path / "empty.npz", "run"))
