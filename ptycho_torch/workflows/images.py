"""Reconstructed images during training, for the logger that the settings chose."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from ptycho_exec.errors import SettingsError
from ptycho_exec.plan import Plan
from ptycho_exec.trainer.images import Images
from ptycho_torch.data.dataset import PtychoDataset
from ptycho_torch.data.grouping import inference_groups
from ptycho_torch.data.scan import ScanData
from ptycho_torch.reconstruction.stitch import Stitcher, probe_weights


def image_callbacks(container: Any, gridsize: int, plan: Plan) -> tuple[Callback, ...]:
    """Return the callback that sends images to the logger, if the settings ask for it.

    Raises:
        SettingsError: images of a container without a canvas.
    """
    every = plan.settings.log_images_every_n_epochs
    if every is None:
        return ()
    if not isinstance(container, ScanData):
        raise SettingsError(
            "no image can be reconstructed of a container without scan positions",
            where=plan.requested.origin_of("log_images_every_n_epochs"),
            expected="a scan, as ptycho_torch.read_scan returns it",
            fix="pass a scan, or set log_images_every_n_epochs=none",
        )
    size = plan.settings.inference_batch_size or plan.settings.batch_size
    made = partial(render, scan=container, gridsize=gridsize, batch_size=size)
    return (Images(made, every),)


def render(module: Any, scan: ScanData, gridsize: int, batch_size: int) -> dict[str, NDArray[np.uint8]]:
    """Reconstruct a scan with a network in training; amplitude and phase as (H, W, 3) bytes.

    Reads the samples directly: a loader would take numbers from the random state and so change the training.
    """
    samples = PtychoDataset(scan, inference_groups(scan.positions_px, gridsize=gridsize))
    n = scan.n_pixels
    weights = probe_weights(module.probe.detach()).cpu()
    stitcher = Stitcher(scan.canvas_shape, n, weights=weights, out_of_canvas="crop")
    for start in range(0, len(samples), batch_size):
        batch = samples.__getitems__(range(start, min(start + batch_size, len(samples))))
        predicted = module.predict_step({name: tensor.to(module.device) for name, tensor in batch.items()})
        stitcher.add(
            predicted["patches"].reshape(-1, n, n).cpu(), predicted["positions_px"].reshape(-1, 2).cpu()
        )
    stitched = stitcher.result()
    covered = (stitched.coverage > 0).numpy()
    obj = stitched.object.numpy()
    return {"amplitude": _gray(np.abs(obj), covered), "phase": _gray(np.angle(obj), covered)}


def _gray(image: NDArray[Any], covered: NDArray[np.bool_]) -> NDArray[np.uint8]:
    low, high = np.percentile(image[covered], (1, 99)) if covered.any() else (0.0, 1.0)
    level = np.clip((image - low) / max(float(high - low), 1e-12), 0, 1) * covered
    return np.repeat((255 * level).astype(np.uint8)[..., None], 3, axis=-1)
