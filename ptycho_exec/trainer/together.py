"""Several processes of one run: how they find each other, agree before the first step, and end together.

Lightning is given a cluster environment of ours, so that `ptycho_exec.machine.ranks` alone decides who a
process is. Before the process group is made, all processes meet at a key-value store, whose wait has a limit
and a message, and compare what they were given. The store stays: what ended a process stands there.
"""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.multiprocessing.spawn import ProcessExitedException

from ptycho_exec.errors import Finding, SettingsError, UserError
from ptycho_exec.fields.model import Effect
from ptycho_exec.fields.spec import field_specs, format_value, table_specs
from ptycho_exec.interrupts import RESUME
from ptycho_exec.machine.facts import package_versions
from ptycho_exec.machine.ranks import Launcher, detect_launcher
from ptycho_exec.plan import Plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.handover import handing_over
from ptycho_exec.trainer.process import leave_group_at_exit, set_process_flags
from ptycho_exec.trainer.spawned import brought_back

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

logger = logging.getLogger(__name__)

POLL_S = 0.05
BEAT_S = 0.5
GRACE_S = 5.0
"""Seconds that processes have to say what ended them, before the others look who is missing."""

Identity = Mapping[str, tuple[Any, str]]
"""What one process was given: name -> value, and where it came from."""


# --- who a process is ---------------------------------------------------------------------------------------


class Launched(ClusterEnvironment):
    """The processes that a launcher started, for Lightning."""

    def __init__(self, launcher: Launcher) -> None:
        super().__init__()
        self.launcher = launcher

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.launcher.address

    @property
    def main_port(self) -> int:
        return self.launcher.port or 0

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.launcher.world_size

    def set_world_size(self, size: int) -> None:
        """Leave it: the launcher decides."""

    def global_rank(self) -> int:
        return self.launcher.rank

    def set_global_rank(self, rank: int) -> None:
        """Leave it: the launcher decides."""

    def local_rank(self) -> int:
        return self.launcher.local_rank

    def node_rank(self) -> int:
        return self.launcher.node


def environment_of(plan: Plan) -> ClusterEnvironment:
    """Return who this process is, for Lightning: one of a launcher's, or the first of Lightning's own."""
    launcher = plan.facts.launcher
    joined = launcher.kind in ("torchrun", "slurm") and launcher.in_step and launcher.world_size > 1
    return Launched(launcher) if joined else LightningEnvironment()


# --- what all must have alike -------------------------------------------------------------------------------


def identity_of(plan: Plan, more: Identity | None = None) -> dict[str, tuple[Any, str]]:
    """Return what must be the same on every process: settings, versions, and what the caller names.

    Settings that only change speed, such as the number of loader workers, may differ.
    """
    requested, effective = plan.requested, plan.effective
    rows: dict[str, tuple[Any, str]] = {}
    for name, spec in field_specs(type(requested)).items():
        if spec.effect is not Effect.PERFORMANCE:
            value = effective[name].value if spec.effect is Effect.NUMERICS else getattr(requested, name)
            inner = {
                f"{name}.{row.name}": value.get(row.name, row.default) for row in table_specs(spec).values()
            }
            rows |= {
                place: (item, requested.origin_of(place)) for place, item in (inner or {name: value}).items()
            }
    versions = {f"version of {name}": (text, "installed here") for name, text in package_versions().items()}
    return {**rows, **versions, **(more or {})}


def differences(cards: Sequence[Mapping[str, Sequence[str]]]) -> list[Finding]:
    """Return a finding for each name whose value is not that of rank 0 on some rank."""
    first, found = cards[0], []
    for name in dict.fromkeys(name for card in cards for name in card):
        value, origin = first.get(name, ("(nothing)", "rank 0 does not have it"))
        for rank, card in enumerate(cards):
            other, place = card.get(name, ("(nothing)", f"rank {rank} does not have it"))
            if other != value:
                found.append(
                    Finding(
                        f"{name} differs between the processes: {value} on rank 0, {other} on rank {rank}",
                        where=f"rank 0: {origin}; rank {rank}: {place}",
                        expected="the same on every process",
                        fix="give every process the same command, files and variables",
                        code="ranks-differ",
                        field=name,
                    )
                )
                break
    return found


