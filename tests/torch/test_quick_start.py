"""The quick import leaves out what is not needed, and leaves nothing else changed."""

import subprocess
import sys

LOOK = """
import gc, sys
from ptycho_torch.quick_start import import_lightning
import_lightning()
print(sorted({"scipy.signal", "matplotlib", "lightning.pytorch", "torchmetrics"} & set(sys.modules)))
from lightning_utilities.core.imports import RequirementCache, package_available
print(bool(RequirementCache("scipy")), package_available("matplotlib"))
print(gc.isenabled(), gc.get_freeze_count() > 0)
import matplotlib.pyplot, scipy.signal, lightning.pytorch
from torchmetrics import MeanMetric
from lightning.pytorch.callbacks import ModelCheckpoint
metric = MeanMetric()
metric.update(3.0)
print(float(metric.compute()))
"""


def _python(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout.splitlines()


def test_optional_packages_stay_out_and_are_found_afterwards() -> None:
    loaded, found, collecting, mean = _python(LOOK)
    assert loaded == "['lightning.pytorch', 'torchmetrics']"
    assert found == collecting == "True True"
    assert mean == "3.0"


def test_nothing_happens_when_lightning_is_there_already() -> None:
    code = (
        "import gc, lightning.pytorch\nfrom ptycho_torch.quick_start import import_lightning\n"
        "before = gc.get_freeze_count(); import_lightning(); print(gc.get_freeze_count() == before)"
    )
    assert _python(code) == ["True"]


def test_other_names_in_lightning_utilities_only_cost_time() -> None:
    code = (
        "import sys\nfrom lightning_utilities.core import imports\n"
        "from ptycho_torch.quick_start import _torchmetrics_alone\n"
        "del imports.RequirementCache._check_available\n"
        "with _torchmetrics_alone(): pass\n"
        "print('torchmetrics' in sys.modules)"
    )
    assert _python(code) == ["False"]
