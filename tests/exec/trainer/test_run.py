"""Anybody's module in three lines: what happens on the way in, on the way out, and after an exception."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from ptycho_exec import SettingsWarning, trainer_run
from ptycho_exec.errors import DriftError, SettingsError
from ptycho_exec.record import fingerprint, read_manifest, settings_from_manifest
from ptycho_exec.settings import ExecutionSettings
from tests.exec.trainer.linear_runs import CPU, SAMPLES, WIDTH, Linear, process_state, settings


class Net(pl.LightningModule):
    """A module of somebody else: own optimizer, nothing logged, no validation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(WIDTH, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.layer(batch[0]).pow(2).mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 3e-4)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def data(batch: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(SAMPLES, WIDTH)), **{"batch_size": batch, **options})


def defaults(**values: Any) -> ExecutionSettings:
    """Settings of which nothing is set but what the test says, and no bar."""
    return ExecutionSettings.from_values({"enable_progress_bar": False, **values})


def test_three_lines_run_a_module_and_leave_a_record(tmp_path: Path) -> None:
    before, folder = process_state(), tmp_path / "run"
    with trainer_run(settings(seed=7), module=Linear, max_epochs=2, run_dir=folder, facts=CPU) as run:
        net = Linear(run.settings.learning_rate)
        run.trainer.fit(net, data(**run.train_loader_kwargs), data(**run.inference_loader_kwargs))
    assert net.seen["deterministic"]
    assert process_state() == before
    manifest = read_manifest(folder)
    assert (manifest["status"], manifest["trained"]) == ("completed", {"epochs": 2, "steps": 12})
    assert {row["verdict"] for row in manifest["drift"]} == {"same", "unknown"}
    assert manifest["intent"]["seed"] == 7
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert (folder / "logs" / "metrics.csv").is_file()


def test_the_seed_decides_the_first_weights() -> None:
    def first(seed: int) -> torch.Tensor:
        with trainer_run(settings(seed=seed), module=Linear, facts=CPU):
            return Linear().layer.weight.detach()

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


def test_a_module_that_was_made_before_the_seed_is_reported() -> None:
    with (
        pytest.warns(SettingsWarning, match="seed=7 comes after the module was made"),
        trainer_run(settings(seed=7), module=Linear(), facts=CPU),
    ):
        pass


def test_after_an_exception_all_is_put_back_and_the_manifest_says_so(tmp_path: Path) -> None:
    before = process_state()
    with pytest.raises(ZeroDivisionError), trainer_run(settings(), run_dir=tmp_path / "run", facts=CPU):
        raise ZeroDivisionError("mine")
    assert process_state() == before
    manifest = read_manifest(tmp_path / "run")
    assert (manifest["status"], manifest["error"]) == ("failed", "ZeroDivisionError: mine")


def test_a_refused_run_leaves_no_directory(tmp_path: Path) -> None:
    wanted = settings(accelerator="cpu", devices=1, precision="16-mixed")
    with (
        pytest.raises(SettingsError, match="no fp16"),
        trainer_run(wanted, run_dir=tmp_path / "a" / "run", facts=CPU),
    ):
        pass
    with (
        pytest.raises(SettingsError, match="no parameter"),
        trainer_run(settings(), run_dir=tmp_path / "a" / "run", facts=CPU, trainer_kwargs={"max_epoch": 1}),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_changes_after_fit_is_drift() -> None:
    with (
        pytest.raises(DriftError, match="accumulate_grad_batches"),
        trainer_run(settings(), facts=CPU) as run,
    ):
        run.trainer.accumulate_grad_batches = 5


def test_a_module_of_somebody_else_runs_with_all_defaults(tmp_path: Path) -> None:
    """Nothing logged, own optimizer and scheduler, own loader: nobody asked for anything else."""
    with trainer_run(defaults(), module=Net, max_epochs=2, run_dir=tmp_path / "run", facts=CPU) as run:
        run.trainer.fit(Net(), data(batch=2))
    assert run.trainer.current_epoch == 2
    manifest = read_manifest(tmp_path / "run")
    verdicts = {row["name"]: row["verdict"] for row in manifest["drift"]}
    assert "differs" not in verdicts.values()
    assert {verdicts[name] for name in ("learning_rate", "has_scheduler", "train.batch_size")} == {
        "not asked"
    }
    assert any("does not log train_loss" in line for line in manifest["warnings"])
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("epoch*")] == [
        "epoch0001-step0000024.ckpt"
    ]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"learning_rate": 0.01}, "learning_rate=0.01"),
        ({"scheduler": "Exponential"}, "has_scheduler"),
        ({"batch_size": 8}, "train.batch_size=8"),
    ],
)
def test_what_somebody_set_is_compared_with_the_modules_own(asked: dict[str, Any], words: str) -> None:
    class Plain(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 3e-4)

    with (
        pytest.raises(DriftError, match=words),
        trainer_run(defaults(**asked), module=Plain, max_epochs=1, facts=CPU) as run,
    ):
        run.trainer.fit(Plain(), data(batch=2))


