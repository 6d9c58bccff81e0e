"""Import large packages in less time, for commands that live for seconds or minutes.

Much of a plain import of Lightning goes to packages that torchmetrics loads because they are installed -
SciPy's signal processing, Matplotlib's figures - and of any large one to garbage collections that find
nothing to free.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import Distribution, DistributionFinder
from typing import Any

UNNEEDED = frozenset({"scipy", "matplotlib", "torchvision", "transformers", "torchaudio", "librosa"})
"""What torchmetrics does not need here: its plots, and its audio, image and text metrics."""


def import_lightning() -> None:
    """Import Lightning quickly, unless it is imported already; others find all packages as usual."""
    if "lightning.pytorch" in sys.modules:
        return
    with _importing():
        import torch  # noqa: F401 - before packages are hidden

        with hidden(UNNEEDED - sys.modules.keys()):
            import torchmetrics  # noqa: F401
        import lightning.pytorch  # noqa: F401 - imported for those who import it next


def import_torch() -> None:
    """Import torch quickly, unless it is imported already."""
    if "torch" not in sys.modules:
        with _importing():
            import torch  # noqa: F401 - imported for those who import it next


@contextmanager
def _importing() -> Iterator[None]:
    """Collect no garbage while packages are imported inside.

    What was imported stays to the end, so later collections, that at exit included, need not look at it.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.freeze()


def import_beside(*names: str) -> None:
    """Import modules in a thread, while this one goes on with what needs a processor and not Python.

    Who uses them next imports them as always, waits for the rest, and gets the error where there is one.
    """

    def load() -> None:
        with suppress(Exception):
            for name in names:
                import_module(name)

    threading.Thread(target=load, daemon=True, name="imports").start()


@contextmanager
def hidden(names: frozenset[str]) -> Iterator[None]:
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
