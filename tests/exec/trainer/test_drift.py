"""Requested beside effective: every way in which a Trainer, loader or process can be other than asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from lightning.pytorch.utilities import CombinedLoader

from ptycho_exec.errors import DriftError
from ptycho_exec.fields.model import TrainerTable
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.build import (
    apply_drift_policy,
    build_trainer,
    process_flags,
    requested_and_effective,
)
from tests.exec.trainer.linear_runs import (
    Linear,
    fit,
    loader,
    plan_of,
    read_back,
    real_parameters,
    rows,
    settings,
)


def test_a_run_as_asked_has_no_drift(tmp_path: Path) -> None:
    wanted = settings(
        accum_steps=2, gradient_clip_val=1.0, learning_rate=1e-2, num_threads=1, max_time="00:00:10:00"
    )
    trainer, _ = fit(wanted, run_dir=tmp_path)
    report = read_back(trainer).report
    assert report.differing == ()
    unknown = {row.name for row in report.rows if row.verdict == "unknown"}
    assert unknown == set()
    assert rows(trainer)["max_time"].effective == "00:00:10:00"
    assert rows(trainer)["optimizer_steps_per_epoch"].effective == 3


@pytest.mark.parametrize("own", [SimpleProfiler(), None])
def test_a_profiler_that_was_replaced_is_drift(own: SimpleProfiler | None) -> None:
    wanted = settings()
    with process_flags(wanted), pytest.raises(DriftError, match="asked for profiler="):  # noqa: PT012
        trainer = build_trainer(wanted, max_epochs=1, plan=plan_of(wanted), profiler=own)
        trainer.profiler = AdvancedProfiler()
        trainer.fit(Linear(), loader(wanted))


def test_a_stand_in_is_read_tolerantly() -> None:
    for trainer in (object(), MagicMock()):
        report = requested_and_effective(trainer, settings(), loaders={"train": object()})
        assert report.differing == ()
        apply_drift_policy(report, settings())


TAMPERED: list[tuple[str, Any, dict[str, object], str]] = [
    ("gradient_clip_val", 5.0, {"gradient_clip_val": 1.0}, "gradient_clip_val"),
    ("gradient_clip_val", None, {"gradient_clip_val": 1.0}, "gradient_clip_val"),
    ("gradient_clip_algorithm", "value", {"gradient_clip_val": 1.0}, "gradient_clip_algorithm"),
    ("accumulate_grad_batches", 3, {}, "accumulate_grad_batches"),
    ("limit_train_batches", 0, {}, "limit_train_batches"),
    ("log_every_n_steps", 50, {}, "log_every_n_steps"),
    ("fast_dev_run", 1, {}, "fast_dev_run"),
    ("callbacks", [], {}, "early_stop_patience"),
]


@pytest.mark.parametrize(("name", "value", "asked", "row"), TAMPERED)
def test_a_trainer_that_is_not_as_asked_is_drift(
    name: str, value: Any, asked: dict[str, object], row: str
) -> None:
    wanted = settings(**asked)
    plan = plan_of(wanted)
    with process_flags(wanted):
        trainer = build_trainer(wanted, max_epochs=1, plan=plan)
        setattr(trainer, name, value)
        report = requested_and_effective(trainer, wanted, plan, writes=False)
    assert row in {found.name for found in report.differing}


PROCESS_TAMPERED = {
    "deterministic": lambda: torch.use_deterministic_algorithms(False),
    "benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
    "num_threads": lambda: torch.set_num_threads(3),
    "seed": lambda: os.environ.__setitem__("PL_GLOBAL_SEED", "9"),
}


@pytest.mark.parametrize("name", PROCESS_TAMPERED)
def test_a_process_flag_that_is_not_as_asked_is_drift(name: str) -> None:
    wanted = settings(num_threads=1)
    plan = plan_of(wanted)
    with process_flags(wanted):
        trainer = build_trainer(wanted, max_epochs=1, plan=plan)
        PROCESS_TAMPERED[name]()
        report = requested_and_effective(trainer, wanted, plan, writes=False)
    assert {row.name for row in report.differing} == {name}


@pytest.mark.parametrize(
    ("asked", "given", "row"),
    [
        ({}, {"batch_size": 5}, "train.batch_size"),
        ({"num_workers": 0}, {"num_workers": 1}, "train.num_workers"),
        (
            {"num_workers": 1, "persistent_workers": False},
            {"persistent_workers": True},
            "train.persistent_workers",
        ),
        ({"num_workers": 1, "prefetch_factor": 3}, {"prefetch_factor": 2}, "train.prefetch_factor"),
    ],
)
def test_a_loader_that_is_not_as_asked_is_drift(
    asked: dict[str, object], given: dict[str, Any], row: str
) -> None:
    wanted = settings(**asked)
    report = requested_and_effective(
        object(), wanted, plan_of(wanted), loaders={"train": loader(wanted, **given)}
    )
    assert row in {found.name for found in report.differing}


def test_inference_loaders_are_compared_with_the_inference_batch() -> None:
    wanted = settings(inference_batch_size=2)
    report = requested_and_effective(object(), wanted, loaders={"inference": loader(wanted)})
    assert [(row.name, row.requested, row.effective) for row in report.differing] == [
        ("inference.inference_batch_size", 2, 4)
    ]


SIZES: list[tuple[dict[str, Any], str, Any, list[tuple[str, Any, Any, str]]]] = [
    ({"global_batch_size": 8}, "train", 4, [("train.batch_size", 8, 4, "global_batch_size")]),
    ({"global_batch_size": 8}, "train", 8, []),
    ({"global_batch_size": 8, "accum_steps": 2}, "train", 4, []),
    ({"global_batch_size": 8}, "validation", 4, []),
    ({"inference_batch_size": 8}, "validation", 4, [("validation.batch_size", 8, 4, "inference_batch_size")]),
    ({"inference_batch_size": 8}, "validation", 8, []),
    ({"inference_batch_size": 8, "batch_size": 4}, "validation", 4, []),
    ({"inference_batch_size": 3, "batch_size": 8}, "predict", 3, []),
    ({"inference_batch_size": 3, "batch_size": 8}, "test", 3, []),
    ({"inference_batch_size": 3}, "test", 8, [("test.inference_batch_size", 3, 8, "inference_batch_size")]),
    ({"batch_size": 3}, "predict", 8, [("predict.inference_batch_size", 3, 8, "batch_size")]),
    ({}, "predict", 8, []),
]


@pytest.mark.parametrize(("asked", "role", "size", "differing"), SIZES)
def test_the_batch_of_a_loader_is_compared_with_what_was_asked_for_its_role(
    asked: dict[str, Any], role: str, size: int, differing: list[tuple[str, Any, Any, str]]
) -> None:
    wanted = ExecutionSettings.from_values(asked)
    given = {role: loader(wanted, batch_size=size)}
    report = requested_and_effective(object(), wanted, plan_of(wanted), loaders=given)
    found = [(row.name, row.requested, row.effective, row.field) for row in report.differing]
    assert found == differing


def test_a_share_of_the_global_batch_is_not_known_without_a_plan() -> None:
    wanted = ExecutionSettings.from_values({"global_batch_size": 8})
    report = requested_and_effective(object(), wanted, loaders={"train": loader(wanted, batch_size=4)})
    assert report.differing == ()


def test_each_of_several_loaders_is_compared() -> None:
    wanted = settings(batch_size=8)
    small, right = loader(wanted, batch_size=2), loader(wanted)
    for several, names in (
        ([right, small], {"train[1]"}),
        ({"a": small, "b": [small, right]}, {"train[a]", "train[b][0]"}),
        (CombinedLoader({"a": small, "b": right}), {"train[a]"}),
        ([torch.ones(2), right], set()),
    ):
        report = requested_and_effective(object(), wanted, plan_of(wanted), loaders={"train": several})
        assert {row.name for row in report.differing} == {f"{name}.batch_size" for name in names}


def tampered_report(wanted: ExecutionSettings) -> Any:
    return requested_and_effective(object(), wanted, loaders={"train": loader(wanted, batch_size=5)})


def test_drift_is_an_error_by_default_and_says_where_the_value_came_from() -> None:
    wanted = settings()
    with pytest.raises(DriftError) as caught:
        apply_drift_policy(tampered_report(wanted), wanted)
    for word in ("asked for train.batch_size=4", "has 5", "argument from_values()", "drift=warn"):
        assert word in str(caught.value)


@pytest.mark.acts("drift", "whether a run with a Trainer other than asked stops or warns")
def test_drift_can_warn_or_be_allowed() -> None:
    wanted = settings(drift="warn")
    with pytest.warns(UserWarning, match=r"train\.batch_size=4"):
        apply_drift_policy(tampered_report(wanted), wanted)
    allowed = settings(drift="allow")
    apply_drift_policy(tampered_report(allowed), allowed)


def test_drift_in_fit_stops_the_run() -> None:
    with pytest.raises(DriftError, match="learning_rate"):
        fit(settings(learning_rate=1e-3), module=Linear(rate=5e-4))
    with pytest.raises(DriftError, match="has_scheduler"):
        fit(settings(scheduler="Exponential"))


def test_the_report_is_plain_json() -> None:
    found = requested_and_effective(object(), settings()).to_json()
    assert {
        "name": "precision",
        "requested": "32-true",
        "effective": "unknown",
        "verdict": "unknown",
    } in found


TABLE: dict[str, Any] = {
    "min_epochs": 2,
    "min_steps": 3,
    "limit_test_batches": 0.5,
    "limit_predict_batches": 2,
    "enable_model_summary": True,
    "inference_mode": False,
    "use_distributed_sampler": False,
    "barebones": True,
    "sync_batchnorm": True,
    "reload_dataloaders_every_n_epochs": 2,
    "enable_autolog_hparams": True,
    "model_registry": "mine",
}


@pytest.mark.parametrize("name", TrainerTable.model_fields)
def test_each_name_of_the_table_is_passed_and_read_back(name: str) -> None:
    wanted = settings(enable_progress_bar=False, trainer={name: TABLE[name]})
    with process_flags(wanted):
        trainer = build_trainer(wanted, max_epochs=5, announce=False)
        report = requested_and_effective(trainer, wanted, writes=False)
    (row,) = (row for row in report.rows if row.name == name)
    known = name in real_parameters() and name != "model_registry"
    verdict = "same" if known else "unknown"
    assert (row.requested, row.verdict) == (TABLE[name], verdict)


def test_a_table_that_does_not_act_is_drift() -> None:
    wanted = settings(trainer={"min_epochs": 2})
    with process_flags(wanted):
        trainer = build_trainer(settings(), max_epochs=5, announce=False)
        report = requested_and_effective(trainer, wanted, writes=False)
    assert [row.name for row in report.differing] == ["min_epochs"]
    with pytest.raises(DriftError, match="min_epochs"):
        apply_drift_policy(report, wanted)
