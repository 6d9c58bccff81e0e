"""The public API of ptycho_torch: explicit, sorted, complete, and light."""

from __future__ import annotations

import subprocess
import sys

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
