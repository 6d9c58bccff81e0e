"""Files of scans for tests: their plain keys, good ones and damaged ones.

FUZZ_EXAMPLES sets how many examples each test under `FUZZ` tries; 20000 take about a minute.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from ptycho_exec.errors import DataError
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import save, simulate_scan

SCAN: ScanData = simulate_scan(n=16, patterns=20, photons=1e4, seed=6, bad_pixels=1)
P = np.asarray(SCAN.patterns).astype(np.float32)
X = SCAN.positions_px[:, 1]


def keys(scan: ScanData, **changes: Any) -> dict[str, Any]:
    """Return the plain keys of an NPZ scan, without any declaration; a change to None leaves one out."""
    arrays = {
        "xcoords": scan.positions_px[:, 1],
        "ycoords": scan.positions_px[:, 0],
        "diff3d": np.asarray(scan.patterns),
        "probeGuess": scan.probe,
        "objectGuess": scan.object_guess,
        "bad_pixels": ~scan.good_pixels,
    }
    arrays |= changes
    return {key: value for key, value in arrays.items() if value is not None}


def save_keys(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def changed(array: Any, index: Any, value: Any) -> Any:
    out = np.array(array)
    out[index] = value
    return out


def npz(**changes: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.savez(folder / "scan.npz", **keys(SCAN, **({"diff3d": P} | changes)))
        return folder / "scan.npz"

    return make


def raw(content: bytes, name: str = "scan.npz") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def truncated(share: float, kind: str = "npz") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = save(SCAN, folder / "scan.npz")
        if kind == "h5":
            path = folder / "scan.h5"
            with h5py.File(path, "w") as file:
                for name, value in keys(SCAN, diff3d=P).items():
                    file[name] = value
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        return path

    return make


def member(name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> Callable[[Path], Path]:
    """A good archive in which one member's bytes are replaced."""

    def make(folder: Path) -> Path:
        np.savez(folder / "good.npz", **keys(SCAN, diff3d=P))
        with (
            zipfile.ZipFile(folder / "good.npz") as good,
            zipfile.ZipFile(folder / "scan.npz", "w", method) as bad,
        ):
            for info in good.infolist():
                bad.writestr(info.filename, content if info.filename == name else good.read(info))
        return folder / "scan.npz"

    return make


def header(shape: str, descr: str = "<f4", data: bytes = b"\0" * 64) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


class Bomb:
    """A pickle that would leave a file behind if it were loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("pickle-was-loaded",))


def bomb() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(Bomb(), dtype=object), allow_pickle=True)
    return stream.getvalue()


def damaged_byte(folder: Path) -> Path:
    """One flipped bit in the middle of a compressed archive."""
    path = save(SCAN, folder / "scan.npz", compress=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))
    return path


def encrypted(folder: Path) -> Path:
    """Mark every member as encrypted."""
    path = save(SCAN, folder / "scan.npz")
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(mark)
        while start >= 0:
            content[start + place] |= 1
            start = content.find(mark, start + 4)
    path.write_bytes(bytes(content))
    return path


FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@cache
def good_bytes(compress: bool) -> bytes:
    scan = simulate_scan(n=8, patterns=6, photons=1e3, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        return save(scan, Path(folder) / "scan.npz", compress=compress).read_bytes()


def read_or_refuse(path: Path) -> bool:
    """Return whether the file was read; every other outcome but `DataError` fails the test."""
    try:
        scan = read_scan(path)
    except DataError:
        return False
    assert np.isfinite(scan.amplitude(np.arange(len(scan)))).all()
    return True


def with_member(path: Path, name: str, content: bytes) -> None:
    """Write the good archive with the bytes of one member replaced."""
    with (
        zipfile.ZipFile(io.BytesIO(good_bytes(False))) as good,
        zipfile.ZipFile(path, "w") as archive,
    ):
        for info in good.infolist():
            archive.writestr(info.filename, content if info.filename == name else good.read(info))


def assert_one_clear_error(
    make: Callable[[Path], Path], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the file that `make` makes is one error that says where and what to do, and runs nothing."""
    monkeypatch.chdir(folder)
    path = make(folder)
    with pytest.raises(DataError, match=message) as caught:
        read_scan(path)
    finding = caught.value.findings[0]
    assert finding.where, "the error says where"
    assert finding.fix, "the error says what to do"
    assert not (folder / "pickle-was-loaded").exists()


def odd_scan(path: Path) -> Path:
    """A scan of four patterns of ten dark, which every command should mention."""
    scan = simulate_scan(n=32, patterns=40, photons=1e5, seed=2)
    patterns = changed(scan.patterns, slice(10, 14), 0)
    return save_keys(path, keys(scan, diff3d=patterns, bad_pixels=None, objectGuess=None))
