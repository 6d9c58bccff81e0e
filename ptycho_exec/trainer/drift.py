"""Requested beside effective: what a Trainer and its loaders really have, read back and compared."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ptycho_exec.errors import DriftError, Finding
from ptycho_exec.plan import Plan, asked
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.trainer.caller import CallersOwn, require_kinds, word
from ptycho_exec.trainer.module import each_loader, samples_per_batch
from ptycho_exec.trainer.parameters import (
    CALLBACK_VALUES,
    PROCESS_FLAGS,
    TRAINER_PARAMETERS,
    UNKNOWN,
    TrainerInputs,
    attribute,
)


@dataclass(frozen=True, slots=True)
class DriftRow:
    """One thing that was asked for, beside what the Trainer or loader really has, and its field.

    `decided_by` says whose value is effective: the settings', the caller's, or, where nobody set the field,
    that of the module or loader itself. Only the settings' own can differ from what was asked.
    """

    name: str
    requested: Any
    effective: Any
    field: str
    decided_by: Literal["settings", "caller", "nobody"] = "settings"

    @property
    def verdict(self) -> Literal["same", "differs", "caller's", "not asked", "unknown"]:
        """Compare; booleans and numbers are different things here, 1 and 1.0 are not."""
        if UNKNOWN in (self.requested, self.effective):
            return "unknown"
        truths = isinstance(self.requested, bool) or isinstance(self.effective, bool)
        same_kind = not truths or type(self.requested) is type(self.effective)
        if self.requested == self.effective and same_kind:
            return "same"
        return {"settings": "differs", "caller": "caller's", "nobody": "not asked"}[self.decided_by]  # type: ignore[return-value]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; what is not known is the word `unknown`."""
        values = {name: getattr(self, name) for name in ("name", "requested", "effective", "verdict")}
        return {name: "unknown" if value is UNKNOWN else value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Requested beside effective, row by row."""

    rows: tuple[DriftRow, ...]

    @property
    def differing(self) -> tuple[DriftRow, ...]:
        return tuple(row for row in self.rows if row.verdict == "differs")

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain JSON data, one object per row."""
        return [row.to_json() for row in self.rows]


def requested_and_effective(
    trainer: Any,
    settings: ExecutionSettings,
    plan: Plan | None = None,
    *,
    loaders: Mapping[str, Any] | None = None,
    writes: bool = True,
    profiler: Any = UNKNOWN,
) -> DriftReport:
    """Compare what was asked for with what `trainer` and `loaders` have.

    Args:
        plan: its effective values are the ones asked for (the plan itself records what it changed).
        loaders: DataLoaders by role, each alone or several in a list, a mapping or a CombinedLoader: `train`,
            `validation`, `test`, `predict`, `inference`.
        writes: the run has a directory, so checkpoints and logger are expected.
        profiler: the one that `build_trainer` was given, or None; without it the Trainer's is not compared.

    Raises:
        SettingsError: a role that does not exist.
    """
    require_kinds(settings, loaders=loaders)
    inputs = TrainerInputs(plan.settings if plan else settings, profiler=profiler)
    own = callers_own(trainer)
    rows = [
        DriftRow(
            row.row or row.name,
            (row.wanted or row.value)(inputs),
            plain(row.seen(trainer)),
            row.field,
            "caller" if (row.row or row.name) in own.rows else "settings",
        )
        for row in (*TRAINER_PARAMETERS, *CALLBACK_VALUES, *PROCESS_FLAGS)
        if row.seen is not None
        and (writes or not row.writes)
        and (not row.table or row.name in inputs.settings.trainer)
    ]
    rows += _caller_rows(trainer, own, {row.name for row in rows})
    for role, loader in (loaders or {}).items():
        rows += loader_rows(role, loader, inputs.settings, planned=plan is not None)
    return DriftReport(tuple(rows))


def callers_own(trainer: Any) -> CallersOwn:
    """Return what the caller of `build_trainer` brought; nothing where somebody else built the Trainer."""
    callbacks = attribute(trainer, "callbacks")
    found = (getattr(row, "own", None) for row in (callbacks if isinstance(callbacks, (list, tuple)) else ()))
    return next((own for own in found if isinstance(own, CallersOwn)), CallersOwn())


def _caller_rows(trainer: Any, own: CallersOwn, known: Collection[str]) -> Iterator[DriftRow]:
    """Record the caller's values of parameters that no setting decides."""
    for name, value in own.trainer_kwargs.items():
        if name not in known and name != "plugins":
            have = attribute(trainer, name)
            yield DriftRow(name, word(value), have if have is UNKNOWN else word(have), "", "caller")


def plain(value: Any) -> Any:
    """Return a plain value as it is, an enum's value, and UNKNOWN for any other object."""
    if isinstance(value, enum.Enum) and value is not UNKNOWN:
        value = value.value
    return value if value is UNKNOWN or isinstance(value, (str, int, float, type(None))) else UNKNOWN


def loader_rows(
    role: str, loader: Any, asked_for: ExecutionSettings, *, planned: bool = True
) -> Iterator[DriftRow]:
    """Compare a loader, or each of several; the rows of several are named `train[0]` or `train[name]`.

    Batches are counted by the batch sampler where a loader has one of its own. Validation may load as
    training does, or as inference does; testing and prediction load as inference does.

    Args:
        planned: the settings are those of a plan, which shares `global_batch_size` out.
    """
    for name, part in each_loader(role, loader):
        yield from _rows_of_one(name, role, part, asked_for, planned)


def _rows_of_one(
    name: str, role: str, loader: Any, asked_for: ExecutionSettings, planned: bool
) -> Iterator[DriftRow]:
    workers, trains = asked_for.num_workers, role == "train"
    fields = ("batch_size", "global_batch_size") if trains else ("inference_batch_size", "batch_size")
    decides = next((field for field in fields if asked(asked_for, field)), fields[0])
    batch = asked_for.batch_size if trains else asked_for.inference_batch_size or asked_for.batch_size
    size = samples_per_batch(loader)
    as_in_training = role == "validation" and size == asked_for.batch_size
    wanted = {
        decides: size if as_in_training else batch,
        "num_workers": UNKNOWN if workers == "auto" else workers,
        "pin_memory": UNKNOWN if asked_for.pin_memory == "auto" else asked_for.pin_memory,
        "persistent_workers": asked_for.persistent_workers if workers else False,
        "prefetch_factor": (asked_for.prefetch_factor or UNKNOWN) if workers else None,
    }
    if decides == "global_batch_size" and not planned:
        wanted[decides] = UNKNOWN
    batch_row = "batch_size" if role in ("train", "validation") else "inference_batch_size"
    for field, want in wanted.items():
        have = plain(size if field == decides else attribute(loader, field))
        shown = batch_row if field == decides else field
        decided_by: Literal["settings", "nobody"] = "settings" if asked(asked_for, field) else "nobody"
        yield DriftRow(f"{name}.{shown}", want, have, field, decided_by)


_REMEDY = "correct what changed it, or ask for what it has"
_REMEDIES = {
    row.name: "build and fit inside `with process_flags(settings):` or `trainer_run`" for row in PROCESS_FLAGS
}


def apply_drift_policy(report: DriftReport, settings: ExecutionSettings) -> None:
    """Raise DriftError, warn, or do nothing about differing rows, as `settings.drift` has it."""
    if not report.differing or settings.drift == "allow":
        return
    findings = []
    for row in report.differing:
        about = f" (field {row.field})" if row.field else ""
        findings.append(
            Finding(
                f"asked for {row.name}={row.requested}, but the Trainer has {row.effective}",
                settings.origin_of(row.field),
                "a Trainer that does what was asked",
                f"{_REMEDIES.get(row.name, _REMEDY)}; set drift=warn to go on{about}",
                code="drift",
                field=row.field,
            )
        )
    if settings.drift == "error":
        raise DriftError.from_findings(findings)
    for finding in findings:
        warnings.warn(finding.render(), UserWarning, stacklevel=2)
