"""A page is one file that holds everything, escapes it, and fetches nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.evaluation.report.charts import Line, chart
from ptycho_torch.evaluation.report.images import Quantity, Shown, unpacked
from ptycho_torch.evaluation.report.page import Figure, Page, Section, Table, plain, rendered, write_page

VOID = ("meta", "img", "input", "link", "br")
EVIL = "<img src=x onerror=alert(1)> </script><script>alert(2)</script> \"quoted\" & 'single'"


class Outline(HTMLParser):
    """Collects tags and text, and complains about tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def full(text: str) -> Page:
    """A page with everything on it, and a text wherever there is one."""
    image = np.linspace(0, 1, 12).reshape(3, 4)
    shown = Shown(
        {text: [image], "other": [1 - image]},
        [Quantity(text, "gray", (0, 1), text)],
        [(0, None)],
        text,
        divided=True,
    )
    return Page(
        title=text,
        subtitle=text,
        status="poor",
        verdict=text,
        causes=[text],
        notices=[text],
        scores={text: 0.98765432},
        sections=[
            Section("Object", [Figure(shown, text)], text=text),
            Section("Curves", [Figure(chart([Line(text, [1, 2], [3, 4])], text, text))]),
            Section(
                "Settings",
                tables=[
                    Table([{"name": text, "value": False}, {"name": "b", "value": 3, "hidden": True}], text)
                ],
            ),
            Section("Times", bars=[(text, 1.25, 0.5)]),
            Section("Nothing"),
            Section("An empty table", tables=[Table([])]),
        ],
    )


def test_everything_is_on_the_page_and_escaped() -> None:
    outline = Outline(rendered(full(EVIL)))
    assert "onerror" not in {name for _, attributes in outline.tags for name in attributes}
    assert [tag for tag, _ in outline.tags].count("script") == 2, "the data of the images, and the page's own"
    assert outline.text.count(EVIL) >= 14
    for text in ("0.9877", "false", "1.25 s", "poor"):
        assert text in outline.text


def test_sections_without_anything_are_left_out() -> None:
    outline = Outline(rendered(full("run")))
    assert "Nothing" not in outline.text
    assert "An empty table" not in outline.text
    assert [
        tag
        for tag, _ in Outline(rendered(Page("Empty"))).tags
        if tag in ("h1", "h2", "table", "nav", "dl", "ul")
    ] == ["h1"]


def test_images_come_as_the_numbers_that_they_are() -> None:
    page = rendered(full("run"))
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    things = json.loads(data)["things"]
    assert [thing["name"] for thing in things] == ["run", "other"]
    np.testing.assert_allclose(
        unpacked(things[1]["images"][0]), 1 - np.linspace(0, 1, 12).reshape(3, 4), atol=2e-4
    )


def test_nothing_can_be_fetched() -> None:
    tags = Outline(rendered(full("run"))).tags
    (policy,) = (a["content"] for tag, a in tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    places = [a[name] for _, a in tags for name in ("src", "href") if a.get(name)]
    assert all(str(place).startswith(("data:", "#")) for place in places)
    assert "http:" not in rendered(full("run"))
    assert "https:" not in rendered(full("run"))


def test_names_of_sections_are_places_to_go_to() -> None:
    tags = Outline(rendered(full("run"))).tags
    targets = {a["id"] for tag, a in tags if tag == "h2"}
    assert {str(a["href"]).removeprefix("#") for tag, a in tags if tag == "a"} == targets


def test_a_second_page_replaces_the_first_in_one_step(tmp_path: Path) -> None:
    write_page(Page("First"), tmp_path / "report.html")
    assert "Second" in write_page(Page("Second"), tmp_path / "report.html").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_jinja2_is_imported_when_a_page_is_written() -> None:
    code = (
        "import sys; from ptycho_torch.evaluation.report.page import Page, rendered; "
        "assert 'jinja2' not in sys.modules; rendered(Page('Run')); "
        "assert 'jinja2' in sys.modules; assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "none"),
        (True, "true"),
        (0.123456, "0.1235"),
        ([1, 2.5], "1, 2.5"),
        ([], "none"),
        ({"a": 1}, "a 1"),
        ("x", "x"),
    ],
)
def test_values_are_written_plainly(value: object, expected: str) -> None:
    assert plain(value) == expected
