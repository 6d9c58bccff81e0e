"""Bad files: each kind is one error that says what is wrong, where, and what to do."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage import patterns as stacks
from ptycho_torch.simulate import save, simulate_scan

SCAN: ScanData = simulate_scan(n=16, patterns=20, photons=1e4, seed=6, bad_pixels=1)


def keys(**changes: Any) -> dict[str, Any]:
    arrays = {
        "xcoords": SCAN.positions_px[:, 1].copy(),
        "ycoords": SCAN.positions_px[:, 0].copy(),
        "diff3d": np.asarray(SCAN.patterns).astype(np.float32),
        "probeGuess": SCAN.probe,
        "objectGuess": SCAN.object_guess,
        "bad_pixels": ~SCAN.good_pixels,
    }
    arrays |= changes
    return {key: value for key, value in arrays.items() if value is not None}


def changed(array: Any, index: Any, value: Any) -> Any:
    out = np.array(array)
    out[index] = value
    return out


def npz(**changes: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.savez(folder / "scan.npz", **keys(**changes))
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
                for name, value in keys().items():
                    file[name] = value
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        return path

    return make


def member(name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> Callable[[Path], Path]:
    """A good archive in which one member's bytes are replaced."""

    def make(folder: Path) -> Path:
        np.savez(folder / "good.npz", **keys())
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


