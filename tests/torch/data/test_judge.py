"""What is odd about a scan is found, and said wherever work on it begins."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_exec.cli.probe import Trial
from ptycho_exec.errors import DataError, DataWarning, Finding
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.api.base_api import _log
from ptycho_torch.cli import main
from ptycho_torch.config import DataConfig
from ptycho_torch.data import assemble
from ptycho_torch.data.assemble import scan_from_arrays
from ptycho_torch.data.convert import convert
from ptycho_torch.data.judge import dark_patterns, lines
from ptycho_torch.data.read import read_scan
from ptycho_torch.simulate import simulate_scan
from ptycho_torch.tools.probe_run import run_trial
from ptycho_torch.tools.tune_run import MARK
from ptycho_torch.tools.tune_run import main as tune_run
from ptycho_torch.workflows import components
from tests.torch.data.scan_files import keys, odd_scan, save_keys

REMOVE = "--drop dark leaves them and their positions out"
DARK = "4 patterns are zero everywhere (closed shutter?), index 10, 11, 12, 13; " + REMOVE
SMALL = {"epochs": 1, "n_filters": 4, "depth": 1, "limit_train_batches": 1, "enable_progress_bar": False,
         "logger_backend": None, "enable_checkpointing": False}  # fmt: skip
FLAGS = ["--epochs=1", "--n-filters=4", "--depth=1", "--limit-train-batches=1", "--enable-progress-bar=false",
         "--logger-backend=none"]  # fmt: skip


@pytest.fixture
def scan_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return odd_scan(tmp_path / "odd.npz")


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_inspect_says_it(scan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(scan_file)]) == 0
    assert printed(capsys).count(f"warning: {DARK}\n") == 1
    assert main(["inspect", str(scan_file), "--json"]) == 0
    report = json.loads(printed(capsys))
    assert report["warnings"] == [DARK]
    (finding,) = report["findings"]
    assert (finding["code"], finding["level"]) == ("dark-patterns", "adapted")


def test_train_and_infer_say_it_once_before_the_work_and_keep_it(
    scan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(scan_file), "--out", "run", *FLAGS]) == 0
    text = printed(capsys)
    assert text.count(DARK) == 1
    assert text.index(f"warning: {DARK}\n") < text.index("effective batch")
    assert json.loads(Path("run/manifest.json").read_text())["warnings"].count(DARK) == 1
    assert main(["infer", "run", str(scan_file), "--out", "out"]) == 0
    assert printed(capsys).count(DARK) == 1
    assert json.loads(Path("out/manifest.json").read_text())["warnings"].count(DARK) == 1
    assert DARK in Path("out/report.html").read_text()


def test_the_python_calls_say_it_once(scan_file: Path) -> None:
    words = r"4 patterns are zero everywhere .*\n  fix: +--drop dark leaves them and their positions out"
    with pytest.warns(DataWarning, match=words):
        results = components.train(scan_file, None, SMALL)
    with pytest.warns(DataWarning, match=words):
        components.reconstruct(results["models"]["lightning_module"], scan_file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        components.run_cdi_example_torch(scan_file, None, SMALL)
    assert [row.category for row in caught].count(DataWarning) == 1


def test_tune_and_the_probe_say_it(
    scan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = {"scan": str(scan_file), "science": {}, "settings": {}, "task": "infer"}
    (tmp_path / "request.json").write_text(json.dumps(request))
    assert tune_run([str(tmp_path / "request.json")]) == 0
    answer = printed(capsys).partition(MARK)[2]
    assert json.loads(answer)["odd"] == [DARK]
    quiet = {"num_threads": 1, "enable_progress_bar": False, "batch_size": 16}
    (tmp_path / "trial").mkdir()
    steps = run_trial(Trial(ExecutionSettings.from_values(quiet), str(scan_file), None), tmp_path / "trial")
    assert [step.what for step in steps].count(f"probe data: {DARK}") == 1
    assert [step.what for step in steps if step.level == "error"] == []


def test_ptychodus_is_told(scan_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _log(f"warning: {DARK}")
        _log("effective batch: 4")
    assert [(row.levelname, row.message) for row in caplog.records] == [
        ("WARNING", DARK),
        ("INFO", "effective batch: 4"),
    ]


def test_lines_are_said_once_for_two_scans_and_not_at_all_for_other_containers(scan_file: Path) -> None:
    scan = read_scan(scan_file)
    assert lines(scan, scan.subset(range(4)), None, {"X": np.ones(3)}) == [DARK]


# --- what is found, and that its remedy works -------------------------------------------------------------

GOOD = simulate_scan(n=32, patterns=64, photons=1e6, seed=4)


def judged(**changes: Any) -> list[Finding]:
    parts = {"patterns": np.asarray(GOOD.patterns), "positions_px": GOOD.positions_px, "probe": GOOD.probe}
    return list(scan_from_arrays(**(parts | changes)).findings)


def test_a_good_scan_has_no_findings() -> None:
    assert judged() == []


def test_a_beam_off_center_is_found_and_rolled_back_as_told() -> None:
    moved = np.roll(GOOD.patterns, (3, -4), axis=(1, 2))
    (finding,) = judged(patterns=moved)
    assert finding.code == "off-center"
    assert finding.fix.startswith("--center auto moves the patterns by [-3, 4] pixels")
    assert judged(patterns=np.roll(moved, (-3, 4), axis=(1, 2))) == []
    tilted = np.fft.ifft2(
        np.fft.ifftshift(np.roll(np.fft.fftshift(np.fft.fft2(GOOD.probe)), (3, -4), (1, 2)))
    )
    assert judged(patterns=moved, probe=tilted) == []  # a probe that says so explains it


def test_zero_frequency_in_the_corners_or_at_an_edge_is_found_and_shifted_as_told() -> None:
    for axes, place in (((1, 2), "corner"), ((1,), "first-row"), ((2,), "first-column")):
        moved = np.fft.ifftshift(GOOD.patterns, axes=axes)
        (finding,) = judged(patterns=moved)
        assert finding.code == "corner-frequency"
        assert f"--zero-frequency {place} " in finding.fix
        assert judged(patterns=moved, config=DataConfig.model_validate(finding.options)) == []
        with pytest.raises(DataError, match="center = auto") as caught:
            judged(patterns=moved, config=DataConfig(center="auto"))
        assert caught.value.findings[0].fix == f"--zero-frequency {place}"


@pytest.mark.parametrize("pedestal", [0, 50])
def test_dark_patterns_are_named(pedestal: int) -> None:
    patterns = np.array(GOOD.patterns)
    patterns[20:27] = 0
    patterns[30] //= 100
    patterns += np.uint16(pedestal)
    found = {row.code: row.what for row in judged(patterns=patterns)}
    text = found["dark-patterns"]
    assert text == "1 patterns have less than 5% of the usual intensity, index 30" or pedestal
    assert "8 patterns have less than 5%" in text or not pedestal
    kept = np.delete(np.arange(64), [*range(20, 27), 30])
    left = judged(patterns=patterns[kept], positions_px=GOOD.positions_px[kept])
    assert [row.code for row in left] == (["background"] if pedestal else [])


def far(value: float, *indices: int) -> np.ndarray[Any, Any]:
    positions = np.array(GOOD.positions_px)
    positions[list(indices)] = value
    return positions


def test_positions_far_from_all_others_are_named_and_hide_nothing() -> None:
    (finding,) = judged(positions_px=far(8_000, 10))
    assert finding.code == "far-positions"
    assert finding.what == ("1 position lies far from all others, index 10; the first at y = 8000, x = 8000")
    kept = np.delete(np.arange(64), 10)
    assert judged(patterns=GOOD.patterns[kept], positions_px=far(8_000, 10)[kept]) == []
    spread = GOOD.positions_px * 8
    spread[3] = 8_000
    assert [row.code for row in judged(positions_px=spread)] == ["far-positions", "little-overlap"]


@pytest.mark.parametrize("away", [0, 60_000])
def test_patterns_that_were_taken_at_one_place_far_away_are_named_and_left_out(away: float) -> None:
    """The stage was parked: several positions, all the same."""
    positions = GOOD.positions_px + away
    positions[-3:] = away - 9999
    config = DataConfig(drop="far")
    if away:  # with them, no memory holds the object
        positions[-3:] = 0
        with pytest.raises(
            DataError, match="3 positions lie far from all others, index 61, 62, 63"
        ) as caught:
            judged(positions_px=positions)
        assert caught.value.findings[0].options == {"drop": "far"}
    else:
        found = {row.code: row for row in judged(positions_px=positions)}
        assert set(found) == {"repeated-positions", "far-positions"}
        assert found["far-positions"].options == {"drop": "far"}
    assert [row.code for row in judged(positions_px=positions, config=config)] == ["dropped"]


def test_a_repeated_position_hides_no_other_unit() -> None:
    positions = GOOD.positions_px * 0.06
    positions[1] = positions[0]
    assert [row.code for row in judged(positions_px=positions)] == ["repeated-positions", "much-overlap"]


def test_rows_that_do_not_overlap_are_named() -> None:
    """As where y was written in another unit than x."""
    (finding,) = judged(positions_px=GOOD.positions_px * [20, 1])
    assert finding.code == "little-overlap"
    assert finding.what.startswith("the scan falls into 8 parts whose probes do not overlap")
    mended = DataConfig(position_affine=(1 / 20, 0.0, 0.0, 1.0))
    assert judged(positions_px=GOOD.positions_px * [20, 1], config=mended) == []


def test_a_canvas_that_no_memory_holds_is_refused_before_it_is_made() -> None:
    with pytest.raises(DataError, match=r"takes \d+ GiB.*index 10; the first at y = 6e\+06") as caught:
        judged(positions_px=far(6e6, 10))
    assert caught.value.findings[0].fix == "--drop far leaves them and their patterns out"
    with pytest.raises(DataError, match="span") as caught:
        judged(positions_px=GOOD.positions_px * 1e6)
    assert caught.value.findings[0].fix.startswith("check the unit")


def test_the_memory_of_the_machine_bounds_the_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "memory_bytes", lambda: 1e5)
    with pytest.raises(DataError, match="and there are 0"):
        judged()


def test_each_position_measured_twice_hides_no_missing_overlap() -> None:
    pick = np.repeat(np.arange(0, 64, 4), 2)
    found = judged(patterns=GOOD.patterns[pick], positions_px=GOOD.positions_px[pick] * 6)
    assert [row.code for row in found] == ["repeated-positions", "little-overlap"]


def test_positions_in_another_unit_are_refused_or_doubted() -> None:
    pixel = 2e-8
    for unit, size in {"m": 1.0, "um": 1e-6}.items():
        positions = GOOD.positions_px * pixel / size
        with pytest.raises(DataError, match=r"lie within .* pixels") as caught:
            judged(positions_px=positions, geometry={"pixel_size_m": pixel})
        (finding,) = caught.value.findings
        assert finding.fix.startswith(f"--positions-unit {unit} takes them as {unit}: neighbors ")
        assert finding.options == {"positions_unit": unit}
        with pytest.raises(DataError) as caught:
            judged(positions_px=positions)
        assert "--positions-unit UNIT --pixel-size-m METERS names it" in caught.value.findings[0].fix
        assert judged(positions_px=positions / (pixel / size)) == []
    (finding,) = judged(positions_px=GOOD.positions_px * 0.06)
    assert finding.code == "much-overlap"
    nanometers = judged(positions_px=GOOD.positions_px * 20)
    assert [row.code for row in nanometers] == ["little-overlap"]


@pytest.mark.parametrize(("apart_px", "codes"), [(1.2, []), (0.2, ["much-overlap"])])
def test_a_dense_scan_is_no_other_unit_where_no_probe_tells_its_size(
    apart_px: float, codes: list[str]
) -> None:
    dense = GOOD.positions_px * apart_px / GOOD.report["neighbor_distance_px"]
    assert [row.code for row in judged(positions_px=dense, probe=None)] == codes


def test_masked_gaps_are_kept_by_convert(tmp_path: Path) -> None:
    patterns = np.asarray(GOOD.patterns).astype(np.uint32)
    patterns[:, :, 13:15] = 2**32 - 1
    source = save_keys(tmp_path / "maxint.npz", keys(GOOD, diff3d=patterns, bad_pixels=None))
    (finding,) = read_scan(source).findings
    assert finding.code == "gaps"
    read = read_scan(convert(source, tmp_path / "new.npz", "npz"))
    assert read.findings == ()
    assert (~read.good_pixels).sum() == 64


@pytest.mark.slow
@pytest.mark.parametrize(("count", "most"), [(40, 1), pytest.param(100, 2, marks=pytest.mark.thorough)])
def test_good_scans_raise_no_alarm(count: int, most: int) -> None:
    """At most two of a hundred scans of many kinds, none of which has any trouble."""
    rng, alarms = np.random.default_rng(0), []
    for seed in range(count):
        how: dict[str, Any] = {
            "n": int(rng.choice([32, 64, 128], p=[0.5, 0.4, 0.1])),
            "patterns": int(rng.choice([49, 100])),
            "photons": float(10 ** rng.uniform(3, 9)),
            "object_kind": str(rng.choice(["dead_leaves", "siemens_star", "star_and_leaves"])),
            "scan_kind": str(rng.choice(["raster", "fermat"])),
            "contrast": float(rng.choice([0.1, 0.3, 0.6, 1.0])),
            "probe_curvature_rad": float(rng.uniform(-12, 12)),
            "probe_aberration_rad": float(rng.choice([0, 0.7, 1.5])),
            "modes": int(rng.choice([1, 2, 3])),
            "bad_pixels": int(rng.choice([0, 5])),
            "noise": bool(rng.random() < 0.9),
        }
        found = simulate_scan(seed=seed, **how).findings
        if found:
            alarms.append((how, [finding.what for finding in found]))
    assert len(alarms) <= most, alarms


@pytest.mark.parametrize("dim", [0, 0.001])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.95])
def test_closed_shutters_are_dark_however_many(part: float, dim: float) -> None:
    above = np.random.default_rng(0).uniform(0.6, 1.4, size=60)
    above[: round(part * 60)] *= dim
    assert dark_patterns(above).tolist() == list(range(round(part * 60)))


def test_where_nothing_is_lit_nothing_is_dark() -> None:
    assert len(dark_patterns(np.full(8, -3.0))) == 0
