"""Frozen models as type checkers see them, and values of any type filled in."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge
from pydantic import BaseModel, ConfigDict

from ptycho_exec.fields.base import FrozenModel, branches, fill, is_filling, kind_of


class Colour(enum.Enum):
    RED = "red"


class Model(FrozenModel):
    model_config = ConfigDict(strict=True, frozen=True)

    number: int = 0
    pair: tuple[float, float] = (0.0, 1.0)
    place: Path | None = None
    colour: Colour = Colour.RED
    words: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("number", 3, 3),
        ("pair", [1, 2], (1.0, 2.0)),
        ("place", "/a", Path("/a")),
        ("place", None, None),
        ("colour", "red", Colour.RED),
        ("words", ["a", "b"], frozenset({"a", "b"})),
    ],
)
def test_plain_data_becomes_what_the_field_is(name: str, given: Any, value: Any) -> None:
    model = Model.__new__(Model)
    fill(model, {name: given})
    assert getattr(model, name) == value
    assert type(getattr(model, name)) is type(value)


@pytest.mark.parametrize(
    ("name", "given"), [("number", "3"), ("pair", [1]), ("colour", "blue"), ("place", 3)]
)
def test_what_fits_nothing_is_left_to_pydantic(name: str, given: Any) -> None:
    with pytest.raises(ValueError, match=name):
        fill(Model.__new__(Model), {name: given})
    assert not is_filling()


def test_a_type_is_taken_apart() -> None:
    annotation = Annotated[int, Ge(1)] | Literal["auto"] | tuple[int, ...] | None
    found = list(branches(annotation))
    assert [kind_of(kind) for kind, _ in found] == [int, Literal, tuple, type(None)]
    assert found[0][1] == (Ge(1),)


def test_at_run_time_it_is_the_model_of_pydantic() -> None:
    assert FrozenModel is BaseModel
