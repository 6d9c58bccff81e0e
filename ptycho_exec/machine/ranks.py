"""Who started this process, and which of a run's processes it is.

The one place that reads a launcher's variables.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

TORCHRUN_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR",
                      "MASTER_PORT")  # fmt: skip
SLURM_VARIABLES = ("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE",
                   "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE",
                   "SLURM_NNODES", "SLURM_STEP_NUM_NODES", "SLURM_NODEID", "SLURM_PROCID", "SLURM_LOCALID",
                   "SLURM_CPUS_PER_TASK", "SLURM_GPUS_PER_TASK", "SLURM_RESTART_COUNT")  # fmt: skip
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_SIZE")
SLURM_INTERACTIVE_NAMES = ("bash", "interactive")
"""Job names of an interactive shell, from which no task of SLURM's is started."""
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
    """Return who started this process, from its variables. torchrun wins over SLURM, as in Lightning."""
    for reader in (_lightning, _torchrun, _slurm, _mpi):
        found = reader(environ)
        if found is not None:
            return found
    # The children of ddp_spawn and ddp_fork know no more than this.
    return Launcher(rank=_whole(environ, "LOCAL_RANK", 0), local_rank=_whole(environ, "LOCAL_RANK", 0))


def _lightning(environ: Mapping[str, str]) -> Launcher | None:
    """Read what Lightning gives to the processes that it starts by running the command again."""
    own = ("WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    if "RANK" in environ or not all(name in environ for name in own):
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
        variables=_present(environ, own),
    )


def _torchrun(environ: Mapping[str, str]) -> Launcher | None:
    """Read torchrun's variables, or the same ones set by hand; a part of them is a problem."""
    needed = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    several = _whole(environ, "WORLD_SIZE", 2) > 1
    if not ("RANK" in environ or "WORLD_SIZE" in environ) or not (several or "RANK" in environ):
        return None
    missing = [name for name in needed if name not in environ]
    if missing and not several:
        return None
    world, local = _whole(environ, "WORLD_SIZE", 1), _whole(environ, "LOCAL_WORLD_SIZE", 0)
    local = local or (world if _whole(environ, "RANK", 0) == _whole(environ, "LOCAL_RANK", 0) else 1)
    text, wrong = "", [name for name in needed[:3] if not _is_number(environ, name)]
    if missing:
        there = " and ".join(name for name in needed if name in environ)
        text = f"{there} set, and {', '.join(missing)} not: this process cannot know which one it is"
    elif wrong:
        text = f"{', '.join(f'{name}={environ[name]}' for name in wrong)}: not a number"
    elif not _whole(environ, "RANK", 0) < world:
        text = f"RANK={environ['RANK']} and WORLD_SIZE={world}: ranks go from 0 to {world - 1}"
    return Launcher(
        kind="torchrun",
        world_size=world,
        tasks_per_node=local,
        nodes=max(1, world // local),
        rank=_whole(environ, "RANK", 0),
        local_rank=_whole(environ, "LOCAL_RANK", 0),
        node=_whole(environ, "GROUP_RANK", _whole(environ, "RANK", 0) // local),
        address=environ.get("MASTER_ADDR", ""),
        port=_whole(environ, "MASTER_PORT", 0) or None,
        problem=text,
        fix="start the command with torchrun, which sets all of them, or unset them" if text else "",
        variables=_present(environ, TORCHRUN_VARIABLES),
    )


def _slurm(environ: Mapping[str, str]) -> Launcher | None:
    """Read the step of srun, or, in a script outside of it, the allocation."""
    if "SLURM_NTASKS" not in environ and "SLURM_STEP_NUM_TASKS" not in environ:
        return None
    if environ.get("SLURM_JOB_NAME") in SLURM_INTERACTIVE_NAMES:
        return None
    step = "SLURM_STEP_ID" in environ and environ["SLURM_STEP_ID"].isdigit()
    absent = [name for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID") if name not in environ]
    world = _whole(environ, "SLURM_STEP_NUM_TASKS", 0) or _whole(environ, "SLURM_NTASKS", 1)
    nodes = _whole(environ, "SLURM_STEP_NUM_NODES", 0) or _whole(environ, "SLURM_NNODES", 1)
    counts = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    texts = [environ[name] for name in counts if name in environ]
    tasks = slurm_tasks_per_node(texts[0]) if texts else world if nodes == 1 else None
    text = f"{', '.join(absent)} not set: this is no complete task of a job step" if step and absent else ""
    return Launcher(
        kind="slurm",
        world_size=world,
        tasks_per_node=tasks,
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
        fix="start it with srun" if text else "",
        variables=_present(environ, SLURM_VARIABLES),
    )


def _mpi(environ: Mapping[str, str]) -> Launcher | None:
    """Recognise MPI's processes, which nothing here can connect."""
    size = next((name for name in MPI_SIZES if _whole(environ, name, 1) > 1), None)
    if size is None:
        return None
    world = _whole(environ, size, 1)
    ranks = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
    return Launcher(
        kind="mpi",
        world_size=world,
        rank=next((_whole(environ, name, 0) for name in ranks if name in environ), 0),
        problem=f"MPI started {world} processes ({size}={world}), which would all train alone",
        fix=f"start them with torchrun --nproc-per-node={world}, or with srun",
        variables=_present(environ, (*MPI_SIZES, *ranks)),
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
    return environ.get(name, "").strip().isdigit()


def _whole(environ: Mapping[str, str], name: str, default: int) -> int:
    return int(environ[name]) if _is_number(environ, name) else default


def _present(environ: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: environ[name] for name in names if name in environ}
