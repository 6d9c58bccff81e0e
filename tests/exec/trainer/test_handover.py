"""What Lightning's children take from the process that started them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from ptycho_exec.errors import SettingsError
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.handover import VARIABLE, Handed, handed_over, handing_over
from tests.exec.trainer.linear_runs import plan_of, settings

CHILD = {
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "NODE_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}
ASK = (
    "from ptycho_exec.trainer.handover import handed_over;"
    "found = handed_over(); print(found and found.plan.settings.batch_size)"
)


def ask(**more: str) -> str:
    environ = {**os.environ, **more}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=environ, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_child_takes_the_plan_of_its_parent() -> None:
    with handing_over(plan_of(settings(batch_size=6, devices=2, accelerator="cpu"))):
        assert ask(**CHILD) == "6"
        assert ask(PTYCHO_EXEC_BATCH_SIZE="3", **CHILD) == "6"
        assert ask() == "None"  # no child of Lightning's: a program that the run started
        assert handed_over() is None
    assert VARIABLE not in os.environ
    assert ask(**CHILD) == "None"


def test_the_file_is_removed_and_is_for_this_user_alone() -> None:
    with handing_over(plan_of(settings(devices=2, accelerator="cpu"))):
        file = Path(os.environ[VARIABLE])
        assert file.stat().st_mode & 0o077 == 0
    assert not file.exists()


def test_a_child_takes_it_for_one_run_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(settings(batch_size=5))
    (tmp_path / "file").write_bytes(pickle.dumps(Handed(plan, "science")))
    for name, value in CHILD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    taken = handed_over()
    assert taken is not None
    assert (taken.plan.settings.batch_size, taken.more) == (5, "science")
    with handing_over(taken.plan):
        assert handed_over() is taken
    assert handed_over() is None


def test_a_class_made_in_a_function_runs_in_one_process_and_is_refused_for_several() -> None:
    class Lab(ExecutionSettings):
        beam: str = "a"

    with handing_over(plan_of(Lab.from_values({"accelerator": "cpu"}))):
        assert VARIABLE not in os.environ
    several = plan_of(Lab.from_values({"accelerator": "cpu", "devices": 2}))
    with (
        pytest.raises(SettingsError, match="cannot be handed to its other processes") as caught,
        handing_over(several),
    ):
        pass
    assert "at the top of a module" in caught.value.findings[0].fix
    assert VARIABLE not in os.environ
