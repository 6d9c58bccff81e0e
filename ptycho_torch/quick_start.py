"""Import Lightning faster, for commands that live for seconds or minutes."""

from __future__ import annotations

import gc
import sys


def import_lightning() -> None:
    """Import Lightning, unless that was done, without garbage collections, which find nothing to free.

    What was imported stays to the end, so later collections, that at exit included, need not look at it.
    """
    if "lightning.pytorch" in sys.modules:
        return
    gc.disable()
    try:
        import lightning.pytorch  # noqa: F401 - imported for those who import it next
    finally:
        gc.enable()
    gc.freeze()
