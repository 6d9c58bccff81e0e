"""Directives that draw: `layers` of both packages, the `ladder` of places of a value, and the `plan-flow`.

The first two are read from what the program itself uses: the contracts that `make lint` checks, with the imports of the modules,
and the table of precedence that a test holds
against the code. The pictures are SVG with the colors of the page, light or dark.
"""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
STYLE = """
.drawing text { fill: var(--pst-color-text-base); font: 13px system-ui, sans-serif; }
.drawing .small { font-size: 11.5px; fill: var(--pst-color-text-muted); }
.drawing .name { font-family: ui-monospace, monospace; font-weight: 600; }
.drawing rect { fill: var(--pst-color-surface); stroke: var(--pst-color-border); }
.drawing .ptycho_torch rect { stroke: var(--pst-color-primary); }
.drawing .arrow { fill: none; stroke: var(--pst-color-text-muted); stroke-width: 1.5; }
.drawing .tip { fill: var(--pst-color-text-muted); }
"""
WIDTH = 720


class Layers(SphinxDirective):
    """The layers of both packages, the upper above the lower, each with what it imports of those below."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(ROOT / "pyproject.toml"))
        self.env.note_dependency(str(ROOT / "specs/layout.md"))
        knows = layer_sentences()
        parts: list[str] = []
        y = 0
        for package in ("ptycho_torch", "ptycho_exec"):
            y += 24
            parts.append(f'<text class="name" x="0" y="{y}" font-size="15">{package}</text>')
            y += 10
            for row in layers_of(package):
                y = self.row(parts, package, row, knows, y)
            y += 14
        title = "Layers of ptycho_torch above those of ptycho_exec; each imports only from those below it"
        return [picture(parts, y, title)]

    def row(
        self, parts: list[str], package: str, row: list[str], knows: dict[tuple[str, str], str], y: int
    ) -> int:
        """Draw one layer, whose modules stand side by side, and return where the next one begins."""
        wide = WIDTH / len(row)
        tall = 44 if len(row) == 1 else 22 + 14 * max(len(wrapped(uses_text(package, n), wide)) for n in row) + 6
        for number, name in enumerate(row):
            x = number * wide
            parts.append(
                f'<g class="{package}"><rect x="{x + 1:.0f}" y="{y}" width="{wide - 6:.0f}" height="{tall}" rx="5"/>'
            )
            parts.append(f'<text class="name" x="{x + 10:.0f}" y="{y + 17}">{name}</text>')
            if len(row) == 1:
                sentence = plain_text(knows.get((package, name), ""))
                parts.append(f'<text x="{x + 130:.0f}" y="{y + 17}">{escape(shortened(sentence, 86))}</text>')
                parts.append(f'<text class="small" x="{x + 130:.0f}" y="{y + 35}">{escape(uses_text(package, name))}</text>')
            else:
                for line, text in enumerate(wrapped(uses_text(package, name), wide)):
                    parts.append(f'<text class="small" x="{x + 10:.0f}" y="{y + 34 + 14 * line}">{escape(text)}</text>')
            parts.append("</g>")
        return y + tall + 5


def layers_of(package: str) -> list[list[str]]:
    """Return the layers of a package from its contract, the highest first; names side by side share a layer."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (contract,) = (row for row in contracts if row.get("containers") == [package])
    return [re.split(r"\s*[|:]\s*", row) for row in contract["layers"]]


def layer_sentences() -> dict[tuple[str, str], str]:
    """Return what each layer knows, from the tables of specs/layout.md."""
    found, package = {}, ""
    for line in (ROOT / "specs/layout.md").read_text("utf-8").splitlines():
        if head := re.match(r"\| `(ptycho_\w+)` \|", line):
            package = head[1]
        elif row := re.match(r"\| (`.*?`) \| (.*) \|$", line):
            found |= {(package, name): row[2] for name in re.findall(r"`(\w+)`", row[1])}
    return found


def uses_text(package: str, layer: str) -> str:
    """Return the layers that a layer imports, those of the other package with its name."""
    own = sorted(name for home, name in uses(package, layer) if home == package)
    other = {home for home, _ in uses(package, layer)} - {package}
    return "imports " + ", ".join([*own, *sorted(other)]) if own or other else "imports nothing of ours"


