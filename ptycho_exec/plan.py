"""Settings + a machine's facts + what the module can do -> a plan: every effective value with its reason.

A rule is a small function that looks at the draft and decides; `RULES` is their order. A rule sees what
earlier rules decided. Options that cost or save time and cannot be used here are left out with a notice;
options that change results or the world size become a problem with a remedy, or, under
`on_unsupported="adapt"`, the nearest value this machine can do, with a warning.
"""

from __future__ import annotations

import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from ptycho_exec.errors import Finding, Level, SettingsError, SettingsWarning, redact
from ptycho_exec.fields.model import SHARDED, monitor_readers
from ptycho_exec.fields.spec import HIDDEN, as_data, field_specs, format_value
from ptycho_exec.machine.facts import LOGGER_PACKAGES, MachineFacts
from ptycho_exec.machine.ranks import is_rank_zero
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind

logger = logging.getLogger(__name__)

MAX_AUTO_WORKERS = 8


@dataclass(frozen=True, slots=True)
class ModuleTraits:
    """What the module and its data can do; None means that nobody knows yet.

    Attributes:
        automatic_optimization: Lightning steps the optimizer (and so clips and accumulates), not the module.
        logged_metrics: names that the module logs, in training and in validation.
        has_validation: there is validation data.
        train_samples: number of training samples.
        train_batches: batches of the training loader, of all processes; infinite if it has no length.
        validation_batches: those of the shortest validation loader.
        train_batch_size: samples per batch of the training loader.
        clips_gradients: the module has Lightning's hook `configure_gradient_clipping`, as agc needs it.
        trains: it is trained; in an inference there are no optimizer steps.
    """

    automatic_optimization: bool = True
    logged_metrics: tuple[str, ...] | None = None
    has_validation: bool = True
    train_samples: int | None = None
    train_batches: float | None = None
    validation_batches: float | None = None
    train_batch_size: int | None = None
    clips_gradients: bool | None = None
    trains: bool = True


def asked(settings: ExecutionSettings, name: str) -> bool:
    """Return whether somebody set this field: neither its own default stands there nor a workflow's."""
    origin = settings.origins.get(name)
    return origin is not None and origin.kind not in (Kind.FACTORY, Kind.DEFAULT)


@dataclass(frozen=True, slots=True)
class Effective:
    """The value a field has in this run, beside the one that was asked for, and why."""

    requested: Any
    value: Any
    reason: str = "as requested"
    hidden: bool = False
    """Whether its field keeps it out of what is shown."""

    @property
    def changed(self) -> bool:
        return type(self.requested) is not type(self.value) or bool(self.requested != self.value)

    def __repr__(self) -> str:
        """Show all of it but credentials."""
        shown = [HIDDEN if self.hidden else repr(redact(value)) for value in (self.requested, self.value)]
        return f"Effective({' -> '.join(shown)}, {self.reason})"


@dataclass(frozen=True, slots=True)
class Totals:
    """How much one optimizer step and one epoch are, over all processes.

    Attributes:
        steps_per_epoch: optimizer steps; None where the number of training samples is not known.
    """

    world_size: int = 1
    batch_size: int = 1
    accum_steps: int = 1
    steps_per_epoch: int | None = None

    @property
    def samples_per_step(self) -> int:
        return self.world_size * self.batch_size * self.accum_steps

    def __str__(self) -> str:
        """Write it as `16 x 8 processes x accum 2 = 256, 9 steps per epoch`."""
        text = f"{self.batch_size}"
        text += f" x {self.world_size} processes" if self.world_size > 1 else ""
        text += f" x accum {self.accum_steps}" if self.accum_steps > 1 else ""
        text += f" = {self.samples_per_step}" if self.samples_per_step != self.batch_size else ""
        return text if self.steps_per_epoch is None else f"{text}, {self.steps_per_epoch} steps per epoch"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        names = ("world_size", "batch_size", "accum_steps", "samples_per_step", "steps_per_epoch")
        return {**{name: getattr(self, name) for name in names}, "text": str(self)}


