"""HDF5 files: what is there is read, damaged files and links to others are refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.formats import ptychodus
from ptycho_torch.data.formats.cxi import write_cxi
from ptycho_torch.data.formats.ptychodus import write_training
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage import patterns
from ptycho_torch.data.storage.hdf5 import Hdf5Archive
from ptycho_torch.data.storage.patterns import FilePatterns
from ptycho_torch.simulate import simulate_scan
from tests.torch.data.scan_files import (
    FUZZ,
    assert_one_clear_error,
    read_or_refuse,
    truncated,
)


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=16, patterns=25, photons=1e5, modes=2, seed=3, bad_pixels=2)


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "half an HDF5 file": (truncated(0.5, "h5"), "the file is truncated"),
}


@pytest.mark.parametrize("kind", BAD)
def test_every_bad_file_is_one_clear_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_one_clear_error(*BAD[kind], tmp_path, monkeypatch)


def test_links_to_other_files_are_refused(scan: ScanData, tmp_path: Path) -> None:
    ptychodus.write_ptychodus(scan, tmp_path)
    shutil.move(tmp_path / "diffraction.h5", tmp_path / "elsewhere.h5")
    with h5py.File(tmp_path / "diffraction.h5", "w") as file:
        file["patterns"] = h5py.ExternalLink(str(tmp_path / "elsewhere.h5"), "/patterns")
    with pytest.raises(DataError, match=r"the data lie in another file, .*elsewhere\.h5") as caught:
        read_scan(tmp_path)
    assert caught.value.findings[0].fix.startswith("set allow_links = true (--allow-links true)")
    read = read_scan(tmp_path, DataConfig(allow_links=True))
    np.testing.assert_array_equal(read.amplitude(range(len(scan))), scan.amplitude(range(len(scan))))
    (tmp_path / "elsewhere.h5").unlink()
    with pytest.raises(DataError, match=r"in another file, .*elsewhere\.h5', and it is not there"):
        read_scan(tmp_path, DataConfig(allow_links=True))


@pytest.mark.parametrize("code", [32001, 32004, 32008, 32015])
def test_filters_of_hdf5plugin_are_found_where_it_is_installed(code: int, tmp_path: Path) -> None:
    """In a process of its own, because a filter that was registered once stays."""
    pytest.importorskip("hdf5plugin", reason="needs the extra hdf5")
    make = "import h5py, hdf5plugin, numpy as np; h5py.File('f.h5', 'w').create_dataset("
    make += f"'stack', data=np.arange(4096).reshape(4, 32, 32), chunks=(2, 32, 32), compression={code})"
    read = "from pathlib import Path; from ptycho_torch.data.storage.hdf5 import Hdf5Archive; "
    read += "print(Hdf5Archive(Path('f.h5')).stack('stack', 0).sum())"
    for program, printed in ((make, ""), (read, "8386560\n")):
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (printed, "")


def test_a_filter_that_is_not_there_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((4, 4))
    creation.set_filter(32017, h5py.h5z.FLAG_OPTIONAL)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        space = h5py.h5s.create_simple((4, 4))
        h5py.h5d.create(file.id, b"probe", h5py.h5t.NATIVE_FLOAT, space, creation)
        file["probe"].id.write_direct_chunk((0, 0), bytes(16), filter_mask=0)
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: code < 256)
    words = r"compressed with the filter SZ \(32017\), which is not installed"
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)  # importing it fails
    with pytest.raises(DataError, match=words) as caught:
        Hdf5Archive(tmp_path / "scan.h5").array("probe")
    assert caught.value.findings[0].fix.startswith("pip install hdf5plugin")
    monkeypatch.setitem(sys.modules, "hdf5plugin", SimpleNamespace())  # without this filter
    with pytest.raises(DataError, match=words) as caught:
        Hdf5Archive(tmp_path / "scan.h5").array("probe")
    assert "h5repack -f NONE" in caught.value.findings[0].fix


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
def test_changed_bytes_are_read_or_refused(
    tmp_path: Path, cxi: bool, edits: list[tuple[float, int]], early: bool
) -> None:
    content = bytearray(good_hdf5(cxi))
    reach = min(6000, len(content)) if early else len(content)
    for place, value in edits:
        content[min(int(place * reach), reach - 1)] = value
    (tmp_path / "scan.h5").write_bytes(content)
    read_or_refuse(tmp_path / "scan.h5")


@pytest.mark.parametrize("share", np.linspace(0.02, 0.98, 25))
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = write_training(simulate_scan(n=8, patterns=6, photons=1e3, seed=1), tmp_path / "scan.h5")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert not read_or_refuse(path)


def test_datasets_and_attributes_are_read_as_they_were_written(tmp_path: Path) -> None:
    values = np.arange(6).reshape(2, 3)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["group/values"] = values
        file["group/values"].attrs["pixel_width_m"] = 2e-8
        file.attrs["name"] = np.bytes_(b"fly 7")
    archive = Hdf5Archive(tmp_path / "scan.h5")
    assert archive.names() == ["group"]
    assert "group/values" in archive
    assert "group" not in archive
    assert archive.member("group/values").shape == (2, 3)
    np.testing.assert_array_equal(archive.array("group/values"), values, strict=True)
    assert archive.attribute("group/values", "pixel_width_m") == 2e-8
    assert archive.attribute("", "name") == "fly 7"
    assert archive.attribute("nowhere", "name") is None
    with pytest.raises(DataError, match="cannot read"):
        archive.array("nowhere")


@pytest.mark.parametrize("chunks", [None, (3, 4, 5)])
@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("budget", [0, 2**25])
def test_a_stack_has_its_scan_axis_first(
    tmp_path: Path, chunks: tuple[int, ...] | None, axis: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "MEMORY_BUDGET_BYTES", budget)
    stack = np.random.default_rng(0).integers(0, 9, (7, 8, 9))
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_dataset("patterns", data=stack, chunks=chunks)
    read = Hdf5Archive(tmp_path / "scan.h5").stack("patterns", axis)
    assert isinstance(read, FilePatterns) is (budget == 0)
    expected = stack if axis == 0 else stack.transpose(2, 0, 1)
    np.testing.assert_array_equal(read[[5, 0]], expected[[5, 0]], strict=True)


def test_bits_that_libhdf5_has_to_move_are_moved_in_a_large_stack_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 bits of each 16, from the fifth on, as some cameras write them."""
    monkeypatch.setattr(patterns, "MEMORY_BUDGET_BYTES", 0)
    stack = np.random.default_rng(0).integers(0, 4096, (7, 8, 9), dtype=np.uint16)
    kind = h5py.h5t.STD_U16LE.copy()
    kind.set_precision(12)
    kind.set_offset(4)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        dataset = h5py.h5d.create(file.id, b"patterns", kind, h5py.h5s.create_simple(stack.shape))
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, stack)
    np.testing.assert_array_equal(Hdf5Archive(tmp_path / "scan.h5").stack("patterns", 0)[:], stack)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4", "<f4", ">f8", "<f2", "u1", "?", "<c8"])
def test_ordinary_numbers_are_read_where_they_lie(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "MEMORY_BUDGET_BYTES", 0)
    stack = np.random.default_rng(0).integers(0, 2, (7, 8, 9)).astype(dtype)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["patterns"] = stack
    read = Hdf5Archive(tmp_path / "scan.h5").stack("patterns", 0)
    assert isinstance(read, FilePatterns)
    assert read.path == tmp_path / "scan.h5"
    np.testing.assert_array_equal(read[:], stack, strict=True)
