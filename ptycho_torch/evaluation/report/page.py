"""report.html and compare.html: one file each that holds everything and fetches nothing.

The page is a template beside this file, with a style sheet and a script that are put into it. It takes plain
values, images (`images.Shown`) and charts (`charts.chart`), so any workflow can fill it; what has nothing to
show is left out. It can be mailed, archived and opened offline: a content security policy in the page forbids
it to load anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_exec.files import write_atomically
from ptycho_torch.evaluation.report.charts import short
from ptycho_torch.evaluation.report.images import Shown, bits_for

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

FOLDER = Path(__file__).parent
Row = Mapping[str, object]


@dataclass(frozen=True)
class Table:
    """Rows with the same keys, which are the table's head; those with a true `hidden` wait to be asked."""

    rows: Sequence[Row]
    more: str = ""
    """What the rows with a true `hidden` are, for the switch that shows them."""

    @property
    def keys(self) -> list[str]:
        """Names of the columns."""
        return [key for key in self.rows[0] if key != "hidden"]

    @property
    def hidden(self) -> int:
        """How many rows are shown only when asked for."""
        return sum(bool(row.get("hidden")) for row in self.rows)


@dataclass(frozen=True)
class Figure:
    """Images or a chart, with what is to be known of it."""

    content: Shown | Markup
    caption: str = ""

    @property
    def images(self) -> Shown | None:
        """The images, where it is of images."""
        return self.content if isinstance(self.content, Shown) else None


@dataclass(frozen=True)
class Section:
    """A heading with what is below it; without any of it, it is left out."""

    title: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    text: str = ""
    bars: Sequence[tuple[str, float, float]] = ()
    """Name, seconds, and part of the whole."""

    @property
    def shown(self) -> bool:
        """Whether there is anything below the heading."""
        return bool(self.figures or self.bars or any(table.rows for table in self.tables))

    @property
    def anchor(self) -> str:
        """Name of the heading within the page."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


@dataclass(frozen=True)
class Page:
    """All of a page."""

    title: str
    subtitle: str = ""
    status: str = ""
    """Status of the verdict, as `good`."""
    verdict: str = ""
    causes: Sequence[str] = ()
    notices: Sequence[str] = ()
    scores: Mapping[str, object] = field(default_factory=dict)
    """Figures that are shown large, by what they are."""
    sections: Sequence[Section] = ()


def write_page(page: Page, target: Path) -> Path:
    """Write a page to a temporary file that is renamed, and return its path."""
    write_atomically(target, rendered(page))
    return target


def rendered(page: Page) -> str:
    """Return a page as HTML."""
    sections = [section for section in page.sections if section.shown]
    shown = [figure.images for section in sections for figure in section.figures if figure.images]
    pixels = sum(image.size for images in shown for thing in images.things.values() for image in thing)
    return _template().render(
        page=page,
        sections=sections,
        bits=bits_for(pixels),
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        script=(FOLDER / "viewer.js").read_text(encoding="utf-8"),
    )


@cache
def _template() -> Template:
    """Return the template of a page, compiled once."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    return environment.get_template("page.html.jinja")


def plain(value: Any) -> str:
    """Return a value as a reader writes it: lower-case truth, four digits, lists with commas."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return short(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(entry)}" for name, entry in value.items()) or "none"
    return str(value)
