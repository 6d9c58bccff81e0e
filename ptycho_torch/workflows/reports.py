"""What report.html and compare.html say of runs, taken from what lies in their directories.

Shape legend: H x W object canvas, h x w the covered part of it, P probe modes, N x N pixels of a pattern.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import UserError
from ptycho_exec.fields.spec import as_data, field_specs
from ptycho_exec.record import read_manifest
from ptycho_torch.evaluation.registration import alike, shifted
from ptycho_torch.evaluation.report.charts import Line, chart
from ptycho_torch.evaluation.report.images import (
    MOST_POINTS,
    Quantity,
    Shown,
    averaged,
    bin_for,
    limits_of,
    phase_quantity,
    points_of,
)
from ptycho_torch.evaluation.report.page import Figure, Page, Row, Section, Table, plain, write_page
from ptycho_torch.reconstruction.yardsticks import error_of_counting
from ptycho_torch.settings import ScienceSettings
from ptycho_torch.workflows.artifacts import RECONSTRUCTION, REPORT_DATA, read_arrays

Objects = dict[str, NDArray[Any]]

REPORT = "report.html"
COMPARISON = "comparison.npz"
"""The true object, and how far a reconstruction agrees with it."""
MOST_MODES = 6
"""Modes of a probe that are shown, the strongest."""
SHIFT_PX = 0.05
"""A smaller translation is not worth an interpolation."""
SCORES = {
    "amplitude_ssim": "amplitude SSIM",
    "phase_ssim": "phase SSIM",
    "amplitude_psnr_db": "amplitude PSNR (dB)",
    "phase_psnr_db": "phase PSNR (dB)",
    "nrmse": "NRMSE",
    "frc_half_px": "resolution at FRC 0.5 (px)",
    "frc_half_nm": "resolution at FRC 0.5 (nm)",
    "coverage": "well covered part",
}
FIGURES = {
    "r_factor": "R factor",
    "r_mean": "R of the mean pattern",
    "noise": "R of noise alone",
    "held_out_r": "R of patterns held out",
    "q": "unexplained part",
    "frc_px": "halves agree to (px)",
    "halves_apart": "halves differ by",
    "counting": "error of counting",
}


@dataclass(frozen=True)
class RunFolder:
    """A run directory, read when something of it is asked for."""

    path: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the run recorded."""
        return read_manifest(self.path)

    @cached_property
    def result(self) -> dict[str, NDArray[Any]]:
        """The reconstruction; nothing for a training."""
        return read_arrays(self.path / RECONSTRUCTION)

    @cached_property
    def data(self) -> dict[str, NDArray[Any]]:
        """What was kept for the report; nothing for a run of an earlier version."""
        return read_arrays(self.path / REPORT_DATA)

    @cached_property
    def comparison(self) -> dict[str, NDArray[Any]]:
        """The truth, where the run was evaluated against one."""
        return read_arrays(self.path / COMPARISON)

    @property
    def scan(self) -> Mapping[str, Any]:
        """What the manifest says of the scan that was reconstructed or learned from."""
        data = self.manifest["data"]
        scan: Mapping[str, Any] = data.get("test") if self.manifest["task"] == "infer" else data["train"]
        return scan

    @property
    def verdict(self) -> Mapping[str, Any]:
        """What the manifest says of the verdict; nothing for a training."""
        return self.manifest.get("verdict") or {}

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Scores against the truth."""
        return self.manifest.get("metrics") or {}

    @property
    def curves(self) -> dict[str, list[float]]:
        """Values of each epoch, of a training or a refinement."""
        refinement = self.manifest.get("refinement") or {}
        refined = {
            "refinement": refinement.get("losses", []),
            "patterns held out": refinement.get("held_out_losses", []),
        }
        return {**self.manifest.get("history", {}), **{name: row for name, row in refined.items() if row}}

    @property
    def result_name(self) -> str:
        """What the object of the run is the result of."""
        return "refined" if self.manifest.get("refinement") else "network"


def write_run_report(folder: Path) -> Path:
    """Write `report.html` from what lies in a run directory."""
    run = RunFolder(folder)
    manifest, verdict = run.manifest, run.verdict
    trained = manifest.get("trained") or {}
    scores = {
        **{text: verdict[name] for name, text in FIGURES.items() if verdict.get(name) is not None},
        **{text: run.metrics[name] for name, text in SCORES.items() if run.metrics.get(name) is not None},
        **{name.replace("_", " "): value for name, value in trained.items() if name in _TRAINED and value},
    }
    page = Page(
        title=f"{manifest['task']}: {folder.name}",
        subtitle=f"{run.scan['source']} · {manifest['created'][:16].replace('T', ' ')} UTC",
        status=str(verdict.get("status", "")),
        verdict=str(verdict.get("line", "")),
        causes=[f"likely cause - {cause['line']}" for cause in verdict.get("causes", ()) if "line" in cause],
        notices=[
            text for text in manifest.get("warnings", ()) if not text.startswith(verdict.get("line", "\n"))
        ],
        scores=scores,
        sections=[
            _object_section(run),
            Section("Curves", figures=[*_loss_figures({"": run}), *_ring_figures(run)]),
            _scan_section(run),
            _patterns_section(run),
            _probe_section(run),
            *_record_sections(run),
        ],
    )
    return write_page(page, folder / REPORT)


_TRAINED = ("epochs", "optimizer_steps", "samples_per_second")


# --- objects ---------------------------------------------------------------------------------------------


def _objects(run: RunFolder) -> Objects:
    """Return the truth, the network's object and the result, as far as they are there, all (H, W)."""
    if "object" not in run.result or not (run.result["coverage"] > 0).any():
        return {}
    found: Objects = {}
    if "truth" in run.comparison:
        found["truth"] = run.comparison["truth"]
    shift = np.array(run.metrics.get("alignment", {}).get("shift_px", (0.0, 0.0)))
    moved = shift if found and np.abs(shift).max() > SHIFT_PX else np.zeros(2)
    if "network_object" in run.result:
        found["network"] = shifted(run.result["network_object"], moved)
    return {**found, run.result_name: shifted(run.result["object"], moved)}


