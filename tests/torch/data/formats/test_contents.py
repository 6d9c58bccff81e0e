"""What is likely to be what in a file of unknown names; that proposals work is tested with their reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_torch.data.formats.contents import contents, hint, likely_map
from ptycho_torch.data.storage.open_file import open_archive

P = np.zeros((30, 16, 16), np.uint16)
YX, PROBE = np.zeros((30, 2)), np.ones((16, 16), complex)


def guess(folder: Path, arrays: dict[str, Any]) -> str:
    with h5py.File(folder / "s.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    archive = open_archive(folder / "s.h5")
    line = likely_map(archive)
    assert hint(archive).endswith(line)
    archive.close()
    return line.replace("--map ", "")


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"a": P, "b": YX}, "patterns=a positions=b"),
        ({"a": P, "shifts": YX, "angles": YX, "times": np.zeros(30)}, "patterns=a positions=shifts"),
        ({"a": P, "stage/posX": np.zeros(30), "stage/posY": np.zeros(30)},
         "patterns=a positions_y=stage/posY positions_x=stage/posX"),
        ({"a": P, "b": YX, "first": np.ones((40, 50), complex), "illumination": PROBE, "wave": PROBE},
         "patterns=a positions=b probe=illumination object=first"),
        ({"a": P, "b": YX, "bad": np.zeros((16, 16), int), "flat": np.zeros((16, 16), int)},
         "patterns=a positions=b mask=bad"),
        ({"e/data_1": P, "e/data_2": P, "xy": np.zeros((60, 2))}, "patterns=e positions=xy"),
        ({"big": np.zeros((30, 64, 64), np.uint8), "few": P[:, :8, :8], "b": YX}, "patterns=big positions=b"),
        ({"a": P}, "patterns=a positions=FILE"),
        ({"my data": P, "the stage/it's": YX}, """'patterns=my data' 'positions=the stage/it'"'"'s'"""),
        ({"a": P.reshape(5, 6, 16, 16)}, "patterns=a --scan-step STEP"),
        ({"b": YX, "p": PROBE}, ""),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_likely(tmp_path: Path, arrays: dict[str, Any], line: str) -> None:
    assert guess(tmp_path, arrays) == line


def test_contents_are_listed_with_shapes_up_to_a_number(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", **{f"a{i:02}": np.zeros((2, i)) for i in range(30)}, z=1.0)
    archive = open_archive(tmp_path / "s.npz")
    text = contents(archive)
    archive.close()
    assert text.startswith("a00 2x0 float64, a01 2x1 float64, ")
    assert text.endswith("a23 2x23 float64, ...")
