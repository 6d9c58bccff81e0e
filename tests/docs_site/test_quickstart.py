"""The commands of the quickstart and of README work as they are typed there, each page in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLED = ("make ", "pip ")
"""Lines about what is installed already where tests run."""
SMALL = " --n 32 --patterns 80 --contrast 0.5"
SCANS = (f"ptycho-torch simulate --out scan.npz{SMALL}", "ptycho-torch convert scan.npz scan.h5 --to cxi")
OTHER_SCAN = f"ptycho-torch simulate --seed 1 --out other_scan.npz{SMALL}"
ANSWERS = {"ptycho-exec check": (0, 2), "ptycho-exec diff": (0, 1)}
"""Commands that may answer no: it cannot run here, the two differ."""

pytestmark = [pytest.mark.slow, pytest.mark.thorough]


def lines_of(page: str) -> list[str]:
    """Return the commands of a page, but those that install or simulate."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.DOTALL)
    lines = [line.strip() for line in re.findall(r"^    (\S.*)$", text, re.MULTILINE)]
    return [line for line in lines if not line.startswith((*INSTALLED, "ptycho-torch simulate"))]


@pytest.mark.parametrize(
    ("page", "fewest", "runs"),
    [
        ("docs/quickstart.md", 12, ("first", "iterated", "run", "result", "other")),
        ("README.md", 15, ("first", "run", "result")),
    ],
)
def test_a_newcomer_can_type_every_line(
    page: str, fewest: int, runs: tuple[str, ...], tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("ptycho-torch", "ptycho_torch"), ("ptycho-exec", "ptycho_exec")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    lines = lines_of(page)
    assert len(lines) >= fewest
    for line in [*SCANS, OTHER_SCAN, *lines]:
        typed = line.replace("run_a run_b", " ".join(runs[:2]))
        done = subprocess.run(
            ["bash", "-c", typed], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        allowed = ANSWERS.get(" ".join(line.split()[:2]), (0,))
        assert done.returncode in allowed, (typed, done.stdout[-1500:], done.stderr[-1500:])
    for name in runs:
        assert (tmp_path / name / "manifest.json").is_file()
