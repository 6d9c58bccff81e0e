"""What a caller brings to a Trainer: its own callbacks, logger, profiler and values of Trainer parameters.

They act beside the settings and are recorded as the caller's. What a setting decides, too, is refused: one of
the two would be ignored in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ptycho_exec.errors import Finding, SettingsError
from ptycho_exec.fields.lightning_words import BROUGHT_PARAMETERS
from ptycho_exec.fields.model import TrainerTable, malformed
from ptycho_exec.fields.spec import field_specs, format_value
from ptycho_exec.plan import Plan, asked
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.suggestions import nearest
from ptycho_exec.trainer.parameters import TRAINER_PARAMETERS, Parameter


@dataclass(frozen=True, slots=True)
class Rival:
    """A kind of callback that does what a settings field does.

    Attributes:
        kind: the name of Lightning's class; subclasses count.
        field: the settings field.
        beside: values of the field that leave the caller's callback its place; the first is advised.
        rows: rows of the read-back that the caller's callback decides.
    """

    kind: str
    field: str
    beside: tuple[Any, ...]
    rows: tuple[str, ...]


RIVALS: tuple[Rival, ...] = (
    Rival("EarlyStopping", "early_stop_patience", (None,), ("early_stop_patience", "early_stop_monitor")),
    Rival("Timer", "max_time", (None,), ("max_time",)),
    Rival("GradientAccumulationScheduler", "accum_steps", (1,), ("accumulate_grad_batches",)),
    Rival("ProgressBar", "enable_progress_bar", (True, "auto"), ("enable_progress_bar",)),
    Rival("Checkpoint", "enable_checkpointing", (True,), ("enable_checkpointing",)),
    *(
        Rival(kind, field, (None,), ())
        for kind in ("WeightAveraging", "StochasticWeightAveraging")
        for field in ("ema_decay", "swa_epoch_start")
    ),
)

ARGUMENTS = {
    "callbacks": "callbacks",
    "logger": "logger",
    "profiler": "profiler",
    "max_epochs": "max_epochs",
    "default_root_dir": "run_dir",
}
"""Parameters of the Trainer that `build_trainer` takes under a name of its own."""

ROLES = ("train", "validation", "test", "predict", "inference")
"""What loaders are for."""


@dataclass(frozen=True, slots=True)
class CallersOwn:
    """What a caller brings; empty by default."""

    callbacks: tuple[Any, ...] = ()
    logger: Any = None
    profiler: Any = None
    trainer_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def has(self, kind: str) -> bool:
        """Return whether a callback of this kind is among them."""
        return any(is_a(callback, kind) for callback in self.callbacks)

    def brings_plugin(self, kind: str) -> bool:
        """Return whether a plugin of this kind is among them."""
        return any(is_a(plugin, kind) for plugin in self.plugins)

    @property
    def plugins(self) -> tuple[Any, ...]:
        given = self.trainer_kwargs.get("plugins") or ()
        return tuple(given) if isinstance(given, (list, tuple)) else (given,)

    @property
    def rows(self) -> frozenset[str]:
        """Names of rows of the read-back that the caller decides."""
        names = [row for rival in RIVALS if self.has(rival.kind) for row in rival.rows]
        names += [row.row or row.name for row in TRAINER_PARAMETERS if row.name in self.trainer_kwargs]
        names += ["logger"] if self.logger is not None else []
        names += ["precision"] if self.brings_plugin("Precision") else []
        return frozenset(names)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; of an object its class."""
        loggers = self.logger if isinstance(self.logger, (list, tuple)) else (self.logger,)
        parts = {
            "callbacks": [word(callback) for callback in self.callbacks],
            "logger": [word(logger) for logger in loggers if logger is not None],
            "profiler": word(self.profiler),
            "trainer_kwargs": {name: word(value) for name, value in self.trainer_kwargs.items()},
        }
        return {name: part for name, part in parts.items() if part}


def is_a(thing: Any, kind: str) -> bool:
    """Return whether a class of this name is in the ancestry, without importing it."""
    return any(base.__name__ == kind for base in type(thing).__mro__)


