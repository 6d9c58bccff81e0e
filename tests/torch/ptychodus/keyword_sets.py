"""What several test files of this folder use."""

from __future__ import annotations

from typing import Any

from ptycho_torch.ptychodus.translation import SECTIONS, Configs


def configs(**changes: Any) -> Configs:
    """Return Ptychodus's defaults with `section__keyword` changed."""
    given: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        given[section][name] = value
    return Configs.from_dict(given)
