"""A stand-in with the peer's two commands is run, timed by its optimizer's steps, excused when it fails."""

import argparse
from pathlib import Path

import pytest

TRAIN = """
import argparse, pathlib, time, torch
parser = argparse.ArgumentParser()
for name in ("train_data_file", "test_data_file", "output_dir"):
    parser.add_argument("--" + name, required=True)
for name in ("max_epochs", "n_images", "gridsize", "batch_size"):
    parser.add_argument("--" + name, type=int, required=True)
parser.add_argument("--accelerator", required=True)
space = parser.parse_args()
weight = torch.nn.Parameter(torch.zeros(1))
optimizer = torch.optim.SGD([weight], lr=0.1)
for _ in range(space.max_epochs * space.n_images // space.batch_size):
    (weight - 1).square().sum().backward()
    optimizer.step()
    time.sleep(0.05)
out = pathlib.Path(space.output_dir)
out.mkdir(parents=True)
(out / "weights").write_text(str(float(weight.detach())))
"""
INFER = """
import argparse, pathlib
parser = argparse.ArgumentParser()
for name in ("model_path", "test_data", "output_dir", "n_images", "accelerator"):
    parser.add_argument("--" + name, required=True)
space = parser.parse_args()
assert (pathlib.Path(space.model_path) / "weights").is_file(), "train first"
print("reconstructed", space.n_images)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory like a checkout of the peer: its package shadows ours, as it must."""
    package = tmp_path / "upstream" / "ptycho_torch"
    package.mkdir(parents=True)
    for name, text in (("__init__", ""), ("train", TRAIN), ("inference", INFER)):
        (package / f"{name}.py").write_text(text)
    return package.parent


def _space(*words: str) -> argparse.Namespace:
    import peer

    parser = argparse.ArgumentParser()
    peer.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.slow
def test_training_and_inference_of_the_peer(checkout: Path, tmp_path: Path) -> None:
    import peer

    other = peer.Peer(_space("--peer", str(checkout)))
    trained = other.train(tmp_path / "scan.npz", tmp_path / "model", batch=4, patterns=16)
    assert other.note == ""
    assert trained is not None
    assert trained.first_step_s is not None
    assert 0 < trained.first_step_s < trained.child.wall_s
    assert trained.steps_per_s is not None
    assert 1 < trained.steps_per_s < 20  # each step sleeps for 0.05 s
    inferred = other.infer(tmp_path / "model", tmp_path / "scan.npz", tmp_path / "out", patterns=16)
    assert inferred is not None
    assert "reconstructed 16" in inferred.child.output
    assert inferred.first_step_s is None


def test_a_peer_that_fails_is_told_and_left_out(checkout: Path, tmp_path: Path) -> None:
    import peer

    other = peer.Peer(_space("--peer", str(checkout)))
    assert other.infer(tmp_path / "none", tmp_path / "scan.npz", tmp_path / "out", patterns=16) is None
    assert "the peer failed with exit code 1" in other.note
    assert "train first" in other.note


def test_without_a_peer_nothing_runs_and_nothing_is_said(tmp_path: Path) -> None:
    import peer

    other = peer.Peer(_space())
    assert other.train(tmp_path, tmp_path, batch=1, patterns=1) is None
    assert other.note == ""


def test_a_directory_that_is_no_checkout_is_told(tmp_path: Path) -> None:
    import peer

    other = peer.Peer(_space("--peer", str(tmp_path)))
    assert other.train(tmp_path, tmp_path, batch=1, patterns=1) is None
    assert "holds no package ptycho_torch" in other.note