def uses(package: str, layer: str) -> set[tuple[str, str]]:
    """Return (package, layer) of everything that the modules of a layer import, at any depth of their code."""
    home = ROOT / package / layer
    files = sorted(home.rglob("*.py")) if home.is_dir() else [home.with_suffix(".py")]
    found = {target for file in files for target in imports(file)}
    return found - {(package, layer)}


def imports(file: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module if node.module.count(".") else f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            layer = rest.partition(".")[0]
            if package in ("ptycho_exec", "ptycho_torch") and (
                (ROOT / package / layer).is_dir() or (ROOT / package / f"{layer}.py").is_file()
            ):
                yield package, layer


class Ladder(SphinxDirective):
    """The places that a value can come from, the highest precedence on top."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(ROOT / "specs/precedence.md"))
        rungs = ladder_rows()
        parts: list[str] = []
        for row, (number, kind, sentence) in enumerate(rungs):
            y, x = 2 + 31 * row, 6 * row
            parts.append(f'<g><rect x="{x + 1}" y="{y}" width="{WIDTH - x - 4}" height="27" rx="5"/>')
            parts.append(f'<text class="small" x="{x + 10}" y="{y + 18}">{number}</text>')
            parts.append(f'<text class="name" x="{x + 32}" y="{y + 18}">{kind}</text>')
            text = escape(shortened(plain_text(sentence), 78 - row))
            parts.append(f'<text class="small" x="{x + 145}" y="{y + 18}">{text}</text></g>')
        return [picture(parts, 4 + 31 * len(rungs), "The places of a value, the highest precedence on top")]


def ladder_rows() -> list[tuple[str, str, str]]:
    """Return number, kind and sentence of each place, from specs/precedence.md, which a test compares with the code."""
    text = (ROOT / "specs/precedence.md").read_text("utf-8")
    return re.findall(r"^\| (\d+) \| `([\w-]+)` \| (.*?) \|", text, re.MULTILINE)


class PlanFlow(SphinxDirective):
    """What becomes of settings: a plan, a Trainer, what is read back, and the record."""

    def run(self) -> list[nodes.Node]:
        tall = 48
        boxes = (
            (0, 0, "ExecutionSettings", "asked, with origins"),
            (0, 62, "MachineFacts", "CPUs, GPUs, launcher"),
            (0, 124, "ModuleTraits", "what the module can do"),
            (270, 62, "Plan", "value and reason; problems"),
            (540, 62, "Trainer", "built from the plan"),
            (540, 160, "read back", "what it really has"),
            (270, 160, "manifest.json", "asked, planned, had: drift"),
        )
        arrows = ("M176 24 C230 24 220 78 266 80", "M176 86 H266", "M176 148 C230 148 220 94 266 92",
                  "M446 86 H536", "M628 110 V156", "M540 184 H450", "M358 110 V156")  # fmt: skip
        parts = [
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path class="tip" d="M0 0 L8 4 L0 8 z"/></marker></defs>'
        ]
        for x, y, name, text in boxes:
            parts.append(f'<rect x="{x + 1}" y="{y + 1}" width="174" height="{tall}" rx="5"/>')
            parts.append(f'<text class="name" x="{x + 10}" y="{y + 20}">{name}</text>')
            parts.append(f'<text class="small" x="{x + 10}" y="{y + 38}">{text}</text>')
        parts += [f'<path class="arrow" d="{path}" marker-end="url(#tip)"/>' for path in arrows]
        return [picture(parts, 216, "Settings, machine facts and module traits make a plan; the plan makes the Trainer, which is read back")]


def picture(parts: list[str], height: float, title: str) -> nodes.raw:
    """Return SVG that scrolls sideways where the page is narrower."""
    svg = (
        f'<div class="drawing" tabindex="0" role="group" aria-label="{escape(title)}">'
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" role="img" aria-label="{escape(title)}"'
        f' xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{"".join(parts)}</svg></div>'
    )
    return nodes.raw("", svg, format="html")


def plain_text(markdown: str) -> str:
    return markdown.replace("`", "")


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rsplit(" ", 1)[0] + " …"


def wrapped(text: str, wide: float) -> list[str]:
    """Break a text into lines that fit into a box of small letters, `wide` pixels across."""
    return textwrap.wrap(text, max(12, int((wide - 20) / 6.0)))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("layers", Layers)
    app.add_directive("ladder", Ladder)
    app.add_directive("plan-flow", PlanFlow)
    return {"parallel_read_safe": True}
