"""Data: read scans of several formats, detect what they hold, group neighbors, gather batches.

Names are loaded on first use, so that reading or converting a file does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptycho_torch.data.dataset import EpochShuffle, PtychoDataset, collate
    from ptycho_torch.data.grouping import group_neighbors, inference_groups, select_patterns
    from ptycho_torch.data.read import read_scan
    from ptycho_torch.data.scan import ScanData

__all__ = [
    "EpochShuffle",
    "PtychoDataset",
    "ScanData",
    "collate",
    "group_neighbors",
    "inference_groups",
    "read_scan",
    "select_patterns",
]

_HOME = {
    "EpochShuffle": "dataset",
    "PtychoDataset": "dataset",
    "collate": "dataset",
    "group_neighbors": "grouping",
    "inference_groups": "grouping",
    "select_patterns": "grouping",
    "read_scan": "read",
    "ScanData": "scan",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
