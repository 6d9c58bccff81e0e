"""A browser for tests of pages: Chromium as the distribution has it, and what a page makes hard to use."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """Start it; the test is skipped where it, or what drives it, is not there."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine; apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def serious_faults(page: Any) -> list[tuple[str, list[str]]]:
    """Return what axe finds that is serious: the rule, and some places."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    # With preload, axe loads style sheets itself, of a site one from a wrong place.
    found = axe.run(page, options={"preload": False}).response["violations"]
    return [
        (row["id"], [node["html"][:120] for node in row["nodes"][:3]])
        for row in found
        if row["impact"] in ("serious", "critical")
    ]
