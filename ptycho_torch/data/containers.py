"""What callers hand over as data: a scan, a path, or a plain container of rows; and the samples it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig
from ptycho_torch.data.assemble import fit_canvas
from ptycho_torch.data.dataset import PtychoDataset
from ptycho_torch.data.grouping import group_neighbors, select_patterns
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData


def scan_of(data: Any, config: DataConfig) -> ScanData:
    """Return the scan that data mean: a path is read; a plain container's rows get a canvas of their own.

    Raises:
        DataError: the container has no absolute positions, without which nothing can be stitched.
    """
    if isinstance(data, ScanData):
        return data
    if isinstance(data, (str, Path)):
        return read_scan(data, config)
    container = _as_mapping(data)
    if container.get("coords_nominal") is None:
        raise DataError(
            "the container has no scan positions",
            where="coords_nominal",
            expected="(n, 2) or (n, 1, 2, C), in pixels of the object",
            fix="add the positions; patches cannot be stitched without them",
        )
    rows = PtychoDataset(container)
    batch = rows.__getitems__(range(len(rows)))
    n = int(batch["amplitude"].shape[-1])
    positions = batch["positions_px"].reshape(-1, 2).double().numpy()
    canvas, shift = fit_canvas(positions, n)
    _, good_pixels = optics_of(container)
    return ScanData(
        patterns=batch["amplitude"].reshape(-1, n, n).numpy(),
        domain="amplitude",
        positions_px=positions + shift,
        probe=None,
        object_guess=None,
        good_pixels=np.ones((n, n), bool) if good_pixels is None else good_pixels.numpy(),
        canvas_shape=canvas,
        position_shift_px=(float(shift[0]), float(shift[1])),
    )


def dataset_of(container: Any, data: DataConfig, seed: int) -> PtychoDataset:
    """Return the samples of a scan, grouped as the config says, or the rows of a plain container."""
    if isinstance(container, PtychoDataset):
        return container
    if not isinstance(container, ScanData):
        return PtychoDataset(_as_mapping(container))
    container = selected(container, data, seed)
    groups = group_neighbors(
        container.positions_px,
        gridsize=data.gridsize,
        neighbor_count=data.neighbor_count,
        n_groups=data.n_groups,
        seed=seed,
        method=data.grouping,
        min_distance_px=data.min_neighbor_distance_px,
        max_distance_px=data.max_neighbor_distance_px,
        sequential=data.sequential,
    )
    return PtychoDataset(container, groups)


def selected(scan: ScanData, data: DataConfig, seed: int) -> ScanData:
    """Return the part of a scan that bounds and `n_patterns` ask for, on the same canvas."""
    chosen = select_patterns(
        scan.positions_px,
        x_bounds=data.x_bounds,
        y_bounds=data.y_bounds,
        n_patterns=data.n_patterns,
        seed=seed,
    )
    return scan if len(chosen) == len(scan) else scan.subset(chosen)


def optics_of(container: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return probe (P, N, N) and good pixels (N, N), None where the container has none."""
    if isinstance(container, ScanData):
        if container.probe is None:
            raise DataError(
                "this scan has no probe",
                where=str(container.source or "the scan"),
                expected="a probe: complex (N, N) or (P, N, N)",
                fix="--probe FILE takes it from a result, a product, a scan or an array; "
                "--map probe=NAME says where the file has it",
            )
        return torch.from_numpy(container.probe), torch.from_numpy(container.good_pixels)
    if isinstance(container, PtychoDataset):
        return None, None
    arrays = _as_mapping(container)
    probe = next((arrays[key] for key in ("probe", "probeGuess") if arrays.get(key) is not None), None)
    good = arrays.get("good_pixels")
    return (
        None if probe is None else torch.as_tensor(np.asarray(probe), dtype=torch.complex64),
        None if good is None else torch.as_tensor(np.asarray(good), dtype=torch.bool),
    )


_CONTAINER_KEYS = ("X", "Y", "coords_relative", "coords_nominal", "probe", "probeGuess", "good_pixels")


def _as_mapping(container: Any) -> Mapping[str, Any]:
    if isinstance(container, Mapping):
        return container
    arrays = {name: getattr(container, name) for name in _CONTAINER_KEYS if hasattr(container, name)}
    if not arrays:
        raise DataError(
            f"cannot read data from a {type(container).__name__}",
            expected="a scan, or a container with X",
            fix="pass what ptycho_torch.read_scan returns, or a dict with X",
        )
    return arrays