@pytest.mark.parametrize(
    "name", ["early_stop_patience", "checkpoint_save_top_k", "checkpoint_monitor_metric"]
)
def test_a_metric_that_somebody_asked_for_must_be_logged(name: str, tmp_path: Path) -> None:
    value = {"early_stop_patience": 3, "checkpoint_save_top_k": 2, "checkpoint_monitor_metric": "train_loss"}[
        name
    ]
    with (
        pytest.raises(SettingsError, match="never logged it"),
        trainer_run(
            defaults(**{name: value}), module=Net, max_epochs=1, run_dir=tmp_path / "run", facts=CPU
        ) as run,
    ):
        run.trainer.fit(Net(), data())


def test_one_of_several_learning_rates_is_enough() -> None:
    class Groups(Net):
        def configure_optimizers(self) -> Any:
            weight, bias = self.layer.parameters()
            return torch.optim.SGD([{"params": [weight], "lr": 1e-4}, {"params": [bias], "lr": 0.01}])

    with trainer_run(defaults(learning_rate=0.01), module=Groups, max_epochs=1, facts=CPU) as run:
        run.trainer.fit(Groups(), data())
        assert "differs" not in {row.verdict for row in run.report().rows}


def test_validation_may_load_as_inference_does() -> None:
    wanted = settings(inference_batch_size=8)
    with trainer_run(wanted, module=Linear, max_epochs=1, facts=CPU) as run:
        run.trainer.fit(Linear(), data(**run.train_loader_kwargs), data(**run.inference_loader_kwargs))
        assert "differs" not in {row.verdict for row in run.report().rows}


def test_adapted_values_and_notices_are_announced_once_and_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = settings(precision="16-mixed", on_unsupported="adapt", benchmark=True, deterministic=False)
    caplog.set_level(logging.INFO, "ptycho_exec")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with trainer_run(wanted, module=Linear, run_dir=tmp_path / "run", facts=CPU):
            pass
    ours = [row for row in caught if row.category is SettingsWarning]
    assert [str(row.message).partition(",")[0] for row in ours] == [
        "precision: 16-mixed became bf16-mixed",
        "benchmark=true has no effect: cuDNN is not used on cpu",
    ]
    assert {row.filename for row in ours} == {__file__}
    assert sum("16-mixed became" in row.getMessage() for row in caplog.records) == 1
    lines = read_manifest(tmp_path / "run")["warnings"]
    assert len([line for line in lines if "16-mixed became" in line]) == 1


def test_the_callers_own_logger_is_used_and_left_open(tmp_path: Path) -> None:
    mine = CSVLogger(tmp_path / "mine", name="", version="v")
    with trainer_run(defaults(batch_size=4), module=Linear, max_epochs=1, logger=mine, facts=CPU) as run:
        run.trainer.fit(Linear(), data(), data())
        assert run.trainer.loggers == [mine]
        verdicts = {row.name: row.verdict for row in run.report().rows}
    assert (tmp_path / "mine" / "v" / "hparams.yaml").is_file()
    assert "differs" not in verdicts.values()


PROGRAM = """
    import torch, lightning.pytorch as pl
    from torch.utils.data import DataLoader, TensorDataset
    import ptycho_exec

    class Net(pl.LightningModule):
        def __init__(self, rate):
            super().__init__()
            self.layer, self.rate = torch.nn.Linear(4, 1), rate

        def training_step(self, batch, index):
            loss = self.layer(batch[0]).pow(2).mean()
            self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
            return loss

        def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
            for p in self.parameters():  # adaptive: relative to the weights
                largest = gradient_clip_val * p.detach().norm().clamp_min(1e-3)
                p.grad.mul_((largest / p.grad.norm().clamp_min(1e-12)).clamp_max(1.0))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), self.rate)

    class Mine(pl.Callback):
        def on_train_end(self, trainer, module):
            if trainer.is_global_zero:
                print("mine was called")

    with ptycho_exec.trainer_run(module=Net, run_dir="RUN", max_epochs=2, callbacks=[Mine()]) as run:
        data = TensorDataset(torch.randn(32, 4))
        run.trainer.fit(Net(run.settings.learning_rate), DataLoader(data, **run.train_loader_kwargs))
"""