def _object_section(run: RunFolder) -> Section:
    objects = _objects(run)
    if not objects:
        return Section("Object")
    panes = [(0, None), (1, None)]
    shown = _shown_objects(
        objects, run.result["coverage"], run.result.get("pixel_size_m"), panes, run.data.get("positions_px")
    )
    first = next(iter(objects))
    gauge = f"Scale, phase and phase ramp, which patterns do not determine, are those of the {first}. "
    text = (
        f"{gauge if len(objects) > 1 else ''}Drag to move, + and - zoom. Of an image "
        "that has the focus, arrow keys move the cursor (with Shift by 10), + and - zoom, 0 shows all."
    )
    return Section("Object", [Figure(shown)], text=text)


def _shown_objects(
    objects: Objects,
    coverage: NDArray[Any],
    pixel_size_m: NDArray[Any] | None,
    panes: Sequence[tuple[int | None, int | None]],
    positions_px: NDArray[Any] | None = None,
) -> Shown:
    """Return amplitude and phase of objects (H, W) where they are covered; the first is the reference."""
    rows, columns = (np.flatnonzero((coverage > 0).any(axis=axis)) for axis in (1, 0))
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    covered = coverage[part] > 0
    weights = np.minimum(coverage[part], np.median(coverage[coverage > 0]))
    reference, *_ = (obj[part] for obj in objects.values())
    turn = np.exp(-1j * np.angle(np.sum(reference * weights)))
    side = bin_for(2 * len(objects) * covered.size)
    images = {}
    for name, obj in objects.items():
        own = obj[part] if obj is next(iter(objects.values())) else alike(obj[part], reference, weights)
        own, known = averaged(own * turn, side), averaged(covered, side) > 0.5
        images[name] = [np.where(known, np.abs(own), np.nan), np.where(known, np.angle(own), np.nan)]
    well = averaged(weights, side) > 0.25 * weights.max()
    amplitudes, phases = ([pair[k][well] for pair in images.values()] for k in (0, 1))
    return Shown(
        things=images,
        quantities=[Quantity("amplitude", "gray", limits_of(*amplitudes)), phase_quantity(*phases)],
        panes=panes,
        label="object",
        origin_px=(int(rows[0]), int(columns[0])),
        binned=side,
        pixel_size_m=float(pixel_size_m) if pixel_size_m else None,
        divided=len(objects) > 1,
        points=None if positions_px is None else points_of(positions_px),
    )


