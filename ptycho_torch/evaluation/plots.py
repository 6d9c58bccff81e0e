"""Images of a run: amplitude, phase, side by side with the truth, ring correlation, loss.

Every function writes one PNG and returns its path. matplotlib is imported when the first image is
rendered, and used without pyplot, so no display is needed and no global state is touched.

Colors: amplitude in gray (as microscopes show it), phase in twilight when it goes round the circle
and in a diverging map otherwise, coverage in viridis; all are perceptually uniform.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.display import new_figure
from ptycho_torch.evaluation.registration import Field, centered_phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ptycho_torch.data.scan import ScanData
    from ptycho_torch.evaluation.metrics import Evaluation, RingCorrelation

Image = NDArray[np.float64]
MaskedImage = np.ma.MaskedArray[Any, np.dtype[np.float64]]

DPI = 160
INK = "#1d2733"
FAINT = "#8a94a0"
COLORS = ("#0b6fb8", "#d1495b", "#2a9d6f", "#8a5cb8", "#c98a12", "#4b5d6b")
"""Line colors, distinguished also by people with color blindness when printed in gray."""
MOST_PIXELS = 1000
"""Pixels along the longer side of an image that are drawn: more than a picture has."""
MOST_MODES = 6
"""Modes of a probe that are shown, the strongest."""
SHOWN_FROM = 0.05
"""Part of a mode's largest amplitude from which on its phase is shown."""


def save_amplitude(
    obj: NDArray[Any],
    path: str | Path,
    *,
    coverage: NDArray[Any] | None = None,
    pixel_size_m: float | None = None,
) -> Path:
    """Render the amplitude of an object, complex (H, W), cropped to its coverage (H, W)."""
    step, obj, coverage = _drawn(obj, coverage)
    image, pixel = _cropped(np.abs(obj), coverage), _pixel(pixel_size_m, step)
    return _save_single(image, path, "gray", _limits(image.compressed()), "Amplitude", "", pixel)


def save_phase(
    obj: NDArray[Any],
    path: str | Path,
    *,
    coverage: NDArray[Any] | None = None,
    pixel_size_m: float | None = None,
) -> Path:
    """Render the phase of an object, complex (H, W), in radians about its mean, cropped to its coverage."""
    step, obj, coverage = _drawn(obj, coverage)
    image, pixel = _cropped(centered_phase(obj), coverage), _pixel(pixel_size_m, step)
    color_map, limits = _phase_style(image.compressed())
    return _save_single(image, path, color_map, limits, "Phase", "radians", pixel)


def object_figure(
    obj: NDArray[Any], *, coverage: NDArray[Any] | None = None, pixel_size_m: float | None = None
) -> Figure:
    """Return amplitude and phase of an object, complex (H, W), side by side, cropped to its coverage."""
    step, obj, coverage = _drawn(obj, coverage)
    amplitude, phase = _cropped(np.abs(obj), coverage), _cropped(centered_phase(obj), coverage)
    pixel = _pixel(pixel_size_m, step)
    figure = _figure((9.4, 4.2 * amplitude.shape[0] / amplitude.shape[1] + 0.5))
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.3})
    color_map, limits = _phase_style(phase.compressed())
    _show(left, amplitude, "gray", _limits(amplitude.compressed()), "Amplitude", "", pixel)
    _show(right, phase, color_map, limits, "Phase", "radians", pixel)
    return figure


