"""`ptycho-exec`: what the settings are, where they came from, whether they can run here, and their docs."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ptycho_exec import progress
from ptycho_exec.cli.completion import COMPLETION
from ptycho_exec.cli.flags import (
    ANNOTATE,
    JSON,
    Command,
    Parser,
    add_commands,
    annotate,
    argument,
    flags_given,
    run,
    switch,
)
from ptycho_exec.cli.launches import (
    Costs,
    Job,
    as_if_started,
    bytes_of,
    checked_option,
    checked_time,
    exported,
    resumed,
    script,
    tasks_asked,
    time_of,
    whole_number,
)
from ptycho_exec.errors import ANNOTATIONS, Finding, SettingsError, UserError, redact
from ptycho_exec.fields.model import Effect
from ptycho_exec.fields.spec import field_specs, format_value
from ptycho_exec.machine.ranks import is_rank_zero
from ptycho_exec.settings import ExecutionSettings, ResolvedSettings
from ptycho_exec.sources.discovery import Reader, Request
from ptycho_exec.sources.explain import (
    COMMAND_LINE,
    changed,
    checked_name,
    explain_json,
    rows_of,
    shown,
    table,
)
from ptycho_exec.sources.origins import Origin, Resolution
from ptycho_exec.sources.profiles import find_profile, profile_layer, profile_names
from ptycho_exec.sources.resolve import profile_conflicts, resolve, resolve_profile

if TYPE_CHECKING:
    from ptycho_exec.plan import Plan
    from ptycho_exec.record import Intent

JSON_VERSION = 1
"""Version of what `--json` prints: it grows when a key is renamed or removed, not when one is added."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ptycho-exec`; return its exit code."""
    return run(build_parser(), argv, lambda args: args.handler(args))


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(prog="ptycho-exec", description="Execution settings of a ptychographic reconstruction.")
    add_commands(parser, _COMMANDS)
    return parser


def resolve_from(
    args: argparse.Namespace,
    factory_defaults: dict[str, Any] | None = None,
    model: type[ResolvedSettings] = ExecutionSettings,
) -> Resolution:
    """Resolve the settings that a command line asks for, with the environment and the files around it."""
    return resolve(
        Request(
            model,
            flags=flags_given(args, model),
            profile=args.profile,
            settings_file=args.settings,
            factory_defaults=factory_defaults or {},
        )
    )


# --- show and explain ------------------------------------------------------------------------------------


def show(args: argparse.Namespace, model: type[ResolvedSettings] = ExecutionSettings) -> int:
    """Print every value with its origin, or what Trainer and loaders would be given."""
    resolution = resolve_from(args, model=model)
    settings = model.from_resolution(resolution)
    names = changed(settings.origins) if args.changed else list(field_specs(model))
    notes = list(resolution.notices)
    if (args.trainer_kwargs or args.loader_kwargs) and isinstance(settings, ExecutionSettings):
        from ptycho_exec.machine.facts import MachineFacts
        from ptycho_exec.plan import resolve_plan
        from ptycho_exec.trainer.build import described_kwargs, inference_loader_kwargs, train_loader_kwargs

        plan = resolve_plan(settings, MachineFacts.probe())
        kwargs = {"trainer": described_kwargs(plan)} if args.trainer_kwargs else {}
        if args.loader_kwargs:
            kwargs["train_loader"] = train_loader_kwargs(settings, plan)
            kwargs["inference_loader"] = inference_loader_kwargs(settings, plan)
        for finding in (*plan.problems, *plan.notices):
            print(f"{'not here' if finding.level == 'error' else 'note'}: {finding.what}", file=sys.stderr)
        print(json.dumps(redact(kwargs), indent=2, default=str))
    elif args.format:
        from ptycho_exec.cli.freeze import freeze
        from ptycho_exec.record import names_of

        if isinstance(settings, ExecutionSettings):
            names = [name for name in names_of(settings) if name in names]
        text, left_out = freeze(settings, args.format, names, show_secrets=args.show_secrets)
        print(text, end="")
        notes += [Finding(sentence, level="note", code="left-out") for sentence in left_out]
    elif args.json:
        print(json.dumps(_report(settings, names, notes), indent=2))
        return 0
    else:
        specs, origins = field_specs(model), settings.origins
        rows = [row for n in names for row in rows_of(specs[n], vars(settings)[n], origins[n])]
        print("\n".join(table(rows)) if rows else "every value is its default")
    _print_notes(notes)
    return 0


