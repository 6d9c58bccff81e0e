"""Files are opened by their content; what cannot be opened is one error that says why."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
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
    "MATLAB": (raw(b"MATLAB 5.0 MAT-file, Platform"), "a MATLAB file older than v7.3[^+]*-v7.3"),
    "TIFF": (raw(b"II*\0" + b"\0" * 20), "a TIFF image"),
    "broken link": (lambda folder: _link(folder / "scan.npz", "gone.npz"), "a link to gone.npz"),
    "circle of links": (
        lambda folder: _link(folder / "scan.npz", "scan.npz"),
        "links on the way form a circle",
    ),
    "path through a file": (lambda folder: raw(b"x")(folder) / "scan.npz", "part of the path is a file"),
    "no such directory": (lambda folder: folder / "a" / "b.npz", "exists up to"),
    "endless name": (lambda folder: folder / ("a" * 300), "shorten the path"),
}


def _link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


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


@pytest.mark.parametrize(
    ("name", "pack", "command"),
    [
        ("bz2", bz2.compress, "bunzip2 --keep"),
        ("gz", gzip.compress, "gunzip --keep"),
        ("xz", lzma.compress, "unxz --keep"),
    ],
)
def test_a_packed_file_is_named_with_the_command_that_unpacks_it(
    name: str, pack: Callable[[bytes], bytes], command: str, tmp_path: Path
) -> None:
    path = save(SCAN, tmp_path / "scan.npz")
    packed = tmp_path / f"scan.npz.{name}"
    packed.write_bytes(pack(path.read_bytes()))
    path.unlink()
    with pytest.raises(DataError, match="compressed") as caught:
        read_scan(packed)
    assert caught.value.findings[0].fix == f"unpack it first: {command} FILE"
    if shutil.which(command.split()[0]):
        subprocess.run([*command.split(), str(packed)], check=True)
        assert len(read_scan(path)) == len(SCAN)


def test_a_zip_of_something_else_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as file:
        file.writestr("scan.h5", b"")
    with pytest.raises(DataError, match=r"a ZIP file with 'scan.h5'") as caught:
        read_scan(tmp_path / "scan.zip")
    assert caught.value.findings[0].fix == "unpack it first: unzip FILE"


WRITER = """
import sys, h5py
file = h5py.File(sys.argv[1], "w", libver="latest")
file["x"] = [1]
if sys.argv[2] == "swmr":
    file.swmr_mode = True
file.flush()
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("mode", ["plain", "swmr"])
def test_a_file_that_somebody_writes_is_told_from_a_damaged_one(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    words = [sys.executable, "-c", WRITER, str(path), mode]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(DataError, match=r"open for writing|a program writes the file") as caught:
            open_archive(path)
        writer.kill()
    assert "wait until it has closed the file" in caught.value.findings[0].fix


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["diffraction"] = np.zeros((20, 16, 16))
    content = (tmp_path / "scan.h5").read_bytes()
    (tmp_path / "scan.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="the file is truncated"):
        read_scan(tmp_path / "scan.h5")


@pytest.mark.parametrize("code", [errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN])
def test_a_network_drive_that_is_gone_is_named(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal is made here, because a test has no network drive to unplug."""
    path = save(SCAN, tmp_path / "scan.npz")

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="the network drive does not answer"):
        read_scan(path)


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
