"""The plan: every rule on machines that are described, not needed."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from ptycho_exec.errors import Finding, SettingsError
from ptycho_exec.fields.model import METRIC_DRIVEN
from ptycho_exec.fields.spec import decode_text, field_specs
from ptycho_exec.machine.facts import Gpu, MachineFacts
from ptycho_exec.machine.ranks import detect_launcher
from ptycho_exec.plan import RULES, ModuleTraits, Plan, Totals, resolve_launch, resolve_plan
from ptycho_exec.settings import ExecutionSettings
from tests.exec.launchers import Variables, job, step, torchrun

A100 = Gpu(name="A100", memory_mb=40536, capability="8.0", bf16=True)
V100 = Gpu(name="V100", memory_mb=16384, capability="7.0", bf16=False)
PACKAGES = {"torch": "2.13.0", "triton": "3.5", "tensorboard": "2.20", "deepspeed": "0.18"}
LAPTOP = MachineFacts(cpus_logical=8, compiler="/usr/bin/g++", platform="Linux-6")
NODE = MachineFacts(cpus_logical=32, gpus=(A100,) * 4, packages=PACKAGES, compiler="/usr/bin/g++")
MAC = MachineFacts(cpus_logical=8, mps=True, platform="Darwin-24", compiler="/usr/bin/clang++")


def plan_for(facts: MachineFacts = LAPTOP, traits: ModuleTraits | None = None, **values: object) -> Plan:
    return resolve_plan(ExecutionSettings.from_values(values), facts, traits)


def only_problem(plan: Plan) -> Finding:
    assert len(plan.problems) == 1, plan.problems
    return plan.problems[0]


def with_facts(facts: MachineFacts, **changes: Any) -> MachineFacts:
    return facts.model_copy(update=changes)


UNEVEN = step(2, 3, 1, SLURM_STEP_TASKS_PER_NODE="2,1", SLURM_STEP_NUM_NODES="2")
NOTEBOOK = job(4, SLURM_JOB_NAME="sys/dashboard/sys/jupyter")


def started(variables: Variables, facts: MachineFacts = LAPTOP) -> MachineFacts:
    """Return facts of a machine on which a launcher started this process."""
    return with_facts(facts, launcher=detect_launcher(variables))


# --- the whole ----------------------------------------------------------------------------------------


def test_every_field_has_an_effective_value_and_a_reason() -> None:
    plan = plan_for()
    assert plan.effective.keys() == ExecutionSettings.model_fields.keys()
    assert all(row.reason for row in plan.effective.values())
    assert isinstance(plan.effective, MappingProxyType)


@pytest.mark.parametrize("facts", [LAPTOP, NODE, MAC, MachineFacts()])
def test_defaults_run_anywhere_and_no_auto_remains(facts: MachineFacts) -> None:
    plan = plan_for(facts)
    assert plan.problems == ()
    assert plan.notices == ()
    left = {name for name, row in plan.effective.items() if row.value == "auto"}
    assert left == {"strategy"}


def test_effective_settings_keep_the_origins() -> None:
    plan = plan_for(batch_size=8)
    assert plan.settings.batch_size == 8
    assert plan.settings.accelerator == "cpu"
    assert plan.settings.origins == plan.requested.origins
    assert plan.requested.accelerator == "auto"


def test_a_rule_sees_what_earlier_rules_decided() -> None:
    plan = plan_for(accelerator="gpu", devices=[0, 1], pin_memory=True, on_unsupported="adapt")
    assert (plan.settings.accelerator, plan.settings.devices) == ("cpu", 1)
    assert plan.settings.pin_memory is False
    assert plan.problems == ()


def test_every_problem_is_raised_at_once_with_origin_and_remedy() -> None:
    plan = plan_for(accelerator="gpu", num_nodes=2, logger_backend="wandb")
    with pytest.raises(SettingsError) as caught:
        plan.raise_if_blocked()
    text = str(caught.value)
    assert len(caught.value.findings) == 3
    for words in ("accelerator=gpu", "num_nodes=2", "logger_backend=wandb", "argument from_values()", "fix:"):
        assert words in text


def test_refusals_can_be_left_to_the_trainer() -> None:
    plan = plan_for(accelerator="gpu")
    assert only_problem(plan) in plan.refused_by_trainer
    plan.raise_if_blocked(include_trainer_refusals=False)
    with pytest.raises(SettingsError):
        plan.raise_if_blocked(include_trainer_refusals=True)


def test_plan_as_json_hides_credentials() -> None:
    found = str(plan_for(tracking_uri="http://me:secret@host").to_json())
    assert "secret" not in found
    assert "http://***@host" in found


def test_adapting_warns_and_records_the_reason() -> None:
    plan = plan_for(precision="16-mixed", on_unsupported="adapt")
    row = plan.effective["precision"]
    assert (row.requested, row.value, row.changed) == ("16-mixed", "bf16-mixed", True)
    assert "fp16" in row.reason
    (notice,) = plan.notices
    assert (notice.field, notice.level) == ("precision", "adapted")
    assert plan.problems == ()


def test_adapting_cannot_help_where_nothing_is_near() -> None:
    plan = plan_for(started(UNEVEN), devices=2, on_unsupported="adapt")
    assert "not the same number on every node" in only_problem(plan).what


# --- choices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "asked", "field", "value"),
    [
        (LAPTOP, {}, "accelerator", "cpu"),
        (NODE, {}, "accelerator", "cuda"),
        (MAC, {}, "accelerator", "mps"),
        (NODE, {"accelerator": "gpu"}, "accelerator", "gpu"),
        (LAPTOP, {"devices": "auto"}, "devices", 1),
        (NODE, {"devices": "auto"}, "devices", 4),
        (with_facts(NODE, notebook=True), {"devices": "auto"}, "devices", 1),
        (started(step(1)), {"devices": "auto"}, "devices", 2),
        (started(step(1)), {}, "devices", 2),
        (started(step(1)), {}, "strategy", "ddp"),
        (started(step(3, 4, 2)), {}, "devices", 2),
        (started(step(3, 4, 2)), {}, "num_nodes", 2),
        (started(torchrun(3)), {}, "devices", 2),
        (started(torchrun(3)), {}, "num_nodes", 2),
        (started(torchrun(0, 1, 1), NODE), {"devices": "auto"}, "devices", 1),
        (started(step(tasks=1), NODE), {"devices": "auto"}, "devices", 4),
        (started(job(1), NODE), {"devices": "auto"}, "devices", 4),
        (LAPTOP, {}, "strategy", "auto"),
        (NODE, {"devices": 2}, "strategy", "ddp"),
        (with_facts(NODE, notebook=True), {"devices": 2}, "strategy", "ddp_notebook"),
        (LAPTOP, {}, "num_workers", 0),
        (LAPTOP, {"num_workers": "auto"}, "num_workers", 7),
        (NODE, {"num_workers": "auto"}, "num_workers", 8),
        (NODE, {"num_workers": "auto", "devices": 4}, "num_workers", 7),
        (with_facts(LAPTOP, cpus_affinity=4), {"num_workers": "auto"}, "num_workers", 3),
        (with_facts(LAPTOP, cpus_cgroup=1.5), {"num_workers": "auto"}, "num_workers", 0),
        (with_facts(LAPTOP, cpus_slurm=2), {"num_workers": "auto"}, "num_workers", 1),
        (LAPTOP, {}, "pin_memory", False),
        (NODE, {}, "pin_memory", True),
        (MAC, {}, "pin_memory", False),
        (LAPTOP, {}, "enable_progress_bar", True),
        (LAPTOP, {"trainer": {"barebones": True}}, "enable_progress_bar", False),
        (with_facts(LAPTOP, terminal=True), {}, "enable_progress_bar", True),
        (with_facts(LAPTOP, notebook=True), {}, "enable_progress_bar", True),
        (LAPTOP, {"batch_size": 4}, "inference_batch_size", 4),
        (LAPTOP, {"inference_batch_size": 64}, "inference_batch_size", 64),
        (LAPTOP, {"fast_dev_run": 1}, "enable_checkpointing", False),
        (LAPTOP, {"fast_dev_run": 1}, "logger_backend", None),
    ],
)
def test_what_is_chosen(facts: MachineFacts, asked: Mapping[str, object], field: str, value: object) -> None:
    row = plan_for(facts, **asked).effective[field]
    assert (row.value, type(row.value)) == (value, type(value))
    assert row.changed == (asked.get(field, ExecutionSettings.model_fields[field].default) != value)


def test_train_loss_ranks_when_nothing_validates() -> None:
    plan = plan_for(traits=ModuleTraits(has_validation=False))
    row = plan.effective["checkpoint_monitor_metric"]
    assert (row.value, row.reason) == ("train_loss", "there is no validation data")
    assert plan.notices == plan.problems == ()


# --- left out, with a notice ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "asked", "field", "value"),
    [
        (LAPTOP, {"pin_memory": True}, "pin_memory", False),
        (MAC, {"pin_memory": True}, "pin_memory", False),
        (LAPTOP, {"persistent_workers": True}, "persistent_workers", False),
        (LAPTOP, {"prefetch_factor": 4}, "prefetch_factor", None),
        (LAPTOP, {"benchmark": True, "deterministic": False}, "benchmark", False),
        (
            LAPTOP,
            {"log_images_every_n_epochs": 5, "logger_backend": None},
            "log_images_every_n_epochs",
            None,
        ),
    ],
)
def test_what_has_no_use_is_left_out(
    facts: MachineFacts, asked: Mapping[str, object], field: str, value: object
) -> None:
    plan = plan_for(facts, **asked)
    assert plan.effective[field].value == value
    (notice,) = plan.notices
    assert notice.field == field
    assert "no effect" in notice.what
    assert plan.problems == ()


NOTHING_RANKED = {"checkpoint_save_top_k": 0, "early_stop_patience": None}


@pytest.mark.parametrize(
    ("facts", "traits", "asked", "field"),
    [
        (LAPTOP, None, {"num_workers": 9}, "num_workers"),
        (LAPTOP, None, {"devices": 9, "accelerator": "cpu", "batch_size": 8}, "devices"),
        (LAPTOP, None, {"num_threads": 9}, "num_threads"),
        (LAPTOP, None, {"precision": "16-true"}, "precision"),
        (with_facts(NODE, gpus=(V100,)), None, {"matmul_precision": "high"}, "matmul_precision"),
        (LAPTOP, ModuleTraits(train_samples=10), {"batch_size": 11}, "batch_size"),
        (LAPTOP, ModuleTraits(train_samples=64), {"accum_steps": 5}, "accum_steps"),
        (LAPTOP, None, {"checkpoint_mode": "max"}, "checkpoint_mode"),
        (LAPTOP, None, {"tracking_uri": "http://x"}, "tracking_uri"),
        (LAPTOP, None, {"experiment_name": "x"}, "experiment_name"),
        (
            LAPTOP,
            None,
            {"enable_checkpointing": False, "checkpoint_save_top_k": 3},
            "checkpoint_save_top_k",
        ),
        (LAPTOP, None, {"matmul_precision": "medium"}, "matmul_precision"),
        (LAPTOP, None, {**NOTHING_RANKED, "checkpoint_monitor_metric": "loss"}, "checkpoint_monitor_metric"),
        (LAPTOP, None, {**NOTHING_RANKED, "checkpoint_mode": "min"}, "checkpoint_mode"),
        (LAPTOP, None, {"logger_backend": None, "log_every_n_steps": 5}, "log_every_n_steps"),
        (LAPTOP, None, {"fast_dev_run": 1, "limit_train_batches": 3}, "limit_train_batches"),
        (LAPTOP, None, {"fast_dev_run": 1, "early_stop_patience": 3}, "early_stop_patience"),
        (LAPTOP, None, {"fast_dev_run": 1, "max_time": "00:01:00:00"}, "max_time"),
        (LAPTOP, None, {"fast_dev_run": 1, "max_steps": 3}, "max_steps"),
        (LAPTOP, ModuleTraits(train_samples=64), {"limit_train_batches": 1000}, "limit_train_batches"),
        (
            LAPTOP,
            ModuleTraits(train_samples=64),
            {"accum_steps": 3, "limit_train_batches": 2},
            "accum_steps",
        ),
        (LAPTOP, None, {"wandb_mode": "online"}, "wandb_mode"),
        (
            LAPTOP,
            None,
            {"enable_checkpointing": False, "checkpoint_every_n_steps": 5},
            "checkpoint_every_n_steps",
        ),
        (
            LAPTOP,
            None,
            {"enable_checkpointing": False, "checkpoint_every": "00:01:00:00"},
            "checkpoint_every",
        ),
        (LAPTOP, ModuleTraits(has_validation=False), {"val_check_interval": 0.5}, "val_check_interval"),
        (LAPTOP, None, {"limit_val_batches": 0, "check_val_every_n_epoch": 2}, "check_val_every_n_epoch"),
        (LAPTOP, None, {"trainer": {"sync_batchnorm": True}}, "trainer"),
        (LAPTOP, None, {"trainer": {"use_distributed_sampler": False}}, "trainer"),
    ],
)
def test_remarks_change_nothing(
    facts: MachineFacts, traits: ModuleTraits | None, asked: Mapping[str, object], field: str
) -> None:
    plan = plan_for(facts, traits, **asked)
    (notice,) = plan.notices
    assert (notice.field, notice.level) == (field, "note")
    assert not plan.effective[field].changed
    assert plan.problems == ()


# --- problems, with their nearest value -------------------------------------------------------------

MANUAL = ModuleTraits(automatic_optimization=False)
BLIND = ModuleTraits(has_validation=False)
NOTHING = "nothing"
OF_THE_LAUNCH = (
    "launcher-unclear",
    "started-by-mpi",
    "not-in-srun",
    "uneven-tasks",
    "gpus-hidden-from-tasks",
)
"""Codes of problems for which no setting helps, but another start of the command."""

PROBLEMS: list[tuple[MachineFacts, ModuleTraits | None, dict[str, object], str, str, object, bool]] = [
    # facts, traits, asked, field, words, nearest, refused by the Trainer
    (LAPTOP, None, {"accelerator": "gpu"}, "accelerator", "no such GPU", "cpu", True),
    (LAPTOP, None, {"accelerator": "cuda"}, "accelerator", "no such GPU", "cpu", True),
    (NODE, None, {"accelerator": "mps"}, "accelerator", "no such GPU", "cpu", True),
    (MAC, None, {"accelerator": "cuda"}, "accelerator", "no such GPU", "cpu", True),
    (LAPTOP, None, {"devices": [0, 1]}, "devices", "no indices", 1, True),
    (NODE, None, {"devices": 8}, "devices", "4 cuda devices", 4, True),
    (NODE, None, {"devices": [0, 7]}, "devices", "4 cuda devices", (0,), True),
    (NODE, None, {"devices": [7]}, "devices", "4 cuda devices", 1, True),
    (MAC, None, {"devices": 2}, "devices", "1 mps device", 1, True),
    (LAPTOP, None, {"num_nodes": 2}, "num_nodes", "wait for ever", 1, False),
    (started(step(0, 2, 2)), None, {"num_nodes": 1, "devices": 1}, "num_nodes", "2 node(s)", 2, False),
    (started(torchrun(0, 2, 1)), None, {"num_nodes": 3}, "num_nodes", "2 node(s)", 2, False),
    (started(torchrun(1, 4, 4), NODE), None, {"devices": 2}, "devices", "4 task(s)", 4, False),
    (started(torchrun(0, 1, 1), NODE), None, {"devices": 2}, "devices", "1 task(s)", 1, False),
    (started(step(1)), None, {"devices": 1}, "devices", "2 task(s)", 2, False),
    (started(step(1)), None, {"devices": 3}, "devices", "2 task(s)", 2, False),
    (started(step(1)), None, {"strategy": "ddp_spawn"}, "strategy", "started the processes", "ddp", False),
    (started(UNEVEN), None, {}, "devices", "not the same number", NOTHING, False),
    (started(torchrun(0, 3, 2, GROUP_WORLD_SIZE="2")), None, {}, "devices", "not the same", NOTHING, False),
    (started(job(2)), None, {}, "devices", "srun did not start", NOTHING, False),
    (started(job(2)), None, {"devices": 2}, "devices", "srun did not start", NOTHING, False),
    (started({"OMPI_COMM_WORLD_SIZE": "4"}), None, {}, "devices", "MPI started 4", NOTHING, False),
    (started({"WORLD_SIZE": "4"}), None, {}, "devices", "cannot know which one", NOTHING, False),
    (started(step(1), with_facts(NODE, gpus=(A100,))), None, {}, "devices", "sees 1 cuda", NOTHING, False),
    (started(torchrun(1, 2), with_facts(NODE, gpus=(A100,))), None, {}, "devices", "sees 1", NOTHING, False),
    (
        started(step(SLURM_PTY_PORT="4", SLURM_JOB_NAME="bash"), with_facts(LAPTOP, terminal=True)),
        None,
        {},
        "devices",
        "this shell is the first of the 2 tasks",
        NOTHING,
        False,
    ),
    (started(job(1), LAPTOP), None, {"num_nodes": 2}, "num_nodes", "1 node(s)", 1, False),
    (started(NOTEBOOK), None, {"num_nodes": 2}, "num_nodes", "wait for ever", 1, False),
    (LAPTOP, None, {"strategy": "fsdp"}, "strategy", "shards over CUDA devices", "auto", True),
    (
        with_facts(NODE, packages={}),
        None,
        {"strategy": "deepspeed_stage_2", "devices": 2},
        "strategy",
        "deepspeed is not installed",
        "ddp",
        True,
    ),
    (MAC, None, {"strategy": "ddp"}, "strategy", "Apple GPUs work alone", "auto", True),
    (
        with_facts(LAPTOP, platform="Windows-11"),
        None,
        {"strategy": "ddp_fork"},
        "strategy",
        "cannot fork",
        "ddp_spawn",
        True,
    ),
    (
        with_facts(NODE, notebook=True),
        None,
        {"strategy": "ddp"},
        "strategy",
        "notebook",
        "ddp_notebook",
        True,
    ),
    (LAPTOP, None, {"precision": "16-mixed"}, "precision", "no fp16 autocast", "bf16-mixed", False),
    (MAC, None, {"precision": "64-true"}, "precision", "no 64-bit", "32-true", False),
    (
        NODE,
        None,
        {"precision": "64-true", "strategy": "fsdp"},
        "precision",
        "no 64-bit mode",
        "32-true",
        True,
    ),
    (
        with_facts(NODE, gpus=(V100,)),
        None,
        {"precision": "bf16-mixed"},
        "precision",
        "bfloat16",
        "32-true",
        False,
    ),
    (with_facts(LAPTOP, compiler=None), None, {"compile": True}, "compile", "a C++ compiler", False, False),
    (with_facts(NODE, packages={}), None, {"compile": True}, "compile", "triton", False, False),
    (LAPTOP, MANUAL, {"gradient_clip_val": 1.0}, "gradient_clip_val", "manual", None, False),
    (LAPTOP, MANUAL, {"accum_steps": 2}, "accum_steps", "manual", 1, False),
    (
        LAPTOP,
        ModuleTraits(clips_gradients=False),
        {"gradient_clip_algorithm": "agc", "gradient_clip_val": 0.01},
        "gradient_clip_algorithm",
        "does not clip by itself",
        NOTHING,
        False,
    ),
    (
        with_facts(LAPTOP, packages={"lightning": "2.5.6"}),
        None,
        {"ema_decay": 0.99},
        "ema_decay",
        "cannot average",
        NOTHING,
        False,
    ),
    (
        LAPTOP,
        ModuleTraits(train_samples=64),
        {"val_check_interval": 9},
        "val_check_interval",
        "4 batches",
        None,
        False,
    ),
    (
        LAPTOP,
        ModuleTraits(train_samples=64),
        {"limit_train_batches": 0.1},
        "limit_train_batches",
        "no batch at all",
        1,
        False,
    ),
    (
        LAPTOP,
        ModuleTraits(validation_batches=4),
        {"limit_val_batches": 0.01},
        "limit_val_batches",
        "fraction of 4 batches is no batch at all",
        1,
        False,
    ),
    (
        LAPTOP,
        ModuleTraits(train_batches=8, validation_batches=3),
        {"overfit_batches": 0.25},
        "overfit_batches",
        "fraction of 3 batches is no batch at all",
        1,
        False,
    ),
    (
        LAPTOP,
        ModuleTraits(train_batches=math.inf),
        {"val_check_interval": 0.5},
        "val_check_interval",
        "the training loader does not know",
        NOTHING,
        False,
    ),
    (
        LAPTOP,
        ModuleTraits(train_batches=math.inf),
        {"limit_train_batches": 0.5},
        "limit_train_batches",
        "the training loader does not know",
        NOTHING,
        False,
    ),
    (
        LAPTOP,
        ModuleTraits(train_batches=4, validation_batches=math.inf),
        {"overfit_batches": 0.5},
        "overfit_batches",
        "the validation loader does not know",
        NOTHING,
        False,
    ),
    (
        LAPTOP,
        ModuleTraits(logged_metrics=("train_loss", "val_loss")),
        {"checkpoint_monitor_metric": "ssim"},
        "checkpoint_monitor_metric",
        "never logs it",
        "val_loss",
        False,
    ),
    (
        LAPTOP,
        BLIND,
        {"checkpoint_monitor_metric": "val_ssim"},
        "checkpoint_monitor_metric",
        "no validation data",
        "train_loss",
        False,
    ),
    (LAPTOP, None, {"logger_backend": "tensorboard"}, "logger_backend", "not installed", "csv", False),
    (LAPTOP, None, {"logger_backend": "mlflow"}, "logger_backend", "not installed", "csv", False),
    (LAPTOP, None, {"logger_backend": "wandb"}, "logger_backend", "not installed", "csv", False),
]


@pytest.mark.parametrize(("facts", "traits", "asked", "field", "words", "nearest", "refused"), PROBLEMS)
def test_what_cannot_be_is_a_problem_with_a_remedy(
    facts: MachineFacts,
    traits: ModuleTraits | None,
    asked: Mapping[str, object],
    field: str,
    words: str,
    nearest: object,
    refused: bool,
) -> None:
    plan = plan_for(facts, traits, **asked)
    problem = only_problem(plan)
    assert problem.field == field
    assert words in problem.what
    assert problem.expected
    assert problem.fix
    assert (problem in plan.refused_by_trainer) == refused
    assert not plan.effective[field].changed or problem.code in OF_THE_LAUNCH


@pytest.mark.parametrize(("facts", "traits", "asked", "field", "words", "nearest", "refused"), PROBLEMS)
def test_each_value_that_a_remedy_names_ends_the_problem(
    facts: MachineFacts,
    traits: ModuleTraits | None,
    asked: Mapping[str, object],
    field: str,
    words: str,
    nearest: object,
    refused: bool,
) -> None:
    problem = only_problem(plan_for(facts, traits, **asked))
    named = re.findall(r"(?<!-)\b([a-z_]+)=([\w.-]+)((?: or [\w.-]+)*)", problem.fix)
    ways = [(name, value) for name, first, more in named for value in [first, *more.split(" or ")[1:]]]
    assert ways or problem.code in OF_THE_LAUNCH
    for name, text in (way for way in ways if way[0] in field_specs()):
        way = {**asked, name: decode_text(field_specs()[name], text)}
        assert plan_for(facts, traits, **way).problems == ()


@pytest.mark.parametrize(("facts", "traits", "asked", "field", "words", "nearest", "refused"), PROBLEMS)
def test_what_cannot_be_is_adapted_to_the_nearest_if_so_wished(
    facts: MachineFacts,
    traits: ModuleTraits | None,
    asked: Mapping[str, object],
    field: str,
    words: str,
    nearest: object,
    refused: bool,
) -> None:
    plan = plan_for(facts, traits, **asked, on_unsupported="adapt")
    if nearest is NOTHING:
        assert only_problem(plan).field == field
        return
    assert plan.problems == ()
    assert plan.effective[field].value == nearest
    assert any(notice.field == field and notice.level == "adapted" for notice in plan.notices)


@pytest.mark.parametrize(
    ("facts", "asked"),
    [
        (NODE, {"strategy": "fsdp", "devices": 2, "batch_size": 8}),
        (NODE, {"strategy": "deepspeed_stage_3", "devices": 2, "batch_size": 8}),
        (NODE, {"precision": "16-mixed", "compile": True, "pin_memory": True}),
        (NODE, {"precision": "bf16-true", "devices": [1, 3], "batch_size": 8}),
        (MAC, {"precision": "bf16-mixed", "compile": True}),
        (LAPTOP, {"precision": "64-true", "compile": True, "num_workers": 4, "persistent_workers": True}),
        (LAPTOP, {"devices": 2, "strategy": "ddp_spawn", "batch_size": 8}),
        (started(torchrun(1, 4, 4), NODE), {"devices": 4, "batch_size": 8}),
        (started(torchrun(1, 4, 4), NODE), {"devices": [0, 1, 2, 3], "batch_size": 8}),
        (started(step(1)), {"devices": 2, "batch_size": 8}),
        (started(step(1)), {"batch_size": 8}),
        (started(step(3, 4, 2)), {"batch_size": 8}),
        (started(step(1, SLURM_PTY_PORT="4")), {"batch_size": 8}),
        (started(step(tasks=1)), {}),
        (started(step(tasks=1)), {"devices": 2, "batch_size": 8}),
        (started(step(tasks=1, SLURM_PTY_PORT="4", SLURM_JOB_NAME="bash")), {}),
        (started(job(1)), {}),
        (started(job(1)), {"devices": 2, "batch_size": 8}),
        (started(job(1)), {"devices": 2, "strategy": "ddp_spawn", "batch_size": 8}),
        (started(job(1, SLURM_ARRAY_TASK_ID="3")), {}),
        (started(job(4, SLURM_JOB_NAME="interactive")), {}),
        (started(NOTEBOOK), {}),
        (started(job(4), with_facts(LAPTOP, notebook=True)), {}),
        (LAPTOP, {"early_stop_patience": None, "enable_checkpointing": False}),
    ],
)
def test_what_can_be_has_no_problem(facts: MachineFacts, asked: Mapping[str, object]) -> None:
    plan = plan_for(facts, **asked)
    assert plan.problems == ()
    assert plan.notices == ()


def test_a_monitor_that_nothing_reads_is_no_problem() -> None:
    traits = ModuleTraits(logged_metrics=("train_loss",))
    asked = {"checkpoint_monitor_metric": "ssim", "early_stop_patience": None, "checkpoint_save_top_k": 0}
    assert plan_for(traits=traits, **asked).problems == ()


@pytest.mark.parametrize("scheduler", sorted(METRIC_DRIVEN))
def test_a_scheduler_that_follows_a_metric_needs_it_logged(scheduler: str) -> None:
    traits = ModuleTraits(logged_metrics=("train_loss",))
    asked = {"checkpoint_monitor_metric": "ssim", "early_stop_patience": None, "checkpoint_save_top_k": 0}
    problem = only_problem(plan_for(traits=traits, **asked, scheduler=scheduler))
    assert (problem.code, problem.field) == ("metric-not-logged", "checkpoint_monitor_metric")


def test_every_finding_has_a_code() -> None:
    plans = [plan_for(facts, traits, **asked) for facts, traits, asked, *_ in PROBLEMS]
    assert all(row.code for plan in plans for row in (*plan.problems, *plan.notices))


def test_the_effective_settings_are_made_once_and_travel_to_other_processes() -> None:
    plan = plan_for(num_workers="auto", precision="16-mixed", accelerator="gpu")
    assert plan.settings is plan.settings
    copy = pickle.loads(pickle.dumps(plan))
    assert copy == plan
    assert copy.settings == plan.settings
    assert copy.settings.origin_of("precision").startswith("argument from_values()")


def test_rules_have_sentences() -> None:
    assert all(rule.__doc__ for rule in RULES)


# --- how it was started -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "asked", "line"),
    [
        (job(2), {}, "`srun --kill-on-bad-exit=1 --ntasks=2`"),
        (job(4, 2), {}, "`srun --kill-on-bad-exit=1 --nodes=2 --ntasks=4`"),
        (UNEVEN, {}, "--nodes=2 --ntasks-per-node=1"),
        ({}, {"num_nodes": 2, "devices": 4}, "`srun --kill-on-bad-exit=1 --nodes=2 --ntasks=8`"),
        (step(1), {"devices": 4}, "--ntasks-per-node=4"),
        (torchrun(1, 2), {"devices": 4}, "--nproc-per-node=4"),
        (torchrun(1, 2), {"num_nodes": 2}, "--nnodes=2"),
        ({"PMI_SIZE": "3"}, {}, "torchrun --nproc-per-node=3 --no-python"),
    ],
)
def test_a_start_that_cannot_work_is_told_the_line_that_does(
    variables: Variables, asked: Mapping[str, object], line: str
) -> None:
    settings = ExecutionSettings.from_values(asked)
    problem = only_problem(resolve_launch(settings, started(variables)))
    assert line in problem.fix
    assert problem in resolve_plan(settings, started(variables)).problems


def test_how_it_was_started_is_judged_without_knowing_the_gpus() -> None:
    plan = resolve_launch(ExecutionSettings.from_values({"accelerator": "gpu", "devices": 8}), LAPTOP)
    assert plan.problems == ()


# --- batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "traits", "asked", "text"),
    [
        (LAPTOP, None, {}, "16"),
        (LAPTOP, ModuleTraits(train_samples=100), {}, "16, 7 steps per epoch"),
        (LAPTOP, None, {"accum_steps": 2}, "16 x accum 2 = 32"),
        (LAPTOP, None, {"devices": 4, "batch_size": 8}, "8 x 4 processes = 32"),
        (started(step(3, 4, 2)), None, {}, "16 x 4 processes = 64"),
        (
            started(step(3, 8, 2)),
            ModuleTraits(train_samples=2100),
            {"accum_steps": 2},
            "16 x 8 processes x accum 2 = 256, 9 steps per epoch",
        ),
        (LAPTOP, ModuleTraits(train_samples=160), {"limit_train_batches": 3}, "16, 3 steps per epoch"),
        (LAPTOP, ModuleTraits(train_samples=160), {"limit_train_batches": 0.5}, "16, 5 steps per epoch"),
        (LAPTOP, ModuleTraits(train_samples=160), {"overfit_batches": 2}, "16, 2 steps per epoch"),
        (LAPTOP, ModuleTraits(train_samples=160), {"fast_dev_run": 1}, "16, 1 steps per epoch"),
        (LAPTOP, ModuleTraits(train_samples=64), {"global_batch_size": 32, "devices": 2},
         "16 x 2 processes = 32, 2 steps per epoch"),
    ],
)  # fmt: skip
def test_the_plan_says_how_much_a_step_and_an_epoch_are(
    facts: MachineFacts, traits: ModuleTraits | None, asked: Mapping[str, object], text: str
) -> None:
    plan = plan_for(facts, traits, **asked)
    assert str(plan.totals) == plan.to_json()["totals"]["text"] == text


@pytest.mark.acts("global_batch_size", "the batch size of a process, and the samples of a step")
@pytest.mark.parametrize("asked", [{"devices": 4}, {"devices": 2, "accum_steps": 2}, {"accum_steps": 4}])
def test_a_global_batch_is_shared_out(asked: Mapping[str, object]) -> None:
    plan = plan_for(**asked, global_batch_size=48)
    assert (plan.settings.batch_size, plan.totals.samples_per_step) == (12, 48)
    assert plan.effective["batch_size"].reason == "global_batch_size=48 / 4"
    assert plan.settings.inference_batch_size == 12
    assert plan.notices == plan.problems == ()


@pytest.mark.parametrize(
    ("total", "share", "fix"),
    [(50, 4, "48 or 52"), (3, 4, "4"), (7, 2, "6 or 8")],
)
def test_a_global_batch_that_cannot_be_shared_out_names_the_nearest(total: int, share: int, fix: str) -> None:
    problem = only_problem(plan_for(devices=share, global_batch_size=total))
    assert (problem.code, problem.field) == ("not-divisible", "global_batch_size")
    assert problem.fix == f"set global_batch_size={fix}"
    adapted = plan_for(devices=share, global_batch_size=total, on_unsupported="adapt")
    nearest = int(fix.partition(" ")[0])
    assert (adapted.settings.global_batch_size, adapted.settings.batch_size) == (nearest, nearest // share)


def test_who_asks_for_both_batches_is_told_both_places() -> None:
    settings = ExecutionSettings.from_values({"batch_size": 8}).with_overrides(global_batch_size=64)
    problem = only_problem(resolve_plan(settings, LAPTOP))
    assert problem.code == "conflict"
    assert "batch_size=8 and global_batch_size=64" in problem.what
    assert problem.where.count("argument") + problem.where.count("override") >= 2
    assert resolve_plan(settings.with_overrides(global_batch_size=None), LAPTOP).problems == ()


def test_a_batch_that_a_workflow_chose_gives_way_to_a_global_one() -> None:
    settings = ExecutionSettings.from_values({"global_batch_size": 64}).with_factory_defaults(batch_size=8)
    plan = resolve_plan(settings, LAPTOP)
    assert (plan.problems, plan.settings.batch_size) == ((), 64)


def test_an_inference_has_no_global_batch() -> None:
    plan = plan_for(traits=ModuleTraits(trains=False), devices=4, global_batch_size=50)
    assert (plan.problems, plan.settings.batch_size) == ((), 16)


def test_a_batch_that_nobody_chose_for_several_processes_is_remarked() -> None:
    (notice,) = plan_for(devices=4).notices
    assert (notice.code, notice.field) == ("batch-per-process", "batch_size")
    assert "4 of them" in notice.what
    assert "64 samples" in notice.what
    for way in ({"batch_size": 16}, {"global_batch_size": 64}):
        assert plan_for(devices=4, **way).notices == ()


def test_totals_travel_with_the_plan() -> None:
    plan = plan_for(traits=ModuleTraits(train_samples=100), devices=2, batch_size=8)
    assert pickle.loads(pickle.dumps(plan)).totals == plan.totals == Totals(2, 8, 1, 7)


OF_EIGHT = ModuleTraits(train_samples=32, train_batches=4, validation_batches=4, train_batch_size=8)


@pytest.mark.parametrize(
    ("traits", "asked"),
    [
        (OF_EIGHT, {"val_check_interval": 3}),
        (OF_EIGHT, {"limit_train_batches": 0.3}),
        (OF_EIGHT, {"accum_steps": 4}),
        (OF_EIGHT, {"limit_val_batches": 0.25}),
        (OF_EIGHT, {"overfit_batches": 0.25}),
        (ModuleTraits(train_batches=math.inf), {"limit_train_batches": 1.0, "val_check_interval": 3}),
        (ModuleTraits(has_validation=False, validation_batches=4), {"limit_val_batches": 0.01}),
        (OF_EIGHT, {"devices": 2, "batch_size": 8, "trainer": {"sync_batchnorm": True}}),
    ],
)
def test_batches_are_those_of_the_loader(traits: ModuleTraits, asked: Mapping[str, object]) -> None:
    plan = plan_for(traits=traits, **asked)
    assert (plan.problems, plan.notices) == ((), ())


def test_a_smoke_test_has_no_fractions() -> None:
    plan = plan_for(traits=OF_EIGHT, fast_dev_run=1, limit_val_batches=0.01, val_check_interval=0.01)
    assert plan.problems == ()


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({}, "8, 4 steps per epoch"),
        ({"batch_size": 8, "devices": 2}, "8 x 2 processes = 16, 2 steps per epoch"),
        (
            {"batch_size": 8, "devices": 2, "trainer": {"use_distributed_sampler": False}},
            "8 x 2 processes = 16, 4 steps per epoch",
        ),
        ({"global_batch_size": 8}, "8, 4 steps per epoch"),
    ],
)
def test_a_step_and_an_epoch_are_those_of_the_loader(asked: Mapping[str, object], text: str) -> None:
    assert str(plan_for(traits=OF_EIGHT, **asked).totals) == text
