"""The facade: kwargs as tables, then the same facts with a real Trainer on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler

from ptycho_exec.errors import SettingsError, SettingsWarning
from ptycho_exec.machine.facts import Gpu, MachineFacts
from ptycho_exec.plan import ModuleTraits, resolve_plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.build import (
    build_trainer,
    described_kwargs,
    inference_loader_kwargs,
    process_flags,
    requested_and_effective,
    train_loader_kwargs,
    trainer_kwargs,
)
from ptycho_exec.trainer.module import is_compiled
from ptycho_exec.trainer.process import _restored
from tests.exec.trainer.linear_runs import (
    SAMPLES,
    Linear,
    fit,
    loader,
    plan_of,
    read_back,
    real_parameters,
    rows,
    settings,
)


def test_kwargs_hold_lightnings_words_verbatim() -> None:
    wanted = settings(
        accelerator="gpu",
        devices=[0, 1],
        strategy="ddp",
        precision="bf16-mixed",
        deterministic=False,
        gradient_clip_val=1.0,
        gradient_clip_algorithm="value",
        accum_steps=4,
        max_time="00:01:00:00",
        limit_train_batches=0.5,
        log_every_n_steps=3,
        num_nodes=2,
        benchmark=True,
        enable_progress_bar=True,
    )
    found = trainer_kwargs(wanted, max_epochs=7, run_dir="/runs/a", callbacks=("one",), logger="log")
    expected = {
        "accelerator": "gpu",
        "devices": [0, 1],
        "strategy": "ddp",
        "precision": "bf16-mixed",
        "deterministic": False,
        "gradient_clip_val": 1.0,
        "gradient_clip_algorithm": "value",
        "accumulate_grad_batches": 4,
        "max_time": "00:01:00:00",
        "limit_train_batches": 0.5,
        "log_every_n_steps": 3,
        "num_nodes": 2,
        "benchmark": True,
        "enable_progress_bar": True,
        "max_epochs": 7,
        "default_root_dir": "/runs/a",
        "callbacks": ["one"],
        "logger": "log",
    }
    assert {name: found[name] for name in expected} == expected


def test_kwargs_of_the_defaults() -> None:
    found = trainer_kwargs(settings())
    assert found["accelerator"] == "auto"
    assert found["deterministic"] is True
    assert found["benchmark"] is False
    assert found["logger"] is False
    assert found["fast_dev_run"] is False
    assert found["gradient_clip_algorithm"] is None
    assert found["enable_progress_bar"] is False
    assert found["enable_checkpointing"] is True
    assert (found["max_epochs"], found["default_root_dir"], found["plugins"]) == (None, None, None)


def test_kwargs_of_a_plan_are_its_effective_values() -> None:
    wanted = settings(precision="16-mixed", on_unsupported="adapt", enable_progress_bar="auto")
    found = trainer_kwargs(wanted, plan=plan_of(wanted))
    assert (found["accelerator"], found["precision"]) == ("cpu", "bf16-mixed")


def test_agc_is_the_modules_hook_and_lightning_is_told_the_value() -> None:
    found = trainer_kwargs(settings(gradient_clip_val=0.01, gradient_clip_algorithm="agc"))
    assert (found["gradient_clip_val"], found["gradient_clip_algorithm"]) == (0.01, "norm")


def test_a_smoke_test_writes_no_checkpoint() -> None:
    found = trainer_kwargs(settings(fast_dev_run=2))
    assert (found["fast_dev_run"], found["enable_checkpointing"]) == (2, False)


def test_train_loader_kwargs() -> None:
    wanted = settings(num_workers=2, pin_memory=True, persistent_workers=True, prefetch_factor=3)
    assert train_loader_kwargs(wanted) == {
        "batch_size": 4,
        "num_workers": 2,
        "pin_memory": True,
        "persistent_workers": True,
        "prefetch_factor": 3,
    }


def test_worker_options_without_workers_are_left_out() -> None:
    wanted = settings(persistent_workers=True, prefetch_factor=3, pin_memory=False)
    assert train_loader_kwargs(wanted) == {"batch_size": 4, "num_workers": 0, "pin_memory": False}
    assert len(list(loader(wanted))) == 6


def test_inference_batches() -> None:
    assert inference_loader_kwargs(settings())["batch_size"] == 4
    found = inference_loader_kwargs(settings(inference_batch_size=2))
    assert (found["batch_size"], found["shuffle"]) == (2, False)


def test_auto_is_decided_for_loaders_without_a_plan() -> None:
    found = train_loader_kwargs(settings(num_workers="auto"))
    assert isinstance(found["num_workers"], int)
    assert found["pin_memory"] is False


def test_a_plan_decides_the_loaders() -> None:
    wanted = settings(num_workers="auto")
    gpu = Gpu(name="A100", memory_mb=1, capability="8.0", bf16=True)
    plan = resolve_plan(wanted, MachineFacts(cpus_logical=4, gpus=(gpu,)))
    found = train_loader_kwargs(wanted, plan)
    assert (found["num_workers"], found["pin_memory"]) == (3, True)


def test_workers_on_an_apple_gpu_are_spawned() -> None:
    wanted = settings(num_workers=2)
    found = train_loader_kwargs(wanted, resolve_plan(wanted, MachineFacts(mps=True)))
    assert found["multiprocessing_context"] == "spawn"


def test_a_stand_in_for_the_trainer_sees_the_settings_verbatim(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = MagicMock()
    monkeypatch.setattr("lightning.pytorch.Trainer", stand_in)
    wanted = settings(accelerator="gpu", deterministic=False, gradient_clip_val=1.0, num_workers=4)
    assert build_trainer(wanted, max_epochs=2, announce=False) is stand_in.return_value
    found = stand_in.call_args.kwargs
    assert found["accelerator"] == "gpu"
    assert found["deterministic"] is False
    assert found["gradient_clip_val"] == 1.0
    assert set(found) == real_parameters()


def test_no_variable_of_lightning_reaches_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = settings()
    usual = rows_of(wanted)
    odd = {"accelerator": "tpu", "devices": "7", "max_epochs": "1", "min_epochs": "9", "max_steps": "3"}
    for name in real_parameters():
        monkeypatch.setenv(f"PL_TRAINER_{name.upper()}", odd.get(name, "7"))
    hostile = rows_of(wanted)
    assert hostile == usual


def rows_of(wanted: ExecutionSettings) -> dict[str, Any]:
    with process_flags(wanted):
        trainer = build_trainer(wanted, max_epochs=5, plan=plan_of(wanted))
        report = requested_and_effective(trainer, wanted, plan_of(wanted), writes=False)
    values = {row.name: row.effective for row in report.rows}
    more = ("max_epochs", "min_epochs", "max_steps", "min_steps", "limit_val_batches", "limit_test_batches",
            "limit_predict_batches", "overfit_batches", "val_check_interval", "check_val_every_n_epoch",
            "num_sanity_val_steps", "default_root_dir", "barebones")  # fmt: skip
    return values | {name: getattr(trainer, name) for name in more}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"accelerator": "gpu"}, ["accelerator=gpu", "No supported gpu backend", "argument from_values()"]),
        ({"accelerator": "cuda"}, ["accelerator=cuda", "CUDAAccelerator", "argument from_values()"]),
        ({"strategy": "fsdp"}, ["strategy=fsdp", "requires a GPU accelerator", "argument from_values()"]),
        ({"strategy": "deepspeed"}, ["strategy=deepspeed", "argument from_values()"]),
        ({"devices": [0, 1]}, ["devices=[0, 1]", "argument from_values()"]),
    ],
)
def test_what_a_real_trainer_refuses_says_where_it_came_from(
    asked: dict[str, object], words: list[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so nothing is refused")
    wanted = settings(**asked)
    with process_flags(wanted), pytest.raises(SettingsError) as caught:
        build_trainer(wanted, max_epochs=1, plan=plan_of(wanted))
    for word in [*words, "fix:"]:
        assert word in str(caught.value)


def test_an_unexpected_refusal_names_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("precision what?")

    monkeypatch.setattr("lightning.pytorch.Trainer", refuse)
    with pytest.raises(SettingsError, match="precision=bf16-mixed from argument") as caught:
        build_trainer(settings(precision="bf16-mixed"), max_epochs=1)
    assert "ValueError: precision what?" in str(caught.value)


def test_what_no_trainer_would_notice_stops_before_it() -> None:
    wanted = settings(num_nodes=2)
    with pytest.raises(SettingsError, match="wait for ever"):
        build_trainer(wanted, max_epochs=1, plan=plan_of(wanted))


def test_without_a_run_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(settings())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"logger_backend": "csv"}, "logger_backend=csv has no effect: the run has no directory"),
        ({"enable_checkpointing": True}, "pass run_dir="),
        ({"checkpoint_save_top_k": 2}, "checkpoint_save_top_k=2 has no effect"),
        ({"log_every_n_steps": 1}, "log_every_n_steps=1 has no effect: the run has no directory"),
        ({"middle_trim": 8}, "middle_trim=8 has no effect: a Trainer does not stitch"),
        ({"pad_eval": True}, "pad_eval=true has no effect"),
        ({"seed": 7}, "seed=7 has no effect: it is set for the whole process"),
        ({"num_threads": 3}, "inside `trainer_run`"),
    ],
)
def test_a_bare_trainer_says_what_it_cannot_do(asked: dict[str, Any], words: str) -> None:
    wanted = ExecutionSettings.from_values(asked)
    with _restored(), pytest.warns(SettingsWarning, match=words) as caught:
        build_trainer(wanted, plan=plan_of(wanted))
    assert {row.filename for row in caught if row.category is SettingsWarning} == {__file__}


def test_what_is_shown_of_a_plan_is_what_the_trainer_gets(tmp_path: Path) -> None:
    wanted = settings(early_stop_patience=None, enable_progress_bar=True, accum_steps=2)
    plan = plan_of(wanted)
    shown = described_kwargs(plan)
    with process_flags(wanted):
        trainer = build_trainer(wanted, run_dir=tmp_path, plan=plan)
    names = [type(row).__name__ for row in trainer.callbacks]
    assert sorted(shown["callbacks"]) == sorted(set(names) - {"ModelSummary"})
    assert shown["plugins"] == [type(trainer.strategy.checkpoint_io).__name__]
    assert shown["logger"] == type(trainer.logger).__name__
    assert (shown["accelerator"], shown["accumulate_grad_batches"]) == ("cpu", 2)


def test_a_bare_trainer_of_the_defaults_has_nothing_to_say() -> None:
    with _restored(), warnings.catch_warnings(record=True) as caught:
        build_trainer(ExecutionSettings.from_values({}))
    assert [row for row in caught if row.category is SettingsWarning] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("given", [True, False])
def test_compile_acts_for_a_module_that_does_not_compile_itself(given: bool) -> None:
    """Compilation itself is left out: what is asked for is seen in the parts with weights."""
    wanted = settings(compile=given)
    module = Nested()
    with process_flags(wanted):
        trainer = build_trainer(wanted, max_epochs=1, plan=plan_of(wanted), announce=False)
        read_back(trainer).on_fit_start(trainer, module)
    assert is_compiled(module) is given
    assert [part._compiled_call_impl is not None for part in (module.layer, *module.more)] == [given] * 3
    assert set(module.state_dict()) == set(Nested().state_dict())


class Nested(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.more = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])


def test_import_of_the_facade_is_light() -> None:
    light = ["build", "parameters", "drift", "process", "callbacks", "loggers", "caller", "module", "run"]
    modules = ["machine.facts", "plan", "record", *(f"trainer.{name}" for name in light)]
    names = ", ".join(f"ptycho_exec.{name}" for name in modules)
    code = f"import sys, {names}; print({{'torch', 'lightning', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_the_callers_profiler_is_built_in_and_read_back() -> None:
    own = SimpleProfiler()
    wanted = settings()
    plan = plan_of(wanted)
    with process_flags(wanted):
        trainer = build_trainer(wanted, max_epochs=1, plan=plan, profiler=own)
        assert trainer.profiler is own
        trainer.fit(Linear(), loader(wanted, plan), loader(wanted, plan))
    row = rows(trainer)["profiler"]
    assert (row.requested, row.effective, row.verdict) == ("SimpleProfiler", "SimpleProfiler", "same")
    assert own.recorded_durations["run_training_batch"]


REJECTED: list[dict[str, object]] = [
    {"deterministic": "yes"},
    {"deterministic": "true"},
    {"deterministic": True, "benchmark": True},
    {"precision": 16},
    {"precision": "16"},
    {"gradient_clip_val": 0.0},
    {"gradient_clip_val": -1.0},
    {"gradient_clip_algorithm": "value"},
    {"accum_steps": 0},
    {"accum_steps": -1},
    {"accum_steps": {0: 2}},
    {"devices": True},
    {"devices": -1},
    {"devices": 0},
    {"devices": []},
    {"devices": [0], "accelerator": "cpu"},
    {"num_nodes": 0},
    {"limit_train_batches": 0},
    {"limit_train_batches": 0.0},
    {"limit_train_batches": 1.5},
    {"fast_dev_run": True},
    {"checkpoint_save_top_k": -2},
    {"max_time": "1 hour"},
]


@pytest.mark.parametrize("asked", REJECTED, ids=repr)
def test_settings_reject_what_lightning_would_take_in_silence(asked: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        settings(**asked)


@pytest.mark.parametrize(
    ("asked", "traits", "words"),
    [
        ({"precision": "16-mixed"}, None, "silently use bf16-mixed"),
        ({"num_nodes": 2}, None, "wait for ever"),
        ({"gradient_clip_val": 1.0}, ModuleTraits(automatic_optimization=False), "manual optimization"),
        ({"accum_steps": 2}, ModuleTraits(automatic_optimization=False), "manual optimization"),
        ({"checkpoint_monitor_metric": "x"}, ModuleTraits(logged_metrics=("val_loss",)), "never logs it"),
    ],
)
def test_the_plan_stops_what_lightning_finds_late_or_never(
    asked: dict[str, object], traits: ModuleTraits | None, words: str
) -> None:
    wanted = settings(**asked)
    with pytest.raises(SettingsError, match=words):
        build_trainer(wanted, max_epochs=1, plan=plan_of(wanted, traits))


@pytest.mark.parametrize("more", [{}, {"fast_dev_run": 1}])
def test_a_monitor_that_is_never_logged_stops_after_the_first_epoch(
    more: dict[str, object], tmp_path: Path
) -> None:
    wanted = settings(checkpoint_monitor_metric="ssim", **more)
    with pytest.raises(SettingsError, match="never logged it") as caught:
        fit(wanted, epochs=3, run_dir=tmp_path)
    assert "one of: train_loss, val_loss" in str(caught.value)
    assert "argument from_values()" in str(caught.value)


@pytest.mark.parametrize("word", [1, "true", "yes"])
def test_what_lightning_would_take_for_not_deterministic_is_refused(word: object) -> None:
    with pytest.raises(SettingsError, match="deterministic"):
        settings(deterministic=word)


@pytest.mark.acts("on_unsupported", "whether a run stops or trains with the nearest value")
def test_16_mixed_adapted_on_a_cpu_is_recorded_and_warns_of_nothing_else() -> None:
    trainer, module = fit(settings(precision="16-mixed", on_unsupported="adapt"))
    assert trainer.precision == "bf16-mixed"
    assert module.seen["dtype"] == torch.bfloat16


def test_options_of_workers_without_workers_train_with_a_notice() -> None:
    wanted = settings(persistent_workers=True, prefetch_factor=2, pin_memory=True)
    assert {notice.field for notice in plan_of(wanted).notices} == {
        "persistent_workers",
        "prefetch_factor",
        "pin_memory",
    }
    fit(wanted)


def test_no_callback_is_built_that_lightning_would_refuse(tmp_path: Path) -> None:
    trainer, _ = fit(settings(enable_checkpointing=False, logger_backend=None), run_dir=tmp_path)
    kinds = {type(row).__name__ for row in trainer.callbacks}
    assert not kinds & {"ModelCheckpoint", "ResumePoint", "LearningRateMonitor"}
    assert trainer.loggers == []


def test_more_workers_than_cpus_is_a_notice_and_trains() -> None:
    wanted = settings(num_workers=2, limit_train_batches=1)
    plan = resolve_plan(wanted, MachineFacts(cpus_logical=1))
    assert [notice.field for notice in plan.notices] == ["num_workers"]
    fit(wanted)


@pytest.mark.acts("precision", "dtype of the network's output in a forward hook", ["64-true-dtype3"])
@pytest.mark.parametrize(
    ("word", "dtype"),
    [
        ("32-true", torch.float32),
        ("bf16-mixed", torch.bfloat16),
        ("bf16-true", torch.bfloat16),
        ("64-true", torch.float64),
    ],
)
def test_precision_is_the_dtype_of_the_forward_pass(word: str, dtype: torch.dtype) -> None:
    _, module = fit(settings(precision=word))
    assert module.seen["dtype"] == dtype


@pytest.mark.acts("batch_size", "length of the batches that arrive in the training step", ["3"])
@pytest.mark.parametrize("size", [3, 8])
def test_batch_size_is_the_length_of_a_batch(size: int) -> None:
    _, module = fit(settings(batch_size=size))
    assert module.seen["batches"] == [size] * (SAMPLES // size)


@pytest.mark.acts("limit_train_batches", "batches of an epoch", ["2-2", "0.5-3"])
@pytest.mark.parametrize(("limit", "batches"), [(None, 6), (2, 2), (0.5, 3)])
def test_limit_train_batches(limit: object, batches: int) -> None:
    _, module = fit(settings(limit_train_batches=limit))
    assert len(module.seen["batches"]) == batches


@pytest.mark.acts("fast_dev_run", "batches trained, and that nothing is written")
def test_fast_dev_run_trains_that_many_batches_and_writes_nothing(tmp_path: Path) -> None:
    _, module = fit(settings(fast_dev_run=2), epochs=5, run_dir=tmp_path)
    assert len(module.seen["batches"]) == 2
    assert list(tmp_path.iterdir()) == []


class Gradients(pl.Callback):
    """Remember the gradient at each optimizer step, after clipping."""

    def __init__(self) -> None:
        self.after: list[torch.Tensor] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        grads = [p.grad.flatten().clone() for p in pl_module.parameters() if p.grad is not None]
        if grads:
            self.after.append(torch.cat(grads))


@pytest.mark.acts("gradient_clip_val", "gradients before and after clipping", ["norm-<lambda>"])
@pytest.mark.parametrize(
    ("algorithm", "measure"), [("norm", lambda g: g.norm()), ("value", lambda g: g.abs().max())]
)
def test_clipping_limits_the_gradient(algorithm: str, measure: Any) -> None:
    limit = 1e-3
    free, clipped = Gradients(), Gradients()
    fit(settings(learning_rate=1e-6), callbacks=(free,))
    wanted = settings(learning_rate=1e-6, gradient_clip_val=limit, gradient_clip_algorithm=algorithm)
    fit(wanted, callbacks=(clipped,))
    assert all(measure(grad) > limit for grad in free.after)
    for grad in clipped.after:
        assert measure(grad) == pytest.approx(limit, rel=1e-3)


def test_accumulating_k_batches_equals_one_of_k_times_the_size() -> None:
    _, small = fit(settings(batch_size=4, accum_steps=3), epochs=3)
    _, large = fit(settings(batch_size=12), epochs=3)
    torch.testing.assert_close(small.layer.weight, large.layer.weight, rtol=0, atol=1e-6)


def test_max_time_stops() -> None:
    wanted = settings(max_time="00:00:00:01")
    trainer, _ = fit(wanted, epochs=100_000)
    assert trainer.current_epoch < 100_000


DDP_SCRIPT = """
import os, sys, warnings
import torch, lightning.pytorch as pl
from lightning.pytorch.trainer.trainer import Trainer as RealTrainer
from torch.utils.data import DataLoader, TensorDataset
from ptycho_exec.trainer.build import build_trainer, process_flags, seed_run, train_loader_kwargs
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import resolve_plan
from ptycho_exec.settings import ExecutionSettings

