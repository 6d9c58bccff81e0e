"""Trials are measured in processes of their own; what is chosen follows from the rates, and numerics stay."""

import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ptycho_exec.errors import UserError
from ptycho_exec.fields.model import Effect
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.cli import main
from ptycho_torch.config import ScienceConfig
from ptycho_torch.factory import INFERENCE_DEFAULTS, TRAINING_DEFAULTS
from ptycho_torch.simulate import save, simulate_scan
from ptycho_torch.tools import tune

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(simulate_scan(n=32, patterns=48, seed=0), tmp_path_factory.mktemp("tune") / "scan.npz")


def _tuning(scan: Path = Path("scan.npz"), facts: MachineFacts | None = None, **limits: Any) -> tune.Tuning:
    settings = ExecutionSettings.from_values({}).with_factory_defaults(
        **TRAINING_DEFAULTS, **INFERENCE_DEFAULTS
    )
    return tune.Tuning(scan, settings, ScienceConfig(), facts or MachineFacts(cpus_logical=4), **limits)


def _answering(
    monkeypatch: pytest.MonkeyPatch,
    rates: Mapping[tuple[str, Any], list[float | str]],
    default: float = 100.0,
) -> list[dict[str, Any]]:
    """Have trials answer with given rates or errors, by changed value; return the requests as they come."""
    asked: list[dict[str, Any]] = []

    def run(request: dict[str, Any], tuning: tune.Tuning, timeout_s: float) -> Answer:
        assert timeout_s > tune.SECONDS
        asked.append(request)
        base = tuning.settings
        changed = [
            (name, value)
            for name, value in request["settings"].items()
            if value != getattr(base, name) and (name, value) in rates
        ]
        answers = rates[changed[-1]] if changed else [100.0]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, str):
            return {"error": answer}
        return {"patterns_per_s": answer, "peak_mib": 500.0, "gpu_peak_mib": 0.0}

    monkeypatch.setattr(tune, "_run", run)
    return asked


def _chosen(tuning: tune.Tuning) -> dict[str, Any]:
    return {choice.name: choice.value for choice in tune.tune(tuning)}


# --- what is tried and chosen ----------------------------------------------------------------------------


def test_numerics_stay_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _answering(monkeypatch, {})
    tuning = _tuning()
    chosen = _chosen(tuning)
    numeric = {name for name, spec in field_specs().items() if spec.effect is Effect.NUMERICS}
    assert chosen.keys() == {"num_workers", "inference_batch_size"}
    assert not chosen.keys() & numeric
    time_limits = {"max_time", "early_stop_patience"}  # they end a trial
    for request in asked:
        for name in numeric - time_limits:
            assert request["settings"][name] == tune.values_of(tuning.settings)[name]
    told = {row.knob for row in tuning.rows if "--numerics" in row.reason}
    assert told == {knob.name for knob in tune.KNOBS} & numeric


def test_every_knob_is_tried_when_numerics_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    _answering(monkeypatch, {})
    facts = MachineFacts(cpus_logical=4, compiler="/usr/bin/g++")
    assert _chosen(_tuning(facts=facts, numerics=True)).keys() == {knob.name for knob in tune.KNOBS}


def test_a_faster_value_wins_when_it_is_faster_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _answering(monkeypatch, {("num_workers", 2): [150.0, 140.0], ("num_workers", 1): [130.0]})
    tuning = _tuning()
    assert _chosen(tuning)["num_workers"] == 2
    assert "patterns/s in training: 2: 150, 0: 100, 1: 130" in tuning.choices[0].reason
    # What follows is measured with it.
    assert all(r["settings"]["num_workers"] == 2 for r in asked if r["task"] == "infer")


@pytest.mark.parametrize(
    ("rates", "why"),
    [([104.0], "too small to count"), ([150.0, 101.0], "could not be confirmed")],
)
def test_a_value_that_is_not_clearly_faster_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, rates: list[float | str], why: str
) -> None:
    _answering(monkeypatch, {("num_workers", 2): rates})
    tuning = _tuning()
    assert _chosen(tuning)["num_workers"] == 0
    assert why in tuning.choices[0].reason


