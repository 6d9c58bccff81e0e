"""Documentation that runs: snippets are executed, trees and links point at what is there."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptycho_exec.cli.commands import build_parser as exec_parser
from ptycho_exec.cli.flags import Parser, flags_given
from ptycho_exec.fields.spec import decode_text, field_specs, format_value
from ptycho_torch.cli import build_parser as torch_parser
from ptycho_torch.factory import INFERENCE_DEFAULTS, TRAINING_DEFAULTS
from ptycho_torch.settings import ScienceSettings

ROOT = Path(__file__).parents[1]
BOOLEANS = {name: spec for name, spec in field_specs(ScienceSettings).items() if spec.boolean}
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("specs/*.md")),
    *sorted(page for page in ROOT.glob("docs/**/*.md") if "_build" not in page.parts),
]


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert snippets
    for snippet in snippets:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", snippet],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "8"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([\w./-]+\.\w+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tree_of_the_readme_is_the_tree() -> None:
    tree = re.search(r"## What is where\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree is not None
    named = set(paths_of(tree[1]))
    for name in named:
        assert (ROOT / name).exists(), f"the README names {name}"
    for package in ("ptycho_exec", "ptycho_torch"):
        files = {
            str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py") if path.name[0] != "_"
        }
        assert files <= named, f"the README does not name {files - named}"


def paths_of(tree: str) -> Iterator[str]:
    """Yield the paths that an indented tree names, two spaces for each folder."""
    folders: list[str] = []
    for line in tree.splitlines():
        names = re.match(r"((?:  )*)((?:[\w.-]+(?:\.\w+|/)(?:\s+|$))+)", line)
        assert names is not None, line
        depth, words = len(names[1]) // 2, names[2].split()
        folders[depth:] = [words[0]]
        yield from ("".join(folders[:depth]) + word for word in words)


def test_every_module_has_the_test_file_of_its_name() -> None:
    for package, tests in (("ptycho_exec", "exec"), ("ptycho_torch", "torch")):
        modules = [path.relative_to(ROOT / package) for path in (ROOT / package).rglob("[!_]*.py")]
        wanted = {module.with_name(f"test_{module.name}") for module in modules}
        missing = [path for path in sorted(wanted) if not (ROOT / "tests" / tests / path).exists()]
        assert missing == [], f"tests/{tests} lacks {', '.join(map(str, missing))}"


def test_every_silent_change_of_lightning_is_shown_by_a_test_that_exists() -> None:
    rows = [
        row
        for row in (ROOT / "docs/reference/lightning-in-silence.md").read_text().splitlines()
        if "::" in row
    ]
    assert len(rows) >= 44
    for file, test in {pair for row in rows for pair in re.findall(r"`([\w/]+\.py)::([\w:]+)`", row)}:
        assert f"def {test.split('::')[-1]}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"


def test_the_factory_defaults_of_the_spec_are_the_defaults() -> None:
    rows = re.findall(
        r"^\| (train|infer) \| (\w+) \| (\S+) \| (.+) \|$", (ROOT / "specs/workflows.md").read_text(), re.M
    )
    assert {(task, name, value, why) for task, name, value, why in rows} == {
        (task, name, format_value(default.value), default.reason)
        for task, defaults in (("train", TRAINING_DEFAULTS), ("infer", INFERENCE_DEFAULTS))
        for name, default in defaults.items()
    }


def science_given(args: argparse.Namespace) -> dict[str, object]:
    """Return the science flags that were typed, each as its field's type."""
    specs = field_specs(ScienceSettings)
    return {
        name: decode_text(specs[name], texts[-1])
        for name, texts in flags_given(args, ScienceSettings).items()
    }


def commands() -> list[str]:
    text = "\n".join(page.read_text() for page in PAGES).replace("\\\n", "")
    found = re.findall(r"^(?: {4}|\$ )?(ptycho-(?:exec|torch) [^#\n`>]+)", text, re.MULTILINE)
    return sorted({command.strip() for command in found if "|" not in command and "[" not in command})


@pytest.mark.parametrize("command", commands())
def test_documented_commands_parse(command: str) -> None:
    program, *words = shlex.split(command)
    parser = {"ptycho-exec": exec_parser, "ptycho-torch": torch_parser}[program]()
    args = parser.parse(words)
    assert args.command == words[0]
    switches = {name.replace("_", "-") for name in BOOLEANS} & {word.removeprefix("--") for word in words}
    values = science_given(args)
    assert all(values[name.replace("-", "_")] is True for name in switches)


def test_switches_that_the_guide_names_act_as_typed_there() -> None:
    guide = "\n".join(page.read_text() for page in PAGES if "docs" in page.parts)
    named = {flag for flag in re.findall(r"--[a-z-]+", guide) if flag[2:].replace("-", "_") in BOOLEANS}
    assert "--refine-probe" in named
    for flag in named:
        parser = Parser(prog="p")
        parser.add_fields(parser.add_argument_group("science"), BOOLEANS.values())
        for words, value in (([flag], True), ([f"--no-{flag[2:]}"], False), ([flag, "false"], False)):
            assert science_given(parser.parse(words)) == {flag[2:].replace("-", "_"): value}
