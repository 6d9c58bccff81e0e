"""Figures are taken from outside the process, and written so that they can be read back."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest


def test_run_measures_one_process(tmp_path: Path) -> None:
    import common

    code = "import time; block = bytearray(80 * 2**20); print('done'); time.sleep(0.2)"
    child = common.run([sys.executable, "-c", code]).check()
    assert child.output == "done\n"
    assert 80 < child.peak_mib < 120
    assert 0.2 <= child.wall_s < 10
    assert 0 < child.cpu_s < child.wall_s


def test_peak_memory_is_the_childs_own() -> None:
    import common

    held = np.ones(200 * 2**17)  # 200 MiB, touched
    child = common.run([sys.executable, "-c", "pass"]).check()
    assert child.peak_mib < 100, held.nbytes


def test_run_tells_failure_and_kills_what_hangs() -> None:
    import common

    failed = common.run([sys.executable, "-c", "raise SystemExit('no scan')"])
    assert (failed.code, failed.output) == (1, "no scan\n")
    with pytest.raises(SystemExit, match="no scan"):
        failed.check()
    hung = common.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.5)
    assert hung.code == -9
    assert hung.wall_s < 30


def test_numbers() -> None:
    import common

    assert common.spread([3.0, 1.0, 2.0, 4.0, 5.0]).q1 == 2
    assert str(common.Spread(3, 2, 4, 5)) == "3 (2 .. 4)"
    assert str(common.Spread(3, 2, 4, 5, busy=True)) == "3 (2 .. 4, busy machine)"
    assert common.spread([7.0]).q3 == 7
    assert common.ratios([1.0, 2.0], [3.0, 2.0]).median == 2.0
    assert common.exponent([10, 100, 1000], [3, 300, 30000]) == pytest.approx(2)


def test_json_holds_the_machine_and_the_spread(tmp_path: Path) -> None:
    import common

    file = common.write_json("x", {"time": common.spread([1, 2, 4])}, tmp_path / "a" / "x.json")
    found = json.loads(file.read_text())
    assert found["results"]["time"] == {
        "median": 2,
        "q1": 1.5,
        "q3": 3,
        "n": 3,
        "busy": found["results"]["time"]["busy"],
    }
    assert common.Spread.read(found["results"]["time"]).median == 2
    assert found["machine"]["packages"]["torch"]
    assert found["machine"]["cpu"]


def test_rounds_alternate() -> None:
    import common

    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name) or 1.0) for name in "ab"}
    assert common.in_turn(calls, 3) == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert "".join(order) == "abbaab"


def test_what_others_take_is_told_and_what_we_take_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import common

    monkeypatch.setattr(common.os, "cpu_count", lambda: 2)
    now = {"at": 100.0, "busy": 50.0, "stolen": 0.0, "own": 10.0}
    monkeypatch.setattr(common.time, "perf_counter", lambda: now["at"])
    monkeypatch.setattr(common, "_processor_seconds", lambda: (now["busy"], now["stolen"], now["own"]))
    for added, expected in (
        ({"busy": 10, "own": 10}, False),  # ours alone
        ({"busy": 14, "own": 10}, True),  # others took four of 20 seconds
        ({"busy": 10, "own": 10, "stolen": 5}, True),
        ({"busy": 11, "own": 10, "stolen": 1}, False),
    ):
        watch = common.Watch()
        now.update({name: now[name] + value for name, value in {"at": 10, **added}.items()})
        assert watch.busy() is expected
        assert watch.busy() is expected  # asked again at once


def test_processor_seconds_grow_with_our_work() -> None:
    import common

    before = common._processor_seconds()
    if before is None:
        pytest.skip("this system has no /proc/stat")
    sum(i * i for i in range(2_000_000))
    after = common._processor_seconds()
    assert after[2] > before[2]
    assert after[0] >= before[0]
