"""Reading a scan: halves find each other; bad files end in a scan or in one clear error."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.formats import ptychodus
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import simulate_scan
from tests.torch.data.formats.same_scan import assert_same_scan
from tests.torch.data.scan_files import (
    FUZZ,
    SCAN,
    P,
    X,
    assert_one_clear_error,
    changed,
    good_bytes,
    npz,
    raw,
    read_or_refuse,
    with_member,
)

M, N = 20, 16
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty archive": (raw(b"PK\x05\x06" + b"\0" * 18), "no scan is in here"),
    "patterns missing": (npz(diff3d=None), "the patterns are missing"),
    "two stacks of patterns": (npz(diffraction=P), "both diff3d and diffraction"),
    "xcoords missing": (npz(xcoords=None), "xcoords is missing"),
    "ycoords missing": (npz(ycoords=None), "ycoords is missing"),
    "patterns of rank 2": (npz(diff3d=P[0]), r"shape \(16, 16\), 2 axes"),
    "patterns of rank 4": (npz(diff3d=P[..., None]), "4 axes"),
    "patterns not square": (npz(diff3d=P[:, :, :12], bad_pixels=None), "16 x 12 pixels, not square"),
    "x and y of different length": (npz(xcoords=X[:-1]), "the lengths differ: ycoords 20, xcoords 19"),
    "positions of rank 2": (npz(xcoords=X[:, None]), r"xcoords has shape \(20, 1\)"),
    "no positions": (npz(xcoords=X[:0], ycoords=X[:0]), "no positions"),
    "position NaN": (npz(xcoords=changed(X, 4, np.nan)), "1 positions are NaN or infinite, first at index 4"),
    "positions all the same": (npz(xcoords=X * 0, ycoords=X * 0), "all 20 positions are the same"),
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
    "unknown declaration": (npz(domain=np.array("energy")), "declares domain = 'energy'"),
    "pixel size as text": (npz(pixel_size_m=np.array("20nm")), "pixel_size_m is"),
    "pixel size of zero": (npz(pixel_size_m=0.0), "pixel_size_m is"),
    "a record dtype": (npz(diff3d=np.zeros((M, N, N), dtype=[("a", "f4")])), "have dtype"),
}


def test_there_are_at_least_thirty_kinds() -> None:
    assert len(BAD) >= 30


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=16, patterns=25, photons=1e5, modes=2, seed=3, bad_pixels=2)


@pytest.mark.parametrize("kind", BAD)
def test_every_bad_file_is_one_clear_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_one_clear_error(*BAD[kind], tmp_path, monkeypatch)


def test_names_of_halves_may_carry_a_prefix(scan: ScanData, tmp_path: Path) -> None:
    ptychodus.write_product(scan, tmp_path / "run7-product.h5")
    ptychodus.write_diffraction(scan, tmp_path / "run7-diffraction.npz")
    assert_same_scan(read_scan(tmp_path / "run7-product.h5"), scan)


@pytest.mark.parametrize(("half", "other"), [("product", "diffraction"), ("diffraction", "product")])
def test_a_lone_half_names_the_missing_one(scan: ScanData, tmp_path: Path, half: str, other: str) -> None:
    ptychodus.write_ptychodus(scan, tmp_path)
    (tmp_path / f"{other}.h5").unlink()
    with pytest.raises(DataError, match=f"its {other} half is not there"):
        read_scan(tmp_path / f"{half}.h5")


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
def test_changed_bytes_are_read_or_refused(
    tmp_path: Path, compress: bool, edits: list[tuple[float, int]], cut: float | None
) -> None:
    content = bytearray(good_bytes(compress))
    for place, value in edits:
        content[min(int(place * len(content)), len(content) - 1)] = value
    (tmp_path / "scan.npz").write_bytes(content if cut is None else content[: int(cut * len(content))])
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
def test_arbitrary_arrays_are_read_or_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...], dtype: str, fill: float
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        array = np.full(shape, fill).astype(dtype)
    stream = io.BytesIO()
    np.save(stream, array)
    with_member(tmp_path / "scan.npz", f"{name}.npy", stream.getvalue())
    read_or_refuse(tmp_path / "scan.npz")


def test_the_master_file_of_a_detector_is_named_and_what_is_told_works(tmp_path: Path) -> None:
    half = np.array_split(P, 2)
    for part, frames in enumerate(half, 1):
        with h5py.File(tmp_path / f"s_data_00000{part}.h5", "w") as file:
            file["entry/data/data"] = frames
    with h5py.File(tmp_path / "s_master.h5", "w") as file:
        for part in (1, 2):
            link = h5py.ExternalLink(f"s_data_00000{part}.h5", "entry/data/data")
            file[f"entry/data/data_00000{part}"] = link
    with pytest.raises(DataError, match="the master file of a detector") as caught:
        read_scan(tmp_path / "s_master.h5")
    options = "--allow-links true --map patterns=entry/data --map positions=FILE"
    assert options in caught.value.findings[0].fix
    np.savetxt(tmp_path / "positions.txt", SCAN.positions_px)
    config = DataConfig(allow_links=True, map={"patterns": "entry/data", "positions": "positions.txt"})
    scan = read_scan(tmp_path / "s_master.h5", config)
    np.testing.assert_array_equal(np.asarray(scan.patterns), P)
    np.testing.assert_allclose(np.diff(scan.positions_px, axis=0), np.diff(SCAN.positions_px, axis=0))
    others = {f"allow_links.s_data_00000{part}.h5" for part in (1, 2)} | {"map.positions"}
    assert set(scan.report["other_files"]) == others
