"""The table of everything that a run asks of Lightning, beside the real Trainer."""

from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.trainer.trainer import Trainer as RealTrainer

from ptycho_exec.trainer.parameters import (
    CALLBACK_VALUES,
    PROCESS_FLAGS,
    TRAINER_PARAMETERS,
    UNKNOWN,
    TrainerInputs,
)
from tests.exec.trainer.linear_runs import real_parameters, settings


def test_every_parameter_of_the_real_trainer_is_passed() -> None:
    names = [parameter.name for parameter in TRAINER_PARAMETERS]
    assert len(names) == len(set(names))
    assert real_parameters() <= set(names)
    # Only what newer versions than the installed one may know can be left over.
    assert set(names) - real_parameters() <= {"enable_autolog_hparams", "model_registry"}
    assert all(parameter.why for parameter in TRAINER_PARAMETERS)


TABLE = {row.name: row for row in (*TRAINER_PARAMETERS, *CALLBACK_VALUES, *PROCESS_FLAGS)}


def seen(name: str, trainer: object) -> object:
    read = TABLE[name].seen
    assert read is not None
    return read(trainer)


def test_every_value_that_a_field_decides_is_read_back() -> None:
    fields = set(type(settings()).model_fields)
    assert {row.field for row in TABLE.values() if row.field} <= fields
    assert all(row.seen is not None for row in TABLE.values() if row.field)


def test_a_real_trainer_is_read_back_in_the_words_of_the_settings() -> None:
    trainer = RealTrainer(
        accelerator="cpu",
        devices=1,
        max_time="01:02:03:04",
        accumulate_grad_batches=3,
        gradient_clip_val=0.5,
        callbacks=[EarlyStopping("val_loss", patience=7)],
        profiler=SimpleProfiler(),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    expected = {
        "accelerator": "cpu",
        "strategy": "auto",
        "devices": 1,
        "max_time": "01:02:03:04",
        "accumulate_grad_batches": 3,
        "gradient_clip_val": 0.5,
        "early_stop_patience": 7,
        "early_stop_monitor": "val_loss",
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "limit_train_batches": 1.0,
        "logger": None,
        "profiler": "SimpleProfiler",
    }
    assert {name: seen(name, trainer) for name in expected} == expected


def test_reading_a_stand_in_gives_unknown_and_no_error() -> None:
    stand_in = object()
    assert {row.name for row in TABLE.values() if row.seen and row.seen(stand_in) is not UNKNOWN} == set()


@pytest.mark.parametrize(
    ("asked", "name", "wanted"),
    [
        ({"devices": 2, "num_nodes": 3}, "devices", 6),
        ({"devices": [0, 3]}, "devices", 2),
        ({"devices": "auto"}, "devices", UNKNOWN),
        ({"accelerator": "gpu"}, "accelerator", UNKNOWN),
        ({"strategy": "ddp_spawn"}, "strategy", "ddp"),
        ({"gradient_clip_val": 0.1, "gradient_clip_algorithm": "agc"}, "gradient_clip_algorithm", "norm"),
        ({"fast_dev_run": 2}, "limit_train_batches", UNKNOWN),
        ({"fast_dev_run": 2, "logger_backend": "csv"}, "logger", None),
        ({"checkpoint_save_top_k": 0}, "checkpoint_monitor", None),
    ],
    ids=str,
)
def test_what_must_be_seen_follows_from_the_settings(
    asked: dict[str, object], name: str, wanted: object
) -> None:
    expected = TABLE[name].wanted
    assert expected is not None
    assert expected(TrainerInputs(settings(**asked))) == wanted
