"""Who started this process, and which of a run's processes it is.

The one place that reads a launcher's variables.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun gives to every process; GROUP_RANK and GROUP_WORLD_SIZE, of the nodes, follow from these."""
LIGHTNING_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What Lightning gives to the processes that it starts; it removes WORLD_SIZE after the first training."""
SLURM_VARIABLES = ("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE",
                   "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE",
                   "SLURM_NNODES", "SLURM_STEP_NUM_NODES", "SLURM_NODEID", "SLURM_PROCID", "SLURM_LOCALID",
                   "SLURM_CPUS_PER_TASK", "SLURM_GPUS_PER_TASK", "SLURM_RESTART_COUNT",
                   "SLURM_PTY_PORT")  # fmt: skip
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")
MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "MPI_LOCALRANKID")
SLURM_INTERACTIVE_NAMES = ("bash", "interactive")
"""Names of a job that is an interactive shell, as `salloc` and `srun --pty bash` give them."""
SLURM_RESERVED_STEPS = 0xFFFFFFF0
"""Steps from this number on are the batch script and the interactive shell, which srun did not start."""
FIRST_PORT, PORTS = 15000, 10000
"""Where the first process of a SLURM step listens; the step's number chooses the port."""


class Launcher(BaseModel):
    """Who started this process, how many of its kind, and which of them it is.

    Attributes:
        kind: `lightning` for the children that Lightning starts by itself; `mpi` is known and not supported.
        tasks_per_node: processes on each node; None when the launcher gives no number, or several.
        rank, local_rank, node: of this process: among all, on its node, and the number of its node.
        in_step: this process is one of those that the launcher started. Not so in a SLURM script outside of
            srun, which only has an allocation.
        address, port: where the first process listens; empty and None where the launcher does not say.
        problem, fix: why this process cannot know which one it is, and what helps; empty when it can.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, defer_build=True
    )

    kind: Literal["none", "lightning", "torchrun", "slurm", "mpi"] = "none"
    world_size: int = 1
    tasks_per_node: int | None = None
    nodes: int = 1
    rank: int = 0
    local_rank: int = 0
    node: int = 0
    in_step: bool = True
    address: str = ""
    port: int | None = None
    problem: str = ""
    fix: str = ""
    variables: dict[str, str] = {}


def is_rank_zero() -> bool:
    """Return whether this process writes and speaks for all of them."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank()) == 0
    return detect_launcher(os.environ).rank == 0


def detect_launcher(environ: Mapping[str, str]) -> Launcher:
    """Return who started this process, from its variables: the innermost of several launchers."""
    slurm = _slurm(environ)
    tasks = slurm.world_size if slurm is not None and slurm.in_step else 1
    found = _lightning(environ)
    if found is None and (found := _torchrun(environ)):
        found = _one_run(found, tasks)
    if found is None and (found := _mpi(environ)) and found.world_size == tasks:
        found = slurm  # srun sets variables of MPI too
    return found or slurm or _alone(environ)


def _one_run(torchrun: Launcher, tasks: int) -> Launcher:
    """Refuse several torchruns, each started by a task of srun, that do not know of each other."""
    if torchrun.problem or tasks in (1, torchrun.nodes):
        return torchrun
    text = f"srun started {tasks} torchruns, which do not know of each other: each would train by itself"
    fix = (
        f"start one task per node, and write `torchrun --nnodes={tasks} --rdzv-backend=c10d"
        " --rdzv-endpoint=FIRST_NODE:29500 --nproc-per-node=GPUS --no-python COMMAND`"
    )
    return torchrun.model_copy(update={"problem": text, "fix": fix})


def _alone(environ: Mapping[str, str]) -> Launcher:
    """Return a process without a launcher. The children of ddp_spawn and ddp_fork know LOCAL_RANK alone."""
    rank = _whole(environ, "LOCAL_RANK", 0)
    text = f"LOCAL_RANK={rank} set, and RANK and WORLD_SIZE not: this process cannot know which one it is"
    return Launcher(
        rank=rank,
        local_rank=rank,
        problem=text if rank else "",
        fix="unset LOCAL_RANK, or start the command with torchrun" if rank else "",
        variables={"LOCAL_RANK": str(rank)} if rank else {},
    )


def _lightning(environ: Mapping[str, str]) -> Launcher | None:
    """Read what Lightning gives to the processes that it starts by running the command again."""
    if "RANK" in environ or not all(name in environ for name in LIGHTNING_VARIABLES):
        return None
    world, local = _whole(environ, "WORLD_SIZE", 1), _whole(environ, "LOCAL_RANK", 0)
    return Launcher(
        kind="lightning",
        world_size=world,
        tasks_per_node=world,
        rank=local,
        local_rank=local,
        address=environ["MASTER_ADDR"],
        port=_whole(environ, "MASTER_PORT", 0) or None,
        variables=_present(environ, (*LIGHTNING_VARIABLES, "WORLD_SIZE")),
    )


