"""What a child process sends to Ptychodus's window, unpickled among the window's own parts."""

from __future__ import annotations

import logging
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ptycho_exec.errors import DataError, SettingsError
from ptycho_torch.ptychodus.keywords import DataConfig, InferenceConfig, ModelConfig, TrainingConfig
from ptycho_torch.ptychodus.window import Progress, report, require_release, show_error

ROOT = Path(__file__).parents[3]


@contextmanager
def child_of_ptychodus() -> Iterator[list[Any]]:
    """Have a queue to the window where Ptychodus has it, and collect what is put there."""
    sent: list[Any] = []
    handler = logging.NullHandler()
    handler._result_queue = SimpleNamespace(put=sent.append)  # type: ignore[attr-defined]
    logging.getLogger().addHandler(handler)
    try:
        yield sent
    finally:
        logging.getLogger().removeHandler(handler)


def trained(events: list[Any], *, closes_after: int = 99) -> tuple[int, Any]:
    """Take events as Ptychodus's own task does; return how many it took, and its monitor."""
    pytest.importorskip("ptychodus", reason="needs the ptychodus extra")
    from ptychodus.model.processing.monitor import ProcessingTaskMonitor, TrainBackgroundTask
    from ptychodus.model.task_manager import TaskManager

    tasks, taken = TaskManager(), 0
    monitor = ProcessingTaskMonitor(tasks)

    class Reconstructor:
        def get_progress_goal(self) -> int:
            return 12

        def train(self, *_: Any) -> Iterator[Any]:
            nonlocal taken
            for event in events:
                taken += 1
                if taken == closes_after:
                    tasks._stop_event.set()
                yield event()
            tasks._stop_event.set()

    nothing: Any = None
    task = TrainBackgroundTask(monitor, Reconstructor(), nothing, Path(), Path())  # type: ignore[arg-type]
    tasks.put_background_task(task)
    tasks._run_background_tasks()
    return taken, monitor


def test_nothing_is_sent_where_another_program_calls(caplog: pytest.LogCaptureFixture) -> None:
    report(Progress(1), Path("model.ckpt"))
    show_error(DataError("odd"))
    assert [(record.levelname, record.message) for record in caplog.records] == [("ERROR", "odd")]


def test_progress_is_what_ptychodus_takes_for_it() -> None:
    with child_of_ptychodus() as sent:
        report(Progress(2), Path("model.ckpt"))
        report(Progress(3))
    assert [tag for tag, _ in sent] == ["model_saved", "train_output", "train_output"]
    assert sent[0][1] == "model.ckpt"
    taken, monitor = trained([lambda: pickle.loads(sent[1][1]), lambda: pickle.loads(sent[2][1])])
    assert (taken, monitor.get_progress(), monitor.get_progress_goal()) == (2, 3, 12)
    assert not monitor.is_stopping


def test_each_report_shows_what_was_logged_also_within_an_epoch() -> None:
    with child_of_ptychodus() as sent:
        report(Progress(0))
    _, monitor = trained([lambda: pickle.loads(sent[0][1])] * 3)
    shown = monitor._foreground_task_manager.foreground_queue_size
    assert shown == 3 + 3  # and at the beginning, with its goal, and at the end


def test_a_closed_window_is_a_stop(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with child_of_ptychodus() as sent:
        report(Progress(4, "Infer takes the model of epoch 3"))
    taken, monitor = trained([lambda: pickle.loads(sent[0][1])] * 5, closes_after=2)
    assert (taken, monitor.is_stopping) == (2, True)
    assert "stopped after epoch 4; Infer takes the model of epoch 3" in caplog.text


def test_an_error_is_one_block_and_has_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("ptychodus", reason="needs the ptychodus extra")
    from ptychodus.model.processing._subprocess_protocol import ChildError

    error = DataError("nothing is there", fix="export it")
    with child_of_ptychodus() as sent:
        show_error(error)
        show_error(error)  # as it passes through several of our functions
    ((tag, text, kind, pickled),) = sent
    assert (tag, text, kind) == ("error", "nothing is there (see above)", "DataError")

    def fail() -> None:
        child = pickle.loads(pickled)
        raise ChildError(text, child_traceback="", child_exception_type=kind, child_exception=child)

    with pytest.MonkeyPatch.context() as patch:
        manager = logging.getLogger("ptychodus.model.task_manager")
        patch.setattr(manager, "filters", [])
        _, monitor = trained([fail], closes_after=1)
    assert isinstance(monitor.get_last_error(), ChildError)
    assert [record.exc_info for record in caplog.records if record.levelno == logging.ERROR] == [None, None]
    assert caplog.text.count("nothing is there") == 1


def test_a_fault_of_ours_says_where_it_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    with child_of_ptychodus() as sent:
        show_error(ZeroDivisionError("division by zero"))
    assert sent == []  # Ptychodus sends it, with its traceback
    assert "ZeroDivisionError: division by zero; where it happened is in the terminal" in caplog.text


@pytest.mark.parametrize(
    ("version", "taken"),
    [("1.7.0", True), ("2.0", True), ("unknown", True), ("1.6.9", False), ("0.9", False)],
)
def test_later_releases_are_taken(version: str, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ptychodus", SimpleNamespace(__version__=version))
    with nullcontext() if taken else pytest.raises(SettingsError, match=re.escape(version)):
        require_release()


def test_a_release_before_1_7_is_refused_in_its_window(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ptycho_torch.api.base_api import ConfigManager

    monkeypatch.setitem(sys.modules, "ptychodus", SimpleNamespace(__version__="1.6.0"))
    kinds: list[Any] = [DataConfig, ModelConfig, TrainingConfig, InferenceConfig]
    with pytest.raises(SettingsError, match=r"Ptychodus 1\.6\.0 cannot use this package"):
        ConfigManager(*(kind() for kind in kinds))
    assert "half a pixel away" in caplog.text
    assert "fix:      pip install -U 'ptychodus[gui]>=1.7'" in caplog.text


PARENT = """
import multiprocessing, os, signal
from ptycho_torch.ptychodus.keywords import DataConfig, InferenceConfig, ModelConfig, TrainingConfig
from ptycho_torch.ptychodus.window import end_with_parent

def child(pipe):
    def asked(*_):
        print("asked to stop", flush=True)
        os._exit(0)
    signal.signal(signal.SIGTERM, asked)
    end_with_parent()
    pipe.send(os.getpid())
    while True:
        signal.pause()

if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=child, args=(there,)).start()
    here.recv()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    # The pipe to here closes when the last of both has ended.
    done = subprocess.run(
        [sys.executable, "parent.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "asked to stop\n"), done.stderr
