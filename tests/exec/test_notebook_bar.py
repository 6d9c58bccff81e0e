"""The progress in a notebook: one line that goes on, says what remains, and ends with how long it took."""

from __future__ import annotations

import re

import pytest

from ptycho_exec import notebook_bar
from ptycho_exec.notebook_bar import NotebookBar


class Handle:
    """What a notebook shows."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, bar: NotebookBar) -> None:
        self.shown.append(bar._repr_html_())


def test_the_line_goes_on_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook_bar, "EVERY_S", -1.0)
    bar, handle = NotebookBar(), Handle()
    task = bar.add_task("training", total=4, metrics="")
    bar._handle = handle
    assert repr(bar).startswith("training  0/4")
    for epoch in (1, 2):
        for _ in range(2):
            bar.update(task, advance=1, description=f"epoch {epoch}/2", metrics="loss <0.1>")
    bar.stop()
    assert len(handle.shown) == 5
    assert 'value="1.0" max="4"' in handle.shown[0] or 'value="1" max="4"' in handle.shown[0]
    assert "s left" in handle.shown[0]
    assert "loss &lt;0.1&gt;" in handle.shown[0]
    assert re.fullmatch(r"epoch 2/2  4/4  loss <0.1>  \d+\.\d s", repr(bar))


def test_a_task_without_an_end_counts() -> None:
    bar = NotebookBar()
    task = bar.add_task("reading")
    bar.update(task, completed=7)
    assert repr(bar).startswith("reading  7  ")
    assert "max=" not in bar._repr_html_()


def test_it_is_not_replaced_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook_bar, "EVERY_S", 1e9)
    bar, handle = NotebookBar(), Handle()
    task = bar.add_task("training", total=100)
    bar._handle, bar._shown = handle, notebook_bar.time.monotonic()
    for _ in range(100):
        bar.update(task, advance=1)
    assert handle.shown == []
    bar.stop()
    assert len(handle.shown) == 1