@pytest.mark.slow
def test_a_program_on_two_processes_writes_one_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM).replace("RUN", str(tmp_path / "run")))
    averaged = find_spec("lightning.pytorch.callbacks.weight_averaging") is not None  # not before 2.6
    average = "ema_decay = 0.9\n" if averaged else ""
    (tmp_path / "ptycho_exec.toml").write_text(f"batch_size = 8\nlearning_rate = 0.02\n{average}")
    for name, value in {
        "ACCELERATOR": "cpu",
        "DEVICES": "2",
        "STRATEGY": "ddp",
        "EARLY_STOP_PATIENCE": "5",
        "GRADIENT_CLIP_ALGORITHM": "agc",
        "GRADIENT_CLIP_VAL": "0.01",
    }.items():
        monkeypatch.setenv(f"PTYCHO_EXEC_{name}", value)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "run")
    assert (manifest["status"], manifest["trained"]["steps"]) == ("completed", 4)
    assert "differs" not in {row["verdict"] for row in manifest["drift"]}
    assert "mine was called" in done.stdout
    assert manifest["origins"]["ema_decay"]["kind"] == ("project-file" if averaged else "default")
    assert manifest["origins"]["gradient_clip_algorithm"]["place"] == "PTYCHO_EXEC_GRADIENT_CLIP_ALGORITHM"


def test_notes_about_the_sources_reach_the_user_and_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTYCHO_EXEC_SEED", "")
    wanted = ExecutionSettings(enable_progress_bar=False)
    with (
        pytest.warns(SettingsWarning, match="PTYCHO_EXEC_SEED is empty"),
        trainer_run(wanted, module=Net, run_dir=tmp_path / "run", facts=CPU),
    ):
        pass
    assert "PTYCHO_EXEC_SEED is empty" in str(read_manifest(tmp_path / "run")["warnings"])


class Lab(ExecutionSettings):
    """Settings of another program, with fields of their own."""

    beamline: str = "1-BM"
    mask: frozenset[str] = frozenset()


def test_a_run_with_a_subclass_records_its_fields(tmp_path: Path) -> None:
    wanted = Lab.from_values({"beamline": "2-ID", "mask": ["b", "a"]})
    with trainer_run(wanted, module=Net, max_epochs=1, run_dir=tmp_path / "run", facts=CPU) as run:
        run.trainer.fit(Net(), data(batch=wanted.batch_size))
    manifest = read_manifest(tmp_path / "run")
    assert (manifest["intent"]["beamline"], manifest["intent"]["mask"]) == ("2-ID", ["a", "b"])
    assert manifest["fingerprint"] == fingerprint(wanted)
    assert settings_from_manifest(tmp_path / "run", model=Lab) == wanted


def test_a_file_and_the_call_both_decide_parameters_of_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ptycho_exec.toml").write_text("[trainer]\nmin_epochs = 2\ninference_mode = false\n")
    with (
        pytest.warns(
            SettingsWarning, match=r"trainer.min_epochs=2 has no effect: trainer_kwargs of the call"
        ),
        trainer_run(
            ExecutionSettings(enable_progress_bar=False),
            module=Net,
            max_epochs=4,
            run_dir="run",
            trainer_kwargs={"min_epochs": 3},
        ) as run,
    ):
        run.trainer.fit(Net(), data())
    assert (run.trainer.min_epochs, run.trainer.predict_loop.inference_mode) == (3, False)
    manifest = read_manifest("run")
    assert manifest["intent"]["trainer"] == {"min_epochs": 2, "inference_mode": False}
    assert manifest["origins"]["trainer"]["parts"]["inference_mode"]["line"] == 3
    assert manifest["caller"]["trainer_kwargs"] == {"min_epochs": 3}
    rows = {row["name"]: row["verdict"] for row in manifest["drift"]}
    assert (rows["min_epochs"], rows["inference_mode"]) == ("caller's", "same")
    assert settings_from_manifest("run").trainer == manifest["intent"]["trainer"]
    kept = ExecutionSettings(settings_file="run/settings.toml")
    assert kept.trainer == manifest["intent"]["trainer"]


def test_a_settings_class_made_in_a_function_runs() -> None:
    class Local(ExecutionSettings):
        beam: str = "a"

    wanted = Local.from_values({"enable_progress_bar": False, "accelerator": "cpu"})
    with trainer_run(wanted, module=Net, max_epochs=1, facts=CPU) as run:
        run.trainer.fit(Net(), data())
    assert run.trainer.global_step == 6


def test_the_plan_counts_the_batches_of_the_loaders_it_is_given() -> None:
    loaders = {"train": data(), "validation": data(), "predict": data(batch=3)}
    wanted = defaults(val_check_interval=6, inference_batch_size=3)
    with trainer_run(wanted, module=Linear, loaders=loaders, max_epochs=1, facts=CPU) as run:
        run.trainer.fit(Linear(), loaders["train"], loaders["validation"])
        assert "differs" not in {row.verdict for row in run.report().rows}
    assert str(run.plan.totals) == "4, 6 steps per epoch"
    for asked in ({"limit_val_batches": 0.01}, {"overfit_batches": 0.01}):
        with (
            pytest.raises(SettingsError, match="no batch at all"),
            trainer_run(defaults(**asked), module=Linear, loaders=loaders, facts=CPU),
        ):
            pass
