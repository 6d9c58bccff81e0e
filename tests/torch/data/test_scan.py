"""A scan: its geometry, its amplitudes, and its parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho_torch.data.assemble import scan_from_arrays
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import simulate_scan


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=16, patterns=20, photons=1e4, seed=6, bad_pixels=3, with_labels=True)


def test_amplitude_is_the_root_of_counts_and_zero_where_pixels_are_bad(scan: ScanData) -> None:
    counts = np.asarray(scan.patterns)[[4, 1]].astype(float)
    counts[:, ~scan.good_pixels] = 0
    np.testing.assert_array_equal(scan.amplitude([4, 1]), np.sqrt(counts).astype(np.float32), strict=True)
    np.testing.assert_array_equal(np.unravel_index(scan.bad_flat, (16, 16)), np.nonzero(~scan.good_pixels))


def test_the_patch_at_an_origin_is_the_label(scan: ScanData) -> None:
    """Moved to whole pixels, a patch is a slice of the object."""
    whole = simulate_scan(n=16, patterns=4, step_px=5, jitter_px=0, seed=1, with_labels=True)
    assert whole.object_guess is not None
    for row, (y, x) in enumerate(whole.origins_px):
        assert (y % 1, x % 1) == (0.0, 0.0)
        patch = whole.object_guess[int(y) : int(y) + 16, int(x) : int(x) + 16]
        np.testing.assert_allclose(whole.label_patches([row])[0], patch, atol=1e-6)
    with pytest.raises(ValueError, match="no per-pattern labels"):
        replace(scan, labels=None).label_patches([0])


def test_a_subset_takes_everything_of_its_patterns_along(scan: ScanData) -> None:
    numbered = replace(scan, scan_index=np.arange(100, 120))
    part = numbered.subset([7, 2]).subset([1])
    assert (len(part), part.canvas_shape, part.report["patterns_used"]) == (1, scan.canvas_shape, 1)
    assert part.scan_index is not None
    np.testing.assert_array_equal(part.scan_index, [102])
    np.testing.assert_array_equal(part.positions_px, scan.positions_px[[2]])
    np.testing.assert_array_equal(part.amplitude([0]), scan.amplitude([2]))
    np.testing.assert_array_equal(part.label_patches([0]), scan.label_patches([2]))
    assert "patterns_used" not in scan.report


def test_the_wavelength_is_that_of_the_photon_energy(scan: ScanData) -> None:
    """Copper K-alpha 1: 8047.82 eV and 1.540593 angstrom."""
    assert replace(scan, photon_energy_eV=8047.82).wavelength_m == pytest.approx(1.540593e-10, rel=1e-5)
    assert replace(scan, photon_energy_eV=None).wavelength_m is None


def test_only_whole_numbers_of_an_intensity_are_counts(scan: ScanData) -> None:
    assert scan.holds_counts
    assert not replace(scan, domain="amplitude").holds_counts
    floats = np.asarray(scan.patterns).astype(np.float32)
    for factor, counts in ((1.0, True), (37.0, True), (0.37, False)):
        read = scan_from_arrays(floats * np.float32(factor), scan.positions_px, domain="intensity")
        assert read.holds_counts is counts
    assert not replace(scan, patterns=floats, report={}).holds_counts


def test_a_scan_shows_itself_in_a_few_lines(scan: ScanData) -> None:
    strange = replace(scan, name="<scan>", source=None, pixel_size_m=2e-8)
    html = strange._repr_html_()
    for text in ("&lt;scan&gt;", "20 of 16 x 16", "1 mode", "bad pixels", "20"):
        assert text in html
    assert len(repr(strange)) < 300
    without = replace(scan, probe=None, object_guess=None)
    assert "probe: none" in repr(without)


def test_a_plot_has_the_mean_pattern_and_every_position(scan: ScanData) -> None:
    pattern, places, _ = scan.plot().axes
    shown = pattern.images[0].get_array()
    assert (shown.mask == ~scan.good_pixels).all()
    counts = np.asarray(scan.patterns, float).mean(axis=0)
    np.testing.assert_allclose(shown.compressed(), counts[scan.good_pixels], rtol=1e-5)
    np.testing.assert_array_equal(places.lines[0].get_xydata()[:, ::-1], scan.positions_px)


def test_a_dark_scan_is_plotted(scan: ScanData) -> None:
    drawn = replace(scan, patterns=np.zeros_like(scan.patterns)).plot()
    assert drawn._repr_png_().startswith(b"\x89PNG")
    assert not drawn.axes[0].images[0].get_array().any()
