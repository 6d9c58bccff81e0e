"""Reconstruction images on their way to the logger."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptycho_exec.errors import DriftError
from tests.exec.trainer.logged_runs import fit, settings


def test_pictures_that_nobody_makes_are_drift(elsewhere: Path) -> None:
    with pytest.raises(DriftError, match="log_images_every_n_epochs=2, but the Trainer has None"):
        fit(settings(), elsewhere, pictures=False)
