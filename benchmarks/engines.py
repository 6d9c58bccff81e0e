"""Other iterative engines beside ours, on the same scan: Pty-Chi's LSQML and xptycho's PMACE.

Both are optional and run in this process, where they are installed; `load` says how they come to be. Each is
given the scan's own probe, held fixed, and a flat object, and its object is read on the scan's canvas.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.scan import ScanData

MARGIN = 2
"""Pixels around the canvas that Pty-Chi's object has more."""


class Task(NamedTuple):
    """A reconstruction that goes on where it stopped."""

    run: Callable[[int], None]
    """Make so many more epochs."""
    read: Callable[[], NDArray[Any]]
    """Return the object (H, W) on the scan's canvas."""


class Engine(NamedTuple):
    """Another program: its name, package, how to install it, and how to begin on a scan."""

    name: str
    package: str
    install: str
    begin: Callable[[ScanData], Task]


def load(key: str) -> Engine:
    """Return an engine whose package can be imported.

    Raises:
        SystemExit: it cannot, with what to do.
    """
    engine = ENGINES[key]
    try:
        importlib.import_module(engine.package)
    except ImportError as error:
        raise SystemExit(
            f"{engine.name} cannot be imported: {error}\n"
            f"  where:    --peer {key}\n"
            f"  expected: the package {engine.package} in this Python\n"
            f"  fix:      {engine.install}; or leave --peer {key} out"
        ) from None
    return engine


def _ptychi(scan: ScanData) -> Task:
    """LSQML with its default batch size."""
    import ptychi.api as api
    from ptychi.api.task import PtychographyTask

    n, (height, width) = scan.n_pixels, scan.canvas_shape
    center = (np.array([height, width]) - 1) / 2
    options = api.LSQMLOptions()
    options.data_options.data = np.square(scan.amplitude(np.arange(len(scan))))
    options.data_options.valid_pixel_mask = scan.good_pixels
    options.object_options.initial_guess = np.ones(
        (1, height + 2 * MARGIN, width + 2 * MARGIN), dtype=np.complex64
    )
    options.object_options.determine_position_origin_coords_by = api.ObjectPosOriginCoordsMethods.SPECIFIED
    # Its patches are centered on index N/2 about a position; ours are on (N - 1)/2.
    options.object_options.position_origin_coords = center + MARGIN + 0.5 * (1 - n % 2)
    options.probe_options.initial_guess = scan.probe[None].astype(np.complex64)  # type: ignore[index]
    options.probe_options.optimizable = False
    options.probe_position_options.position_y_px = scan.positions_px[:, 0] - center[0]
    options.probe_position_options.position_x_px = scan.positions_px[:, 1] - center[1]
    options.reconstructor_options.num_epochs = 1000
    options.reconstructor_options.default_device = api.Devices.CPU
    options.reconstructor_options.random_seed = 0
    task = PtychographyTask(options)
    inside = np.s_[MARGIN : MARGIN + height, MARGIN : MARGIN + width]
    return Task(task.run, lambda: np.asarray(task.get_data_to_cpu("object", as_numpy=True))[0][inside])


def _xptycho(scan: ScanData) -> Task:
    """PMACE on whole-pixel positions, as it takes them; the unit of length makes an object pixel 1."""
    import xptycho

    n = scan.n_pixels
    frames = np.square(scan.amplitude(np.arange(len(scan))))
    # Its patches begin n // 2 before the rounded position; ours at position - (n - 1)/2.
    positions = np.round(scan.positions_px - (n - 1) / 2) + n // 2
    measured = xptycho.Scan(frames, positions, wavelength=1.0, det_distance=float(n), det_pixel_pitch=1.0)
    model = xptycho.PtychoModel.from_scan(measured, num_probe_modes=len(scan.probe))  # type: ignore[arg-type]
    model.set_params(object_shape=scan.canvas_shape, object_origin=(0.0, 0.0))
    model.configure_devices(devices=["cpu"])
    probe = scan.probe.astype(np.complex64)  # type: ignore[union-attr]
    flat = xptycho.Sample(np.ones(scan.canvas_shape, np.complex64), probe, model.sample_pixel_pitch)
    made = {"last": flat}

    def run(epochs: int) -> None:
        made["last"] = model.recon(measured, probe=probe, init=made["last"], iterations=epochs, verbose=0)

    return Task(run, lambda: np.asarray(made["last"].object))


ENGINES = {
    "ptychi": Engine("Pty-Chi LSQML", "ptychi", "pip install ptychi", _ptychi),
    "xptycho": Engine("xptycho PMACE", "xptycho", "pip install xptycho", _xptycho),
}
