"""Files whose arrays have names of their own: what they are said to hold, and what is proposed, works."""

from __future__ import annotations

import bz2
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.formats.contents import likely_map
from ptycho_torch.data.read import pattern_size, read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage import patterns as storage
from ptycho_torch.data.storage import scratch
from ptycho_torch.data.storage.open_file import open_archive
from ptycho_torch.simulate import simulate_scan

REAL = Path(__file__).parents[5] / "shared" / "data" / "real"
SCAN: ScanData = simulate_scan(n=16, patterns=30, photons=1e4, seed=6, bad_pixels=1)
P = np.asarray(SCAN.patterns)
YX = SCAN.positions_px
BAD = (~SCAN.good_pixels).astype(np.uint8)
assert SCAN.probe is not None
PROBE = SCAN.probe


def options(line: str) -> DataConfig:
    """Return what the options of a command line mean."""
    words, values = shlex.split(line), {}
    pairs = list(zip(words[::2], words[1::2], strict=True))
    values["map"] = dict(value.split("=", 1) for flag, value in pairs if flag == "--map")
    values |= {flag.removeprefix("--").replace("-", "_"): value for flag, value in pairs if flag != "--map"}
    if "scan_shape" in values:
        values["scan_shape"] = tuple(map(int, values["scan_shape"].split(",")))
    return DataConfig(**values)


