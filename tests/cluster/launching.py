"""Real runs on several processes: how tests start them, and what must be left when they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ptycho_exec.machine.children import Ended, run_limited
from ptycho_exec.record import read_manifest
from ptycho_torch.simulate import save, simulate_scan

LIMIT_S = 240
"""A run of these tests takes seconds; on a busy machine many. Beyond this it hangs."""
PROGRAM = (sys.executable, "-W", "ignore", "-m", "ptycho_torch")
TORCHRUN = (sys.executable, "-W", "ignore", "-m", "torch.distributed.run")
THOROUGH = pytest.mark.thorough
QUICK = ("--epochs", "2", "--enable-progress-bar", "false")


def environ(**more: str) -> dict[str, str]:
    """Return the variables of a run of a test; the package is the one under test, wherever it runs."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "",
        **more,
    }


def run(words: Sequence[str], folder: Path, **more: str) -> Ended:
    """Run a command to its end; a hang is a failure."""
    ended = run_limited(words, limit_s=LIMIT_S, cwd=folder, environ=environ(**more))
    assert not ended.stopped, ended.output
    return ended


def ranks_with(changes: str, folder: Path) -> list[str]:
    """Return words of torchrun for two processes, of which rank 1 first runs `changes` in a shell."""
    script = folder / "start.sh"
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$RANK" = 1 ]; then\n'
        f"{textwrap.indent(changes, '  ')}\n"
        "fi\n"
        f'exec "{sys.executable}" -W ignore -m ptycho_torch "$@"\n'
    )
    script.chmod(0o755)
    return [*TORCHRUN, "--nproc-per-node", "2", "--no-python", str(script)]


def complete(folder: Path, epochs: int = 2) -> dict[str, Any]:
    """Assert that a training completed with one record of all its epochs, and return the manifest."""
    manifest = read_manifest(folder)
    assert manifest["status"] == "completed"
    assert manifest["trained"]["epochs"] == epochs
    assert manifest["trained"]["optimizer_steps"] > 0
    assert {"model.ckpt", "loss.png", "settings.toml", "checkpoints"} <= {
        path.name for path in folder.iterdir()
    }
    return manifest


def left_running(folder: Path) -> list[str]:
    """Return the command lines of processes that still work on something below a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if int(entry.name) != os.getpid() and any(str(folder) in word for word in words[1:]):
            found.append(" ".join(words))
    return found


@dataclass
class Started:
    """A command that runs, whose output goes to a file."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, what: Callable[[], bool]) -> None:
        """Look until something is so; that the command ends before, or never comes to it, is a failure."""
        deadline = time.monotonic() + LIMIT_S
        while not what():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def end(self, limit_s: float = LIMIT_S) -> int:
        """Wait for the end and return the exit code."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end within {limit_s} s:\n{self.output}")
        finally:
            deadline = time.monotonic() + limit_s
            while (lives := self._group_lives()) and time.monotonic() < deadline:
                time.sleep(0.05)
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            assert not lives, f"something is left running:\n{self.output}"

    def _group_lives(self) -> bool:
        """Return whether anything that the command started still runs."""
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                state, _, group = entry.read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.process.pid and state != "Z":
                    return True
        return False

    def process_of_rank(self, rank: int) -> int:
        """Return the number of a rank's process: a child of a launcher or of Lightning, else the command."""
        found = [pid for pid in descendants(self.process.pid) if _has_rank(pid, rank)]
        return found[0] if found else self.process.pid


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they started."""
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def _has_rank(pid: int, rank: int) -> bool:
    try:
        variables = (Path("/proc") / str(pid) / "environ").read_bytes().decode().split("\0")
        words = (Path("/proc") / str(pid) / "cmdline").read_bytes().decode()
    except OSError:
        return False
    return f"LOCAL_RANK={rank}" in variables and "ptycho_torch" in words


def start(words: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None) -> Started:
    """Start a command in a group of its own, so that nothing of it is left when the test ends."""
    log = folder / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=environ(**(variables or {})),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Started(process, log)


def scan_file(folder: Path, seed: int = 0, patterns: int = 101) -> Path:
    """Write a small scan with an odd number of patterns."""
    path = folder / f"scan{seed}.npz"
    save(simulate_scan(n=32, patterns=patterns, seed=seed), path)
    return path
