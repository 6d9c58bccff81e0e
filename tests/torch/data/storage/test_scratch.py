"""Stacks that are unpacked: in the order asked for, and nothing left behind."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_torch.data.read import read_scan
from ptycho_torch.data.storage import patterns
from ptycho_torch.data.storage.patterns import FilePatterns
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
