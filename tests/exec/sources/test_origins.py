"""Origins: what they say, what they shadow, what they hide."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import Field

from ptycho_exec.errors import SettingsError
from ptycho_exec.settings import ExecutionSettings, override_settings
from ptycho_exec.sources.origins import Kind, Layer, Origin, Resolution, SearchedFile

if TYPE_CHECKING:
    from conftest import Place


@pytest.mark.parametrize(
    ("origin", "text"),
    [
        (Origin(Kind.DEFAULT, "default", 16), "default"),
        (Origin(Kind.FLAG, "--batch-size", 8), "flag --batch-size"),
        (Origin(Kind.ENVIRONMENT, "PTYCHO_EXEC_SEED", 1), "environment PTYCHO_EXEC_SEED"),
        (Origin(Kind.PROJECT_FILE, "/a/b.toml:3", 1, file="/a/b.toml", line=3), "project-file (/a/b.toml:3)"),
        (Origin(Kind.PROFILE, "profile:ci", 1, file="/ci.toml", line=2), "profile:ci (/ci.toml:2)"),
        (
            Origin(Kind.DOTENV, "PTYCHO_EXEC_SEED", 1, file="/.env", line=9),
            "dotenv PTYCHO_EXEC_SEED (/.env:9)",
        ),
        (Origin(Kind.FACTORY, "factory", 64, reason="inference"), "factory, inference"),
        (Origin(Kind.ARGUMENT, "from_values()", 1, file="/m.json"), "argument from_values() (/m.json)"),
    ],
)
def test_an_origin_says_where(origin: Origin, text: str) -> None:
    assert origin.describe() == text


def test_an_origin_shadows_a_flat_list() -> None:
    default, low = Origin(Kind.DEFAULT, "default", 16), Origin(Kind.USER_FILE, "f:1", 8)
    top = Origin(Kind.FLAG, "--batch-size", 4).shadowing([low.shadowing([default]), default])
    assert [origin.value for origin in top.shadowed] == [8, 16]
    assert all(origin.shadowed == () for origin in top.shadowed)


def test_an_origin_is_frozen_picklable_and_plain_json() -> None:
    origin = Origin(Kind.DOTENV, "PTYCHO_EXEC_SEED", 1, "1", "/.env", 9, "why")
    assert pickle.loads(pickle.dumps(origin)) == origin
    with pytest.raises(dataclasses.FrozenInstanceError):
        origin.line = 3  # type: ignore[misc]
    assert json.loads(json.dumps(origin.to_json())) == {
        "kind": "dotenv",
        "place": "PTYCHO_EXEC_SEED",
        "file": "/.env",
        "line": 9,
        "raw": "1",
        "reason": "why",
    }


def test_a_resolution_shows_names_but_no_values() -> None:
    shown = repr(
        Resolution(
            ExecutionSettings, {"tracking_uri": "t0ken"}, {}, (SearchedFile(Kind.DOTENV, "/.env", True),)
        )
    )
    assert shown == "Resolution(tracking_uri, 0 findings)"
    assert Layer().entries == {}


# --- the caller of a call ---------------------------------------------------------------------------------


def line_here() -> int:
    return sys._getframe(1).f_lineno


def test_a_value_of_a_call_names_the_line_of_the_call() -> None:
    here = __file__
    cases = [
        (ExecutionSettings(seed=1), line_here(), "argument ExecutionSettings()"),
        (ExecutionSettings(overrides={"seed": 1}), line_here(), "overrides"),
        (ExecutionSettings.from_values({"seed": 1}), line_here(), "argument from_values()"),
        (ExecutionSettings.model_validate({"seed": 1}), line_here(), "argument model_validate()"),
        (ExecutionSettings.from_values({}).with_overrides(seed=1), line_here(), "override with_overrides()"),
    ]
    for settings, line, place in cases:
        assert settings.origin_of("seed") == f"{place} ({here}:{line})"


def test_a_value_of_a_block_names_the_line_of_the_block() -> None:
    with override_settings(seed=1):
        line = line_here() - 1
        settings = ExecutionSettings()
    assert settings.origin_of("seed") == f"context override_settings() ({__file__}:{line})"


def test_a_misspelt_argument_names_the_line_of_the_call() -> None:
    with pytest.raises(SettingsError) as error:
        ExecutionSettings(sed=1)
    (finding,) = error.value.findings
    assert (finding.file, finding.line) == (__file__, line_here() - 2)


def test_a_subclass_in_another_file_and_its_helpers_are_callers_like_others(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from ptycho_exec import ExecutionSettings\n"
        "class Mine(ExecutionSettings):\n"
        "    pass\n"
        "def made():\n"
        "    return Mine(seed=1)\n"
    )
    code = "import mine; print(mine.made().origin_of('seed')); print(mine.Mine(seed=2).origin_of('seed'))"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environ, check=True
    )
    assert done.stdout.splitlines() == [f"argument Mine() ({tmp_path}/mine.py:5)", "argument Mine()"]


def test_a_package_that_passes_settings_on_is_no_caller(tmp_path: Path) -> None:
    for name, mark in (("own", ""), ("passing", "__passes_settings_on__ = True\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(mark)
        (tmp_path / name / "inner.py").write_text(
            "from ptycho_exec import ExecutionSettings\ndef made():\n    return ExecutionSettings(seed=1)\n"
        )
    script = tmp_path / "script.py"
    script.write_text(
        "from own.inner import made as own\nfrom passing.inner import made as passing\n"
        "print(own().origin_of('seed'))\nprint(passing().origin_of('seed'))\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, env=environ, check=True
    )
    place = "argument ExecutionSettings()"
    assert done.stdout.splitlines() == [f"{place} ({tmp_path}/own/inner.py:3)", f"{place} ({script}:4)"]


def test_a_cell_goes_by_its_number(tmp_path: Path) -> None:
    pytest.importorskip("IPython", reason="it is part of the extra notebook")
    cells = tmp_path / "cells.py"
    cells.write_text(
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "for text in (\n"
        "    'from ptycho_exec import ExecutionSettings\\n'\n"
        "    'def made():\\n    return ExecutionSettings(seed=1)',\n"
        "    'print(made().origin_of(\"seed\"))',\n"
        "    'print(ExecutionSettings(seed=2).origin_of(\"seed\"))',\n"
        "):\n"
        "    shell.run_cell(text, store_history=True).raise_error()\n"
    )
    environ = {**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(
        [sys.executable, cells], capture_output=True, text=True, cwd=tmp_path, env=environ, check=True
    )
    place = "argument ExecutionSettings()"
    assert done.stdout.splitlines() == [f"{place} (Cell In[1]:3)", f"{place} (Cell In[3]:1)"]


def test_each_name_of_a_merged_table_has_its_own_origin(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Weighted(ExecutionSettings):
        weights: dict[str, int] = Field(default_factory=dict)

    clean_process.write("ptycho_exec.toml", "[weights]\na = 1\nb = 9\n")
    monkeypatch.setenv("PTYCHO_EXEC_WEIGHTS", '{"b": 2}')
    settings = Weighted()
    assert settings.weights == {"a": 1, "b": 2}
    assert settings.origin_of("weights.a").endswith("ptycho_exec.toml:2)")
    assert settings.origin_of("weights.b") == "environment PTYCHO_EXEC_WEIGHTS"
    assert settings.origin_of("weights.c") == ""
