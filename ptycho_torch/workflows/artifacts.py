"""What a run leaves in its directory besides the manifest: reconstruction, images, report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_exec.files import atomic_path, file_sha256, write_atomically
from ptycho_torch.data.formats.ptychodus import write_product
from ptycho_torch.data.judge import far_from_others
from ptycho_torch.data.scan import ScanData
from ptycho_torch.evaluation import plots
from ptycho_torch.network.checkpoint import read_model
from ptycho_torch.reconstruction.refine import RefineResult

RECONSTRUCTION = "reconstruction.npz"
REPORT_DATA = "report.npz"
"""What the report shows and no other file holds."""
MEAN_OF = 64
"""At most so many patterns, spread over the scan, give the mean pattern that is shown."""


def write_reconstruction(
    folder: Path,
    obj: NDArray[np.complex64],
    coverage: NDArray[np.float32],
    scan: ScanData,
    probe: NDArray[np.complex64] | None = None,
    refinement: RefineResult | None = None,
    network_object: NDArray[np.complex64] | None = None,
) -> list[Path]:
    """Write `reconstruction.npz`, the images of amplitude and phase, and, where the geometry is known,
    a `product.h5` that Ptychodus opens; with a probe `probe.png`, with refined positions `positions.png`.

    Args:
        folder: an existing directory.
        obj: complex64 (H, W).
        coverage: float32 (H, W), summed patch weights; 0 is uncovered.
        scan: what was reconstructed, for the pixel size.
        probe: complex64 (P, N, N), where it was reconstructed too.
        refinement: what it found besides: positions, background, powers of the probe modes.
        network_object: complex64 (H, W), what a network gave before the refinement.
    """
    arrays: dict[str, Any] = {"object": obj.astype(np.complex64), "coverage": coverage.astype(np.float32)}
    if probe is not None:
        arrays["probe"] = probe
    if refinement is not None:
        arrays |= refinement.more_arrays()
    if network_object is not None:
        arrays["network_object"] = network_object
    if scan.pixel_size_m:
        arrays["pixel_size_m"] = np.float64(scan.pixel_size_m)
    target = folder / RECONSTRUCTION
    shown: dict[str, Any] = {"coverage": coverage, "pixel_size_m": scan.pixel_size_m}
    written = [
        write_arrays(target, arrays),
        plots.save_amplitude(obj, folder / "amplitude.png", **shown),
        plots.save_phase(obj, folder / "phase.png", **shown),
    ]
    if probe is not None:
        written.append(plots.save_probe(probe, folder / "probe.png"))
    if refinement is not None and refinement.positions_px is not None:
        at = scan.positions_px
        written.append(plots.save_positions(at, refinement.positions_px, folder / "positions.png"))
        scan = replace(scan, positions_px=refinement.positions_px)
    if scan.probe is not None and scan.pixel_size_m and scan.photon_energy_eV and scan.detector_distance_m:
        written.append(write_product(scan, folder / "product.h5", object_array=obj, probe=probe))
    return written


def write_report_data(folder: Path, scan: ScanData, **more: NDArray[Any]) -> Path:
    """Write `report.npz`: the scan's positions, those far from all others, its mean pattern, and `more`."""
    rows = np.unique(np.linspace(0, len(scan) - 1, num=min(len(scan), MEAN_OF)).astype(np.int64))
    mean = np.square(scan.amplitude(rows)).mean(axis=0)
    arrays = {
        "positions_px": scan.positions_px,
        "far": far_from_others(scan.positions_px, scan.n_pixels),
        "canvas_shape": np.array(scan.canvas_shape),
        "mean_pattern": np.where(scan.good_pixels, mean, np.nan).astype(np.float32),
    }
    return write_arrays(folder / REPORT_DATA, {**arrays, **more})


def write_arrays(target: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    """Write an NPZ file, whole or not at all."""
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return target


def read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an NPZ file that a run wrote; none where it is not there."""
    if not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def read_reconstruction(folder: str | Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a `reconstruction.npz`, given its path or its directory.

    Raises:
        DataError: it is missing or damaged.
    """
    given = Path(folder)
    file = given / RECONSTRUCTION if given.is_dir() else given
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise DataError(
            "there is no reconstruction to read",
            where=str(file),
            expected=f"an output directory of `ptycho-torch infer` with {RECONSTRUCTION}",
            fix="run `ptycho-torch infer` first",
        ) from error


def write_json(path: Path, data: Mapping[str, Any]) -> Path:
    """Write JSON atomically; what JSON does not know becomes text."""
    write_atomically(path, json.dumps(data, indent=2, default=str) + "\n")
    return path


def output_hashes(folder: Path, names: list[Path]) -> dict[str, str]:
    """Return the SHA-256 of each written file, by its path within the run directory."""
    return {str(path.relative_to(folder)): file_sha256(path) for path in sorted(names)}


def content_sha256(arrays: Mapping[str, Any]) -> str:
    """Return the SHA-256 of arrays or tensors: their names, types, shapes and bytes, in order of names.

    A file's hash would not do: it also covers paths, times and versions that a repeated run may not share.
    """
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        array = np.ascontiguousarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def model_weights_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a model file's weights.

    Raises:
        DataError: the file is missing or no model.
    """
    return content_sha256(read_model(path)["state_dict"])
