"""Single arrays from files of every kind, one of several by name."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.array_file import file_of, read_array

VALUES = np.arange(12.0).reshape(6, 2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", VALUES)
    np.savez("a.npz", mask=VALUES, other=VALUES + 1)
    np.savez("one.npz", anything=VALUES)
    np.savetxt("a.txt", VALUES)
    np.savetxt("a.csv", VALUES, delimiter=",", header="y,x")
    with h5py.File("a.h5", "w") as file:
        file["entry/stage"] = VALUES
        file["entry/mask"] = VALUES + 1
    return tmp_path


@pytest.mark.parametrize(
    "text", ["a.npy", "a.npz", "a.npz:mask", "one.npz", "a.txt", "a.csv", "a.h5:entry/stage", "./a.npy"]
)
def test_every_kind_is_read(folder: Path, text: str) -> None:
    np.testing.assert_array_equal(read_array(text, "the mask", names=("mask",)), VALUES)


def test_a_file_beside_the_scan_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert file_of("a.npz:mask") is None
    assert file_of("a.npz:mask", folder / "scan.h5") == (folder / "a.npz", "mask")


@pytest.mark.parametrize(
    ("text", "words", "fix"),
    [
        ("b.npy", "there is no file for the mask", "correct the path"),
        ("a" * 300, "there is no file for the mask", "correct the path"),
        ("a.h5", "it is not said which array is the mask", "a.h5:entry/mask"),
        ("a.npz:missing", "there is no array 'missing'", "a.npz:mask"),
        ("broken.npy", "cannot read", "numpy.save"),
        ("empty.npy", "empty", ""),
    ],
)
def test_what_cannot_be_read_says_what_to_do(folder: Path, text: str, words: str, fix: str) -> None:
    Path("broken.npy").write_bytes(Path("a.npy").read_bytes()[:40])
    Path("empty.npy").write_bytes(b"")
    with pytest.raises(DataError, match=words) as caught:
        read_array(text, "the mask")
    assert fix in caught.value.findings[0].fix
    if ":" in caught.value.findings[0].fix and fix.startswith("a."):
        assert read_array(fix, "the mask").shape == (6, 2)


def test_arrays_of_matlab_have_their_rows_and_columns_back(folder: Path) -> None:
    stack = np.arange(24.0).reshape(2, 3, 4)
    with h5py.File("m.mat", "w") as file:
        for name, array in (("mask", VALUES), ("probe", np.moveaxis(stack, 0, -1)), ("one", np.array(3.0))):
            file[name] = array.T
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    np.testing.assert_array_equal(read_array("m.mat:mask", "the mask"), VALUES)
    np.testing.assert_array_equal(read_array("m.mat:probe", "the probe"), stack)
    assert read_array("m.mat:one", "the probe") == 3
