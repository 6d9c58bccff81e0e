"""Images are written, show what they should, and cost nothing until they are asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ptycho_exec.errors import DataError
from ptycho_torch.evaluation import plots
from ptycho_torch.evaluation.metrics import evaluate, ring_correlation

SHAPE = (96, 80)
RNG = np.random.default_rng(0)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]]
OBJECT = (0.7 + 0.3 * np.sin(X / 6) * np.sin(Y / 5)) * np.exp(1j * np.cos(Y / 7))


def coverage() -> NDArray[np.float32]:
    covered = np.zeros(SHAPE, np.float32)
    covered[20:60, 10:70] = 2
    return covered


def pixels(path: Path) -> NDArray[np.float64]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"), dtype=float)


def image_box(path: Path) -> float:
    """Return the height over the width of the part of a single image that is not blank."""
    colored = np.abs(pixels(path) - 255).max(axis=2) > 3
    inked = colored.mean(axis=0) > 0.2
    start = int(np.argmax(inked))
    stop = start + int(np.argmin(inked[start:]))  # the gap before the color bar
    rows = np.flatnonzero(colored[:, start:stop].mean(axis=1) > 0.5)
    return float((rows[-1] - rows[0]) / (stop - start))


@pytest.mark.parametrize("render", [plots.save_amplitude, plots.save_phase])
def test_object_images_are_cropped_to_the_coverage(render: Any, tmp_path: Path) -> None:
    whole = render(OBJECT, tmp_path / "whole.png")
    cropped = render(OBJECT, tmp_path / "new" / "cropped.png", coverage=coverage())
    assert image_box(whole) == pytest.approx(96 / 80, rel=0.1)
    assert image_box(cropped) == pytest.approx(40 / 60, rel=0.1)


def test_a_scale_bar_appears_when_the_pixel_size_is_known(tmp_path: Path) -> None:
    plain = pixels(plots.save_amplitude(OBJECT, tmp_path / "a.png"))
    scaled = pixels(plots.save_amplitude(OBJECT, tmp_path / "b.png", pixel_size_m=1e-8))
    changed = np.abs(plain - scaled).max(axis=2) > 30
    rows, columns = np.nonzero(changed)
    assert changed.sum() > 500
    assert rows.min() > 0.75 * len(changed)
    assert columns.max() < 0.5 * changed.shape[1]


@pytest.mark.parametrize(
    ("length_m", "rounded", "text"),
    [
        (2.7e-7, 2e-7, "200 nm"),
        (1e-6, 1e-6, "1 µm"),
        (9.9e-6, 5e-6, "5 µm"),
        (4e-3, 2e-3, "2 mm"),
        (3e-10, 2e-10, "0.2 nm"),
    ],
)
def test_scale_bars_have_round_lengths(length_m: float, rounded: float, text: str) -> None:
    assert plots._round_length(length_m) == (pytest.approx(rounded), text)


def test_a_phase_round_the_circle_gets_a_cyclic_map() -> None:
    assert plots._phase_style(np.linspace(-3, 3, 100)) == ("twilight", (-np.pi, np.pi))
    name, (low, high) = plots._phase_style(np.linspace(-0.4, 0.1, 100))
    assert (name, low) == ("RdBu_r", -high)
    assert high == pytest.approx(0.4, rel=0.05)


def test_comparison_grows_by_a_column_for_each_reconstruction(tmp_path: Path) -> None:
    noise = RNG.normal(size=SHAPE) + 1j * RNG.normal(size=SHAPE)
    good = evaluate(OBJECT + 0.01 * noise, OBJECT, pixel_size_m=1e-8)
    bad = evaluate(OBJECT + 0.3 * noise, OBJECT, pixel_size_m=1e-8)
    one = pixels(plots.save_comparison({"network": good}, tmp_path / "one.png"))
    two = pixels(plots.save_comparison({"network": bad, "network + refine": good}, tmp_path / "two.png"))
    assert two.shape[1] > 1.3 * one.shape[1]
    with pytest.raises(DataError, match="no reconstruction to compare"):
        plots.save_comparison({}, tmp_path / "none.png")


def test_panels_of_different_fields_are_cut_to_the_common_one() -> None:
    moved = evaluate(np.roll(OBJECT, 3, axis=0), OBJECT, coverage=coverage())
    plain = evaluate(OBJECT, OBJECT, coverage=coverage())
    assert moved.field != plain.field
    panels = plots._comparison_panels({"moved": moved, "plain": plain})
    assert [name.split("\n")[0] for name, *_ in panels] == ["truth", "moved", "plain"]
    assert len({panel[1].shape for panel in panels}) == 1
    np.testing.assert_allclose(panels[0][1], panels[2][1], atol=1e-9)


def test_curves_are_plotted(tmp_path: Path) -> None:
    rings = ring_correlation(OBJECT, OBJECT + RNG.normal(size=SHAPE))
    single = plots.save_frc({"a": rings}, tmp_path / "frc.png", pixel_size_m=1e-8)
    several = plots.save_frc({"a": rings, "b": ring_correlation(OBJECT, OBJECT)}, tmp_path / "frc2.png")
    assert np.abs(pixels(single).mean() - pixels(several).mean()) > 0.01
    for losses in ({"loss": [3.0, 2.0, 1.0]}, {"training": [1.0, -0.5], "validation": []}):
        assert pixels(plots.save_loss_curve(losses, tmp_path / "loss.png")).std() > 5


def test_a_probe_shows_its_modes_the_strongest_first(tmp_path: Path) -> None:
    disk = (np.hypot(*np.mgrid[-16:16, -16:16]) < 9) * np.exp(1j * np.arange(32) / 3)
    one = pixels(plots.save_probe(disk[None], tmp_path / "one.png"))
    both = [np.stack(modes) for modes in ((disk, disk[::-1] / 2), (disk[::-1] / 2, disk))]
    first, second = (pixels(plots.save_probe(modes, tmp_path / "two.png")) for modes in both)
    np.testing.assert_array_equal(first, second)
    assert first.shape[1] > 1.4 * one.shape[1]
    assert pixels(plots.save_probe(np.zeros((1, 8, 8)), tmp_path / "none.png")).std() > 0


def test_positions_are_shown_where_they_were_and_where_they_went(tmp_path: Path) -> None:
    given = np.random.default_rng(0).uniform(0, 50, (30, 2))
    still = pixels(plots.save_positions(given, given, tmp_path / "still.png"))
    moved = pixels(plots.save_positions(given, given + 4.0, tmp_path / "moved.png"))
    assert still.std() > 5
    assert moved.shape != still.shape or not np.array_equal(moved, still)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_object_without_contrast_can_still_be_shown(value: float, tmp_path: Path) -> None:
    flat = np.full(SHAPE, value, complex)
    assert plots.save_amplitude(flat, tmp_path / "a.png").exists()
    assert plots.save_phase(flat, tmp_path / "p.png").exists()


def test_nothing_covered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing is covered"):
        plots.save_amplitude(OBJECT, tmp_path / "a.png", coverage=np.zeros(SHAPE))
    assert not (tmp_path / "a.png").exists()


def test_equal_images_are_equal_files(tmp_path: Path) -> None:
    first = plots.save_phase(OBJECT, tmp_path / "1.png").read_bytes()
    assert first == plots.save_phase(OBJECT, tmp_path / "2.png").read_bytes()


def test_matplotlib_is_imported_late_and_pyplot_never(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from ptycho_torch.evaluation import plots; "
        "assert 'matplotlib' not in sys.modules; "
        f"plots.save_amplitude(np.ones((20, 20)), {str(tmp_path / 'a.png')!r}); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
