"""Batches for training and inference, gathered at once rather than sample by sample.

Shape legend: n samples, M patterns, B samples of a batch, C patterns of a group, N x N pixels.

A batch is a dict of tensors:
    amplitude     (B, C, N, N) float32  measured amplitude in the file's units, bad pixels 0
    positions_px  (B, C, 2)    float32  [y, x] on the object canvas
    offsets_px    (B, C, 2)    float32  position minus the group's mean
    index         (B, C)       int64    pattern index within the scan
    labels        (B, C, N, N) complex64  true patches, only when the data have them
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset, Sampler

from ptycho_exec.errors import DataError
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage.patterns import MEMORY_BUDGET_BYTES

Batch = dict[str, torch.Tensor]


class PtychoDataset(Dataset[Batch]):
    """Groups of patterns of a scan, or of a plain dict of arrays, as batches.

    Args:
        source: a scan, or a mapping with `X` - (n, N, N, C) or (n, N, N) amplitude, channels last - and
            optionally `coords_relative`, `coords_nominal` ((n, 1, 2, C), (n, C, 2), (n, 2, C), (n, 1, 2)
            or (n, 2); [x, y] as in PtychoPINN) and `Y`, like `X` but complex. Other keys are left alone.
            `coords_relative` is a position minus its group's mean; where `coords_nominal` shows that it has
            the opposite sign, its sign is changed.
        groups: (n, C) pattern indices of each sample, for a scan; none makes each pattern a sample. The
            samples of a mapping are its rows, and `groups` must be none.
        memory_budget_bytes: amplitudes of a scan are computed once and kept up to this size.

    Raises:
        DataError: a mapping without `X`, shapes that do not agree, NaN or infinity, or an index that is
            not in the scan.
    """

    def __init__(
        self,
        source: ScanData | Mapping[str, Any],
        groups: ArrayLike | None = None,
        *,
        memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    ) -> None:
        super().__init__()
        self._scan: ScanData | None = None
        self._amplitude: torch.Tensor | None = None
        self._labels: torch.Tensor | None = None
        if isinstance(source, ScanData):
            self._set_scan(source, groups, memory_budget_bytes)
        elif groups is not None:
            raise DataError(
                "groups were given for a container",
                expected="a container whose rows are the samples already",
                fix="leave groups out, or pass a scan",
            )
        else:
            self._set_container(source)

    def _set_scan(self, scan: ScanData, groups: ArrayLike | None, budget: int) -> None:
        rows = np.arange(len(scan))[:, None] if groups is None else np.asarray(groups, dtype=np.int64)
        if rows.ndim != 2 or rows.size == 0 or rows.min() < 0 or rows.max() >= len(scan):
            raise DataError(
                f"groups of shape {rows.shape} do not index the {len(scan)} patterns of the scan",
                expected="(n, C) integers from 0 to M - 1",
                fix="make the groups from the positions of this scan",
            )
        self._index = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))
        positions = scan.positions_px[rows]
        self._set_positions(positions, positions - positions.mean(axis=1, keepdims=True))
        if len(scan) * scan.n_pixels**2 * 4 <= budget:
            self._amplitude = torch.from_numpy(scan.amplitude(np.arange(len(scan))))
            if scan.labels is not None:
                self._labels = torch.from_numpy(scan.label_patches(np.arange(len(scan))))
        if self._amplitude is None or (scan.labels is not None and self._labels is None):
            self._scan = scan

    def _set_container(self, container: Mapping[str, Any]) -> None:
        channels = _channels_first(container, "X", np.float32)
        n, C = channels.shape[:2]
        self._amplitude = torch.from_numpy(channels.reshape(n * C, *channels.shape[2:]))
        self._index = torch.arange(n * C).reshape(n, C)
        nominal = _coordinates(container, "coords_nominal", n, C)
        relative = _coordinates(container, "coords_relative", n, C)
        if relative is None and C > 1 and nominal is None:
            raise DataError(
                f"X has {C} channels and there are no coordinates",
                expected="coords_relative of shape (n, 1, 2, C)",
                fix="add the offsets of each channel from the group's mean",
            )
        whole = np.zeros((n, C, 2)) if nominal is None else nominal
        centered = whole - whole.mean(axis=1, keepdims=True)
        # Some programs store the mean minus the position; the nominal positions decide.
        opposite = C > 1 and relative is not None and np.allclose(relative, -centered, atol=1e-3)
        if relative is None or opposite:
            relative = centered
        self._set_positions(relative if nominal is None else nominal, relative)
        if container.get("Y") is not None:
            labels = _channels_first(container, "Y", np.complex64)
            if labels.shape != channels.shape:
                raise _shape_error("Y", labels.shape, f"{channels.shape}, as X")
            self._labels = torch.from_numpy(labels.reshape(n * C, *labels.shape[2:]))

    def _set_positions(self, positions: NDArray[np.float64], offsets: NDArray[np.float64]) -> None:
        self._positions = torch.from_numpy(positions.astype(np.float32))
        self._offsets = torch.from_numpy(offsets.astype(np.float32))

    def __len__(self) -> int:
        return len(self._index)

    @property
    def channels(self) -> int:
        """C, the number of patterns in a sample."""
        return int(self._index.shape[1])

    @property
    def n_pixels(self) -> int:
        """N, the side of a pattern."""
        if self._amplitude is not None:
            return int(self._amplitude.shape[-1])
        assert self._scan is not None
        return self._scan.n_pixels

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the batch of some samples; the loader calls this once per batch."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        rows = self._index[chosen]
        flat, shape = rows.reshape(-1), (*rows.shape, self.n_pixels, self.n_pixels)
        scan, labels = self._scan, self._labels
        if self._amplitude is not None:
            amplitude = self._amplitude[flat]
        else:
            assert scan is not None
            amplitude = torch.from_numpy(scan.amplitude(flat.numpy()))
        batch = {
            "amplitude": amplitude.reshape(shape),
            "positions_px": self._positions[chosen],
            "offsets_px": self._offsets[chosen],
            "index": rows,
        }
        if labels is not None:
            batch["labels"] = labels[flat].reshape(shape)
        elif scan is not None and scan.labels is not None:
            batch["labels"] = torch.from_numpy(scan.label_patches(flat.numpy())).reshape(shape)
        return batch

    def __getitem__(self, index: int) -> Batch:
        """Return one sample, without the batch axis."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return {key: value[0] for key, value in self.__getitems__([index % len(self)]).items()}