# --- where they meet ----------------------------------------------------------------------------------------


@dataclass
class Company:
    """The processes of a run, connected by a store from before the first step until the end."""

    store: Any
    rank: int
    world_size: int
    where: str
    meetings: int = 0
    children: Sequence[Any] = field(default=(), repr=False)

    def key(self, *words: object) -> str:
        return "/".join(["ptycho", str(self.meetings), *map(str, words)])

    def report(self, reason: str) -> None:
        """Leave word of what ends this process."""
        with suppress(Exception):
            self.store.set(self.key("left", self.rank), reason)

    def reported(self) -> dict[int, str]:
        """Return what other processes said when they left."""
        found = {}
        for rank in range(self.world_size):
            with suppress(Exception):
                if rank != self.rank and self.store.check([self.key("left", rank)]):
                    found[rank] = self.store.get(self.key("left", rank)).decode()
        return found

    def missing(self) -> dict[int, str]:
        """Return the other processes that ended, with their own words, or empty ones where they said none.

        Those that are still there show it by their beats, also while they wait in a collective operation.
        """
        try:
            found = self._known() or self._silent()
            self.store.set(self.key("lost"), json.dumps(found))
        except RuntimeError:  # of which torch's errors of a store are
            # Without the store only the process that hosted it, or the only other one, is known.
            others = [rank for rank in range(self.world_size) if rank != self.rank]
            hosted = self.rank and not _has_agent()
            return {0: ""} if hosted else dict.fromkeys(others if len(others) == 1 else (), "")
        return found

    def _known(self) -> dict[int, str]:
        """Return what was said, what another process found out, or which children have ended."""
        if said := self.reported():
            return said
        if self.store.check([self.key("lost")]):
            rows = json.loads(self.store.get(self.key("lost")))
            return {int(rank): words for rank, words in rows.items() if int(rank) != self.rank}
        return {rank: "" for rank, child in enumerate(self.children, start=1) if child.poll() is not None}

    def _silent(self) -> dict[int, str]:
        """Watch the beats of the others for a few seconds; return those of whom none came."""
        silent = [rank for rank in range(self.world_size) if rank != self.rank]
        before = {rank: self._beat(rank) for rank in silent}
        deadline = time.monotonic() + GRACE_S
        while silent and time.monotonic() < deadline:
            time.sleep(POLL_S)
            if known := self._known():
                return known
            silent = [rank for rank in silent if self._beat(rank) == before[rank]]
        return dict.fromkeys(silent, "")

    def _beat(self, rank: int) -> bytes:
        key = f"ptycho/beat/{rank}"
        return bytes(self.store.get(key)) if self.store.check([key]) else b""

    def beat(self) -> None:
        """Show from now on, in a thread with a connection of its own, that this process is there.

        It ends before the interpreter does: a thread that comes back from C++ later than that aborts it.
        """
        address, _, port = self.where.rpartition(":")
        ends = threading.Event()

        def beats() -> None:
            with suppress(Exception):  # without the store the run is over
                store = TCPStore(address, int(port), self.world_size, is_master=False, wait_for_workers=False)
                for count in itertools.count():
                    store.set(f"ptycho/beat/{self.rank}", str(count))
                    if ends.wait(BEAT_S):
                        return

        thread = threading.Thread(target=beats, daemon=True, name="beats")
        thread.start()

        def end() -> None:
            ends.set()
            thread.join(GRACE_S)

        atexit.register(end)


_company: Company | None = None


def company() -> Company | None:
    """Return the processes that this one belongs to, once they have met."""
    return _company


