"""One version, the same in the package, in its metadata's source and from both programs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ptycho_exec
from ptycho_exec.version import __version__

ROOT = Path(__file__).parents[2]


def test_the_package_has_its_version() -> None:
    assert ptycho_exec.__version__ == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_the_distribution_reads_it_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "ptycho_exec/version.py"


@pytest.mark.parametrize("module", ["ptycho_exec.cli.commands", "ptycho_torch.cli"])
def test_both_programs_print_it(module: str, tmp_path: Path) -> None:
    code = f"import sys; from {module} import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, text=True, cwd=tmp_path
    )
    program = module.partition(".")[0].replace("_", "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{program} {__version__}\n", "")
