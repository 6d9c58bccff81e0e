"""One real batch through fit and predict, for `ptycho-exec check --probe`, which starts this as a program.

It is the run that `ptycho-torch train` and `infer` would do, through the same functions, with three
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptycho_exec.cli.probe import REQUEST, RUN, SIMULATED, Trial, write_report
from ptycho_exec.errors import Finding, Level, UserError
from ptycho_exec.fields.model import monitor_readers
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.machine.ranks import is_rank_zero
from ptycho_exec.plan import ModuleTraits, resolve_plan
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import ScienceConfig, TrainingConfig
from ptycho_torch.data.judge import lines
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.factory import (
    INFERENCE_DEFAULTS,
    TRAINING_DEFAULTS,
    InferencePayload,
    TrainingPayload,
    execution_settings,
)
from ptycho_torch.simulate import simulate_scan
from ptycho_torch.workflows import components, runs
from ptycho_torch.workflows.results import TrainingResult

MOST_PATTERNS = 4096
"""The trial looks at no more patterns than these; that a larger batch was cut is reported."""
OBJECT = "object"
"""Where in the trial's folder the reconstruction goes."""
SCIENCE = ScienceConfig(training=TrainingConfig(epochs=1))


@dataclass
class Progress:
    """What was tried so far; every change is written for the process that waits."""

    folder: Path
    steps: list[Finding] = field(default_factory=list)

    def say(self, level: Level, subject: str, text: str, fix: str = "", setting: str = "") -> None:
        what = f"probe {subject}: {text}"
        self.steps.append(Finding(what, fix=fix, level=level, field=setting, code="trial-step"))

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Report what is being done, and a failure in it.

        Raises:
            _FailedError: after an error was reported; nothing that follows can work.
        """
        self.write(what)
        try:
            yield
        except Exception as error:
            traceback.print_exc()  # shown with --debug
            self.steps += failures(what, error)
            raise _FailedError from error

    def write(self, doing: str | None) -> None:
        if is_rank_zero():
            write_report(self.folder, doing, self.steps)


class _FailedError(Exception):
    """The trial ended early; its steps say why."""


def run_trial(trial: Trial, folder: Path) -> tuple[Finding, ...]:
    """Train one batch, check what was logged and written, predict one batch; return the steps."""
    progress = Progress(folder)
    training = execution_settings(trial.settings, {}, TRAINING_DEFAULTS)
    inference = execution_settings(trial.settings, {}, INFERENCE_DEFAULTS)
    size = inference.inference_batch_size or inference.batch_size
    try:
        with progress.doing("data"):
            scan, validation = read_scans(trial, training, size, progress)
        with progress.doing("fit"):
            results = fit_one_batch(trial, training, scan, validation, progress)
        with progress.doing("metrics"):
            check_metrics(results, progress)
        with progress.doing("files"):
            check_files(results, progress)
        with progress.doing("predict"):
            part = scan.subset(np.arange(min(size, len(scan))))
            start = time.perf_counter()
            planned = components.plan_inference(results, part, results.science, inference)
            where = Path(trial.scan), progress.folder / OBJECT
            runs.infer(InferencePayload(None, *where, planned.science, inference), inference=planned)
            text = f"{len(part)} patterns in batches of {size} stitched: {time.perf_counter() - start:.1f} s"
            progress.say("ok", "predict", text + _peak_memory())
    except _FailedError:
        pass
    progress.write(None)
    return tuple(progress.steps)


def read_scans(
    trial: Trial, training: ExecutionSettings, inference_size: int, progress: Progress
) -> tuple[ScanData, ScanData | None]:
    """Return as many patterns as one batch of training and one of inference need, and as many to validate."""

    def first_patterns(source: str, count: int, seed: int) -> ScanData:
        count = min(count, MOST_PATTERNS)
        if source == SIMULATED:
            return simulate_scan(patterns=max(count, 16), seed=seed)
        scan = read_scan(source, SCIENCE.data)
        return scan.subset(np.arange(min(count, len(scan))))

    # The training's own plan is for the patterns that are read here.
    devices = resolve_plan(training, MachineFacts.probe(), ModuleTraits()).settings.devices
    processes = len(devices) if isinstance(devices, tuple) else int(devices) if devices != "auto" else 1
    wanted = training.batch_size * processes * training.num_nodes
    scan = first_patterns(trial.scan, max(wanted, inference_size), seed=0)
    validation = first_patterns(trial.validation, wanted, seed=1) if trial.validation else None
    n, origin = scan.n_pixels, "a simulated scan" if trial.scan == SIMULATED else trial.scan
    progress.say("ok", "data", f"{origin}: {n} x {n} pixels, {len(scan)} patterns used")
    for text in lines(scan, validation):
        progress.say("note", "data", text)
    if len(scan) < wanted:
        text = f"a batch of {wanted} was cut to the {len(scan)} patterns there are; memory was not tried"
        progress.say("note", "data", text, setting="batch_size")
    return scan, validation


def fit_one_batch(
    trial: Trial, settings: ExecutionSettings, scan: ScanData, validation: ScanData | None, progress: Progress
) -> TrainingResult:
    """Train one batch as the workflow does it, with checkpoints, logger, early stopping and read-back."""
    overrides: dict[str, Any] = {} if settings.fast_dev_run else {"limit_train_batches": 1}
    if settings.tracking_uri is not None:
        overrides["tracking_uri"] = None
        progress.say("note", "logger", "the server at tracking_uri was not asked: no run is left there")
    start = time.perf_counter()
    # `check` shows the notices of the plan itself.
    training = components.plan_training(scan, validation, SCIENCE, settings, overrides)
    training.plan.raise_if_blocked(include_trainer_refusals=False)
    payload = TrainingPayload(Path(trial.scan), None, progress.folder / RUN, SCIENCE, settings)
    results = runs.train(payload, training=training).results
    seconds, used = time.perf_counter() - start, results.plan.settings
    where = f"{used.accelerator}, {used.precision}{', compiled' if used.compile else ''}"
    loaders = f"{used.num_workers} loader workers" if used.num_workers else "no loader workers"
    size = f"batch of {used.batch_size}, {loaders}"
    progress.say("ok", "fit", f"{where}, {size}: {seconds:.1f} s{_peak_memory()}")
    rows = results.drift.rows
    same = sum(row.verdict == "same" for row in rows)
    progress.say(
        "ok", "read-back", f"{same} of {len(rows)} things asked of the Trainer were read back the same"
    )
    for row in results.drift.differing:
        progress.say("note", "read-back", f"{row.name}: asked {row.requested}, is {row.effective}")
    return results


def _peak_memory() -> str:
    used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return f", {used / 2**20:.0f} MiB of GPU memory" if used else ""


# --- what was logged and written -------------------------------------------------------------------------


def check_metrics(results: Any, progress: Progress) -> None:
    """Compare what is monitored with what was really logged."""
    plan, trainer = results["plan"], results["models"]["trainer"]
    logged = sorted({*results["history"], *trainer.callback_metrics})
    monitor, row = plan.settings.checkpoint_monitor_metric, plan.effective["checkpoint_monitor_metric"]
    name, reading = "checkpoint_monitor_metric", monitor_readers(dict(plan.settings))
    if row.changed:
        progress.say("note", "metrics", f"{row.requested} became {row.value}: {row.reason}", setting=name)
    if not reading:
        progress.say("ok", "metrics", f"nothing reads {monitor}; logged: {', '.join(logged)}")
    elif monitor in logged:
        progress.say("ok", "metrics", f"{monitor} was logged, for {', '.join(reading)}", setting=name)
    else:
        text = f"{monitor} was never logged, and {', '.join(reading)} would wait for it"
        progress.say("error", "metrics", text, f"monitor one of: {', '.join(logged) or 'nothing'}", name)


def check_files(results: TrainingResult, progress: Progress) -> None:
    """Look for what checkpoints and logger should have written."""
    used = results.plan.settings
    if used.fast_dev_run or not is_rank_zero():
        return
    run = progress.folder / RUN
    written = [path for path in run.rglob("*") if path.is_file() and path.parent != run]
    checkpoints = [path for path in written if path.suffix == ".ckpt"]
    logs = [path for path in written if path not in checkpoints]
    expected = {
        "enable_checkpointing": (used.enable_checkpointing, "checkpoints", checkpoints),
        "logger_backend": (used.logger_backend, f"logger {used.logger_backend}", logs),
    }
    for setting, (asked, what, paths) in expected.items():
        size = sum(path.stat().st_size for path in paths) / 2**20
        if asked and paths:
            progress.say("ok", "files", f"{what}: {len(paths)} written, {size:.1f} MiB", setting=setting)
        elif asked:
            progress.say(
                "error", "files", f"{what}: nothing was written", f"set {setting} off to go on without"
            )


# --- failures --------------------------------------------------------------------------------------------


def failures(doing: str, error: Exception) -> list[Finding]:
    """Return what an error means to the person who asks whether the run will work."""
    if isinstance(error, UserError):
        return [
            replace(
                finding,
                what=f"probe {doing}: {finding.what}"
                + (f" (expected: {finding.expected})" if finding.expected else ""),
                expected="",
                field=name if (name := finding.what.partition("=")[0]) in field_specs() else "",
            )
            for finding in error.findings
        ]
    message = " ".join(str(error).split())
    # Lightning's callbacks and schedulers each have their own words for a metric that is not there.
    missing = ("metric" in message and "which is not available" in message) or (
        "find the monitored key" in message
    )
    fix = "change the setting that the message names; --debug shows where it happened"
    if missing:
        fix = "set checkpoint_monitor_metric to a metric that is logged"
    elif "out of memory" in message.lower():
        fix = "a smaller batch_size with larger accum_steps, or precision=bf16-mixed"
    what = f"probe {doing}: {type(error).__name__}: {message[:300]}"
    about = ("metric-not-logged", "checkpoint_monitor_metric") if missing else ("failed", "")
    return [Finding(what, fix=fix, code=about[0], field=about[1])]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trial that lies in the directory given, and leave the report there."""
    (name,) = sys.argv[1:] if argv is None else argv
    folder = Path(name)
    trial: Trial = pickle.loads((folder / REQUEST).read_bytes())
    run_trial(trial, folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
