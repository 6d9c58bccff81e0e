"""Launches that are not yet made: what they need, and job scripts that SLURM takes."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptycho_exec.cli.commands import main
from ptycho_exec.cli.launches import (
    Costs,
    Job,
    as_if_started,
    bytes_of,
    cpus_per_task,
    in_words,
    resumed,
    script,
    time_of,
)
from ptycho_exec.errors import UserError
from ptycho_exec.machine.facts import Gpu, MachineFacts
from ptycho_exec.plan import Plan, resolve_plan
from ptycho_exec.settings import ExecutionSettings
from tests.cluster.slurm import Slurm
from tests.exec.conftest import Place

A100 = Gpu(name="A100", memory_mb=40536, capability="8.0", bf16=True)
NODE = MachineFacts(hostname="gpu01", cpus_logical=32, gpus=(A100,) * 4, memory_mb=64_000)
CPU_NODE = MachineFacts(hostname="cpu01", cpus_logical=32, memory_mb=64_000)


def planned(facts: MachineFacts, nodes: int | None, tasks: int | None, **values: Any) -> Plan:
    return resolve_plan(ExecutionSettings.from_values(values), as_if_started(facts, nodes, tasks))


# --- what it costs ----------------------------------------------------------------------------------------


def test_each_process_of_a_node_reads_the_scan() -> None:
    costs = Costs(planned(NODE, 2, 4), scan_bytes=10**9)
    assert (costs.processes_per_node, costs.memory_per_node) == (4, 4 * 10**9)
    (line,) = costs.findings()
    assert line.level == "ok"
    assert "at least 4 GB" in line.what
    assert "the node has 67.1 GB" in line.what


def test_a_scan_that_does_not_fit_is_a_problem_with_the_number_that_does() -> None:
    (line,) = Costs(planned(NODE, 1, 4), scan_bytes=30 * 10**9).findings()
    assert (line.level, line.code) == ("error", "too-little-memory")
    assert line.fix == "start at most 2 process(es) per node"
    assert [row.level for row in Costs(planned(NODE, 1, 2), scan_bytes=30 * 10**9).findings()] == ["ok"]


@pytest.mark.parametrize(
    ("nodes", "tasks", "values", "exchanged"),
    [
        (1, 1, {}, 0),
        (1, 2, {}, 400),
        (2, 4, {}, 700),
        (1, 2, {"precision": "64-true"}, 800),
        (1, 2, {"precision": "bf16-mixed"}, 400),
        (1, 2, {"precision": "bf16-true"}, 200),
        (1, 2, {"strategy": "fsdp"}, 600),
    ],
)
def test_a_step_exchanges_the_gradients(
    nodes: int, tasks: int, values: dict[str, Any], exchanged: int
) -> None:
    costs = Costs(planned(NODE, nodes, tasks, **values), parameters=100)
    assert costs.exchanged == exchanged
    (line,) = costs.findings()
    assert line.what.startswith(f"communication per step: {exchanged} B sent and received")


def test_what_is_not_known_is_not_said() -> None:
    costs = Costs(planned(NODE, 1, 2))
    assert list(costs.findings()) == []
    assert costs.to_json()["memory_per_node"] is costs.to_json()["exchanged"] is None


def test_the_size_of_a_scan_is_that_of_its_data(tmp_path: Path) -> None:
    (tmp_path / "plain.h5").write_bytes(b"x" * 1000)
    with zipfile.ZipFile(tmp_path / "packed.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("patterns.npy", bytes(5000))
    assert bytes_of(tmp_path / "plain.h5") == 1000
    assert bytes_of(tmp_path / "packed.npz") == 5000
    assert bytes_of(tmp_path) == 6000
    with pytest.raises(UserError, match="scan not found"):
        bytes_of(tmp_path / "absent.h5")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (397_860, "398 kB"), (999_900, "1 MB"), (10**15, "1e+03 TB")],
)
def test_bytes_in_words(size: int, text: str) -> None:
    assert in_words(size) == text


Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(clean_process: Place, capsys: pytest.CaptureFixture[str]) -> Check:
    """Run a command in an empty place with the facts of two nodes."""
    clean_process.write("node.json", NODE.to_json())
    clean_process.write("cpu.json", CPU_NODE.to_json())

    def call(*argv: str) -> tuple[int, str]:
        code = main(argv)
        return code, capsys.readouterr().out

    return call


def test_check_answers_for_a_launch_that_is_not_made(check: Check, clean_process: Place) -> None:
    clean_process.write("scan.h5", "x" * 1000)
    words = ["check", "--facts", "node.json", "--nodes", "4", "--ntasks-per-node", "4", "--batch-size=8"]
    code, out = check(*words, "--samples", "10000", "--scan", "scan.h5", "--parameters", "99465")
    assert code == 0, out
    assert "effective batch: 8 x 16 processes = 128, 79 steps per epoch" in out
    assert "memory per node: at least 4 kB" in out
    assert "communication per step: 746 kB" in out
    code, out = check(*words, "--json")
    found = json.loads(out)
    assert (found["totals"]["world_size"], found["launch"]["num_nodes"]) == (16, 4)
    code, out = check("check", "--facts", "node.json", "--nodes", "4", "--ntasks-per-node", "8")
    assert code == 2
    assert "start 4 task(s) per node" in out


def test_check_says_what_is_wrong_with_a_launch(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("check", "--facts", "node.json", "--nodes", "4", "--num-nodes", "2")[0] == 2
    assert check("check", "--facts", "node.json", "--nodes", "4", "--num-nodes", "4")[0] == 0
    for words in (["--nodes", "0"], ["--nodes", "two"], ["--probe", "--nodes", "2"], ["--scan", "absent"]):
        assert main(["check", *words]) != 0
        assert "ptycho-exec" in capsys.readouterr().err


# --- the job script ---------------------------------------------------------------------------------------


def asks(text: str) -> dict[str, str]:
    """Return the options that a script asks SLURM for."""
    rows = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (row.partition("=") for row in rows)}


def test_a_script_asks_for_what_settings_and_facts_say(check: Check) -> None:
    words = ["--facts", "node.json", "--nodes", "2", "--profile", "slurm", "--num-workers", "6"]
    code, text = check(
        "slurm", *words, "--batch-size=8", "--", "prog", "train", "my scan.npz", "--out", "run"
    )
    assert code == 0
    asked = asks(text)
    wanted = {"nodes": "2", "ntasks-per-node": "4", "cpus-per-task": "7", "gpus-per-node": "4"}
    wanted |= {"signal": "USR1@90", "requeue": "", "open-mode": "append", "time": "1-00:00:00"}
    assert {name: asked.get(name) for name in wanted} == wanted
    assert text.splitlines()[-1] == (
        "srun --kill-on-bad-exit=1 --nodes=2 --ntasks=8 --cpus-per-task=7 "
        "prog train 'my scan.npz' --out run --resume auto"
    )
    lines = {"export PTYCHO_EXEC_PROFILE=slurm", "export PTYCHO_EXEC_NUM_WORKERS=6"}
    assert lines < set(text.splitlines())
    assert "# effective batch: 8 x 8 processes = 64" in text


@pytest.mark.acts("max_requeues", "whether the job script lets SLURM requeue the job")
def test_a_job_that_is_not_to_be_requeued_is_not() -> None:
    assert "requeue" in asks(script(planned(CPU_NODE, 1, 2), Job()))
    assert "no-requeue" in asks(script(planned(CPU_NODE, 1, 2, max_requeues=0), Job()))


def test_a_script_has_the_options_that_were_given(check: Check) -> None:
    given = ["--sbatch=--partition=gpu", "--sbatch=--exclusive", "--time=2:00:00"]
    asked = asks(check("slurm", "--facts", "cpu.json", *given)[1])
    assert (asked["partition"], asked["exclusive"], asked["time"]) == ("gpu", "", "2:00:00")
    for wrong in ("--sbatch=partition", "--sbatch=--wrap=a b", "--time=soon"):
        assert main(["slurm", "--facts", "cpu.json", wrong]) == 2


@pytest.mark.parametrize(
    ("facts", "tasks", "values", "cpus"),
    [
        (NODE, 4, {}, 1),
        (NODE, 4, {"num_workers": 3}, 4),
        (NODE, 4, {"num_workers": 3, "num_threads": 2}, 5),
        (NODE, 4, {"num_workers": 30}, 8),
        (CPU_NODE, 4, {}, 8),
        (CPU_NODE, 4, {"num_threads": 2}, 2),
        (CPU_NODE, 64, {}, 1),
    ],
)
def test_a_process_gets_cpus_for_its_threads_and_workers(
    facts: MachineFacts, tasks: int, values: dict[str, Any], cpus: int
) -> None:
    assert cpus_per_task(planned(facts, 1, tasks, **values), tasks, bool(facts.gpus)) == cpus


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (["prog", "train", "scan"], True),
        (["prog", "train", "scan", "--resume", "old"], False),
        (["prog", "train", "scan", "--resume=auto"], False),
        (["prog", "pretrain", "--probe", "probe.npy"], True),
        (["prog", "infer", "run", "scan"], False),
        ([], False),
    ],
)
def test_a_training_goes_on_where_it_was(words: list[str], added: bool) -> None:
    assert resumed(words) == [*words, *(["--resume", "auto"] if added else [])]


@pytest.mark.parametrize(
    ("max_time", "time"),
    [(None, "1-00:00:00"), ("00:12:00:00", "0-12:10:00"), ("01:23:55:00", "2-00:05:00")],
)
def test_a_job_lasts_a_little_longer_than_its_training(max_time: str | None, time: str) -> None:
    assert time_of(max_time) == time


def test_what_cannot_run_gets_no_script(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "--facts", "cpu.json", "--accelerator", "cuda"]) == 2
    shown = capsys.readouterr()
    assert (shown.out, "no such GPU" in shown.err) == ("", True)


def test_settings_of_this_place_reach_the_job_and_credentials_do_not(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTYCHO_EXEC_EXPERIMENT_NAME", "it's mine")
    monkeypatch.setenv("PTYCHO_EXEC_TRACKING_URI", "http://me:secret@host")
    _, text = check("slurm", "--facts", "cpu.json", "--devices=2")
    assert "secret" not in text
    code = f"{text.replace('srun', 'env; exit; srun')}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, env={})
    assert {"PTYCHO_EXEC_EXPERIMENT_NAME=it's mine", "PTYCHO_EXEC_DEVICES=2"} < set(done.stdout.splitlines())


SCRIPTS = {
    "no command": [],
    "two tasks": ["--ntasks-per-node=2", "--", "prog", "train", "it's a scan", "--out", "$HOME"],
    "a long job": ["--max-time=12:00:00:00", "--time=13-00:00:00", "--max-requeues=0"],
    "a name with quotes": ["--experiment-name", 'it\'s "mine" `now`; exit 1'],
}


@pytest.mark.parametrize("options", SCRIPTS.values(), ids=SCRIPTS)
def test_bash_understands_every_script(check: Check, options: list[str]) -> None:
    _, text = check("slurm", "--facts", "cpu.json", *options)
    assert text.startswith("#!/bin/bash\n#SBATCH")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("options", SCRIPTS.values(), ids=SCRIPTS)
def test_slurm_takes_every_script(check: Check, options: list[str], slurm: Slurm, tmp_path: Path) -> None:
    _, text = check("slurm", "--facts", "cpu.json", "--num-threads=1", *options)
    path = tmp_path / "job.sh"
    path.write_text(text)
    words = ["sbatch", "--test-only", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=slurm.environ)
    assert done.returncode == 0, done.stderr
    assert "to start at" in done.stderr


@pytest.mark.slow
def test_a_job_runs_its_command_on_every_task(check: Check, slurm: Slurm, clean_process: Place) -> None:
    report = "echo rank $SLURM_PROCID of $SLURM_STEP_NUM_TASKS, threads $PTYCHO_EXEC_NUM_THREADS"
    words = ["--facts", "cpu.json", "--num-threads=1", "--ntasks-per-node=2", "--time=1", "--"]
    _, text = check("slurm", *words, "bash", "-c", report)
    path = clean_process.write("job.sh", text.replace("%x-%j.out", "out"))
    subprocess.run(["sbatch", "--wait", str(path)], timeout=120, check=True, env=slurm.environ)
    lines = (clean_process.cwd / "out").read_text().splitlines()
    assert sorted(lines) == [f"rank {rank} of 2, threads 1" for rank in range(2)]
