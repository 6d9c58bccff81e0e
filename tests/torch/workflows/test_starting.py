"""`train --from RUN`: a training that begins with the network of another, and of nothing else of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ptycho_exec.errors import DataError, SettingsError, UserError
from ptycho_exec.record import read_manifest
from ptycho_exec.sources.origins import Kind
from ptycho_exec.trainer.stop import Stopped
from ptycho_torch.cli import main
from ptycho_torch.config import ModelConfig, ScienceConfig, TrainingConfig
from ptycho_torch.factory import create_training_payload
from ptycho_torch.model import PtychoPINN_Lightning, load_model
from ptycho_torch.network.checkpoint import read_model
from ptycho_torch.simulate import save, simulate_scan
from ptycho_torch.tools.rerun import repeated, rerun, verify
from ptycho_torch.workflows import components, runs
from ptycho_torch.workflows.artifacts import model_weights_sha256
from tests.torch.workflows.tiny_runs import settings

SHAPE = {"n_filters": 6, "depth": 1}
QUIET = {"logger_backend": None, "enable_progress_bar": False, "accelerator": "cpu", "num_threads": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a training on one object."""
    folder = tmp_path_factory.mktemp("trained")
    scan = save(simulate_scan(n=32, patterns=40, photons=1e5, seed=1), folder / "first.npz")
    payload = create_training_payload(scan, folder / "run", {**SHAPE, "epochs": 2}, settings(**QUIET))
    return runs.train(payload).folder


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return another object, under another probe, at another dose."""
    scan = simulate_scan(n=32, patterns=40, photons=3e4, seed=2, probe_curvature_rad=2.0)
    return save(scan, tmp_path_factory.mktemp("scan") / "second.npz")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tuned(scan_file: Path, trained: Any, out: str = "tuned", **overrides: Any) -> runs.Run[Any]:
    payload = create_training_payload(
        scan_file, out, {"epochs": 2, **overrides}, settings(**QUIET), start_from=trained
    )
    return runs.train(payload)


def network_of(module: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.network.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_first_step_has_the_weights_of_the_run_and_probe_and_scale_of_the_new_scan(
    scan_file: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[Any] = []

    def look(net: Any) -> None:
        began.append((network_of(net), net.probe.detach().clone(), net.intensity_scale.item()))

    monkeypatch.setattr(PtychoPINN_Lightning, "on_fit_start", look, raising=False)
    components.train(scan_file, None, {"epochs": 1, **SHAPE}, QUIET)
    components.train(scan_file, None, {"epochs": 1}, QUIET, start_from=trained)
    (new, probe, scale), (begun, *of_scan) = began
    before = network_of(load_model(trained)[0])
    assert same(begun, before)
    assert not same(begun, new)
    assert torch.equal(of_scan[0], probe)
    assert of_scan[1] == scale


@pytest.mark.slow
def test_the_command_takes_the_shape_with_its_origin_and_the_manifest_says_where_the_weights_came_from(
    scan_file: Path, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTYCHO_TORCH_N_FILTERS", "12")
    words = ["--epochs=1", "--num-threads=1", "--accelerator=cpu", "--logger-backend=none"]
    assert main(["train", str(scan_file), "--from", str(trained), "--out", "tuned", *words]) == 0
    shown = capsys.readouterr().out
    assert "n_filters = 12 (environment PTYCHO_TORCH_N_FILTERS) has no effect: the model has 6" in shown
    manifest = read_manifest(Path("tuned"))
    model = trained / "model.ckpt"
    assert manifest["science"]["model"]["n_filters"] == 6
    assert manifest["science_origins"]["n_filters"]["kind"] == Kind.RECORDED
    assert manifest["science_origins"]["n_filters"]["place"] == str(model)
    assert manifest["started_from"] == str(model)
    assert manifest["started_weights"] == model_weights_sha256(trained)
    assert read_model("tuned")["ptycho_torch"]["about"]["started_weights"] == model_weights_sha256(trained)
    assert main(["infer", "tuned", str(scan_file), "--out", "out", "--accelerator=cpu"]) == 0


def test_a_result_in_memory_starts_a_training_too(scan_file: Path, trained: Path) -> None:
    first = components.train(scan_file, None, {"epochs": 1, **SHAPE}, QUIET, start_from=trained)
    again = components.train(scan_file, None, {"epochs": 1}, QUIET, start_from=first)
    assert again.science.model.n_filters == SHAPE["n_filters"]
    with pytest.raises(DataError, match="cannot start from a int"):
        components.train(scan_file, None, {"epochs": 1}, QUIET, start_from=3)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"n_filters": 8}, "n_filters is 8, and the network to start from has 6"),
        ({"depth": 2}, "depth is 2, and the network to start from has 1"),
        ({"amp_activation": "silu"}, "amp_activation is silu, and the network to start from has softplus"),
    ],
)
def test_another_network_is_refused_in_one_block(
    scan_file: Path, trained: Path, overrides: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        create_training_payload(scan_file, "no", overrides, settings(**QUIET), start_from=trained)
    (finding,) = caught.value.findings
    assert finding.what == said
    assert str(trained) in finding.where
    assert "overrides" in finding.where
    science = ScienceConfig(model=ModelConfig(**overrides), training=TrainingConfig(epochs=1))
    with pytest.raises(SettingsError, match="to start from"):
        components.train(scan_file, None, science, QUIET, start_from=trained)


def test_configs_in_code_that_leave_the_shape_open_take_it_from_the_run(
    scan_file: Path, trained: Path
) -> None:
    science = ScienceConfig(model=ModelConfig(modulus_updates=0), training=TrainingConfig(epochs=1))
    result = components.train(scan_file, None, science, QUIET, start_from=trained)
    assert (result.science.model.n_filters, result.science.model.modulus_updates) == (6, 0)


@pytest.mark.thorough
def test_the_remedies_for_patterns_of_another_side_work(trained: Path) -> None:
    for side, remedy in ((48, {"crop": 32}), (24, {"pad": 32})):
        scan = save(simulate_scan(n=side, patterns=20, photons=1e5), Path(f"scan{side}.npz"))
        with pytest.raises(SettingsError, match=f"the patterns have {side} x {side} pixels"):
            create_training_payload(scan, "no", {}, settings(**QUIET), start_from=trained)
        with pytest.raises(SettingsError, match=f"the patterns have {side} x {side} pixels") as caught:
            components.train(scan, None, ScienceConfig(), QUIET, start_from=trained)
        assert " = ".join(map(str, next(iter(remedy.items())))) in caught.value.findings[0].fix
        tuned(scan, trained, out=f"tuned{side}", **remedy)


def test_what_is_no_finished_run_is_refused_and_leaves_nothing(scan_file: Path, trained: Path) -> None:
    Path("empty").mkdir()
    Path("text.ckpt").write_text("no model")
    for place in ("empty", "nowhere", "text.ckpt", trained / "checkpoints" / "last.ckpt"):
        with pytest.raises(DataError, match=r"model|checkpoint"):
            tuned(scan_file, place)
    assert not Path("tuned").exists()


def test_from_and_resume_exclude_each_other(
    scan_file: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(scan_file), "--out", "no", "--from", str(trained), "--resume", str(trained)]
    assert main(words) != 0
    assert "--from and --resume are given" in capsys.readouterr().err
    assert not Path("no").exists()


@pytest.mark.slow
def test_a_fine_tuning_that_was_interrupted_goes_on_bit_for_bit(
    scan_file: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def payload(out: str, start: Path = trained) -> Any:
        return create_training_payload(
            scan_file, out, {"epochs": 2}, settings(**QUIET, batch_size=8), start_from=start
        )

    whole = runs.train(payload("whole"))
    with monkeypatch.context() as patch:

        def stop(net: Any, *_: Any) -> None:
            if net.global_step == 6:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(PtychoPINN_Lightning, "on_train_batch_start", stop, raising=False)
        with pytest.raises(Stopped):
            runs.continue_training(payload("run"))
    with pytest.raises(SettingsError, match="SHA-256 of the weights to start from"):
        runs.continue_training(payload("run", whole.folder))
    rest = runs.continue_training(payload("run"))
    assert rest is not None
    assert read_manifest(Path("run"))["content"] == read_manifest(Path("whole"))["content"]
    assert read_manifest(Path("run"))["started_from"] == str(trained / "model.ckpt")


@pytest.mark.thorough
def test_a_rerun_begins_with_the_same_weights_and_refuses_others(
    scan_file: Path, trained: Path, tmp_path: Path
) -> None:
    run = tuned(scan_file, trained, epochs=1).folder
    assert repeated(verify(run, rerun(run, Path("again")).folder))
    (tmp_path / "moved").mkdir()
    model = trained / "model.ckpt"
    aside = model.rename(tmp_path / "moved" / "model.ckpt")
    try:
        with pytest.raises(DataError, match="not where it was"):
            rerun(run, Path("no"))
    finally:
        aside.rename(model)


def test_a_network_that_is_good_already_is_not_taken_for_one_that_does_not_learn(
    scan_file: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = tuned(scan_file, trained, out="learned", epochs=20, learning_rate=0.01).folder
    monkeypatch.setattr("ptycho_torch.network.health.PLATEAU_PATTERNS", 40)
    tuned(scan_file, learned, epochs=2, learning_rate=1e-7)  # the loss stays where it is
    payload = create_training_payload(
        scan_file, "new", {**SHAPE, "epochs": 2, "learning_rate": 1e-7}, settings(**QUIET)
    )
    with pytest.raises(UserError, match=r"stuck|collapsed"):
        runs.train(payload)