class _Bomb:
    """A pickle that would leave a file behind if it were loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("pickle-was-loaded",))


def bomb() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(_Bomb(), dtype=object), allow_pickle=True)
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


M, N = 20, 16
P = np.asarray(SCAN.patterns).astype(np.float32)
X = SCAN.positions_px[:, 1]
ROOM = "x" * 5000

BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such file": (lambda folder: folder / "none.npz", "no such file"),
    "directory": (lambda folder: folder, "a directory without a scan"),
    "empty file": (raw(b""), r"empty \(0 bytes\)"),
    "named pipe": (lambda folder: (os.mkfifo(folder / "pipe"), folder / "pipe")[1], "not a regular file"),
    "text": (raw(b"position, counts\n1, 2\n"), "neither an NPZ archive nor an HDF5 file"),
    "wrong extension": (raw(b"\x93NUMPY\x01\x00" + b"\0" * 80), "a single .npy array"),
    "bare pickle": (raw(pickle.dumps(_Bomb())), "a Python pickle, which is never loaded"),
    "gzip": (raw(b"\x1f\x8b\x08\x00" + b"\0" * 20), "a gzip file"),
    "empty archive": (raw(b"PK\x05\x06" + b"\0" * 18), "no scan is in here"),
    "half an archive": (truncated(0.5), "cannot read"),
    "archive without its last bytes": (truncated(0.999), "cannot read"),
    "half an HDF5 file": (truncated(0.5, "h5"), "cannot read"),
    "flipped bit": (damaged_byte, "cannot read|header declares|not positive"),
    "encrypted archive": (encrypted, "cannot read"),
    "patterns missing": (npz(diff3d=None), "the patterns are missing"),
    "two stacks of patterns": (npz(diffraction=P), "both diff3d and diffraction"),
    "xcoords missing": (npz(xcoords=None), "xcoords is missing"),
    "ycoords missing": (npz(ycoords=None), "ycoords is missing"),
    "probe missing": (npz(probeGuess=None), "probeGuess is missing"),
    "patterns of rank 2": (npz(diff3d=P[0]), r"shape \(16, 16\), 2 axes"),
    "patterns of rank 4": (npz(diff3d=P[..., None]), "4 axes"),
    "patterns not square": (npz(diff3d=P[:, :, :12], bad_pixels=None), "do not agree"),
    "more patterns than positions": (npz(diff3d=P[:-1]), "do not agree with 20 positions"),
    "x and y of different length": (npz(xcoords=X[:-1]), "the lengths differ: ycoords 20, xcoords 19"),
    "positions of rank 2": (npz(xcoords=X[:, None]), r"xcoords has shape \(20, 1\)"),
    "no positions": (npz(xcoords=X[:0], ycoords=X[:0]), "no positions"),
    "position NaN": (npz(xcoords=changed(X, 4, np.nan)), "1 positions are NaN or infinite, first at index 4"),
    "positions all the same": (npz(xcoords=X * 0, ycoords=X * 0), "all 20 positions are the same"),
    "positions outside": (npz(xcoords=X + 1000), "20 of 20 positions lie outside the object"),
    "positions in meters": (npz(xcoords=X * 1e6, objectGuess=None), "the positions span"),
    "positions as text": (npz(xcoords=X.astype(str)), "have dtype <U"),
    "pattern NaN": (npz(diff3d=changed(P, (3, 5, 6), np.nan)), r"pattern 3, pixel \[5, 6\] is nan"),
    "pattern infinite": (npz(diff3d=changed(P, (3, 5, 6), np.inf)), r"pixel \[5, 6\] is inf"),
    "pattern negative": (npz(diff3d=changed(P, (0, 0, 1), -2)), r"pattern 0, pixel \[0, 1\] is -2"),
    "pattern beyond float32": (
        npz(diff3d=changed(P.astype(float), (1, 2, 3), 1e300)),
        r"above 2\^64; pattern 1, pixel \[2, 3\] is 1e\+300",
    ),
    "patterns all zero": (npz(diff3d=P * 0), "all patterns are zero"),
    "patterns complex": (npz(diff3d=P.astype(complex)), "have dtype complex128"),
    "patterns of no size": (npz(diff3d=P[:, :0, :0]), "do not agree"),
    "probe of another size": (npz(probeGuess=np.ones((8, 8))), r"the probe has shape \(8, 8\)"),
    "probe NaN": (npz(probeGuess=np.full((N, N), np.nan)), "the probe has 256 NaN"),
    "probe all zero": (npz(probeGuess=np.zeros((N, N))), "the probe is zero everywhere"),
    "object of rank 1": (npz(objectGuess=np.ones(9)), r"the object has shape \(9,\)"),
    "object NaN": (npz(objectGuess=changed(SCAN.object_guess, (0, 0), np.nan)), "the object has 1 NaN"),
    "mask of another size": (npz(bad_pixels=np.zeros((8, 8), bool)), "bad-pixel mask has shape"),
    "mask marks everything": (npz(bad_pixels=np.ones((N, N), bool)), "every pixel is marked bad"),
    "labels of another size": (npz(Y=P[:, :8, :8]), "the labels have shape"),
    "unknown declaration": (npz(domain=np.array("energy")), "declares domain = 'energy'"),
    "pixel size as text": (npz(pixel_size_m=np.array("20nm")), "pixel_size_m is"),
    "pixel size of zero": (npz(pixel_size_m=0.0), "pixel_size_m is"),
    "pickled positions": (member("xcoords.npy", bomb()), r"Python objects \(a pickle\)"),
    "pickled patterns": (member("diff3d.npy", bomb()), "have dtype object"),
    "not npy inside": (member("diff3d.npy", b"hello"), "cannot read"),
    "npy version unknown": (member("diff3d.npy", b"\x93NUMPY\x09\x00" + b"\0" * 90), "cannot read"),
    "huge declared shape": (
        member("diff3d.npy", header("(20, 4000000, 4000000)"), zipfile.ZIP_DEFLATED),
        "header declares",
    ),
    "negative shape": (member("diff3d.npy", header("(-20, 16, 16)")), "cannot read|header declares"),
    "shape too short for the data": (member("diff3d.npy", header("(1, 1, 1)")), "header declares"),
    "very long header": (member("diff3d.npy", header(f"(20, 16, 16), 'a': '{ROOM * 4}'")), "cannot read"),
    "code in the header": (member("diff3d.npy", header("__import__('os').getpid()")), "cannot read"),
    "deeply nested header": (member("diff3d.npy", header("(" * 900 + ")" * 900)), "cannot read"),
    "a record dtype": (npz(diff3d=np.zeros((M, N, N), dtype=[("a", "f4")])), "have dtype"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_clear_error(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = BAD[kind]
    path = make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        read_scan(path)
    finding = caught.value.findings[0]
    assert finding.where, "the error says where"
    assert finding.fix, "the error says what to do"
    assert not (tmp_path / "pickle-was-loaded").exists()


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is made here, because root reads every file whatever its permissions."""
    path = save(SCAN, tmp_path / "scan.npz")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot open the file: Permission denied"):
        read_scan(path)


def test_at_least_thirty_kinds() -> None:
    assert len(BAD) >= 30


def test_asked_size_must_be_the_files(tmp_path: Path) -> None:
    path = save(SCAN, tmp_path / "scan.npz")
    with pytest.raises(DataError, match="N = 32 was asked"):
        read_scan(path, DataConfig(N=32))
    assert read_scan(path, DataConfig(N=16)).n_pixels == 16


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


def test_an_object_that_does_not_fit_can_be_left_out(tmp_path: Path) -> None:
    path = npz(xcoords=X + 1000)(tmp_path)
    scan = read_scan(path, DataConfig(canvas="positions"))
    assert scan.object_guess is None
    assert (scan.origins_px >= 0).all()


def test_a_file_that_changes_while_in_use_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "MEMORY_BUDGET_BYTES", 0)
    path = save(SCAN, tmp_path / "scan.npz")
    scan = read_scan(path)
    assert len(scan.amplitude([19])) == 1
    sent = pickle.dumps(scan.patterns)
    os.truncate(path, 3000)
    with pytest.raises(DataError, match="changed or truncated"):
        scan.amplitude([19])
    with pytest.raises(DataError, match="changed or truncated"):
        pickle.loads(sent)
