"""What a caller brings to a Trainer acts and is recorded; where a setting decides the same it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch import callbacks as kinds
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision, TorchCheckpointIO
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy

from ptycho_exec.errors import DriftError, SettingsError
from ptycho_exec.plan import ModuleTraits
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.build import build_trainer, process_flags
from ptycho_exec.trainer.caller import RIVALS, CallersOwn
from ptycho_exec.trainer.run import trainer_run
from tests.exec.trainer.linear_runs import Linear, loader, plan_of, read_back, rows, settings


def defaults(**values: Any) -> ExecutionSettings:
    return ExecutionSettings.from_values(values)


def fit(wanted: ExecutionSettings, *, run_dir: Path | None = None, epochs: int = 3, **own: Any) -> pl.Trainer:
    plan = plan_of(wanted)
    with process_flags(plan.settings):
        trainer = build_trainer(wanted, max_epochs=epochs, run_dir=run_dir, plan=plan, **own)
        trainer.fit(Linear(), loader(wanted, plan), loader(wanted, plan))
    return trainer


CALLERS = {
    "EarlyStopping": lambda: kinds.EarlyStopping("train_loss", patience=1, mode="max"),
    "Timer": lambda: kinds.Timer("00:01:00:00"),
    "GradientAccumulationScheduler": lambda: kinds.GradientAccumulationScheduler({0: 1, 1: 2}),
    "ProgressBar": lambda: kinds.RichProgressBar(),
    "Checkpoint": lambda: kinds.ModelCheckpoint(monitor="train_loss"),
    "WeightAveraging": lambda: kinds.WeightAveraging(),
    "StochasticWeightAveraging": lambda: kinds.StochasticWeightAveraging(1e-3, swa_epoch_start=0.5),
}
ASKED: dict[str, Any] = {
    "early_stop_patience": 7,
    "max_time": "00:00:01:00",
    "accum_steps": 2,
    "enable_progress_bar": False,
    "enable_checkpointing": False,
    "ema_decay": 0.9,
    "swa_epoch_start": 1,
}
EACH_RIVAL = [
    pytest.param(
        rival,
        id=f"{rival.kind}-{rival.field}",
        marks=pytest.mark.skipif(not hasattr(kinds, rival.kind), reason="Lightning before 2.6 has none"),
    )
    for rival in RIVALS
]


def test_every_rival_has_an_example() -> None:
    assert {rival.kind for rival in RIVALS} <= set(CALLERS)


@pytest.mark.parametrize("rival", EACH_RIVAL)
def test_the_callers_callback_acts_and_is_no_drift(rival: Any, tmp_path: Path) -> None:
    own = CALLERS[rival.kind]()
    if rival.kind == "Checkpoint":
        own.dirpath = str(tmp_path)
    trainer = fit(defaults(), callbacks=[own])
    assert own in trainer.callbacks
    assert not read_back(trainer).report.differing
    if rival.kind == "EarlyStopping":
        assert trainer.current_epoch == 2
        assert rows(trainer)["early_stop_patience"].verdict == "caller's"
        assert rows(trainer)["early_stop_patience"].effective == 1
    if rival.kind == "ProgressBar":
        assert len([row for row in trainer.callbacks if isinstance(row, kinds.ProgressBar)]) == 1


def test_the_callers_weight_averaging_trains_without_drift(tmp_path: Path) -> None:
    own = kinds.StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=0.5)
    trainer = fit(defaults(), epochs=4, run_dir=tmp_path, callbacks=[own])
    assert trainer.current_epoch == 4
    assert not read_back(trainer).report.differing


@pytest.mark.parametrize("rival", EACH_RIVAL)
def test_what_a_setting_decides_too_is_refused_and_the_remedy_works(rival: Any) -> None:
    own = CALLERS[rival.kind]()
    with pytest.raises(SettingsError, match=rf"{rival.field}=.* and the caller's {rival.kind}") as caught:
        build_trainer(defaults(**{rival.field: ASKED[rival.field]}), callbacks=[own])
    assert f"set {rival.field}=" in str(caught.value)
    with process_flags(defaults()):
        build_trainer(defaults(**{rival.field: rival.beside[0]}), callbacks=[own])


def test_two_early_stoppings_are_compared_not_the_first_alone() -> None:
    wanted = settings(early_stop_patience=7)
    plan = plan_of(wanted)
    with process_flags(wanted):
        trainer = build_trainer(wanted, max_epochs=3, plan=plan)
        trainer.callbacks.append(kinds.EarlyStopping("val_loss", patience=1))
        with pytest.raises(DriftError, match="asked for early_stop_patience=7, but the Trainer has 7 and 1"):
            trainer.fit(Linear(), loader(wanted, plan), loader(wanted, plan))


def test_the_callers_logger_takes_the_place_of_ours(tmp_path: Path) -> None:
    mine = CSVLogger(tmp_path, name="", version="mine")
    trainer = fit(defaults(), run_dir=tmp_path / "run", logger=mine, epochs=1)
    assert trainer.loggers == [mine]
    assert rows(trainer)["logger"].decided_by == "caller"
    assert fit(defaults(), run_dir=tmp_path / "b", logger=False, epochs=1).loggers == []
    with pytest.raises(SettingsError, match="logger_backend=csv and the caller's logger"):
        build_trainer(defaults(logger_backend="csv"), logger=mine)


def test_values_that_no_setting_decides_are_passed_and_recorded() -> None:
    given = {"min_epochs": 2, "limit_test_batches": 3}
    trainer = fit(defaults(), epochs=2, trainer_kwargs=given)
    assert (trainer.min_epochs, trainer.limit_test_batches) == (2, 3)
    assert {name: rows(trainer)[name].effective for name in given} == given
    assert {rows(trainer)[name].decided_by for name in given} == {"caller"}


def test_objects_are_taken_where_the_setting_is_a_word() -> None:
    import torch

    strategy = SingleDeviceStrategy(device=torch.device("cpu"))
    trainer = fit(defaults(), epochs=1, trainer_kwargs={"strategy": strategy})
    assert trainer.strategy is strategy
    precision = MixedPrecision("bf16-mixed", "cpu")
    trainer = fit(defaults(), epochs=1, trainer_kwargs={"plugins": [precision]})
    assert trainer.precision == "bf16-mixed"
    assert rows(trainer)["precision"].verdict == "caller's"


def test_the_callers_checkpoint_writer_takes_the_place_of_ours(tmp_path: Path) -> None:
    writer = TorchCheckpointIO()
    trainer = fit(defaults(), run_dir=tmp_path, epochs=1, trainer_kwargs={"plugins": writer})
    assert trainer.strategy.checkpoint_io is writer


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"precision": "16-mixed"}, "precision is decided by the setting precision"),
        ({"accumulate_grad_batches": 2}, "decided by the setting accum_steps"),
        ({"strategy": "ddp"}, "decided by the setting strategy"),
        ({"callbacks": []}, "pass it as callbacks="),
        ({"default_root_dir": "."}, "pass it as run_dir="),
        ({"max_epoch": 2}, "write max_epochs"),
        ({"nonsense": 2}, "remove it"),
        ({"resume_from_checkpoint": "x"}, r"remove it \(the checkpoint is passed to `Trainer.fit`"),
        ({"model_registry": 3}, "model_registry=3 is not allowed"),
        ({"min_epochs": "many"}, "expected: an integer at least 1"),
    ],
)
def test_what_must_not_be_passed_is_refused_with_a_remedy(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        build_trainer(defaults(), trainer_kwargs=given)


def test_a_setting_and_an_object_for_the_same_are_refused() -> None:
    with pytest.raises(SettingsError, match="remove the setting strategy"):
        build_trainer(defaults(strategy="ddp"), trainer_kwargs={"strategy": SingleDeviceStrategy()})


def test_what_the_trainer_refuses_of_the_callers_says_so() -> None:
    with pytest.raises(SettingsError, match=r"the caller's .*barebones"):
        build_trainer(defaults(), trainer_kwargs={"barebones": True})


def test_the_record_names_classes() -> None:
    own = CallersOwn(
        (kinds.Timer("00:01:00:00"),), None, None, {"plugins": [TorchCheckpointIO()], "min_epochs": 2}
    )
    assert own.to_json() == {
        "callbacks": ["Timer"],
        "trainer_kwargs": {"plugins": ["TorchCheckpointIO"], "min_epochs": 2},
    }


class Clipper(Linear):
    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self.seen["clipped"] = True


AGC = {"gradient_clip_algorithm": "agc", "gradient_clip_val": 0.01}


@pytest.mark.parametrize("module", [Linear, Linear()], ids=["class", "module"])
def test_agc_without_the_modules_hook_is_refused_when_built(module: Any) -> None:
    with pytest.raises(SettingsError, match="does not clip by itself"):
        build_trainer(settings(**AGC), module=module)


def test_agc_without_the_modules_hook_is_refused_before_the_first_step() -> None:
    wanted, module = settings(**AGC), Linear()
    with process_flags(wanted):
        trainer = build_trainer(wanted, max_epochs=1)
        with pytest.raises(SettingsError, match="does not clip by itself"):
            trainer.fit(module, loader(wanted))
    assert module.seen["batches"] == []


def test_agc_with_the_hook_runs() -> None:
    wanted, module = settings(**AGC), Clipper()
    with process_flags(wanted):
        build_trainer(wanted, max_epochs=1, module=module).fit(module, loader(wanted))
    assert module.seen["clipped"]


@pytest.mark.parametrize("asked", [{"accum_steps": 2}, {"gradient_clip_val": 1.0}], ids=repr)
def test_manual_optimization_is_seen_when_built(asked: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="steps its optimizer itself"):
        build_trainer(settings(**asked), module=Linear(manual=True))
    assert ModuleTraits().clips_gradients is None


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ({"settings": {"batch_size": 2}}, "pass ExecutionSettings(overrides=...)"),
        ({"module": "Net"}, "pass the class"),
        ({"loaders": [1]}, 'pass loaders={"train": ...}'),
        ({"callbacks": kinds.Timer()}, "pass callbacks=[...]"),
        ({"callbacks": [kinds.Timer]}, "pass Timer()"),
        ({"callbacks": ["early"]}, "pass a Callback"),
        ({"logger": "csv"}, "set the setting logger_backend=csv, or pass a Logger"),
        ({"logger": [CSVLogger]}, "pass CSVLogger()"),
        ({"profiler": "simple"}, "set the setting profiler=simple, or pass a Profiler"),
        ({"profiler": SimpleProfiler}, "pass SimpleProfiler()"),
        ({"loaders": {"val": None}}, "write validation"),
        ({"loaders": {"fit": None}}, "write one of them"),
        ({"trainer_kwargs": ["min_epochs"]}, 'pass trainer_kwargs={"min_epochs": ...}'),
    ],
)
def test_an_argument_of_the_wrong_kind_is_refused_before_anything_is_built(
    given: dict[str, Any], fix: str
) -> None:
    options = {"settings": defaults(), **given}
    with pytest.raises(SettingsError) as caught, trainer_run(**options):
        pass
    assert [finding.fix for finding in caught.value.findings] == [fix]


LEAST: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"trainer": {"min_epochs": 5}}, {"max_epochs": 2}, {"max_epochs": 5}),
    ({"trainer": {"min_steps": 50}, "max_steps": 10}, {}, {}),
    ({}, {"trainer_kwargs": {"min_epochs": 5}, "max_epochs": 2}, {"max_epochs": 5}),
]


@pytest.mark.parametrize(("asked", "call", "mended"), LEAST)
def test_a_least_length_above_the_largest_is_refused(
    asked: dict[str, Any], call: dict[str, Any], mended: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError, match=r"min_.* is more than max_.*") as caught:
        build_trainer(defaults(**asked), **call)
    assert caught.value.findings[0].code == "conflict"
    fixed = {**asked, "max_steps": 50} if "max_steps" in asked else asked
    with process_flags(defaults()):
        build_trainer(defaults(**fixed), **{**call, **mended})


def test_a_smoke_test_and_an_endless_training_may_have_any_least_length() -> None:
    for asked, epochs in (({"fast_dev_run": 1}, 2), ({}, -1), ({}, None)):
        with process_flags(defaults()):
            trainer = build_trainer(defaults(trainer={"min_epochs": 5}, **asked), max_epochs=epochs)
        assert trainer.min_epochs == 5, asked
