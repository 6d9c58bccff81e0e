"""The report is one page that holds everything and fetches nothing."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.evaluation.html_report import write_report
from ptycho_torch.evaluation.plots import save_amplitude, save_loss_curve

SETTINGS = [
    {"name": "batch_size", "value": 64, "origin": "environment PTYCHO_EXEC_BATCH_SIZE"},
    {"name": "compile", "value": False, "origin": "default"},
]


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
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


@pytest.fixture
def page(tmp_path: Path) -> str:
    images = {
        "Amplitude <1>": save_amplitude(np.ones((20, 20)), tmp_path / "a.png"),
        "Loss": save_loss_curve({"loss": [2.0, 1.0]}, tmp_path / "l.png"),
    }
    path = write_report(
        tmp_path,
        title="Scan <7> & more",
        subtitle="run_1",
        images=images,
        metrics={
            "amplitude_ssim": 0.98765432,
            "frc_half_px": None,
            "field": {"top": 3},
            "nrmse": float("inf"),
        },
        settings=SETTINGS,
        facts={"device": "cpu", "timings": {"load_s": 1.25}},
        notices=["pinned memory was left out <on a CPU>"],
    )
    assert path == tmp_path / "report.html"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "l.png", "report.html"]
    return path.read_text(encoding="utf-8")


def test_everything_is_on_the_page_and_escaped(page: str) -> None:
    outline = Outline(page)
    for text in (
        "Scan <7> & more",
        "run_1",
        "0.9877",
        "batch_size",
        "environment PTYCHO_EXEC_BATCH_SIZE",
        "64",
    ):
        assert text in outline.text
    for text in ("pinned memory was left out <on a CPU>", "field.top", "timings.load_s", "1.25", "false"):
        assert text in outline.text
    assert "resolution at FRC 0.5 (px)" not in outline.text


def test_images_are_embedded_unchanged(page: str, tmp_path: Path) -> None:
    images = [attributes for tag, attributes in Outline(page).tags if tag == "img"]
    assert [image["alt"] for image in images] == ["Amplitude <1>", "Loss"]
    data = base64.b64decode((images[0]["src"] or "").removeprefix("data:image/png;base64,"))
    assert data == (tmp_path / "a.png").read_bytes()


def test_nothing_is_fetched_and_nothing_runs(page: str) -> None:
    tags = Outline(page).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "a"}
    assert all((a.get("src") or "data:").startswith("data:") for _, a in tags)
    without_data = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert "url(" not in without_data
    assert "http" not in without_data


def test_a_run_with_nothing_to_show_has_only_a_title(tmp_path: Path) -> None:
    outline = Outline(write_report(tmp_path, title="Empty").read_text())
    assert [tag for tag, _ in outline.tags if tag in ("h1", "h2", "table", "figure", "ul")] == ["h1"]


def test_a_second_report_replaces_the_first_in_one_step(tmp_path: Path) -> None:
    write_report(tmp_path, title="First")
    assert "Second" in write_report(tmp_path, title="Second").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_jinja2_is_imported_when_a_report_is_written(tmp_path: Path) -> None:
    code = (
        "import sys; from ptycho_torch.evaluation.html_report import write_report; "
        "assert 'jinja2' not in sys.modules; "
        f"write_report({str(tmp_path)!r}, title='Run'); assert 'jinja2' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
