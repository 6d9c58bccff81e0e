"""How things show themselves in a notebook: facts as a small table, escaped; figures without pyplot."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def facts_html(title: str, facts: Mapping[str, Any]) -> str:
    """Return a table of what is known, name and value; what is None is left out."""
    rows = "".join(
        f'<tr><td style="text-align:left">{escape(name)}</td>'
        f'<td style="text-align:left">{escape(said(value))}</td></tr>'
        for name, value in facts.items()
        if value is not None
    )
    return f'<table><caption style="text-align:left">{escape(title)}</caption>{rows}</table>'


def facts_text(title: str, facts: Mapping[str, Any]) -> str:
    """Return the same on one line."""
    known = ", ".join(f"{name}: {said(value)}" for name, value in facts.items() if value is not None)
    return f"{title}({known})"


def said(value: Any) -> str:
    """Return a value in few characters: numbers in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def new_figure(width: float, height: float) -> Figure:
    """Return a figure, in inches, that a notebook shows; it needs no display and touches nothing global."""
    from ptycho_torch.figures import ShownFigure

    return ShownFigure(figsize=(width, height), facecolor="white")
