"""Every word of every field has a meaning."""

from __future__ import annotations

from ptycho_exec.fields.choices import CHOICES
from ptycho_exec.fields.spec import format_value
from tests.exec.fields.specs import SPECS


def test_every_word_of_every_field_has_a_meaning() -> None:
    for name, spec in SPECS.items():
        words = [format_value(choice) for choice in spec.choices]
        if words == ["true", "false"]:
            assert name not in CHOICES
        else:
            assert list(CHOICES.get(name, {})) == (sorted(words, key=list(CHOICES.get(name, {})).index))
            assert set(CHOICES.get(name, {})) == set(words)
