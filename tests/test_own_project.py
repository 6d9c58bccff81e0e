"""The code of `docs/how-to/your-own-project.md` runs, each program as the page starts it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ptycho_exec.record import read_manifest

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "your-own-project.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
SHELL = "".join(text for kind, text in BLOCKS if kind == "sh")
COMMANDS = [line.partition("#")[0].strip() for line in SHELL.splitlines()]


pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with every file of the page."""
    for _, text in BLOCKS:
        if name := re.match(r"# ([\w.]+\.\w+)\n", text):
            (tmp_path / name[1]).write_text(text)
    return tmp_path


def run(folder: Path, command: str, **variables: str) -> str:
    """Run a command of the page, its variables first, and return what it printed."""
    words = shlex.split(command)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    programs = {"python": [sys.executable], "ptycho-exec": [sys.executable, "-m", "ptycho_exec"]}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PTYCHO")}
    done = subprocess.run(
        [*programs[words[0]], *words[1:]],
        cwd=folder,
        env={**kept, "HOME": str(folder), **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def origin(folder: Path, run_dir: str, name: str) -> str:
    manifest = read_manifest(folder / run_dir)
    assert manifest["status"] == "completed"
    assert {row["verdict"] for row in manifest["drift"]} <= {"same", "unknown"}
    return str(manifest["origins"][name])


def test_the_script(folder: Path) -> None:
    (command,) = (command for command in COMMANDS if " train.py" in command)
    assert "last training loss" in run(folder, command)
    assert "PTYCHO_EXEC_BATCH_SIZE" in origin(folder, "runs/script", "batch_size")


def test_fields_of_ones_own(folder: Path) -> None:
    assert run(folder, "python mine.py", MINE_WIDTH="16") == "16 environment MINE_WIDTH\n"


def test_the_notebook(folder: Path) -> None:
    cells = [text for kind, text in BLOCKS if kind == "python" and not text.startswith("# ")]
    assert len(cells) == 2
    (folder / "cells.py").write_text("".join(cells) + "print(settings._repr_html_()[:7])\n")
    printed = run(folder, "python cells.py")
    assert printed.startswith("batch_size = 8\n")
    assert printed.endswith("<table>\n")


def test_the_job(folder: Path) -> None:
    (job,) = (yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml" and "steps" in text)
    variables = {name: str(value) for name, value in job["env"].items()}
    for step in job["steps"]:
        command, _, target = step["run"].partition(" > ")
        printed = run(folder, command, **variables)
        if target:
            (folder / target).write_text(printed)
    assert "seed = 7\n" in (folder / "used.toml").read_text()
    assert (
        run(folder, "ptycho-exec show --settings used.toml --format toml")
        == (folder / "used.toml").read_text()
    )


def test_with_hydra(folder: Path) -> None:
    pytest.importorskip("hydra", reason="it is part of the extra dev")
    (command,) = (command for command in COMMANDS if "hydra_train.py" in command)
    printed = run(folder, command, PTYCHO_EXEC_BATCH_SIZE="4")
    assert "batch_size 4 from environment PTYCHO_EXEC_BATCH_SIZE" in printed
    assert "hydra_train.py" in origin(folder, "runs/other", "seed")


def test_with_the_command_line_of_lightning(folder: Path) -> None:
    pytest.importorskip("jsonargparse", reason="it is part of the extra dev")
    (command,) = (command for command in COMMANDS if "cli_train.py" in command)
    printed = run(folder, command, PTYCHO_EXEC_BATCH_SIZE="4")
    assert "batch_size 4 from environment PTYCHO_EXEC_BATCH_SIZE" in printed
    assert "cli_train.py" in origin(folder, "runs/cli", "accum_steps")