def _report(settings: ResolvedSettings, names: Sequence[str], notes: Sequence[Finding]) -> dict[str, Any]:
    """Return what `--json` prints about these fields."""
    values = settings.model_dump(mode="json", include=set(names))
    return {
        "schema_version": JSON_VERSION,
        "settings": explain_json(values, settings.origins),
        "notes": [note.to_json() for note in notes],
    }


def _print_notes(notes: Sequence[Finding]) -> None:
    for note in notes:
        print(f"note: {note.what}", file=sys.stderr)


def explain(args: argparse.Namespace, model: type[ResolvedSettings] = ExecutionSettings) -> int:
    """Print everything about one field, or, without a name, about every value that is not its default."""
    asked = [checked_name(args.field, model, where=COMMAND_LINE)] if args.field else []
    resolution = resolve_from(args, model=model)
    settings = model.from_resolution(resolution)
    names = asked or changed(settings.origins)
    if args.json:
        names = list(dict.fromkeys(name.partition(".")[0] for name in names))
        searched = [
            {"kind": file.kind.value, "path": redact(file.path), "found": file.found}
            for file in resolution.searched
        ]
        report = _report(settings, names, resolution.notices)
        print(json.dumps({**report, "profile": resolution.profile, "searched": searched}, indent=2))
        return 0
    for name in names:
        print(settings.explain(name), end="\n\n")
    if resolution.profile:
        print(f"profile {resolution.profile}, asked for by {resolution.profile_asked_by}")
    print("looked for, highest precedence first:")
    for file in resolution.searched:
        print(f"  {'found ' if file.found else 'absent'}  {file.kind}: {redact(file.path)}")
    _print_notes(resolution.notices)
    return 0


# --- check, facts, diff ----------------------------------------------------------------------------------


def check(args: argparse.Namespace) -> int:
    """Report whether these settings can run on this machine, or on the one whose facts are given.

    With `--probe` one batch is trained and predicted too.

    Returns:
        0 when it can, 2 when the settings cannot be honored, 1 when the trial failed.
    """
    _refuse_wrong_trials(args)
    plain = not args.json and not args.annotations
    try:
        resolution = resolve_from(args)
        settings = ExecutionSettings.from_resolution(resolution)
        if settings.enable_progress_bar is False:
            progress.hide()
        _refuse_conflicts(Request(ExecutionSettings, settings_file=args.settings))
    except SettingsError as error:
        if not plain or args.debug or not is_rank_zero():
            raise
        print("\n".join(map(_fail_line, error.findings)))
        annotate(error)
        return error.exit_code
    plan = _plan_of(args, settings)
    costs = Costs(plan, None if args.scan is None else bytes_of(args.scan), args.parameters)
    problems = [_placed(problem, settings.origins.get(problem.field)) for problem in plan.problems]
    notes = list(resolution.notices)
    if problems and args.probe is not None:
        text = "probe was not run, because of the problems above"
        notes.append(Finding(text, level="note", code="not-tried"))
    trial = [] if problems else _tried(args, settings)
    steps = trial if problems else [*costs.findings(), *trial]
    failed = [_placed(step, settings.origins.get(step.field)) for step in steps if step.level == "error"]
    findings = [*problems, *failed]
    blocked = (SettingsError if problems else UserError).from_findings(findings) if findings else None
    if blocked is not None and not is_rank_zero():
        raise blocked
    if args.json:
        verdict = _verdict(args, plan, costs, findings, notes, trial)
        print(json.dumps(verdict, indent=2, default=str))
    elif plain:
        print("\n".join([*map(_fail_line, problems), *_check_lines(plan, notes, steps)]))
    elif args.annotations:
        placed = [_placed(notice, settings.origins.get(notice.field)) for notice in plan.notices]
        text = ANNOTATIONS[args.annotations]([*findings, *notes, *placed])
        print(text, end="\n" if text else "")
    if blocked is None:
        return 0
    if not args.annotations:
        annotate(blocked)
    return blocked.exit_code


