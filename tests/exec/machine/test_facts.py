"""MachineFacts: probed without torch, loaded with clear errors, CPU limits of every kind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ptycho_exec.errors import SettingsError
from ptycho_exec.machine import facts as facts_module
from ptycho_exec.machine.facts import (
    Gpu,
    Launcher,
    MachineFacts,
    cgroup_cpus,
    cgroup_memory_mb,
)
from ptycho_exec.plan import resolve_plan
from ptycho_exec.settings import ExecutionSettings


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_probe_survives_a_round_trip_through_json(tmp_path: Path) -> None:
    found = MachineFacts.probe()
    path = tmp_path / "facts.json"
    path.write_text(found.to_json())
    assert MachineFacts.load(path) == found
    assert found.packages["torch"]
    assert 1 <= found.usable_cpus <= found.cpus_logical


def test_probe_imports_no_torch_lightning_or_numpy() -> None:
    code = (
        "import sys; from ptycho_exec.machine.facts import MachineFacts; MachineFacts.probe();"
        "bad = {'torch', 'lightning', 'numpy'} & set(sys.modules); sys.exit(repr(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gpu_facts_survive_a_round_trip(tmp_path: Path) -> None:
    gpu = Gpu(name="A100", memory_mb=40536, capability="8.0", bf16=True)
    found = MachineFacts(gpus=(gpu,), launcher=Launcher(kind="slurm", variables={"SLURM_NTASKS": "2"}))
    path = tmp_path / "facts.json"
    path.write_text(found.to_json())
    assert MachineFacts.load(path).gpus == (gpu,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"cpus_logical": "many"}', "key cpus_logical"),
        ('{"cpu_count": 3}', "key cpu_count"),
        ('{"gpus": [{"name": "A100"}]}', "key gpus.0.memory_mb"),
        ("{", "Invalid JSON"),
    ],
)
def test_load_names_the_file_and_the_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        MachineFacts.load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "ptycho-exec facts" in str(caught.value)


def test_load_reports_every_bad_key_at_once(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"cpus_logical": "many", "mps": 3}')
    with pytest.raises(SettingsError) as caught:
        MachineFacts.load(path)
    assert len(caught.value.findings) == 2


def test_load_of_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read machine facts"):
        MachineFacts.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("limits", "usable"),
    [
        ({"cpus_logical": 64}, 64),
        ({"cpus_logical": 64, "cpus_affinity": 8}, 8),
        ({"cpus_logical": 64, "cpus_affinity": 8, "cpus_cgroup": 2.5}, 2),
        ({"cpus_logical": 64, "cpus_cgroup": 0.5}, 1),
        ({"cpus_logical": 64, "cpus_affinity": 32, "cpus_slurm": 4}, 4),
    ],
)
def test_usable_cpus_are_the_smallest_limit(limits: dict[str, float], usable: int) -> None:
    assert MachineFacts.model_validate(limits).usable_cpus == usable


def test_cgroup_v2_quota_of_a_parent_counts(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slice/job\n",
            "sys/fs/cgroup/slice/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/slice/job/cpu.max": "max 100000\n",
            "sys/fs/cgroup/slice/job/memory.max": str(512 * 2**20),
        },
    )
    assert cgroup_cpus(root) == 2.0
    assert cgroup_memory_mb(root) == 512


def test_cgroup_v1_quota(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n1:cpu,cpuacct:/box\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096),
        },
    )
    assert cgroup_cpus(root) == 1.5
    assert cgroup_memory_mb(root) is None


def test_cgroup_v1_without_quota(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "1:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert cgroup_cpus(root) is None


def test_no_cgroup_at_all(tmp_path: Path) -> None:
    assert cgroup_cpus(tmp_path) is None


def test_affinity_of_this_process_is_respected() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from ptycho_exec.machine.facts import MachineFacts;"
        "print(MachineFacts.probe(ask_torch=False).usable_cpus)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "1"


def test_slurm_variables_are_respected() -> None:
    found = MachineFacts.probe(ask_torch=False, environ={"SLURM_CPUS_PER_TASK": "1"})
    assert found.cpus_slurm == 1
    assert found.usable_cpus == 1


def test_the_launcher_of_this_process_is_a_fact() -> None:
    found = MachineFacts.probe(ask_torch=False, environ={"OMPI_COMM_WORLD_SIZE": "4"})
    assert (found.launcher.kind, found.launcher.world_size) == ("mpi", 4)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(facts_module, "_shows_gpu", lambda: True)
    monkeypatch.setattr(facts_module, "_ASK_TORCH", f"print({answer!r})")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_come_from_a_child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"name": "V100", "memory_mb": 16384, "capability": "7.0", "bf16": False}
    pretend_gpu(monkeypatch, "noise\nFACTS" + json.dumps({"gpus": [row], "mps": False}))
    found = MachineFacts.probe()
    assert found.gpus == (Gpu(**row),)
    assert found.gpu_note == ""


def test_a_child_that_was_asked_early_answers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"name": "V100", "memory_mb": 16384, "capability": "7.0", "bf16": False}
    pretend_gpu(monkeypatch, "FACTS" + json.dumps({"gpus": [row], "mps": False}))
    facts_module.ask_early()
    monkeypatch.setattr(facts_module, "_ASK_TORCH", "print('another question')")
    assert MachineFacts.probe().gpus == (Gpu(**row),)
    assert "could not be asked" in MachineFacts.probe().gpu_note, "this one asked anew"


def test_a_gpu_that_torch_cannot_use_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, 'FACTS{"gpus": [], "mps": false}')
    assert "cannot use it" in MachineFacts.probe().gpu_note


def test_a_torch_that_does_not_answer_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, "Segmentation fault")
    assert "could not be asked" in MachineFacts.probe().gpu_note


def test_the_real_child_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "_shows_gpu", lambda: True)
    found = MachineFacts.probe()
    assert found.gpus or found.mps or "cannot use it" in found.gpu_note


def test_no_child_process_where_no_gpu_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a child process was started")

    monkeypatch.setattr(facts_module, "_shows_gpu", lambda: False)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert MachineFacts.probe().gpus == ()


@pytest.mark.parametrize(("value", "shown"), [("", "(empty)"), (" ", "(empty)"), ("-1", "-1")])
def test_what_hides_the_gpus_is_named(value: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a child process was started")

    monkeypatch.setattr(facts_module, "_shows_gpu", lambda: True)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    found = MachineFacts.probe(environ={"CUDA_VISIBLE_DEVICES": value})
    assert found.gpus == ()
    assert found.gpu_note == f"a GPU is there, but CUDA_VISIBLE_DEVICES={shown} hides it"
    plan = resolve_plan(ExecutionSettings.from_values({"accelerator": "gpu"}), found)
    assert f"CUDA_VISIBLE_DEVICES={shown} hides it" in plan.problems[0].what
    plan = resolve_plan(ExecutionSettings.from_values({}), found)
    assert f"CUDA_VISIBLE_DEVICES={shown} hides it" in plan.effective["accelerator"].reason
