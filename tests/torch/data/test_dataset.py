"""Dataset: one gather per batch, the documented tensors, seeded order, nothing made up."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader

from ptycho_exec.errors import DataError
from ptycho_torch.data.dataset import GlobalBatches, PtychoDataset, collate, samples_in
from ptycho_torch.data.formats.npz import write_npz
from ptycho_torch.data.grouping import group_neighbors
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage import patterns
from ptycho_torch.simulate import simulate_scan


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=16, patterns=30, seed=2, with_labels=True)


@pytest.mark.parametrize("budget", [0, 2**25])
def test_batch_of_a_scan(scan: ScanData, budget: int) -> None:
    groups = group_neighbors(scan.positions_px, gridsize=2)
    data = PtychoDataset(scan, groups, memory_budget_bytes=budget)
    batch = data.__getitems__([3, 0, 7])
    rows = groups[[3, 0, 7]]
    assert {key: (tuple(v.shape), v.dtype) for key, v in batch.items()} == {
        "amplitude": ((3, 4, 16, 16), torch.float32),
        "positions_px": ((3, 4, 2), torch.float32),
        "offsets_px": ((3, 4, 2), torch.float32),
        "index": ((3, 4), torch.int64),
        "labels": ((3, 4, 16, 16), torch.complex64),
    }
    np.testing.assert_array_equal(batch["index"], rows)
    np.testing.assert_array_equal(batch["amplitude"][1, 2], scan.amplitude([rows[1, 2]])[0])
    np.testing.assert_array_equal(batch["labels"][1, 2], scan.label_patches([rows[1, 2]])[0])
    np.testing.assert_allclose(batch["positions_px"], scan.positions_px[rows], rtol=1e-6)
    mean = scan.positions_px[rows].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(batch["offsets_px"], scan.positions_px[rows] - mean, atol=1e-5)
    assert data.channels == 4
    assert data.n_pixels == 16


def test_single_items_agree_with_the_gathered_batch(scan: ScanData) -> None:
    data = PtychoDataset(scan)
    together = data.__getitems__([4, 5])
    one_by_one = collate([data[4], data[5]])
    for key, value in together.items():
        assert torch.equal(value, one_by_one[key])
    with pytest.raises(IndexError):
        data[len(data)]


@pytest.mark.parametrize(("workers", "streamed"), [(0, False), (0, True), (2, True)])
def test_loader_gives_every_pattern_once(
    scan: ScanData, tmp_path: Path, workers: int, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if streamed:
        monkeypatch.setattr(patterns, "MEMORY_BUDGET_BYTES", 0)
    read = read_scan(write_npz(scan, tmp_path / "scan.npz"))
    data = PtychoDataset(read, memory_budget_bytes=0 if streamed else 2**25)
    loader = DataLoader(
        data,
        batch_size=8,
        sampler=GlobalBatches(data, 8, shuffle=True, seed=1),
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    batches = list(loader)
    index = torch.cat([batch["index"] for batch in batches]).flatten()
    amplitude = torch.cat([batch["amplitude"] for batch in batches])[:, 0]
    np.testing.assert_array_equal(np.sort(index), np.arange(30))
    np.testing.assert_array_equal(amplitude, scan.amplitude(index))


def test_the_loader_gathers_once_per_batch(scan: ScanData, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    gather = PtychoDataset.__getitems__

    def counted(self: PtychoDataset, indices: Any) -> Any:
        calls.append(len(indices))
        return gather(self, indices)

    monkeypatch.setattr(PtychoDataset, "__getitems__", counted)
    list(DataLoader(PtychoDataset(scan), batch_size=8, collate_fn=collate))
    assert calls == [8, 8, 8, 6]


def test_pickling_a_streamed_dataset_carries_no_patterns(
    scan: ScanData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "MEMORY_BUDGET_BYTES", 0)
    path = write_npz(simulate_scan(n=32, patterns=300), tmp_path / "scan.npz")
    data = PtychoDataset(read_scan(path), memory_budget_bytes=0)
    text = pickle.dumps(data)
    assert len(text) < 300 * 32 * 32
    copy = pickle.loads(text)
    assert torch.equal(copy.__getitems__([7])["amplitude"], data.__getitems__([7])["amplitude"])


def container(n: int = 6, C: int = 4, N: int = 8) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "X": rng.random((n, N, N, C), dtype=np.float32),
        "coords_relative": rng.normal(size=(n, 1, 2, C)),
        "local_offsets": "anything",
    }


def test_container_layouts_agree() -> None:
    source = container()
    xy = source["coords_relative"]
    expected = np.swapaxes(xy[:, 0], 1, 2)[..., ::-1]
    for layout in (xy, xy[:, 0], np.swapaxes(xy[:, 0], 1, 2)):
        batch = PtychoDataset(source | {"coords_relative": layout}).__getitems__([0, 5])
        np.testing.assert_allclose(batch["offsets_px"], expected[[0, 5]], rtol=1e-6)
        np.testing.assert_array_equal(batch["amplitude"], np.moveaxis(source["X"], -1, 1)[[0, 5]])


def test_the_sign_of_relative_coordinates_is_checked_with_the_nominal_ones() -> None:
    source = container()
    nominal = np.random.default_rng(1).uniform(0, 50, (6, 1, 2, 4))
    centered = nominal - nominal.mean(axis=3, keepdims=True)
    for relative in (centered, -centered, None):
        data = PtychoDataset(source | {"coords_nominal": nominal, "coords_relative": relative})
        batch = data.__getitems__([2])
        np.testing.assert_allclose(batch["offsets_px"][0], centered[2, 0].T[:, ::-1], atol=1e-4)
        np.testing.assert_allclose(batch["positions_px"][0], nominal[2, 0].T[:, ::-1], rtol=1e-6)


def test_container_of_single_patterns_needs_no_coordinates() -> None:
    data = PtychoDataset({"X": torch.ones(20, 64, 64), "coords_nominal": np.arange(40).reshape(20, 2)})
    batch = data.__getitems__([0, 3])
    assert batch["amplitude"].shape == (2, 1, 64, 64)
    assert not batch["offsets_px"].any()
    np.testing.assert_array_equal(batch["positions_px"][1, 0], [7, 6])
    bare = PtychoDataset({"X": np.ones((3, 8, 8))}).__getitems__([2])
    np.testing.assert_array_equal(bare["positions_px"], np.zeros((1, 1, 2)))


def test_container_labels() -> None:
    source = container()
    labels = np.exp(1j * source["X"])
    batch = PtychoDataset(source | {"Y": labels}).__getitems__([1])
    np.testing.assert_allclose(batch["labels"], np.moveaxis(labels, -1, 1)[[1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": None}, "the container has no X"),
        ({"X": np.ones((4, 8, 9))}, r"X has shape \(4, 8, 9\)"),
        ({"X": np.ones((0, 8, 8))}, "X has shape"),
        ({"X": np.full((2, 8, 8), np.nan)}, "X holds NaN"),
        ({"X": np.array(["a"])}, "X has dtype"),
        ({"X": np.ones((6, 8, 8, 4)), "coords_relative": None}, "X has 4 channels"),
        ({"coords_relative": np.ones((5, 1, 2, 4))}, "coords_relative has shape"),
        ({"Y": np.ones((6, 8, 8, 1))}, "Y has shape"),
    ],
)
def test_bad_containers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PtychoDataset(container() | changes)


def test_groups_must_index_the_scan(scan: ScanData) -> None:
    for groups in ([[0, 30]], [[-1]], [0, 1], np.empty((0, 1))):
        with pytest.raises(DataError, match="do not index"):
            PtychoDataset(scan, groups)
    with pytest.raises(DataError, match="groups were given"):
        PtychoDataset(container(), [[0]])


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int) -> GlobalBatches:
        return GlobalBatches(range(50), 8, shuffle=True, seed=seed)

    sampler = order(3)
    first = list(sampler)
    assert sorted(first) == list(range(50))
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert list(order(3)) != second
    later, other = order(3), order(4)
    for resumed in (later, other):
        resumed.set_epoch(1)
    assert list(later) == second
    assert list(other) != second
    assert len(sampler) == 50


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Make this process the one of a rank among so many."""

    def place(rank: int, world: int) -> None:
        for name, value in {"is_initialized": True, "get_rank": rank, "get_world_size": world}.items():
            monkeypatch.setattr(torch.distributed, name, lambda value=value: value)

    return place


