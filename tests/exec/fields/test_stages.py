"""Fields that act in one stage only."""

from __future__ import annotations

from ptycho_exec.fields.spec import field_specs
from ptycho_exec.fields.stages import ONLY_IN, without_effect


def test_they_are_fields_and_each_has_one_stage() -> None:
    assert set().union(*ONLY_IN.values()) <= set(field_specs())
    assert not ONLY_IN["training"] & ONLY_IN["inference"]


def test_what_has_no_effect() -> None:
    assert without_effect("training") == ONLY_IN["inference"]
    assert without_effect("inference") == ONLY_IN["training"]
    assert without_effect(None) == frozenset()