def is_plain(value: Any) -> bool:
    """Return whether a value is a number, a word or none, or a list of them."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return isinstance(value, (str, int, float, type(None)))


def word(value: Any) -> Any:
    """Return a plain value as it is, and the name of the class of any other."""
    if isinstance(value, (list, tuple)):
        return [word(item) for item in value]
    return value if is_plain(value) else type(value).__name__


def require_kinds(
    settings: Any,
    *,
    module: Any = None,
    callbacks: Any = (),
    logger: Any = None,
    profiler: Any = None,
    trainer_kwargs: Any = None,
    loaders: Any = None,
) -> None:
    """Refuse arguments that are not what their name says, before anything is built with them.

    Raises:
        SettingsError: with every such argument.
    """
    found = []
    if not isinstance(settings, ExecutionSettings):
        fix = "pass ExecutionSettings(overrides=...)" if isinstance(settings, Mapping) else _MAKE
        found.append(_wrong_kind("settings", settings, "ExecutionSettings", fix))
    if isinstance(module, (str, Mapping)):
        found.append(_wrong_kind("module", module, "a LightningModule, or its class", "pass the class"))
    if not isinstance(callbacks, (list, tuple)):
        found.append(_wrong_kind("callbacks", callbacks, "a list", "pass callbacks=[...]"))
    else:
        found += [
            _no_object("callbacks", item, "Callback") for item in callbacks if not is_a(item, "Callback")
        ]
    loggers = logger if isinstance(logger, (list, tuple)) else [logger]
    found += [_no_object("logger", item, "Logger") for item in loggers if not _is_logger(item)]
    if profiler is not None and not is_a(profiler, "Profiler"):
        found.append(_no_object("profiler", profiler, "Profiler"))
    for name, given in {"trainer_kwargs": trainer_kwargs, "loaders": loaders}.items():
        if not isinstance(given, (Mapping, type(None))):
            fix = f'pass {name}={{"{"train" if name == "loaders" else "min_epochs"}": ...}}'
            found.append(_wrong_kind(name, given, "a mapping", fix))
    if isinstance(loaders, Mapping):
        found += [_no_role(name) for name in loaders if name not in ROLES]
    if found:
        raise SettingsError.from_findings(found)


_MAKE = "pass ExecutionSettings()"


def _is_logger(item: Any) -> bool:
    return item is None or isinstance(item, bool) or is_a(item, "Logger")


SETTINGS_FOR = {"logger": "logger_backend", "profiler": "profiler"}
"""Arguments that are objects, and the settings that take a word for the same."""


def _no_object(name: str, given: Any, kind: str) -> Finding:
    """Report what is no object of a class of Lightning; a word of a setting is sent there."""
    fix = f"pass {given.__name__}()" if isinstance(given, type) else f"pass a {kind}"
    setting = SETTINGS_FOR.get(name, "")
    if setting and not malformed({setting: given}):
        fix = f"set the setting {setting}={given}, or {fix}"
    return _wrong_kind(name, given, f"a {kind} of Lightning", fix)


def _no_role(name: Any) -> Finding:
    near = next((role for role in ROLES if role.startswith(str(name)[:3])), "one of them")
    what, expected = f"loaders: there is no role {name!r}", f"one of: {', '.join(ROLES)}"
    return Finding(what, "argument loaders=", expected, f"write {near}", code="unknown-name")


def _wrong_kind(name: str, given: Any, expected: str, fix: str) -> Finding:
    what = f"the class {given.__name__}" if isinstance(given, type) else f"of type {type(given).__name__}"
    return Finding(f"{name} is {what}", f"argument {name}=", expected, fix, code="bad-value", field=name)


def require_no_rivals(settings: ExecutionSettings, own: CallersOwn) -> None:
    """Refuse what both a setting and the caller decide, and names that the Trainer does not have.

    Raises:
        SettingsError: with every such thing.
    """
    found = [*_rival_callbacks(settings, own), *_rival_logger(settings, own), *_rival_kwargs(settings, own)]
    if found:
        raise SettingsError.from_findings(found)


def _rival_callbacks(settings: ExecutionSettings, own: CallersOwn) -> Iterator[Finding]:
    for rival in RIVALS:
        value = getattr(settings, rival.field)
        if own.has(rival.kind) and asked(settings, rival.field) and value not in rival.beside:
            yield _both(settings, rival.field, f"the caller's {rival.kind}", rival.beside[0])


def _rival_logger(settings: ExecutionSettings, own: CallersOwn) -> Iterator[Finding]:
    given = settings.logger_backend is not None and asked(settings, "logger_backend")
    if own.logger is not None and given:
        yield _both(settings, "logger_backend", "the caller's logger", None)


def _both(settings: ExecutionSettings, name: str, other: str, advised: Any) -> Finding:
    return Finding(
        f"{name}={format_value(getattr(settings, name))} and {other} decide the same",
        settings.origin_of(name),
        "one of them",
        f"set {name}={format_value(advised)}, or leave {other.removeprefix('the ')} out",
        code="decided-twice",
        field=name,
    )


def _rival_kwargs(settings: ExecutionSettings, own: CallersOwn) -> Iterator[Finding]:
    rows = {row.name: row for row in TRAINER_PARAMETERS}
    for name, value in own.trainer_kwargs.items():
        if name not in rows:
            yield _unknown(name, tuple(rows))
        elif name in ARGUMENTS:
            fix = f"pass it as {ARGUMENTS[name]}="
            yield Finding(f"trainer_kwargs: {name} has an argument of its own", fix=fix, code="own-argument")
        elif rows[name].field and (is_plain(value) or asked(settings, rows[name].field)):
            yield _decided_by_field(rows[name], value, settings)
        elif rows[name].table and malformed({name: value}, TrainerTable):
            what, expected = (
                f"{name}={word(value)!r} is not allowed",
                field_specs(TrainerTable)[name].expected(),
            )
            yield Finding(what, "argument trainer_kwargs=", expected, "write another value", code="bad-value")


def require_lengths(plan: Plan, own: CallersOwn, max_epochs: int | None) -> None:
    """Refuse a training that is to be longer than it may be: Lightning would end it in silence.

    Raises:
        SettingsError: `min_epochs` is more than `max_epochs`, or `min_steps` more than `max_steps`.
    """
    settings, found = plan.settings, []
    for least, most, limit in (
        ("epochs", "max_epochs", max_epochs),
        ("steps", "max_steps", settings.max_steps),
    ):
        brought = f"min_{least}" in own.trainer_kwargs
        given = (own.trainer_kwargs if brought else settings.trainer).get(f"min_{least}")
        if settings.fast_dev_run or given is None or limit is None or not 0 <= limit < given:
            continue
        name = f"min_{least}" if brought else f"trainer.min_{least}"
        where = "argument trainer_kwargs=" if brought else settings.origin_of(name)
        places = dict.fromkeys((where, settings.origin_of(most) or "the call"))
        found.append(
            Finding(
                f"{name}={given} is more than {most}={limit}",
                " and ".join(places),
                f"at most {limit}",
                f"set {name}={limit}, or {most}={given}",
                code="conflict",
                field=name.partition(".")[0] if not brought else "",
            )
        )
    if found:
        raise SettingsError.from_findings(found)


def _unknown(name: str, names: tuple[str, ...]) -> Finding:
    near = nearest(name, names, most=1)
    instead = BROUGHT_PARAMETERS.get(name)
    return Finding(
        f"trainer_kwargs: lightning.Trainer has no parameter {name}",
        expected="a parameter of lightning.Trainer",
        fix=f"remove it ({instead})" if instead else f"write {near[0]}" if near else "remove it",
        code="unknown-name",
    )


def _decided_by_field(row: Parameter, value: Any, settings: ExecutionSettings) -> Finding:
    fix = f"set the setting {row.field} instead"
    if not is_plain(value):
        fix = f"remove the setting {row.field}, or pass no object for {row.name}"
    return Finding(
        f"trainer_kwargs: {row.name} is decided by the setting {row.field} ({row.why})",
        settings.origin_of(row.field),
        fix=fix,
        code="decided-twice",
        field=row.field,
    )
