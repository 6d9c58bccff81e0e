"""One run of anybody's module: flags, seed, plan, Trainer, read-back, record, and all put back afterwards."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_exec.errors import Finding
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import Plan, announce, asked, resolve_plan
from ptycho_exec.record import manifest_parts, recorded, reserved_dir, write_manifest, write_settings_toml
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.build import (
    build_trainer,
    idle_settings,
    inference_loader_kwargs,
    train_loader_kwargs,
)
from ptycho_exec.trainer.caller import require_kinds
from ptycho_exec.trainer.drift import DriftReport, apply_drift_policy, callers_own, requested_and_effective
from ptycho_exec.trainer.handover import handed_over
from ptycho_exec.trainer.loggers import close_logger
from ptycho_exec.trainer.module import traits_of
from ptycho_exec.trainer.process import process_flags, seed_run

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.profilers import Profiler

CONTINUE = "fit(..., ckpt_path=CHECKPOINT) in a run with another directory continues"


@dataclass(frozen=True)
class TrainerRun:
    """A run that has begun: its Trainer, its plan, and what its loaders are to be made with.

    Attributes:
        run_dir: its directory; None where nothing is written.
        loaders: the caller's, by role, which are compared with the settings.
    """

    trainer: Trainer
    plan: Plan
    run_dir: Path | None
    loaders: Mapping[str, Any]

    @property
    def settings(self) -> ExecutionSettings:
        """The values that are effective in this run."""
        return self.plan.settings

    @property
    def train_loader_kwargs(self) -> dict[str, Any]:
        """Arguments of a training DataLoader, without the dataset and its order."""
        return train_loader_kwargs(self.plan.requested, self.plan)

    @property
    def inference_loader_kwargs(self) -> dict[str, Any]:
        """Arguments of a DataLoader for validation and prediction, without the dataset."""
        return inference_loader_kwargs(self.plan.requested, self.plan)

    def report(self) -> DriftReport:
        """Read the Trainer back as it is now; what was seen of optimizer and loaders in fit is kept."""
        own = callers_own(self.trainer)
        now = requested_and_effective(
            self.trainer,
            self.plan.requested,
            self.plan,
            loaders=self.loaders,
            writes=self.run_dir is not None,
            profiler=own.profiler,
        )
        known = {row.name for row in now.rows}
        return DriftReport((*now.rows, *(row for row in self._in_fit.rows if row.name not in known)))

    @property
    def _in_fit(self) -> DriftReport:
        callbacks: Sequence[Any] = getattr(self.trainer, "callbacks", ())
        reports = (getattr(callback, "report", None) for callback in callbacks)
        return next((report for report in reports if isinstance(report, DriftReport)), DriftReport(()))


@contextmanager
def trainer_run(
    settings: ExecutionSettings | None = None,
    *,
    module: Any = None,
    loaders: Mapping[str, Any] | None = None,
    max_epochs: int | None = None,
    run_dir: str | Path | None = None,
    facts: MachineFacts | None = None,
    callbacks: Sequence[Any] = (),
    logger: Any = None,
    profiler: Profiler | None = None,
    trainer_kwargs: Mapping[str, Any] | None = None,
) -> Iterator[TrainerRun]:
    """Run a module with these settings: everything of `specs/facade.md` in one `with` block.

    On entry the process's flags and seeds are set, the plan is made and its notices given, and the Trainer is
    built. On the way out, also after an exception, the Trainer is read back and compared, the manifest says
    how the run ended, our logger is closed, and the process gets its flags and random states back.

    ::

        with trainer_run(settings, module=Net, run_dir="runs/1", max_epochs=5) as run:
            net = Net(run.settings.learning_rate)
            run.trainer.fit(net, DataLoader(data, **run.train_loader_kwargs))

    Args:
        settings: None resolves them.
        module: the class of the module, which is then made inside, with the seed in place; or a module.
        loaders: by role, `train` and `validation`, where they exist already.
        run_dir: a new directory for checkpoints, logs, `settings.toml`, `manifest.json`; None writes nothing.
        facts: of this machine, where they are known already.
        callbacks, logger, profiler, trainer_kwargs: the caller's own; see `build_trainer`.

    Raises:
        SettingsError: settings that this machine or module cannot honor.
        UserError: the directory is in use.
        DriftError: the Trainer is not what was asked for.
    """
    from ptycho_exec.trainer.stop import leaving_in_order

    handed = handed_over()
    settings = handed.plan.requested if handed else settings or ExecutionSettings()
    require_kinds(settings, module=module, loaders=loaders)
    traits = traits_of(module, loaders)
    plan = handed.plan if handed else resolve_plan(settings, facts or MachineFacts.probe(), traits)
    plan.raise_if_blocked(include_trainer_refusals=False)
    early = _made_before_seeding(settings, module)
    with leaving_in_order(again=CONTINUE), process_flags(plan.settings):
        seed_run(plan.settings)
        with reserved_dir(run_dir) if run_dir is not None else nullcontext() as folder:
            identity = _identity(folder, max_epochs)
            build = partial(build_trainer, settings, plan=plan, max_epochs=max_epochs, run_dir=folder)
            brought = {"callbacks": callbacks, "logger": logger, "profiler": profiler}
            trainer = build(**brought, trainer_kwargs=trainer_kwargs, identity=identity, announce=False)
        idle = idle_settings(trainer, plan, callers_own(trainer), writes=folder is not None)
        notices = (*settings.notices, *plan.notices, *early, *idle)
        announce(notices)
        run = TrainerRun(trainer, plan, folder, dict(loaders or {}))
        try:
            with _recorded(run, notices):
                yield run
        finally:
            if logger is None:
                close_logger(getattr(trainer, "logger", None))


def _identity(folder: Path | None, max_epochs: int | None) -> dict[str, tuple[Any, str]]:
    place = f"the call, in {Path.cwd()}"
    return {"run_dir": (None if folder is None else str(folder), place), "max_epochs": (max_epochs, place)}


@contextmanager
def _recorded(run: TrainerRun, notices: Sequence[Finding]) -> Iterator[None]:
    """Compare the Trainer afterwards, and keep the manifest true where the run has a directory."""
    from ptycho_exec.trainer.stop import stoppable
    from ptycho_exec.trainer.together import on_all_processes

    settings, folder = run.plan.requested, run.run_dir
    if folder is None:
        with on_all_processes(run.trainer, run.plan), stoppable(run.trainer):
            yield
        apply_drift_policy(run.report(), settings)
        return
    own = callers_own(run.trainer).to_json()
    parts = {**manifest_parts(settings, plan=run.plan), "task": "run", "caller": own}
    with recorded(folder, parts, notices) as lines:
        write_settings_toml(folder / "settings.toml", settings)
        try:
            with on_all_processes(run.trainer, run.plan), stoppable(run.trainer):
                yield
        finally:
            write_manifest(folder, **_came_to(run, lines))
        apply_drift_policy(run.report(), settings)
    write_manifest(folder, status="completed")


def _made_before_seeding(settings: ExecutionSettings, module: Any) -> list[Finding]:
    """Return a note where the seed comes after the module's weights were drawn."""
    made = module is not None and not inspect.isclass(module)
    if not (made and asked(settings, "seed")) or os.environ.get("PL_GLOBAL_SEED") == str(settings.seed):
        return []
    text = f"seed={settings.seed} comes after the module was made: its first weights are not of that seed"
    fix = "pass the class as module= and make the module inside the block, or call seed_run(settings) before"
    where = settings.origin_of("seed")
    return [Finding(text, where, fix=fix, level="note", code="seeded-late", field="seed")]


def _came_to(run: TrainerRun, lines: list[str]) -> dict[str, Any]:
    """Return what the manifest says of a run that ended, well or not."""
    callbacks: Sequence[Any] = getattr(run.trainer, "callbacks", ())
    found = [notice for row in callbacks for notice in getattr(row, "notices", ())]
    lines += [notice.what for notice in found if notice.what not in lines]
    trained = {"epochs": run.trainer.current_epoch, "steps": run.trainer.global_step}
    return {"drift": run.report().to_json(), "trained": trained}
