"""Frozen models as type checkers see them, and values of any type filled in."""

from __future__ import annotations

import copy
import enum
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, create_model

from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.base import (
    FrozenModel,
    ReadOnly,
    Table,
    bare_type,
    branches,
    converted,
    fill,
    is_filling,
    kind_of,
)


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


class Holder(FrozenModel):
    table: Annotated[Mapping[str, Any], Table(Model)] = ReadOnly()


def holder(**table: Any) -> Holder:
    made = Holder.__new__(Holder)
    fill(made, {"table": table})
    return made


def test_a_table_has_the_types_and_the_order_of_its_model() -> None:
    table = holder(pair=[1, 2], number=3).table
    assert list(table.items()) == [("number", 3), ("pair", (1.0, 2.0))]
    for wrong in ({"number": "3"}, {"nothing": 1}):
        with pytest.raises(ValueError, match="table"):
            holder(**wrong)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.update(number=4),
        lambda table: table.__setitem__("number", 4),
        lambda table: table.__delitem__("number"),
        lambda table: table.__ior__({"number": 4}),
        lambda table: table.setdefault("pair", 1),
        lambda table: table.pop("number"),
        lambda table: table.popitem(),
        lambda table: table.clear(),
    ],
)
def test_a_table_cannot_be_changed(change: Callable[[Any], Any]) -> None:
    for table in (holder(number=3).table, Holder().table):
        with pytest.raises(SettingsError, match=r"cannot be changed\n.*with_overrides"):
            change(table)
    assert (holder(number=3).table, Holder().table) == ({"number": 3}, {})


def test_a_table_is_pickled_copied_hashed_and_written() -> None:
    made = holder(number=3, pair=[1, 2])
    for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made), copy.copy(made)):
        assert (other, type(other.table), hash(other.table)) == (made, ReadOnly, hash(made.table))
    assert json.loads(json.dumps(made.table)) == made.model_dump(mode="json")["table"]
    assert made.model_dump()["table"] == made.table | {}


def of_type(annotation: Any, value: Any) -> Any:
    strict = ConfigDict(strict=True)
    model = create_model("Own", __config__=strict, x=(annotation, ...))
    made = model.__new__(model)
    fill(made, {"x": value})
    return made.x  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("annotation", "given", "value"),
    [
        (int | timedelta, 90, 90),
        (str | datetime, "2026", "2026"),
        (str | Path, "abc", "abc"),
        (bool | timedelta, True, True),
        (set[int] | list[int], [1, 1], [1, 1]),
        (list[int] | list[str], ["1", "2"], ["1", "2"]),
        (tuple[int, ...] | list[int], [1], [1]),
        (int | Path, "a", Path("a")),
        (timedelta, 90, timedelta(seconds=90)),
        (datetime, date(2026, 1, 2), datetime(2026, 1, 2)),
        (tuple[Path, ...], ["a"], (Path("a"),)),
        (tuple[Path, ...], [Path("a")], (Path("a"),)),
        (frozenset[Path], {"a"}, frozenset({Path("a")})),
        (dict[int, str], {"1": "a"}, {1: "a"}),
        (Sequence[int], [1, 2], [1, 2]),
        (int, 8.0, 8),
        (list[Annotated[Path, AfterValidator(lambda path: "data" / path)]], ["a"], [Path("data/a")]),
    ],
)
def test_a_value_stays_what_it_is_where_its_type_takes_it(annotation: Any, given: Any, value: Any) -> None:
    made = of_type(annotation, given)
    assert (made, type(made)) == (value, type(value))


@pytest.mark.parametrize(
    ("annotation", "given"),
    [
        (list[int], ["1"]),
        (set[int], [True]),
        (int, 8.5),
        (str | timedelta, b"a"),
        (timedelta, True),
    ],
)
def test_a_text_is_no_number_inside_of_a_list_either(annotation: Any, given: Any) -> None:
    with pytest.raises(ValueError, match="x"):
        of_type(annotation, given)


def test_of_a_type_the_validators_go_and_the_limits_stay() -> None:
    octal = BeforeValidator(lambda text: int(text, 8))
    assert bare_type(list[Annotated[int, Ge(1), octal]] | None) == list[Annotated[int, Ge(1)]] | None
    assert bare_type(Literal["a"]) == Literal["a"]
    assert converted(create_model("Own", x=(list[Annotated[int, octal]], ...)), "x", ["010"]) == ["010"]
