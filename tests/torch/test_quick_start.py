"""The quick import collects no garbage and loads no optional package, and leaves everything as it was."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _plain_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes without the help that tests give to others: it is what is tested here."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


CODE = """
import gc
from ptycho_torch.quick_start import import_lightning
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
import_lightning()
print(len(collections), gc.isenabled(), gc.get_freeze_count() > 0)
from lightning.pytorch import Trainer
"""


@pytest.mark.slow
def test_nothing_is_collected_while_lightning_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split() == ["0", "True", "True"]


@pytest.mark.slow
def test_nothing_happens_when_lightning_is_there_already() -> None:
    code = (
        "import gc, lightning.pytorch\nfrom ptycho_torch.quick_start import import_lightning\n"
        "import_lightning(); print(gc.get_freeze_count())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split() == ["0"]


@pytest.mark.slow
def test_optional_packages_stay_out_and_are_available_afterwards() -> None:
    code = (
        "import sys\nfrom ptycho_torch.quick_start import UNNEEDED, import_lightning\n"
        "finders = list(sys.meta_path); import_lightning()\n"
        "print(len(UNNEEDED & set(sys.modules)), sys.meta_path == finders)\n"
        "import importlib.metadata, matplotlib.figure, scipy.signal, torchmetrics.regression\n"
        "print(importlib.metadata.version('scipy') == scipy.__version__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split() == ["0", "True", "True"]


def test_torch_is_imported_without_collections() -> None:
    code = CODE.replace("import_lightning", "import_torch").replace(
        "lightning.pytorch import Trainer", "torch import nn"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split() == ["0", "True", "True"]


def test_modules_are_imported_beside_and_what_fails_there_fails_again_where_it_is_used() -> None:
    code = (
        "import threading\nfrom ptycho_torch.quick_start import import_beside\n"
        "import_beside('json.tool', 'no_such_package', 'wave')\n"
        "[thread.join() for thread in threading.enumerate() if thread.name == 'imports']\n"
        "import sys; print('json.tool' in sys.modules, 'wave' in sys.modules)\n"
        "try:\n    import no_such_package\nexcept ImportError:\n    print('refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split() == ["True", "False", "refused"]
    assert done.stderr == ""
