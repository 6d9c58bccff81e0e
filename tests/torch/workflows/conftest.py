"""Fixtures of this folder."""

from __future__ import annotations

import pytest

from ptycho_torch.data.scan import ScanData
from tests.torch.workflows.tiny_runs import tiny_scan


@pytest.fixture(scope="session")
def scan() -> ScanData:
    return tiny_scan()
