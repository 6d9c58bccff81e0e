"""Ctrl-C ends a command by an exit that libraries let through; a program around it keeps its own way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ptycho_exec.cli.flags import Parser, run
from ptycho_exec.interrupts import Interrupted, interrupted, interruptible
from ptycho_exec.trainer.stop import leaving_in_order


@pytest.fixture(autouse=True)
def _default_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def run_handler(handler: Callable[[Any], int]) -> int:
    return run(Parser(prog="program"), [], handler)


def library_that_exits(_: Any) -> int:
    """Do as Lightning does with a `KeyboardInterrupt`."""
    try:
        press()
    except KeyboardInterrupt:
        raise SystemExit(1) from None
    return 0


def library_that_fails(_: Any) -> int:
    try:
        press()
    except BaseException:
        raise RuntimeError("a worker died") from None
    return 0


def in_a_run(_: Any) -> int:
    with leaving_in_order(again="type it again"):
        press()
    return 0


def keyboard(_: Any) -> int:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (library_that_exits, "nothing was written"),
        (library_that_fails, "nothing was written"),
        (keyboard, "nothing was written"),
        (in_a_run, "type it again"),
    ],
)
def test_a_command_says_in_one_line_what_is_kept(
    handler: Callable[[Any], int], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_handler(handler) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("program: interrupted")
    assert captured.err.endswith(f"; {words}\n")
    assert captured.err.count("\n") == 1


def test_an_error_without_an_interruption_stays_one() -> None:
    run_handler(library_that_exits)
    with pytest.raises(ZeroDivisionError):
        run_handler(lambda _: 1 // 0)
    assert not interrupted()


def test_in_a_program_of_somebody_else_it_is_a_keyboard_interrupt() -> None:
    with (
        pytest.raises(KeyboardInterrupt, match="before the first step; type it again"),
        leaving_in_order(again="type it again"),
    ):
        press()


def test_a_handler_of_the_program_stays() -> None:
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    with interruptible(), leaving_in_order():
        press()
    assert seen == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_it_exits_with_130_where_nothing_catches_it() -> None:
    with pytest.raises(SystemExit) as caught, interruptible():
        press()
    assert caught.value.code == 130
    assert str(Interrupted(" after step 3", "the rest")) == "interrupted after step 3; the rest"
