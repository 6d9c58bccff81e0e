"""The tables are complete and current: every field, every test that they name, the report, and the cutter."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ptycho_exec import ExecutionSettings

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def load(name: str) -> ModuleType:
    """Import a script that lies beside this file."""
    sys.path.insert(0, str(HERE))
    try:
        spec = importlib.util.spec_from_file_location(f"wiring_{name}", HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(HERE))


tables, cut = load("tables"), load("cut")


def test_every_field_has_a_wire_and_no_other() -> None:
    names = [wire.field for wire in tables.WIRES]
    assert len(names) == len(set(names))
    assert set(names) == set(ExecutionSettings.model_fields)
    assert all(wire.tests and wire.observed for wire in tables.WIRES)


def test_every_test_that_the_tables_name_exists() -> None:
    named = {test for row in (*tables.WIRES, *tables.SILENT) for test in row.tests}
    files = sorted({test.partition("::")[0] for test in named})
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = set(done.stdout.splitlines())
    found |= {test.partition("[")[0] for test in found}
    assert named - found == set()


def test_every_row_of_the_silent_table_is_handled_and_shown() -> None:
    asked = [row.asked for row in tables.SILENT]
    assert len(asked) == len(set(asked)) >= 30
    assert all(row.lightning and row.here and row.tests for row in tables.SILENT)


def test_the_report_is_current() -> None:
    assert cut.REPORT.read_text() == cut.report(), "run `make wiring`"


def test_the_doors_are_real_functions() -> None:
    cut.import_once()
    for place in cut.DOORS:
        module, name = place.split(":")
        assert callable(getattr(sys.modules[module], name))


def test_cutting_replaces_one_field_and_nothing_else() -> None:
    whole = ExecutionSettings.from_values({"seed": 7, "batch_size": 3})
    found = cut.severed(whole, "seed")
    assert (found.seed, found.batch_size) == (42, 3)
    assert found.origins == whole.origins
    assert cut.severed("anything else", "seed") == "anything else"
    assert cut.through(lambda settings: settings.seed, "seed")(whole) == 42


def test_a_cut_that_nobody_notices_is_a_fault() -> None:
    wire = tables.Wire("seed", "weights", ("a", "b", "c"))
    found = {
        None: {"a": "passed", "b": "passed", "c": "skipped"},
        "seed": {"a": "failed", "b": "passed"},
    }
    assert cut.faults([wire], found) == [
        "seed: passed with the wire cut: b",
        "seed: skipped before the cut: c",
        "seed: not run with the wire cut: c",
    ]


@pytest.mark.parametrize("field", ["on_unsupported"])
def test_a_cut_wire_is_noticed(field: str) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "cut.py"), field], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 wires cut" in done.stdout
