"""Validators of a subclass that change values: the origin says so."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from ptycho_exec.cli.freeze import freeze
from ptycho_exec.errors import SettingsError
from ptycho_exec.record import (
    manifest_parts,
    settings_from_manifest,
    write_manifest,
    write_settings_toml,
)
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.explain import changed
from ptycho_exec.sources.origins import Kind

if TYPE_CHECKING:
    from conftest import Place


class Base(ExecutionSettings):
    own: str = "a"
    number: int = 1


class Before(Base):
    needed: int

    @model_validator(mode="before")
    @classmethod
    def fill_in(cls, data: Any) -> Any:
        return {**data, "own": "changed", "batch_size": 99, "needed": 3}


class After(Base):
    @model_validator(mode="after")
    def lower(self) -> After:
        object.__setattr__(self, "own", self.own.lower())
        return self


class Wrap(Base):
    @model_validator(mode="wrap")
    @classmethod
    def double(cls, data: Any, handler: Any) -> Any:
        return handler({**data, "number": 2 * data["number"]} if "number" in data else data)


class OfField(Base):
    @field_validator("own")
    @classmethod
    def upper(cls, value: str) -> str:
        return value.upper()


class Below(OfField):
    @model_validator(mode="after")
    def check(self) -> Below:
        return self


class Late(Base):
    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        object.__setattr__(self, "number", 7)


def test_what_a_validator_changes_or_adds_has_it_in_its_origin(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTYCHO_EXEC_OWN", "given")
    settings = Before(seed=3)
    by = "validator fill_in of Before"
    assert settings.origin_of("own") == f"environment PTYCHO_EXEC_OWN, changed by {by}"
    assert settings.origin_of("batch_size") == f"default, changed by {by}"
    assert settings.origin_of("needed") == f"source {by}"
    assert settings.origins["seed"].reason == ""
    own = settings.origins["own"]
    assert (own.value, [(o.kind, o.value) for o in own.shadowed]) == (
        "changed",
        [(Kind.ENVIRONMENT, "given"), (Kind.DEFAULT, "a")],
    )
    assert set(changed(settings.origins)) == {"own", "batch_size", "needed", "seed"}
    assert settings.explain("own").splitlines()[:3] == [
        "own = changed",
        f"  from      environment PTYCHO_EXEC_OWN, changed by {by}",
        "  shadows   given from environment PTYCHO_EXEC_OWN",
    ]
    again = settings.with_overrides(batch_size=4)
    assert (again.batch_size, again.origins["batch_size"].kind) == (99, Kind.OVERRIDE)
    assert again.origins["batch_size"].reason == f"changed by {by}"
    assert again.origin_of("own") == settings.origin_of("own")


@pytest.mark.parametrize(
    ("model", "given", "reason"),
    [
        (After, {"own": "ABC"}, {"own": "changed by validator lower of After"}),
        (After, {"own": "abc"}, {}),
        (Wrap, {"number": 3}, {"number": "changed by validator double of Wrap"}),
        (Wrap, {}, {}),
        (OfField, {"own": "abc"}, {"own": "changed by validator upper of OfField"}),
        (OfField, {"own": "ABC"}, {}),
        (Below, {"own": "abc"}, {"own": "changed by one of the validators upper of OfField, check of Below"}),
        (Late, {}, {"number": "changed by class Late"}),
    ],
)
def test_every_kind_of_validator(model: type[Base], given: dict[str, Any], reason: dict[str, str]) -> None:
    settings = model.from_values(given)
    assert {name: o.reason for name, o in settings.origins.items() if o.reason} == reason


class OfTable(Base):
    @field_validator("trainer")
    @classmethod
    def more(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        if value.get("min_epochs") == 13:
            raise ValueError("thirteen is not allowed here")
        return {**value, "min_steps": 7}


def test_in_a_table_only_what_the_validator_changed_has_it_in_its_origin() -> None:
    settings = OfTable.from_values({"trainer": {"min_epochs": 3.0, "min_steps": 2}})
    place = settings.origin_of("trainer.min_epochs")
    assert place.startswith("argument from_values()")
    assert "changed by" not in place
    assert settings.origin_of("trainer.min_steps") == f"{place}, changed by validator more of OfTable"
    assert settings.origin_of("trainer") == settings.origin_of("trainer.min_steps")
    assert settings.origin_of("trainer.barebones") == "default"
    assert settings.origin_of("trainer.nothing") == settings.origin_of("seed.nothing") == ""


def test_what_a_validator_of_a_table_says_is_in_the_message() -> None:
    with pytest.raises(SettingsError, match=r"trainer = {min_epochs=13} is not allowed: thirteen is not"):
        OfTable.from_values({"trainer": {"min_epochs": 13}})
    with pytest.raises(SettingsError, match=r"trainer\.min_epochs = 0 is not allowed\n"):
        OfTable.from_values({"trainer": {"min_epochs": 0}})


def test_what_the_field_itself_makes_of_a_value_is_no_change() -> None:
    class Odd(Base):
        nan: float = math.nan
        made: UUID = Field(default_factory=uuid4)
        array: Any = None
        names: frozenset[str] = frozenset()

    odd = {"nan": float("nan"), "array": np.ones(2), "names": ["a"]}
    given = {"devices": np.array([0, 1]), "accelerator": "cuda", "max_time": timedelta(hours=1), "seed": 3.0}
    for settings in (
        Odd.from_values({**odd, **given}),
        Odd.from_values({}),
        ExecutionSettings.from_values(given),
    ):
        assert [name for name, origin in settings.origins.items() if origin.reason] == []


def test_a_validator_that_makes_a_wrong_value_is_blamed_itself() -> None:
    class Zero(Base):
        @model_validator(mode="before")
        @classmethod
        def shrink(cls, data: Any) -> Any:
            return {**data, "batch_size": 0, "nothing_of_ours": 1} if data.get("own") == "b" else data

    assert Zero.from_values({}).batch_size == 16
    with pytest.raises(SettingsError) as caught:
        Zero.from_values({"own": "b", "batch_size": 8})
    made = "what validator shrink of Zero makes of it is not allowed"
    assert {finding.what for finding in caught.value.findings} == {
        f"batch_size: {made}",
        f"nothing_of_ours: {made}",
    }
    with pytest.raises(SettingsError, match="batch_size = -1 is not allowed"):
        Zero.from_values({"batch_size": -1})


class Scaled(Base):
    model_config = SettingsConfigDict(env_prefix="SCALED_")

    kev: float = 1.0
    other_kev: float = 2.0
    twice: Annotated[int, AfterValidator(lambda number: 2 * number)] = 1
    parts: list[Annotated[int, AfterValidator(lambda number: 2 * number)]] = Field(default_factory=list)
    numbers: Annotated[list[int], NoDecode] = Field(default_factory=list)
    made: str = Field(default_factory=lambda: uuid4().hex)

    @field_validator("kev", "other_kev")
    @classmethod
    def to_ev(cls, value: float) -> float:
        return value * 1000

    @field_validator("numbers", mode="before")
    @classmethod
    def split(cls, value: str) -> list[int]:
        return [int(part) for part in value.split(";")]

    @model_validator(mode="after")
    def in_range(self) -> Scaled:
        if self.kev > 100_000:
            raise ValueError("kev is out of range")
        return self


@pytest.fixture
def scaled(clean_process: Place, monkeypatch: pytest.MonkeyPatch) -> Scaled:
    for name, text in {"KEV": "8", "TWICE": "4", "PARTS": "1,2", "NUMBERS": "1;2"}.items():
        monkeypatch.setenv(f"SCALED_{name}", text)
    return Scaled()


@pytest.mark.parametrize(
    "copy",
    [
        lambda settings: settings.with_overrides(seed=1),
        lambda settings: settings.with_factory_defaults(batch_size=4),
        lambda settings: settings.with_recorded({"seed": 1}, place="run"),
        lambda settings: settings.model_copy(update={"seed": 1}).with_overrides(seed=3),
        lambda settings: pickle.loads(pickle.dumps(settings)).with_overrides(seed=1),
    ],
)
def test_a_copy_keeps_what_is_not_overridden(scaled: Scaled, copy: Callable[[Scaled], Scaled]) -> None:
    again = copy(scaled)
    names = ("kev", "other_kev", "twice", "parts", "numbers", "made", "own")
    values = {name: getattr(scaled, name) for name in names}
    assert values | {"made": ""} == {
        "kev": 8000.0,
        "other_kev": 2.0,
        "twice": 8,
        "parts": [2, 4],
        "numbers": [1, 2],
        "made": "",
        "own": "a",
    }
    assert {name: getattr(again, name) for name in names} == values
    assert {name: again.origin_of(name) for name in names} == {name: scaled.origin_of(name) for name in names}


def test_an_override_is_validated_once_and_shadows_what_was_given(scaled: Scaled) -> None:
    again = scaled.with_overrides(kev=9)
    assert again.kev == 9000.0
    chain = [origin.value for origin in again.origins["kev"].shadowed]
    assert chain == [9, 8.0, 1.0]
    with pytest.raises(SettingsError, match="kev is out of range"):
        scaled.with_overrides(kev=101)


def test_a_manifest_restores_what_ran(scaled: Scaled, tmp_path: Path) -> None:
    write_manifest(tmp_path, **manifest_parts(scaled))
    assert settings_from_manifest(tmp_path, model=Scaled) == scaled
    assert settings_from_manifest(tmp_path, {"kev": 9}, model=Scaled).kev == 9000.0


def test_settings_toml_and_every_form_restore_what_ran(
    scaled: Scaled, tmp_path: Path, clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KEV", "TWICE", "PARTS", "NUMBERS"):
        monkeypatch.delenv(f"SCALED_{name}")
    write_settings_toml(tmp_path / "settings.toml", scaled)
    assert Scaled(settings_file=tmp_path / "settings.toml") == scaled
    for form in ("toml", "json"):
        text, left_out = freeze(scaled, form)
        assert [sentence.partition(" ")[0] for sentence in left_out] == ["other_kev"]
        clean_process.write(f"kept.{form}", text)
        assert Scaled(settings_file=clean_process.cwd / f"kept.{form}") == scaled


class Kilo(Base):
    kev: float = 8000.0

    @field_validator("kev", "learning_rate")
    @classmethod
    def in_ev(cls, value: float) -> float:
        return value * 1000


def test_what_only_the_class_gives_is_left_out_and_said(tmp_path: Path) -> None:
    settings = Kilo.from_values({"learning_rate": 1e-6})
    assert (settings.kev, settings.learning_rate) == (8000.0, 1e-3)
    path = tmp_path / "settings.toml"
    write_settings_toml(path, settings)
    assert "# kev is left out: its class gives it, and a validator would change it\n" in path.read_text()
    assert Kilo(settings_file=path) == settings
    text, left_out = freeze(settings, "flags")
    assert left_out == ["kev is left out: its class gives it, and a validator would change it"]
    assert "--learning-rate=1e-06" in text


def test_a_default_that_is_made_for_each_instance_is_the_value_of_its_origin() -> None:
    one, two = Scaled.from_values({}), Scaled.from_values({})
    assert one.made != two.made
    assert [settings.origins["made"].value for settings in (one, two)] == [one.made, two.made]


def test_a_validator_in_an_annotation_is_named_in_the_origin(scaled: Scaled) -> None:
    by = "changed by one of the validators <lambda>, in_range of Scaled"
    assert scaled.origin_of("twice") == f"environment SCALED_TWICE, {by}"
    assert scaled.origin_of("parts") == f"environment SCALED_PARTS, {by}"


class Texts(Base):
    model_config = SettingsConfigDict(env_prefix="TEXTS_")

    tags: Annotated[list[str], NoDecode] = Field(default_factory=list)
    octal: Annotated[int, BeforeValidator(lambda v: int(v, 8) if isinstance(v, str) else v)] = 0
    count: int = 0
    limit: int | None = None
    words: list[str] = Field(default_factory=list)

    @field_validator("tags", "words", mode="before")
    @classmethod
    def split(cls, value: Any) -> Any:
        return value.split(";") if isinstance(value, str) else value

    @field_validator("count", "limit", mode="before")
    @classmethod
    def same(cls, value: Any) -> Any:
        return value


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("tags", "a,x;b,y", ["a,x", "b,y"]),
        ("octal", "010", 8),
        ("count", "8", 8),
        ("limit", "none", None),
        ("words", "a,x;b", ["a,x", "b"]),
        ("words", '["a", "b"]', ["a", "b"]),
    ],
)
def test_a_text_reaches_the_validators_that_read_it(
    name: str, text: str, value: Any, clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TEXTS_{name.upper()}", text)
    assert getattr(Texts(), name) == value


def test_what_a_validator_says_about_a_text_is_not_lost(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEXTS_OCTAL", "9")  # which is a number, and no octal one
    with pytest.raises(SettingsError, match="octal = '9' is not allowed: invalid literal for int"):
        Texts()


def test_a_validator_that_fails_is_one_finding() -> None:
    with pytest.raises(SettingsError, match="validator split of Scaled fails: AttributeError") as caught:
        Scaled.from_values({"numbers": [1, 2]})
    (finding,) = caught.value.findings
    assert finding.file == __file__
    assert "value.split" in Path(__file__).read_text().splitlines()[finding.line - 1]


def test_a_default_that_a_validator_refuses_is_refused_in_its_words() -> None:
    with pytest.raises(SettingsError, match="its default 1 is not allowed; must be a multiple of 3"):

        class Threes(Base):
            threes: int = 1

            @field_validator("threes")
            @classmethod
            def check(cls, value: int) -> int:
                if value % 3:
                    raise ValueError("must be a multiple of 3")
                return value
