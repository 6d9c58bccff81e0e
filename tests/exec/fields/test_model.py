"""The fields: defaults, what they accept, and the rules between them."""

from __future__ import annotations

import json
from array import array
from collections import UserList, deque
from datetime import timedelta
from typing import Any

import numpy
import pytest
import torch

from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.model import CONFLICTS, malformed
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.settings import ExecutionSettings
from tests.exec.makers import CLASHES, make

DESIGN_DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "precision": "32-true",
    "matmul_precision": "highest",
    "compile": False,
    "deterministic": True,
    "benchmark": False,
    "seed": 42,
    "batch_size": 16,
    "global_batch_size": None,
    "start_timeout": 60.0,
    "max_requeues": 3,
    "accum_steps": 1,
    "learning_rate": 1e-3,
    "scheduler": "Default",
    "gradient_clip_val": None,
    "gradient_clip_algorithm": "norm",
    "max_time": None,
    "limit_train_batches": None,
    "fast_dev_run": None,
    "num_workers": 0,
    "pin_memory": "auto",
    "persistent_workers": False,
    "prefetch_factor": None,
    "enable_checkpointing": True,
    "checkpoint_save_top_k": 1,
    "checkpoint_monitor_metric": "val_loss",
    "checkpoint_mode": "min",
    "early_stop_patience": 100,
    "enable_progress_bar": "auto",
    "logger_backend": "csv",
    "log_every_n_steps": 10,
    "inference_batch_size": None,
    "middle_trim": 0,
    "pad_eval": False,
    "on_unsupported": "error",
    "drift": "error",
}


def test_defaults_are_those_of_the_design() -> None:
    settings = make()
    assert {name: getattr(settings, name) for name in DESIGN_DEFAULTS} == DESIGN_DEFAULTS


def test_every_default_is_accepted_when_it_is_given() -> None:
    defaults = {name: spec.default for name, spec in field_specs().items()}
    assert make(**defaults) == make()
    assert json.loads(json.dumps(make().model_dump(mode="json"))) == make().model_dump(mode="json")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("accelerator", ["tpu", "CPU", "", 0, None, True]),
        ("devices", [0, -1, "2", [], [-1], [0, 0], [True], [[0]], True, 1.5, None, 10**10, {"a": 1}]),
        ("num_nodes", [0, 1.5, "1", True, None]),
        ("strategy", ["dp", "deepspeed_stage_4", ""]),
        ("precision", [16, 32, "16", "bf16", "32"]),
        ("compile", [1, 0, "true", None]),
        ("deterministic", [1, 0, 1.0, "true", "yes", "WARN", None]),
        ("seed", [-1, 2**32, 1.5, "1", True, None, 10**400]),
        ("batch_size", [0, -1, 1.5, "8", True, None, float("nan"), float("inf"), 10**400, [1], {}]),
        ("global_batch_size", [0, -1, 1.5, "8", True]),
        ("start_timeout", [0, -1.0, "60", True, None, float("inf"), 10**6]),
        ("max_requeues", [-1, 1.5, "3", True, None]),
        ("learning_rate", [0, -1e-3, 11, float("nan"), float("inf"), "1e-3", True, None, 10**400]),
        ("gradient_clip_val", [0, -1.0, float("inf"), "1", True]),
        ("max_time", ["1h", "24:00:00", "00:24:00:00", "00:00:60:00", "00:00:00:00", 3600, ""]),
        ("limit_train_batches", [0, 0.0, -1, 1.5, True, "0.5", float("nan")]),
        ("fast_dev_run", [0, True, "1"]),
        ("num_workers", [-1, "Auto", True, None]),
        ("pin_memory", [1, "true", None]),
        ("checkpoint_save_top_k", [-2, 1.5, True]),
        ("checkpoint_monitor_metric", ["", "val loss", "1loss", None]),
        ("checkpoint_mode", ["minimum", None]),
        ("logger_backend", ["neptune", True, ""]),
        ("experiment_name", ["", None, 3]),
        ("tracking_uri", ["", 3, b"http://x"]),
        ("on_unsupported", ["ignore", None]),
        ("drift", ["ignore", None]),
    ],
)
def test_malformed_values_are_refused(name: str, values: list[Any]) -> None:
    for value in values:
        assert malformed({name: value}) == [name], value
        with pytest.raises(SettingsError, match=f"{name} = .* is not allowed") as caught:
            make(**{name: value})
        finding = caught.value.findings[0]
        assert len(caught.value.findings) == 1
        assert finding.where.startswith("argument from_values()")
        assert finding.expected == field_specs()[name].expected()
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("batch_size", 8.0, 8),
        ("devices", [0, 1], (0, 1)),
        ("devices", [1.0], (1,)),
        ("devices", 2.0, 2),
        ("learning_rate", 1, 1.0),
        ("limit_train_batches", 1, 1),
        ("limit_train_batches", 1.0, 1.0),
        ("limit_train_batches", 5.0, 5),
        ("early_stop_patience", "None", None),
        ("logger_backend", "null", None),
        ("max_time", "99:23:59:59", "99:23:59:59"),
    ],
)
def test_what_json_and_toml_cannot_tell_apart_is_one_value(name: str, given: Any, value: Any) -> None:
    found = getattr(make(**{name: given}), name)
    assert (found, type(found)) == (value, type(value))


