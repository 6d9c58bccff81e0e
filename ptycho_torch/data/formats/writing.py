"""Arrays into files, without a stack in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage.patterns import blocks, to_amplitude


@dataclass(frozen=True, slots=True)
class StackOut:
    """The patterns of a scan on their way into a file, a block at a time: (M, N, N) in the asked domain.

    Counts stay in their stored dtype; intensity computed from amplitudes is float32, and so are amplitudes.
    """

    scan: ScanData
    domain: str
    zero_bad: bool = False

    def __post_init__(self) -> None:
        if self.domain not in ("amplitude", "intensity"):
            raise DataError(f"unknown domain {self.domain!r}", expected="amplitude or intensity")

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, N, N)."""
        return tuple(self.scan.patterns.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype in the file."""
        same = self.domain == self.scan.domain
        return self.scan.patterns.dtype if same else np.dtype(np.float32)

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, block) over the whole stack."""
        for start, raw in blocks(self.scan.patterns, what="writing"):
            if self.domain == self.scan.domain:
                block = np.array(raw) if self.zero_bad else raw
                if self.zero_bad:
                    block[:, ~self.scan.good_pixels] = 0
            else:
                block = to_amplitude(raw, self.scan.domain, self.scan.bad_flat)
                block = block if self.domain == "amplitude" else block * block
            yield start, block


def write_npz_arrays(path: Path, arrays: Mapping[str, Any], *, compress: bool = False) -> None:
    """Write arrays, stacks among them, as `numpy.savez` does, without holding a stack in memory.

    Raises:
        OSError: the disk is full or the path cannot be written.
    """
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method, allowZip64=True) as archive:
        for name, value in arrays.items():
            # Without a date of its own, the same scan gives the same bytes.
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = method
            with archive.open(info, "w", force_zip64=True) as stream:
                if not isinstance(value, StackOut):
                    np.lib.format.write_array(stream, np.asanyarray(value), allow_pickle=False)
                    continue
                header = {"descr": np.lib.format.dtype_to_descr(value.dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(stream, {**header, "shape": value.shape})
                for _, block in value.blocks():
                    stream.write(np.ascontiguousarray(block).data)


def write_hdf5_arrays(file: h5py.File, arrays: Mapping[str, Any], *, compression: str | None = None) -> None:
    """Write arrays, stacks among them, as datasets, without holding a stack in memory.

    Raises:
        OSError: the disk is full or the path cannot be written.
    """
    for name, value in arrays.items():
        if isinstance(value, StackOut):
            chunks = (1, *value.shape[1:])
            stack = file.create_dataset(name, value.shape, value.dtype, chunks=chunks, compression="lzf")
            for start, block in value.blocks():
                stack[start : start + len(block)] = block
        else:
            file.create_dataset(name, data=value, compression=compression if np.ndim(value) else None)


def scan_indexes(scan: ScanData) -> NDArray[np.int64]:
    """Return (M,) numbers of the patterns: those of the file they came from, else 0 to M - 1."""
    return np.arange(len(scan)) if scan.scan_index is None else scan.scan_index


def require_geometry(scan: ScanData, *names: str) -> list[float]:
    """Return the named lengths and energies of a scan.

    Raises:
        DataError: the target format needs one that the scan does not have.
    """
    missing = [name for name in names if not getattr(scan, name)]
    if missing:
        raise DataError(
            f"the target format needs {', '.join(missing)}, and the source does not have it",
            where=str(scan.source or "scan"),
            expected="physical geometry",
            fix="pass it to convert, for example --photon-energy-ev 8333 --detector-distance-m 1 "
            "--pixel-size-m 2e-8",
        )
    return [float(getattr(scan, name)) for name in names]
