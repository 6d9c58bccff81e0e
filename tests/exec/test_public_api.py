"""The public API: an explicit, sorted list of names, all of which load; and nothing heavy behind it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ptycho_exec

HEAVY = {"torch", "lightning", "pytorch_lightning", "numpy", "scipy", "matplotlib", "h5py", "rich"}


def test_all_is_explicit_sorted_and_loads() -> None:
    assert ptycho_exec.__all__ == sorted(ptycho_exec.__all__, key=lambda name: (name.islower(), name))
    assert ptycho_exec.__all__ == sorted(set(ptycho_exec.__all__))
    assert "PyTorchExecutionConfig" in ptycho_exec.__all__
    for name in ptycho_exec.__all__:
        assert getattr(ptycho_exec, name) is not None
    assert [name for name in dir(ptycho_exec) if not name.startswith("__")] == ptycho_exec.__all__


def test_the_table_of_homes_is_the_list_of_names() -> None:
    assert {*ptycho_exec._HOME, "PyTorchExecutionConfig"} == set(ptycho_exec.__all__)


def test_a_star_import_brings_exactly_the_names() -> None:
    space: dict[str, object] = {}
    exec("from ptycho_exec import *", space)
    assert set(space) - {"__builtins__"} == set(ptycho_exec.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ExecutionSetings'"):
        ptycho_exec.ExecutionSetings  # noqa: B018


def loaded_after(code: str, cwd: Path) -> set[str]:
    script = f"{code}\nimport sys\nprint('LOADED', *sorted({{m.partition('.')[0] for m in sys.modules}}))"
    environ = {
        **os.environ,
        "PYDANTIC_DISABLE_PLUGINS": "__all__",
    }  # other packages' plug-ins load what they like
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=cwd, env=environ
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        ["show"],
        ["show", "--json"],
        ["show", "--trainer-kwargs"],
        ["show", "--loader-kwargs"],
        ["explain", "batch_size"],
        ["schema"],
        ["diff", "env", "profile:repro"],
        ["check"],
        ["facts"],
        ["profiles"],
        ["init"],
    ],
    ids=str,
)
def test_nothing_heavy_is_loaded(arguments: list[str] | None, tmp_path: Path) -> None:
    code = "import ptycho_exec; ptycho_exec.ExecutionSettings(); ptycho_exec.json_schema()"
    if arguments is not None:
        code = f"from ptycho_exec.cli.commands import main\nassert main({arguments!r}) == 0"
    assert loaded_after(code, tmp_path) & HEAVY == set()


def test_importing_the_package_alone_loads_no_third_party_module(tmp_path: Path) -> None:
    before = loaded_after("pass", tmp_path)
    assert {
        m for m in loaded_after("import ptycho_exec", tmp_path) - before if m.startswith("pydantic")
    } == set()


def test_a_file_of_settings_in_yaml_is_read_only_then(tmp_path: Path) -> None:
    (tmp_path / "ptycho_exec.toml").write_text("seed = 1\n")
    code = "from ptycho_exec.cli.commands import main\nassert main(['show']) == 0"
    assert "yaml" not in loaded_after(code, tmp_path)
