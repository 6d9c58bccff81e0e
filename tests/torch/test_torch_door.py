"""The door of ptycho_torch: explicit, sorted, complete, and light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ptycho_torch


def test_the_door_is_explicit_and_sorted() -> None:
    assert ptycho_torch.__all__ == sorted(ptycho_torch.__all__)
    assert set(ptycho_torch.__all__) == set(ptycho_torch._HOME)
    assert set(ptycho_torch.__all__) <= set(dir(ptycho_torch))


@pytest.mark.parametrize("name", ptycho_torch.__all__)
def test_every_name_leads_somewhere(name: str) -> None:
    found = getattr(ptycho_torch, name)
    assert found.__module__ == f"ptycho_torch.{ptycho_torch._HOME[name]}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ptycho_torch.nothing


def test_import_and_configs_stay_light() -> None:
    code = (
        "import sys, ptycho_torch; ptycho_torch.DataConfig(); import ptycho_torch.cli;"
        "heavy = {'torch', 'lightning', 'numpy', 'matplotlib', 'h5py'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_plugin_of_pydantic_is_loaded_for_our_configs(tmp_path: Path) -> None:
    """One that a logging package hangs in can take longer to load than all of our configs."""
    meta = tmp_path / "nosy-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: nosy\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text("[pydantic]\nnosy = nosy:plugin\n")
    (tmp_path / "nosy.py").write_text('raise SystemExit("a plugin was loaded")\n')
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from ptycho_torch.cli import build_parser\nfrom ptycho_torch.science_flags import science_given\n"
        "from ptycho_torch.config import ScienceConfig\nScienceConfig(training={'epochs': 2})\n"
        "print(science_given(build_parser().parse(['train', 'a', '--out', 'b', '--epochs', '3'])))\n"
    )
    other = "from pydantic import BaseModel\nclass Other(BaseModel):\n    a: int = 1\n"
    ours, others = (
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
        for text in (code, code + other)
    )
    assert (ours.stdout, ours.stderr) == ("{'epochs': 3}\n", "")
    assert "a plugin was loaded" in others.stderr
