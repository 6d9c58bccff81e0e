"""HDF5 headers that cannot be true are refused before anything is allocated; true ones are never refused."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.data.formats.cxi import write_cxi
from ptycho_torch.data.formats.ptychodus import write_ptychodus
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage import hdf5_limits as hdf5_storage
from ptycho_torch.data.storage.hdf5 import Hdf5Archive
from ptycho_torch.simulate import simulate_scan

HUGE = (2_000_000, 256, 256)
Change = Callable[[h5py.File, str], None]


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=8, patterns=6, photons=1e3, seed=1, bad_pixels=1)


@contextmanager
def room(nbytes: int) -> Iterator[None]:
    """Let this process allocate so many bytes more and no others, where the system can be told so."""
    used = Path("/proc/self/statm")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if used.exists():
        mapped = int(used.read_text().split()[0]) * resource.getpagesize()
        limit = mapped + nbytes if hard == resource.RLIM_INFINITY else min(mapped + nbytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def never_written(file: h5py.File, name: str) -> None:
    file.create_dataset(name, HUGE, "u2")


def one_chunk_written(file: h5py.File, name: str) -> None:
    stack = file.create_dataset(name, HUGE, "u2", chunks=(1, 256, 256), compression="gzip")
    stack[5] = np.arange(65536).reshape(256, 256)


def one_plain_chunk_written(file: h5py.File, name: str) -> None:
    file.create_dataset(name, HUGE, "u2", chunks=(1, 256, 256))[5] = 1


def a_large_chunk_never_written(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (6, 8, 8), "u2", chunks=(100, 2048, 2048), maxshape=(None, None, None))


CHANGES: list[Change] = [
    never_written,
    one_chunk_written,
    one_plain_chunk_written,
    a_large_chunk_never_written,
]
PAIR = [
    ("diffraction.h5", "patterns"),
    ("diffraction.h5", "bad_pixels"),
    ("diffraction.h5", "indexes"),
    ("product.h5", "object"),
    ("product.h5", "probe"),
    ("product.h5", "probe_position_x_m"),
]
CXI = [
    "entry_1/instrument_1/detector_1/data",
    "entry_1/instrument_1/detector_1/mask",
    "entry_1/sample_1/geometry_1/translation",
    "entry_1/image_1/data",
    "entry_1/image_2/data",
]


def replace_dataset(path: Path, name: str, change: Change) -> None:
    with h5py.File(path, "r+") as file:
        attributes = dict(file[name].attrs)
        del file[name]
        change(file, name)
        file[name].attrs.update(attributes)
    assert path.stat().st_size < 2**20, "the file itself is small"


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("half", "name"), PAIR)
def test_more_than_a_pair_can_hold(
    scan: ScanData, tmp_path: Path, half: str, name: str, change: Change
) -> None:
    write_ptychodus(scan, tmp_path / "pair")
    replace_dataset(tmp_path / "pair" / half, name, change)
    with room(256 * 2**20), pytest.raises(DataError, match=r"the header declares [0-9]+ MiB") as caught:
        read_scan(tmp_path / "pair")
    assert half in str(caught.value.findings[0].where)
    assert name in str(caught.value.findings[0].where)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", CXI)
def test_more_than_a_cxi_file_can_hold(scan: ScanData, tmp_path: Path, name: str, change: Change) -> None:
    path = write_cxi(scan, tmp_path / "scan.cxi")
    replace_dataset(path, name, change)
    with room(256 * 2**20), pytest.raises(DataError, match=r"the header declares [0-9]+ MiB") as caught:
        read_scan(path)
    # The stack is found through a link, whose name has the same last part.
    assert f"/{name.rpartition('/')[2]}'" in str(caught.value.findings[0].where)


def test_chunks_of_another_rank(tmp_path: Path) -> None:
    """libhdf5 2.0 allocates without end for this header."""
    path = tmp_path / "rank.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("mask", data=np.eye(8, dtype=bool), chunks=(8, 8))
    content = bytearray(path.read_bytes())
    space = bytes([1, 2]), (8).to_bytes(8, "little") * 2
    place = content.find(space[1]) - 8
    assert content[place : place + 2] == space[0], "version and rank of the dataspace"
    content[place + 1] = 1
    path.write_bytes(content)
    with room(256 * 2**20), pytest.raises(DataError, match=r"the chunks \(8, 8\) have 2 axes, the dataset 1"):
        Hdf5Archive(path).array("mask")


def test_parts_in_other_files(tmp_path: Path) -> None:
    (tmp_path / "private").write_bytes(bytes(512))
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["patterns"] = np.zeros((2, 8, 8))
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_dataset("external", (64,), "u1", external=[("private", 0, 64)])
        layout = h5py.VirtualLayout((2, 8, 8), "f8")
        layout[:] = h5py.VirtualSource("other.h5", "patterns", (2, 8, 8))
        file.create_virtual_dataset("virtual", layout)
    archive = Hdf5Archive(tmp_path / "scan.h5")
    with pytest.raises(DataError, match=r"the data lie in another file, 'other\.h5'"):
        archive.array("virtual")
    allowed = Hdf5Archive(tmp_path / "scan.h5", allow_links=True)
    np.testing.assert_array_equal(allowed.stack("virtual", 0), np.zeros((2, 8, 8)))
    for either in (archive, allowed):
        with pytest.raises(DataError, match="the data are raw bytes of another file, 'private'"):
            either.array("external")
    (tmp_path / "other.h5").unlink()
    with pytest.raises(DataError, match=r"in another file, 'other.h5', and it is not there"):
        allowed.array("virtual")


def test_a_virtual_dataset_inside_the_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_storage, "_UNCHECKED_BYTES", 0)
    stack = np.arange(128.0).reshape(2, 8, 8)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["part"] = stack
        layout = h5py.VirtualLayout(stack.shape, stack.dtype)
        layout[:] = h5py.VirtualSource(".", "part", stack.shape)
        file.create_virtual_dataset("whole", layout)
    np.testing.assert_array_equal(Hdf5Archive(tmp_path / "scan.h5").array("whole"), stack)


def test_numbers_of_variable_length(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_dataset("ragged", (3,), h5py.vlen_dtype(np.float64))
        file["word"] = "intensity"
    archive = Hdf5Archive(tmp_path / "scan.h5")
    with pytest.raises(DataError, match="of variable length"):
        archive.array("ragged")
    assert archive.array("word").item() == b"intensity"


def test_records(tmp_path: Path) -> None:
    """A complex number whose parts differ in kind, such as one flipped bit makes, is a record."""
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["object"] = np.zeros((3, 3), dtype=[("r", "f4"), ("i", "f8")])
        file["probe"] = np.ones((3, 3), dtype=complex)
    archive = Hdf5Archive(tmp_path / "scan.h5")
    with pytest.raises(DataError, match="the values have dtype"):
        archive.array("object")
    assert archive.array("probe").dtype == complex


def test_a_damaged_complex_number(tmp_path: Path) -> None:
    """libhdf5 2.0 overwrites its heap when it reads a real part of another kind, and aborts at closing."""
    path = tmp_path / "complex.h5"
    with h5py.File(path, "w") as file:
        file["object"] = np.ones((13, 13), dtype=complex)
    content = bytearray(path.read_bytes())
    bias = (1023).to_bytes(4, "little")
    assert content.count(bias) == 2, "exponent bias of real and imaginary part"
    content[content.find(bias)] = 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="the values have dtype"):
        Hdf5Archive(path).array("object")


STORAGES = [
    {},
    {"chunks": (1, 64, 64)},
    {"chunks": (1, 64, 64), "compression": "gzip"},
    {
        "chunks": (1, 64, 64),
        "compression": "gzip",
        "compression_opts": 9,
        "shuffle": True,
        "fletcher32": True,
    },
    {"chunks": (1, 64, 64), "compression": "lzf"},
    {"chunks": (1, 64, 64), "scaleoffset": 0},
    {"chunks": (7, 50, 50), "maxshape": (None, None, None)},
    {"chunks": (40, 64, 64), "compression": "gzip"},
]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("content", ["zeros", "noise", "partly written"])
def test_no_true_header_is_refused(
    tmp_path: Path, storage: dict[str, object], content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what compresses best, and a stack of which a tenth was written, as interrupted scans leave it."""
    monkeypatch.setattr(hdf5_storage, "_UNCHECKED_BYTES", 0)
    stack = np.zeros((40, 64, 64), dtype=np.uint16)
    if content != "zeros":
        stack[:4] = np.random.default_rng(0).poisson(9, (4, 64, 64))
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        dataset = file.create_dataset("patterns", stack.shape, stack.dtype, **storage)
        dataset[: 4 if content == "partly written" else 40] = stack[
            : 4 if content == "partly written" else 40
        ]
    archive = Hdf5Archive(tmp_path / "scan.h5")
    np.testing.assert_array_equal(archive.array("patterns"), stack)
    np.testing.assert_array_equal(np.asarray(archive.stack("patterns", 0)[:]), stack)


def test_what_this_package_writes_is_never_refused(
    scan: ScanData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5_storage, "_UNCHECKED_BYTES", 0)
    for path in (write_ptychodus(scan, tmp_path / "pair"), write_cxi(scan, tmp_path / "scan.cxi")):
        assert len(read_scan(path)) == len(scan)
