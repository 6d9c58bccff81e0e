"""A child process with limits of time and memory; when it ends, so does everything that it started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child process ended.

    Attributes:
        code: its exit code, negative for a signal; None when it was stopped.
        output: what it and its own children wrote to standard output and standard error.
        stopped: why it was stopped; empty when it ended by itself.
    """

    code: int | None
    output: str
    stopped: str = ""

    @property
    def last_line(self) -> str:
        """The last line of the output that is not blank; empty when there is none."""
        return next((line.strip() for line in reversed(self.output.splitlines()) if line.strip()), "")


def run_limited(
    argv: Sequence[str],
    *,
    limit_s: float,
    memory_mib: float | None = None,
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
    tick: Callable[[float], None] = lambda _: None,
) -> Ended:
    """Run a program; beyond its limits, or when this process is interrupted, kill it with all it started.

    Args:
        argv: the program and its arguments.
        limit_s: seconds that it may take.
        memory_mib: resident memory that the program itself may hold; None sets no limit.
        cwd, environ: its working directory and variables; None takes those of this process.
        tick: is called now and then while it runs, with the seconds since the last call.
    """
    now = time.monotonic()
    deadline, stopped = now + limit_s, ""
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            argv,
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while child.poll() is None and not stopped:
                used = 0.0 if memory_mib is None else resident_mib(child.pid)
                if memory_mib is not None and used > memory_mib:
                    stopped = f"stopped at {used:.0f} MiB, more than {memory_mib:.0f}"
                elif time.monotonic() > deadline:
                    stopped = f"stopped after {limit_s:.0f} s"
                else:
                    with suppress(subprocess.TimeoutExpired):
                        child.wait(POLL_S)
                now, last = time.monotonic(), now
                tick(now - last)
        finally:
            _end(child)
            child.wait()
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    return Ended(None if stopped else child.returncode, text, stopped)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        with suppress(OSError):
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(child.pid)], capture_output=True, check=False)
        child.kill()


def lives(pid: int) -> bool:
    """Return whether a process of this machine lives."""
    if os.name != "nt":
        with suppress(OSError):
            os.kill(pid, 0)
            return True
        return False
    # There, signal 0 would be a Ctrl-C.
    done = subprocess.run(["tasklist", "/FI", f"PID eq {pid}", "/NH"], capture_output=True, check=False)
    return str(pid).encode() in done.stdout.split()


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process now; 0 where the system does not report it."""
    try:
        match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("utf-8"))
    except OSError:
        return 0.0
    return int(match[1]) / 2**10 if match else 0.0