# --- curves ----------------------------------------------------------------------------------------------


def _loss_figures(runs: Mapping[str, RunFolder]) -> Iterator[Figure]:
    """Yield charts of losses, learning rates and what else was logged; of several runs one for each."""
    lines: dict[str, list[Line]] = {}
    for label, run in runs.items():
        for name, values in run.curves.items():
            if name.endswith(("_step", "_epoch")):
                continue
            kind = name if label else "learning rate" if name.startswith("lr-") else _kind_of(name)
            line = Line(label or name.removeprefix("lr-"), range(1, len(values) + 1), values)
            lines.setdefault(kind, []).append(line)
    for kind, group in lines.items():
        yield Figure(chart(group, "epoch", kind, logarithmic=True))


def _kind_of(name: str) -> str:
    """Return the name of the axis that a metric belongs to."""
    if name in ("refinement", "patterns held out"):
        return "loss of the refinement"
    return "loss" if "loss" in name else name.replace("_", " ")


def _ring_figures(run: RunFolder) -> Iterator[Figure]:
    """Yield the ring correlation with the truth."""
    rings = run.comparison
    if "correlation" in rings:
        x = rings["frequency_per_px"]
        lines = [
            Line("with the truth", x, rings["correlation"]),
            Line("half-bit threshold", x, rings["half_bit"]),
        ]
        names = "spatial frequency (cycles per pixel)", "Fourier ring correlation"
        yield Figure(chart(lines, *names, levels=((0.5, "0.5"), (1 / 7, "1/7")), x_limits=(0, 0.5)))


# --- scan, patterns, probe -------------------------------------------------------------------------------


def _scan_section(run: RunFolder) -> Section:
    data, result = run.data, run.result
    if "positions_px" not in data:
        return Section("Scan")
    positions, canvas = data["positions_px"], tuple(map(int, data["canvas_shape"]))
    n = data["mean_pattern"].shape[-1]
    if "coverage" in result:
        coverage, name = result["coverage"].astype(np.float64), "coverage"
    else:
        coverage, name = patterns_per_pixel(positions, n, canvas), "patterns on a pixel"
    side = bin_for(16 * coverage.size)  # a map of the scan is not worth many bytes
    coverage = averaged(coverage, side)
    images: list[NDArray[np.float64]] = [coverage]
    quantities = [Quantity(name, "gray", (0.0, limits_of(coverage)[1]))]
    if "photons_at_peak" in data and "coverage" in result:
        images.append(error_of_counting(coverage, float(data["photons_at_peak"])))
        quantities.append(Quantity("error of counting", "viridis", (0.0, limits_of(images[1])[1])))
    moved, values = result.get("positions_px"), None
    if "rows" in data:
        values = np.full(len(positions), np.nan)
        values[data["rows"]] = data["misfit"]
    points = points_of(
        positions, moved_px=moved, values=values, value_name=_misfit_name(data), far=data["far"]
    )
    places = Shown(
        things={"scan": images},
        quantities=quantities,
        panes=[(row, None) for row in range(len(images))],
        label="scan positions",
        binned=side,
        pixel_size_m=float(result["pixel_size_m"]) if "pixel_size_m" in result else None,
        points=points,
        always_points=True,
    )
    coarse = bin_for(4 * data["mean_pattern"].size)
    mean = averaged(data["mean_pattern"].astype(np.float64), coarse)
    pattern = Shown(
        things={"mean pattern": [mean]},
        quantities=[_intensity("mean intensity", mean)],
        panes=[(0, None)],
        label="mean pattern",
        binned=coarse,
    )
    figures = [
        Figure(places, "; ".join(_said_of_positions(positions, moved, data))),
        Figure(pattern, "Mean of up to 64 patterns; bad pixels have no color."),
    ]
    return Section("Scan", figures)


