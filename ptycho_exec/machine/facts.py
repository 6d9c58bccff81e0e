"""What a machine has, as plain data: probed here, or loaded from a file written on another machine.

Probing imports no torch: package versions come from their metadata, and GPUs are asked for in a child
process, and only when the machine shows a device file of one.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ptycho_exec.errors import Finding, SettingsError
from ptycho_exec.machine.ranks import Launcher, detect_launcher

LOGGER_PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "wandb": ("wandb",),
}
"""Logger backend -> packages of which one must be installed; any other backend needs none."""
PACKAGES = ("ptycho-exec", "torch", "lightning", "pydantic", "pydantic-settings", "numpy", "scipy", "h5py",
            "scikit-image", "matplotlib", "rich", *chain.from_iterable(LOGGER_PACKAGES.values()), "deepspeed",
            "triton", "ptychodus")  # fmt: skip

_ASK_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
rows = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
gpus = [
    {
        "name": row.name,
        "memory_mb": row.total_memory // 2**20,
        "capability": f"{row.major}.{row.minor}",
        "bf16": row.major >= 8 or torch.version.hip is not None,
    }
    for row in rows
]
print("FACTS" + json.dumps({"gpus": gpus, "mps": torch.backends.mps.is_available()}))
"""


class _Plain(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, defer_build=True
    )


class Gpu(_Plain):
    """One GPU: memory in MiB, CUDA capability such as `8.0`, and whether it computes in bfloat16."""

    name: str
    memory_mb: int
    capability: str
    bf16: bool


