"""Directives that draw: `layers` of both packages, the `ladder` of places of a value, and the `plan-flow`.

Layers are read from the contracts that `make lint` checks and from the imports of the modules, the ladder
from the table of precedence that a test holds against the code. The SVG has the colors of the page.
"""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
PACKAGES = ("ptycho_torch", "ptycho_exec")
WIDTH = 620
LINE = 15
"""Height of a line of small letters."""


def box(x: float, y: float, wide: float, tall: float, name: str, lines: Sequence[str]) -> str:
    """Return a box with a name and lines of small letters below it."""
    rows = "".join(
        f'<text class="small" x="{x + 10:.0f}" y="{y + 20 + LINE * (number + 1)}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    frame = f'<rect x="{x + 1:.0f}" y="{y + 1}" width="{wide - 2:.0f}" height="{tall - 2}" rx="5"/>'
    return f'{frame}<text class="name" x="{x + 10:.0f}" y="{y + 19}">{escape(name)}</text>{rows}'


def picture(parts: Sequence[str], height: float, title: str) -> nodes.raw:
    """Return SVG that scrolls sideways where the page is narrower."""
    label = escape(title, quote=True)
    svg = (
        f'<div class="drawing" tabindex="0" role="group" aria-label="{label}">'
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" role="img" aria-label="{label}"'
        f' xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg></div>'
    )
    return nodes.raw("", svg, format="html")


class Layers(SphinxDirective):
    """The layers of both packages, the upper above the lower, each with what it imports of those below."""

    def run(self) -> list[nodes.Node]:
        for name in ("pyproject.toml", "specs/layout.md"):
            self.env.note_dependency(str(ROOT / name))
        parts: list[str] = []
        y = 0
        for package in PACKAGES:
            parts.append(f'<text class="name title" x="0" y="{y + 18}">{package}</text>')
            y += 28
            for row in layers_of(package):
                texts = [layer_lines(package, name, WIDTH / len(row)) for name in row]
                tall = 30 + LINE * max(map(len, texts))
                for number, (name, lines) in enumerate(zip(row, texts, strict=True)):
                    wide = WIDTH / len(row)
                    drawn = box(number * wide, y, wide - 4, tall, name, lines)
                    parts.append(f'<g class="{package}">{drawn}</g>')
                y += tall + 4
            y += 14
        return [picture(parts, y, "Layers of both packages; each imports only from those below it")]


@cache
def layers_of(package: str) -> list[list[str]]:
    """Return the layers of a package from its contract, highest first; those in one row are side by side."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    (contract,) = (row for row in tools["importlinter"]["contracts"] if row.get("containers") == [package])
    return [re.split(r"\s*[|:]\s*", row) for row in contract["layers"]]


def layer_lines(package: str, layer: str, wide: float) -> list[str]:
    """Return what a layer knows, and what it imports, as lines for a box so wide."""
    letters = int((wide - 24) / 6.1)
    sentence = layer_sentences().get((package, layer), "") if wide == WIDTH else ""
    return [
        line for text in (sentence, imports_text(package, layer)) for line in textwrap.wrap(text, letters)
    ]


def layer_sentences() -> dict[tuple[str, str], str]:
    """Return what each layer knows, from the tables of specs/layout.md."""
    found, package = {}, ""
    for line in (ROOT / "specs/layout.md").read_text("utf-8").splitlines():
        if head := re.match(r"\| `(ptycho_\w+)` \|", line):
            package = head[1]
        elif row := re.match(r"\| (`.*?`) \| (.*) \|$", line):
            found |= {(package, name): row[2].replace("`", "") for name in re.findall(r"`(\w+)`", row[1])}
    return found


def imports_text(package: str, layer: str) -> str:
    """Return the layers that a layer imports; of the other package its name alone."""
    targets = layer_imports(package, layer)
    own = sorted(name for home, name in targets if home == package)
    other = sorted({home for home, _ in targets} - {package})
    return "imports " + (", ".join([*own, *other]) or "nothing of ours")


def layer_imports(package: str, layer: str) -> set[tuple[str, str]]:
    """Return (package, layer) of everything that the modules of a layer import, anywhere in their code."""
    home = ROOT / package / layer
    files = sorted(home.rglob("*.py")) if home.is_dir() else [home.with_suffix(".py")]
    return {target for file in files for target in file_imports(file)} - {(package, layer)}


def file_imports(file: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            one_deep = "." not in node.module  # `from package import layer`
            names = [f"{node.module}.{alias.name}" for alias in node.names] if one_deep else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for package, layer in (name.split(".")[:2] for name in names if "." in name):
            if package in PACKAGES and layer in chain(*layers_of(package)):
                yield package, layer


class Ladder(SphinxDirective):
    """The places that a value can come from, the highest precedence on top."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(ROOT / "specs/precedence.md"))
        parts, rungs = [], ladder_rows()
        for row, (number, kind, sentence) in enumerate(rungs):
            y, x = 31 * row, 6 * row
            text = textwrap.shorten(sentence.replace("`", ""), 74 - row, placeholder=" …")
            parts.append(f'<rect x="{x + 1}" y="{y + 1}" width="{WIDTH - x - 4}" height="27" rx="5"/>')
            parts.append(f'<text class="small" x="{x + 10}" y="{y + 19}">{number}</text>')
            parts.append(f'<text class="name" x="{x + 32}" y="{y + 19}">{kind}</text>')
            parts.append(f'<text class="small" x="{x + 150}" y="{y + 19}">{escape(text)}</text>')
        return [picture(parts, 31 * len(rungs), "The places of a value, the highest precedence on top")]


def ladder_rows() -> list[tuple[str, str, str]]:
    """Return number, kind and sentence of each place."""
    text = (ROOT / "specs/precedence.md").read_text("utf-8")
    return re.findall(r"^\| (\d+) \| `([\w-]+)` \| (.*?) \|", text, re.MULTILINE)


class PlanFlow(SphinxDirective):
    """What becomes of settings: a plan, a Trainer, what is read back, and the record."""

    BOXES = (
        (0, 0, "ExecutionSettings", "asked, with origins"),
        (0, 62, "MachineFacts", "CPUs, GPUs, launcher"),
        (0, 124, "ModuleTraits", "what the module can do"),
        (232, 62, "Plan", "value, reason; problems"),
        (443, 62, "Trainer", "built from the plan"),
        (443, 160, "read back", "what it really has"),
        (232, 160, "manifest.json", "asked, planned, had"),
    )
    ARROWS = (
        "M176 24 C210 24 200 78 230 80",
        "M176 86 H230",
        "M176 148 C210 148 200 94 230 92",
        "M408 86 H441",
        "M531 110 V158",
        "M443 184 H410",
        "M320 110 V158",
    )
    TIP = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
        ' orient="auto"><path class="tip" d="M0 0 L8 4 L0 8 z"/></marker></defs>'
    )

    def run(self) -> list[nodes.Node]:
        boxes = [box(x, y, 176, 48, name, [text]) for x, y, name, text in self.BOXES]
        arrows = [f'<path class="arrow" d="{path}" marker-end="url(#tip)"/>' for path in self.ARROWS]
        title = "Settings, facts of the machine and traits of the module make a plan, which makes the Trainer"
        return [picture([self.TIP, *boxes, *arrows], 210, title)]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("layers", Layers)
    app.add_directive("ladder", Ladder)
    app.add_directive("plan-flow", PlanFlow)
    return {"parallel_read_safe": True}