def save_comparison(evaluations: Mapping[str, Evaluation], path: str | Path) -> Path:
    """Render truth and aligned reconstructions side by side, with their ring correlations below.

    evaluations: one per name, as `metrics.evaluate` returns them, all against the same truth.
    """
    if not evaluations:
        raise DataError("there is no reconstruction to compare", expected="at least one evaluation")
    panels = _comparison_panels(evaluations)
    first = next(iter(evaluations.values()))
    width = 2.9
    height = width * first.truth.shape[0] / first.truth.shape[1]
    total = 2 * height + 3.5
    wide = len(panels) * (width + 0.1) + 1.5
    figure = _figure((wide, total))
    margins = {"left": 0.7 / wide, "right": 1 - 0.8 / wide, "bottom": 0.55 / total, "top": 1 - 0.6 / total}
    ratios = [height, height, 2.3]
    grid = figure.add_gridspec(3, len(panels), height_ratios=ratios, hspace=0.14, wspace=0.06, **margins)
    _, truth_amplitude, truth_phase = panels[0]
    styles = (("gray", _limits(truth_amplitude), ""), (*_phase_style(truth_phase), "radians"))
    for column, (name, *images) in enumerate(panels):
        for row, (image, (color_map, limits, unit)) in enumerate(zip(images, styles, strict=True)):
            axes = figure.add_subplot(grid[row, column])
            title, pixel_size_m = name if row == 0 else "", None if column else first.pixel_size_m
            bar = column == len(panels) - 1
            _show(axes, image, color_map, limits, title, unit, pixel_size_m, bar=bar)
            if column == 0:
                axes.set_ylabel(("amplitude", "phase")[row], color=INK, fontsize=10)
    rings = {name: evaluation.rings for name, evaluation in evaluations.items()}
    _plot_rings(figure.add_subplot(grid[2, :]), rings, first.pixel_size_m)
    return _save(figure, path, trim=False)


def save_probe(probe: NDArray[Any], path: str | Path) -> Path:
    """Render amplitude and phase of the modes of a probe, complex (P, N, N), with their parts of the power.

    The phase is shown where the amplitude is more than a few percent of the mode's largest.
    """
    powers = np.square(np.abs(probe)).sum(axis=(1, 2))
    order = np.argsort(-powers, kind="stable")[:MOST_MODES]
    figure = _figure((2.7 * len(order) + 0.9, 5.6))
    panels = figure.subplots(2, len(order), squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.08})
    for column, mode in enumerate(order):
        amplitude = np.abs(probe[mode])
        top = float(amplitude.max()) or 1.0
        title = f"mode {column + 1}: {powers[mode] / max(powers.sum(), 1e-30):.1%}"
        bar = column == len(order) - 1
        relative = amplitude / top
        _show(panels[0, column], relative, "gray", (0.0, 1.0), title, "of the largest", None, bar=bar)
        phase = np.ma.masked_array(centered_phase(probe[mode]), amplitude < SHOWN_FROM * top)
        _show(panels[1, column], phase, "twilight", (-np.pi, np.pi), "", "radians", None, bar=bar)
    for axes, name in zip(panels[:, 0], ("amplitude", "phase"), strict=True):
        axes.set_ylabel(name, color=INK, fontsize=10)
    return _save(figure, path)


