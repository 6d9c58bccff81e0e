"""Python imports this first in each process that a test starts: Lightning then takes half the time.

Half of a plain import of Lightning are packages that torchmetrics loads because they are installed, as
`ptycho_torch.quick_start` says, whose way it is for the commands; the programs of tests import it plainly.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class _Torchmetrics:
    """A finder that has torchmetrics imported as the commands do."""

    asked = False

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torchmetrics" or _Torchmetrics.asked:
            return None
        _Torchmetrics.asked = True
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            from ptycho_torch.quick_start import UNNEEDED, hidden

            with hidden(UNNEEDED - sys.modules.keys()):
                load(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Torchmetrics)
