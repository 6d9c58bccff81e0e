"""A slow-down against the last release is seen; noise, a busy machine and another machine are not one."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_exec.version import __version__

NAME = "training, gridsize 1, batch 8, patterns/s"


def _figure(values: Any, *, more: bool = True, busy: bool = False, yardstick_s: float = 0.01) -> Any:
    import common
    import history

    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75])
    return history.Figure(common.Spread(median, q1, q3, len(values), busy), more, yardstick_s)


def _verdict(before: Any, now: Any, same: bool = True) -> str:
    import history

    (row,) = history.compare({"x": before}, {"x": now}, same)
    return row.verdict


def test_noise_is_no_slow_down_and_a_slow_down_is_no_noise() -> None:
    rng = np.random.default_rng(0)

    def figure(speed: float, noise: float) -> Any:
        return _figure(speed * (1 + noise * rng.normal(size=5)))

    for noise in (0.01, 0.03, 0.1):
        alarms = [_verdict(figure(1, noise), figure(1, noise)) for _ in range(500)]
        assert alarms.count("slower") <= 0.02 * len(alarms)
    seen = [_verdict(figure(1, 0.03), figure(0.85, 0.03)) for _ in range(500)]
    assert seen.count("slower") >= 0.95 * len(seen)


@pytest.mark.parametrize("more", [True, False])
def test_what_is_better_is_known(more: bool) -> None:
    good, poor = ((10, 10.1, 10.2), (8, 8.1, 8.2)) if more else ((8, 8.1, 8.2), (10, 10.1, 10.2))
    assert _verdict(_figure(good, more=more), _figure(poor, more=more)) == "slower"
    assert _verdict(_figure(poor, more=more), _figure(good, more=more)) == ""
    assert _verdict(_figure(good, more=more), _figure(good, more=more)) == ""


def test_three_percent_are_allowed() -> None:
    steady = [1.0] * 5
    assert _verdict(_figure(steady), _figure([0.975] * 5)) == ""
    assert _verdict(_figure(steady), _figure([0.965] * 5)) == "slower"


def test_a_slower_machine_is_not_slower_code() -> None:
    before, now = [100.0, 101, 102], [50.0, 50.5, 51]
    assert _verdict(_figure(before), _figure(now)) == "slower"
    assert _verdict(_figure(before), _figure(now, yardstick_s=0.02)) == ""
    assert _verdict(_figure(before, more=False), _figure(before, more=False, yardstick_s=0.005)) == "slower"


def test_a_busy_machine_and_another_one_cannot_tell() -> None:
    before, now = [100.0, 101, 102], [50.0, 50.5, 51]
    assert _verdict(_figure(before), _figure(now, busy=True)) == "busy machine"
    assert _verdict(_figure(before), _figure(now), same=False) == "other machine"


def test_figures_of_one_side_only_are_told() -> None:
    import history

    rows = history.compare({"gone": _figure([1.0])}, {"new": _figure([1.0])}, True)
    assert [(row.name, row.verdict) for row in rows] == [("gone", "not measured"), ("new", "new")]


def test_releases_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    import history

    for version in ("0.9.0", "0.10.0", "0.2.11"):
        (tmp_path / f"{version}.json").write_text("{}")
    assert history.last_release(tmp_path).stem == "0.10.0"
    with pytest.raises(SystemExit, match=r"no release left figures\n  where:"):
        history.last_release(tmp_path / "empty")


def _results(folder: Path, rate: float) -> None:
    """Leave what the benchmark of the training writes."""
    import common

    spread = common.Spread(rate, 0.99 * rate, 1.01 * rate, 5)
    row = {"gridsize": 1, "batch_size": 8, "patterns_per_s": spread}
    common.write_json("training", {"throughput": [row]}, folder / "training.json")
    found = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps({**found, "yardstick_s": 0.01}))


def test_the_command_sees_a_figure_that_was_faster_in_the_last_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import history

    results, kept = tmp_path / "results", tmp_path / "history"

    def run(action: str) -> int:
        words = ["history.py", action, "--results", str(results), "--history", str(kept)]
        monkeypatch.setattr(sys, "argv", words)
        return history.main()

    with pytest.raises(SystemExit, match="no figures to compare"):
        run("record")
    _results(results, 500)
    assert run("record") == 0
    assert run("compare") == 0
    assert "slower than release" in capsys.readouterr().out
    file = kept / f"{__version__}.json"
    release = json.loads(file.read_text())
    for name in ("median", "q1", "q3"):
        release["figures"][NAME]["spread"][name] *= 1.2
    file.write_text(json.dumps(release))
    assert run("compare") == 1
    printed = capsys.readouterr().out
    assert f"slower than release {__version__}: {NAME}" in printed
    assert "0.83 (0.80 .. 0.87)" in printed
    _results(results, 590)
    assert run("compare") == 0


def test_figures_are_found_in_what_the_benchmarks_write(tmp_path: Path) -> None:
    import common
    import history

    row = common.Spread(1.0, 1.0, 1.0, 5)
    results: dict[str, Any] = {
        "startup": {"ours": {"settings shown": {"event_s": row}}},
        "inference": {
            "gridsize 1": {"predict": {"per_s": row}, "end to end": {"per_s": row}},
            "growth": {"exponent": 1.0},
        },
        "stitching": {"patches_per_second": {"full patch": row}},
        "refinement": {"patterns_per_cpu_s": {"ours, 5 epochs": row, "xptycho PMACE": row}},
    }
    for name, found in results.items():
        common.write_json(name, found, tmp_path / f"{name}.json")
    figures, machine = history.figures_in(tmp_path)
    assert list(figures) == [
        "settings shown, s",
        "inference, gridsize 1, predict, patterns/s",
        "inference, gridsize 1, end to end, patterns/s",
        "stitching, full patch, patches/s",
        "refinement, ours, 5 epochs, patterns per processor s",
    ]
    assert machine["cpu"]
    assert [figure.more_is_better for figure in figures.values()] == [False, True, True, True, True]
