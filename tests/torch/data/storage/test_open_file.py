"""Files are opened by their content; what cannot be opened is one error that says why."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.storage.hdf5 import Hdf5Archive
from ptycho_torch.data.storage.npz import NpzArchive
from ptycho_torch.data.storage.open_file import open_archive
from ptycho_torch.simulate import save
from tests.torch.data.scan_files import (
    FUZZ,
    SCAN,
    Bomb,
    assert_one_clear_error,
    raw,
    read_or_refuse,
)

BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such file": (lambda folder: folder / "none.npz", "no such file"),
    "directory": (lambda folder: folder, "a directory without a scan"),
    "empty file": (raw(b""), r"empty \(0 bytes\)"),
    "named pipe": (lambda folder: (os.mkfifo(folder / "pipe"), folder / "pipe")[1], "not a regular file"),
    "text": (raw(b"position, counts\n1, 2\n"), "neither an NPZ archive nor an HDF5 file"),
    "wrong extension": (raw(b"\x93NUMPY\x01\x00" + b"\0" * 80), "a single .npy array"),
    "bare pickle": (raw(pickle.dumps(Bomb())), "a Python pickle, which is never loaded"),
    "gzip": (raw(b"\x1f\x8b\x08\x00" + b"\0" * 20), "a gzip file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_every_bad_file_is_one_clear_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_one_clear_error(*BAD[kind], tmp_path, monkeypatch)


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is made here, because root reads every file whatever its permissions."""
    path = save(SCAN, tmp_path / "scan.npz")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot open the file: Permission denied"):
        read_scan(path)


@FUZZ
@given(
    content=st.binary(max_size=400),
    magic=st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x89HDF\r\n\x1a\n"]),
)
def test_arbitrary_bytes_are_refused(tmp_path: Path, content: bytes, magic: bytes) -> None:
    (tmp_path / "scan.npz").write_bytes(magic + content)
    assert not read_or_refuse(tmp_path / "scan.npz")


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    (tmp_path / "a.npz").rename(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.npz", "w") as file:
        file["x"] = np.arange(3)
    for name, kind in (("a.h5", NpzArchive), ("b.npz", Hdf5Archive)):
        archive = open_archive(tmp_path / name)
        assert isinstance(archive, kind)
        np.testing.assert_array_equal(archive.array("x"), [0, 1, 2])
        archive.close()


def test_a_single_array_is_read_as_is_proposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("patterns.npy", np.asarray(SCAN.patterns))
    with pytest.raises(DataError, match=r"a single \.npy array") as caught:
        read_scan("patterns.npy")
    fix = caught.value.findings[0].fix
    assert "--map patterns=data --map positions=scan" in fix
    patterns, positions = np.load("patterns.npy"), SCAN.positions_px
    exec(fix[fix.index("numpy.savez") : fix.index(", and read")].replace("numpy", "np"), globals(), locals())
    assert len(read_scan("scan.npz", DataConfig(map={"patterns": "data", "positions": "scan"}))) == len(SCAN)