def require_launch(settings: ExecutionSettings) -> None:
    """Refuse, before anything slow is imported, processes that were not started as these settings need.

    Raises:
        SettingsError: what cannot work, and the line that starts them as it should be.
    """
    from ptycho_exec.machine.facts import MachineFacts
    from ptycho_exec.plan import resolve_launch

    resolve_launch(settings, MachineFacts.probe(ask_torch=False)).raise_if_blocked()


def _given(args: argparse.Namespace, flag: str) -> bool:
    return getattr(args, flag.removeprefix("--").replace("-", "_")) is not None


def _plan_of(args: argparse.Namespace, settings: ExecutionSettings) -> Plan:
    """Return the plan for the machine that is asked about; torch is not asked where nothing could start."""
    from ptycho_exec.machine.facts import MachineFacts
    from ptycho_exec.plan import LAUNCH_CODES, ModuleTraits, resolve_launch, resolve_plan

    launch = args.nodes, args.ntasks_per_node
    here = args.facts is None
    facts = MachineFacts.probe(ask_torch=False) if here else MachineFacts.load(args.facts)
    started = resolve_launch(settings, as_if_started(facts, *launch))
    if here and any(problem.code in LAUNCH_CODES for problem in started.problems):
        return started
    facts = as_if_started(MachineFacts.probe() if here else facts, *launch)
    return resolve_plan(settings, facts, ModuleTraits(train_samples=args.samples))


def slurm(args: argparse.Namespace) -> int:
    """Print a job script that starts a command under SLURM, from settings and the facts of a node."""
    from ptycho_exec.machine.facts import MachineFacts
    from ptycho_exec.plan import resolve_plan

    resolution = resolve_from(args)
    settings = ExecutionSettings.from_resolution(resolution)
    facts = MachineFacts.load(args.facts) if args.facts else MachineFacts.probe()
    nodes = args.nodes or settings.num_nodes
    tasks = args.ntasks_per_node or tasks_asked(settings, facts)
    plan = resolve_plan(settings, as_if_started(facts, nodes, tasks))
    plan.raise_if_blocked()
    job = Job(
        args.words,
        args.time or time_of(settings.max_time),
        args.sbatch or (),
        exported(settings, args.profile, args.settings),
    )
    print(script(plan, job), end="")
    _print_notes([*resolution.notices, *plan.notices])
    if resumed(args.words) != args.words:
        text = "--resume auto was added, so that a requeued job goes on in its directory"
        _print_notes([Finding(text, level="note", code="launch-cost")])
    return 0


def _refuse_wrong_trials(args: argparse.Namespace) -> None:
    """Raise what contradicts in `--probe`, `--test`, and flags about another start.

    Raises:
        SettingsError: with what to leave out.
    """
    if args.test is not None and args.probe is None:
        fix = "give --probe, or leave out --test"
        raise SettingsError("--test is part of --probe", where="command line", fix=fix)
    elsewhere = [flag for flag in ("--facts", "--nodes", "--ntasks-per-node") if _given(args, flag)]
    if args.probe is not None and elsewhere:
        what = f"--probe runs a batch on this machine, {elsewhere[0]} asks about another start"
        raise SettingsError(what, where="command line", fix="choose one of the two")


def _tried(args: argparse.Namespace, settings: ExecutionSettings) -> list[Finding]:
    """Return the steps of the trial that `--probe` asks for; none without it."""
    from ptycho_exec.cli import probe

    if args.probe is None:
        return []
    report = (lambda text: print(text, end="", file=sys.stderr)) if args.debug else None
    validation = None if args.test is None else _scan(args.test)
    return list(probe.run_trial(probe.Trial(settings, _scan(args.probe), validation), say=report))


def _verdict(
    args: argparse.Namespace,
    plan: Plan,
    costs: Costs,
    findings: Sequence[Finding],
    notes: Sequence[Finding],
    trial: Sequence[Finding],
) -> dict[str, Any]:
    """Return what `check --json` prints."""
    from ptycho_exec.cli import probe

    return {
        "schema_version": JSON_VERSION,
        "can_run": not findings,
        "findings": [finding.to_json() for finding in findings],
        "notes": [note.to_json() for note in notes],
        **plan.to_json(),
        "launch": costs.to_json(),
        **({} if args.probe is None else {"probe": [probe.to_json(step) for step in trial]}),
    }


