"""Requested beside effective: what a Trainer and its loaders really have, read back and compared."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ptycho_exec.errors import DriftError, Finding
from ptycho_exec.plan import Plan
from ptycho_exec.settings import ExecutionSettings
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
    """One thing that was asked for, beside what the Trainer or loader really has, and its field."""

    name: str
    requested: Any
    effective: Any
    field: str

    @property
    def verdict(self) -> Literal["same", "differs", "unknown"]:
        """Compare; booleans and numbers are different things here, 1 and 1.0 are not."""
        if UNKNOWN in (self.requested, self.effective):
            return "unknown"
        truths = isinstance(self.requested, bool) or isinstance(self.effective, bool)
        same_kind = not truths or type(self.requested) is type(self.effective)
        return "same" if self.requested == self.effective and same_kind else "differs"

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
        loaders: DataLoaders by role: `train`, `validation`, `inference`.
        writes: the run has a directory, so checkpoints and logger are expected.
        profiler: the one that `build_trainer` was given, or None; without it the Trainer's is not compared.
    """
    inputs = TrainerInputs(plan.settings if plan else settings, profiler=profiler)
    rows = [
        DriftRow(row.row or row.name, (row.wanted or row.value)(inputs), plain(row.seen(trainer)), row.field)
        for row in (*TRAINER_PARAMETERS, *CALLBACK_VALUES, *PROCESS_FLAGS)
        if row.seen is not None and (writes or not row.writes)
    ]
    for role, loader in (loaders or {}).items():
        rows += _loader_rows(role, loader, inputs.settings)
    return DriftReport(tuple(rows))


def plain(value: Any) -> Any:
    """Return a plain value as it is, an enum's value, and UNKNOWN for any other object."""
    if isinstance(value, enum.Enum) and value is not UNKNOWN:
        value = value.value
    return value if value is UNKNOWN or isinstance(value, (str, int, float, type(None))) else UNKNOWN


def _loader_rows(role: str, loader: Any, asked: ExecutionSettings) -> Iterator[DriftRow]:
    """Compare a loader; its batches are counted by its batch sampler where it has one of its own."""
    size_field = "inference_batch_size" if role == "inference" else "batch_size"
    workers = asked.num_workers
    wanted = {
        size_field: getattr(asked, size_field) or asked.batch_size,
        "num_workers": UNKNOWN if workers == "auto" else workers,
        "pin_memory": UNKNOWN if asked.pin_memory == "auto" else asked.pin_memory,
        "persistent_workers": asked.persistent_workers if workers else False,
        "prefetch_factor": (asked.prefetch_factor or UNKNOWN) if workers else None,
    }
    size = attribute(loader, "batch_size")
    if size in (None, UNKNOWN):
        size = attribute(attribute(loader, "batch_sampler"), "batch_size")
    for name, want in wanted.items():
        have = size if name == size_field else attribute(loader, name)
        yield DriftRow(f"{role}.{name}", want, plain(have), name)


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
                f"correct what changed it, or ask for what it has; set drift=warn to go on{about}",
                code="drift",
                field=row.field,
            )
        )
    if settings.drift == "error":
        raise DriftError.from_findings(findings)
    for finding in findings:
        warnings.warn(finding.render(), UserWarning, stacklevel=2)