def _torchrun(environ: Mapping[str, str]) -> Launcher | None:
    """Read torchrun's variables, or the same ones set by hand; a part of them is a problem.

    A part of them that speaks of one process is a leftover, and counts as no launcher.
    """
    missing = [name for name in TORCHRUN_VARIABLES if name not in environ]
    alone = environ.get("WORLD_SIZE", "").strip() == "1" and _whole(environ, "RANK", 0) == 0
    if not ("RANK" in environ or "WORLD_SIZE" in environ) or (missing and alone):
        return None
    rank, local_rank = _whole(environ, "RANK", 0), _whole(environ, "LOCAL_RANK", 0)
    world, tasks = _whole(environ, "WORLD_SIZE", 1), _whole(environ, "LOCAL_WORLD_SIZE", 0)
    nodes = _whole(environ, "GROUP_WORLD_SIZE", world // tasks if tasks else 1)
    variables = _present(environ, (*TORCHRUN_VARIABLES, "GROUP_RANK", "GROUP_WORLD_SIZE"))
    return Launcher(
        kind="torchrun",
        world_size=world,
        tasks_per_node=tasks if tasks * nodes == world else None,
        nodes=max(1, nodes),
        rank=rank,
        local_rank=local_rank,
        node=_whole(environ, "GROUP_RANK", rank // tasks if tasks else 0),
        address=environ.get("MASTER_ADDR", ""),
        port=_whole(environ, "MASTER_PORT", 0) or None,
        problem=(text := _torchrun_problem(environ, missing)),
        fix="start the command with torchrun, which sets all of them, or unset them" if text else "",
        variables=variables,
    )


def _torchrun_problem(environ: Mapping[str, str], missing: Sequence[str]) -> str:
    """Return why these variables do not say which process this is; nothing when they do."""
    if missing:
        there = " and ".join(name for name in TORCHRUN_VARIABLES if name in environ)
        return f"{there} set, and {', '.join(missing)} not: this process cannot know which one it is"
    numbers = [name for name in TORCHRUN_VARIABLES if name != "MASTER_ADDR"]
    wrong = [f"{name}={environ[name]}" for name in numbers if not _is_number(environ, name)]
    if wrong:
        return f"{', '.join(wrong)}: not a whole number"
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if _whole(environ, rank, 0) >= _whole(environ, size, 1):
            last = _whole(environ, size, 1) - 1
            return f"{rank}={environ[rank]} and {size}={environ[size]}: ranks go from 0 to {last}"
    return ""


def _slurm(environ: Mapping[str, str]) -> Launcher | None:
    """Read the step of srun, or, in a script outside of it, the allocation."""
    nodes = _whole(environ, "SLURM_STEP_NUM_NODES", 0) or _whole(environ, "SLURM_NNODES", 1)
    if nodes == 1 and not ("SLURM_NTASKS" in environ or "SLURM_STEP_NUM_TASKS" in environ):
        return None
    step = 0 <= _whole(environ, "SLURM_STEP_ID", -1) < SLURM_RESERVED_STEPS
    if not step and environ.get("SLURM_JOB_NAME") in SLURM_INTERACTIVE_NAMES:
        return None
    absent = [name for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID") if name not in environ]
    world = _whole(environ, "SLURM_STEP_NUM_TASKS", 0) or _whole(environ, "SLURM_NTASKS", nodes)
    counts = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    texts = [environ[name] for name in counts if name in environ]
    text = f"{', '.join(absent)} not set: this is no complete task of a job step" if step and absent else ""
    return Launcher(
        kind="slurm",
        world_size=world,
        tasks_per_node=slurm_tasks_per_node(texts[0]) if texts else world if nodes == 1 else None,
        nodes=nodes,
        rank=_whole(environ, "SLURM_PROCID", 0) if step else 0,
        local_rank=_whole(environ, "SLURM_LOCALID", 0) if step else 0,
        node=_whole(environ, "SLURM_NODEID", 0) if step else 0,
        in_step=step,
        address=environ.get("MASTER_ADDR")
        or first_host(environ.get("SLURM_STEP_NODELIST", ""))
        or "127.0.0.1",
        port=_whole(environ, "MASTER_PORT", 0) or _slurm_port(environ),
        problem=text,
        fix="start the command with srun, which sets all of them" if text else "",
        variables=_present(environ, SLURM_VARIABLES),
    )


def _mpi(environ: Mapping[str, str]) -> Launcher | None:
    """Recognise MPI's processes, which nothing here can connect."""
    size = next((name for name in MPI_SIZES if _whole(environ, name, 1) > 1), None)
    if size is None:
        return None
    world = _whole(environ, size, 1)
    return Launcher(
        kind="mpi",
        world_size=world,
        rank=next((_whole(environ, name, 0) for name in MPI_RANKS if name in environ), 0),
        problem=f"MPI started {world} processes ({size}={world}), which would all train alone",
        fix=f"in place of mpirun write `torchrun --nproc-per-node={world} --no-python COMMAND`, or in a job "
        f"of SLURM `srun --kill-on-bad-exit=1 --ntasks={world} COMMAND`",
        variables=_present(environ, (*MPI_SIZES, *MPI_RANKS)),
    )


def slurm_tasks_per_node(text: str) -> int | None:
    """Read SLURM's compressed counts: `2` and `2(x4)` are 2; `2(x3),1` differs between nodes, so None."""
    counts = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\(x\d+\))?\s*", part)
        if not match:
            return None
        counts.add(int(match.group(1)))
    return counts.pop() if len(counts) == 1 else None


def first_host(nodes: str) -> str:
    """Return the first of SLURM's compressed list of nodes: `gpu[03-07,9],cpu1` begins with `gpu03`."""
    match = re.match(r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\])?([^,]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else ""


def _slurm_port(environ: Mapping[str, str]) -> int:
    """Return the port of a step, which all its processes work out alike, and other steps differently."""
    job, step = _whole(environ, "SLURM_JOB_ID", 0), _whole(environ, "SLURM_STEP_ID", 0)
    return FIRST_PORT + (7 * job + step) % PORTS


def _is_number(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().isdecimal()


def _whole(environ: Mapping[str, str], name: str, default: int) -> int:
    return int(environ[name]) if _is_number(environ, name) else default


def _present(environ: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: environ[name] for name in names if name in environ}
