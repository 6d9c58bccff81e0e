"""Settings + a machine's facts + what the module can do -> a plan: every effective value with its reason.

A rule is a small generator that looks at the draft and yields decisions; `RULES` is their order. A rule sees
what earlier rules decided. Options that cost or save time and cannot be used here are left out with a notice;
options that change results or the world size become a problem with a remedy, or, under
`on_unsupported="adapt"`, the nearest value this machine can do, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from ptycho_exec.errors import Finding, SettingsError, redact
from ptycho_exec.fields.spec import format_value
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.settings import ExecutionSettings

MAX_AUTO_WORKERS = 8
LOGGER_PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "wandb": ("wandb",),
}


@dataclass(frozen=True, slots=True)
class ModuleTraits:
    """What the module and its data can do; None means that nobody knows yet.

    Attributes:
        automatic_optimization: Lightning steps the optimizer (and so clips and accumulates), not the module.
        logged_metrics: names that the module logs, in training and in validation.
        has_validation: there is validation data.
        train_samples: number of training samples.
    """

    automatic_optimization: bool = True
    logged_metrics: tuple[str, ...] | None = None
    has_validation: bool = True
    train_samples: int | None = None


@dataclass(frozen=True, slots=True)
class Effective:
    """The value a field has in this run, beside the one that was asked for, and why."""

    requested: Any
    value: Any
    reason: str = "as requested"

    @property
    def changed(self) -> bool:
        return type(self.requested) is not type(self.value) or bool(self.requested != self.value)

    def __repr__(self) -> str:
        """Show all of it but credentials."""
        return f"Effective({redact(self.requested)!r} -> {redact(self.value)!r}, {self.reason})"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to know that stops nothing; `adapted` marks a value that can change results."""

    field: str
    text: str
    kind: Literal["note", "adapted"] = "note"


@dataclass(frozen=True, slots=True)
class Problem:
    """A value this machine cannot honor. `refused_by_trainer`: a real Trainer would itself refuse it."""

    field: str
    what: str
    expected: str
    fix: str
    origin: str = ""
    refused_by_trainer: bool = False

    def finding(self) -> Finding:
        return Finding(self.what, where=self.origin, expected=self.expected, fix=self.fix)


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run: a value and a reason for every field, what to know, and what cannot be."""

    requested: ExecutionSettings
    effective: Mapping[str, Effective]
    notices: tuple[Notice, ...] = ()
    problems: tuple[Problem, ...] = ()
    facts: MachineFacts = field(default_factory=MachineFacts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to spawned processes; a read-only mapping cannot by itself."""
        parts = (self.requested, dict(self.effective), self.notices, self.problems, self.facts)
        return _rebuild, parts

    @property
    def settings(self) -> ExecutionSettings:
        """The effective values as settings, not validated again: a plan with problems has them too."""
        values = {name: row.value for name, row in self.effective.items()}
        effective = type(self.requested).model_construct(**values)
        effective._origins = dict(self.requested.origins)
        return effective

    def raise_if_blocked(self, *, include_trainer_refusals: bool = True) -> None:
        """Raise one SettingsError with every problem; leave the Trainer's own refusals to it if told so."""
        blocking = [row for row in self.problems if include_trainer_refusals or not row.refused_by_trainer]
        if blocking:
            raise SettingsError.from_findings([row.finding() for row in blocking])

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data with credentials hidden."""
        rows = {
            name: {
                "requested": redact(row.requested),
                "value": redact(row.value),
                "reason": row.reason,
                "changed": row.changed,
            }
            for name, row in self.effective.items()
        }
        notices = [{"field": row.field, "text": row.text, "kind": row.kind} for row in self.notices]
        problems = [{name: getattr(row, name) for name in Problem.__slots__} for row in self.problems]
        return {"effective": rows, "notices": notices, "problems": problems}


def _rebuild(
    requested: ExecutionSettings,
    effective: dict[str, Effective],
    notices: tuple[Notice, ...],
    problems: tuple[Problem, ...],
    facts: MachineFacts,
) -> Plan:
    return Plan(requested, MappingProxyType(effective), notices, problems, facts)


# --- decisions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decided:
    """An `auto`, or a value that follows from another, became a definite one."""

    field: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """An option that cannot act here and changes no result: replaced, with a notice."""

    field: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """The value stays, but its user should know this."""

    field: str
    text: str


NOTHING_NEAR: Any = object()


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A value that cannot be honored and changes results or world size; `nearest` is what can, if any is."""

    field: str
    what: str
    expected: str
    fix: str
    nearest: Any = NOTHING_NEAR
    refused_by_trainer: bool = False


