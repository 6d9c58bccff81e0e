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

    assert str(common.spread([3.0, 1.0, 2.0])) == "2 (1 .. 3)"
    assert common.ratios([1.0, 2.0], [3.0, 2.0]).max == 3.0
    assert common.exponent([10, 100, 1000], [3, 300, 30000]) == pytest.approx(2)


def test_json_holds_the_machine_and_the_spread(tmp_path: Path) -> None:
    import common

    file = common.write_json("x", {"time": common.spread([1, 2, 4])}, tmp_path / "a" / "x.json")
    found = json.loads(file.read_text())
    assert found["results"]["time"] == {"median": 2, "min": 1, "max": 4, "n": 3}
    assert found["machine"]["packages"]["torch"]
    assert found["machine"]["cpu"]