@dataclass(frozen=True)
class Plan:
    """What will run: a value and a reason for every field, what to know, and what cannot be.

    Attributes:
        notices: findings that stop nothing; the level `adapted` marks a value that can change results.
        problems: values that this machine cannot honor.
        refused_by_trainer: those of the problems that a real Trainer would itself refuse.
    """

    requested: ExecutionSettings
    effective: Mapping[str, Effective]
    notices: tuple[Finding, ...] = ()
    problems: tuple[Finding, ...] = ()
    refused_by_trainer: tuple[Finding, ...] = ()
    facts: MachineFacts = field(default_factory=MachineFacts)
    totals: Totals = field(default_factory=Totals)

    def __post_init__(self) -> None:
        object.__setattr__(self, "effective", MappingProxyType(dict(self.effective)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to spawned processes; a read-only mapping cannot by itself."""
        findings = (self.notices, self.problems, self.refused_by_trainer)
        return Plan, (self.requested, dict(self.effective), *findings, self.facts, self.totals)

    @cached_property
    def settings(self) -> ExecutionSettings:
        """The effective values as settings, not validated again: a plan with problems has them too."""
        return self.requested.with_effective({name: row.value for name, row in self.effective.items()})

    def raise_if_blocked(self, *, include_trainer_refusals: bool = True) -> None:
        """Raise one SettingsError with every problem, or with those that no Trainer would refuse itself."""
        left_out = () if include_trainer_refusals else self.refused_by_trainer
        blocking = [problem for problem in self.problems if problem not in left_out]
        if blocking:
            raise SettingsError.from_findings(blocking)

    def announce(self) -> None:
        """Give every notice to the user: a `SettingsWarning` where our code was called, and a log record."""
        announce(self.notices)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data with credentials hidden."""
        columns = ("requested", "value", "reason", "changed")
        rows = {
            name: {column: redact(as_data(getattr(row, column))) for column in columns}
            for name, row in self.effective.items()
        }
        notices = [{"field": row.field, "text": row.what, "kind": row.level} for row in self.notices]
        problems = [
            {
                **{part: getattr(row, part) for part in ("field", "what", "expected", "fix")},
                "origin": row.where,
                "refused_by_trainer": row in self.refused_by_trainer,
            }
            for row in self.problems
        ]
        parts = {"effective": rows, "notices": notices, "problems": problems}
        return {**parts, "totals": self.totals.to_json()}


def announce(notices: Iterable[Finding], category: type[Warning] = SettingsWarning) -> None:
    """Warn of each notice where our code was called, and log it; in a run of several processes once."""
    if not is_rank_zero():
        return
    for notice in notices:
        logger.info("%s", notice.render())
        warnings.warn(notice.render(), category, stacklevel=_callers_level())


def _callers_level() -> int:
    """Return the `stacklevel` of the first frame outside of this package, for a warning in `announce`."""
    frame, level = sys._getframe(1), 1
    ours = (f"{__name__.partition('.')[0]}.", "contextlib")
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(ours):
        frame, level = frame.f_back, level + 1
    return level


MONITORING = ("checkpoint_monitor_metric", "checkpoint_mode", "checkpoint_save_top_k", "early_stop_patience")
"""Who sets one of these wants the monitored metric; their defaults are for modules that log it."""


def monitor_asked(plan: Plan) -> bool:
    """Return whether somebody set what needs the monitored metric, so that a module must log it."""
    return any(asked(plan.requested, name) for name in MONITORING)


# --- decisions ----------------------------------------------------------------------------------------------

NOTHING_NEAR: Any = object()


@dataclass
class Draft:
    """The plan while rules work on it: `draft["field"]` is the value decided so far.

    A rule decides in one of four ways: `decide`, `ignore`, `note`, `unsupported`.
    """

    settings: ExecutionSettings
    facts: MachineFacts
    traits: ModuleTraits
    effective: dict[str, Effective]
    notices: list[Finding] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)
    refused_by_trainer: list[Finding] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.effective[name].value

    @property
    def kind(self) -> Literal["cpu", "cuda", "mps"]:
        """What the plan computes on; a GPU that was asked for and is missing still counts as one."""
        accelerator = self["accelerator"]
        if accelerator == "gpu":
            return "mps" if self.facts.mps else "cuda"
        return "mps" if accelerator == "mps" else "cpu" if accelerator == "cpu" else "cuda"

    @property
    def processes_per_node(self) -> int:
        devices = self["devices"]
        return len(devices) if isinstance(devices, tuple) else devices if isinstance(devices, int) else 1

    @property
    def processes_on_cpus(self) -> int:
        """How many processes share the usable CPUs; SLURM counts CPUs for each task by itself."""
        launcher = self.facts.launcher
        task = launcher.kind == "slurm" and launcher.in_step and launcher.world_size > 1
        return 1 if task and self.facts.cpus_slurm is not None else self.processes_per_node

    @property
    def world_size(self) -> int:
        return self.processes_per_node * int(self["num_nodes"])

    @property
    def validates(self) -> bool:
        """Whether this run validates: there is data for it, and it is not switched off."""
        return self.traits.has_validation and self["limit_val_batches"] != 0

    def per_process(self, batches: float) -> float:
        """Return how many batches of a loader are one process's."""
        shared = self["trainer"].get("use_distributed_sampler", True) and batches < math.inf
        return math.ceil(batches / self.world_size) if shared else batches

    @property
    def batches_per_epoch(self) -> int | None:
        """Training batches of one process in a whole epoch; None where nobody knows them."""
        batches, samples = self.traits.train_batches, self.traits.train_samples
        if batches is not None:
            return None if batches == math.inf else int(self.per_process(batches))
        return -(-samples // (self["batch_size"] * self.world_size)) if samples else None

    @property
    def totals(self) -> Totals:
        batches, accum = self.batches_per_epoch, self["accum_steps"]
        for name in ("limit_train_batches", "overfit_batches", "fast_dev_run"):
            limit = self[name]
            if batches is not None and limit is not None:
                batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
        steps = None if batches is None else -(-batches // accum)
        return Totals(self.world_size, self["batch_size"], accum, steps)

    def was_set(self, name: str) -> bool:
        """Return whether somebody asked for another value than the default."""
        return bool(self[name] != type(self.settings).model_fields[name].default)

    def decide(self, name: str, value: Any, reason: str) -> None:
        """Give a definite value to an `auto`, or to what follows from another value."""
        self.effective[name] = replace(self.effective[name], value=value, reason=reason)

    def note(self, code: str, name: str, text: str, level: Level = "note") -> None:
        """Leave the value; its user should know this."""
        self.notices.append(Finding(text, level=level, code=code, field=name))

    def ignore(self, code: str, name: str, value: Any, reason: str) -> None:
        """Replace an option that cannot act here and changes no result."""
        self.note(code, name, f"{name}={format_value(self[name])} has no effect: {reason}")
        self.decide(name, value, reason)

    def refuse_launch(self, code: str, what: str, fix: str) -> None:
        """Report a start that cannot work whatever the settings are."""
        launcher = self.facts.launcher
        counts = ("TASKS", "NODES", "STEP")
        rows = {
            name: value
            for name, value in launcher.variables.items()
            if not name.startswith("SLURM_") or any(word in name for word in counts)
        }
        where = ", ".join(f"{name}={value}" for name, value in rows.items())
        expected = "a launcher that starts every process of the run and tells each which one it is"
        self.problems.append(Finding(what, where, expected, fix, code=code, field="devices"))

    def unsupported(
        self,
        code: str,
        name: str,
        what: str,
        expected: str,
        fix: str,
        nearest: Any = NOTHING_NEAR,
        *,
        refused_by_trainer: bool = False,
    ) -> None:
        """Report a value that cannot be honored and changes results or world size, or take the nearest."""
        asked = format_value(redact(self[name]))
        if self["on_unsupported"] == "adapt" and nearest is not NOTHING_NEAR:
            change = f"{name}: {asked} became {format_value(nearest)}"
            self.note(code, name, f"{change}, because {what}", "adapted")
            self.decide(name, nearest, what)
            return
        where = self.settings.origin_of(name)
        problem = Finding(f"{name}={asked}: {what}", where, expected, fix, code=code, field=name)
        self.problems.append(problem)
        if refused_by_trainer:
            self.refused_by_trainer.append(problem)


def resolve_plan(
    settings: ExecutionSettings, facts: MachineFacts, traits: ModuleTraits | None = None
) -> Plan:
    """Work out what `settings` mean on a machine with these `facts` for a module with these `traits`.

    Nothing is asked of this machine and nothing is changed; what cannot be is in `Plan.problems`.

    Examples:
        >>> from ptycho_exec import ExecutionSettings, MachineFacts, resolve_plan
        >>> facts = MachineFacts.probe(ask_torch=False)
        >>> settings = ExecutionSettings.from_values({"devices": 2, "global_batch_size": 64})
        >>> row = resolve_plan(settings, facts).effective["batch_size"]
        >>> row.value, row.reason
        (32, 'global_batch_size=64 / 2')
    """
    return _planned(RULES, settings, facts, traits)


def resolve_launch(settings: ExecutionSettings, facts: MachineFacts) -> Plan:
    """Work out what needs neither GPUs nor a module: whether the processes were started as settings ask."""
    return _planned(LAUNCH_RULES, settings, facts, None)


LAUNCH_CODES = ("launcher-unclear", "started-by-mpi", "not-in-srun", "uneven-tasks")
"""Codes of problems of which no setting is a part: another start of the command is needed."""


def _planned(
    rules: Iterable[Callable[[Draft], None]],
    settings: ExecutionSettings,
    facts: MachineFacts,
    traits: ModuleTraits | None,
) -> Plan:
    specs = field_specs(type(settings))
    requested = {name: Effective(value, value, hidden=specs[name].hidden) for name, value in settings}
    draft = Draft(settings, facts, traits or ModuleTraits(), requested)
    for rule in rules:
        rule(draft)
    findings = (tuple(draft.notices), tuple(draft.problems), tuple(draft.refused_by_trainer))
    return Plan(settings, draft.effective, *findings, facts, draft.totals)


def findings_of_module(plan: Plan, traits: ModuleTraits) -> list[Finding]:
    """Return what a module with these traits cannot do, or does otherwise, and the plan did not know."""
    draft = Draft(plan.requested, plan.facts, traits, dict(plan.effective))
    check_optimization(draft)
    found = (*draft.problems, *draft.notices)
    return [finding for finding in found if finding not in (*plan.problems, *plan.notices)]


# --- where it computes --------------------------------------------------------------------------------------


def choose_accelerator(draft: Draft) -> None:
    """`auto` takes the best there is; a GPU that is not there is refused."""
    facts, asked = draft.facts, draft["accelerator"]
    there = {"cpu": True, "cuda": bool(facts.gpus), "mps": facts.mps, "gpu": bool(facts.gpus) or facts.mps}
    if asked == "auto":
        best = "mps" if facts.mps else "cuda" if facts.gpus else "cpu"
        device = "Apple GPU" if facts.mps else facts.gpus[0].name if facts.gpus else "no usable GPU"
        note = f"; {facts.gpu_note}" if facts.gpu_note else ""
        draft.decide("accelerator", best, f"auto: {device}{note}")
    elif not there[asked]:
        draft.unsupported(
            "no-such-gpu",
            "accelerator",
            f"this machine has no such GPU ({facts.gpu_note or 'none found'})",
            "one of: " + ", ".join(["auto", *(name for name, usable in there.items() if usable)]),
            "set accelerator=auto or cpu, or run on a machine with that GPU",
            "cpu",
            refused_by_trainer=True,
        )


def follow_launcher(draft: Draft) -> None:
    """What nobody chose follows from the launcher, which has started the processes already."""
    launcher, tasks = draft.facts.launcher, draft.facts.launcher.tasks_per_node
    several = launcher.kind == "slurm" and launcher.in_step and launcher.world_size > 1
    if launcher.kind != "torchrun" and not several:
        return
    if not asked(draft.settings, "num_nodes") and launcher.nodes != draft["num_nodes"]:
        draft.decide("num_nodes", launcher.nodes, f"{launcher.kind} started {launcher.nodes} node(s)")
    chosen = asked(draft.settings, "devices") and draft["devices"] != "auto"
    if tasks and not chosen and tasks != draft["devices"]:
        draft.decide("devices", tasks, f"{launcher.kind} started {tasks} task(s) per node")


def match_launcher(draft: Draft) -> None:
    """One process per device, on as many nodes as the launcher uses; all of them know which one they are."""
    launcher, nodes = draft.facts.launcher, draft["num_nodes"]
    alone = launcher.kind in ("none", "lightning") or _is_notebook_job(draft)
    several, shell = launcher.world_size > 1, "SLURM_PTY_PORT" in launcher.variables and draft.facts.terminal
    if launcher.problem:
        draft.refuse_launch(
            "started-by-mpi" if launcher.kind == "mpi" else "launcher-unclear", launcher.problem, launcher.fix
        )
    elif alone and nodes > 1:
        draft.unsupported(
            "no-launcher",
            "num_nodes",
            "no launcher started this process, so the run would wait for ever for the other nodes",
            "1 without a launcher",
            f"write `{srun(nodes * draft.processes_per_node, nodes)}` before the command in a job of {nodes} "
            "nodes, start it with torchrun on every node, or set num_nodes=1",
            1,
        )
    elif alone:
        return
    elif several and not launcher.in_step:
        draft.refuse_launch(
            "not-in-srun",
            f"srun did not start this process, and the job has {launcher.world_size} tasks: the others would "
            "stand idle while it runs",
            f"write `{srun(launcher.world_size, launcher.nodes)}` before the command, or give the job "
            "--ntasks=1",
        )
    elif several and shell:
        draft.refuse_launch(
            "not-in-srun",
            f"this shell is the first of the {launcher.world_size} tasks of its job step, and the others run "
            "shells of their own",
            f"write `{srun(launcher.world_size, launcher.nodes)} --overlap` before the command, or start the "
            "shell with --ntasks=1",
        )
    else:
        _match_counts(draft)


def srun(tasks: int, nodes: int = 1) -> str:
    """Return the start of the line that runs a command on every task of a job, and ends all when one does."""
    return f"srun --kill-on-bad-exit=1{f' --nodes={nodes}' if nodes > 1 else ''} --ntasks={tasks}"


COUNTS = {"slurm": ("--nodes", "--ntasks-per-node"), "torchrun": ("--nnodes", "--nproc-per-node")}
"""The options of a launcher that say on how many nodes it starts processes, and how many on each."""
SPAWNING = ("ddp_spawn", "ddp_fork", "ddp_notebook")
"""Strategies that start processes from within this one."""


def _match_counts(draft: Draft) -> None:
    launcher, processes, nodes = draft.facts.launcher, draft.processes_per_node, draft["num_nodes"]
    kind, tasks, world = launcher.kind, launcher.tasks_per_node, launcher.world_size
    of_nodes, of_tasks = COUNTS[kind]
    if tasks is None:
        even = f"{of_nodes}={launcher.nodes} {of_tasks}={max(1, world // launcher.nodes)}"
        what = f"{kind} starts {world} tasks, and not the same number on every node"
        draft.refuse_launch("uneven-tasks", what, f"give {kind} {even}")
        return
    if nodes != launcher.nodes:
        draft.unsupported(
            "other-nodes-than-launcher",
            "num_nodes",
            f"{kind} started this run on {launcher.nodes} node(s)",
            f"{launcher.nodes}, as in the launcher's own options",
            f"set num_nodes={launcher.nodes}, or give {kind} {of_nodes}={nodes}",
            launcher.nodes,
        )
    # One task of SLURM's starts its other processes by itself; torchrun's variables would mislead them.
    if tasks != processes and (world > 1 or kind == "torchrun"):
        draft.unsupported(
            "other-tasks-than-launcher",
            "devices",
            f"{kind} starts {tasks} task(s) per node",
            f"{tasks}, one task per device",
            f"set devices={tasks}, or give {kind} {of_tasks}={processes}",
            tasks,
        )
    if world > 1 and draft["strategy"] in SPAWNING:
        what, expected = f"{kind} has started the processes already", "auto or ddp here"
        draft.unsupported("no-such-strategy", "strategy", what, expected, "set strategy=ddp", "ddp")


_NOTEBOOK_NAME = re.compile("(?i)jupyter|notebook|vscode|code-server|desktop")


def _is_notebook_job(draft: Draft) -> bool:
    """Return whether this is the one process of a notebook, whatever its allocation could start."""
    launcher = draft.facts.launcher
    if launcher.kind != "slurm" or (launcher.in_step and launcher.world_size > 1):
        return False
    by_name = _NOTEBOOK_NAME.search(launcher.variables.get("SLURM_JOB_NAME", "")) is not None
    return draft.facts.notebook or by_name


def count_devices(draft: Draft) -> None:
    """`auto` takes all; more devices than there are, and indices on a CPU, are refused."""
    asked, facts, kind = draft["devices"], draft.facts, draft.kind
    launcher = facts.launcher
    there = len(facts.gpus) if kind == "cuda" else int(facts.mps)
    if asked == "auto":
        if kind == "cuda" and facts.gpus and facts.notebook:
            draft.decide("devices", 1, "auto: one device in a notebook")
        elif kind == "cuda" and facts.gpus:
            draft.decide("devices", there, f"auto: {there} GPUs found")
        else:
            draft.decide("devices", 1, f"auto: one {kind} device")
    elif kind == "cpu" and isinstance(asked, tuple):
        draft.unsupported(
            "cpu-indices",
            "devices",
            "CPU devices have no indices",
            "a number of processes, or auto",
            "set devices=1, or an accelerator with numbered devices",
            1,
            refused_by_trainer=True,
        )
    elif kind == "cpu":
        if draft.processes_on_cpus > facts.usable_cpus:
            text = f"devices={asked} starts {asked} processes on {facts.usable_cpus} usable CPUs"
            draft.note("more-processes-than-cpus", "devices", text)
    elif any(problem.field == "devices" for problem in draft.problems):
        return
    elif 0 < there < draft.processes_per_node == launcher.tasks_per_node and launcher.world_size > 1:
        tasks = launcher.tasks_per_node
        fix = f"start {there} task(s) per node"
        if launcher.kind == "slurm":
            fix = (
                f"give #SBATCH --gpus-per-node={tasks} in place of --gpus-per-task, which binds one GPU to "
                f"each, or srun --gpu-bind=none; if there are no more GPUs, {fix}"
            )
        what = f"each of the {tasks} tasks of a node sees {there} {kind} device(s) only"
        draft.refuse_launch("gpus-hidden-from-tasks", what, fix)
    elif there and (max(asked) if isinstance(asked, tuple) else asked - 1) >= there:
        usable = tuple(index for index in asked if index < there) if isinstance(asked, tuple) else there
        draft.unsupported(
            "too-many-devices",
            "devices",
            f"this machine has {there} {kind} device{'s' if there > 1 else ''}",
            f"at most {there}, or indices below {there}",
            f"set devices={there} or auto",
            usable or 1,
            refused_by_trainer=True,
        )


def choose_strategy(draft: Draft) -> None:
    """`auto` is one process, or ddp for several; a strategy that this machine lacks is refused."""
    asked, facts, kind = draft["strategy"], draft.facts, draft.kind
    fallback = "auto" if draft.world_size == 1 else "ddp_notebook" if facts.notebook else "ddp"
    forks = asked in ("ddp_fork", "ddp_notebook")
    nearest, fix = fallback, ""
    if asked == "auto":
        processes = f"{draft.world_size} processes" if draft.world_size > 1 else "one process on one device"
        draft.decide("strategy", fallback, f"auto: {processes}")
        return
    if asked in SHARDED and kind != "cuda":
        what = f"it shards over CUDA devices, and this run computes on {kind}"
    elif asked.startswith("deepspeed") and not facts.has("deepspeed"):
        what, fix = "the package deepspeed is not installed", "pip install deepspeed, or strategy=auto"
    elif asked.startswith("ddp") and kind == "mps":
        what, nearest = "Apple GPUs work alone, without ddp", "auto"
    elif forks and facts.platform.startswith("Windows"):
        what, nearest = "this platform cannot fork processes", "ddp_spawn"
    elif facts.notebook and not forks:
        what, nearest = "it cannot start processes from a notebook", "ddp_notebook"
    else:
        return
    expected, fix = f"{fallback} here", fix or f"set strategy={nearest}"
    draft.unsupported("no-such-strategy", "strategy", what, expected, fix, nearest, refused_by_trainer=True)


def check_precision(draft: Draft) -> None:
    """Lightning changes or accepts what the hardware has not; here it is a problem with a remedy."""
    asked, kind, strategy = draft["precision"], draft.kind, draft["strategy"]
    what, nearest, refused = "", "32-true", False
    if asked == "16-mixed" and kind == "cpu":
        what, nearest = "a CPU has no fp16 autocast; Lightning would silently use bf16-mixed", "bf16-mixed"
    elif asked == "64-true" and kind == "mps":
        what = "Apple GPUs have no 64-bit floats"
    elif asked == "64-true" and strategy in SHARDED:
        what, refused = f"{strategy} has no 64-bit mode", True
    elif asked.startswith("bf16") and kind == "cuda" and any(not gpu.bf16 for gpu in draft.facts.gpus):
        what = "not every GPU here computes in bfloat16; torch would emulate it"
    elif asked == "16-true" and kind == "cpu":
        text = "precision=16-true on a CPU is slow, and not every operation exists in it"
        draft.note("slow-precision", "precision", text)
    if what:
        expected, fix = f"{nearest} here", f"set precision={nearest}"
        draft.unsupported(
            "no-such-precision", "precision", what, expected, fix, nearest, refused_by_trainer=refused
        )


def check_compile(draft: Draft) -> None:
    """torch.compile writes code, so it needs a C++ compiler on a CPU and Triton on CUDA."""
    facts = draft.facts
    missing = (
        "a C++ compiler" if draft.kind == "cpu" and facts.compiler is None
        else "the package triton" if draft.kind == "cuda" and not facts.has("triton")
        else ""
    )  # fmt: skip
    if draft["compile"] and missing:
        draft.unsupported(
            "no-compiler",
            "compile",
            f"torch.compile needs {missing}, and there is none",
            f"false, or {missing}",
            f"install {missing.removeprefix('a ')}, or set compile=false",
            False,
        )


def check_speed_flags(draft: Draft) -> None:
    """Flags of CUDA libraries are reported where there is no CUDA; threads are compared with CPUs."""
    facts = draft.facts
    if draft["benchmark"] and draft.kind != "cuda":
        draft.ignore("no-cudnn", "benchmark", False, f"cuDNN is not used on {draft.kind}")
    if draft["matmul_precision"] != "highest" and draft.kind == "cpu":
        text = "matmul_precision has no effect on most CPUs: float32 products stay in full precision"
        draft.note("no-tf32", "matmul_precision", text)
    old = draft.kind == "cuda" and facts.gpus and all(float(gpu.capability) < 8 for gpu in facts.gpus)
    if draft["matmul_precision"] != "highest" and old:
        draft.note("no-tf32", "matmul_precision", "matmul_precision has no effect: no GPU here has TF32")
    threads = draft["num_threads"]
    if threads and threads > facts.usable_cpus:
        text = f"num_threads={threads} is more than the {facts.usable_cpus} CPUs this job may use"
        draft.note("more-threads-than-cpus", "num_threads", text)


# --- how it optimizes ---------------------------------------------------------------------------------------


def check_optimization(draft: Draft) -> None:
    """A module that steps its optimizer by itself clips and accumulates by itself, too."""
    for name, off in (("gradient_clip_val", None), ("accum_steps", 1)):
        if not draft.traits.automatic_optimization and draft[name] != off:
            draft.unsupported(
                "manual-optimization",
                name,
                "the module steps its optimizer itself (manual optimization), where this does not act",
                format_value(off),
                f"set {name}={format_value(off)}, or use automatic optimization",
                off,
            )
    clips = draft["gradient_clip_val"] is not None and draft["gradient_clip_algorithm"] == "agc"
    if clips and draft.traits.clips_gradients is False:
        draft.unsupported(
            "agc-without-hook",
            "gradient_clip_algorithm",
            "the module does not clip by itself, and Lightning would clip by the norm instead",
            "a module with the hook configure_gradient_clipping, or norm or value",
            "write the hook, or set gradient_clip_algorithm=norm with a gradient_clip_val that suits it",
        )


def choose_batch_size(draft: Draft) -> None:
    """`global_batch_size` is shared out among the processes and the batches of one optimizer step."""
    total, world, accum = draft["global_batch_size"], draft.world_size, draft["accum_steps"]
    if not draft.traits.trains:
        return
    if total is None:
        given = draft.traits.train_batch_size
        if given is not None and not asked(draft.settings, "batch_size"):
            draft.decide("batch_size", given, "that of the training loader")
        elif world > 1 and not asked(draft.settings, "batch_size"):
            all_of_them = world * accum * draft["batch_size"]
            text = (
                f"batch_size={draft['batch_size']} is per process, and nobody chose it for {world} of them: "
                f"an optimizer step has {all_of_them} samples; global_batch_size keeps that number"
            )
            draft.note("batch-per-process", "batch_size", text)
        return
    if asked(draft.settings, "batch_size") and asked(draft.settings, "global_batch_size"):
        names = ("batch_size", "global_batch_size")
        what = " and ".join(f"{name}={draft[name]}" for name in names) + " both say how large a batch is"
        where = " and ".join(draft.settings.origin_of(name) for name in names)
        fix = "leave batch_size out, or set global_batch_size=none"
        finding = Finding(what, where, "one of the two", fix, code="conflict", field="global_batch_size")
        draft.problems.append(finding)
        return
    share = world * accum
    below, above = total - total % share, total + -total % share
    if total % share:
        near = [size for size in (below, above) if size]
        draft.unsupported(
            "not-divisible",
            "global_batch_size",
            f"it is not shared out evenly among {world} process(es) with {accum} batch(es) per step each",
            f"a multiple of {share}",
            f"set global_batch_size={' or '.join(map(str, near))}",
            near[0],
        )
    size = max(1, draft["global_batch_size"] // share)
    draft.decide("batch_size", size, f"global_batch_size={draft['global_batch_size']} / {share}")


def check_amounts(draft: Draft) -> None:
    """Batches, accumulation and limits against the training samples and the length of the loaders."""
    samples, batch, limit = draft.traits.train_samples, draft["batch_size"], draft["limit_train_batches"]
    batches = draft.batches_per_epoch
    if not batches:
        return
    if samples and batch > samples:
        text = f"batch_size={batch} is more than the {samples} training samples"
        draft.note("batch-larger-than-data", "batch_size", text)
    if type(limit) is int and limit > batches:
        text = f"limit_train_batches={limit} has no effect: an epoch has {batches} batches"
        draft.note("limit-beyond-epoch", "limit_train_batches", text)
    interval = draft["val_check_interval"]
    if type(interval) is int and interval > batches:
        draft.unsupported(
            "validates-beyond-epoch",
            "val_check_interval",
            f"an epoch has {batches} batches",
            f"at most {batches}, or a fraction",
            f"set val_check_interval={batches}, or check_val_every_n_epoch for less than once per epoch",
            None,
        )
    batches = min(batches, int(batches * limit) if isinstance(limit, float) else limit or batches)
    if draft["accum_steps"] > batches:
        text = f"accum_steps={draft['accum_steps']} is more than the {batches} batches of an epoch"
        text += "; the optimizer steps once per epoch"
        draft.note("accumulates-beyond-epoch", "accum_steps", text)


FRACTIONS = {
    "limit_train_batches": ("training",),
    "overfit_batches": ("training", "validation"),
    "val_check_interval": ("training",),
    "limit_val_batches": ("validation",),
}
"""Fields that can be a fraction of the batches of a loader, and which loaders."""


def check_fractions(draft: Draft) -> None:
    """A fraction needs a loader that knows its length, and must be one batch at least."""
    validation = draft.traits.validation_batches if draft.validates else None
    endless = draft.traits.train_batches == math.inf
    lengths = {
        "training": math.inf if endless else draft.batches_per_epoch,
        "validation": None if validation is None else draft.per_process(validation),
    }
    for name, loaders in FRACTIONS.items() if not draft["fast_dev_run"] else ():
        known = {loader: length for loader in loaders if (length := lengths[loader])}
        part, shortest = draft[name], min(known.values(), default=0)
        if not known or not isinstance(part, float) or part == 1.0:
            continue
        if math.inf in known.values():
            loader = next(loader for loader, length in known.items() if length == math.inf)
            draft.unsupported(
                "no-length",
                name,
                f"it is a fraction, and the {loader} loader does not know how many batches it has",
                "a number of batches",
                f"set {name}=1, or another number of batches",
            )
        elif name != "val_check_interval" and int(shortest * part) == 0:
            draft.unsupported(
                "no-batches",
                name,
                f"that fraction of {shortest} batches is no batch at all",
                "an integer, or a larger fraction",
                f"set {name}=1 for one batch",
                1,
            )


def choose_monitor(draft: Draft) -> None:
    """Without validation data val_loss is never logged, so train_loss ranks; unknown names are refused."""
    name, traits = "checkpoint_monitor_metric", draft.traits
    if draft[name] == "val_loss" and not draft.validates:
        draft.decide(name, "train_loss", "there is no validation data")
    monitor, known = draft[name], traits.logged_metrics
    unvalidated = monitor.startswith("val_") and not draft.validates
    missing = unvalidated or (known is not None and monitor not in known)
    if missing and monitor_readers({field_name: row.value for field_name, row in draft.effective.items()}):
        logged = [metric for metric in known or () if draft.validates or not metric.startswith("val_")]
        nearest = next((metric for metric in ("val_loss", "train_loss") if metric in logged), NOTHING_NEAR)
        draft.unsupported(
            "metric-not-logged",
            name,
            "there is no validation data" if unvalidated else "the module never logs it",
            f"one of: {', '.join(logged)}" if logged else "a metric that training logs, such as train_loss",
            f"set {name}={' or '.join(logged or ['train_loss'])}",
            "train_loss" if known is None else nearest,
        )
    if draft["checkpoint_mode"] == "max" and monitor.endswith("loss"):
        text = f"checkpoint_mode=max keeps the checkpoints with the worst {monitor}"
        draft.note("largest-loss-ranks-first", "checkpoint_mode", text)


def check_averaging(draft: Draft) -> None:
    """Lightning averages weights from version 2.6 on."""
    version = draft.facts.packages.get("lightning", "")
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    for name in ("ema_decay", "swa_epoch_start"):
        if draft[name] is not None and numbers and numbers < [2, 6]:
            draft.unsupported(
                "no-averaging",
                name,
                f"lightning {version} cannot average weights",
                "none, or lightning 2.6 or later",
                f"pip install 'lightning>=2.6', or set {name}=none",
            )


def check_smoke_test(draft: Draft) -> None:
    """A smoke test has its own limits, and ends before anything else could end it."""
    limits = ("max_steps", "max_time", "limit_train_batches", "limit_val_batches", "val_check_interval",
              "overfit_batches", "num_sanity_val_steps", "early_stop_patience")  # fmt: skip
    for name in limits if draft["fast_dev_run"] else ():
        if draft[name] is not None and asked(draft.settings, name):
            text = f"{name}={format_value(draft[name])} has no effect: fast_dev_run={draft['fast_dev_run']}"
            draft.note("smoke-test", name, f"{text} runs so many batches of one epoch")


def check_readers(draft: Draft) -> None:
    """Options that nothing reads in this run are reported."""
    readers = monitor_readers({name: row.value for name, row in draft.effective.items()})
    for name in ("checkpoint_monitor_metric", "checkpoint_mode"):
        if asked(draft.settings, name) and not readers:
            text = f"{name} has no effect: no checkpoints are ranked and nothing stops early"
            draft.note("not-read", name, text)
    silent = draft["logger_backend"] is None
    if silent and asked(draft.settings, "log_every_n_steps"):
        draft.note("no-logger", "log_every_n_steps", "log_every_n_steps has no effect: there is no logger")
    if draft["wandb_mode"] != "offline" and draft["logger_backend"] != "wandb":
        text = f"wandb_mode has no effect: logger_backend is {format_value(draft['logger_backend'])}"
        draft.note("not-this-logger", "wandb_mode", text)
    for name in ("checkpoint_every_n_steps", "checkpoint_every"):
        if draft[name] is not None and not draft["enable_checkpointing"]:
            draft.note("no-checkpoints", name, f"{name} has no effect: no checkpoints are written")
    for name in ("sync_batchnorm", "use_distributed_sampler"):
        if draft.world_size == 1 and name in draft["trainer"]:
            draft.note("idle", "trainer", f"trainer.{name} has no effect: there is one process")
    for name in ("val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps"):
        if draft.was_set(name) and not draft.validates:
            draft.note("no-validation", name, f"{name} has no effect: nothing is validated")


# --- loaders ------------------------------------------------------------------------------------------------


def choose_workers(draft: Draft) -> None:
    """`auto` leaves one CPU to each training process; options of workers need workers."""
    usable, processes = draft.facts.usable_cpus, draft.processes_on_cpus
    if draft["num_workers"] == "auto":
        share = min(MAX_AUTO_WORKERS, max(0, usable // processes - 1))
        draft.decide("num_workers", share, f"auto: {usable} usable CPUs for {processes} process(es)")
    workers = draft["num_workers"]
    if workers * processes > usable:
        total = f"{workers} x {processes}" if processes > 1 else f"{workers}"
        text = f"num_workers={total} is more than the {usable} CPUs this job may use"
        draft.note("more-workers-than-cpus", "num_workers", text)
    for name, off in (("persistent_workers", False), ("prefetch_factor", None)):
        if workers == 0 and draft[name] != off:
            draft.ignore("no-workers", name, off, "num_workers is 0")


def choose_pinning(draft: Draft) -> None:
    """Page-locked memory speeds up copies to a CUDA device and does nothing elsewhere."""
    asked, cuda = draft["pin_memory"], draft.kind == "cuda"
    if asked == "auto":
        draft.decide("pin_memory", cuda, f"auto: batches go to {'a GPU' if cuda else f'the {draft.kind}'}")
    elif asked and not cuda:
        reason = f"it speeds up copies to a CUDA device, and this is {draft.kind}"
        draft.ignore("no-cuda", "pin_memory", False, reason)


def choose_inference_batch(draft: Draft) -> None:
    """Inference uses the training batch size where it has none of its own."""
    if draft["inference_batch_size"] is None:
        draft.decide("inference_batch_size", draft["batch_size"], "none: the same as batch_size")


# --- what is written and shown ------------------------------------------------------------------------------


def check_writing(draft: Draft) -> None:
    """A smoke test writes nothing; ranking options need checkpoints."""
    for name, off in (("enable_checkpointing", False), ("logger_backend", None)):
        if draft["fast_dev_run"] and draft[name] != off:
            draft.decide(name, off, "fast_dev_run writes no checkpoint and no metrics")
    if not draft["enable_checkpointing"] and draft.was_set("checkpoint_save_top_k"):
        reason = "no checkpoints are written" + (" in a fast_dev_run" if draft["fast_dev_run"] else "")
        text = f"checkpoint_save_top_k has no effect: {reason}"
        draft.note("no-checkpoints", "checkpoint_save_top_k", text)


def check_logger(draft: Draft) -> None:
    """A logger needs its package; options of a logger need that logger."""
    backend = draft["logger_backend"]
    packages = LOGGER_PACKAGES.get(backend, ())
    if packages and not draft.facts.has(*packages):
        draft.unsupported(
            "logger-not-installed",
            "logger_backend",
            f"the package {packages[0]} is not installed",
            "csv, none, or an installed logger",
            f"pip install 'ptycho-exec[{backend}]', or set logger_backend=csv",
            "csv",
        )
    backend = draft["logger_backend"]
    if draft["tracking_uri"] and backend != "mlflow":
        text = f"tracking_uri has no effect: logger_backend is {format_value(backend)}"
        draft.note("not-this-logger", "tracking_uri", text)
    if draft.was_set("experiment_name") and backend not in ("mlflow", "wandb"):
        text = f"experiment_name has no effect with logger {format_value(backend)}"
        draft.note("not-this-logger", "experiment_name", text)
    if draft["log_images_every_n_epochs"] and backend is None:
        reason = "there is no logger to send images to"
        draft.ignore("no-logger", "log_images_every_n_epochs", None, reason)


def choose_progress_bar(draft: Draft) -> None:
    """`auto` shows progress: a bar where somebody can watch it, else a line now and then."""
    if draft["enable_progress_bar"] == "auto":
        barebones = bool(draft["trainer"].get("barebones"))
        where = "a line now and then, for a log"
        if draft.facts.terminal or draft.facts.notebook:
            where = "a bar, on a terminal" if draft.facts.terminal else "a bar, in a notebook"
        reason = "none in barebones mode" if barebones else where
        draft.decide("enable_progress_bar", not barebones, f"auto: {reason}")


LAUNCH_RULES: tuple[Callable[[Draft], None], ...] = (follow_launcher, match_launcher)
"""The rules that need nothing but settings and variables."""
RULES: tuple[Callable[[Draft], None], ...] = (
    choose_accelerator,
    *LAUNCH_RULES,
    count_devices,
    choose_strategy,
    check_precision,
    check_compile,
    check_speed_flags,
    check_optimization,
    choose_batch_size,
    check_fractions,
    check_amounts,
    check_averaging,
    check_smoke_test,
    check_writing,
    choose_monitor,
    choose_workers,
    choose_pinning,
    choose_inference_batch,
    check_logger,
    check_readers,
    choose_progress_bar,
)
