"""Whether two scans are the same, and where the program of Ptychodus sees the positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptycho_torch.data.scan import ScanData


def assert_same_scan(one: ScanData, two: ScanData, *, position_tolerance_px: float = 1e-9) -> None:
    rows = np.arange(len(two))
    np.testing.assert_array_equal(one.amplitude(rows), two.amplitude(rows), strict=True)
    np.testing.assert_allclose(one.positions_px, two.positions_px, atol=position_tolerance_px, rtol=0)
    np.testing.assert_array_equal(one.probe, two.probe)
    np.testing.assert_array_equal(one.object_guess, two.object_guess)
    np.testing.assert_array_equal(one.good_pixels, two.good_pixels)
    assert one.canvas_shape == two.canvas_shape


def positions_px(product: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    geometry = product.object_.get_geometry()
    points = product.probe_positions
    y = geometry.map_probe_positions_to_object_y_px(points)
    return np.stack([y, geometry.map_probe_positions_to_object_x_px(points)], axis=1)
