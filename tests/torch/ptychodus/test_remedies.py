"""Each remedy for a scan of Ptychodus is a command that works on the files that Ptychodus has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.cli import main
from ptycho_torch.config import DataConfig
from ptycho_torch.data.assemble import scan_from_arrays
from ptycho_torch.data.convert import WRITERS
from ptycho_torch.data.formats.npz import write_npz
from ptycho_torch.data.formats.ptychodus import write_ptychodus
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.ptychodus.remedies import finding_lines, shown_in_the_window, verdict_lines
from ptycho_torch.ptychodus.training_data import read_training_data
from ptycho_torch.reconstruction.verdict import judge_object
from ptycho_torch.simulate import simulate_scan

GOOD = simulate_scan(n=32, patterns=64, photons=1e6, seed=4)


def off_center(patterns: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.roll(patterns, (3, -4), axis=(1, 2))


def on_a_pedestal(patterns: NDArray[np.int64]) -> NDArray[np.int64]:
    return patterns + 100


def with_hot_pixels(patterns: NDArray[np.int64]) -> NDArray[np.int64]:
    changed = patterns.copy()
    changed[:, 5, 7] = 30_000
    return changed


def with_the_shutter_closed(patterns: NDArray[np.int64]) -> NDArray[np.int64]:
    changed = patterns.copy()
    changed[10:13] = 0
    return changed


def from_the_corner(patterns: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.fft.ifftshift(patterns, axes=(1, 2))


TROUBLES = [off_center, on_a_pedestal, with_hot_pixels, with_the_shutter_closed, from_the_corner]


def troubled(change: Callable[..., NDArray[np.int64]]) -> ScanData:
    return replace(GOOD, patterns=change(np.asarray(GOOD.patterns).astype(np.int64)))


def command_in(lines: list[str]) -> list[str]:
    """Return the words of the one command that the lines name."""
    (text,) = re.findall(r"`ptycho-torch ([^`]*)`", "\n".join(lines))
    return shlex.split(text)


@pytest.mark.parametrize("change", TROUBLES)
@pytest.mark.parametrize("format", ["ptychodus", "npz", "ptychodus-training"])
def test_the_command_mends_what_a_training_reads(
    change: Callable[..., NDArray[np.int64]], format: str, tmp_path: Path
) -> None:
    suffix = {"npz": "/scan.npz", "ptychodus-training": "/scan.h5"}.get(format, "")
    folder = tmp_path / "scans of today"
    folder.mkdir()
    WRITERS[format](troubled(change), Path(f"{folder}{suffix}"))
    scan = read_training_data(folder, DataConfig(), labeled=False, phase_free=False)
    told = finding_lines(scan)
    assert "--" not in "\n".join(told[:-1])
    assert main(command_in(told)) == 0
    new = tmp_path / "scans of today_clean"
    assert told[-1].endswith(f"train with {new} then")
    mended = read_training_data(new, DataConfig(), labeled=False, phase_free=False)
    assert finding_lines(mended) == []
    assert len(mended) == (61 if change is with_the_shutter_closed else 64)
    rows = [row for row in range(64) if len(mended) == 64 or not 10 <= row < 13]
    good = mended.good_pixels
    clean = np.asarray(GOOD.patterns).astype(np.int64)[rows][:, good]
    # Of a small bright scan no pixel is dark, so that the pedestal takes some counts along.
    np.testing.assert_allclose(mended.patterns[:][:, good], clean, atol=10 if change is on_a_pedestal else 0)
    assert good.sum() > 0.75 * good.size


def test_two_troubles_are_one_command_and_each_file_has_its_own(tmp_path: Path) -> None:
    both = troubled(lambda patterns: with_hot_pixels(off_center(patterns)))
    folder = tmp_path / "in"
    folder.mkdir()
    write_npz(both, folder / "a.npz")
    write_npz(troubled(on_a_pedestal), folder / "b.npz")
    told = finding_lines(read_training_data(folder, DataConfig(), labeled=False, phase_free=False))
    commands = [shlex.split(text) for text in re.findall(r"`ptycho-torch ([^`]*)`", "\n".join(told))]
    assert len(commands) == 2
    assert {"--center", "--mask-suspects"} <= set(commands[0])
    assert [main(command) for command in commands] == [0, 0]
    clean = read_training_data(tmp_path / "in_clean", DataConfig(), labeled=False, phase_free=False)
    assert (len(clean), finding_lines(clean)) == (128, [])


def in_memory(scan: ScanData) -> ScanData:
    return scan_from_arrays(
        np.asarray(scan.patterns), scan.positions_px, probe=scan.probe, domain="intensity"
    )


def test_a_scan_of_the_window_is_saved_first_and_the_result_opens_there(tmp_path: Path) -> None:
    """The window saves its patterns as NPZ, and opens such files."""
    plugins = [
        pytest.importorskip(f"ptychodus.plugins.npz_{half}_file", reason="needs the ptychodus extra")
        for half in ("diffraction", "product")
    ]
    bad = troubled(off_center)
    write_ptychodus(bad, tmp_path / "SCAN", suffix=".npz")
    told = finding_lines(in_memory(bad))
    assert "diffraction.npz and product.npz into a directory SCAN" in told[-1]
    names = {"SCAN": str(tmp_path / "SCAN"), "NEW": str(tmp_path / "NEW")}
    assert main([names.get(word, word) for word in command_in(told)]) == 0
    opened = plugins[0].NPZDiffractionFileIO().read(tmp_path / "NEW" / "diffraction.npz")
    (array,) = opened
    clean = read_scan(tmp_path / "NEW")
    assert finding_lines(clean) == []
    np.testing.assert_array_equal(array.get_patterns(), clean.patterns[:])
    product = plugins[1].NPZProductFileIO().read(tmp_path / "NEW" / "product.npz")
    assert len(product.probe_positions) == 64


@pytest.mark.parametrize("scale", [10.0, 0.07])
def test_wrong_positions_are_mended_where_they_come_from(scale: float) -> None:
    (told,) = finding_lines(in_memory(replace(GOOD, positions_px=GOOD.positions_px * scale)))
    assert "check in Ptychodus the scale of the positions" in told
    assert "--" not in told


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({"positions_px": GOOD.positions_px * 1e-3}, "check in Ptychodus the scale"),
        ({"patterns": np.asarray(GOOD.patterns).astype(np.float64) - 1}, "`ptycho-torch convert SCAN NEW"),
    ],
)
def test_an_error_reaches_the_window_with_a_remedy_for_it(
    change: dict[str, Any], fix: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError) as caught, shown_in_the_window():
        in_memory(replace(GOOD, **change))
    (finding,) = caught.value.findings
    assert fix in finding.fix
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("ptychopinn-torch", "ERROR")
    assert fix in record.message


@pytest.mark.slow
def test_the_causes_of_a_verdict_lead_to_a_command_whose_product_opens_in_ptychodus(tmp_path: Path) -> None:
    io = pytest.importorskip("ptychodus.api.io", reason="needs the ptychodus extra")
    assert GOOD.object_guess is not None
    write_ptychodus(GOOD, tmp_path / "in")
    scan = read_scan(tmp_path / "in")
    noise = np.exp(2j * np.random.default_rng(0).uniform(size=scan.canvas_shape)).astype(np.complex64)
    verdict = judge_object(scan, noise)
    told = verdict_lines(verdict, scan)
    assert told[0] == verdict.line()
    assert verdict.causes
    assert "--" not in "\n".join(told[:-1])
    command = command_in(told)
    command[command.index("RESULT")] = str(tmp_path / "RESULT")
    assert main([*command, "--refine", "5", "--enable-progress-bar", "false"]) == 0
    product = io.load_product(tmp_path / "RESULT" / "product.h5")
    assert product.object_.get_array().std() > 0
