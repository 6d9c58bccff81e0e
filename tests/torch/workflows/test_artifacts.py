"""What a run leaves in its directory: arrays, pictures, and hashes that anybody can check."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_exec.errors import DataError
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.network.checkpoint import save_model
from ptycho_torch.workflows.artifacts import (
    content_sha256,
    model_weights_sha256,
    output_hashes,
    read_reconstruction,
    write_json,
    write_reconstruction,
)
from tests.torch.workflows.tiny_runs import science, untrained


def test_the_hash_covers_names_types_shapes_and_bytes() -> None:
    one = np.arange(6, dtype=np.float32)
    found = {
        content_sha256(arrays)
        for arrays in (
            {"a": one},
            {"b": one},
            {"a": one.astype(np.float64)},
            {"a": one.reshape(2, 3)},
            {"a": one + 1},
        )
    }
    assert len(found) == 5
    assert content_sha256({"a": one, "b": one}) == content_sha256({"b": one, "a": one.copy()})


def test_a_reconstruction_comes_back_as_it_was_written(scan: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    obj = (rng.normal(size=scan.canvas_shape) + 1j * rng.normal(size=scan.canvas_shape)).astype(np.complex64)
    coverage = rng.random(scan.canvas_shape, dtype=np.float32)
    written = write_reconstruction(tmp_path, obj, coverage, scan, scan.probe)
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    assert {path.name for path in written} == {
        *("reconstruction.npz", "amplitude.png", "phase.png", "probe.png", "product.h5"),
    }
    for place in (tmp_path, tmp_path / "reconstruction.npz"):
        arrays = read_reconstruction(place)
        assert arrays.keys() == {"object", "coverage", "probe", "pixel_size_m"}
        np.testing.assert_array_equal(arrays["object"], obj)
        np.testing.assert_array_equal(arrays["coverage"], coverage)
        np.testing.assert_array_equal(arrays["probe"], scan.probe)
        assert arrays["pixel_size_m"] == scan.pixel_size_m


def test_without_a_geometry_there_is_no_product_for_ptychodus(scan: Any, tmp_path: Path) -> None:
    unknown = replace(scan, detector_distance_m=None)
    obj = np.ones(scan.canvas_shape, np.complex64)
    written = write_reconstruction(tmp_path, obj, np.ones(scan.canvas_shape, np.float32), unknown)
    assert [path.name for path in written] == ["reconstruction.npz", "amplitude.png", "phase.png"]
    assert "probe" not in read_reconstruction(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 half a zip"])
def test_a_missing_or_damaged_reconstruction_is_told(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "reconstruction.npz").write_bytes(content)
    with pytest.raises(DataError, match="no reconstruction to read") as caught:
        read_reconstruction(tmp_path)
    assert str(tmp_path / "reconstruction.npz") in str(caught.value)


def test_outputs_are_hashed_by_their_path_in_the_run(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    files = [tmp_path / "logs" / "b.csv", tmp_path / "a.bin"]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 70_000)
    assert output_hashes(tmp_path, files) == {
        "a.bin": hashlib.sha256(b"\x01" * 70_000).hexdigest(),
        "logs/b.csv": hashlib.sha256(b"\x00" * 70_000).hexdigest(),
    }
    path = write_json(tmp_path / "a.json", {"folder": tmp_path, "rate": 0.5})
    assert json.loads(path.read_text()) == {"folder": str(tmp_path), "rate": 0.5}


def test_the_hash_of_a_model_is_that_of_its_weights_alone(scan: Any, tmp_path: Path) -> None:
    module = untrained(PtychoPINN_Lightning, scan)
    files = [save_model(tmp_path / f"{name}.ckpt", module, science(), {"scan": name}) for name in "ab"]
    assert files[0].read_bytes() != files[1].read_bytes()
    hashes = {model_weights_sha256(file) for file in files}
    assert hashes == {content_sha256(module.state_dict())}
    with torch.no_grad():
        next(module.network.parameters()).mul_(1.001)
    assert model_weights_sha256(save_model(tmp_path / "c.ckpt", module, science(), {})) not in hashes
