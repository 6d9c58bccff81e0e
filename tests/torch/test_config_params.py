"""The keyword classes under the name by which Ptychodus imports them."""

from __future__ import annotations

import subprocess
import sys

from ptycho_torch import config_params
from ptycho_torch.ptychodus import keywords
from tests.torch.ptychodus.imported_names import imported_by_ptychodus


def test_the_keyword_classes_are_light() -> None:
    """Ptychodus imports them in its own process, before CUDA_VISIBLE_DEVICES is set in the child."""
    code = (
        "import sys, ptycho_torch.config_params as c;"
        "c.DataConfig(N=64); c.TrainingConfig(epochs=1).n_devices = 2;"
        "heavy = {'torch', 'lightning', 'numpy', 'pydantic', 'h5py', 'scipy'} & set(sys.modules);"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_that_ptychodus_imports_is_there() -> None:
    wanted = imported_by_ptychodus("ptycho_torch.config_params")
    assert {"DataConfig", "TrainingConfig"} <= wanted <= set(config_params.__all__)


def test_the_names_are_the_keyword_classes_themselves() -> None:
    """A pickle names the class by where it is defined; two classes of one name would not be equal."""
    for name in config_params.__all__:
        kind = getattr(config_params, name)
        assert kind is getattr(keywords, name)
        assert issubclass(kind, keywords.Keywords)
