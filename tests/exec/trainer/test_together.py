"""How the processes of a run meet, agree and end, with real processes and a real store."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

import pytest
import torch.distributed as dist

from ptycho_exec.errors import UserError
from ptycho_exec.machine.ranks import detect_launcher
from ptycho_exec.plan import resolve_plan
from ptycho_exec.trainer.build import build_trainer
from ptycho_exec.trainer.together import (
    Launched,
    differences,
    environment_of,
    identity_of,
    is_of_network,
    lost,
)
from tests.exec.trainer.linear_runs import CPU, plan_of, settings

LIMIT_S = 120


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def torchrun(rank: int, world: int, port: int, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **more,
    }


def start(code: str, environ: Mapping[str, str]) -> subprocess.Popen[str]:
    words = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    return subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outputs(code: str, ranks: Mapping[int, Mapping[str, str]], world: int) -> dict[int, tuple[int, str]]:
    """Run one process per rank with the variables given; return the exit code and all output of each."""
    port = free_port()
    started = {rank: start(code, torchrun(rank, world, port, **more)) for rank, more in ranks.items()}
    ended = {}
    for rank, process in started.items():
        out, err = process.communicate(timeout=LIMIT_S)
        ended[rank] = process.returncode, out + err
    return ended


MEET = """
    import os
    from ptycho_exec.errors import UserError
    from ptycho_exec.machine.ranks import detect_launcher
    from ptycho_exec.trainer.together import Launched, meet
    identity = {"batch_size": (int(os.environ.get("MINE", "8")), os.environ.get("FROM", "default"))}
    try:
        found = meet(Launched(detect_launcher(os.environ)), identity=identity, limit_s=LIMIT)
        print("met", found.rank, found.world_size)
        found = meet(Launched(detect_launcher(os.environ)), identity=identity, limit_s=LIMIT)
        print("met again", found.meetings)
    except UserError as error:
        print(type(error).__name__, error, "spoken by", error.spoken_by)
        raise SystemExit(2)
"""


@pytest.mark.slow
def test_processes_that_were_given_the_same_meet_as_often_as_they_run() -> None:
    ended = outputs(MEET.replace("LIMIT", "60"), {0: {}, 1: {}, 2: {}}, 3)
    assert {rank: code for rank, (code, _) in ended.items()} == {0: 0, 1: 0, 2: 0}
    assert all(f"met {rank} 3\nmet again 2" in text for rank, (_, text) in ended.items())


@pytest.mark.slow
def test_a_difference_stops_all_with_names_values_and_origins() -> None:
    ended = outputs(MEET.replace("LIMIT", "60"), {0: {}, 1: {"MINE": "4", "FROM": "flag --batch-size"}}, 2)
    for code, text in ended.values():
        assert code == 2
        assert "SettingsError batch_size differs between the processes: 8 on rank 0, 4 on rank 1" in text
        assert "rank 0: default; rank 1: flag --batch-size" in text
        assert "spoken by 0" in text


@pytest.mark.slow
def test_who_does_not_come_is_named_within_the_limit() -> None:
    ended = outputs(MEET.replace("LIMIT", "3"), {0: {}, 2: {}}, 3)
    for code, text in ended.values():
        assert code == 2
        assert "rank 1 of 3: not there after 3 s" in text
        assert "127.0.0.1:" in text
        assert "--kill-on-bad-exit=1" in text


@pytest.mark.slow
def test_a_first_process_that_cannot_be_reached_is_told() -> None:
    ((code, text),) = outputs(MEET.replace("LIMIT", "2"), {1: {}}, 2).values()
    assert code == 2
    assert "rank 1 could not reach rank 0 within 2 s" in text
    assert "start_timeout" in text


@pytest.mark.slow
def test_an_address_that_no_name_server_knows_is_told_at_once() -> None:
    elsewhere = {"MASTER_ADDR": "no-such-host.invalid"}
    ended = outputs(MEET.replace("LIMIT", "60"), {0: elsewhere, 1: elsewhere}, 2)
    for code, text in ended.values():
        assert code == 2
        assert "MASTER_ADDR=no-such-host.invalid" in text


@pytest.mark.slow
def test_a_port_in_use_is_told() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = str(listening.getsockname()[1])
        ((code, text),) = outputs(MEET.replace("LIMIT", "5"), {0: {"MASTER_PORT": port}}, 2).values()
    assert code == 2
    assert "is in use" in text
    assert "set MASTER_PORT to a free port" in text


DIE = """
    import os, signal
    import torch, torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore
    from ptycho_exec.machine.ranks import detect_launcher
    from ptycho_exec.trainer import together
    found = together.meet(together.Launched(detect_launcher(os.environ)), identity={}, limit_s=60)
    store = PrefixStore("group", found.store)
    dist.init_process_group("gloo", store=store, rank=found.rank, world_size=found.world_size)
    dist.all_reduce(torch.ones(1))
    if found.rank == int(os.environ["DIES"]):
        if os.environ.get("SAYS"):
            found.report(os.environ["SAYS"])
            raise SystemExit(3)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        print("network", together.is_of_network(error))
        print(together.lost(found.missing(), found.world_size, 7))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, *(pytest.param(rank, marks=pytest.mark.thorough) for rank in (1, 2))])
def test_the_others_know_who_was_killed(dies: int) -> None:
    ended = outputs(DIE, {rank: {"DIES": str(dies)} for rank in range(3)}, 3)
    for rank, (_, text) in ended.items():
        if rank != dies:
            assert "network True" in text
            assert f"rank {dies} of 3 ended without a word (killed, or out of memory), after step 7" in text
            assert "--resume auto" in text