def _refuse_conflicts(request: Request) -> None:
    """Raise what contradicts in profiles of the files here, also those that nobody asked for.

    Raises:
        SettingsError: with one finding per contradiction.
    """
    conflicts = list(profile_conflicts(request))
    if conflicts:
        raise SettingsError.from_findings(conflicts)


def _scan(word: str) -> str:
    """Return the absolute path of a scan: the trial runs in a folder of its own."""
    from ptycho_exec.cli.probe import SIMULATED

    if word == SIMULATED:
        return word
    path = Path(word).absolute()
    if not path.exists():
        fix = "correct the path, or leave it out for a simulated scan"
        raise UserError(f"scan not found: {redact(word)}", where="command line", fix=fix)
    return str(path)


def _placed(finding: Finding, origin: Origin | None) -> Finding:
    if origin is None or not origin.file:
        return finding
    return replace(finding, file=origin.file, line=origin.line or 0)


def _fail_line(finding: Finding) -> str:
    place = f" ({finding.where})" if finding.where else ""
    return f"FAIL  {finding.what}{place} -> {finding.fix or f'expected {finding.expected}'}"


def _check_lines(plan: Plan, notes: Sequence[Finding], steps: Sequence[Finding]) -> Iterator[str]:
    from ptycho_exec.cli.probe import line

    failed = {problem.field for problem in plan.problems}
    yield from (f"note  {note.what}" for note in notes)
    for notice in plan.notices:
        yield f"note  {notice.field}: {notice.what}"
    chosen = [
        ("OK  ", name, shown(row.value), row.reason)
        for name, row in plan.effective.items()
        if name not in failed and row.changed
    ]
    yield from table(chosen) if chosen else ()
    asked = [
        f"{name}={shown(row.value)}"
        for name, row in plan.effective.items()
        if name not in failed and not row.changed and name in changed(plan.requested.origins)
    ]
    if asked:
        yield f"OK    as asked: {', '.join(asked)}"
    if not failed:
        yield f"OK    effective batch: {plan.totals}"
    yield from map(line, steps)
    machine = plan.facts.hostname or "this machine"
    problems = [*plan.problems, *(step for step in steps if step.level == "error")]
    noted = [*notes, *plan.notices, *(step for step in steps if step.level == "note")]
    counts = f"{_count(problems, 'problem')}, {_count(noted, 'note')}"
    yield f"{'cannot' if problems else 'can'} run on {machine}: {counts}"


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def facts(_: argparse.Namespace) -> int:
    """Print the facts of this machine as JSON, for `check --facts` elsewhere."""
    from ptycho_exec.machine.facts import MachineFacts

    print(MachineFacts.probe().to_json())
    return 0


def diff(args: argparse.Namespace) -> int:
    """Compare two settings: files, manifests or run directories, `profile:NAME`, or `env` for this place.

    Returns 1 when they differ, as diff(1) does.
    """
    from ptycho_exec.record import fingerprint

    a, b = side_of(args.a), side_of(args.b)
    _print_notes(list(dict.fromkeys([*a.notices, *b.notices])))
    effects = {**a.effects, **b.effects}
    rows = [
        (name, a.shown(name), b.shown(name), effect)
        for name, effect in effects.items()
        if a.known(name) != b.known(name) and args.only in (None, effect)
    ]
    if args.json:
        keys = ("field", "a", "b", "effect")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
    else:
        names = (redact(args.a), redact(args.b))
        print("\n".join(table([("field", *names, "effect"), *rows])) if rows else "no difference")
        left, right = (fingerprint(side.numerics())[:12] for side in (a, b))
        if left == right:
            print(f"same numerics, so the same results can be expected (fingerprint {left})")
        else:
            print(f"numerics differ, so results can differ (fingerprints {left}, {right})")
    return 1 if rows else 0


class Side(NamedTuple):
    """What one word of `diff` names: plain values, the effect of each, and notes."""

    values: Mapping[str, Any]
    effects: Mapping[str, str]
    notices: tuple[Finding, ...] = ()

    def known(self, name: str) -> Any:
        return redact(self.values[name]) if name in self.values else _ABSENT

    def shown(self, name: str) -> str:
        return shown(self.values[name]) if name in self.values else "(absent)"

    def numerics(self) -> dict[str, Any]:
        return {name: value for name, value in self.values.items() if self.effects[name] == Effect.NUMERICS}