def patterns_per_pixel(
    positions_px: NDArray[np.float64], n: int, canvas: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return how many patches of n x n pixels lie on each pixel of a canvas (H, W)."""
    steps = np.zeros((canvas[0] + 1, canvas[1] + 1))
    first = np.rint(positions_px - (n - 1) / 2).astype(np.int64)
    for sign, y, x in ((1, 0, 0), (-1, n, 0), (-1, 0, n), (1, n, n)):
        at = np.clip(first + np.array([y, x]), 0, canvas)
        np.add.at(steps, (at[:, 0], at[:, 1]), sign)
    return np.asarray(steps.cumsum(axis=0).cumsum(axis=1)[:-1, :-1])


def _said_of_positions(
    positions: NDArray[Any], moved: NDArray[Any] | None, data: Mapping[str, NDArray[Any]]
) -> Iterator[str]:
    """Yield what the map of positions shows."""
    yield f"{len(positions)} positions"
    if len(data["far"]):
        yield f"{len(data['far'])} far from all others, in red squares"
    if len(positions) > MOST_POINTS:
        yield f"at most {MOST_POINTS} of them are shown"
    if "rows" in data:
        compared = f"the {len(data['rows'])} that were compared in colors"
        yield f"{compared}, from blue to red where they are explained worst"
    if moved is not None:
        rms = float(np.sqrt(np.square(moved - positions).sum(axis=1).mean()))
        yield f"lines to where the correction moved each, by {rms:.3g} px (root mean square)"


def _misfit_name(data: Mapping[str, NDArray[Any]]) -> str:
    return "misfit (1 is noise)" if data.get("in_noise") else "misfit"


def _intensity(name: str, *images: NDArray[Any]) -> Quantity:
    """Return an intensity, over five decades at most."""
    bright = np.concatenate([image[np.isfinite(image)].ravel() for image in images])
    top = float(bright.max()) if bright.size else 1.0
    seen = bright[bright > 0]
    low = max(top * 1e-5, float(np.quantile(seen, 0.02)) if seen.size else 0.0)
    return Quantity(name, "viridis", (low, max(top, low * 1.001)), intensity=True)


def _patterns_section(run: RunFolder) -> Section:
    data = run.data
    title = "Patterns explained worst"
    if "measured" not in data or not len(data["worst"]):
        return Section(title)
    misfit = dict(zip(data["rows"].tolist(), data["misfit"].tolist(), strict=True))
    name = _misfit_name(data)
    side = bin_for(4 * data["measured"].size)
    things = {
        f"pattern {row}, {name} {misfit[row]:.3g}": [
            averaged(m.astype(float), side),
            averaged(p.astype(float), side),
        ]
        for row, m, p in zip(data["worst"].tolist(), data["measured"], data["predicted"], strict=True)
    }
    measured = [images[0] for images in things.values()]
    one = _intensity("measured intensity", *measured)
    shown = Shown(
        things=things,
        quantities=[one, Quantity("predicted intensity", one.colors, one.limits, intensity=True)],
        panes=[(0, None), (1, None)],
        label="pattern",
        binned=side,
    )
    text = f"The worst of {len(misfit)} patterns that were compared, spread over the scan."
    return Section(title, [Figure(shown)], text=text)


def _probe_section(run: RunFolder) -> Section:
    probe = run.result.get("probe", run.data.get("probe"))
    if probe is None:
        return Section("Probe")
    powers = np.square(np.abs(probe)).sum(axis=(1, 2))
    order = np.argsort(-powers, kind="stable")[:MOST_MODES]
    side = bin_for(8 * len(order) * probe[0].size)
    things = {}
    for number, mode in enumerate(order, start=1):
        wave = averaged(probe[mode], side)
        amplitude = np.abs(wave).astype(np.float64)
        turned = np.angle(wave * np.exp(-1j * np.angle(np.sum(wave))))
        dark = amplitude < 0.05 * amplitude.max()
        part = powers[mode] / max(float(powers.sum()), 1e-30)
        largest = float(amplitude.max()) or 1.0
        things[f"mode {number} ({part:.1%})"] = [amplitude / largest, np.where(dark, np.nan, turned)]
    panes = [(quantity, mode) for mode in range(len(things)) for quantity in (0, 1)]
    shown = Shown(
        things=things,
        quantities=[
            Quantity("amplitude", "gray", (0.0, 1.0), "of its largest"),
            Quantity("phase", "phase", (-float(np.pi), float(np.pi)), "rad"),
        ],
        panes=panes,
        label="probe",
        binned=side,
    )
    whose = "after the refinement" if "probe" in run.result else "of the network"
    more = f"; {len(probe) - len(order)} weaker modes are not shown" if len(probe) > len(order) else ""
    text = (
        f"The probe {whose}. Its phase is shown where the amplitude is above 5 % of the mode's largest{more}."
    )
    return Section("Probe", [Figure(shown)], text=text)


# --- what was recorded -----------------------------------------------------------------------------------


def _record_sections(run: RunFolder) -> Iterator[Section]:
    """Yield decisions, science, settings, times, and about the run."""
    manifest = run.manifest
    yield Section("Decided from the data", tables=[Table(run.scan["report"].get("decisions", ()))])
    science = [
        {"name": name, "value": value, "origin": origin["place"], "hidden": usual}
        for name, value, origin, usual in _science_rows(manifest)
    ]
    yield Section("Science", tables=[Table(science, "show what is the default")])
    effective, origins = manifest["plan"]["effective"], manifest["origins"]
    settings = [
        {
            "name": name,
            "value": row["value"],
            "origin": origins[name]["place"],
            "reason": row["reason"],
            "hidden": origins[name]["kind"] == "default" and not row["changed"],
        }
        for name, row in effective.items()
    ]
    yield Section("Settings", tables=[Table(settings, "show what is the default")])
    yield Section("Times", bars=list(_bars(manifest)))
    about = {
        "command": shlex.join(manifest["command"]),
        **{name: manifest[name] for name in ("created", "host", "versions", "git") if manifest.get(name)},
        "scan SHA-256": run.scan.get("sha256"),
        "scores": {name: value for name, value in run.metrics.items() if name not in SCORES},
    }
    yield Section("About this run", tables=[Table(list(_flat_rows(about)))])


def _science_rows(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any, Mapping[str, Any], bool]]:
    """Yield name, value and origin of each science field, and whether the value is its default."""
    origins, specs = manifest.get("science_origins") or {}, field_specs(ScienceSettings)
    for part in manifest["science"].values():
        for name, value in part.items():
            usual = name in specs and as_data(specs[name].default) == value
            yield name, value, origins.get(name) or {"place": "the configs"}, usual


def _bars(manifest: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yield name, seconds and part of the whole of each phase, and of the parts of fit and predict."""
    seconds = manifest.get("timings") or {}
    whole = sum(seconds.values())
    shares = manifest.get("shares") or {name: value / whole for name, value in seconds.items() if whole}
    for name, part in shares.items():
        yield name, seconds.get(name, part * whole), part


# --- several runs ------------------------------------------------------------------------------------------


def write_comparison(folders: Sequence[Path], target: Path) -> Path:
    """Write one page about several run directories, trainings or results.

    Raises:
        UserError: a directory is no run, or the file exists.
    """
    if target.exists():
        raise UserError(f"{target} exists already", expected="a new file", fix="choose another --out")
    runs = {label: RunFolder(folder) for label, folder in zip(labels_of(folders), folders, strict=True)}
    for run in runs.values():
        if not run.data and not run.result and not run.curves:
            raise UserError(
                "the run holds nothing to compare yet",
                where=str(run.path),
                expected="a finished training or result",
                fix=f"its status is {run.manifest.get('status')}; finish it, or leave it out",
            )
    page = Page(
        title=f"{len(runs)} runs compared",
        subtitle=" · ".join(str(folder) for folder in folders),
        sections=[
            Section("Figures", tables=[Table(list(_figures_compared(runs)))]),
            Section("Objects", list(_objects_compared(runs)), text=_OBJECTS_TEXT),
            Section("Curves", [*_loss_figures(runs), *_rings_compared(runs)]),
            Section(
                "Differences",
                tables=[Table(list(_differences(runs)))],
                text="Science and settings that differ, each with where its value comes from.",
            ),
        ],
    )
    return write_page(page, target)


_OBJECTS_TEXT = (
    "All are shown at the same place and zoom, with the scale, phase and phase ramp of the first. Drag to "
    "move, + and - zoom. Of an image that has the focus, arrow keys move the cursor (with Shift by 10), "
    "+ and - zoom, 0 shows all."
)


def labels_of(folders: Sequence[Path]) -> list[str]:
    """Return a different label for each directory: its name, or its path where names repeat."""
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _figures_compared(runs: Mapping[str, RunFolder]) -> Iterator[Row]:
    """Yield a row for each figure that a run has."""
    columns = {label: _figures(run) for label, run in runs.items()}
    for name in dict.fromkeys(name for figures in columns.values() for name in figures):
        cells = {label: figures.get(name) for label, figures in columns.items()}
        if any(cell is not None for cell in cells.values()):
            yield {"figure": name, **{label: "" if cell is None else cell for label, cell in cells.items()}}


def _figures(run: RunFolder) -> dict[str, Any]:
    """Return verdict, scores, last values and seconds of a run, by what they are."""
    manifest, verdict = run.manifest, run.verdict
    trained = manifest.get("trained") or {}
    last = {f"last {name}": values[-1] for name, values in run.curves.items() if _is_loss(name) and values}
    seconds = manifest.get("timings") or {}
    return {
        "task": manifest["task"],
        "verdict": verdict.get("status"),
        **{text: verdict.get(name) for name, text in FIGURES.items()},
        **{text: run.metrics.get(name) for name, text in SCORES.items()},
        **{name.replace("_", " "): trained.get(name) for name in _TRAINED},
        **last,
        "seconds in all": sum(seconds.values()),
        **{f"seconds: {name}": value for name, value in seconds.items()},
    }


def _is_loss(name: str) -> bool:
    return not name.endswith(("_step", "_epoch")) and _kind_of(name).startswith("loss")


def _objects_compared(runs: Mapping[str, RunFolder]) -> Iterator[Figure]:
    """Yield the objects of the runs on each canvas, beside each other and divided by a line."""
    canvases: dict[tuple[int, ...], dict[str, RunFolder]] = {}
    for label, run in runs.items():
        if "object" in run.result:
            canvases.setdefault(run.result["object"].shape, {})[label] = run
    for members in canvases.values():
        objects = {label: _objects(run)[run.result_name] for label, run in members.items()}
        truth = next((run.comparison["truth"] for run in members.values() if run.comparison), None)
        objects = objects if truth is None else {"truth": truth, **objects}
        first = next(iter(members.values()))
        coverage = np.minimum.reduce([run.result["coverage"] for run in members.values()])
        if not (coverage > 0).any():
            coverage = first.result["coverage"]
        side_by_side: list[tuple[int | None, int | None]] = [(None, number) for number in range(len(objects))]
        panes = [(0, None), (1, None), *(side_by_side if len(objects) > 1 else ())]
        yield Figure(_shown_objects(objects, coverage, first.result.get("pixel_size_m"), panes))


def _rings_compared(runs: Mapping[str, RunFolder]) -> Iterator[Figure]:
    lines = [
        Line(label, run.comparison["frequency_per_px"], run.comparison["correlation"])
        for label, run in runs.items()
        if "correlation" in run.comparison
    ]
    if lines:
        names = "spatial frequency (cycles per pixel)", "ring correlation with the truth"
        yield Figure(chart(lines, *names, levels=((0.5, "0.5"), (1 / 7, "1/7")), x_limits=(0, 0.5)))


def _differences(runs: Mapping[str, RunFolder]) -> Iterator[Row]:
    """Yield the science and the settings that are not the same in all runs, with their origins."""
    columns = {label: _values(run.manifest) for label, run in runs.items()}
    for name in dict.fromkeys(name for values in columns.values() for name in values):
        cells = {label: values.get(name, (None, "not known to it")) for label, values in columns.items()}
        if len({json.dumps(value, sort_keys=True) for value, _ in cells.values()}) > 1:
            yield {
                "name": name,
                **{label: f"{plain(value)} ({origin})" for label, (value, origin) in cells.items()},
            }


def _values(manifest: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Return value and origin of each science field and setting."""
    science = {name: (value, origin["place"]) for name, value, origin, _ in _science_rows(manifest)}
    origins = manifest["origins"]
    settings = {
        name: (row["value"], origins[name]["place"]) for name, row in manifest["plan"]["effective"].items()
    }
    return {**science, **settings}


def _flat_rows(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Turn nested mappings into rows `outer.inner`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat_rows({f"{name}.{key}": entry for key, entry in value.items()})
        else:
            yield {"name": name, "value": value}
