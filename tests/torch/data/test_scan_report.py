"""The report of a scan: numbers known beforehand, and a word on what looks odd."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ptycho_torch.config import DataConfig
from ptycho_torch.data.read import read_scan
from tests.torch.data.scan_files import (
    SCAN,
    P,
    X,
    changed,
    npz,
)


def test_what_is_odd_but_readable_is_a_warning(tmp_path: Path) -> None:
    patterns = changed(P.astype(np.uint16), 7, 0)
    patterns[:, ~SCAN.good_pixels] = 0
    patterns[2, 3, 4] = 65535
    path = npz(
        diff3d=np.fft.fftshift(patterns, axes=(1, 2)),
        xcoords=changed(X, 1, X[0]),
        ycoords=changed(SCAN.positions_px[:, 0], 1, SCAN.positions_px[0, 0]),
        objectGuess=SCAN.object_guess[:-4] if SCAN.object_guess is not None else None,
        bad_pixels=None,
    )(tmp_path)
    warnings = "\n".join(read_scan(path, DataConfig(patch_center="half-pixel")).report["warnings"])
    for words in (
        "1 positions repeat an earlier one",
        "1 patterns are zero everywhere",
        "1 values are at the largest number of uint16",
        "patches reach beyond the canvas",
        "bright in the corners",
    ):
        assert words in warnings