@pytest.mark.slow
def test_what_a_process_says_before_it_ends_reaches_the_others() -> None:
    ended = outputs(DIE, {rank: {"DIES": "1", "SAYS": "DataError: no"} for rank in range(2)}, 2)
    assert "rank 1 of 2 ended: rank 1: DataError: no" in ended[0][1]


# --- without processes --------------------------------------------------------------------------------------


def test_settings_that_start_collectives_must_agree_and_speed_need_not() -> None:
    names = identity_of(plan_of(settings()), {"scan": ("a", "here")}).keys()
    assert {"batch_size", "enable_checkpointing", "precision", "scan", "version of torch"} <= names
    assert not {"num_workers", "pin_memory", "prefetch_factor"} & names


def test_every_name_of_the_table_must_agree_in_any_order() -> None:
    tables = ({"min_epochs": 2, "min_steps": 3}, {"min_steps": 3, "min_epochs": 2}, {"min_steps": 3})
    cards = [identity_of(plan_of(settings(trainer=table))) for table in tables]
    texts = [{name: [str(value), place] for name, (value, place) in card.items()} for card in cards]
    assert differences(texts[:2]) == []
    (found,) = differences(texts)
    assert found.what == "trainer.min_epochs differs between the processes: 2 on rank 0, None on rank 2"
    assert found.where.startswith("rank 0: argument from_values()")
    assert found.where.endswith("; rank 2: default")


def test_what_only_one_process_has_differs() -> None:
    first: dict[str, list[str]] = {"seed": ["1", "default"], "batch_size": ["8", "flag"]}
    found = differences([first, {**first, "extra": ["2", "file"]}, {"seed": ["1", "default"]}])
    assert [row.field for row in found] == ["batch_size", "extra"]
    assert "8 on rank 0, (nothing) on rank 2" in found[0].what
    assert "(nothing) on rank 0, 2 on rank 1" in found[1].what
    assert differences([first, dict(first)]) == []


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({}, "LightningEnvironment"),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, "LightningEnvironment"),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "jupyter"}, "LightningEnvironment"),
        (
            {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "5"},
            "Launched",
        ),
    ],
    ids=["alone", "one task", "notebook in an allocation", "torchrun"],
)
def test_lightning_is_told_who_a_process_is(variables: dict[str, str], kind: str) -> None:
    plan = plan_of(settings())
    facts = CPU.model_copy(update={"launcher": detect_launcher(variables)})
    environment = environment_of(type(plan)(plan.requested, plan.effective, facts=facts))
    assert type(environment).__name__ == kind


def test_a_launched_process_is_what_the_launcher_says() -> None:
    variables = {
        "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "12",
    }  # fmt: skip
    found = Launched(detect_launcher(variables))
    found.set_global_rank(0)
    found.set_world_size(1)
    assert (found.global_rank(), found.local_rank(), found.node_rank(), found.world_size()) == (3, 1, 1, 4)
    assert (found.main_address, found.creates_processes_externally) == ("gpu07", True)
    other = Launched(detect_launcher({**variables, "SLURM_STEP_ID": "1"}))
    assert 1024 < found.main_port != other.main_port < 2**16


def test_the_lowest_rank_that_is_left_speaks() -> None:
    assert lost({0: ""}, 3, 1).spoken_by == 1
    assert lost({1: "x", 2: ""}, 3, 1).spoken_by == 0


def test_only_errors_of_the_network_hide_their_cause() -> None:
    assert is_of_network(RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer"))
    assert is_of_network(dist.DistBackendError("NCCL error"))
    assert not is_of_network(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_of_network(ValueError("gloo"))


def test_cards_are_plain_data() -> None:
    rows: dict[str, Any] = identity_of(plan_of(settings()))
    assert json.loads(json.dumps({name: [str(value), place] for name, (value, place) in rows.items()}))


@pytest.mark.acts("start_timeout", "how long a process waits for the first one")
def test_the_setting_is_how_long_the_others_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    for name, value in torchrun(1, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    facts = CPU.model_copy(update={"launcher": detect_launcher(os.environ)})
    wanted = settings(start_timeout=1, accelerator="cpu", deterministic=False)
    trainer = build_trainer(wanted, plan=resolve_plan(wanted, facts))
    with pytest.raises(UserError, match="rank 1 could not reach rank 0 within 1 s"):
        trainer.strategy.setup_environment()


WATCH = """
    import subprocess, sys, threading, time
    from ptycho_exec.trainer import together
    together.BEAT_S, together.GRACE_S = 0.05, 0.2
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    thread = threading.Thread(target=together._watch, args=([child],), daemon=True)
    thread.start()
    child.wait()
    if sys.argv[1:] == ["notices"]:
        together._over.set()
    thread.join(60)
    print("goes on")
"""


@pytest.mark.slow
@pytest.mark.parametrize("notices", [True, False])
def test_a_fit_that_does_not_notice_a_failed_child_ends_with_its_rank(notices: bool) -> None:
    words = [sys.executable, "-c", textwrap.dedent(WATCH), *(["notices"] if notices else [])]
    environ = torchrun(0, 1, free_port())
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.returncode, "goes on" in done.stdout) == ((0, True) if notices else (1, False))
    assert ("rank 1 of 2 ended without a word" in done.stderr) is not notices