def meet(
    environment: ClusterEnvironment, *, identity: Identity, limit_s: float, children: Sequence[Any] = ()
) -> Company:
    """Meet the other processes within a limit, and compare what each was given.

    Args:
        identity: of this process; see `identity_of`.
        limit_s: seconds to wait for the others.
        children: the processes that this one started, which may end before they come.

    Raises:
        UserError: some did not come, or the address cannot be reached; with address, port and ranks.
        SettingsError: on every rank, what differs between them.
    """
    global _company
    if _company is None:
        _company = _connect(environment, limit_s)
    found = _company
    found.meetings += 1
    found.children = children
    card = {name: (format_value(value), place) for name, (value, place) in identity.items()}
    found.store.set(found.key("card", found.rank), json.dumps(card))
    if found.rank == 0:
        verdict = _verdict(found, limit_s)
        found.store.set(found.key("verdict"), json.dumps([finding.to_json() for finding in verdict]))
    else:
        verdict = [Finding(**row) for row in json.loads(_awaited(found, "verdict", limit_s))]
    if verdict:
        kind = SettingsError if verdict[0].code == "ranks-differ" else UserError
        error = kind.from_findings(verdict)
        error.spoken_by = 0
        raise error
    return found


def decided_by_first(decide: Callable[[], dict[str, Any]], limit_s: float) -> dict[str, Any]:
    """Return what the first process decides, as JSON data, in every process that a launcher started.

    Elsewhere the first process is the only one yet.

    Raises:
        UserError: what `decide` raised, on all of them; or rank 0 did not answer.
    """
    global _company
    launcher = detect_launcher(os.environ)
    if launcher.kind not in ("torchrun", "slurm") or not launcher.in_step or launcher.world_size == 1:
        return decide()
    found = _company = _company or _connect(Launched(launcher), limit_s)
    if found.rank:
        answer: dict[str, Any] = json.loads(_awaited(found, "decided", limit_s))
        if "findings" in answer:
            error = UserError.from_findings([Finding(**row) for row in answer["findings"]])
            error.exit_code, error.spoken_by = answer["exit_code"], 0
            raise error
        return dict(answer["decided"])
    failed = Finding("rank 0 failed", fix="look at what it says", code="failed")
    answer = {"findings": [failed.to_json()], "exit_code": 1}
    try:
        answer = {"decided": decide()}
    except UserError as error:
        findings = [finding.to_json() for finding in error.findings]
        answer = {"findings": findings, "exit_code": error.exit_code}
        raise
    finally:
        found.store.set(found.key("decided"), json.dumps(answer))
    return dict(answer["decided"])


