"""Other files that an HDF5 file leads to: only where that is allowed, and none that is not there."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.hdf5 import Hdf5Archive

STACK = np.arange(1, 65, dtype=np.int32).reshape(4, 4, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "other.h5", lambda file: file.update(data=STACK))
    STACK.tofile(tmp_path / "raw.bin")
    return tmp_path


def write(path: Path, *parts: Callable[[h5py.File], None]) -> Path:
    with h5py.File(path, "w") as file:
        for part in parts:
            part(file)
    return path


def virtual(name: str, source: str, dataset: str = "data") -> Callable[[h5py.File], None]:
    def make(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(STACK.shape, STACK.dtype)
        layout[:] = h5py.VirtualSource(source, dataset, STACK.shape, STACK.dtype)
        file.create_virtual_dataset(name, layout)

    return make


def external(name: str, source: str = "other.h5", target: str = "/data") -> Callable[[h5py.File], None]:
    return lambda file: file.update({name: h5py.ExternalLink(source, target)})


def soft(name: str, target: str) -> Callable[[h5py.File], None]:
    return lambda file: file.update({name: h5py.SoftLink(target)})


def numbered(file: h5py.File) -> None:
    """One pattern for each of part_0.h5, part_1.h5 ..., as many as there are."""
    unlimited = h5py.h5s.UNLIMITED
    space = h5py.h5s.create_simple(STACK.shape, (unlimited, 4, 4))
    space.select_hyperslab((0, 0, 0), (unlimited, 1, 1), (1, 4, 4), (1, 4, 4))
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_virtual(space, b"part_%b.h5", b"/data", h5py.h5s.create_simple((1, 4, 4)))
    whole = h5py.h5s.create_simple(STACK.shape, (unlimited, 4, 4))
    h5py.h5d.create(file.id, b"stack", h5py.h5t.py_create(STACK.dtype), whole, creation)


LEAD_ELSEWHERE = {
    "an external link": [external("stack")],
    "a soft link to an external link": [external("link"), soft("stack", "link")],
    "a soft link by a linked group": [external("entry/all", target="/"), soft("stack", "entry/all/data")],
    "a soft link in a group": [external("a/link"), soft("a/b", "link"), soft("stack", "a/./b")],
    "a virtual dataset": [virtual("stack", "other.h5")],
    "a virtual dataset of an external link": [external("link"), virtual("stack", ".", "link")],
    "a virtual dataset of a virtual dataset": [virtual("part", "other.h5"), virtual("stack", ".", "part")],
}  # fmt: skip


@pytest.mark.parametrize("way", LEAD_ELSEWHERE)
def test_other_files_are_read_only_where_that_is_allowed(folder: Path, way: str) -> None:
    path = write(folder / "scan.h5", *LEAD_ELSEWHERE[way])
    archive = Hdf5Archive(path)
    for read in (archive.array, archive.member, lambda name: archive.stack(name, 0)):
        with pytest.raises(DataError, match=r"the data lie in another file, 'other\.h5'") as caught:
            read("stack")
        assert caught.value.findings[0].fix.startswith("set allow_links = true")
    assert archive.linked == {}
    allowed = Hdf5Archive(path, allow_links=True)
    np.testing.assert_array_equal(allowed.array("stack"), STACK, strict=True)
    assert allowed.linked == {"other.h5": folder / "other.h5"}


def test_attributes_and_lists_of_other_files_are_not_read_without_permission(folder: Path) -> None:
    with h5py.File(folder / "other.h5", "a") as other:
        other["data"].attrs["units"] = "um"
    path = write(folder / "scan.h5", external("link", target="/"), soft("stack", "link/data"))
    with pytest.raises(DataError, match="the data lie in another file"):
        Hdf5Archive(path).attribute("stack", "units")
    with pytest.raises(DataError, match="the data lie in another file"):
        Hdf5Archive(path).members("link")
    assert Hdf5Archive(path, allow_links=True).attribute("stack", "units") == "um"
    assert [row.name for row in Hdf5Archive(path, allow_links=True).members("link")] == ["link/data"]


@pytest.mark.parametrize("allow_links", [False, True])
def test_raw_bytes_of_another_file_are_not_read_by_way_of_a_virtual_dataset(
    folder: Path, allow_links: bool
) -> None:
    def raw(file: h5py.File) -> None:
        file.create_dataset("part", STACK.shape, STACK.dtype, external=[(str(folder / "raw.bin"), 0, 256)])

    path = write(folder / "scan.h5", raw, virtual("stack", ".", "part"))
    with pytest.raises(DataError, match=r"the data are raw bytes of another file, .*raw\.bin"):
        Hdf5Archive(path, allow_links=allow_links).array("stack")


def test_links_within_a_file_are_followed(folder: Path) -> None:
    """Also where it calls itself by its name, and not where links lead nowhere or in a circle."""
    path = write(
        folder / "scan.h5",
        lambda file: file.update({"a/data": STACK}),
        soft("a/relative", "data"),
        soft("absolute", "/a/relative"),
        external("own_name", "scan.h5", "/absolute"),
        virtual("own_parts", "scan.h5", "/absolute"),
        soft("nowhere", "/b"),
        soft("circle", "circle"),
    )
    archive = Hdf5Archive(path)
    for name in ("a/relative", "absolute", "own_name", "own_parts"):
        np.testing.assert_array_equal(archive.array(name), STACK)
    assert "nowhere" not in archive
    assert "circle" not in archive
    assert archive.linked == {}


def test_the_files_of_files_are_known_by_the_names_that_lead_to_them(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "other.h5").rename(folder / "sub" / "raw.h5")
    write(folder / "sub" / "part.h5", virtual("data", "raw.h5"))
    archive = Hdf5Archive(write(folder / "scan.h5", external("stack", "sub/part.h5")), allow_links=True)
    np.testing.assert_array_equal(archive.stack("stack", 0), STACK)
    assert archive.linked == {
        "sub/part.h5": folder / "sub" / "part.h5",
        "sub/part.h5:raw.h5": folder / "sub" / "raw.h5",
    }


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (external("stack", "gone.h5"), r"another file, 'gone\.h5', and it is not there"),
        (virtual("stack", "gone.h5"), r"another file, 'gone\.h5', and it is not there"),
        (virtual("stack", "chain.h5"), r"another file, 'gone\.h5', and it is not there"),
        (external("stack", target="/gone"), r"another file, 'other\.h5', and it has no dataset '/gone'"),
        (virtual("stack", "other.h5", "gone"), r"another file, 'other\.h5', and it has no dataset 'gone'"),
        (virtual("stack", ".", "gone"), r"this file, and it has no dataset 'gone'"),
        (numbered, r"another file, 'part_0\.h5', and it is not there"),
    ],
)
def test_what_is_not_there_is_named_and_not_read_as_zeros(
    folder: Path, part: Callable[[h5py.File], None], words: str
) -> None:
    write(folder / "chain.h5", virtual("data", "gone.h5"))
    archive = Hdf5Archive(write(folder / "scan.h5", part), allow_links=True)
    with pytest.raises(DataError, match=words):
        archive.array("stack")
    archive.close()
    # The remedy: bring what is missing.
    write(folder / "gone.h5", lambda file: file.update(data=STACK))
    write(folder / "part_0.h5", lambda file: file.update(data=STACK[:1]))
    for name in ("other.h5", "scan.h5"):
        with h5py.File(folder / name, "a") as file:
            file["gone"] = STACK
    found = Hdf5Archive(folder / "scan.h5", allow_links=True).array("stack")
    np.testing.assert_array_equal(found, STACK[: len(found)])


def test_numbered_sources_are_all_that_are_there(folder: Path) -> None:
    for number in range(3):
        write(folder / f"part_{number}.h5", lambda file, n=number: file.update(data=STACK[n : n + 1]))
    path = write(folder / "scan.h5", numbered)
    with pytest.raises(DataError, match=r"the data lie in another file, 'part_0\.h5'"):
        Hdf5Archive(path).array("stack")
    archive = Hdf5Archive(path, allow_links=True)
    np.testing.assert_array_equal(archive.array("stack"), STACK[:3])
    assert list(archive.linked) == ["part_0.h5", "part_1.h5", "part_2.h5"]


def test_a_percent_sign_in_a_name_is_one(folder: Path) -> None:
    (folder / "other.h5").rename(folder / "50%b.h5")
    archive = Hdf5Archive(write(folder / "scan.h5", virtual("stack", "50%%b.h5")), allow_links=True)
    np.testing.assert_array_equal(archive.array("stack"), STACK)


@pytest.mark.parametrize("kind", ["link", "virtual"])
@pytest.mark.parametrize("relative", [True, False])
def test_other_files_are_looked_for_where_libhdf5_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, relative: bool
) -> None:
    """Each file has another number; the one that libhdf5 reads is taken away until none is left."""
    places = ["whole", "prefix", "beside_link", "here", "beside_file"]
    for number, place in enumerate(places):
        (tmp_path / place).mkdir()
        write(tmp_path / place / "part.h5", lambda file, n=number: file.update(data=STACK + 100 * n))
    named = "part.h5" if relative else str(tmp_path / "whole" / "part.h5")
    made = write(tmp_path / "beside_file" / "scan.h5", external("link", named), virtual("virtual", named))
    (tmp_path / "beside_link" / "scan.h5").symlink_to(made)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HDF5_EXT_PREFIX" if kind == "link" else "HDF5_VDS_PREFIX", str(tmp_path / "prefix"))
    for place in places[relative:]:
        archive = Hdf5Archive(tmp_path / "beside_link" / "scan.h5", allow_links=True)
        np.testing.assert_array_equal(archive.array(kind), STACK + 100 * places.index(place))
        assert list(archive.linked.values()) == [tmp_path / place / "part.h5"]
        archive.close()
        (tmp_path / place / "part.h5").unlink()
    with pytest.raises(DataError, match="and it is not there"):
        Hdf5Archive(tmp_path / "beside_link" / "scan.h5", allow_links=True).array(kind)


def test_a_virtual_dataset_of_itself_is_refused(folder: Path) -> None:
    """libhdf5 2.0 ends the process when it reads one."""
    path = write(folder / "scan.h5", virtual("stack", ".", "part"), virtual("part", ".", "stack"))
    with pytest.raises(DataError, match="the virtual dataset is made of itself"):
        Hdf5Archive(path).array("stack")


def test_too_many_files_are_an_error_and_no_zeros(folder: Path) -> None:
    """libhdf5 reads zeros from the files that it can open no more."""
    for number in range(4):
        write(folder / f"part_{number}.h5", lambda file, n=number: file.update(data=STACK[n : n + 1]))
    archive = Hdf5Archive(write(folder / "scan.h5", numbered), allow_links=True)
    soft_limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (folder / "other.h5").open() as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno() + 1, hard))
        try:
            with pytest.raises(DataError, match="too many files are open") as caught:
                archive.array("stack")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft_limit, hard))
    assert caught.value.findings[0].fix == "ulimit -n 4096"
    np.testing.assert_array_equal(archive.array("stack"), STACK)


@pytest.mark.parametrize("source", ["other.h5", "."])
def test_filters_of_the_sources_of_a_virtual_dataset_are_found(tmp_path: Path, source: str) -> None:
    """In a process of its own, because a filter that was registered once stays."""
    pytest.importorskip("hdf5plugin", reason="needs the extra hdf5")
    make = f"""
import h5py, hdf5plugin, numpy as np
with h5py.File({"other.h5" if source != "." else "scan.h5"!r}, "w") as file:
    file.create_dataset("data", data=np.arange(64).reshape(4, 4, 4), chunks=(1, 4, 4), compression=32008)
with h5py.File("scan.h5", "a") as file:
    layout = h5py.VirtualLayout((4, 4, 4), int)
    layout[:] = h5py.VirtualSource({source!r}, "data", (4, 4, 4))
    file.create_virtual_dataset("stack", layout)
"""
    read = "from pathlib import Path; from ptycho_torch.data.storage.hdf5 import Hdf5Archive; "
    read += "print(Hdf5Archive(Path('scan.h5'), allow_links=True).stack('stack', 0).sum())"
    for program, printed in ((make, ""), (read, "2016\n")):
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (printed, "")
