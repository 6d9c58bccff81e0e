"""Validators of a subclass that change values: the origin says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from pydantic import Field, field_validator, model_validator

from ptycho_exec.errors import SettingsError
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