def test_a_trial_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    _answering(monkeypatch, {("num_workers", 1): ["no shared memory"], ("num_workers", 2): [200.0]})
    tuning = _tuning()
    assert _chosen(tuning)["num_workers"] == 2
    assert [row.patterns_per_s for row in tuning.rows if row.reason == "no shared memory"] == [None]
    assert "1: no shared memory" in tuning.choices[0].reason


def test_what_needs_too_much_memory_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    _answering(monkeypatch, {})
    tuning = _tuning(memory_mib=400.0)
    assert tune.tune(tuning) == []
    assert any("needs 500 MiB, more than 400" in row.reason for row in tuning.rows)


def test_the_budget_ends_the_trials_but_not_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _answering(monkeypatch, {})
    tuning = _tuning(budget_s=0.001)
    assert _chosen(tuning) == {"num_workers": 0}
    assert len(asked) == 1
    assert sum(row.reason == tune.SPENT for row in tuning.rows) > 3


def test_what_the_user_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    _answering(monkeypatch, {("num_workers", 2): [500.0]})
    tuning = _tuning()
    tuning.settings = tuning.settings.with_overrides(num_workers=1)
    assert "num_workers" not in _chosen(tuning)
    assert tuning.rows[0].reason.startswith("kept, set by")


# --- real trials -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_measures_and_writes_a_settings_file(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "SECONDS", 1)
    out = tmp_path / "tuned.toml"
    words = ["tune", str(scan), "--out", str(out), "--budget", "1s", "--n-filters", "8", "--batch-size", "4"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "a longer --budget would try the rest" in said
    text = out.read_text()
    assert tomllib.loads(text) == {"num_workers": 0}
    assert "# patterns/s in training: 0: " in text
    settings = ExecutionSettings(settings_file=out)
    assert (settings.num_workers, settings.origins["num_workers"].file) == (0, str(out))
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == text


@pytest.mark.slow
def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    tuning = _tuning(tmp_path / "missing.npz")
    found = tune._run(tune._request(tune.KNOBS[0], 0, {}, tuning, 1), tuning, 120)
    assert "missing.npz" in found["error"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell memory this way")
def test_a_process_beyond_its_memory_is_stopped(scan: Path) -> None:
    tuning = _tuning(scan, memory_mib=5.0)
    found = tune._run(tune._request(tune.KNOBS[0], 0, {}, tuning, 1), tuning, 120)
    assert found["error"].startswith("stopped at")


def test_a_process_beyond_its_time_is_stopped(scan: Path) -> None:
    tuning = _tuning(scan)
    found = tune._run(tune._request(tune.KNOBS[0], 0, {}, tuning, 1), tuning, 0.1)
    assert found["error"] == "stopped after 0 s"


@pytest.mark.slow
def test_what_python_itself_prints_last_is_the_reason(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = _tuning(scan)
    request = tune._request(tune.KNOBS[0], 0, {}, tuning, 1) | {"science": {"no_such_part": 1}}
    error = tune._run(request, tuning, 120)["error"]
    assert error.startswith("failed with exit code 1: ")
    assert "pydantic" in error


# --- words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("60s", 60), ("1.5m", 90), ("1h", 3600)])
def test_budgets(text: str, seconds: float) -> None:
    assert tune.seconds_of(text) == seconds


@pytest.mark.parametrize(("text", "mib"), [("800M", 800), ("2G", 2048), ("2GB", 2048), ("1 GiB", 1024)])
def test_sizes(text: str, mib: float) -> None:
    assert tune.mib_of(text) == mib


@pytest.mark.parametrize("text", ["", "0s", "soon", "5x", "-1"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--budget"):
        tune.seconds_of(text)


def test_starting_is_light() -> None:
    code = "import sys, ptycho_torch.tools.tune; print({'torch', 'numpy', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
