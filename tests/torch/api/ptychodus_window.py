"""Ptychodus's own main window, used as a person uses it; run as a program, under an X server.

    python ptychodus_window.py SCENARIO DIRECTORY SETTINGS

DIRECTORY holds `product.h5` and `diffraction.h5`; SETTINGS is a settings file of Ptychodus. Screenshots and
`seen.json`, what the scenario saw, are written into the working directory. Nothing of the window is replaced
but its file dialogs.

A scenario is a generator: it does something and yields what it then waits for; a timer of Qt goes on with it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy

LIMIT_S = 600
"""Longest wait for anything new in the window: starting a child takes a minute on a busy machine."""
UNSUPERVISED, SUPERVISED = (f"ptychopinn-torch_{mode}" for mode in ("unsupervised", "supervised"))

Condition = Callable[[], bool]


class Window:
    """The window with what a scenario uses of it, and what it saw."""

    def __init__(self, model: Any, view: Any, controller: Any, directory: Path) -> None:
        self.model, self.view, self.directory = model, view, directory
        self.status = view.processing_status_view
        self.processing = controller._processing_controller
        self.actions = self.processing._actions_view
        self.dialogs = controller._file_dialog_factory
        self.products = self.processing._product_view_controller.get_widget()
        self.seen: dict[str, Any] = {"bar": []}
        self.status.progress_bar.valueChanged.connect(self._bar_moved)

    def _bar_moved(self, value: int) -> None:
        self.seen["bar"].append([value, self.status.progress_bar.maximum(), self.text])

    @property
    def text(self) -> str:
        return str(self.status.text_edit.toPlainText())

    @property
    def bar(self) -> int:
        return int(self.status.progress_bar.value())

    def busy(self) -> bool:
        return bool(self.model.processing_core.processing_api.task_monitor.is_processing)

    def idle(self) -> bool:
        """Return whether the task has ended and everything of it is shown."""
        return not self.busy() and not self.status.stop_button.isVisible()

    def product(self) -> Any:
        return self.model.product_core.product_repository[self.products.currentIndex()].get_product()

    def choose(self, algorithm: str) -> None:
        box = self.processing._algorithm_view_controller.get_widget()
        box.setCurrentText(algorithm)
        box.textActivated.emit(algorithm)

    def train(self, directory: Path) -> Iterator[Condition]:
        self.dialogs.get_existing_directory_path = lambda *_: directory
        yield self.actions.train_button.isEnabled
        self.actions.train_button.click()
        yield self.busy

    def infer(self, name: str = "object") -> Iterator[Condition]:
        self.choose(SUPERVISED)  # Infer stays grey after a training until the algorithm is chosen anew
        self.choose(UNSUPERVISED)
        before = self.text
        yield self.actions.reconstruct_button.isEnabled
        self.actions.reconstruct_button.click()
        yield self.busy
        yield self.idle
        self.seen[name] = self.text[len(before) :]
        numpy.save(f"{name}.npy", self.product().object_.get_array())

    def show_object(self, name: str) -> Iterator[Condition]:
        """Show the object of the last product on its page."""
        self.view.object_action.trigger()
        tree = self.view.object_view.tree_view
        tree.setCurrentIndex(tree.model().index(tree.model().rowCount() - 1, 0))
        until = time.monotonic() + 2  # it is drawn by another thread, which tells nobody
        yield lambda: time.monotonic() > until
        self.screenshot(name)

    def screenshot(self, name: str) -> None:
        self.view.grab().save(f"{name}.png")


Scenario = Callable[[Window], Iterator[Condition]]


def stopped_after_an_error(window: Window) -> Iterator[Condition]:
    """Train on an empty directory, then on the scan; stop after two epochs; infer with what is kept."""
    window.seen["algorithm"] = window.processing._algorithm_view_controller.get_widget().currentText()
    Path("empty").mkdir()
    yield from window.train(Path("empty").resolve())
    yield window.idle
    window.seen["error"] = window.text
    window.screenshot("1-error")
    window.status.text_edit.clear()
    yield from window.train(window.directory)
    yield lambda: window.bar >= 1 or not window.busy()
    window.screenshot("2-training")
    window.seen["at_first_epoch"] = window.text
    yield lambda: window.bar >= 2 or not window.busy()
    window.status.stop_button.click()
    yield window.idle
    window.seen["stopped"] = window.text
    window.screenshot("3-stopped")
    window.seen["model"] = (
        window.processing._algorithm_parameter.get_current_reconstructor()._loaded_model_path
    )
    yield from window.infer()
    window.screenshot("4-inferred")
    window.seen["labels"] = labels(window)


def closed(window: Window) -> Iterator[Condition]:
    """Close the window while it trains."""
    yield from window.train(window.directory)
    yield lambda: window.bar >= 1 or not window.busy()


def killed(window: Window) -> Iterator[Condition]:
    """End the window's process while it trains, without a word to the child."""
    yield from window.train(window.directory)
    yield lambda: window.bar >= 1 or not window.busy()
    window.seen["children"] = [child.pid for child in children()]
    Path("seen.json").write_text(json.dumps(window.seen))
    os.kill(os.getpid(), signal.SIGKILL)


