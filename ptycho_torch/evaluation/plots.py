"""Pictures of a run: amplitude, phase, side by side with the truth, ring correlation, loss.

Every function writes one PNG and returns its path. matplotlib is imported when the first picture is
made, and used without pyplot, so no display is needed and no global state is touched.

Colors: amplitude in gray (as microscopes show it), phase in twilight when it goes round the circle
and in a diverging map otherwise, coverage in viridis; all are perceptually uniform.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.evaluation.registration import Field

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ptycho_torch.evaluation.metrics import Evaluation, RingCorrelation

Image = NDArray[np.float64]

DPI = 160
INK = "#1d2733"
FAINT = "#8a94a0"
COLORS = ("#0b6fb8", "#d1495b", "#2a9d6f", "#8a5cb8", "#c98a12", "#4b5d6b")
"""Line colors, told apart also by people with color blindness when printed in gray."""


def save_amplitude(
    obj: NDArray[Any],
    path: str | Path,
    *,
    coverage: NDArray[Any] | None = None,
    pixel_size_m: float | None = None,
    title: str = "Amplitude",
) -> Path:
    """Draw the amplitude of an object, complex (H, W), cropped to its coverage (H, W)."""
    image, hidden = _cropped(np.abs(obj), coverage)
    low, high = _limits(image[~hidden])
    return _save_single(image, hidden, path, "gray", (low, high), title, "", pixel_size_m)


def save_phase(
    obj: NDArray[Any],
    path: str | Path,
    *,
    coverage: NDArray[Any] | None = None,
    pixel_size_m: float | None = None,
    title: str = "Phase",
) -> Path:
    """Draw the phase of an object, complex (H, W), in radians about its mean, cropped to its coverage."""
    shown = np.asarray(obj) if coverage is None else np.where(np.asarray(coverage) > 0, obj, 0)
    image, hidden = _cropped(_centered_phase(shown), coverage)
    color_map, limits = _phase_style(image[~hidden])
    return _save_single(image, hidden, path, color_map, limits, title, "radians", pixel_size_m)


def save_coverage(
    coverage: NDArray[Any],
    path: str | Path,
    *,
    positions_px: NDArray[Any] | None = None,
    pixel_size_m: float | None = None,
) -> Path:
    """Draw how often each pixel of the canvas was seen, with the scan positions [y, x] as dots."""
    image = np.asarray(coverage, dtype=np.float64)
    figure, axes = _canvas(1, 1, image.shape)
    _show(axes[0][0], image, "viridis", (0, float(image.max()) or 1.0), "Coverage", "patches", pixel_size_m)
    if positions_px is not None:
        axes[0][0].plot(positions_px[:, 1], positions_px[:, 0], ".", color="white", markersize=1.5, alpha=0.7)
    return _save(figure, path)


def save_comparison(evaluations: Mapping[str, Evaluation], path: str | Path) -> Path:
    """Draw truth and aligned reconstructions side by side, with their ring correlations below.

    evaluations: one per name, as `metrics.evaluate` returns them, all against the same truth.
    """
    if not evaluations:
        raise DataError("there is no reconstruction to compare", expected="at least one evaluation")
    panels = _comparison_panels(evaluations)
    shape = next(iter(evaluations.values())).truth.shape
    figure, grid = _comparison_figure(len(panels), shape)
    truth_amplitude, truth_phase = panels[0][1:]
    amplitude_limits = _limits(truth_amplitude)
    phase_map, phase_limits = _phase_style(truth_phase)
    pixel = next(iter(evaluations.values())).pixel_size_m
    for column, (name, amplitude, phase) in enumerate(panels):
        last = column == len(panels) - 1
        first = column == 0
        for row, (image, color_map, limits, unit) in enumerate(
            ((amplitude, "gray", amplitude_limits, ""), (phase, phase_map, phase_limits, "radians"))
        ):
            axes = figure.add_subplot(grid[row, column])
            title = name if row == 0 else ""
            _show(axes, image, color_map, limits, title, unit, pixel if first else None, bar=last)
            if first:
                axes.set_ylabel(("amplitude", "phase")[row], color=INK, fontsize=10)
    _draw_rings(figure.add_subplot(grid[2, :]), {name: e.rings for name, e in evaluations.items()}, pixel)
    return _save(figure, path)


def save_frc(
    rings: RingCorrelation | Mapping[str, RingCorrelation],
    path: str | Path,
    *,
    pixel_size_m: float | None = None,
) -> Path:
    """Draw one or several Fourier ring correlations with the 0.5, 1/7 and half-bit thresholds."""
    curves = rings if isinstance(rings, Mapping) else {"correlation": rings}
    figure = _figure((6.4, 3.6))
    _draw_rings(figure.add_subplot(), curves, pixel_size_m)
    return _save(figure, path)


def save_loss_curve(
    losses: Sequence[float] | Mapping[str, Sequence[float]], path: str | Path, *, step_name: str = "epoch"
) -> Path:
    """Draw one or several loss curves over 1, 2, 3, ... on a logarithmic axis when all are positive."""
    curves = losses if isinstance(losses, Mapping) else {"loss": losses}
    figure = _figure((6.4, 3.4))
    axes = figure.add_subplot()
    for color, (name, values) in zip(_colors(len(curves)), curves.items(), strict=True):
        axes.plot(np.arange(1, len(values) + 1), values, color=color, linewidth=1.8, label=name)
        if len(values):
            axes.annotate(
                f"{values[-1]:.4g}",
                (len(values), values[-1]),
                (4, 0),
                textcoords="offset points",
                color=color,
                fontsize=8,
                va="center",
            )
    if all(value > 0 for values in curves.values() for value in values):
        axes.set_yscale("log")
    _style_axes(axes, step_name, "loss")
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)


def _save_single(
    image: Image,
    hidden: NDArray[np.bool_],
    path: str | Path,
    color_map: str,
    limits: tuple[float, float],
    title: str,
    unit: str,
    pixel_size_m: float | None,
) -> Path:
    figure, axes = _canvas(1, 1, image.shape)
    shown = np.ma.masked_array(image, hidden)
    _show(axes[0][0], shown, color_map, limits, title, unit, pixel_size_m)
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

    drawn = axes.imshow(image, cmap=color_map, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.xaxis.set_visible(False)
    axes.set_yticks([])
    axes.set_facecolor("#e9ecef")
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title, color=INK, fontsize=11, pad=8, y=1.0)  # a given y spares a search for room
    if pixel_size_m:
        _scale_bar(axes, image.shape, pixel_size_m)
    if bar:
        side = axes.inset_axes((1.03, 0.0, 0.04, 1.0))
        colors = axes.figure.colorbar(drawn, cax=side, ticks=MaxNLocator(5))
        colors.outline.set_visible(False)
        colors.ax.xaxis.set_visible(False)
        colors.ax.tick_params(labelsize=8, colors=INK, length=2)
        if unit:
            colors.set_label(unit, fontsize=9, color=INK)


def _scale_bar(axes: Axes, shape: tuple[int, ...], pixel_size_m: float) -> None:
    """Draw a bar of a round length, about a quarter of the picture wide, in white on a dark plate."""
    from matplotlib.patches import Rectangle

    length_m = _round_length(shape[1] * pixel_size_m / 4)
    width_px, height_px = length_m / pixel_size_m, shape[0]
    left, bottom = shape[1] * 0.05, height_px * 0.95
    plate = Rectangle(
        (left - shape[1] * 0.02, bottom - height_px * 0.105),
        width_px + shape[1] * 0.04,
        height_px * 0.125,
        color="black",
        alpha=0.45,
        linewidth=0,
    )
    axes.add_patch(plate)
    axes.add_patch(
        Rectangle((left, bottom - height_px * 0.02), width_px, height_px * 0.018, color="white", linewidth=0)
    )
    axes.text(
        left + width_px / 2,
        bottom - height_px * 0.03,
        _length_text(length_m),
        color="white",
        fontsize=8,
        ha="center",
        va="bottom",
    )


def _round_length(length_m: float) -> float:
    """Return the largest of 1, 2, 5 times a power of ten that is not above a length."""
    power = 10.0 ** math.floor(math.log10(length_m))
    return max(step * power for step in (1, 2, 5) if step * power <= length_m * (1 + 1e-9))


def _length_text(length_m: float) -> str:
    for unit, size in (("mm", 1e-3), ("µm", 1e-6), ("nm", 1e-9)):
        if length_m >= size * (1 - 1e-9):
            return f"{length_m / size:g} {unit}"
    return f"{length_m / 1e-9:g} nm"


def _draw_rings(axes: Axes, curves: Mapping[str, RingCorrelation], pixel_size_m: float | None) -> None:
    for color, (name, rings) in zip(_colors(len(curves)), curves.items(), strict=True):
        text = (
            name
            if len(curves) == 1 and name == "correlation"
            else f"{name}  {_crossing(rings, pixel_size_m)}"
        )
        axes.plot(rings.frequency_per_px, rings.correlation, color=color, linewidth=1.8, label=text)
    first = next(iter(curves.values()))
    axes.plot(first.frequency_per_px, first.half_bit, color=FAINT, linewidth=1, label="half-bit threshold")
    for level, text in ((0.5, "0.5"), (1 / 7, "1/7")):
        axes.axhline(level, color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.text(0.502, level, text, color=FAINT, fontsize=8, va="center")
    axes.set_xlim(0, 0.5)
    axes.set_ylim(min(-0.05, *(float(rings.correlation.min()) for rings in curves.values())), 1.03)
    _style_axes(axes, "spatial frequency (cycles per pixel)", "Fourier ring correlation")
    axes.legend(frameon=False, fontsize=9, loc="lower left")


def _crossing(rings: RingCorrelation, pixel_size_m: float | None) -> str:
    period = rings.resolution_px(0.5)
    if period is None:
        return "(uncorrelated)"
    length = "" if pixel_size_m is None else f", {period * pixel_size_m * 1e9:.3g} nm"
    return f"({period:.2f} px{length} at 0.5)"


def _comparison_panels(evaluations: Mapping[str, Evaluation]) -> list[tuple[str, Image, Image]]:
    """Return (name, amplitude, phase) of the truth and of every reconstruction on the common rectangle."""
    from ptycho_torch.evaluation.metrics import comparable_phases

    common = _intersection([evaluation.field for evaluation in evaluations.values()])
    panels: list[tuple[str, Image, Image]] = []
    for name, evaluation in evaluations.items():
        inner = (
            slice(common.top - evaluation.field.top, common.bottom - evaluation.field.top),
            slice(common.left - evaluation.field.left, common.right - evaluation.field.left),
        )
        truth, made = evaluation.truth[inner], evaluation.reconstruction[inner]
        true_phase, phase = comparable_phases(truth, made)
        if not panels:
            panels.append(("truth", np.abs(truth), true_phase))
        score = f"SSIM {evaluation.amplitude_ssim:.3f} / {evaluation.phase_ssim:.3f}"
        panels.append((f"{name}\n{score}", np.abs(made), phase))
    return panels


def _intersection(fields: Sequence[Field]) -> Field:
    tops, bottoms, lefts, rights = zip(*fields, strict=True)
    return Field(max(tops), min(bottoms), max(lefts), min(rights))


def _comparison_figure(columns: int, shape: tuple[int, ...]) -> tuple[Figure, Any]:
    width = 2.9
    height = width * shape[0] / shape[1]
    figure = _figure((columns * (width + 0.25) + 0.9, 2 * height + 3.5))
    total = 2 * height + 3.5
    grid = figure.add_gridspec(
        3,
        columns,
        height_ratios=[height, height, 2.3],
        left=0.05,
        right=0.93,
        bottom=0.55 / total,
        top=1 - 0.5 / total,
        hspace=0.14,
        wspace=0.06,
    )
    return figure, grid


def _cropped(image: Image, coverage: NDArray[Any] | None) -> tuple[Image, NDArray[np.bool_]]:
    """Return the part of an image that holds anything, and which of its pixels are uncovered."""
    covered = np.ones(image.shape, bool) if coverage is None else np.asarray(coverage) > 0
    if not covered.any():
        raise DataError("nothing is covered, so there is nothing to draw", expected="a coverage above zero")
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    cut = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return np.asarray(image[cut], dtype=np.float64), ~covered[cut]


def _centered_phase(obj: NDArray[Any]) -> Image:
    return np.asarray(np.angle(obj * np.exp(-1j * np.angle(np.sum(obj)))))


def _phase_style(phase: Image) -> tuple[str, tuple[float, float]]:
    """Return a cyclic map over the circle for phases that go round it, else a diverging one about zero."""
    reach = float(np.abs(_limits(phase)).max())
    if reach > 0.8 * np.pi:
        return "twilight", (-np.pi, np.pi)
    return "RdBu_r", (-reach, reach)


def _limits(values: Image) -> tuple[float, float]:
    """Return limits that a few bright pixels at the rim do not dominate."""
    low, high = np.percentile(values[np.isfinite(values)], (0.3, 99.7))
    return (float(low), float(high)) if high - low > 1e-9 else (float(low) - 0.5, float(high) + 0.5)


def _colors(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _style_axes(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, color=INK, fontsize=9)
    axes.set_ylabel(y_label, color=INK, fontsize=9)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color="#e3e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _canvas(rows: int, columns: int, shape: tuple[int, ...]) -> tuple[Figure, Any]:
    width = 4.6
    figure = _figure((width + 1.1, width * shape[0] / shape[1] + 0.7))
    grid = figure.subplots(
        rows, columns, squeeze=False, gridspec_kw={"left": 0.03, "right": 0.85, "bottom": 0.03, "top": 0.9}
    )
    return figure, grid


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | Path, *, trim: bool = True) -> Path:
    """Write a figure; trimming its margins draws it twice."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    how: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.12} if trim else {}
    quick = {"compress_level": 1}
    figure.savefig(target, dpi=DPI, metadata={"Software": None}, pil_kwargs=quick, **how)
    return target
