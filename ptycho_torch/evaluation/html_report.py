"""report.html: one self-contained page about a run - pictures, scores, settings with origins, notices.

It takes plain values only, so any workflow can fill it, and loads nothing from anywhere: pictures are
embedded, there is no script and no style sheet to fetch. It can be mailed, archived and opened offline.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ptycho_exec.files import write_atomically

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5d6875; --line: #e1e5ea; --paper: #ffffff;
  --card: #f6f8fa; --accent: #0b6fb8; --warn: #b4540a; --warn-paper: #fff5e9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ecf1; --soft: #9aa5b1; --line: #303a45;
  --paper: #14191f; --card: #1c232b; --accent: #6cb8f0; --warn: #f0b070; --warn-paper: #2c2318; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .8rem; }
.subtitle { color: var(--soft); margin: 0; overflow-wrap: anywhere; }
.scores { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; }
.score { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem; }
.score b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.score span { color: var(--soft); font-size: .85rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 1rem; }
figure { margin: 0; background: #ffffff; border: 1px solid var(--line); border-radius: 10px; padding: .6rem; }
figure.wide { grid-column: 1 / -1; }
figure img { display: block; width: 100%; height: auto; max-height: 1100px; object-fit: contain; }
figcaption { color: #5d6875; font-size: .85rem; text-align: center; padding-top: .4rem; }
.notices { list-style: none; margin: 0; padding: 0; }
.notices li { background: var(--warn-paper); border-left: 4px solid var(--warn); padding: .5rem .9rem;
  margin-bottom: .5rem; border-radius: 4px; white-space: pre-line; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.value, td.name { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
"""

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
    pictures: Mapping[str, str | Path] | None = None,
    metrics: Mapping[str, object] | None = None,
    settings: Sequence[Mapping[str, object]] = (),
    facts: Mapping[str, object] | None = None,
    notices: Sequence[str] = (),
    name: str = "report.html",
) -> Path:
    """Write the page into `run_dir`, in one step, and return its path.

    pictures: caption -> PNG file; pictures much wider than high take the whole width.
    metrics: as in metrics.json; the promised scores are shown large, further numbers in a table.
    settings: one mapping per setting with the same keys, such as name, value, origin, reason; the keys of
        the first become the table's head.
    facts: what else is worth knowing about the run, name -> value.
    notices: sentences for the reader, shown on top.
    """
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="subtitle">{html.escape(subtitle)}</p>' if subtitle else "",
        _notices(notices),
        _scores(metrics or {}),
        _pictures(pictures or {}),
        _section("More numbers", _table(_flat_rows(_further(metrics or {})))),
        _section("About this run", _table(_flat_rows(facts or {}))),
        _section("Settings and where they came from", _table(settings)),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    target = Path(run_dir) / name
    write_atomically(target, page)
    return target


def _section(title: str, content: str) -> str:
    return f"<h2>{html.escape(title)}</h2>{content}" if content else ""


def _notices(notices: Sequence[str]) -> str:
    rows = "".join(f"<li>{html.escape(notice)}</li>" for notice in notices)
    return _section("Notices", f'<ul class="notices">{rows}</ul>' if rows else "")


def _scores(metrics: Mapping[str, object]) -> str:
    cards = "".join(
        f'<div class="score"><b>{_text(metrics[name])}</b><span>{html.escape(label)}</span></div>'
        for name, label in _LABELS.items()
        if metrics.get(name) is not None
    )
    return _section("Scores against the truth", f'<div class="scores">{cards}</div>' if cards else "")


def _further(metrics: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in metrics.items() if name not in _LABELS and value is not None}


def _pictures(pictures: Mapping[str, str | Path]) -> str:
    figures = "".join(_figure(caption, Path(path)) for caption, path in pictures.items())
    return _section("Pictures", f'<div class="pictures">{figures}</div>' if figures else "")


def _figure(caption: str, path: Path) -> str:
    data = path.read_bytes()
    # A PNG states its width and height in bytes 16 to 24.
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    shape = ' class="wide"' if width > 1.3 * height or width > 1400 else ""
    text = html.escape(caption)
    source = base64.b64encode(data).decode("ascii")
    return (
        f'<figure{shape}><img alt="{text}" src="data:image/png;base64,{source}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _flat_rows(values: Mapping[str, object]) -> list[dict[str, object]]:
    """Turn nested mappings into rows `outer.inner`."""
    rows: list[dict[str, object]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = {f"{name}.{key}": entry for key, entry in value.items()}
            rows += _flat_rows(inner)
        else:
            rows.append({"name": name, "value": value})
    return rows


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    if not rows:
        return ""
    keys = list(rows[0])
    head = "".join(f"<th>{html.escape(key)}</th>" for key in keys)
    lines = "".join(
        "<tr>"
        + "".join(f'<td class="{html.escape(key)}">{_text(row.get(key))}</td>' for key in keys)
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(_text(entry) for entry in value)
    return html.escape(str(value))
