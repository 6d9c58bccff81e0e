"""Import Lightning in about half the time, for commands that live for seconds or minutes.

A third of the plain import goes to packages that torchmetrics loads because they are installed - SciPy's
signal processing, Matplotlib's figures - and to garbage collections that find nothing to free; another
part is spent at exit, on collecting what the end of the process frees anyway.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNNEEDED = frozenset({"scipy", "matplotlib", "torchvision", "transformers", "torchaudio", "librosa"})
"""What torchmetrics does not need here: its plots, and its audio, image and text metrics."""


def import_lightning() -> None:
    """Import Lightning quickly, unless it is imported already; others find all packages as usual."""
    if "lightning.pytorch" in sys.modules:
        return
    with _no_collection(), _torchmetrics_alone():
        import lightning.pytorch  # noqa: F401 - imported for those who import it next
    # What was imported stays to the end; no later collection, that at exit included, needs to look at it.
    gc.freeze()


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _torchmetrics_alone() -> Iterator[None]:
    """Have torchmetrics imported as it is where its optional packages are not installed.

    Its checks go through `lightning_utilities`; where that has other names one day, nothing is hidden and the
    import is only slower.
    """
    if "torchmetrics" in sys.modules:
        yield
        return
    from lightning_utilities.core import imports

    available = getattr(imports, "package_available", None)
    cache = getattr(imports, "RequirementCache", None)
    check = getattr(cache, "_check_available", None)
    if available is None or cache is None or check is None:
        yield
        return

    def hiding_check(self: object) -> None:
        if getattr(self, "requirement", None) in UNNEEDED:
            self.available, self.message = False, "not loaded by ptycho-torch"  # type: ignore[attr-defined]
        else:
            check(self)

    imports.package_available = lambda name: name not in UNNEEDED and available(name)  # type: ignore[assignment]
    cache._check_available = hiding_check
    try:
        import torchmetrics  # noqa: F401 - its packages are hidden for this import alone
    finally:
        imports.package_available, cache._check_available = available, check
    yield