@given(size=st.integers(1, 90), batch=st.integers(1, 9), world=st.integers(1, 5), shuffle=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_processes_share_the_batches_of_one(
    places: Callable[[int, int], None], size: int, batch: int, world: int, shuffle: bool
) -> None:
    one = list(GlobalBatches(range(size), batch * world, shuffle=shuffle, seed=5, shared=False))
    parts = []
    for rank in range(world):
        places(rank, world)
        sampler = GlobalBatches(range(size), batch, shuffle=shuffle, seed=5)
        part = list(BatchSampler(sampler, batch, drop_last=False))
        assert len(sampler) == sum(map(len, part))
        parts.append(part)
    assert len({len(part) for part in parts}) == 1
    together: list[int] = []
    for shares in zip(*parts, strict=True):
        real = [[index for index in share if index >= 0] for share in shares]
        assert all(len(share) == 1 for share, own in zip(shares, real, strict=True) if not own)
        together += [index for own in real for index in own]
        if shuffle:
            assert max(map(len, real)) - min(map(len, real)) <= 1
        elif len(together) < size:
            assert {len(own) for own in real} == {batch}
    assert together == one


def test_a_process_alone_has_all_samples_whatever_groups_there_are(
    places: Callable[[int, int], None],
) -> None:
    places(1, 2)
    assert list(GlobalBatches(range(5), 2, shuffle=False, shared=False)) == list(range(5))
    assert list(GlobalBatches(range(5), 2, shuffle=False)) == [2, 3, ~4]


def test_padding_is_a_sample_that_is_marked(scan: ScanData) -> None:
    data = PtychoDataset(scan)
    whole, padded = data.__getitems__([3, 7]), data.__getitems__([3, ~7])
    assert "padding" not in whole
    assert padded["padding"].tolist() == [False, True]
    assert torch.equal(padded["amplitude"], whole["amplitude"])
    assert (samples_in(whole), samples_in(padded)) == (2, 1)


def test_a_part_has_the_samples_of_its_rows_and_takes_padding(scan: ScanData) -> None:
    data = PtychoDataset(scan, np.arange(28).reshape(14, 2))
    part = data.part([2, 9, 5])
    assert (len(part), len(data)) == (3, 14)
    own, wanted = part.__getitems__([1, ~2]), data.__getitems__([9, 5])
    assert own.pop("padding").tolist() == [False, True]
    assert all(torch.equal(own[name], wanted[name]) for name in wanted)
