"""Write files in one step: complete under their name, or not there at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.data.scan import ScanData


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, renamed to it when the block ends well.

    Raises:
        DataError: the directory is missing or cannot be written, or the disk is full.
    """
    target = Path(path)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(target: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write the file: {error.strerror or error}",
        where=str(target),
        expected="an existing directory that you may write to, with room for the file",
        fix="choose another place with --out",
    )


def plain_patterns(scan: ScanData, domain: str) -> NDArray[Any]:
    """Return all patterns as one array in the asked domain.

    Counts stay in their stored dtype; intensity made from amplitudes is float32, and so are amplitudes.
    """
    if domain not in ("amplitude", "intensity"):
        raise DataError(f"unknown domain {domain!r}", expected="amplitude or intensity")
    if domain == scan.domain:
        return np.asarray(scan.patterns[:])
    amplitude = scan.amplitude(np.arange(len(scan)))
    return amplitude if domain == "amplitude" else amplitude * amplitude


def require_geometry(scan: ScanData, *names: str) -> list[float]:
    """Return the named lengths and energies of a scan.

    Raises:
        DataError: the target format needs one that the scan does not have.
    """
    missing = [name for name in names if not getattr(scan, name)]
    if missing:
        raise DataError(
            f"the target format needs {', '.join(missing)}, and the source does not say",
            where=str(scan.source or "scan"),
            expected="physical geometry",
            fix="pass it to convert, for example --photon-energy-eV 8333 --detector-distance-m 1 "
            "--pixel-size-m 2e-8",
        )
    return [float(getattr(scan, name)) for name in names]