def collate(batch: Batch | Sequence[Batch]) -> Batch:
    """Pass a gathered batch through; stack samples that were fetched one by one."""
    if isinstance(batch, Mapping):
        return dict(batch)
    return {key: torch.stack([sample[key] for sample in batch]) for key in batch[0]}


class EpochShuffle(Sampler[int]):
    """Every sample once per epoch, in an order that depends on (seed, epoch) and on nothing else.

    A resumed run that sets the epoch sees the order that the uninterrupted run would have seen. Lightning
    calls `set_epoch` before each epoch.
    """

    def __init__(self, size: int, seed: int, epoch: int = 0) -> None:
        self._size, self._seed, self._epoch = size, seed, epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._size)
        return iter(order.tolist())


def _shape_error(key: str, shape: tuple[int, ...], expected: str) -> DataError:
    return DataError(
        f"{key} has shape {tuple(shape)}", where=f"container key {key!r}", expected=expected,
        fix="give one row per sample, channels last",
    )  # fmt: skip


def _numeric(value: Any, key: str, dtype: type[Any]) -> NDArray[Any]:
    data = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if data.dtype.kind not in ("iufc" if issubclass(dtype, np.complexfloating) else "iuf"):
        raise DataError(
            f"{key} has dtype {data.dtype}", where=f"container key {key!r}", expected="an array of numbers"
        )
    numbers = data.astype(dtype)
    if not np.isfinite(numbers).all():
        raise DataError(
            f"{key} holds NaN or infinite values", where=f"container key {key!r}",
            expected="finite numbers", fix="remove these samples, or mask the pixels",
        )  # fmt: skip
    return numbers


def _channels_first(container: Mapping[str, Any], key: str, dtype: type[Any]) -> NDArray[Any]:
    """Return a stack (n, C, N, N) from (n, N, N, C) or (n, N, N)."""
    if container.get(key) is None:
        raise DataError(
            f"the container has no {key}",
            where=f"container with keys {', '.join(map(str, container)) or 'none'}",
            expected=f"{key}: diffraction amplitude of shape (n, N, N, C) or (n, N, N)",
            fix="pass the measured patterns; they are never invented",
        )
    stack = _numeric(container[key], key, dtype)
    stack = stack[..., None] if stack.ndim == 3 else stack
    if stack.ndim != 4 or stack.shape[1] != stack.shape[2] or stack.size == 0:
        raise _shape_error(key, np.shape(container[key]), "(n, N, N, C) or (n, N, N)")
    return np.ascontiguousarray(np.moveaxis(stack, -1, 1))


def _coordinates(container: Mapping[str, Any], key: str, n: int, C: int) -> NDArray[np.float64] | None:
    """Return (n, C, 2) [y, x] coordinates from one of PtychoPINN's layouts of [x, y], or none."""
    if container.get(key) is None:
        return None
    given = _numeric(container[key], key, np.float64)
    if given.shape in ((n, 1, 2, C), (n, 2, C)):
        xy = np.swapaxes(given.reshape(n, 2, C), 1, 2)
    elif given.shape in ((n, C, 2), (n, C, 1, 2)):
        xy = given.reshape(n, C, 2)
    elif given.shape in ((n, 2), (n, 1, 2)) and C == 1:
        xy = given.reshape(n, 1, 2)
    else:
        raise _shape_error(key, given.shape, f"(n, 1, 2, C) = ({n}, 1, 2, {C}), or ({n}, {C}, 2)")
    return np.asarray(xy[..., ::-1])
