"""Lightning's own words: what each is here, and that it is no word of ours already."""

from __future__ import annotations

import inspect
from datetime import time, timedelta
from typing import Any

import pytest

from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.lightning_words import (
    BROUGHT_PARAMETERS,
    NOTHING,
    WORDS,
    duration,
    meanings,
)
from ptycho_exec.fields.model import TrainerTable
from ptycho_exec.fields.spec import decode_text, field_specs
from ptycho_exec.settings import ExecutionSettings


@pytest.mark.parametrize("field", WORDS)
def test_a_word_of_the_table_is_refused_and_what_it_means_is_taken(field: str) -> None:
    spec = field_specs()[field]
    for word, meaning in WORDS[field].items():
        assert word == word.lower()
        assert meaning.why
        assert not spec.accepts(decode_text(spec, word)), f"{field}={word} is taken as it is"
        if meaning.value is not NOTHING:
            assert spec.accepts(meaning.value), f"{field}={word} means {meaning.value}, which is refused"


CASES: list[tuple[str, Any, str]] = [
    ("devices", -1, 'write devices="auto" (in Lightning -1 is all devices)'),
    ("devices", "0,", "write devices=[0] (a list of indices)"),
    ("devices", "2, 3,", "write devices=[2, 3] (without the mark at its end)"),
    ("devices", 0, "write devices=[0] (the first device; 1 is one device of any index)"),
    ("precision", 16, 'write precision="16-mixed" (the names of Lightning 2 say how)'),
    ("precision", "BF16", 'write precision="bf16-mixed" (the names of Lightning 2 say how)'),
    ("precision", "bf16-tru", 'did you mean precision="bf16-true"?'),
    ("accelerator", "hpu", "(Lightning has it, these settings do not)"),
    ("accelerator", "cdua", 'did you mean accelerator="cuda"?'),
    (
        "strategy",
        "ddp_find_unused_parameters_false",
        'write strategy="ddp" (plain ddp does not look for them)',
    ),
    ("fast_dev_run", True, "write fast_dev_run=1 (true is one batch of each kind)"),
    ("fast_dev_run", False, "write fast_dev_run=None (false and 0 are written none)"),
    ("gradient_clip_val", 0, "write gradient_clip_val=None (false and 0 are written none)"),
    ("gradient_clip_val", 0.0, "write gradient_clip_val=None (false and 0 are written none)"),
    ("logger_backend", False, "write logger_backend=None (false and 0 are written none)"),
    ("logger_backend", True, 'write logger_backend="csv" (the default)'),
    ("logger_backend", "TensorBoardLogger", 'write logger_backend="tensorboard" (the name of the backend)'),
    ("max_time", "12:00:00", 'write max_time="00:12:00:00" (DD:HH:MM:SS)'),
    ("max_time", "90:00:00", 'write max_time="03:18:00:00" (DD:HH:MM:SS)'),
    ("max_time", "1:02:03:04", 'write max_time="01:02:03:04" (DD:HH:MM:SS)'),
    ("max_time", {"hours": 1, "minutes": 30}, 'write max_time="00:01:30:00" (DD:HH:MM:SS)'),
    ("max_time", "90 min", 'write max_time="00:01:30:00" (DD:HH:MM:SS)'),
    ("max_time", "1.5h", 'write max_time="00:01:30:00" (DD:HH:MM:SS)'),
    ("max_time", time(1, 30), 'write max_time="00:01:30:00" (DD:HH:MM:SS)'),
    ("max_time", {"hours": "1"}, "write another value, or remove it for the default, none"),
    ("max_time", {"apples": 1}, "write another value, or remove it for the default, none"),
    ("limit_train_batches", -1, "write limit_train_batches=None (all batches)"),
    ("limit_train_batches", "10%", "write limit_train_batches=0.1 (a fraction)"),
    ("seed", "1_000", "write seed=1000 (without underscores)"),
    ("seed", "1e3", "write seed=1000 (an integer)"),
    ("seed", "8;", "write seed=8 (without the mark at its end)"),
    ("seed", "８", "write seed=8 (in plain digits and letters)"),
    ("batch_size", "8 # small", "write batch_size=8 (without the comment)"),
    ("batch_size", '"8" // small', "write batch_size=8 (without quotes)"),
    ("learning_rate", "0,001", "write learning_rate=0.001 (with a decimal point)"),
    ("compile", 1, "write compile=True (another type)"),
]


@pytest.mark.parametrize(("field", "value", "fix"), CASES)
def test_the_remedy_is_what_the_word_means(field: str, value: Any, fix: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ExecutionSettings.from_values({field: value})
    (finding,) = caught.value.findings
    assert finding.fix.endswith(fix)
    assert "\n" not in finding.fix


def test_every_parameter_of_the_trainer_is_a_field_or_in_the_table_or_brought_by_the_call() -> None:
    from lightning.pytorch import Trainer

    parameters = set(inspect.signature(Trainer).parameters) - {"accumulate_grad_batches", "logger"}
    assert parameters - set(field_specs()) - set(BROUGHT_PARAMETERS) == set(TrainerTable.model_fields)
    assert all(BROUGHT_PARAMETERS.values())


@pytest.mark.parametrize("name", BROUGHT_PARAMETERS)
def test_a_name_that_is_no_setting_is_told_what_there_is_instead(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ExecutionSettings.from_values({name: 10})
    (finding,) = caught.value.findings
    assert finding.fix == f"remove it (no setting: {BROUGHT_PARAMETERS[name]})"


def test_durations() -> None:
    assert duration(timedelta(days=1, hours=2, minutes=3, seconds=4).total_seconds()) == "01:02:03:04"
    assert list(meanings("max_time", None, "100000d")) == []
    assert list(meanings("seed", 3, "3")) == []