class M(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def training_step(self, batch, index):
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("val_loss", loss, on_epoch=True, on_step=False, sync_dist=True)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

child = os.environ.get("LOCAL_RANK") == "1"
rate = float(sys.argv[1]) if child else 1e-3
s = ExecutionSettings.from_values(
    {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "learning_rate": rate, "batch_size": 2}
)
plan = resolve_plan(s, MachineFacts(cpus_logical=2))
with process_flags(s):
    seed_run(s)
    trainer = build_trainer(s, max_epochs=1, plan=plan)
    trainer.fit(M(), DataLoader(TensorDataset(torch.randn(16, 2)), **train_loader_kwargs(s, plan)))
report = next(c for c in trainer.callbacks if type(c).__name__ == "ReadBack").report
sys.stdout.write(f"WORLD {trainer.world_size} {len(report.differing)}\\n")
"""


def run_two_ranks(tmp_path: Path, rate: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(DDP_SCRIPT))
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(script), rate], capture_output=True, text=True, timeout=180, env=environ
    )


@pytest.mark.slow
def test_two_ranks_train_as_asked(tmp_path: Path) -> None:
    done = run_two_ranks(tmp_path, "1e-3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("WORLD 2 0") == 2


@pytest.mark.thorough
@pytest.mark.slow
def test_ranks_with_different_settings_stop(tmp_path: Path) -> None:
    done = run_two_ranks(tmp_path, "2e-3")
    assert done.returncode != 0
    told = "learning_rate differs between the processes: 0.001 on rank 0, 0.002 on rank 1"
    assert told in done.stdout + done.stderr


def test_warnings_are_errors_here() -> None:
    """The runs above would fail on any warning that Lightning or torch gives."""
    with pytest.raises(UserWarning):
        warnings.warn("x", UserWarning, stacklevel=1)


# --- how long, how much, how often ------------------------------------------------------------------------


class Counter(pl.Callback):
    """Count what the Trainer does."""

    def __init__(self) -> None:
        self.validated_at: list[int] = []
        self.validation_batches = self.sanity_batches = 0
        self.anomaly = self.inference_mode = False

    def on_train_start(self, *_: Any) -> None:
        self.anomaly = torch.is_anomaly_enabled()

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.inference_mode = torch.is_inference_mode_enabled()
        self.sanity_batches += trainer.sanity_checking
        self.validation_batches += not trainer.sanity_checking

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.validated_at.append(trainer.global_step)


def counted(epochs: int = 2, run_dir: Path | None = None, **asked: Any) -> tuple[pl.Trainer, Linear, Counter]:
    counter = Counter()
    trainer, module = fit(settings(**asked), epochs=epochs, run_dir=run_dir, callbacks=(counter,))
    return trainer, module, counter


@pytest.mark.acts("max_steps", "optimizer steps")
def test_training_stops_after_max_steps() -> None:
    assert counted(max_steps=7)[0].global_step == 7


def test_fewer_steps_than_an_epoch_end_without_a_validated_metric(tmp_path: Path) -> None:
    trainer, _, _ = counted(max_steps=3, run_dir=tmp_path, early_stop_patience=2)
    assert trainer.global_step == 3


@pytest.mark.acts("limit_val_batches", "validation batches that ran")
@pytest.mark.parametrize(("value", "batches"), [(2, 4), (0.5, 6), (0, 0)])
def test_validation_batches_are_limited(value: float, batches: int) -> None:
    assert counted(limit_val_batches=value)[2].validation_batches == batches


@pytest.mark.acts("val_check_interval", "steps at which validation ended")
@pytest.mark.parametrize(("value", "steps"), [(2, [2, 4, 6]), (0.5, [3, 6])])
def test_validation_runs_within_an_epoch(value: float, steps: list[int]) -> None:
    assert counted(epochs=1, val_check_interval=value)[2].validated_at == steps


@pytest.mark.acts("check_val_every_n_epoch", "steps at which validation ended, with checkpoints and patience")
def test_validation_skips_epochs(tmp_path: Path) -> None:
    trainer, _, counter = counted(
        epochs=5, run_dir=tmp_path, check_val_every_n_epoch=2, early_stop_patience=3, checkpoint_save_top_k=2
    )
    assert counter.validated_at == [12, 24]
    assert trainer.current_epoch == 5
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("epoch*"))
    assert kept == ["epoch0001-step0000012.ckpt", "epoch0003-step0000024.ckpt"]


@pytest.mark.acts("num_sanity_val_steps", "validation batches before training")
def test_validation_is_tried_before_training() -> None:
    assert counted(num_sanity_val_steps=2)[2].sanity_batches == 2
    assert counted(num_sanity_val_steps=-1)[2].sanity_batches == SAMPLES // 4


@pytest.mark.acts("overfit_batches", "batches of an epoch")
@pytest.mark.filterwarnings("ignore:.*You requested to overfit.*")
def test_training_on_few_batches() -> None:
    _, module, counter = counted(epochs=3, overfit_batches=2)
    assert (len(module.seen["batches"]), counter.validation_batches) == (6, 6)


@pytest.mark.acts("detect_anomaly", "torch's flag in fit")
@pytest.mark.filterwarnings("ignore:.*Anomaly Detection.*")
def test_anomalies_are_detected_in_fit_alone() -> None:
    assert counted(detect_anomaly=True)[2].anomaly
    assert not torch.is_anomaly_enabled()
    assert not counted()[2].anomaly


@pytest.mark.acts("trainer", "torch's mode in Trainer.validate")
def test_the_table_reaches_the_trainer() -> None:
    for given in ({}, {"inference_mode": False}):
        trainer, module, counter = counted(trainer=given)
        trainer.validate(module, loader(settings()), verbose=False)
        assert counter.inference_mode == (not given)


@pytest.mark.filterwarnings("ignore:.*barebones=True")
def test_barebones_needs_no_other_change_without_a_directory() -> None:
    trainer = counted(enable_progress_bar=False, trainer={"barebones": True})[0]
    assert (trainer.barebones, trainer.log_every_n_steps) == (True, 0)


def test_what_the_trainer_refuses_of_the_table_names_its_place(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"trainer.barebones=true from argument from_values\(\)"):
        build_trainer(settings(trainer={"barebones": True}), run_dir=tmp_path)


@pytest.mark.parametrize("name", ["enable_autolog_hparams", "model_registry", "min_epochs"])
def test_a_name_that_this_lightning_does_not_know_is_noted(name: str) -> None:
    wanted = settings(trainer={name: {"model_registry": "mine", "min_epochs": 2}.get(name, True)})
    with process_flags(wanted), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build_trainer(wanted, max_epochs=3)
    noted = [str(row.message) for row in caught if f"trainer.{name}=" in str(row.message)]
    assert len(noted) == (name not in real_parameters())


def test_a_logger_of_the_caller_reads_how_often_to_log_without_a_directory(tmp_path: Path) -> None:
    wanted = ExecutionSettings.from_values({"log_every_n_steps": 1})
    with _restored(), warnings.catch_warnings(record=True) as caught:
        build_trainer(wanted, plan=plan_of(wanted), logger=CSVLogger(tmp_path))
    assert [row for row in caught if row.category is SettingsWarning] == []
