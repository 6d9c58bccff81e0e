"""Import Lightning in about half the time, for commands that live for seconds or minutes.

Much of the plain import goes to packages that torchmetrics loads because they are installed - SciPy's signal
processing, Matplotlib's figures - and to garbage collections that find nothing to free.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, DistributionFinder
from typing import Any

UNNEEDED = frozenset({"scipy", "matplotlib", "torchvision", "transformers", "torchaudio", "librosa"})
"""What torchmetrics does not need here: its plots, and its audio, image and text metrics."""


def import_lightning() -> None:
    """Import Lightning quickly, unless it is imported already; others find all packages as usual.

    What was imported stays to the end, so later collections, that at exit included, need not look at it.
    """
    if "lightning.pytorch" in sys.modules:
        return
    gc.disable()
    try:
        import torch  # noqa: F401 - before packages are hidden

        with _hidden(UNNEEDED - sys.modules.keys()):
            import torchmetrics  # noqa: F401
        import lightning.pytorch  # noqa: F401 - imported for those who import it next
    finally:
        gc.enable()
    gc.freeze()


@contextmanager
def _hidden(names: frozenset[str]) -> Iterator[None]:
    """Have packages that are not imported yet found nowhere inside the block, as if not installed."""
    finders = list(sys.meta_path)
    sys.meta_path[:] = [_Without(names, finder) for finder in finders]
    try:
        yield
    finally:
        sys.meta_path[:] = finders


class _Without:
    """A finder of modules and distributions that does not find some of them."""

    def __init__(self, names: frozenset[str], finder: Any) -> None:
        self._names, self._finder = names, finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        hidden = name.partition(".")[0] in self._names
        return None if hidden else self._finder.find_spec(name, path, target)

    def find_distributions(self, context: DistributionFinder.Context) -> Iterable[Distribution]:
        find = getattr(self._finder, "find_distributions", None)
        return () if find is None or context.name in self._names else find(context)