def hdf5(path: Path, arrays: Mapping[str, Any], **attributes: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
            for key, value in attributes.items():
                file[name].attrs[key] = value
    return path


def matlab(path: Path, arrays: Mapping[str, Any]) -> Path:
    """Write arrays as MATLAB v7.3 does: behind 512 bytes, axes in reverse, complex numbers as records."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            stored = np.ascontiguousarray(np.asarray(array).T)
            if stored.dtype.kind == "c":
                record = np.empty(stored.shape, dtype=[("real", "<f8"), ("imag", "<f8")])
                record["real"], record["imag"] = stored.real, stored.imag
                stored = record
            file[name] = stored
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    content = bytearray(path.read_bytes())
    content[:19] = b"MATLAB 7.3 MAT-file"
    path.write_bytes(content)
    return path


def npz(path: Path, arrays: Mapping[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


STRANGERS: dict[str, Callable[[Path], Path]] = {
    "tike": lambda folder: npz(
        folder / "s.npz", {"data": P[None], "scan": YX[None], "probe": PROBE[None, None, None]}
    ),
    "nested groups": lambda folder: hdf5(
        folder / "s.h5",
        {
            "entry/instrument/frames": P,
            "entry/stage/pos": YX,
            "entry/guess/illumination": PROBE,
            "entry/instrument/mask": BAD,
            "entry/time": np.arange(30.0),
        },
    ),
    "scan axis last": lambda folder: npz(
        folder / "s.npz",
        {"diffract": np.moveaxis(P, 0, -1), "pos_y": YX[:, 0], "pos_x": YX[:, 1], "P": PROBE[0]},
    ),
    "names of another format": lambda folder: hdf5(
        folder / "s.h5", {"patterns": P, "positions": YX.T, "probe": PROBE[0]}
    ),
    "half of our names": lambda folder: npz(
        folder / "s.npz", {"diffraction": P, "translation": YX, "probeGuess": PROBE}
    ),
    "MATLAB": lambda folder: matlab(
        folder / "s.mat", {"dp": np.moveaxis(P, 0, -1), "positions": YX, "probe": PROBE[0], "mask": BAD}
    ),
    "MATLAB, scan axis first": lambda folder: matlab(
        folder / "s.mat", {"dp": P, "ypos": YX[:, :1], "xpos": YX[:, 1:], "probe": np.moveaxis(PROBE, 0, -1)}
    ),
    "a raster": lambda folder: hdf5(
        folder / "s.h5", {"data": P.reshape(5, 6, 16, 16), "coords": YX.reshape(5, 6, 2), "probe": PROBE}
    ),
    "a raster in Fortran order": lambda folder: npz(
        folder / "s.npz", {"data": np.asfortranarray(P.reshape(5, 6, 16, 16)), "coords": YX, "probe": PROBE}
    ),
}


def assert_same(scan: ScanData) -> None:
    np.testing.assert_array_equal(np.asarray(scan.patterns), P)
    np.testing.assert_allclose(scan.positions_px - scan.positions_px[0], YX - YX[0], atol=1e-9)
    np.testing.assert_array_equal(scan.probe, PROBE)


@pytest.mark.parametrize("budget", [storage.MEMORY_BUDGET_BYTES, 0], ids=["in memory", "in its file"])
@pytest.mark.parametrize("kind", STRANGERS)
def test_an_unknown_file_proposes_options_that_read_it(
    kind: str, budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MEMORY_BUDGET_BYTES", budget)
    monkeypatch.setattr(scratch, "BLOCK_BYTES", 4096)
    path = STRANGERS[kind](tmp_path)
    with pytest.raises(DataError) as caught:
        read_scan(path)
    finding = caught.value.findings[0]
    assert "x16x16 uint16" in finding.expected or "16x16x30 uint16" in finding.expected
    line = finding.fix[finding.fix.index("--map") :]
    config = options(line)
    assert_same(read_scan(path, config))
    assert pattern_size(path, config) == 16
    if "mask" in config.map:
        np.testing.assert_array_equal(~read_scan(path, config).good_pixels, BAD == 1)


def test_positions_are_read_in_the_order_and_unit_that_are_given(tmp_path: Path) -> None:
    path = npz(tmp_path / "s.npz", {"data": P, "scan": YX[:, ::-1] * 2e-2, "probe": PROBE})
    names = {"patterns": "data", "positions": "scan", "probe": "probe"}
    with pytest.raises(DataError, match="the size of an object pixel is not known") as caught:
        read_scan(path, DataConfig(map=names, positions_order="xy", positions_unit="um"))
    assert "--pixel-size-m" in caught.value.findings[0].fix
    config = DataConfig(map=names, positions_order="xy", positions_unit="um", pixel_size_m=2e-8)
    scan = read_scan(path, config)
    assert_same(scan)
    assert scan.pixel_size_m == 2e-8


def test_a_unit_in_the_file_is_read_with_the_positions(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "s.h5", {"scan": YX * 20}, units="nm")
    with h5py.File(path, "a") as file:
        file["data"], file["probe"], file["pixel_size_m"] = P, PROBE, 2e-8
    assert_same(read_scan(path, options("--map patterns=data --map positions=scan --map probe=probe")))


@pytest.mark.parametrize("kind", ["plain", "MATLAB"])
def test_a_raster_without_positions_asks_for_its_step(tmp_path: Path, kind: str) -> None:
    patterns = P.reshape(5, 6, 16, 16)
    path = hdf5(tmp_path / "s.h5", {"data": patterns, "probe": PROBE})
    if kind == "MATLAB":  # (ky, kx, ny, nx)
        path = matlab(tmp_path / "s.mat", {"data": patterns.transpose(2, 3, 0, 1), "probe": PROBE[0]})
    with pytest.raises(DataError) as caught:
        read_scan(path)
    line = caught.value.findings[0].fix
    assert line.endswith("--scan-step STEP")
    line = line[line.index("--map") :].replace("STEP", "3.0")
    config = options(line).model_copy(update={"scan_step": (2.0, 3.0), "scan_rotation_deg": 90.0})
    scan = read_scan(path, config)
    index = {frame.tobytes(): divmod(i, 6) for i, frame in enumerate(P)}
    for frame, (y, x) in zip(
        np.asarray(scan.patterns), scan.positions_px - scan.position_shift_px, strict=True
    ):
        row, column = index[frame.astype(P.dtype).tobytes()]
        np.testing.assert_allclose((y, x), (3 * column, -2 * row), atol=1e-9)


def test_a_stack_without_positions_takes_a_raster_of_a_given_shape(tmp_path: Path) -> None:
    path = npz(tmp_path / "s.npz", {"data": P, "probe": PROBE})
    with pytest.raises(DataError, match="the positions are missing") as caught:
        read_scan(path, options("--map patterns=data"))
    assert "--scan-step STEP --scan-shape ROWS,COLUMNS" in caught.value.findings[0].fix
    scan = read_scan(path, DataConfig(map={"patterns": "data"}, scan_step=2.0, scan_shape=(5, 6)))
    assert scan.probe is None
    assert len(scan) == 30


def test_parts_may_lie_in_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    path = hdf5(tmp_path / "deep" / "s.h5", {"f": P})
    np.savetxt(tmp_path / "deep" / "positions.csv", YX, delimiter=",", header="y,x")
    np.savez("probes.npz", first=PROBE, second=PROBE * 2)
    line = "--map patterns=f --map positions=positions.csv --map probe=probes.npz:first"
    assert_same(read_scan(path, options(line)))


def test_a_known_format_takes_single_parts_by_name(tmp_path: Path) -> None:
    arrays = {"diff3d": P, "ycoords": YX[:, 0], "xcoords": YX[:, 1], "other": PROBE, "dead": BAD}
    scan = read_scan(npz(tmp_path / "s.npz", arrays), options("--map probe=other --map mask=dead"))
    assert_same(scan)
    np.testing.assert_array_equal(~scan.good_pixels, BAD == 1)
    assert scan.report["format"] == "npz"


@pytest.mark.parametrize("name", ["dat", "entry/data", "data/x"])
def test_a_wrong_name_lists_the_right_ones(tmp_path: Path, name: str) -> None:
    path = STRANGERS["tike"](tmp_path)
    with pytest.raises(DataError, match=f"map names '{name}' for patterns") as caught:
        read_scan(path, DataConfig(map={"patterns": name, "positions": "scan"}))
    assert "data 1x30x16x16 uint16" in caught.value.findings[0].expected
    assert "--map patterns=data --map positions=scan" in caught.value.findings[0].fix


def test_a_file_without_patterns_proposes_nothing(tmp_path: Path) -> None:
    archive = open_archive(npz(tmp_path / "s.npz", {"a": np.arange(30.0), "b": PROBE[0]}))
    assert likely_map(archive) == ""
    archive.close()


TURNED = PROBE[0] * np.linspace(1, 2, 16)  # not the same when rows and columns are exchanged
COLUMN = np.zeros((16, 16), np.uint8)
COLUMN[:, 3] = 1


def assert_column_masked(scan: ScanData) -> None:
    """Column 3 is masked, and of the rest at most the pixel that is bad in all patterns."""
    masked = ~scan.good_pixels & (BAD == 0)
    np.testing.assert_array_equal(masked, COLUMN == 1)


def test_parts_of_a_matlab_file_are_the_same_by_map_and_as_a_file(tmp_path: Path) -> None:
    arrays = {"dp": P, "pos": YX, "mask": COLUMN, "probe": TURNED, "dark": COLUMN * 2.0}
    path = matlab(tmp_path / "s.mat", arrays)
    with h5py.File(path, "a") as file:
        del file["mask"]
        file["mask"] = COLUMN.T
        file["mask"].attrs["MATLAB_class"] = np.bytes_("logical")
    names = {"patterns": "dp", "positions": "pos"}
    mapped = read_scan(path, DataConfig(map={**names, "mask": "mask", "probe": "probe"}))
    one = DataConfig(map=names, mask_file=f"{path}:mask", probe=f"{path}:probe", canvas="positions")
    for scan in (mapped, read_scan(path, one)):
        assert_column_masked(scan)
        np.testing.assert_allclose(scan.probe, TURNED[None].astype(np.complex64))
    config = DataConfig(map=names, dark_file=f"{path}:dark", clip_negative=True)
    dark = np.maximum(P - COLUMN * 2.0, 0)
    np.testing.assert_array_equal(np.asarray(read_scan(path, config).patterns), dark)


def test_a_raster_of_matlab_takes_positions_from_files_of_either_kind(tmp_path: Path) -> None:
    """In MATLAB dp(ky, kx, ny, nx); positions (ny, nx) lie in another file, of MATLAB or not."""
    raster, grid = P.reshape(5, 6, 16, 16).transpose(2, 3, 0, 1), YX.reshape(5, 6, 2)
    path = matlab(tmp_path / "s.mat", {"dp": raster})
    matlab(tmp_path / "m.mat", {"y": grid[..., 0], "x": grid[..., 1], "yx": grid})
    hdf5(tmp_path / "h.h5", {"y": grid[..., 0], "x": grid[..., 1], "yx": grid})
    for file in ("m.mat", "h.h5"):
        for line in (f"--map positions_y={file}:y --map positions_x={file}:x", f"--map positions={file}:yx"):
            scan = read_scan(path, options(f"--map patterns=dp {line}"))
            place = {frame.tobytes(): YX[i] for i, frame in enumerate(P)}
            wanted = np.array([place[frame.astype(P.dtype).tobytes()] for frame in np.asarray(scan.patterns)])
            np.testing.assert_allclose(np.diff(scan.positions_px, axis=0), np.diff(wanted, axis=0), atol=1e-9)


def test_an_object_in_layers_or_parts_is_not_taken_in_silence(tmp_path: Path) -> None:
    assert SCAN.object_guess is not None
    wave, names = SCAN.object_guess, {"patterns": "data", "positions": "scan"}
    arrays = {
        "data": P,
        "scan": YX,
        "layers": np.stack([wave, wave * 2, wave * 3]),
        "last": np.stack([wave, wave * 2, wave * 3], axis=-1),
        "parts": np.stack([wave.real, wave.imag]),
    }
    path = npz(tmp_path / "s.npz", arrays)
    layers = read_scan(path, DataConfig(map={**names, "object": "layers"}))
    np.testing.assert_array_equal(layers.object_guess, wave)
    assert layers.report["warnings"].count("the file has 3 object layers; the first is used") == 1
    for name, words, wanted in (
        ("parts", "the object is two arrays of real numbers", "store a[0] + 1j * a[1],"),
        ("last", "the object has shape", "store numpy.moveaxis(a, -1, 0)"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            read_scan(path, DataConfig(map={**names, "object": name}))
        assert wanted in caught.value.findings[0].fix
    np.save(tmp_path / "a.npy", arrays["parts"][0] + 1j * arrays["parts"][1])
    np.save(tmp_path / "b.npy", np.moveaxis(arrays["last"], -1, 0))
    for name in ("a.npy", "b.npy"):
        fixed = read_scan(path, DataConfig(map={**names, "object": name}))
        np.testing.assert_array_equal(fixed.object_guess, wave)


def test_a_mask_for_each_pattern_is_combined_as_the_message_says(tmp_path: Path) -> None:
    masks = np.zeros((30, 16, 16), bool)
    masks[1:, :, 3] = True
    path = npz(tmp_path / "s.npz", {"data": P, "scan": YX, "mk": masks, "same": masks[1:]})
    line = "--map patterns=data --map positions=scan --map mask="
    with pytest.raises(DataError, match="one for each pattern") as caught:
        read_scan(path, options(line + "mk"))
    assert "save numpy.any(mask, axis=0)" in caught.value.findings[0].fix
    assert "--map mask=FILE" in caught.value.findings[0].fix
    np.save(tmp_path / "mask.npy", np.any(masks, axis=0))
    for name in ("mask.npy", "same"):
        assert_column_masked(read_scan(path, options(line + name)))


def test_a_raster_behind_the_pixels_is_made_where_it_is_declared(tmp_path: Path) -> None:
    path = npz(tmp_path / "s.npz", {"data": P.reshape(5, 6, 16, 16).transpose(2, 3, 0, 1)})
    scan = read_scan(path, DataConfig(map={"patterns": "data"}, scan_step=2.0, pattern_axes="last"))
    np.testing.assert_array_equal(np.asarray(scan.patterns), P)
    assert np.ptp(scan.positions_px, axis=0).tolist() == [8.0, 10.0]


def test_names_with_blanks_are_proposed_in_quotes(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "s.h5", {"my data": P, "the stage": YX, "a probe": PROBE})
    with pytest.raises(DataError) as caught:
        read_scan(path)
    line = caught.value.findings[0].fix
    assert_same(read_scan(path, options(line[line.index("--map") :])))
    with pytest.raises(DataError, match="the positions are missing") as caught:
        read_scan(npz(tmp_path / "p.npz", {"my data": P}), DataConfig(map={"patterns": "my data"}))
    assert "--map 'patterns=my data' --scan-step STEP" in caught.value.findings[0].fix


def test_the_published_siemens_star_is_read_by_the_options_that_it_proposes(tmp_path: Path) -> None:
    packed = REAL / "siemens-star-small.npz.bz2"
    if not packed.exists():
        pytest.skip("needs the real scans of the shared data (../shared/data/real)")
    path = tmp_path / "star.npz"
    path.write_bytes(bz2.decompress(packed.read_bytes()))
    with pytest.raises(DataError) as caught:
        read_scan(path)
    line = caught.value.findings[0].fix
    config = options(line[line.index("--map") :])
    assert "corner-frequency" in [row.code for row in read_scan(path, config).findings]
    scan = read_scan(path, config.model_copy(update={"zero_frequency": "corner"}))
    with np.load(path) as stored:
        data, positions = stored["data"][0], stored["scan"][0].astype(np.float64)
        np.testing.assert_array_equal(scan.probe, stored["probe"][0, 0, 0])
    np.testing.assert_array_equal(np.asarray(scan.patterns), np.fft.fftshift(data, axes=(1, 2)))
    np.testing.assert_allclose(scan.positions_px - scan.positions_px[0], positions - positions[0])
    assert [row.code for row in scan.findings] == []


def test_the_published_electron_scan_is_read_as_it_is_and_binned() -> None:
    path = REAL / "cryo4dstem_ptychojl.npz"
    if not path.exists():
        pytest.skip("needs the real scans of the shared data (../shared/data/real)")
    scan, binned = read_scan(path), read_scan(path, DataConfig(bin=2))
    assert (len(scan), scan.n_pixels, binned.n_pixels) == (484, 128, 64)
    assert np.asarray(binned.patterns).sum() == np.asarray(scan.patterns).sum(dtype=np.int64)
    assert binned.pixel_size_m == scan.pixel_size_m
