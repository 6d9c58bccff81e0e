"""What launchers give to the processes that they start, as variables."""

from __future__ import annotations

Variables = dict[str, str]


def torchrun(rank: int = 0, world: int = 4, per_node: int = 2, **more: str) -> Variables:
    """Return what torchrun gives to a process."""
    node, local = divmod(rank, per_node)
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(per_node),
        "GROUP_RANK": str(node),
        "GROUP_WORLD_SIZE": str(world // per_node),
        "MASTER_ADDR": "n1",
        "MASTER_PORT": "29500",
        **more,
    }


def job(tasks: int = 2, nodes: int = 1, **more: str) -> Variables:
    """Return what a script in a SLURM job sees outside of srun."""
    own = {"SLURM_JOB_ID": "71", "SLURM_JOB_NAME": "train.sh", "SLURM_NNODES": str(nodes)}
    per_node = f"{tasks // nodes}(x{nodes})" if nodes > 1 else str(tasks)
    own |= {"SLURM_NTASKS": str(tasks), "SLURM_TASKS_PER_NODE": per_node, "SLURM_PROCID": "0"}
    return {**own, "SLURM_LOCALID": "0", "SLURM_NODEID": "0", **more}


def step(rank: int = 0, tasks: int = 2, nodes: int = 1, **more: str) -> Variables:
    """Return what a task of srun sees."""
    per_node = tasks // nodes
    own = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_NUM_NODES": str(nodes)}
    own |= {"SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{nodes})" if nodes > 1 else str(per_node)}
    own |= {"SLURM_STEP_NODELIST": "n[1-2]" if nodes == 2 else "n1", "SLURM_PROCID": str(rank)}
    place = {"SLURM_LOCALID": str(rank % per_node), "SLURM_NODEID": str(rank // per_node)}
    return {**job(tasks, nodes), **own, **place, **more}


def lightnings_child(local_rank: int = 1, world: int | None = 2) -> Variables:
    own = {"LOCAL_RANK": str(local_rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1234"}
    return own | ({} if world is None else {"WORLD_SIZE": str(world)})


def without(variables: Variables, *names: str) -> Variables:
    return {name: value for name, value in variables.items() if name not in names}