_ABSENT = object()


def side_of(what: str) -> Side:
    """Return what a word names; of a manifest that names a subclass, the fields of that class too."""
    from ptycho_exec.record import values_of

    path = Path(what) / "manifest.json" if Path(what).is_dir() else Path(what)
    found = _intent(path) if path.is_file() else None
    effects = {name: spec.effect.value for name, spec in field_specs().items()}
    if found is None or not found.class_name:
        settings = settings_of(what)
        return Side(values_of(settings), effects, settings.notices)
    defaults = values_of(ExecutionSettings.from_values({}))
    return Side(defaults | found.values, {**dict.fromkeys(found.values, ""), **effects, **found.effects})


def settings_of(what: str) -> ExecutionSettings:
    """Return the settings that a word names: `env`, `profile:NAME`, a run, a manifest or a settings file."""
    if what == "env":
        return ExecutionSettings()
    if what.startswith("profile:"):
        return ExecutionSettings.from_resolution(
            resolve_profile(ExecutionSettings, what.removeprefix("profile:"))
        )
    path = Path(what) / "manifest.json" if Path(what).is_dir() else Path(what)
    if not path.is_file():
        raise UserError(
            f"there is no {redact(what)} to compare",
            where="command line",
            expected="a settings file, a manifest, a run directory, profile:NAME, or env for this place",
            fix="correct the name",
        )
    found = _intent(path)
    if found is not None:
        return ExecutionSettings.from_values(found.values, place=str(path))
    with tempfile.TemporaryDirectory() as nowhere:
        request = Request(ExecutionSettings, settings_file=path.resolve(), environ={}, cwd=Path(nowhere))
        return ExecutionSettings.from_resolution(resolve(request))


def _intent(path: Path) -> Intent | None:
    """Return the settings in a run's manifest; None for another file."""
    from ptycho_exec.record import intent_of

    if path.suffix.lower() != ".json":
        return None
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return intent_of(data) if isinstance(data, dict) and "manifest_version" in data else None


# --- what is generated -----------------------------------------------------------------------------------


def schema(args: argparse.Namespace, model: type[ResolvedSettings] = ExecutionSettings) -> int:
    """Print the JSON schema of a settings file, or that of the table in pyproject.toml."""
    from ptycho_exec.cli.reference import schema_text

    print(schema_text(model, table=args.table), end="")
    return 0


def init(args: argparse.Namespace, model: type[ResolvedSettings] = ExecutionSettings) -> int:
    """Write a starter settings file, every field commented out at its default, and its schema."""
    from ptycho_exec.cli.reference import package_name, schema_text, starter_toml

    path = Path(args.path)
    if path.suffix != ".toml":
        raise UserError(f"{path} is no TOML file", expected="a name that ends with .toml", fix="rename it")
    if path.exists():
        raise UserError(f"{path} exists already", expected="a new file", fix="choose another name")
    schema_path = path.with_name(f"{package_name(model)}.schema.json")
    try:
        schema_path.write_text(schema_text(model), "utf-8")
        path.write_text(starter_toml(f"./{schema_path.name}", model), "utf-8")
    except OSError as error:
        fix = "choose a folder that exists and that you may write to"
        raise UserError(f"cannot write {path}: {error.strerror}", where=str(path.parent), fix=fix) from None
    print(f"wrote {path} and {schema_path}")
    return 0


def docs(args: argparse.Namespace) -> int:
    """Regenerate schema, settings reference and `.env.example` of a checkout."""
    from ptycho_exec.cli.reference import write_generated

    for path in write_generated(Path(args.root)):
        print(f"wrote {path}")
    return 0


def profiles(args: argparse.Namespace, model: type[ResolvedSettings] = ExecutionSettings) -> int:
    """List the profiles that can be asked for here, each with its sentence and values."""
    reader = Reader(Request(model))
    found = [find_profile(name, reader, []) for name in profile_names(reader)]
    layer = profile_layer(reader)
    errors = [finding for finding in (*reader.findings, *layer.findings) if finding.level == "error"]
    errors += profile_conflicts(Request(model))
    if errors:
        raise SettingsError.from_findings(errors)
    rows: list[dict[str, Any]] = [
        {
            "name": profile.name,
            "extends": profile.extends,
            "description": profile.description,
            "values": {name: redact(o.value) for name, o in profile.entries(reader.specs).items()},
            "file": profile.document.path,
        }
        for profile in found
        if profile is not None
    ]
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        base = f" (extends {row['extends']})" if row["extends"] else ""
        values = ", ".join(f"{name}={format_value(value)}" for name, value in row["values"].items())
        print(f"{row['name']}{base}: {row['description']}\n    {values}\n    {row['file']}")
    return 0


