"""A SLURM of its own for tests: one or two nodes on this machine, in a folder, on free ports.

A plug-in of pytest: the fixtures `slurm` and `two_nodes` start one, or skip with the reason why not.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sinfo", "sbatch", "srun", "scontrol", "scancel")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
UP_S = 60
CREDENTIAL_S = 20
"""How long a job's credential counts, in which it must be launched; a requeued job starts after so long."""

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={credential_s}
SlurmctldPort={port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait=10
MinJobAge=600
JobRequeue=1
{nodes}
PartitionName=debug Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def why_not() -> str:
    """Return why no SLURM can be started here; empty where one can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: slurm-wlm and munge)"
    return "" if os.getuid() == 0 else "SLURM's own programs need root"


def until(reached: Callable[[], object], limit_s: float, what: str) -> None:
    """Wait for something, at most so long.

    Raises:
        TimeoutError: with what did not happen.
    """
    deadline = time.monotonic() + limit_s
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_s} s: {what}")
        time.sleep(0.1)


class Slurm:
    """A SLURM that runs between `up` and `down`.

    Args:
        folder: takes its configuration, state and logs; others must be able to enter it.
        nodes: 1 is this machine with two CPUs; 2 are the virtual nodes n1 and n2 with one CPU each.
    """

    def __init__(self, folder: Path, nodes: int = 1) -> None:
        self.folder, self.nodes = folder, nodes
        self.environ = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        if nodes == 2:  # nodes of one machine have no names that could be looked up
            self.environ["MASTER_ADDR"] = "127.0.0.1"
        self._started: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        for name in ("state", "munge", "spool.n1", "spool.n2"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)  # munged refuses a socket below a folder that others may write or not enter
        key = self.folder / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        self._write_conf()
        munge = self.folder / "munge"
        places = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid",
                  "seed-file": "seed"}  # fmt: skip
        words = [f"--{name}={munge / place}" for name, place in places.items()]
        self._start("munged", "--force", "--foreground", *words)
        until((munge / "socket").exists, UP_S, "munged answers")
        self._start("slurmctld", "-D", "-i", "-f", self.environ["SLURM_CONF"])
        for name in self._names():
            which = [] if self.nodes == 1 else ["-N", name]
            self._start("slurmd", "-D", *which, "-f", self.environ["SLURM_CONF"])
        until(self._idle, UP_S, f"all nodes are idle; see {self.folder}/slurmctld.log")

    def down(self) -> None:
        jobs = self.call("squeue", "-h", "-o", "%A", check=False).split()
        if jobs:
            self.call("scancel", *jobs, check=False)
            until(lambda: not self.call("squeue", "-h", check=False).strip(), UP_S, "no job is left")
        for process in reversed(self._started):
            process.terminate()
        for process in self._started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def call(self, *words: str, check: bool = True) -> str:
        """Run one of SLURM's commands and return what it prints."""
        done = subprocess.run(words, env=self.environ, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
        return done.stdout

    def submit(self, script: Path, *options: str) -> str:
        """Submit a job, which writes to `<script>.out`, and return its number."""
        output = f"--output={script}.out"
        return self.call("sbatch", "--parsable", "--open-mode=append", output, *options, str(script)).strip()

    def shown(self, job: str) -> dict[str, str]:
        """Return what SLURM says of a job."""
        words = self.call("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def ended(self, job: str) -> bool:
        """Return whether a job has ended, and was not requeued."""
        running = ("PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING", "REQUEUED")
        return self.shown(job)["JobState"] not in running

    def _names(self) -> list[str]:
        return ["n1", "n2"] if self.nodes == 2 else [_host()]

    def _idle(self) -> bool:
        return self.call("sinfo", "-h", "-t", "idle", "-o", "%D", check=False).strip() == str(self.nodes)

    def _write_conf(self) -> None:
        host, (port, node_port, *ports) = _host(), _free_ports(2 + self.nodes)
        common = "NodeAddr=127.0.0.1 State=UNKNOWN"
        rows = [f"NodeName={host} CPUs=2 RealMemory=1000 {common}"]
        if self.nodes == 2:
            each = f"NodeHostname={host} CPUs=1 RealMemory=500 {common}"
            rows = [f"NodeName={name} Port={p} {each}" for name, p in zip(self._names(), ports, strict=True)]
        text = CONF.format(
            host=host,
            folder=self.folder,
            port=port,
            node_port=node_port,
            nodes="\n".join(rows),
            credential_s=CREDENTIAL_S,
            names=",".join(self._names()),
        )
        Path(self.environ["SLURM_CONF"]).write_text(text)

    def _start(self, *words: str) -> None:
        log = (self.folder / f"{words[0]}.{len(self._started)}.out").open("wb")
        with log:
            process = subprocess.Popen(
                words,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self._started.append(process)


def _end_with_parent() -> None:
    """Let Linux end this process when the tests end, however they do."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


# --- fixtures ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """One node with two CPUs."""
    yield from _running(1)


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[Slurm]:
    """Two virtual nodes with one CPU each."""
    yield from _running(2)


def _running(nodes: int) -> Iterator[Slurm]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm_", ignore_cleanup_errors=True) as name:
        found = Slurm(Path(name) / "test", nodes)
        Path(name).chmod(0o755)
        try:
            found.up()
            yield found
        finally:
            found.down()
