"""Every science field is a flag whose value arrives typed, and whose mistakes are told together."""

from __future__ import annotations

from typing import Any

import pytest

from ptycho_exec.cli.flags import Parser
from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.spec import format_value
from ptycho_torch.config import DataConfig, InferenceConfig, ModelConfig, TrainingConfig
from ptycho_torch.science_flags import add_science_flags, science_given

CONFIGS = (DataConfig, ModelConfig, TrainingConfig, InferenceConfig)
FIELDS = {name: info.default for config in CONFIGS for name, info in config.model_fields.items()}


def parse(*words: str) -> dict[str, Any]:
    parser = Parser(prog="p")
    add_science_flags(parser, *CONFIGS)
    return science_given(parser.parse(list(words)))


@pytest.mark.parametrize("name", FIELDS)
def test_the_default_written_as_a_flag_is_the_default(name: str) -> None:
    flag = "--" + name.lower().replace("_", "-")
    assert parse(f"{flag}={format_value(FIELDS[name])}") == {name: FIELDS[name]}


def test_values_arrive_in_their_own_type() -> None:
    given = parse(
        "--epochs", "3", "--x-bounds", "0.1,0.9", "--loss", "poisson", "--object-big", "false", "--n", "64"
    )
    assert given == {"epochs": 3, "x_bounds": (0.1, 0.9), "loss": "poisson", "object_big": False, "N": 64}
    assert parse() == {}


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        parse("--epochs", "many", "--loss", "mse")
    assert "--epochs" in str(caught.value)
    assert "'mae'" in str(caught.value)
