"""What the other modules know about a field: words, kinds, effect; and text to value and back."""

from __future__ import annotations

import enum
import shlex
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.choices import LoggerWord
from ptycho_exec.fields.model import Effect, malformed
from ptycho_exec.fields.spec import as_flags, decode_text, format_value
from ptycho_exec.settings import ExecutionSettings
from tests.exec.fields.specs import SPECS

EFFECTS = {
    Effect.PERFORMANCE: {
        "num_workers",
        "pin_memory",
        "persistent_workers",
        "prefetch_factor",
        "inference_batch_size",
    },
    Effect.IO: {
        "enable_checkpointing",
        "checkpoint_save_top_k",
        "logger_backend",
        "log_every_n_steps",
        "log_images_every_n_epochs",
        "experiment_name",
        "tracking_uri",
    },
    Effect.UI: {"enable_progress_bar", "drift"},
}


def test_every_field_has_a_spec_and_a_sentence() -> None:
    assert list(SPECS) == list(ExecutionSettings.model_fields)
    assert [spec.name for spec in SPECS.values() if not spec.sentence.endswith(".")] == []


def test_effect_classes() -> None:
    """A field is numerics unless it is known that it cannot change a result."""
    for effect, names in EFFECTS.items():
        assert names <= {name for name, spec in SPECS.items() if spec.effect is effect}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("batch_size", "an integer at least 1"),
        ("compile", "true or false"),
        (
            "devices",
            "auto, or an integer at least 1, or a list of different integers, each at least 0",
        ),
        ("num_workers", "auto, or an integer at least 0"),
        ("learning_rate", "a number > 0 and <= 10"),
        ("checkpoint_mode", "min or max"),
        ("logger_backend", f"one of: {', '.join(get_args(LoggerWord))}, or none"),
        ("max_time", "a string of the form DD:HH:MM:SS, more than zero, or none"),
        (
            "limit_train_batches",
            "an integer at least 1, or a number with a decimal point > 0 and <= 1, or none",
        ),
    ],
)
def test_what_a_field_accepts_in_words(name: str, text: str) -> None:
    assert SPECS[name].expected() == text


def test_deterministic_takes_three_words() -> None:
    assert SPECS["deterministic"].expected() == "one of: true, false, warn"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "true"),
        (1, "1"),
        (0.001, "0.001"),
        (1e-7, "1e-07"),
        ((0, 1), "[0, 1]"),
        ([], "[]"),
    ],
)
def test_values_as_text(value: Any, text: str) -> None:
    assert format_value(value) == text


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2**40)
    | st.floats(allow_nan=False)
    | st.lists(st.integers(0, 8), min_size=1, max_size=3).map(tuple)
    | st.sampled_from(sorted({c for spec in SPECS.values() for c in spec.choices if isinstance(c, str)}))
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zs")), max_size=8)
)


@given(st.sampled_from(sorted(SPECS)), VALUES)
def test_a_value_written_as_text_is_read_back(name: str, value: Any) -> None:
    """Every value that is accepted can be typed as text, and gives the same settings."""
    if malformed({name: value}):
        return
    companions = {"deterministic": False, "gradient_clip_val": 1.0}
    made = ExecutionSettings.from_values({**companions, name: value})
    back = decode_text(SPECS[name], format_value(getattr(made, name)))
    assert ExecutionSettings.from_values({**companions, name: back}) == made


@given(st.sampled_from(sorted(SPECS)), st.text(max_size=12))
def test_any_text_decodes_to_something(name: str, text: str) -> None:
    value = decode_text(SPECS[name], text)
    assert value is None or isinstance(value, (str, bool, int, float, list, dict))


@pytest.mark.parametrize("text", ["1" * 5000, "٣", "1_000", "0x10", "1e3", "", "--1", "nan"])
def test_odd_numbers_are_no_integers(text: str) -> None:
    assert malformed({"batch_size": decode_text(SPECS["batch_size"], text)}) == ["batch_size"]


class Mode(enum.Enum):
    A = 1
    B = 2


class Own(ExecutionSettings):
    """Settings with choices that are no texts, and lists."""

    model_config = SettingsConfigDict(env_prefix="OWN_")
    program: ClassVar[str] = "own"
    level: Literal[1, 2] = 1
    mode: Mode = Mode.A
    frames: list[int] = Field(default_factory=list)
    rows: list[dict[str, int]] = Field(default_factory=list)
    tags: list[str] = Field(default_factory=list)
    steps: Sequence[int] = ()
    weights: dict[str, int] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("level", "2", 2),
        ("mode", "2", Mode.B),
        ("frames", "[]", []),
        ("frames", "1,2", [1, 2]),
        ("rows", '[{"a": 1, "b": 2}]', [{"a": 1, "b": 2}]),
        ("frames", '["1", 2]', [1, 2]),
        ("steps", "1,2", [1, 2]),
        ("tags", "['a,b','c']", ["a,b", "c"]),
        ("tags", '"a,b",c', ["a,b", "c"]),
        ("tags", " [ a , it's ] ", ["a", "it's"]),
        ("tags", "[1, 2]", ["1", "2"]),
        ("tags", "a[0],b[1]", ["a[0]", "b[1]"]),
        ("tags", '"",a', ["", "a"]),
    ],
)
def test_texts_for_fields_of_a_subclass(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: Any
) -> None:
    monkeypatch.setenv(f"OWN_{name.upper()}", text)
    assert getattr(Own(), name) == value


@pytest.mark.parametrize(
    "text", ['["a","b",]', "[a, b", "a, b]", "(a,b)", "a,b,", ",", '[["a"],["b"]]', "[", "a", '"a" b,c']
)
def test_what_is_no_whole_list_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("OWN_TAGS", text)
    with pytest.raises(SettingsError, match=r"tags = .* is not allowed"):
        Own()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trainer", "min_epochs=3,min_epochs=4"),
        ("trainer", '{"min_epochs": 3, "min_epochs": 4}'),
        ("weights", '{"min_epochs": 1, "min_epochs": 2}'),
    ],
)
def test_a_name_that_a_table_has_twice_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(f"OWN_{name.upper()}", text)
    with pytest.raises(SettingsError, match="is not allowed: min_epochs is defined twice\n"):
        Own()


def test_variables_are_in_capitals_whatever_the_prefix_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(ExecutionSettings):
        model_config = SettingsConfigDict(env_prefix="small_")

    monkeypatch.setenv("SMALL_BATCH_SIZE", "8")
    monkeypatch.setenv("SMALL_TRAINER__MIN_EPOCHS", "3")
    settings = Small()
    assert (settings.batch_size, settings.trainer["min_epochs"]) == (8, 3)
    assert "set with  SMALL_BATCH_SIZE," in settings.explain("batch_size")


def test_values_are_written_as_flags() -> None:
    options = {"mask_suspects": True, "center": (3.0, 4.0), "probe": "my probe.npz", "crop": None}
    words = shlex.split(as_flags(options))
    assert words[::2] == ["--mask-suspects", "--center", "--probe", "--crop"]
    assert words[1::2] == ["true", "[3.0, 4.0]", "my probe.npz", "none"]
