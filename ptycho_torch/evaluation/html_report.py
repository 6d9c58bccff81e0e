"""report.html: one self-contained page about a run - images, scores, settings with origins, notices.

It takes plain values only, so any workflow can fill it, and loads nothing from anywhere: images are
embedded, there is no script and no style sheet to fetch. It can be mailed, archived and opened offline.
The page is the template `report.html.jinja` beside this file.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from ptycho_exec.files import write_atomically

_LABELS = {
    "amplitude_ssim": "amplitude SSIM",
    "phase_ssim": "phase SSIM",
    "amplitude_psnr_db": "amplitude PSNR (dB)",
    "phase_psnr_db": "phase PSNR (dB)",
    "nrmse": "NRMSE",
    "frc_half_px": "resolution at FRC 0.5 (px)",
    "frc_half_nm": "resolution at FRC 0.5 (nm)",
    "coverage": "well covered part",
}


def write_report(
    run_dir: str | Path,
    *,
    title: str,
    subtitle: str = "",
    images: Mapping[str, str | Path] | None = None,
    metrics: Mapping[str, object] | None = None,
    settings: Sequence[Mapping[str, object]] = (),
    facts: Mapping[str, object] | None = None,
    notices: Sequence[str] = (),
    verdict: str = "",
    decisions: Sequence[Mapping[str, object]] = (),
) -> Path:
    """Write the page into `run_dir`, to a temporary file that is renamed, and return its path.

    images: caption -> PNG file; images much wider than high take the whole width.
    metrics: as in metrics.json; the promised scores are shown large, further numbers in a table.
    settings: one mapping per setting with the same keys, such as name, value, origin, reason; the keys of
        the first become the table's head.
    facts: what else is worth knowing about the run, name -> value.
    notices: sentences for the reader, shown on top.
    verdict: one sentence on whether the result can be trusted, above them.
    decisions: what was decided from the data, one mapping each, as for settings.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["plain"] = _plain
    known = {name: value for name, value in (metrics or {}).items() if value is not None}
    page = environment.get_template("report.html.jinja").render(
        title=title,
        subtitle=subtitle,
        notices=notices,
        verdict=verdict,
        scores={label: known[name] for name, label in _LABELS.items() if name in known},
        images=[_image(caption, Path(path)) for caption, path in (images or {}).items()],
        tables={
            "Decided from the data": decisions,
            "More numbers": _flat_rows({name: known[name] for name in known if name not in _LABELS}),
            "About this run": _flat_rows(facts or {}),
            "Settings and where they came from": settings,
        },
    )
    target = Path(run_dir) / "report.html"
    write_atomically(target, page)
    return target


def _image(caption: str, path: Path) -> dict[str, object]:
    data = path.read_bytes()
    # A PNG states its width and height in bytes 16 to 24.
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    wide = width > 1.3 * height or width > 1400
    return {"caption": caption, "wide": wide, "base64": base64.b64encode(data).decode("ascii")}


def _flat_rows(values: Mapping[str, object]) -> list[dict[str, object]]:
    """Turn nested mappings into rows `outer.inner`."""
    rows: list[dict[str, object]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat_rows({f"{name}.{key}": entry for key, entry in value.items()})
        else:
            rows.append({"name": name, "value": value})
    return rows


def _plain(value: object) -> str:
    """Return a value as a reader writes it: lower-case truth, four digits, lists with commas."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(entry) for entry in value)
    return str(value)
