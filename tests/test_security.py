"""What SECURITY.md promises: files of strangers run no code, or the tests would find what it made."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ptycho_exec import ExecutionSettings
from ptycho_exec.errors import UserError
from ptycho_exec.record import settings_from_manifest
from ptycho_exec.trainer.checkpoints import AtomicCheckpointIO
from ptycho_torch.data.read import read_scan
from ptycho_torch.model import PtychoPINN_Lightning, load_model
from ptycho_torch.workflows.continuing import progress_of
from ptycho_torch.workflows.runs import find_checkpoint

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for name in ("exec", "torch") for path in ROOT.glob(f"ptycho_{name}/**/*.py"))


RUN = ("eval", "exec", "compile", "os.system", "os.popen", "pickle.loads", "pickle.load", "yaml.load")


class Code:
    """A pickle of it makes a folder when it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("code-ran",)


@pytest.fixture(autouse=True)
def _no_code_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "code-ran").exists()


def pickled(path: Path) -> Path:
    path.write_bytes(pickle.dumps(Code(), protocol=2))
    return path


def torch_file(path: Path) -> Path:
    torch.save({"state_dict": Code(), "loops": Code(), "pytorch-lightning_version": "2.5.0"}, path)
    return path


@pytest.mark.parametrize("make", [pickled, torch_file])
def test_a_model_holds_no_code(make: Callable[[Path], Path], tmp_path: Path) -> None:
    file = make(tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="cannot read the model"):
        load_model(file)
    with pytest.raises(UserError, match="cannot read the model"):
        PtychoPINN_Lightning.load_from_checkpoint(file)
    (tmp_path / "checkpoints").mkdir()
    make(tmp_path / "checkpoints" / "last.ckpt")
    assert progress_of(tmp_path) == {}
    with pytest.raises(UserError, match="cannot read the model"):
        find_checkpoint(tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        AtomicCheckpointIO().load_checkpoint(file)


@pytest.mark.parametrize("name", ["scan.npz", "scan.pkl", "scan.h5"])
def test_a_scan_holds_no_code(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pickle"):
        read_scan(pickled(tmp_path / name))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [code-ran]", "!!python/name:os.system ''"])
def test_yaml_makes_no_objects(tag: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"experiment_name: {tag}\n", "utf-8")
    with pytest.raises(UserError, match="not valid YAML"):
        ExecutionSettings(settings_file="a.yaml")


@pytest.mark.parametrize("text", ["$(mkdir code-ran)", "`mkdir code-ran`", "${HOME}"])
def test_dotenv_expands_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"PTYCHO_EXEC_EXPERIMENT_NAME='{text}'\n", "utf-8")
    assert ExecutionSettings().experiment_name == text


def test_a_manifest_is_data(tmp_path: Path) -> None:
    manifest = {"manifest_version": 1, "intent": {"seed": 5}, "command": ["mkdir", "code-ran"]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    assert settings_from_manifest(tmp_path).seed == 5


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text("utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_what_could_run_code_is_where_it_is_named() -> None:
    """Pickles between processes of one run, and archives that ask for it; no shell, no other loader."""
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in SOURCES
        for name, _ in calls(path)
        if name
        in ("eval", "exec", "compile", "os.system", "os.popen", "pickle.loads", "pickle.load", "yaml.load")
        or name.endswith(("Unpickler", "unsafe_load", "full_load"))
    }
    assert found == {
        ("ptycho_exec/trainer/handover.py", "pickle.loads"),
        ("ptycho_exec/trainer/spawned.py", "_Unpickler"),
        ("ptycho_exec/trainer/spawned.py", "pickle.loads"),
        ("ptycho_torch/tools/probe_run.py", "pickle.loads"),
    }
    for path in SOURCES:
        for name, call in calls(path):
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert "shell" not in words, path
            if name == "torch.load":
                assert words.get("weights_only") in ("True", "weights_only is not False"), path
            if name in ("np.load", "np.lib.format.read_array"):
                npz = path.name == "npz.py"
                assert words.get("allow_pickle") == "False" or npz, path


def test_the_files_that_it_names_are_there() -> None:
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    tests = re.findall(r"`(tests/[\w/]+\.py)`", text)
    assert tests
    assert [name for name in tests if not (ROOT / name).is_file()] == []
