"""Launches that are not yet made: what `check --nodes` says about them, and the job script of `slurm`.

Numbers are worked out, not measured: what every process must read, and what it must exchange per step.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptycho_exec.cli.freeze import FORMS
from ptycho_exec.errors import Finding, UserError, redact
from ptycho_exec.fields.model import SHARDED
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.machine.ranks import Launcher
from ptycho_exec.plan import COUNTS, Plan, srun
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind

BYTES = {"64-true": 8, "bf16-true": 2, "16-true": 2}
"""Bytes of a gradient in a precision; the others keep 4."""


def whole_number(text: str) -> int:
    """Read the value of an option that counts something."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def as_if_started(facts: MachineFacts, nodes: int | None, tasks_per_node: int | None) -> MachineFacts:
    """Return the facts as a task of srun on so many nodes would find them; as they are without numbers."""
    if nodes is None and tasks_per_node is None:
        return facts
    on, per = nodes or 1, tasks_per_node or 1
    given = dict(zip(COUNTS["slurm"], (str(on), str(per)), strict=True))
    launcher = Launcher(kind="slurm", world_size=on * per, tasks_per_node=per, nodes=on, variables=given)
    return facts.model_copy(update={"launcher": launcher})


# --- what it costs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """What a launch needs of each node and of the network.

    Attributes:
        scan_bytes: of the scan, which every process reads as a whole; None where it was not named.
        parameters: of the network; None where nobody said.
    """

    plan: Plan
    scan_bytes: int | None = None
    parameters: int | None = None

    @property
    def processes_per_node(self) -> int:
        return self.plan.totals.world_size // self.plan.settings.num_nodes

    @property
    def memory_per_node(self) -> int | None:
        """Bytes that the data alone take on a node, at least: a program may hold more than one copy."""
        return None if self.scan_bytes is None else self.scan_bytes * self.processes_per_node

    @property
    def gradients(self) -> int | None:
        return (
            None if self.parameters is None else self.parameters * BYTES.get(self.plan.settings.precision, 4)
        )

    @property
    def exchanged(self) -> int | None:
        """Bytes that a process sends, and receives, in an optimizer step, as a ring does it."""
        world, passes = self.plan.totals.world_size, 3 if self.plan.settings.strategy in SHARDED else 2
        return None if self.gradients is None else self.gradients * passes * (world - 1) // world

    def findings(self) -> Iterator[Finding]:
        """Yield a line for each cost that is known; an error where the memory of a node cannot suffice."""
        facts, count = self.plan.facts, self.processes_per_node
        if self.scan_bytes is not None and self.memory_per_node is not None:
            limits = [mib for mib in (facts.memory_mb, facts.memory_limit_mb) if mib is not None]
            have = min(limits) * 2**20 if limits else None
            text = f"memory per node: at least {in_words(self.memory_per_node)}, because each of {count} "
            text += f"process(es) reads the whole scan ({in_words(self.scan_bytes)})"
            text += f"; the node has {in_words(have)}" if have is not None else ""
            if have is not None and self.memory_per_node > have:
                fix = f"start at most {max(1, have // self.scan_bytes)} process(es) per node"
                yield Finding(text, expected="data that fit", fix=fix, code="too-little-memory")
            else:
                yield Finding(text, level="ok", code="launch-cost")
        if self.gradients is not None and self.exchanged is not None:
            text = (
                f"communication per step: {in_words(self.exchanged)} sent and received by each process, for "
            )
            text += f"{in_words(self.gradients)} of gradients"
            yield Finding(text, level="ok", code="launch-cost")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; null for what is not known."""
        names = (
            "processes_per_node",
            "scan_bytes",
            "memory_per_node",
            "parameters",
            "gradients",
            "exchanged",
        )
        return {"num_nodes": self.plan.settings.num_nodes, **{name: getattr(self, name) for name in names}}


def bytes_of(path: Path) -> int:
    """Return the size of a file, or of all files of a folder; of an archive when it is unpacked.

    Raises:
        UserError: it is not there.
    """
    if not path.exists():
        fix = "correct the path, or leave the option out"
        raise UserError(f"scan not found: {redact(str(path))}", where="command line", fix=fix)
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    total = 0
    for file in files:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                total += sum(member.file_size for member in archive.infolist())
        else:
            total += file.stat().st_size
    return total


