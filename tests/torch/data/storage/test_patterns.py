"""Stacks that stay in their file: rows as asked, memory that does not grow, nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptycho_exec.errors import DataError
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.storage import patterns
from ptycho_torch.data.storage.patterns import FilePatterns, at_once, blocks, select_rows, to_amplitude
from ptycho_torch.simulate import save, simulate_scan

STACK = np.random.default_rng(0).integers(0, 1000, (40, 6, 6)).astype(np.uint16)


@pytest.fixture
def stack(tmp_path: Path) -> FilePatterns:
    path = tmp_path / "stack.bin"
    path.write_bytes(b"head" + STACK.tobytes())
    return FilePatterns(path, 4, STACK.shape, STACK.dtype)


@settings(max_examples=60)
@given(rows=st.lists(st.integers(-40, 39), max_size=30), start=st.integers(0, 40), step=st.integers(1, 5))
def test_rows_are_those_of_the_array(rows: list[int], start: int, step: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stack.bin"
        path.write_bytes(b"head" + STACK.tobytes())
        stack = FilePatterns(path, 4, STACK.shape, STACK.dtype)
        index = np.array(rows, dtype=np.int64)
        np.testing.assert_array_equal(stack[index], STACK[index], strict=True)
        np.testing.assert_array_equal(stack[start::step], STACK[start::step], strict=True)
        chosen = stack.select(index)
        np.testing.assert_array_equal(chosen[::-1], STACK[index][::-1], strict=True)
        assert chosen.shape == (len(rows), 6, 6)


def test_stack_behaves_like_an_array(stack: FilePatterns) -> None:
    assert (stack.shape, stack.ndim, stack.dtype, len(stack)) == ((40, 6, 6), 3, np.uint16, 40)
    assert stack.nbytes == STACK.nbytes
    np.testing.assert_array_equal(stack[3], STACK[3])
    np.testing.assert_array_equal(np.asarray(stack), STACK)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stack.select([5, 2])))[:], STACK[[5, 2]])
    np.testing.assert_array_equal(np.concatenate([b for _, b in blocks(stack, 500)]), STACK)
    np.testing.assert_array_equal(select_rows(stack, [1, 0])[:], select_rows(STACK, [1, 0]))
    for wrong in (40, [-41], np.array([0, 99])):
        with pytest.raises(IndexError):
            stack[wrong]
    with pytest.raises(TypeError, match="integers"):
        stack[np.ones(40, dtype=bool)]


def test_a_stack_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match="changed or truncated"):
        FilePatterns(tmp_path / "short.bin", 0, (3, 6, 6), np.dtype(np.uint16))


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "u4", "u8", "f2", "f4", "f8", ">u2", ">f4"])
def test_amplitude_is_rounded_once_whatever_the_dtype(dtype: str) -> None:
    counts = np.arange(200).reshape(2, 10, 10) % 128
    exact = np.sqrt(counts.astype(np.longdouble)).astype(np.float32)
    none = np.array([], dtype=np.intp)
    np.testing.assert_array_equal(to_amplitude(counts.astype(dtype), "intensity", none), exact, strict=True)


def test_large_counts_keep_their_precision() -> None:
    counts = np.array([[[2**31 + 129]]], dtype=np.uint32)
    none = np.array([], dtype=np.intp)
    assert to_amplitude(counts, "intensity", none)[0, 0, 0] == np.float32(np.sqrt(2.0**31 + 129))


def test_bad_pixels_are_zero_and_the_source_is_untouched() -> None:
    raw = np.full((2, 3, 3), -1.0, dtype=np.float32)
    raw[:, 0] = 4
    out = to_amplitude(raw, "intensity", np.arange(3, 9))
    np.testing.assert_array_equal(out[:, 0], 2)
    assert not out[:, 1:].any()
    assert (raw[:, 1:] == -1).all()


def test_a_full_disk_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "MEMORY_BUDGET_BYTES", 0)
    monkeypatch.setattr(patterns, "_FREE_RESERVE_BYTES", 2**60)
    path = save(simulate_scan(n=16, patterns=20, seed=1), tmp_path / "scan.npz", compress=True)
    with pytest.raises(DataError, match="GiB are free"):
        read_scan(path)


_MEASURE = """
import json, sys
import numpy as np
from ptycho_torch.data.read import read_scan
scan = read_scan(sys.argv[1])
order = np.random.default_rng(0).permutation(len(scan))
for start in range(0, len(order), 16):
    scan.amplitude(order[start : start + 16])
# Not getrusage: its figure begins with that of the parent process.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([len(scan), peak, "torch" in sys.modules]))
"""


def peak_kilobytes(path: Path, count: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    read, peak, torch_loaded = json.loads(done.stdout)
    assert read == count
    assert not torch_loaded, "reading a scan needs no torch"
    return int(peak)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the memory figures of /proc")
def test_memory_does_not_grow_with_the_scan(tmp_path: Path) -> None:
    """A scan 4 times as long, beyond the budget in both cases, takes less than 10 % more memory."""
    scan = simulate_scan(n=64, patterns=1000, seed=1)
    peaks = []
    for times in (5, 20):
        rows = np.tile(np.arange(1000), times)
        path = save(scan.subset(rows), tmp_path / f"{times}.npz")
        peaks.append(peak_kilobytes(path, 1000 * times))
        path.unlink()
    assert peaks[1] < 1.1 * peaks[0], f"{peaks[0] / 1024:.0f} MiB became {peaks[1] / 1024:.0f} MiB"


def test_a_file_that_changes_while_in_use_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "MEMORY_BUDGET_BYTES", 0)
    path = save(simulate_scan(n=16, patterns=20, seed=6), tmp_path / "scan.npz")
    scan = read_scan(path)
    assert len(scan.amplitude([19])) == 1
    sent = pickle.dumps(scan.patterns)
    os.truncate(path, 3000)
    with pytest.raises(DataError, match="changed or truncated"):
        scan.amplitude([19])
    with pytest.raises(DataError, match="changed or truncated"):
        pickle.loads(sent)


@pytest.mark.parametrize(
    ("n", "most", "count"), [(64, 64, 64), (64, 32, 32), (32, 64, 64), (256, 64, 4), (600, 64, 1)]
)
def test_large_patterns_are_worked_on_few_at_once(n: int, most: int, count: int) -> None:
    assert at_once(n, most) == count


@pytest.mark.parametrize("dtype", ["uint16", "float32", "float64"])
def test_bad_pixels_are_zero_however_the_stack_lies_in_memory(dtype: str) -> None:
    bad = np.array([3, 17])
    expected = to_amplitude(STACK.astype(dtype), "intensity", bad)
    assert not expected.reshape(len(STACK), -1)[:, bad].any()
    np.testing.assert_array_equal(
        to_amplitude(np.asfortranarray(STACK.astype(dtype)), "intensity", bad), expected
    )
    turned = np.ascontiguousarray(STACK.astype(dtype).swapaxes(1, 2)).swapaxes(1, 2)
    np.testing.assert_array_equal(to_amplitude(turned, "intensity", bad), expected)