def trained(window: Window) -> Iterator[Condition]:
    """Train to the end and infer, without and with refinement."""
    yield from window.train(window.directory)
    yield lambda: window.bar >= 1 or not window.busy()
    window.screenshot("1-training")
    yield window.idle
    window.screenshot("2-trained")
    scan = window.products.currentIndex()
    yield from window.infer()
    window.products.setCurrentIndex(scan)
    os.environ["PTYCHO_TORCH_REFINE"] = "5"
    yield from window.infer("refined")
    window.screenshot("3-inferred")
    yield from window.show_object("4-object")


def labels(window: Window) -> list[tuple[str, list[str]]]:
    """Change each setting that the page of the algorithm shows; return label -> keywords that it changes."""
    from ptychodus.controller import ptychopinn_torch as page
    from ptychodus.model.ptychopinn_torch.reconstructor import _build_configs

    library = window.model.ptychopinn_torch_reconstructor_library
    groups = [getattr(library, f"{name}_settings") for name in ("data", "model", "training", "inference")]
    shown: list[tuple[str, Any]] = []

    class Builder:
        """Takes down what is put on the page, in place of Ptychodus's own."""

        def __init__(self, *_: Any) -> None: ...

        def __getattr__(self, name: str) -> Any:
            def add(parameter: Any = None, *rest: Any, **_: Any) -> None:
                if parameter is not None:
                    shown.append((next(text for text in reversed(rest) if isinstance(text, str)), parameter))

            return add

    def sent() -> dict[str, Any]:
        configs = zip(_build_configs("Unsupervised", *groups), "dmtig", strict=True)
        return {
            f"{part} {name}": value for config, part in configs for name, value in config.to_dict().items()
        }

    own, page.ParameterViewBuilder = page.ParameterViewBuilder, Builder
    page.PtychoPINNTorchViewControllerFactory(library, window.dialogs).create_view_controller("Unsupervised")
    page.ParameterViewBuilder = own
    changed: dict[type, Callable[[Any], Any]] = {
        bool: lambda value: not value,
        int: lambda value: value + 1,
        float: lambda value: value / 2 + 0.013,
        str: lambda value: value + "x",
    }
    found = []
    for label, parameter in shown:
        before, value = sent(), parameter.get_value()
        parameter.set_value(changed[type(value)](value))
        after = sent()
        parameter.set_value(value)
        found.append((label.rstrip(":"), [name[2:] for name in after if after[name] != before[name]]))
    return found


def children() -> list[Any]:
    """Return the processes that this one started, but the helper that Python keeps for such ones."""
    import psutil

    found = psutil.Process().children(recursive=True)
    return [child for child in found if "resource_tracker" not in " ".join(child.cmdline())]


def run(scenario: Scenario, directory: Path, settings: Path) -> int:
    """Show the window with the scan open, take the steps, close it; return the exit status."""
    # Its child processes import this file anew, and have no use for a window.
    import ptychodus
    from ptychodus.controller import ControllerCore
    from ptychodus.model import ModelCore
    from ptychodus.view import ViewCore
    from PyQt5.QtCore import QTimer
    from PyQt5.QtWidgets import QApplication

    with ModelCore(settings, log_level=logging.INFO) as model:
        app = QApplication(sys.argv[:1])
        view = ViewCore(is_developer_mode_enabled=False)
        controller = ControllerCore(model, view, is_developer_mode_enabled=False)
        controller.show_main_window(ptychodus.VERSION_STRING)
        view.resize(1400, 900)
        window = Window(model, view, controller, directory)
        patterns = model.workflow_api.load_assembled_diffraction_data(directory / "diffraction.h5")
        product = model.workflow_api.load_product(directory / "product.h5", diffraction=patterns)
        window.products.setCurrentIndex(product.get_product_index())
        view.processing_action.trigger()
        steps = scenario(window)
        waits_for: Condition = bool
        until, failed, last = 0.0, False, ""

        def step() -> None:
            nonlocal waits_for, until, failed, last
            try:
                if window.text != last:
                    last, until = window.text, until and time.monotonic() + LIMIT_S
                if until and not waits_for():
                    if time.monotonic() > until:
                        raise TimeoutError(
                            f"nothing happened for {LIMIT_S} s; the window says:\n{window.text}"
                        )
                    return
                waits_for, until = next(steps), time.monotonic() + LIMIT_S
            except BaseException as error:
                timer.stop()
                if not isinstance(error, StopIteration):
                    traceback.print_exc()
                    failed = True
                view.close()

        timer = QTimer()
        timer.timeout.connect(step)
        timer.start(20)
        app.exec()
    window.seen |= {"text": window.text, "left": [child.cmdline() for child in children()]}
    Path("seen.json").write_text(json.dumps(window.seen, default=str))
    return int(failed)


if __name__ == "__main__":
    name, *paths = sys.argv[1:]
    sys.exit(run(globals()[name], *map(Path, paths)))
