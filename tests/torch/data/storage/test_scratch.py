"""Stacks that are unpacked: in the order asked for, and nothing left behind."""

from __future__ import annotations

import gc
import io
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_torch.data.read import read_scan
from ptycho_torch.data.storage import patterns
from ptycho_torch.data.storage.patterns import FilePatterns
from ptycho_torch.data.storage.scratch import BLOCK_BYTES, read_exactly, scan_first, slabs_of_stream, unpack
from ptycho_torch.simulate import save, simulate_scan


@pytest.mark.parametrize("kind", ["compressed npz", "chunked hdf5", "contiguous hdf5", "stored npz"])
def test_scratch_files_go_with_their_scan(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(patterns, "MEMORY_BUDGET_BYTES", 0)
    scan = simulate_scan(n=16, patterns=20, seed=1)
    path = save(scan, tmp_path / "scan.npz", compress=kind == "compressed npz")
    if "hdf5" in kind:
        with np.load(path) as source, h5py.File(tmp_path / "scan.h5", "w") as file:
            for name in source.files:
                chunks = (7, 5, 16) if name == "diff3d" and kind.startswith("chunked") else None
                value = source[name]
                file.create_dataset(
                    name, data=str(value) if value.dtype.kind == "U" else value, chunks=chunks
                )
        path = tmp_path / "scan.h5"
    read = read_scan(path)
    assert isinstance(read.patterns, FilePatterns)
    unpacked = kind in ("compressed npz", "chunked hdf5")
    assert len(list(scratch.iterdir())) == unpacked, "only what cannot be read by the row is unpacked"
    np.testing.assert_array_equal(read.amplitude([19, 3, 4]), scan.amplitude([19, 3, 4]))
    part = read.subset([2, 1])
    del read
    gc.collect()
    np.testing.assert_array_equal(part.amplitude([0]), scan.amplitude([2]))
    del part
    gc.collect()
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("swap", [False, True])
def test_an_unpacked_stack_has_its_scan_axis_first(
    tmp_path: Path, axis: int, swap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stack = np.random.default_rng(0).integers(0, 60000, (5, 6, 7)).astype(np.uint16)
    slabs = ((start, stack[start : start + 2]) for start in range(0, 5, 2))
    unpacked = unpack(slabs, stack.shape, stack.dtype, axis, swap, tmp_path / "scan.h5")
    first, second = (other for other in range(3) if other != axis)
    expected = stack.transpose(axis, *((second, first) if swap else (first, second)))
    np.testing.assert_array_equal(unpacked[:], expected, strict=True)
    np.testing.assert_array_equal(scan_first(stack, axis, swap), expected)


def test_a_stream_comes_in_slabs_of_whole_rows() -> None:
    stack = np.random.default_rng(0).random((9, 512, 512))
    slabs = list(slabs_of_stream(io.BytesIO(stack.tobytes()), stack.shape, stack.dtype))
    assert [start for start, _ in slabs] == [0, 4, 8]
    assert max(slab.nbytes for _, slab in slabs) == BLOCK_BYTES
    np.testing.assert_array_equal(np.concatenate([slab for _, slab in slabs]), stack)


def test_a_stream_that_ends_early_is_told() -> None:
    assert read_exactly(io.BytesIO(b"abcdef"), 4) == b"abcd"
    with pytest.raises(EOFError, match="6 of 9 bytes are there"):
        read_exactly(io.BytesIO(b"abcdef"), 9)