def in_words(size: int) -> str:
    """Write a number of bytes with three digits: `398 kB`, `1.25 GB`."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


# --- the job script ---------------------------------------------------------------------------------------

LEAD_S = 90
"""Seconds before the end of its time at which a job is sent USR1, so that it can save and be requeued."""


@dataclass(frozen=True)
class Job:
    """What a script asks SLURM for, beside what settings and facts decide.

    Attributes:
        words: the command; without one the script runs what `sbatch SCRIPT` is given after its name.
        time: of the whole job, in SLURM's form.
        options: more options of sbatch, such as `--partition=gpu`.
        exported: lines that set the variables of this place.
    """

    words: Sequence[str] = ()
    time: str = "1-00:00:00"
    options: Sequence[str] = ()
    exported: Sequence[str] = ()


def tasks_asked(settings: ExecutionSettings, facts: MachineFacts) -> int:
    """Return how many processes a node is to run, where the command line does not say."""
    devices = settings.devices
    if devices == "auto":
        return 1 if settings.accelerator == "cpu" else max(1, len(facts.gpus))
    return len(devices) if isinstance(devices, tuple) else devices


def script(plan: Plan, job: Job) -> str:
    """Return a job script for this plan, which is one of a launch by srun."""
    settings, facts = plan.settings, plan.facts
    nodes, tasks = settings.num_nodes, plan.totals.world_size // settings.num_nodes
    cuda = settings.accelerator in ("cuda", "gpu") and bool(facts.gpus)
    cpus = cpus_per_task(plan, tasks, cuda)
    options = {
        "job-name": "ptycho",
        "nodes": nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": cpus,
        **({"gpus-per-node": tasks} if cuda else {}),
        "time": job.time,
        "output": "%x-%j.out",
        "open-mode": "append",
        "signal": f"USR1@{LEAD_S}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items()]
    lines.append("#SBATCH --requeue" if settings.max_requeues else "#SBATCH --no-requeue")
    lines += [f"#SBATCH {option}" for option in job.options]
    command = shlex.join(resumed(job.words)) if job.words else '"$@"'
    runs = f"{srun(nodes * tasks, nodes)} --cpus-per-task={cpus} {command}"
    return "\n".join(
        ["#!/bin/bash", *lines, "", f"# effective batch: {plan.totals}", *job.exported, runs, ""]
    )


def cpus_per_task(plan: Plan, tasks: int, cuda: bool) -> int:
    """Return the CPUs of a process: its threads and loader workers; on a CPU its share of the node."""
    settings, share = plan.settings, max(1, plan.facts.usable_cpus // tasks)
    workers = settings.num_workers if isinstance(settings.num_workers, int) else 0
    wanted = workers + (settings.num_threads or 1)
    return share if not cuda and settings.num_threads is None else min(share, wanted)


def resumed(words: Sequence[str]) -> list[str]:
    """Return the command so that, started again in the same directory, a training goes on."""
    named = any(word == "--resume" or word.startswith("--resume=") for word in words)
    trains = not {"train", "pretrain"}.isdisjoint(words)
    return [*words, "--resume", "auto"] if trains and not named else [*words]


def exported(settings: ExecutionSettings, profile: str | None, settings_file: str | None) -> list[str]:
    """Return the lines that set in the job what flags and variables set here; files are read there too."""
    own = type(settings).model_config.get("env_prefix", "")
    named = settings_file or os.environ.get(f"{own}SETTINGS_FILE")
    controls = {
        "PROFILE": profile or os.environ.get(f"{own}PROFILE"),
        "SETTINGS_FILE": named and str(Path(named).absolute()),
    }
    lines = [f"export {own}{name}={shlex.quote(value)}" for name, value in controls.items() if value]
    for name, spec in field_specs(type(settings)).items():
        origin, value = settings.origins[name], getattr(settings, name)
        if origin.kind in (Kind.FLAG, Kind.ENVIRONMENT) and redact(value) == value:
            text = FORMS["flags"].value(spec, value)
            lines += [] if text is None else [f"export {spec.variable}={shlex.quote(text)}"]
    return lines


def time_of(max_time: str | None) -> str:
    """Return the time of a job: that of the training and ten minutes more, or a day."""
    if max_time is None:
        return Job.time
    days, hours, minutes, seconds = map(int, max_time.split(":"))
    total = ((days * 24 + hours) * 60 + minutes + 10) * 60 + seconds
    hours, rest = divmod(total, 3600)
    return f"{hours // 24}-{hours % 24:02}:{rest // 60:02}:{rest % 60:02}"


def checked_time(text: str) -> str:
    """Read a time as sbatch takes it: minutes, `HH:MM:SS`, `D-HH` or `D-HH:MM:SS`."""
    if not re.fullmatch(r"\d+|(\d+:){1,2}\d+|\d+-\d+(:\d+){0,2}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no time of SLURM, such as 12:00:00 or 2-00:00:00")
    return text


def checked_option(text: str) -> str:
    """Read one option of sbatch, as its script would hold it."""
    if not re.fullmatch(r"--[a-z][a-z-]*(=[^\s'\"]+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no option of sbatch, such as --partition=gpu")
    return text