Decision = Decided | Ignored | Note | Unsupported


@dataclass
class Draft:
    """The plan while rules work on it: `draft["field"]` is the value decided so far."""

    settings: ExecutionSettings
    facts: MachineFacts
    traits: ModuleTraits
    values: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

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
    def world_size(self) -> int:
        return self.processes_per_node * int(self["num_nodes"])

    def was_set(self, name: str) -> bool:
        """Tell whether somebody asked for another value than the default."""
        return bool(self[name] != type(self.settings).model_fields[name].default)

    def apply(self, decision: Decision) -> None:
        match decision:
            case Decided(name, value, reason):
                self.values[name], self.reasons[name] = value, reason
            case Ignored(name, value, reason):
                text = f"{name}={format_value(self[name])} has no effect: {reason}"
                self.notices.append(Notice(name, text))
                self.values[name], self.reasons[name] = value, reason
            case Note(name, text):
                self.notices.append(Notice(name, text))
            case Unsupported():
                self._apply_unsupported(decision)

    def _apply_unsupported(self, found: Unsupported) -> None:
        adapt = self["on_unsupported"] == "adapt" and found.nearest is not NOTHING_NEAR
        if adapt:
            change = f"{found.field}: {format_value(self[found.field])} became {format_value(found.nearest)}"
            self.notices.append(Notice(found.field, f"{change}, because {found.what}", "adapted"))
            self.values[found.field], self.reasons[found.field] = found.nearest, found.what
            return
        origin = self.settings.origins.get(found.field)
        self.problems.append(
            Problem(
                found.field,
                f"{found.field}={format_value(redact(self[found.field]))}: {found.what}",
                found.expected,
                found.fix,
                origin.describe() if origin else "",
                found.refused_by_trainer,
            )
        )


Rule = Callable[[Draft], Iterator[Decision]]


def resolve_plan(
    settings: ExecutionSettings, facts: MachineFacts, traits: ModuleTraits | None = None
) -> Plan:
    """Work out what `settings` mean on a machine with these `facts` for a module with these `traits`."""
    names = type(settings).model_fields
    requested = {name: getattr(settings, name) for name in names}
    draft = Draft(settings, facts, traits or ModuleTraits(), dict(requested))
    for rule in RULES:
        for decision in rule(draft):
            draft.apply(decision)
    effective = {
        name: Effective(requested[name], draft[name], draft.reasons.get(name, "as requested"))
        for name in names
    }
    return Plan(settings, MappingProxyType(effective), tuple(draft.notices), tuple(draft.problems), facts)


# --- where it computes --------------------------------------------------------------------------------------


def choose_accelerator(draft: Draft) -> Iterator[Decision]:
    """`auto` takes the best there is; a GPU that is not there is refused."""
    facts, asked = draft.facts, draft["accelerator"]
    there = {"cpu": True, "cuda": bool(facts.gpus), "mps": facts.mps, "gpu": bool(facts.gpus) or facts.mps}
    if asked == "auto":
        best = "mps" if facts.mps else "cuda" if facts.gpus else "cpu"
        found = "Apple GPU" if facts.mps else facts.gpus[0].name if facts.gpus else "no usable GPU"
        yield Decided(
            "accelerator", best, f"auto: {found}" + (f"; {facts.gpu_note}" if facts.gpu_note else "")
        )
    elif not there[asked]:
        yield Unsupported(
            "accelerator",
            f"this machine has no such GPU ({facts.gpu_note or 'none found'})",
            "one of: " + ", ".join(["auto", *(name for name, usable in there.items() if usable)]),
            "set accelerator=auto or cpu, or run on a machine with that GPU",
            nearest="cpu",
            refused_by_trainer=True,
        )


def count_devices(draft: Draft) -> Iterator[Decision]:
    """`auto` takes all; more devices than there are, and indices on a CPU, are refused."""
    asked = draft["devices"]
    if asked == "auto":
        yield _all_devices(draft)
    elif draft.kind == "cpu":
        yield from _cpu_devices(draft, asked)
    else:
        yield from _gpu_devices(draft, asked)


