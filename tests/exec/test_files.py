"""Files are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ptycho_exec.errors import UserError
from ptycho_exec.files import atomic_path, file_sha256, write_atomically


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    write_atomically(path, "old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="No space left on device") as caught:
        write_atomically(path, "new")
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_block_is_its_own_and_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyError("b")

    with pytest.raises(KeyError):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_one_block(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the file"):
        write_atomically(tmp_path / "no" / "such" / "place", "text")


@pytest.mark.parametrize("place", ["file/a", "a" * 300])
def test_a_place_that_cannot_be_is_one_block(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="cannot write the file"):
        write_atomically(tmp_path / place, "text")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".model.ckpt.1.part"
    left.write_text("half")
    write_atomically(tmp_path / "model.ckpt", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    write_atomically(tmp_path / "file", data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