def _connect(environment: ClusterEnvironment, limit_s: float) -> Company:
    address, port = environment.main_address, environment.main_port
    rank, world = environment.global_rank(), environment.world_size()
    where = f"{address}:{port}"
    try:
        socket.getaddrinfo(address, port)
    except OSError as error:
        raise UserError(
            f"the address of the first process is not known here: {error.strerror or error}",
            where=f"MASTER_ADDR={address}",
            expected="a name or address of the first node that every node can reach",
            fix="correct MASTER_ADDR, or unset it and let the launcher choose",
        ) from None
    serves = rank == 0 and not _has_agent()
    try:
        store = TCPStore(
            address,
            port,
            world,
            is_master=serves,
            timeout=timedelta(seconds=limit_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except Exception as error:
        raise _unreachable(error, where, rank, limit_s) from None
    found = Company(store, rank, world, where)
    found.beat()
    return found


def _has_agent() -> bool:
    """Return whether torchrun's own process hosts the store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _unreachable(error: Exception, where: str, rank: int, limit_s: float) -> UserError:
    if "address already in use" in str(error).lower():
        return UserError(
            "the port at which the processes of this run would meet is in use",
            where=where,
            expected="a free port",
            fix="set MASTER_PORT to a free port, the same on every process",
        )
    return UserError(
        f"rank {rank} could not reach rank 0 within {limit_s:g} s",
        where=where,
        expected="rank 0 running there, and a network that lets this port through",
        fix="look at what rank 0 says; check MASTER_ADDR and MASTER_PORT, or raise start_timeout",
    )


def _verdict(found: Company, limit_s: float) -> list[Finding]:
    """Wait for every card, and return what differs, or who is missing."""
    absent, deadline = list(range(1, found.world_size)), time.monotonic() + limit_s
    while absent and time.monotonic() < deadline:
        absent = [rank for rank in absent if not found.store.check([found.key("card", rank)])]
        ended = {
            rank: f"ended with code {child.poll()}"
            for rank, child in enumerate(found.children, start=1)
            if rank in absent and child.poll() is not None
        }
        ended |= found.reported()
        if ended:
            return [_missing_finding(found, ended, "before the first step")]
        time.sleep(POLL_S if absent else 0)
    if absent:
        return [_missing_finding(found, dict.fromkeys(absent, ""), f"not there after {limit_s:g} s")]
    cards = [json.loads(found.store.get(found.key("card", rank))) for rank in range(found.world_size)]
    return differences(cards)


def _awaited(found: Company, what: str, limit_s: float) -> bytes:
    """Return what rank zero leaves; it waits as long for the last process to come as this one may for it."""
    try:
        found.store.wait([found.key(what)], timedelta(seconds=limit_s + GRACE_S))
        return bytes(found.store.get(found.key(what)))
    except RuntimeError:  # of which torch's errors of a store are, its time limit among them
        raise UserError(
            f"rank 0 did not answer rank {found.rank} within {limit_s:g} s",
            where=found.where,
            fix="look at what rank 0 says; raise start_timeout if it is only slow",
        ) from None


def _missing_finding(found: Company, missing: Mapping[int, str], when: str) -> Finding:
    ranks = ", ".join(map(str, sorted(missing)))
    words = "; ".join(f"rank {rank}: {text}" for rank, text in sorted(missing.items()) if text)
    several = len(missing) > 1
    return Finding(
        f"rank{'s' if several else ''} {ranks} of {found.world_size}: {words or when}",
        where=f"{found.where} ({when})",
        expected="every process of the run at its start",
        fix="look at what that process says; raise start_timeout if it is only slow, and start the job with "
        "srun --kill-on-bad-exit=1, so that a dead task ends the others",
        code="rank-missing",
    )


# --- the way into a Trainer ---------------------------------------------------------------------------------


def join(trainer: Trainer, plan: Plan, identity: Identity | None = None) -> None:
    """Let the processes of this Trainer meet before their process group is made."""
    if world_size_of(trainer) == 1:
        return
    leave_group_at_exit()
    strategy: Any = trainer.strategy
    if hasattr(strategy, "setup_distributed"):
        card = identity_of(plan, identity)
        strategy.setup_distributed = partial(_setup, strategy, plan.settings, card, os.getpid())


def world_size_of(trainer: Any) -> int:
    """Return how many processes a Trainer runs on; a stand-in for it may hold anything there."""
    size = getattr(trainer, "world_size", 1)
    return size if isinstance(size, int) else 1


def _setup(strategy: Any, settings: ExecutionSettings, identity: Identity, builder: int) -> None:
    """Do what `setup_distributed` of Lightning's strategies does, with our meeting before it.

    A process that is not the `builder` of the Trainer was spawned or forked, and gets the run's flags first.
    """
    if os.getpid() != builder:
        set_process_flags(settings)
    strategy.set_world_ranks()
    children = list(getattr(strategy.launcher, "procs", ()))
    _take_over_watch(children)
    limit_s = float(settings.start_timeout)
    found = meet(strategy.cluster_environment, identity=identity, limit_s=limit_s, children=children)
    if not dist.is_initialized():
        device = strategy.root_device
        dist.init_process_group(
            strategy._get_process_group_backend(),
            store=PrefixStore("group", found.store),
            rank=found.rank,
            world_size=found.world_size,
            timeout=getattr(strategy, "_timeout", None),
            device_id=device if device.type == "cuda" else None,
        )
    type(strategy).setup_distributed(strategy)  # finds the group, and does the rest


def _take_over_watch(children: Sequence[Any]) -> None:
    """Watch the children that Lightning started, and give this process the time to say what happened.

    Lightning's own watch kills this process without a word, before or after it knows why.
    """
    watches = [thread for thread in threading.enumerate() if thread.name == "child-process-observer"]
    for thread in watches:
        thread._child_processes = []  # type: ignore[attr-defined]
    if watches:
        _over.clear()
        threading.Thread(target=_watch, args=(children,), daemon=True, name="children-watch").start()


_over = threading.Event()
"""The fit that Lightning's children take part in has ended, well or not."""


def _watch(children: Sequence[Any]) -> None:
    """End this process when a child has failed and the fit does not notice, as NCCL may wait for ever."""
    while not _over.wait(BEAT_S):
        ended = {rank: "" for rank, child in enumerate(children, start=1) if child.poll()}
        if ended and not _over.wait(2 * GRACE_S):
            print(lost(ended, len(children) + 1), file=sys.stderr, flush=True)
            for child in children:
                with suppress(OSError):
                    child.kill()
            os._exit(1)


# --- how they end -------------------------------------------------------------------------------------------


class Together(Callback):
    """Tell the other processes what ends this one, or find out which of them ended.

    Attributes:
        failure: what to raise in place of an error of the network, once it is known.
    """

    def __init__(self) -> None:
        self.failure: UserError | None = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        del pl_module
        found = company()
        if trainer.world_size == 1 or found is None:
            return
        if not is_of_network(exception):
            found.report(f"{type(exception).__name__}: {exception}"[:2000])
            return
        self.failure = lost(found.missing(), found.world_size, trainer.global_step)


def is_of_network(error: BaseException) -> bool:
    """Return whether an error means that another process could not be reached."""
    kinds = tuple(
        getattr(dist, name) for name in ("DistBackendError", "DistNetworkError") if hasattr(dist, name)
    )
    words = ("gloo", "connection closed by peer", "connection reset", "nccl", "broken pipe")
    return isinstance(error, kinds) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def lost(missing: Mapping[int, str], world: int, step: int | None = None) -> UserError:
    """Return the error for processes that ended before the run did."""
    ranks = ", ".join(map(str, sorted(missing)))
    words = [f"rank {rank}: {text}" for rank, text in sorted(missing.items()) if text]
    died = "ended without a word (killed, or out of memory)" if not words else "ended: " + "; ".join(words)
    who = f"rank {ranks}" if missing else "another process"
    error = UserError(
        f"{who} of {world} {died}" + ("" if step is None else f", after step {step}"),
        expected="every process until the end of the run",
        fix=RESUME,
    )
    if missing:
        error.spoken_by = min(rank for rank in range(world) if rank not in missing)
    return error


@contextmanager
def on_all_processes(
    trainer: Any, plan: Plan, more: Any = None, checkpoint: str | Path | None = None
) -> Iterator[None]:
    """Fit or predict inside: the processes that this starts are given the plan, and bring back what they did.

    Args:
        more: what else the program resolved for the run; see `handover`.
        checkpoint: where the run goes on from.

    Raises:
        UserError: what ended the run, in place of errors that only followed from it.
    """
    with handing_over(plan, more, checkpoint), _ending_together(trainer), brought_back(trainer):
        yield


@contextmanager
def _ending_together(trainer: Any) -> Iterator[None]:
    try:
        yield
    except ProcessExitedException as error:  # a child of ddp_spawn or ddp_fork that was killed
        world = getattr(trainer, "world_size", 0)
        raise lost({error.error_index: ""}, world, getattr(trainer, "global_step", 0)) from error
    except Exception as error:
        callbacks = getattr(trainer, "callbacks", ())
        failures = (callback.failure for callback in callbacks if isinstance(callback, Together))
        failure = next((failure for failure in failures if failure is not None), None)
        if failure is None:
            raise
        raise failure from error
    finally:
        _over.set()