def _all_devices(draft: Draft) -> Decided:
    facts = draft.facts
    if draft.kind == "cuda" and facts.gpus:
        if facts.notebook:
            return Decided("devices", 1, "auto: one device in a notebook")
        return Decided("devices", len(facts.gpus), f"auto: {len(facts.gpus)} GPUs found")
    tasks = facts.launcher.tasks_per_node
    if draft.kind == "cpu" and tasks:
        return Decided("devices", tasks, f"auto: {facts.launcher.kind} starts {tasks} tasks per node")
    return Decided("devices", 1, f"auto: one {draft.kind} device")


def _cpu_devices(draft: Draft, asked: Any) -> Iterator[Decision]:
    if isinstance(asked, tuple):
        yield Unsupported(
            "devices",
            "CPU devices have no indices",
            "a number of processes, or auto",
            "set devices=1, or an accelerator with numbered devices",
            nearest=1,
            refused_by_trainer=True,
        )
    elif asked > draft.facts.usable_cpus:
        text = f"devices={asked} starts {asked} processes on {draft.facts.usable_cpus} usable CPUs"
        yield Note("devices", text)


def _gpu_devices(draft: Draft, asked: Any) -> Iterator[Decision]:
    there = len(draft.facts.gpus) if draft.kind == "cuda" else int(draft.facts.mps)
    missing = (
        [index for index in asked if index >= there] if isinstance(asked, tuple) else range(there, asked)
    )
    if missing and there:
        kept = tuple(index for index in asked if index < there) if isinstance(asked, tuple) else there
        yield Unsupported(
            "devices",
            f"this machine has {there} {draft.kind} device{'s' if there > 1 else ''}",
            f"at most {there}, or indices below {there}",
            f"set devices={there} or auto",
            nearest=kept or 1,
            refused_by_trainer=True,
        )


def match_nodes(draft: Draft) -> Iterator[Decision]:
    """Several nodes need a launcher that started them all; without one the run waits for ever."""
    asked, launcher = draft["num_nodes"], draft.facts.launcher
    if asked > 1 and launcher.kind == "none":
        yield Unsupported(
            "num_nodes",
            "no launcher started this process, so the run would wait for ever for the other nodes",
            "1 without a launcher",
            "start the run with srun or torchrun on every node, or set num_nodes=1",
            nearest=1,
        )
    elif launcher.kind != "none" and asked != launcher.nodes:
        yield Unsupported(
            "num_nodes",
            f"{launcher.kind} started this run on {launcher.nodes} node(s)",
            f"{launcher.nodes}, as in the launcher's own options",
            f"set num_nodes={launcher.nodes}, or change the launcher's number of nodes",
            nearest=launcher.nodes,
            refused_by_trainer=draft.world_size > 1,
        )


def match_tasks(draft: Draft) -> Iterator[Decision]:
    """One process per device: a launcher that starts another number makes unconnected or stuck runs."""
    launcher, processes = draft.facts.launcher, draft.processes_per_node
    if launcher.kind == "none":
        return
    tasks = launcher.tasks_per_node
    if tasks is not None and tasks != processes:
        consequence = "each task would train alone, all writing the same files" if processes == 1 else ""
        yield Unsupported(
            "devices",
            f"{launcher.kind} starts {tasks} task(s) per node"
            + (f", so {consequence}" if consequence else ""),
            f"{tasks}, one task per device",
            f"set devices={tasks}, or let the launcher start {processes} task(s) per node",
            nearest=tasks if draft.kind == "cpu" or tasks <= len(draft.facts.gpus) else NOTHING_NEAR,
            refused_by_trainer=draft.world_size > 1,
        )
    elif launcher.kind == "slurm" and launcher.world_size > 1:
        yield from _slurm_traps(draft, launcher.variables)


