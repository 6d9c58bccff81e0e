"""The site builds without a warning, all its links lead somewhere, and its pages work in a browser."""

from __future__ import annotations

import fcntl
import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest

import ptycho_exec
import ptycho_torch
from ptycho_exec.cli.commands import build_parser as exec_parser
from ptycho_exec.cli.flags import with_commands
from ptycho_torch.cli import build_parser as torch_parser
from tests.browser import chromium, serious_faults

pytest.importorskip("myst_nb", reason="it is part of the extra docs")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(path for path in (ROOT / "docs").rglob("*.md") if "{code-cell}" in path.read_text())
FEW = "settings-for-ci explanation/plan"
"""Notebooks that take seconds."""
COMMAND = (sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "-c", "docs")

pytestmark = pytest.mark.slow


def built(tmp_path_factory: pytest.TempPathFactory, pages: str) -> Path:
    """Build the site strictly, with these of its notebooks executed ("" are all), once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (
        base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    ) / f"site of {pages or 'all'}".replace("/", " ")
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "html" / "done").is_file():
            build(folder, pages)
            (folder / "html" / "done").touch()
    return folder / "html"


def build(folder: Path, pages: str) -> None:
    done = subprocess.run(
        [*COMMAND, "-d", str(folder / "doctrees"), ".", str(folder / "html")],
        cwd=ROOT,
        env={**os.environ, "DOCS_EXECUTE": pages, "DOCS_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory, FEW)


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory, "")


class Links(HTMLParser):
    """Collects what a page leads to, what it loads, and the places on it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.loaded: set[str] = set()
        self.places: set[str] = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.targets.add(values["href"])
        if tag in ("img", "script", "source") and "src" in values:
            self.loaded.add(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "modulepreload"):
            self.loaded.add(values["href"])


def pages_of(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


def text_of(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page.read_text("utf-8")))


def test_every_link_leads_to_a_page_and_a_place_on_it(site: Path) -> None:
    found = {page: Links(page) for page in pages_of(site)}
    assert len(found) > 40
    broken = []
    for page, links in found.items():
        for target in links.targets | links.loaded:
            if re.match(r"[a-z]+:", target):
                continue
            address, place = urldefrag(target)
            file = (page.parent / unquote(address.partition("?")[0])).resolve() if address else page
            file = file / "index.html" if file.is_dir() else file
            places = found[file].places if file in found else {place}
            if not file.is_file() or (place and unquote(place) not in places):
                broken.append(f"{page.relative_to(site)} -> {target}")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in pages_of(site):
        assert not [place for place in Links(page).loaded if re.match(r"(https?:)?//", place)], page


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    for package in (ptycho_exec, ptycho_torch):
        places = Links(site / f"docs/reference/{package.__name__}.html").places
        assert {f"{package.__name__}.{name}" for name in package.__all__} <= places


def test_every_command_is_in_the_reference(site: Path) -> None:
    page = site / "docs/reference/commands.html"
    places, text = Links(page).places, text_of(page)
    for parser in (exec_parser(), torch_parser()):
        for command in list(with_commands(parser))[1:]:
            assert command.prog.replace(" ", "-") in places
            for action in command._actions:
                if not action.dest.startswith("field_") and "--help" not in action.option_strings:
                    assert ", ".join(action.option_strings) in text


def test_pictures_name_every_layer_and_every_place_of_a_value(site: Path) -> None:
    layers = text_of(site / "docs/contributing/index.html")
    folders = [path for package in ("ptycho_exec", "ptycho_torch") for path in (ROOT / package).iterdir()]
    for path in folders:
        if (path / "__init__.py").is_file():
            assert f"{path.name}" in layers
    in_the_table = set(ptycho_exec.Kind) - {"recorded", "source"}  # neither has a place of its own
    ladder = text_of(site / "docs/explanation/plan.html")
    assert [kind for kind in in_the_table if kind not in ladder] == []


def test_outputs_are_of_the_commands_and_name_no_machine(site: Path) -> None:
    text = text_of(site / "docs/tutorials/settings-for-ci.html")
    assert "shadows 32 from project-file" in text
    assert "write PTYCHO_EXEC_BATCH_SIZE, or remove it" in text
    assert not re.search(r"/tmp/|ipykernel", text)
    assert str(ROOT) not in text


def test_search_knows_the_words(site: Path) -> None:
    index = (site / "searchindex.js").read_text("utf-8")
    data = json.loads(re.sub(r"^Search\.setIndex\((.*)\)$", r"\1", index, flags=re.DOTALL))
    terms = set(data["terms"])
    assert {"overlap", "requeu"} <= terms  # stems
    assert "docs/tutorials/cluster" in data["docnames"]


@pytest.mark.thorough
def test_pages_look_right_in_a_browser(site: Path) -> None:
    pages = [
        "docs/index",
        "docs/tutorials/settings-for-ci",
        "docs/contributing/index",
        "docs/reference/commands",
    ]
    with served(site) as address, browser_page() as page:
        for name in pages:
            look(page, f"{address}/{name}.html")
        search(page, address)


@pytest.mark.thorough
def test_every_notebook_has_its_outputs(whole_site: Path) -> None:
    for path in NOTEBOOKS:
        page = whole_site / path.relative_to(ROOT).with_suffix(".html")
        assert "cell_output" in page.read_text("utf-8"), page


@pytest.mark.thorough
def test_every_page_looks_right_in_a_browser(whole_site: Path) -> None:
    with served(whole_site) as address, browser_page() as page:
        for path in pages_of(whole_site):
            look(page, f"{address}/{path.relative_to(whole_site)}")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder at an address of this machine."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def browser_page() -> Iterator[Any]:
    """Open a page in a browser that keeps what went wrong in `page.troubles`."""
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(180_000)  # of a machine that does much else
        page.troubles = []
        page.on("console", lambda said: page.troubles.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: page.troubles.append(str(error)))
        page.on(
            "response",
            lambda got: page.troubles.append(f"{got.status}: {got.url}") if got.status >= 400 else None,
        )
        page.on("requestfailed", lambda request: page.troubles.append(f"failed: {request.url}"))
        yield page


def look(page: Any, address: str) -> None:
    """Open a page light, dark and narrow: no error, nothing missing, nothing cut off, nothing hard to use."""
    for width, scheme in ((1280, "light"), (1280, "dark"), (400, "light")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.goto(address)
        page.wait_for_load_state("networkidle")
        assert serious_faults(page) == [], (address, width, scheme)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, (address, width, wide)
        assert page.troubles == [], (address, width, scheme)


def search(page: Any, address: str) -> None:
    """Search for a word as a reader does, and find the page that is about it."""
    page.goto(f"{address}/search.html?q=requeue")
    page.wait_for_selector("#search-results li")
    assert any("luster" in text for text in page.locator("#search-results li").all_inner_texts())
