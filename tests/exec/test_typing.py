"""What mypy and pyright say about users' calls: the wrong ones, all of them, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from ptycho_exec.settings import ExecutionSettings

CALLS = Path(__file__).with_name("right_and_wrong_calls.py")
ROOT = Path(__file__).parents[2]
WRONG = [number for number, line in enumerate(CALLS.read_text().splitlines(), 1) if line.endswith("# wrong")]


def test_the_file_has_wrong_calls_of_each_kind() -> None:
    assert len(WRONG) == 13


@pytest.mark.slow
def test_mypy_flags_exactly_the_wrong_calls(tmp_path: Path) -> None:
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\n[mypy-torch.*,lightning.*]\nfollow_imports = skip\n")
    words = ["--config-file", str(config), "--cache-dir", str(tmp_path), "--follow-imports=silent"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words, str(CALLS)], cwd=ROOT, capture_output=True, text=True
    )
    lines = [int(number) for number in re.findall(rf"{CALLS.name}:(\d+): error", done.stdout)]
    assert sorted(set(lines)) == WRONG, done.stdout + done.stderr


@pytest.mark.slow
def test_pyright_flags_exactly_the_wrong_calls(tmp_path: Path) -> None:
    pytest.importorskip("pyright", reason="it is part of the extra dev")
    (tmp_path / CALLS.name).write_text(CALLS.read_text())
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pyright", "--outputjson"),
            *("--pythonpath", sys.executable, "--project", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    lines = [row["range"]["start"]["line"] + 1 for row in found if row["severity"] == "error"]
    assert sorted(set(lines)) == WRONG, done.stdout


def test_the_hints_of_the_class_resolve() -> None:
    assert typing.get_type_hints(ExecutionSettings)["batch_size"] is int