def _slurm_traps(draft: Draft, variables: Mapping[str, str]) -> Iterator[Decision]:
    def trap(what: str, fix: str, refused: bool = True) -> Unsupported:
        return Unsupported("devices", what, "a job that every task can join", fix, refused_by_trainer=refused)

    text, tasks = variables.get("SLURM_NTASKS_PER_NODE"), draft.facts.launcher.tasks_per_node
    if text is None:
        ntasks = variables.get("SLURM_NTASKS")
        yield trap(
            f"SLURM was given --ntasks={ntasks}, which Lightning does not understand",
            "give --nodes and --ntasks-per-node instead of --ntasks",
        )
    elif tasks is None:
        yield trap(f"SLURM_NTASKS_PER_NODE={text} differs between nodes", "give every node the same tasks")
    elif not text.isdigit():
        yield trap(
            f"Lightning cannot read SLURM_NTASKS_PER_NODE={text}",
            f"give --ntasks-per-node={tasks}, or export SLURM_NTASKS_PER_NODE={tasks}",
        )
    absent = [name for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID") if name not in variables]
    if absent:
        yield trap(f"{', '.join(absent)} not set: this is not a task of a job step", "start it with srun")
    elif "SLURM_STEP_ID" not in variables:
        why = "srun did not start this process, so the run would wait for ever for the other tasks"
        yield trap(why, "start the command with srun", refused=False)


def choose_strategy(draft: Draft) -> Iterator[Decision]:
    """`auto` is one process, or ddp for several; a strategy that this machine lacks is refused."""
    asked = draft["strategy"]
    fallback = "auto" if draft.world_size == 1 else "ddp_notebook" if draft.facts.notebook else "ddp"
    if asked == "auto":
        one = "auto: one process on one device"
        yield Decided(
            "strategy", fallback, one if fallback == "auto" else f"auto: {draft.world_size} processes"
        )
        return
    for what, fix, nearest in _strategy_obstacles(draft, asked, fallback):
        yield Unsupported("strategy", what, f"{fallback} here", fix, nearest=nearest, refused_by_trainer=True)
        return


def _strategy_obstacles(draft: Draft, asked: str, fallback: str) -> Iterator[tuple[str, str, str]]:
    facts, kind = draft.facts, draft.kind
    shards = asked.startswith(("fsdp", "deepspeed"))
    if shards and kind != "cuda":
        yield f"it shards over CUDA devices, and this run computes on {kind}", "set strategy=auto", fallback
    if asked.startswith("deepspeed") and not facts.has("deepspeed"):
        yield "the package deepspeed is not installed", "pip install deepspeed, or strategy=auto", fallback
    if asked.startswith("ddp") and kind == "mps":
        yield "Apple GPUs work alone, without ddp", "set strategy=auto", "auto"
    forks = asked in ("ddp_fork", "ddp_notebook")
    if forks and facts.platform.startswith("Windows"):
        yield "this platform cannot fork processes", "set strategy=ddp_spawn", "ddp_spawn"
    if facts.notebook and not forks:
        yield "it cannot start processes from a notebook", "set strategy=ddp_notebook", "ddp_notebook"


def check_precision(draft: Draft) -> Iterator[Decision]:
    """Lightning changes or accepts what the hardware has not; here it is a problem with a remedy."""
    asked, kind, facts = draft["precision"], draft.kind, draft.facts
    lacking = kind == "cuda" and any(not gpu.bf16 for gpu in facts.gpus)
    sharded = draft["strategy"].startswith(("fsdp", "deepspeed"))

    def impossible(what: str, nearest: str, refused: bool = False) -> Unsupported:
        fix = f"set precision={nearest}"
        return Unsupported("precision", what, f"{nearest} here", fix, nearest, refused)

    if asked == "16-mixed" and kind == "cpu":
        yield impossible("a CPU has no fp16 autocast; Lightning would silently use bf16-mixed", "bf16-mixed")
    elif asked == "64-true" and kind == "mps":
        yield impossible("Apple GPUs have no 64-bit floats", "32-true")
    elif asked == "64-true" and sharded:
        yield impossible(f"{draft['strategy']} has no 64-bit mode", "32-true", refused=True)
    elif asked.startswith("bf16") and lacking:
        yield impossible("not every GPU here computes in bfloat16; torch would emulate it", "32-true")
    elif asked == "16-true" and kind == "cpu":
        yield Note("precision", "precision=16-true on a CPU is slow, and not every operation exists in it")


def check_compile(draft: Draft) -> Iterator[Decision]:
    """torch.compile writes code, so it needs a C++ compiler on a CPU and Triton on CUDA."""
    if not draft["compile"]:
        return
    facts = draft.facts
    missing = (
        "a C++ compiler" if draft.kind == "cpu" and facts.compiler is None
        else "the package triton" if draft.kind == "cuda" and not facts.has("triton")
        else ""
    )  # fmt: skip
    if missing:
        yield Unsupported(
            "compile",
            f"torch.compile needs {missing}, and there is none",
            f"false, or {missing}",
            f"install {missing.removeprefix('a ')}, or set compile=false",
            nearest=False,
        )


def check_speed_flags(draft: Draft) -> Iterator[Decision]:
    """Flags of CUDA libraries say so when there is no CUDA; threads are compared with CPUs."""
    facts = draft.facts
    if draft["benchmark"] and draft.kind != "cuda":
        yield Ignored("benchmark", False, f"cuDNN is not used on {draft.kind}")
    old = draft.kind == "cuda" and facts.gpus and all(float(gpu.capability) < 8 for gpu in facts.gpus)
    if draft["matmul_precision"] != "highest" and old:
        yield Note("matmul_precision", "matmul_precision has no effect: no GPU here has TF32")
    threads = draft["num_threads"]
    if threads and threads > facts.usable_cpus:
        text = f"num_threads={threads} is more than the {facts.usable_cpus} CPUs this job may use"
        yield Note("num_threads", text)


# --- how it optimizes ---------------------------------------------------------------------------------------


def check_optimization(draft: Draft) -> Iterator[Decision]:
    """A module that steps its optimizer by itself clips and accumulates by itself, too."""
    if draft.traits.automatic_optimization:
        return
    for name, off in (("gradient_clip_val", None), ("accum_steps", 1)):
        if draft[name] != off:
            yield Unsupported(
                name,
                "the module steps its optimizer itself (manual optimization), where this does not act",
                format_value(off),
                f"set {name}={format_value(off)}, or use automatic optimization",
                nearest=off,
            )


def check_amounts(draft: Draft) -> Iterator[Decision]:
    """Batches, accumulation and limits against the number of training samples."""
    samples, batch, limit = draft.traits.train_samples, draft["batch_size"], draft["limit_train_batches"]
    if not samples:
        return
    batches = -(-samples // (batch * draft.world_size))
    if batch > samples:
        yield Note("batch_size", f"batch_size={batch} is more than the {samples} training samples")
    if isinstance(limit, float) and int(batches * limit) == 0:
        yield Unsupported(
            "limit_train_batches",
            f"that fraction of {batches} batches is no batch at all",
            "a whole number, or a larger fraction",
            "set limit_train_batches=1 for one batch",
            nearest=1,
        )
    if draft["accum_steps"] > batches:
        text = f"accum_steps={draft['accum_steps']} is more than the {batches} batches of an epoch"
        yield Note("accum_steps", f"{text}; the optimizer steps once per epoch")


def choose_monitor(draft: Draft) -> Iterator[Decision]:
    """Without validation data val_loss is never logged, so train_loss ranks; unknown names are refused."""
    asked, traits = draft["checkpoint_monitor_metric"], draft.traits
    if asked == "val_loss" and not traits.has_validation:
        yield Decided("checkpoint_monitor_metric", "train_loss", "there is no validation data")
    monitor, known = draft["checkpoint_monitor_metric"], traits.logged_metrics
    unvalidated = monitor.startswith("val_") and not traits.has_validation
    if _uses_monitor(draft) and (unvalidated or (known is not None and monitor not in known)):
        names = [name for name in known or () if traits.has_validation or not name.startswith("val_")]
        nearest = next((name for name in ("val_loss", "train_loss") if name in names), NOTHING_NEAR)
        yield Unsupported(
            "checkpoint_monitor_metric",
            "there is no validation data" if unvalidated else "the module never logs it",
            f"one of: {', '.join(names)}" if names else "a metric that training logs, such as train_loss",
            "set checkpoint_monitor_metric to a logged metric",
            nearest="train_loss" if known is None else nearest,
        )
    if draft["checkpoint_mode"] == "max" and monitor.endswith("loss"):
        yield Note("checkpoint_mode", f"checkpoint_mode=max keeps the checkpoints with the worst {monitor}")


def _uses_monitor(draft: Draft) -> bool:
    ranks = draft["enable_checkpointing"] and draft["checkpoint_save_top_k"] != 0
    return bool(ranks or draft["early_stop_patience"] or draft["scheduler"] == "ReduceLROnPlateau")


# --- loaders ------------------------------------------------------------------------------------------------


def choose_workers(draft: Draft) -> Iterator[Decision]:
    """`auto` leaves one CPU to each training process; options of workers need workers."""
    usable, processes = draft.facts.usable_cpus, draft.processes_per_node
    if draft["num_workers"] == "auto":
        share = min(MAX_AUTO_WORKERS, max(0, usable // processes - 1))
        yield Decided("num_workers", share, f"auto: {usable} usable CPUs for {processes} process(es)")
    workers = draft["num_workers"]
    if workers * processes > usable:
        total = f"{workers} x {processes}" if processes > 1 else f"{workers}"
        yield Note("num_workers", f"num_workers={total} is more than the {usable} CPUs this job may use")
    if workers == 0:
        if draft["persistent_workers"]:
            yield Ignored("persistent_workers", False, "num_workers is 0")
        if draft["prefetch_factor"] is not None:
            yield Ignored("prefetch_factor", None, "num_workers is 0")


def choose_pinning(draft: Draft) -> Iterator[Decision]:
    """Page-locked memory speeds up copies to a CUDA device and does nothing elsewhere."""
    asked, cuda = draft["pin_memory"], draft.kind == "cuda"
    if asked == "auto":
        yield Decided("pin_memory", cuda, f"auto: batches go to {'a GPU' if cuda else f'the {draft.kind}'}")
    elif asked and not cuda:
        yield Ignored("pin_memory", False, f"it speeds up copies to a CUDA device, and this is {draft.kind}")


def choose_inference_batch(draft: Draft) -> Iterator[Decision]:
    """Inference uses the training batch size unless told otherwise."""
    if draft["inference_batch_size"] is None:
        yield Decided("inference_batch_size", draft["batch_size"], "none: the same as batch_size")


# --- what is written and shown ------------------------------------------------------------------------------


def check_writing(draft: Draft) -> Iterator[Decision]:
    """A smoke test writes nothing; ranking options need checkpoints."""
    if draft["fast_dev_run"]:
        for name, off in (("enable_checkpointing", False), ("logger_backend", None)):
            if draft[name] != off:
                yield Decided(name, off, "fast_dev_run writes no checkpoint and no metrics")
    if not draft["enable_checkpointing"] and draft.was_set("checkpoint_save_top_k"):
        reason = "no checkpoints are written" + (" in a fast_dev_run" if draft["fast_dev_run"] else "")
        yield Note("checkpoint_save_top_k", f"checkpoint_save_top_k has no effect: {reason}")


def check_logger(draft: Draft) -> Iterator[Decision]:
    """A logger needs its package; options of a logger need that logger."""
    backend = draft["logger_backend"]
    packages = LOGGER_PACKAGES.get(backend, ())
    if packages and not draft.facts.has(*packages):
        yield Unsupported(
            "logger_backend",
            f"the package {packages[0]} is not installed",
            "csv, none, or an installed logger",
            f"pip install 'ptycho-exec[{backend}]', or set logger_backend=csv",
            nearest="csv",
        )
    backend = draft["logger_backend"]
    if draft["tracking_uri"] and backend != "mlflow":
        yield Note("tracking_uri", f"tracking_uri has no effect: logger_backend is {format_value(backend)}")
    if draft.was_set("experiment_name") and backend not in ("mlflow", "wandb"):
        yield Note("experiment_name", f"experiment_name has no effect with logger {format_value(backend)}")
    if draft["log_images_every_n_epochs"] and backend is None:
        yield Ignored("log_images_every_n_epochs", None, "there is no logger to send pictures to")


def choose_progress_bar(draft: Draft) -> Iterator[Decision]:
    """`auto` shows progress where somebody can watch it."""
    if draft["enable_progress_bar"] == "auto":
        watched = draft.facts.terminal or draft.facts.notebook
        where = "output is a terminal" if draft.facts.terminal else "a notebook" if watched else "no terminal"
        yield Decided("enable_progress_bar", watched, f"auto: {where}")


RULES: tuple[Rule, ...] = (
    choose_accelerator,
    count_devices,
    match_nodes,
    match_tasks,
    choose_strategy,
    check_precision,
    check_compile,
    check_speed_flags,
    check_optimization,
    check_amounts,
    check_writing,
    choose_monitor,
    choose_workers,
    choose_pinning,
    choose_inference_batch,
    check_logger,
    choose_progress_bar,
)