def save_scan(scan: ScanData, stored: NDArray[Any], path: str | Path) -> Path:
    """Render the mean pattern as stored and as prepared, with mask and beam, and the positions.

    stored: (K, h, w) some patterns before preprocessing. Bad pixels are red; the cross marks the zero
    frequency, the circle the center of mass of the beam.
    """
    from matplotlib.colors import LogNorm

    rows = np.unique(np.linspace(0, len(scan) - 1, len(stored)).astype(np.int64))
    prepared = np.ma.masked_array(
        np.asarray(scan.patterns[rows], dtype=np.float64).mean(axis=0), ~scan.good_pixels
    )
    with np.errstate(invalid="ignore"):
        before = np.ma.masked_invalid(np.asarray(stored, dtype=np.float64).mean(axis=0))
    figure = _figure((12.6, 4.2))
    panels = figure.subplots(1, 3, gridspec_kw={"wspace": 0.3})
    top = float(prepared.max())
    for axes, image, title in ((panels[0], before, "as stored"), (panels[1], prepared, "prepared")):
        scale = LogNorm(max(top * 1e-5, float(prepared[prepared > 0].min()) / 2, 1e-30), top, clip=True)
        colors = _color_map("viridis", bad=COLORS[1])
        axes.imshow(image, cmap=colors, norm=scale, interpolation="nearest")
        axes.set_title(f"Mean pattern, {title}: {image.shape[0]} x {image.shape[1]}", fontsize=9, color=INK)
    n = scan.n_pixels
    panels[1].plot(n // 2, n // 2, "+", color="white", markersize=12)
    y, x = scan.report.get("brightest_px", (n // 2, n // 2))
    panels[1].plot(x, y, "o", color="white", markersize=9, fillstyle="none")
    panels[2].plot(scan.positions_px[:, 1], scan.positions_px[:, 0], ".", color=COLORS[0], markersize=2.5)
    panels[2].set(xlim=(0, scan.canvas_shape[1]), ylim=(scan.canvas_shape[0], 0), aspect="equal")
    panels[2].set_title(f"{len(scan)} positions on the object, pixels", fontsize=9, color=INK)
    return _save(figure, path)


def _color_map(name: str, bad: str) -> Any:
    """Return a color map that shows masked pixels in a color of their own."""
    import matplotlib

    return matplotlib.colormaps[name].with_extremes(bad=bad)


def save_frc(
    curves: Mapping[str, RingCorrelation], path: str | Path, *, pixel_size_m: float | None = None
) -> Path:
    """Plot one or several Fourier ring correlations with the 0.5, 1/7 and half-bit thresholds."""
    figure = _figure((6.4, 3.6))
    _plot_rings(figure.add_subplot(), curves, pixel_size_m)
    figure.subplots_adjust(left=0.1, right=0.95, bottom=0.14, top=0.95)
    return _save(figure, path, trim=False)


def save_loss_curve(curves: Mapping[str, Sequence[float]], path: str | Path) -> Path:
    """Plot one or several loss curves over the epochs, on a logarithmic axis when all are positive."""
    return _save(loss_figure(curves), path)


def loss_figure(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Return the figure of `save_loss_curve`."""
    figure = _figure((6.4, 3.4))
    axes = figure.add_subplot()
    for color, (name, values) in zip(cycle(COLORS), curves.items(), strict=False):
        axes.plot(np.arange(1, len(values) + 1), values, color=color, linewidth=1.8, label=name)
        if len(values):
            style: dict[str, Any] = {
                "textcoords": "offset points",
                "color": color,
                "fontsize": 8,
                "va": "center",
            }
            axes.annotate(f"{values[-1]:.4g}", (len(values), values[-1]), (4, 0), **style)
    if all(value > 0 for values in curves.values() for value in values):
        axes.set_yscale("log")
    _style_axes(axes, "epoch", "loss")
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


def save_positions(given_px: NDArray[Any], corrected_px: NDArray[Any], path: str | Path) -> Path:
    """Plot scan positions (M, 2) [y, x] as they were given, and where a correction has moved each one."""
    figure = _figure((5.4, 5.4))
    axes = figure.add_subplot()
    (y, x), (up, right) = given_px.T, (corrected_px - given_px).T
    axes.plot(x, y, ".", color=FAINT, markersize=3, label="given")
    axes.quiver(
        x, y, right, up, color=COLORS[0], angles="xy", scale_units="xy", scale=1, width=0.003, label="moved"
    )
    axes.invert_yaxis()
    axes.set_aspect("equal")
    rms = math.sqrt(float(np.square(corrected_px - given_px).sum(axis=1).mean()))
    axes.set_title(f"Positions, moved by {rms:.3g} px (root mean square)", color=INK, fontsize=10)
    _style_axes(axes, "x, pixels", "y, pixels")
    axes.legend(frameon=False, fontsize=9, loc="upper right")  # the best place is slow to find
    return _save(figure, path)


def _save_single(
    image: MaskedImage,
    path: str | Path,
    color_map: str,
    limits: tuple[float, float],
    title: str,
    unit: str,
    pixel_size_m: float | None,
) -> Path:
    width = 4.6
    figure = _figure((width + 1.1, width * image.shape[0] / image.shape[1] + 0.7))
    margins = {"left": 0.03, "right": 0.85, "bottom": 0.03, "top": 0.9}
    axes = figure.subplots(gridspec_kw=margins)
    _show(axes, image, color_map, limits, title, unit, pixel_size_m)
    return _save(figure, path, trim=False)


def _show(
    axes: Axes,
    image: Any,
    color_map: str,
    limits: tuple[float, float],
    title: str,
    unit: str,
    pixel_size_m: float | None,
    *,
    bar: bool = True,
) -> None:
    from matplotlib.ticker import MaxNLocator

    # Of a large image every second pixel, or fewer, is taken, as in `_drawn`.
    height, width = image.shape
    step = math.ceil(max(height, width) / MOST_PIXELS)
    shown = axes.imshow(
        image[::step, ::step],
        cmap=color_map,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )
    axes.xaxis.set_visible(False)
    axes.set_yticks([])
    axes.set_facecolor("#e9ecef")
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title, color=INK, fontsize=11, pad=8, y=1.0)  # a given y spares a search for space
    if pixel_size_m:
        _scale_bar(axes, image.shape, pixel_size_m)
    if bar:
        side = axes.inset_axes((1.03, 0.0, 0.04, 1.0))
        colors = axes.figure.colorbar(shown, cax=side, ticks=MaxNLocator(5))
        colors.outline.set_visible(False)
        colors.ax.xaxis.set_visible(False)
        colors.ax.tick_params(labelsize=8, colors=INK, length=2)
        if unit:
            colors.set_label(unit, fontsize=9, color=INK)


def _scale_bar(axes: Axes, shape: tuple[int, ...], pixel_size_m: float) -> None:
    """Add a bar of a round length, about a quarter of the image wide, in white on a dark plate."""
    from matplotlib.patches import Rectangle

    length_m, text = _round_length(shape[1] * pixel_size_m / 4)
    width, height, margin = length_m / pixel_size_m, shape[0], shape[1] * 0.02
    left, bottom = shape[1] * 0.05, height * 0.95
    plate = (left - margin, bottom - height * 0.105), width + 2 * margin, height * 0.125
    axes.add_patch(Rectangle(*plate, color="black", alpha=0.45, linewidth=0))
    bar = (left, bottom - height * 0.02), width, height * 0.018
    axes.add_patch(Rectangle(*bar, color="white", linewidth=0))
    place = left + width / 2, bottom - height * 0.03
    axes.text(*place, text, color="white", fontsize=8, ha="center", va="bottom")


def _round_length(length_m: float) -> tuple[float, str]:
    """Return the largest of 1, 2, 5 times a power of ten that is not above a length, and its label."""
    power = 10.0 ** math.floor(math.log10(length_m))
    rounded = max(step * power for step in (1, 2, 5) if step * power <= length_m * (1 + 1e-9))
    units = (("mm", 1e-3), ("µm", 1e-6), ("nm", 1e-9))
    unit, size = next((row for row in units if rounded >= row[1] * (1 - 1e-9)), units[-1])
    return rounded, f"{rounded / size:g} {unit}"


def _plot_rings(axes: Axes, curves: Mapping[str, RingCorrelation], pixel_size_m: float | None) -> None:
    for color, (name, rings) in zip(cycle(COLORS), curves.items(), strict=False):
        period = rings.resolution_px(0.5)
        length = "" if pixel_size_m is None or period is None else f", {period * pixel_size_m * 1e9:.3g} nm"
        text = "uncorrelated" if period is None else f"{period:.2f} px{length} at 0.5"
        label = f"{name}  ({text})"
        axes.plot(rings.frequency_per_px, rings.correlation, color=color, linewidth=1.8, label=label)
    first = next(iter(curves.values()))
    axes.plot(first.frequency_per_px, first.half_bit, color=FAINT, linewidth=1, label="half-bit threshold")
    for level, text in ((0.5, "0.5"), (1 / 7, "1/7")):
        axes.axhline(level, color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.text(0.502, level, text, color=FAINT, fontsize=8, va="center")
    axes.set_xlim(0, 0.5)
    axes.set_ylim(min(-0.05, *(float(rings.correlation.min()) for rings in curves.values())), 1.03)
    _style_axes(axes, "spatial frequency (cycles per pixel)", "Fourier ring correlation")
    axes.legend(frameon=False, fontsize=9, loc="lower left")


def _comparison_panels(evaluations: Mapping[str, Evaluation]) -> list[tuple[str, Image, Image]]:
    """Return (name, amplitude, phase) of the truth and of every reconstruction on the common rectangle."""
    from ptycho_torch.evaluation.metrics import comparable_phases

    tops, bottoms, lefts, rights = zip(
        *(evaluation.field for evaluation in evaluations.values()), strict=True
    )
    panels: list[tuple[str, Image, Image]] = []
    for name, evaluation in evaluations.items():
        top, _, left, _ = evaluation.field
        common = Field(max(tops) - top, min(bottoms) - top, max(lefts) - left, min(rights) - left)
        truth, reconstruction = evaluation.truth[common.slices], evaluation.reconstruction[common.slices]
        true_phase, phase = comparable_phases(truth, reconstruction)
        if not panels:
            panels.append(("truth", np.abs(truth), true_phase))
        score = f"SSIM {evaluation.amplitude_ssim:.3f} / {evaluation.phase_ssim:.3f}"
        panels.append((f"{name}\n{score}", np.abs(reconstruction), phase))
    return panels


def _drawn(
    obj: NDArray[Any], coverage: NDArray[Any] | None
) -> tuple[int, NDArray[Any], NDArray[np.bool_] | None]:
    """Return every how many pixels of an object are drawn, those pixels, and which of them are covered.

    Drawn as the nearest ones, other pixels would not be seen.
    """
    step = math.ceil(max(np.shape(obj)) / MOST_PIXELS)
    shown = np.asarray(obj)[::step, ::step]
    if coverage is None:
        return step, shown, None
    covered = np.asarray(coverage)[::step, ::step] > 0
    return step, np.where(covered, shown, 0), covered


def _pixel(pixel_size_m: float | None, step: int) -> float | None:
    return None if pixel_size_m is None else pixel_size_m * step


def _cropped(image: Image, coverage: NDArray[Any] | None) -> MaskedImage:
    """Return the part of an image that holds anything, with its uncovered pixels masked."""
    covered = np.ones(image.shape, bool) if coverage is None else np.asarray(coverage) > 0
    if not covered.any():
        raise DataError("nothing is covered, so there is nothing to show", expected="a coverage above zero")
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return np.ma.masked_array(np.asarray(image[part], dtype=np.float64), ~covered[part])


def _phase_style(phase: Image) -> tuple[str, tuple[float, float]]:
    """Return a cyclic map over the circle for phases that go round it, else a diverging one about zero."""
    reach = float(np.abs(_limits(phase)).max())
    if reach > 0.8 * np.pi:
        return "twilight", (-np.pi, np.pi)
    return "RdBu_r", (-reach, reach)


def _limits(values: Image) -> tuple[float, float]:
    """Return limits that a few bright pixels at the edge do not dominate."""
    low, high = np.percentile(values[np.isfinite(values)], (0.3, 99.7))
    return (float(low), float(high)) if high - low > 1e-9 else (float(low) - 0.5, float(high) + 0.5)


def _style_axes(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, color=INK, fontsize=9)
    axes.set_ylabel(y_label, color=INK, fontsize=9)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color="#e3e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _figure(size: tuple[float, float]) -> Figure:
    return new_figure(*size)


def _save(figure: Figure, path: str | Path, *, trim: bool = True) -> Path:
    """Write a figure; trimming its margins renders it twice."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    margins: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.12} if trim else {}
    fast = {"compress_level": 1}
    figure.savefig(target, dpi=DPI, metadata={"Software": None}, pil_kwargs=fast, **margins)
    return target