_LAUNCH_OPTIONS = [
    argument("--facts", metavar="FILE", help="facts of another machine"),
    argument("--nodes", type=whole_number, metavar="N", help="as if srun had started it on so many nodes"),
    argument("--ntasks-per-node", type=whole_number, metavar="N", help="with so many tasks on each of them"),
]
_scan_option = partial(argument, nargs="?", const="simulated", metavar="SCAN")
SHOW_OPTIONS = [
    JSON,
    ANNOTATE,
    switch("--changed", "only values that are not the default"),
    argument(
        "--format",
        choices=("toml", "env", "flags", "json"),
        help="write the values so that loading them gives the same settings",
    ),
    switch("--show-secrets", "with --format: write credentials too"),
]
EXPLAIN_OPTIONS = [
    argument("field", nargs="?", help="a field; without it, every value that is not the default"),
    JSON,
    ANNOTATE,
]
SCHEMA_OPTIONS = [switch("--table", "that of the table in pyproject.toml instead")]
_COMMANDS = (
    Command(
        show,
        "print every value and where it came from",
        [
            *SHOW_OPTIONS,
            switch("--trainer-kwargs", "print the Trainer's arguments"),
            switch("--loader-kwargs", "print the loaders' arguments"),
        ],
        settings=True,
    ),
    Command(
        explain,
        "print everything about a field: value, origin, what it shadowed, where it was looked for",
        EXPLAIN_OPTIONS,
        settings=True,
    ),
    Command(
        check,
        "report whether these settings can run on this machine or another",
        [
            JSON,
            ANNOTATE,
            *_LAUNCH_OPTIONS,
            argument("--samples", type=whole_number, metavar="N", help="training samples, for the steps"),
            argument("--scan", type=Path, metavar="SCAN", help="a scan, for the memory of its processes"),
            argument(
                "--parameters", type=whole_number, metavar="N", help="of the network, for what is exchanged"
            ),
            _scan_option(
                "--probe", help="also fit and predict one batch of this scan, or of a simulated one"
            ),
            _scan_option("--test", help="with --probe: validate too, on this scan or on a simulated one"),
        ],
        settings=True,
    ),
    Command(facts, "print the facts of this machine as JSON"),
    Command(
        slurm,
        "print a job script for SLURM that runs a command with these settings",
        [
            *_LAUNCH_OPTIONS,
            argument(
                "--time", type=checked_time, help="of the job [max_time and ten minutes more, or a day]"
            ),
            argument(
                "--sbatch",
                type=checked_option,
                action="append",
                metavar="OPTION",
                help="another option of sbatch, as --sbatch=--partition=gpu",
            ),
            argument("words", nargs="*", metavar="COMMAND", help="what each task runs, after --"),
        ],
        usage="[--facts FILE] [--nodes N] [-- COMMAND]",
        settings=True,
    ),
    Command(
        diff,
        "compare two settings: FILE, RUN, profile:NAME or env; exit code 1 when they differ",
        [
            argument("a", metavar="A", help="file, manifest, run directory, profile:NAME or env"),
            argument("b", metavar="B", help="the other one"),
            argument("--only", choices=[str(effect) for effect in Effect], help="only fields of this effect"),
            JSON,
            ANNOTATE,
        ],
    ),
    Command(
        schema,
        "print the JSON schema of a settings file",
        SCHEMA_OPTIONS,
    ),
    Command(
        init,
        "write a starter settings file",
        [argument("path", nargs="?", default="ptycho_exec.toml", help="where to write it")],
    ),
    Command(
        docs,
        "regenerate schema, settings reference and .env.example",
        [argument("--root", default=".", metavar="DIR", help="top of the checkout")],
    ),
    COMPLETION,
    Command(profiles, "list the profiles that can be asked for here", [JSON, ANNOTATE]),
)
