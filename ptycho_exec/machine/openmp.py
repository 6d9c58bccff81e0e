"""How OpenMP's idle threads wait for work: decided before torch is loaded, which reads it then.

Threads that wait in a loop answer at once; a training's or a prediction's many small operations gain a fifth
by it. Where another process wants the same processors, each loop waits for a thread that is not scheduled,
and everything takes several times as long; there waiting threads had better sleep.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path

from ptycho_exec.machine.facts import affinity_cpus, cgroup_cpus

POLICY = "OMP_WAIT_POLICY"
_LOAD = Path("/proc/loadavg")
_LOOKS = 5
_PAUSE_S = 0.004


def choose_wait_policy(environ: MutableMapping[str, str] | None = None) -> None:
    """Have waiting threads sleep if this machine is crowded, unless the user chose how they wait."""
    variables = os.environ if environ is None else environ
    if not variables.get(POLICY) and crowded(_threads(variables), usable_cpus(), others_running):
        variables[POLICY] = "PASSIVE"


def crowded(threads: int, usable: float, others: Callable[[], int], whole: int | None = None) -> bool:
    """Tell whether more want to run than can.

    Args:
        threads: of this process.
        usable: CPUs that this process may use.
        others: how many threads of other processes want to run, wherever on the machine.
        whole: CPUs of the machine; none asks the system.
    """
    return threads > usable or threads + others() > (whole or os.cpu_count() or 1)


def others_running(load: Path | None = None) -> int:
    """Return how many threads of other processes want a processor all the time; 0 where nobody can tell.

    Looks several times within 20 ms, as something always runs for a moment.
    """
    seen = []
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE_S)
        try:
            running = int((load or _LOAD).read_text().split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):
            return 0
        seen.append(max(running - 1, 0))  # this process runs, too
    return min(seen)


def _threads(environ: MutableMapping[str, str]) -> int:
    """Threads that OpenMP will start: as many as it is told, else one for each processor it sees."""
    told = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(told) if told.isdecimal() and int(told) else affinity_cpus() or os.cpu_count() or 1


def usable_cpus() -> float:
    """Processors that this process may use, a container's quota included."""
    quota = cgroup_cpus()
    seen = affinity_cpus() or os.cpu_count() or 1
    return seen if quota is None else min(seen, quota)
