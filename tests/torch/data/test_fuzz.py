"""Damaged files of every sort end in a scan or in one `DataError`, never in a traceback or a pickle.

FUZZ_EXAMPLES sets how many examples each test tries; 20000 take about a minute.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ptycho_exec.errors import DataError
from ptycho_torch.data.formats.cxi import write_cxi
from ptycho_torch.data.formats.ptychodus import write_training
from ptycho_torch.data.read import read_scan
from ptycho_torch.simulate import save, simulate_scan

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
FUZZ = settings(
    max_examples=EXAMPLES,
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


def test_the_undamaged_file_is_read(tmp_path: Path) -> None:
    for compress in (False, True):
        (tmp_path / "scan.npz").write_bytes(good_bytes(compress))
        assert read_or_refuse(tmp_path / "scan.npz")


@FUZZ
@given(
    compress=st.booleans(),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.none() | st.floats(0, 1),
)
def test_changed_bytes(
    tmp_path: Path, compress: bool, edits: list[tuple[float, int]], cut: float | None
) -> None:
    content = bytearray(good_bytes(compress))
    for place, value in edits:
        content[min(int(place * len(content)), len(content) - 1)] = value
    (tmp_path / "scan.npz").write_bytes(content if cut is None else content[: int(cut * len(content))])
    read_or_refuse(tmp_path / "scan.npz")


@cache
def good_hdf5(cxi: bool) -> bytes:
    scan = simulate_scan(n=8, patterns=6, photons=1e3, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        return (write_cxi if cxi else write_training)(scan, Path(folder) / "scan.h5").read_bytes()


@FUZZ
@given(
    cxi=st.booleans(),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    early=st.booleans(),
)
def test_changed_bytes_of_hdf5(
    tmp_path: Path, cxi: bool, edits: list[tuple[float, int]], early: bool
) -> None:
    content = bytearray(good_hdf5(cxi))
    reach = min(6000, len(content)) if early else len(content)
    for place, value in edits:
        content[min(int(place * reach), reach - 1)] = value
    (tmp_path / "scan.h5").write_bytes(content)
    read_or_refuse(tmp_path / "scan.h5")


NUMBERS = st.sampled_from([0, 1, 6, 8, 64, -1, 2**31, 2**63, 10**30, 10**4000])
VALUES: st.SearchStrategy[Any] = st.recursive(
    NUMBERS | st.text(max_size=4) | st.booleans() | st.none() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.tuples(inner, inner, inner),
    max_leaves=8,
)
DTYPES = st.sampled_from(
    [
        "<f4",
        ">f8",
        "<u2",
        "|O",
        "<U9",
        "|S0",
        "|V8",
        "<M8[s]",
        "<c8",
        "<f2",
        "|b1",
        "<f16",
        "x",
        "<f0",
        ",",
        "",
    ]
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "descr": DTYPES | VALUES | st.just([("a", "<f4"), ("b", "|O")]),
        "fortran_order": st.booleans() | VALUES,
        "shape": VALUES | st.tuples(NUMBERS, NUMBERS, NUMBERS),
        "more": VALUES,
    },
)


def with_member(path: Path, name: str, content: bytes) -> None:
    """Write the good archive with the bytes of one member replaced."""
    with (
        zipfile.ZipFile(io.BytesIO(good_bytes(False))) as good,
        zipfile.ZipFile(path, "w") as archive,
    ):
        for info in good.infolist():
            archive.writestr(info.filename, content if info.filename == name else good.read(info))


@FUZZ
@given(
    name=st.sampled_from(["diff3d", "xcoords", "probeGuess", "objectGuess", "bad_pixels", "domain"]),
    header=HEADERS.map(repr) | st.text(max_size=60) | st.sampled_from(["(" * 400, "{" * 99, "0x", "'\\x"]),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0), (0, 0)]),
    length=st.none() | st.integers(0, 65535),
    data=st.binary(max_size=200),
)
@example(name="diff3d", header="{'descr': '<f4'", version=(1, 0), length=None, data=b"")
def test_arbitrary_headers(
    tmp_path: Path, name: str, header: str, version: tuple[int, int], length: int | None, data: bytes
) -> None:
    text = header.encode("utf-8", "surrogatepass")[:60000] + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text) if length is None else length)
    with_member(tmp_path / "scan.npz", f"{name}.npy", b"\x93NUMPY" + bytes(version) + size + text + data)
    read_or_refuse(tmp_path / "scan.npz")


ARRAYS = st.sampled_from(
    [(6,), (6, 8, 8), (8, 8, 6), (8, 8), (1, 8, 8), (12, 12), (), (0,), (6, 0, 0), (2, 2, 2, 2)]
)
FILLS = st.sampled_from([0.0, 1.0, -1.0, 1e300, float("nan"), float("inf"), 0.5])


@FUZZ
@given(
    name=st.sampled_from(
        [
            "diff3d",
            "xcoords",
            "ycoords",
            "probeGuess",
            "objectGuess",
            "bad_pixels",
            "Y",
            "pixel_size_m",
            "domain",
        ]
    ),
    shape=ARRAYS,
    dtype=st.sampled_from(["f4", "f8", "f2", "u2", "i1", "u8", "c16", "?", "U3", "M8[s]", "S2", "f16"]),
    fill=FILLS,
)
@example(name="diff3d", shape=(6, 8, 8), dtype="f8", fill=1e300)
def test_arbitrary_arrays(tmp_path: Path, name: str, shape: tuple[int, ...], dtype: str, fill: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        array = np.full(shape, fill).astype(dtype)
    stream = io.BytesIO()
    np.save(stream, array)
    with_member(tmp_path / "scan.npz", f"{name}.npy", stream.getvalue())
    read_or_refuse(tmp_path / "scan.npz")


@FUZZ
@given(
    content=st.binary(max_size=400),
    magic=st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x89HDF\r\n\x1a\n"]),
)
def test_arbitrary_bytes(tmp_path: Path, content: bytes, magic: bytes) -> None:
    (tmp_path / "scan.npz").write_bytes(magic + content)
    assert not read_or_refuse(tmp_path / "scan.npz")


@pytest.mark.parametrize("share", np.linspace(0.02, 0.98, 25))
def test_hdf5_cut_short(tmp_path: Path, share: float) -> None:
    path = write_training(simulate_scan(n=8, patterns=6, photons=1e3, seed=1), tmp_path / "scan.h5")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert not read_or_refuse(path)
