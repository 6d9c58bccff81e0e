"""One real batch through fit and predict, for `ptycho-exec check --probe`, which starts this as a program.

It is the run that `ptycho-torch train` and `infer` would make, through the same functions, with three
differences that it reports: one batch, one epoch, and no tracking server. Each part that worked is a step,
the first that does not ends the trial.
"""

from __future__ import annotations

import pickle
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_exec.cli.probe import REQUEST, RUN, SIMULATED, Step, Trial, write_report
from ptycho_exec.errors import Finding, UserError
from ptycho_exec.fields.model import monitor_readers
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.machine.ranks import is_rank_zero
from ptycho_exec.plan import ModuleTraits, resolve_plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import ScienceConfig, TrainingConfig
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.factory import INFERENCE_DEFAULTS, TRAINING_DEFAULTS, execution_settings
from ptycho_torch.simulate import simulate_scan
from ptycho_torch.workflows import components

MOST_PATTERNS = 4096
"""The trial looks at no more patterns than these; a larger batch is told to be cut."""
SCIENCE = ScienceConfig(training=TrainingConfig(epochs=1))


@dataclass
class Progress:
    """What was tried so far; every change is written for the process that waits."""

    folder: Path
    steps: list[Step] = field(default_factory=list)

    def say(self, level: Any, subject: str, text: str, fix: str = "", setting: str = "") -> None:
        self.steps.append(Step(level, f"probe {subject}", text, fix, setting=setting))

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Report what is being done, and a failure in it.

        Raises:
            _FailedError: after an error was reported; nothing that follows can work.
        """
        self._write(what)
        try:
            yield
        except Exception as error:
            traceback.print_exc()  # shown with --debug
            self.steps += failures(what, error)
            raise _FailedError from error

    def _write(self, what: str | None) -> None:
        if is_rank_zero():
            write_report(self.folder, what, self.steps)

    def done(self) -> None:
        self._write(None)


class _FailedError(Exception):
    """The trial ended early; its steps say why."""


def run_trial(trial: Trial, folder: Path) -> tuple[Step, ...]:
    """Train one batch, check what was logged and written, predict one batch; return the steps."""
    progress = Progress(folder)
    try:
        with progress.doing("data"):
            scan, validation = _scans(trial, progress)
        with progress.doing("fit"):
            results = _fit(trial.settings, scan, validation, progress)
        with progress.doing("metrics"):
            check_metrics(results, progress)
        with progress.doing("files"):
            _check_files(results, progress)
        with progress.doing("predict"):
            _predict(trial.settings, results, scan, progress)
    except _FailedError:
        pass
    progress.done()
    return tuple(progress.steps)


# --- data ------------------------------------------------------------------------------------------------


def _scans(trial: Trial, progress: Progress) -> tuple[ScanData, ScanData | None]:
    """Return as many patterns as one batch of training and one of inference need, and as many to validate."""
    training, inference = _settings(trial.settings)
    facts = MachineFacts.probe()
    devices = resolve_plan(training, facts, ModuleTraits()).settings.devices
    processes = len(devices) if isinstance(devices, tuple) else int(devices) if devices != "auto" else 1
    wanted = training.batch_size * processes * training.num_nodes
    most = max(wanted, inference.inference_batch_size or inference.batch_size)
    scan = _first_patterns(trial.scan, most, seed=0)
    validation = _first_patterns(trial.validation, wanted, seed=1) if trial.validation else None
    origin = "a simulated scan" if trial.scan == SIMULATED else trial.scan
    progress.say(
        "OK", "data", f"{origin}: {scan.n_pixels} x {scan.n_pixels} pixels, {len(scan)} patterns used"
    )
    if len(scan) < wanted:
        text = f"a batch of {wanted} was cut to the {len(scan)} patterns there are; memory was not tried"
        progress.say("note", "data", text, setting="batch_size")
    return scan, validation


def _settings(asked: ExecutionSettings) -> tuple[ExecutionSettings, ExecutionSettings]:
    """Return the settings as training and as inference complete them."""
    return execution_settings(asked, {}, TRAINING_DEFAULTS), execution_settings(asked, {}, INFERENCE_DEFAULTS)


def _first_patterns(source: str, count: int, seed: int) -> ScanData:
    count = min(count, MOST_PATTERNS)
    if source == SIMULATED:
        return simulate_scan(patterns=max(count, 16), seed=seed)
    scan = read_scan(source, SCIENCE.data)
    return scan.subset(np.arange(min(count, len(scan))))


# --- fit -------------------------------------------------------------------------------------------------


def _fit(
    settings: ExecutionSettings, scan: ScanData, validation: ScanData | None, progress: Progress
) -> dict[str, Any]:
    """Train one batch as the workflow does it, with checkpoints, logger, early stopping and read-back."""
    overrides: dict[str, Any] = {} if settings.fast_dev_run else {"limit_train_batches": 1}
    if settings.tracking_uri is not None:
        overrides["tracking_uri"] = None
        progress.say("note", "logger", "the server at tracking_uri was not asked: no run is left there")
    start = time.perf_counter()
    results = components._train_with_lightning(
        scan, validation, SCIENCE, settings, overrides, run_dir=progress.folder / RUN
    )
    seconds = time.perf_counter() - start
    _say_fit(results, seconds, progress)
    return results


def _say_fit(results: dict[str, Any], seconds: float, progress: Progress) -> None:
    used = results["plan"].settings
    where = f"{used.accelerator}, {used.precision}{', compiled' if used.compile else ''}"
    loaders = f"{used.num_workers} loader workers" if used.num_workers else "no loader workers"
    size = f"batch of {used.batch_size}, {loaders}"
    progress.say("OK", "fit", f"{where}, {size}: {seconds:.1f} s{_peak_memory()}")
    rows = results["drift"].rows
    same = sum(row.verdict == "same" for row in rows)
    progress.say(
        "OK", "read-back", f"{same} of {len(rows)} things asked of the Trainer were read back the same"
    )
    for row in results["drift"].differing:
        progress.say("note", "read-back", f"{row.name}: asked {row.requested}, is {row.effective}")


def _peak_memory() -> str:
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return f", {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB of GPU memory"
    return ""


# --- what was logged and written -------------------------------------------------------------------------


def check_metrics(results: dict[str, Any], progress: Progress) -> None:
    """Compare what is monitored with what was really logged."""
    plan, trainer = results["plan"], results["models"]["trainer"]
    logged = sorted({*results["history"], *trainer.callback_metrics})
    monitor, row = plan.settings.checkpoint_monitor_metric, plan.effective["checkpoint_monitor_metric"]
    name, reading = "checkpoint_monitor_metric", monitor_readers(dict(plan.settings))
    if row.changed:
        progress.say("note", "metrics", f"{row.requested} became {row.value}: {row.reason}", setting=name)
    if not reading:
        progress.say("OK", "metrics", f"nothing reads {monitor}; logged: {', '.join(logged)}")
    elif monitor in logged:
        progress.say("OK", "metrics", f"{monitor} was logged, for {', '.join(reading)}", setting=name)
    else:
        text = f"{monitor} was never logged, and {', '.join(reading)} would wait for it"
        progress.say("FAIL", "metrics", text, f"monitor one of: {', '.join(logged) or 'nothing'}", name)


def _check_files(results: dict[str, Any], progress: Progress) -> None:
    """Look for what checkpoints and logger should have written."""
    used = results["plan"].settings
    written = [path for path in (progress.folder / RUN).rglob("*") if path.is_file()]
    checkpoints = [path for path in written if path.suffix == ".ckpt"]
    if used.enable_checkpointing and not used.fast_dev_run:
        _say_written(progress, "checkpoints", checkpoints, "enable_checkpointing")
    if used.logger_backend and not used.fast_dev_run:
        logs = [path for path in written if path not in checkpoints]
        _say_written(progress, f"logger {used.logger_backend}", logs, "logger_backend")


def _say_written(progress: Progress, what: str, paths: Sequence[Path], setting: str) -> None:
    if not is_rank_zero():
        return
    size = sum(path.stat().st_size for path in paths) / 2**20
    if paths:
        progress.say("OK", "files", f"{what}: {len(paths)} written, {size:.1f} MiB", setting=setting)
    else:
        progress.say("FAIL", "files", f"{what}: nothing was written", f"set {setting} off to go on without")


# --- predict ---------------------------------------------------------------------------------------------


def _predict(
    settings: ExecutionSettings, results: dict[str, Any], scan: ScanData, progress: Progress
) -> None:
    """Predict and stitch one batch with the network that was just trained."""
    _, inference = _settings(settings)
    size = inference.inference_batch_size or inference.batch_size
    part = scan.subset(np.arange(min(size, len(scan))))
    start = time.perf_counter()
    components.run_inference_with_lightning(results, part, results["science"], settings)
    seconds = time.perf_counter() - start
    text = f"{len(part)} patterns in batches of {size} stitched: {seconds:.1f} s{_peak_memory()}"
    progress.say("OK", "predict", text)


# --- failures --------------------------------------------------------------------------------------------


def failures(doing: str, error: Exception) -> list[Step]:
    """Return what an error means to the person who asks whether the run will work."""
    if isinstance(error, UserError):
        return [_failure(doing, finding) for finding in error.findings]
    said = " ".join(str(error).split())
    text = f"{type(error).__name__}: {said[:300]}"
    return [Step("FAIL", f"probe {doing}", text, _remedy(said), setting=_setting(said))]


def _failure(doing: str, finding: Finding) -> Step:
    expected = f" (expected: {finding.expected})" if finding.expected else ""
    name = finding.what.partition("=")[0]
    setting = name if name in field_specs() else ""
    return Step("FAIL", f"probe {doing}", finding.what + expected, finding.fix, finding.where, setting)


def _remedy(said: str) -> str:
    if _setting(said):
        return "set checkpoint_monitor_metric to a metric that is logged"
    if "out of memory" in said.lower():
        return "a smaller batch_size with larger accum_steps, or precision=bf16-mixed"
    return "change the setting that the message names; --debug shows where it happened"


def _setting(said: str) -> str:
    """Name the setting that an error of Lightning's is about.

    Its callbacks and schedulers each complain in their own words about a metric that is not there.
    """
    missing = ("metric" in said and "which is not available" in said) or "find the monitored key" in said
    return "checkpoint_monitor_metric" if missing else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trial that lies in the folder given, and leave the report there."""
    (name,) = sys.argv[1:] if argv is None else argv
    folder = Path(name)
    trial: Trial = pickle.loads((folder / REQUEST).read_bytes())
    run_trial(trial, folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
