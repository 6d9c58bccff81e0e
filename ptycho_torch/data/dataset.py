"""Batches for training and inference, gathered at once rather than sample by sample.

Shape legend: n samples, M patterns, B samples of a batch, C patterns of a group, N x N pixels.

A batch is a dict of tensors:
    amplitude     (B, C, N, N) float32  measured amplitude in the file's units, bad pixels 0
    positions_px  (B, C, 2)    float32  [y, x] on the object canvas
    offsets_px    (B, C, 2)    float32  position minus the group's mean
    index         (B, C)       int64    pattern index within the scan
    labels        (B, C, N, N) complex64  true patches, only when the data have them
    padding       (B,)         bool     True where a sample only fills up; absent where none does
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

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

    def part(self, rows: ArrayLike) -> PtychoDataset:
        """Return the samples at these rows as a dataset, which shares the patterns with this one."""
        chosen = torch.as_tensor(np.asarray(rows, dtype=np.int64))
        part = copy.copy(self)
        for name in ("_index", "_positions", "_offsets"):
            setattr(part, name, getattr(self, name)[chosen])
        return part

    def order(self, batch_size: int, *, shuffle: bool, seed: int, shared: bool) -> GlobalBatches:
        """Return the order in which a loader asks for samples; see `GlobalBatches`."""
        return GlobalBatches(self, batch_size, shuffle=shuffle, seed=seed, shared=shared)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return a batch of samples; the loader calls this once per batch. ~i is sample i as padding."""
        asked = torch.as_tensor(indices, dtype=torch.int64)
        chosen = torch.where(asked < 0, ~asked, asked)
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
        if bool((asked < 0).any()):
            batch["padding"] = asked < 0
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


def samples_in(batch: Batch) -> int:
    """Return how many samples of a batch count: all but the padding."""
    padding = batch.get("padding")
    return len(batch["amplitude"]) - (0 if padding is None else int(padding.sum()))


class GlobalBatches(DistributedSampler[Any]):
    """Every sample once per epoch; several processes share what one process would take as one larger batch.

    The samples are in one order, that of (seed, epoch) where they are shuffled, which is cut into pieces of
    `batch_size` times the number of processes; of each, every process takes its part, in order of rank.
    So all have equally many batches. The last piece may be smaller: shuffled, it is divided evenly; in order,
    into batches as one process makes them. Who is left without a sample gets one that weighs nothing, as ~i.

    A `DistributedSampler`, because Lightning shuffles any other once more.

    Args:
        samples: what is ordered; its length counts.
        batch_size: samples of a batch of one process.
        shuffle: an order that depends on `seed` and epoch alone, so that a resumed run sees what the
            uninterrupted one would have seen. Lightning calls `set_epoch` before each epoch.
        shared: False where this process has all samples for itself, whatever group of processes there is.
    """

    def __init__(
        self, samples: Sized, batch_size: int, *, shuffle: bool, seed: int = 0, shared: bool = True
    ) -> None:
        super().__init__(samples, num_replicas=1, rank=0, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.batch_size, self.shared = batch_size, shared

    def _place(self) -> tuple[int, int]:
        """Return rank and number of processes, which are known only when the loader is asked."""
        dist = torch.distributed
        if self.shared and dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1

    def _share(self, piece: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this process's part of a piece, or padding."""
        rank, world = self._place()
        cuts = np.arange(1, world) * self.batch_size
        shares = np.array_split(piece, world if self.shuffle else cuts)
        return shares[rank] if len(shares[rank]) else ~piece[:1]

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size * self._place()[1])  # type: ignore[arg-type]
        return whole * self.batch_size + (len(self._share(np.arange(rest))) if rest else 0)

    def __iter__(self) -> Iterator[int]:
        size = len(self.dataset)  # type: ignore[arg-type]
        order = np.arange(size)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(size)
        step = self.batch_size * self._place()[1]
        for start in range(0, size, step):
            yield from self._share(order[start : start + step]).tolist()


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