class MachineFacts(_Plain):
    """What a machine has. Plain data: `probe()` reads this machine, `load(path)` a file of another.

    Attributes:
        cpus_cgroup: CPU quota of the container or job in CPUs (may be a fraction); None without a quota.
        cpus_slurm: `SLURM_CPUS_PER_TASK`.
        memory_mb, memory_limit_mb: physical memory, and the limit of the control group if there is one, MiB.
        compiler: path of a C++ compiler, which `torch.compile` needs on a CPU.
        gpu_note: why the machine shows a GPU that torch cannot use; empty otherwise.
        notebook: an interactive Python, in which Lightning allows other strategies.
        terminal: whether standard error, where progress is shown, is a terminal.
    """

    facts_version: Literal[1] = 1
    hostname: str = ""
    platform: str = ""
    python: str = ""
    cpus_logical: int = 1
    cpus_affinity: int | None = None
    cpus_cgroup: float | None = None
    cpus_slurm: int | None = None
    memory_mb: int | None = None
    memory_limit_mb: int | None = None
    gpus: tuple[Gpu, ...] = ()
    mps: bool = False
    gpu_note: str = ""
    compiler: str | None = None
    packages: dict[str, str] = {}
    launcher: Launcher = Field(default_factory=Launcher)
    notebook: bool = False
    terminal: bool = False

    @property
    def usable_cpus(self) -> int:
        """CPUs this job may really use: the smallest that machine, affinity, quota and SLURM allow."""
        quota = None if self.cpus_cgroup is None else max(1, int(self.cpus_cgroup))
        limits = (self.cpus_logical, self.cpus_affinity, quota, self.cpus_slurm)
        return max(1, min(limit for limit in limits if limit is not None))

    @classmethod
    def probe(cls, *, ask_torch: bool = True, environ: Mapping[str, str] | None = None) -> Self:
        """Read this machine. `ask_torch=False` leaves GPUs out and never starts a child process."""
        variables = os.environ if environ is None else environ
        compilers = (variables.get("CXX"), "g++", "clang++", "c++")
        memory_mb = physical_memory_mb()
        return cls(
            hostname=platform.node(),
            platform=f"{platform.system()}-{platform.release()}-{platform.machine()}",
            python=platform.python_version(),
            cpus_logical=os.cpu_count() or 1,
            cpus_affinity=affinity_cpus(),
            cpus_cgroup=cgroup_cpus(),
            cpus_slurm=_whole(variables.get("SLURM_CPUS_PER_TASK")),
            memory_mb=memory_mb,
            memory_limit_mb=cgroup_memory_mb(),
            compiler=next((path for name in compilers if name and (path := shutil.which(name))), None),
            packages=package_versions(),
            launcher=detect_launcher(variables),
            notebook=hasattr(sys, "ps1"),
            terminal=sys.stderr is not None and sys.stderr.isatty(),
            **(_gpu_facts(variables) if ask_torch else {}),
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read facts that `to_json` wrote.

        Raises:
            SettingsError: the file is missing, is not JSON, or a key in it is unknown or malformed.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise SettingsError(
                f"cannot read machine facts: {error.strerror}",
                where=str(path),
                fix="write them on the machine they are about: ptycho-exec facts > FILE",
            ) from None
        except ValidationError as error:
            fix = "write the file anew with: ptycho-exec facts > FILE"
            findings = []
            for item in error.errors():
                key = ".".join(str(part) for part in item["loc"])
                where = f"{path}, key {key}" if key else str(path)
                findings.append(Finding(f"machine facts: {item['msg']}", where, fix=fix, code="bad-facts"))
            raise SettingsError.from_findings(findings) from None

    def to_json(self) -> str:
        """Return the facts as indented JSON text that `load` reads back."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    def has(self, *packages: str) -> bool:
        """Return whether any of `packages` is installed."""
        return any(name in self.packages for name in packages)


# --- CPUs and memory ----------------------------------------------------------------------------------------


def affinity_cpus() -> int | None:
    """Return how many processors this process is bound to; None where the system has no such call."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def cgroup_cpus(root: Path = Path("/")) -> float | None:
    """Return the smallest CPU quota on the way up from this process's control group, in CPUs (v1 and v2)."""
    quotas = []
    for folder in _cgroup_folders(root, "cpu"):
        words = (_text(folder / "cpu.max") or "").split()
        quota, period = (_whole(_text(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if len(words) == 2 and words[0].isdigit():
            quotas.append(int(words[0]) / int(words[1]))
        elif quota and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def physical_memory_mb() -> int | None:
    """Return the memory of this machine in MiB; None where the system does not report it."""
    try:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20)
    except (AttributeError, ValueError, OSError):
        return None


def cgroup_memory_mb(root: Path = Path("/")) -> int | None:
    """Return the smallest memory limit from this process's control group upward, in MiB (v1 and v2)."""
    limits = []
    for folder in _cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _whole(_text(folder / name))
            # An unlimited v1 group reports a number near 2**63.
            if limit is not None and limit < 2**60:
                limits.append(limit // 2**20)
    return min(limits, default=None)


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders that limit this process: its own group first, then every parent up to the mount."""
    base = root / "sys/fs/cgroup"
    for row in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = row.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        for mount in (base / controllers, base / controller) if controllers else (base, base / "unified"):
            folder = mount / group.strip("/")
            yield from (place for place in (folder, *folder.parents) if place.is_relative_to(mount))


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except OSError:
        return None


def _whole(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


# --- packages, compiler, GPUs -------------------------------------------------------------------------------


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that matter here and are installed, read from their metadata."""
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = _version(name)
    return versions


@cache
def _version(name: str) -> str:
    """Read a version once per process; what is missing is looked for again: notebooks install later."""
    return importlib.metadata.version(name)


_asked: list[subprocess.Popen[str]] = []


def ask_early() -> None:
    """Begin to ask torch about the GPUs, if any are there, while this process does something else."""
    if not _asked and _shows_gpu() and not _hides_gpus(os.environ) and "torch" in package_versions():
        with suppress(OSError):
            _asked.append(_ask_torch())


def _ask_torch() -> subprocess.Popen[str]:
    words = [sys.executable, "-c", _ASK_TORCH]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _gpu_facts(environ: Mapping[str, str]) -> dict[str, Any]:
    if not _shows_gpu():
        return {}
    if _hides_gpus(environ):
        hides = f"CUDA_VISIBLE_DEVICES={environ['CUDA_VISIBLE_DEVICES'].strip() or '(empty)'} hides it"
        return {"gpu_note": f"a GPU is there, but {hides}"}
    if "torch" not in package_versions():
        return {"gpu_note": "a GPU is there, but torch is not installed"}
    try:
        child = _asked.pop() if _asked else _ask_torch()
        try:
            said, _ = child.communicate(timeout=120)
        finally:
            child.kill()
        _, _, answer = said.partition("FACTS")
        facts: dict[str, Any] = json.loads(answer)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {"gpu_note": f"a GPU is there, but torch could not be asked about it: {type(error).__name__}"}
    facts["gpus"] = tuple(Gpu(**gpu) for gpu in facts["gpus"])
    if not facts["gpus"] and not facts["mps"]:
        torch = f"torch {package_versions()['torch']}"
        facts["gpu_note"] = f"a GPU is there, but {torch} cannot use it (driver, or a build without it)"
    return facts


def _hides_gpus(environ: Mapping[str, str]) -> bool:
    return environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")


def _shows_gpu() -> bool:
    """Return whether there is any device file of a GPU, so that asking torch is worth its seconds."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    return any(any(Path("/dev").glob(node)) for node in ("nvidia[0-9]*", "dxg", "kfd"))
