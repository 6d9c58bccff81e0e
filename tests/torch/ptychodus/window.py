"""Ptychodus's own main window, used as a person uses it; run as a program, under an X server.

    python window.py SCENARIO DIRECTORY [SETTINGS]

DIRECTORY holds `product.h5` and `diffraction.h5`. Screenshots and `seen.json`, what the scenario saw, are
written into the working directory. Nothing of the window is replaced but its file dialogs.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LIMIT_S = 60
"""Longest wait for anything."""
ALGORITHM = "ptychopinn-torch_unsupervised"

Condition = Callable[[], bool]


class Window:
    """The window with what a test looks at, and its events by the seconds since the start."""

    def __init__(self, model: Any, view: Any, controller: Any, directory: Path) -> None:
        self.model, self.view, self.controller, self.directory = model, view, controller, directory
        self.status = view.processing_status_view
        self.actions = controller._processing_controller._actions_view
        self.seen: dict[str, Any] = {"bar": [], "lines": []}
        self.status.progress_bar.valueChanged.connect(self._bar_moved)

    @property
    def text(self) -> str:
        return self.status.text_edit.toPlainText()

    @property
    def busy(self) -> bool:
        return self.model.processing_core.processing_api.task_monitor.is_processing

    @property
    def reconstructor(self) -> Any:
        return self.model.processing_core.algorithm_parameter.get_current_reconstructor()

    @property
    def products(self) -> Any:
        return self.controller._processing_controller._product_view_controller.get_widget()

    @property
    def product(self) -> Any:
        return self.model.product_core.product_repository[self.products.currentIndex()].get_product()

    def _bar_moved(self, value: int) -> None:
        self.seen["bar"].append([value, self.status.progress_bar.maximum(), self.text.count("] ptychopinn")])

    def open(self) -> None:
        """Open the scan and show the page where it is processed."""
        patterns = self.model.workflow_api.load_assembled_diffraction_data(self.directory / "diffraction.h5")
        product = self.model.workflow_api.load_product(self.directory / "product.h5", diffraction=patterns)
        self.products.setCurrentIndex(product.get_product_index())
        self.view.resize(1400, 900)
        self.view.processing_action.trigger()

    def choose_algorithm(self, key: str = ALGORITHM) -> None:
        self.model.processing_core.algorithm_parameter.set_value(key)

    def answer_dialogs_with(self, directory: Path) -> None:
        self.controller._file_dialog_factory.get_existing_directory_path = lambda *_: directory

    def screenshot(self, name: str) -> None:
        self.view.grab().save(f"{name}.png")

    def started(self) -> Condition:
        """Return what is true once the work that was just asked for has begun."""
        return lambda: self.busy

    def ended(self) -> Condition:
        return lambda: not self.busy and self.model.task_manager_is_idle()


Scenario = Callable[[Window], Iterator[Condition]]


def run(scenario: Scenario, directory: Path, settings: Path | None) -> int:
    """Show the window, take the scenario's steps from a timer, close; return the exit status."""
    # Its child processes import this file anew, and have no use for a window.
    import ptychodus
    from PyQt5.QtCore import QTimer
    from PyQt5.QtWidgets import QApplication
    from ptychodus.controller import ControllerCore
    from ptychodus.model import ModelCore
    from ptychodus.view import ViewCore

    with ModelCore(settings, log_level=logging.INFO) as model:
        app = QApplication(sys.argv[:1])
        view = ViewCore(is_developer_mode_enabled=False)
        controller = ControllerCore(model, view, is_developer_mode_enabled=False)
        controller.show_main_window(ptychodus.VERSION_STRING)
        window = Window(model, view, controller, directory)
        steps, state = scenario(window), {"wait": lambda: True, "until": time.monotonic() + LIMIT_S, "rc": 0}

        def step() -> None:
            try:
                if not state["wait"]():
                    if time.monotonic() > state["until"]:
                        raise TimeoutError(f"nothing happened within {LIMIT_S} s; the panel says:\n{window.text}")
                    return
                state.update(wait=next(steps), until=time.monotonic() + LIMIT_S)
            except BaseException as error:
                timer.stop()
                if not isinstance(error, StopIteration):
                    traceback.print_exc()
                    state["rc"] = 1
                window.screenshot("last")
                window.seen["text"] = window.text
                Path("seen.json").write_text(json.dumps(window.seen, default=str))
                view.close()

        timer = QTimer()
        timer.timeout.connect(step)
        timer.start(20)
        app.exec()
    return int(state["rc"])


def stop(window: Window) -> Iterator[Condition]:
    window.open()
    window.choose_algorithm()
    yield lambda: window.actions.train_button.isEnabled()
    window.answer_dialogs_with(window.directory)
    window.actions.train_button.click()
    yield lambda: window.busy
    yield lambda: window.status.progress_bar.value() >= 1 or not window.busy
    window.screenshot("training")
    yield lambda: window.status.progress_bar.value() >= 2 or not window.busy
    window.status.stop_button.click()
    t = time.monotonic()
    yield lambda: not window.busy
    window.seen["stopping_s"] = time.monotonic() - t
    window.seen["model"] = window.reconstructor._loaded_model_path
    yield lambda: "stopped after" in window.text
    window.screenshot("stopped")
    window.choose_algorithm("ptychopinn-torch_supervised")
    window.choose_algorithm()
    window.actions.reconstruct_button.click()
    yield lambda: window.busy
    yield lambda: not window.busy
    t=time.monotonic()
    yield lambda: time.monotonic() > t+2
    window.seen["std"] = float(window.product.object_.get_array().std())


if __name__ == "__main__":
    name, folder, *more = sys.argv[1:]
    sys.exit(run(globals()[name], Path(folder), Path(more[0]) if more else None))
