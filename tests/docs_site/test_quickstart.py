"""The commands of the quickstart work as they are typed there, one after the other, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text("utf-8")
LINES = [line.strip() for line in re.findall(r"^    (\S.*)$", PAGE, re.MULTILINE)]
INSTALLED = ("make ", "pip ")
"""Lines about what is installed already where tests run."""

pytestmark = [pytest.mark.slow, pytest.mark.thorough]


def test_a_newcomer_can_type_every_line(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("ptycho-torch", "ptycho_torch"), ("ptycho-exec", "ptycho_exec")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    small = " --n 32 --patterns 80 --contrast 0.5"
    first = [line + small for line in LINES if line.startswith("ptycho-torch simulate")]
    others = [line for line in LINES if not line.startswith((*INSTALLED, "ptycho-torch simulate"))]
    assert len(first) == 1
    assert len(others) >= 12
    for line in [*first, f"ptycho-torch simulate --seed 1 --out other_scan.npz{small}", *others]:
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (line, done.stdout[-1500:], done.stderr[-1500:])
    for name in ("first", "iterated", "run", "result", "other"):
        assert (tmp_path / name / "manifest.json").is_file()
