"""What mends a scan of Ptychodus: commands for a file of it, since its window has none of our options.

Each line names what was found or is likely; the last one is the command that mends all of it at once.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptycho_exec.errors import Finding, UserError
from ptycho_exec.fields.spec import as_flags
from ptycho_torch.data.scan import ScanData
from ptycho_torch.ptychodus.labels import LABELS, in_words_of_the_window
from ptycho_torch.ptychodus.translation import PLACE
from ptycho_torch.ptychodus.window import is_shown, show_error
from ptycho_torch.reconstruction.verdict import Verdict

_TARGETS = {"npz": "npz", "Ptychodus training data": "ptychodus-training"}
"""Format of a file that was read -> the format to write; a pair of files becomes a pair."""
_OF_POSITIONS = ("little-overlap", "much-overlap")
_POSITIONS = (
    "check in Ptychodus the scale of the positions, and energy, distance and detector pixel, which give the "
    "object's pixel"
)
_REMEDIES_THERE = {
    **dict.fromkeys(_OF_POSITIONS, _POSITIONS),
    "beyond-canvas": "what lies outside is left out; Extra Padding of the object in Ptychodus makes room",
}
"""What is mended in the window itself, by the code of a finding."""
_SAVED = "save patterns and product as diffraction.npz and product.npz into a directory SCAN"


def finding_lines(*scans: ScanData | None) -> list[str]:
    """Return a line for each finding, and one for the command that mends those that can be mended."""
    lines: list[str] = []
    for scan in scans:
        if scan is None:
            continue
        for source, report in _files(scan):
            findings = [Finding(**row) for row in report.get("findings", ())]
            lines += _lines(findings, source, str(report.get("format", "")))
    return list(dict.fromkeys(lines))


def verdict_lines(verdict: Verdict, scan: ScanData) -> list[str]:
    """Return the verdict, its likely causes, and what to do about them where no option is at hand."""
    lines = [f"  likely cause - {cause.name}: {cause.evidence}" for cause in verdict.causes]
    if lines:
        file = "SCAN" if scan.source is None else shlex.quote(str(scan.source))
        saved = f"{_SAVED}; " if scan.source is None else ""
        lines.append(
            f"  {saved}`ptycho-torch reconstruct {file} --out RESULT` looks into all of this; "
            "RESULT/product.h5 opens here, with its object and probe"
        )
    return [verdict.line(), *lines]


@contextmanager
def shown_in_the_window() -> Iterator[None]:
    """Log an error where the window shows it, with a remedy that can be followed there, and pass it on."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) and not is_shown(error):
            error.findings = tuple(map(_for_the_window, error.findings))
        show_error(error)
        raise


def _for_the_window(finding: Finding) -> Finding:
    """Return a finding in the window's words, with a remedy that can be followed there."""
    what, expected = (in_words_of_the_window(text) for text in (finding.what, finding.expected))
    place, _, names = finding.where.partition(f"{PLACE}, ")
    where = f"{PLACE}, {', '.join(LABELS.get(name, name) for name in names.split(', '))}" if names else place
    return replace(finding, what=what, where=where, expected=expected, fix=_fix(finding))


def _fix(finding: Finding) -> str:
    """Return the remedy of an error without options that the window has not."""
    if finding.code in _OF_POSITIONS or "--positions-unit" in finding.fix:
        return _POSITIONS
    if finding.options:
        return _command(finding.options, None, "")
    if "--" not in finding.fix or "`ptycho-torch" in finding.fix:
        return in_words_of_the_window(finding.fix)
    return f"{_SAVED}; with `ptycho-torch convert SCAN NEW --to ptychodus-npz` and its options: {finding.fix}"


def _files(scan: ScanData) -> Iterable[tuple[Path | None, Mapping[str, Any]]]:
    """Yield each file that a scan was read from, with its report."""
    if "scans" in scan.report:
        return [(Path(report["source"]), report) for report in scan.report["scans"]]
    return [(scan.source, scan.report)]


def _lines(findings: Iterable[Finding], source: Path | None, format: str) -> list[str]:
    lines: list[str] = []
    options: dict[str, Any] = {}
    for finding in findings:
        remedy = _REMEDIES_THERE.get(finding.code)
        if remedy is not None:
            lines.append(f"{finding.what}; {remedy}")
            continue
        lines.append(
            "; ".join(part for part in (finding.what, "" if finding.options else finding.fix) if part)
        )
        for name, value in finding.options.items():
            before = options.get(name)
            options[name] = f"{before},{value}" if name == "drop" and before else value
    return [*lines, _command(options, source, format)] if options else lines


def _command(options: Mapping[str, Any], source: Path | None, format: str) -> str:
    """Return the command that writes a scan anew with some options, and what to do with the result."""
    flags = as_flags(options)
    if source is None:
        command = f"ptycho-torch convert SCAN NEW --to ptychodus-npz {flags}"
        return f"{_SAVED}; `{command}` mends this; open the files in NEW"
    new = source.parent.with_name(source.parent.name + "_clean")
    target = new / source.name if format in _TARGETS else new
    words = ["ptycho-torch", "convert", str(source), str(target), "--to", _TARGETS.get(format, "ptychodus")]
    return f"`{shlex.join(words)} {flags}` mends this; train with {new} then"