def test_whole_numbers_of_numpy_become_plain_ones() -> None:
    import numpy as np

    settings = make(batch_size=np.int64(4), devices=[np.int32(1)], learning_rate=np.float64(0.5))
    assert [type(value) for value in (settings.batch_size, settings.devices[0])] == [int, int]  # type: ignore[index]
    assert json.loads(settings.model_dump_json())["learning_rate"] == 0.5


def test_every_contradiction_has_a_test() -> None:
    fixes = set()
    for values in CLASHES:
        with pytest.raises(SettingsError) as caught:
            make(**values)
        fixes |= {finding.fix for finding in caught.value.findings}
    assert fixes == {rule.fix for rule in CONFLICTS}


@pytest.mark.parametrize(
    "values",
    [
        {"deterministic": "warn", "benchmark": True},
        {"deterministic": False, "benchmark": True},
        {"gradient_clip_algorithm": "agc", "gradient_clip_val": 0.01},
        {"accelerator": "cpu", "devices": 2, "strategy": "ddp"},
        {"accelerator": "auto", "strategy": "fsdp", "devices": [0, 1]},
        {"num_nodes": 4},
        {"num_workers": 0, "persistent_workers": True, "prefetch_factor": 2},
        {"accelerator": "gpu", "precision": "16-mixed"},
    ],
    ids=str,
)
def test_what_only_a_machine_can_refuse_is_well_formed(values: dict[str, Any]) -> None:
    assert make(**values).model_fields_set >= set(values)


SEQUENCES = [
    range(2),
    UserList([0, 1]),
    deque([0, 1]),
    array("i", [0, 1]),
    numpy.array([0, 1]),
    numpy.array([0, 1], "uint8"),
    numpy.array([0.0, 1.0]),
    (numpy.int64(0), numpy.int32(1)),
    torch.tensor([0, 1]),
    torch.Size([0, 1]),
]


@pytest.mark.parametrize("value", SEQUENCES, ids=lambda value: type(value).__name__)
def test_any_sequence_of_integers_is_a_list_of_devices(value: Any) -> None:
    settings = ExecutionSettings.from_values({"devices": value})
    assert settings.devices == (0, 1)
    assert {type(index) for index in settings.devices} == {int}


@pytest.mark.parametrize(
    "value",
    [
        b"01",
        "01",
        {0, 1},
        {0: 1},
        range(0),
        numpy.array([[0, 1]]),
        numpy.array([0.5]),
        iter([0, 1]),
        [0, "1"],
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_list_of_integers_is_none_of_devices(value: Any) -> None:
    with pytest.raises(SettingsError):
        ExecutionSettings.from_values({"devices": value})


@pytest.mark.parametrize("true", [numpy.bool_(True), numpy.array(True), torch.tensor(True)])
def test_booleans_and_numbers_of_other_libraries_are_taken(true: Any) -> None:
    values = {"compile": true, "deterministic": true, "pin_memory": true, "enable_progress_bar": true}
    settings = ExecutionSettings.from_values(
        {**values, "learning_rate": numpy.float32(0.5), "seed": torch.tensor(3), "batch_size": numpy.uint8(4)}
    )
    assert all(getattr(settings, name) is True for name in values)
    assert (settings.learning_rate, settings.seed, settings.batch_size) == (0.5, 3, 4)
    for name in ("learning_rate", "seed", "batch_size"):
        with pytest.raises(SettingsError):
            ExecutionSettings.from_values({name: true})


def test_a_time_span_is_a_duration() -> None:
    for span, text in ((timedelta(hours=30), "01:06:00:00"), (timedelta(milliseconds=1), "00:00:00:01")):
        assert ExecutionSettings.from_values({"max_time": span}).max_time == text
    for span in (timedelta(0), timedelta(hours=-1), timedelta(days=100)):
        with pytest.raises(SettingsError):
            ExecutionSettings.from_values({"max_time": span})


@pytest.mark.parametrize("name", ["tracking_uri", "experiment_name"])
@pytest.mark.parametrize("mark", ["\n", "\t", "\x00", "\x7f"])
def test_a_line_of_text_has_no_control_characters(name: str, mark: str) -> None:
    with pytest.raises(SettingsError, match="without control characters"):
        ExecutionSettings.from_values({name: f"C:{mark}ew"})
