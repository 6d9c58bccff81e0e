"""NPZ archives: damaged or hostile ones are one error, and nothing is unpickled unasked."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage import patterns
from ptycho_torch.data.storage.npz import NpzArchive
from ptycho_torch.data.storage.patterns import FilePatterns
from tests.torch.data.scan_files import (
    FUZZ,
    assert_one_clear_error,
    bomb,
    damaged_byte,
    encrypted,
    header,
    member,
    read_or_refuse,
    truncated,
    with_member,
)

ROOM = "x" * 5000


def damaged_lzma(folder: Path) -> Path:
    """Patterns packed with LZMA, whose stream is no such stream."""
    path = member("diff3d.npy", header("(20, 16, 16)"), zipfile.ZIP_LZMA)(folder)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("diff3d.npy").header_offset + 30 + len("diff3d.npy") + 9  # 9 of LZMA's own
    content = bytearray(path.read_bytes())
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    return path


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "half an archive": (truncated(0.5), "cannot read"),
    "archive without its last bytes": (truncated(0.999), "cannot read"),
    "flipped bit": (damaged_byte, "cannot read|header declares|not positive"),
    "flipped bits in LZMA": (damaged_lzma, "cannot read"),
    "encrypted archive": (encrypted, "cannot read"),
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
}


@pytest.mark.parametrize("kind", BAD)
def test_every_bad_file_is_one_clear_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_one_clear_error(*BAD[kind], tmp_path, monkeypatch)


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


@FUZZ
@given(
    name=st.sampled_from(["diff3d", "xcoords", "probeGuess", "objectGuess", "bad_pixels", "domain"]),
    header=HEADERS.map(repr) | st.text(max_size=60) | st.sampled_from(["(" * 400, "{" * 99, "0x", "'\\x"]),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0), (0, 0)]),
    length=st.none() | st.integers(0, 65535),
    data=st.binary(max_size=200),
)
@example(name="diff3d", header="{'descr': '<f4'", version=(1, 0), length=None, data=b"")
def test_arbitrary_headers_are_read_or_refused(
    tmp_path: Path, name: str, header: str, version: tuple[int, int], length: int | None, data: bytes
) -> None:
    text = header.encode("utf-8", "surrogatepass")[:60000] + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text) if length is None else length)
    with_member(tmp_path / "scan.npz", f"{name}.npy", b"\x93NUMPY" + bytes(version) + size + text + data)
    read_or_refuse(tmp_path / "scan.npz")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("budget", [0, 2**25])
def test_a_stack_has_its_scan_axis_first(
    tmp_path: Path, order: Literal["C", "F"], axis: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "MEMORY_BUDGET_BYTES", budget)
    stack = np.random.default_rng(0).integers(0, 9, (7, 8, 9))
    np.savez(tmp_path / "scan.npz", patterns=np.asarray(stack, order=order))
    archive = NpzArchive(tmp_path / "scan.npz")
    read = archive.stack("patterns", axis)
    assert isinstance(read, FilePatterns) is (budget == 0)
    expected = stack if axis == 0 else stack.transpose(2, 0, 1)
    np.testing.assert_array_equal(read[[5, 0]], expected[[5, 0]], strict=True)
    np.testing.assert_array_equal(archive.array("patterns"), stack, strict=True)


def test_keys_serve_as_attributes(tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", probe=np.ones(3), probe_pixel_width_m=2e-8, name=np.array("fly 7"))
    archive = NpzArchive(tmp_path / "scan.npz")
    assert archive.names() == ["name", "probe", "probe_pixel_width_m"]
    assert archive.attribute("probe", "pixel_width_m") == 2e-8
    assert archive.attribute("", "name") == "fly 7"
    assert archive.attribute("probe", "name") is None


def test_a_pickle_is_loaded_only_when_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", note=np.array({"energy": 8.3}, dtype=object))
    with pytest.raises(DataError, match="Python objects"):
        NpzArchive(tmp_path / "scan.npz").array("note")
    assert NpzArchive(tmp_path / "scan.npz", allow_pickle=True).array("note").item() == {"energy": 8.3}
