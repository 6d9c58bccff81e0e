"""A figure shows itself without pyplot, which would keep it alive and choose a window."""

from __future__ import annotations

import subprocess
import sys

from ptycho_torch.figures import ShownFigure


def test_a_figure_is_a_png() -> None:
    figure = ShownFigure(figsize=(2, 1))
    figure.add_subplot()
    assert figure._repr_png_().startswith(b"\x89PNG\r\n")


def test_plotting_does_not_import_pyplot() -> None:
    code = (
        "import sys, ptycho_torch; scan = ptycho_torch.simulate_scan(n=16, patterns=9); "
        "assert 'matplotlib' not in sys.modules; scan.plot()._repr_png_(); "
        "assert 'matplotlib.figure' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
