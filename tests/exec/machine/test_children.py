"""A child process ends within its limits, with all that it started, and its output is kept."""

import sys
import time
from pathlib import Path

import pytest

from ptycho_exec.machine.children import Ended, run_limited


def python(code: str, **limits: float) -> Ended:
    return run_limited([sys.executable, "-c", code], **{"limit_s": 60.0, **limits})


def test_output_of_both_streams_and_the_exit_code_are_returned() -> None:
    ended = python("import sys; print('one', flush=True); print('two\\n ', file=sys.stderr); sys.exit(3)")
    assert (ended.code, ended.stopped, ended.last_line) == (3, "", "two")
    assert ended.output.split() == ["one", "two"]
    assert python("").last_line == ""


def test_working_directory_and_variables_are_the_child_s_own(tmp_path: Path) -> None:
    code = "import os; print(os.getcwd(), os.environ['WHERE'])"
    argv = [sys.executable, "-c", code]
    ended = run_limited(argv, limit_s=60, cwd=tmp_path, environ={"WHERE": "there"})
    assert ended.output.split() == [str(tmp_path), "there"]


def test_a_child_that_takes_too_long_is_stopped() -> None:
    start = time.monotonic()
    ended = python("import time; print('began', flush=True); time.sleep(60)", limit_s=1)
    assert time.monotonic() - start < 30
    assert (ended.code, ended.stopped, ended.last_line) == (None, "stopped after 1 s", "began")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not report memory")
def test_a_child_that_takes_too_much_memory_is_stopped() -> None:
    ended = python("import time; block = bytearray(2**27); time.sleep(60)", memory_mib=64)
    assert ended.code is None
    assert ended.stopped.endswith("more than 64")
