"""Patterns that are left out: by index, far from all others, dark, with values that are no counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_exec.errors import DataError, SettingsError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.read import read_scan
from ptycho_torch.settings import ScienceSettings
from ptycho_torch.simulate import simulate_scan
from tests.torch.data.scan_files import keys, save_keys

SCAN = simulate_scan(n=32, patterns=64, photons=1e5, seed=4, with_labels=True)


def file_of(path: Path, **changes: Any) -> Path:
    parts = {
        "objectGuess": None,
        "bad_pixels": None,
        "Y": SCAN.labels,
        "patch_center": "half-pixel",
        **changes,
    }
    return save_keys(path / "scan.npz", keys(SCAN, **parts))


def with_troubles(path: Path) -> Path:
    """Pattern 3 is far away, 10 and 11 are dark, 20 has no numbers."""
    patterns = np.asarray(SCAN.patterns).astype(np.float32)
    patterns[10:12], patterns[20] = 0, np.nan
    x = SCAN.positions_px[:, 1].copy()
    x[3] = 4000
    return file_of(path, diff3d=patterns, xcoords=x)


def test_words_and_indices_leave_the_others_with_their_numbers(tmp_path: Path) -> None:
    path = with_troubles(tmp_path)
    scan = read_scan(path, DataConfig(drop="far, dark,broken, 30, 40-42"))
    kept = [i for i in range(64) if i not in (3, 10, 11, 20, 30, 40, 41, 42)]
    assert scan.scan_index is not None
    assert scan.scan_index.tolist() == kept
    np.testing.assert_array_equal(np.asarray(scan.patterns), np.asarray(SCAN.patterns)[kept])
    shift = np.array(scan.position_shift_px)
    np.testing.assert_allclose(scan.positions_px - shift, SCAN.positions_px[kept])
    np.testing.assert_allclose(scan.label_patches([0, 5]), SCAN.label_patches([kept[0], kept[5]]))
    (finding,) = scan.findings
    assert finding.code == "dropped"
    assert finding.what == "patterns left out as asked: 4 index, 1 far, 1 broken, 2 dark"


def test_a_word_that_fits_nothing_keeps_all(tmp_path: Path) -> None:
    scan = read_scan(file_of(tmp_path), DataConfig(drop="far,dark,broken"))
    assert len(scan) == 64
    assert scan.findings[0].what == "patterns left out as asked: none fits"


def test_what_cannot_be_left_out_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    with pytest.raises(DataError, match="drop names pattern 64, and there are 64"):
        read_scan(path, DataConfig(drop="64"))
    with pytest.raises(DataError, match="drop = 0-63 leaves no pattern"):
        read_scan(path, DataConfig(drop="0-63"))
    for text in ("bright", "3-", "-2", "3,,4"):
        with pytest.raises(SettingsError, match="a range such as 3-7"):
            ScienceSettings.from_values({"drop": text})
