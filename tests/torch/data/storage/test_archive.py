"""What every archive gives: names for messages, required arrays, one kind of error."""

from __future__ import annotations

import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.archive import (
    Archive,
    Member,
    damage_as_data_error,
    first_present,
    list_names,
    refuse_large,
    required,
)
from ptycho_torch.data.storage.open_file import open_archive


def opened(folder: Path, kind: str, names: list[str]) -> Archive:
    arrays = {name: np.arange(3.0) + number for number, name in enumerate(names)}
    path = folder / f"scan.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            file.update(arrays)
    return open_archive(path)


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_arrays_are_found_by_name(tmp_path: Path, kind: str) -> None:
    archive = opened(tmp_path, kind, ["b", "a"])
    assert first_present(archive, "none", "b", "a") == "b"
    assert first_present(archive, "none") is None
    assert list_names(archive) == "a, b"
    np.testing.assert_array_equal(required(archive, "b", "numbers"), [0, 1, 2])
    with pytest.raises(DataError, match="probe is missing") as caught:
        required(archive, "probe", "complex numbers")
    assert "the file has a, b" in str(caught.value)
    archive.close()


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_messages_list_a_dozen_names_and_no_more(tmp_path: Path, kind: str) -> None:
    archive = opened(tmp_path, kind, [f"{number:02d}" + "x" * 60 for number in range(13)])
    shown = list_names(archive).split(", ")
    assert shown == [f"{number:02d}" + "x" * 38 for number in range(12)] + ["..."]
    (tmp_path / "none").mkdir()
    assert list_names(opened(tmp_path / "none", kind, [])) == "no arrays"


def test_small_arrays_end_at_4_gib() -> None:
    largest = Member("probe", (2**29,), np.dtype("f8"))
    assert largest.nbytes == 4 * 2**30
    refuse_large(largest, Path("scan.h5"))
    with pytest.raises(DataError, match=r"the array has 4\.0 GiB"):
        refuse_large(Member("probe", (2**29 + 1,), np.dtype("f8")), Path("scan.h5"))


def test_what_libraries_raise_on_damage_becomes_one_error() -> None:
    with pytest.raises(DataError, match="cannot read") as caught, damage_as_data_error("here", "", "do this"):
        zlib.decompress(b"no such stream")
    assert isinstance(caught.value.__cause__, zlib.error)
    assert (caught.value.findings[0].where, caught.value.findings[0].fix) == ("here", "do this")
    own = DataError("found already")
    with pytest.raises(DataError) as kept, damage_as_data_error("here", "", ""):
        raise own
    assert kept.value is own
    with pytest.raises(ZeroDivisionError), damage_as_data_error("here", "", ""):
        _ = 1 / 0
