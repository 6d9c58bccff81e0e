"""`ptycho-exec`: what the settings are, where they came from, whether they can run here, and their docs."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_exec.cli.flags import (
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
from ptycho_exec.errors import Finding, SettingsError, UserError, redact
from ptycho_exec.fields.choices import CHOICES
from ptycho_exec.fields.model import Effect
from ptycho_exec.fields.spec import FieldSpec, field_specs, format_value
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.discovery import Reader, Request
from ptycho_exec.sources.origins import Kind, Origin, Resolution
from ptycho_exec.sources.profiles import find_profile, profile_layer, profile_names
from ptycho_exec.sources.resolve import profile_conflicts, resolve, resolve_profile
from ptycho_exec.sources.suggestions import unknown_name

if TYPE_CHECKING:
    from ptycho_exec.plan import Plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ptycho-exec`; return its exit code."""
    return run(build_parser(), argv, lambda args: args.handler(args))


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(prog="ptycho-exec", description="Execution settings of a ptychographic reconstruction.")
    add_commands(parser, _COMMANDS)
    return parser


def resolve_from(args: argparse.Namespace, factory_defaults: dict[str, Any] | None = None) -> Resolution:
    """Resolve the settings that a command line asks for, with the environment and the files around it."""
    return resolve(
        Request(
            flags=flags_given(args),
            profile=args.profile,
            settings_file=args.settings,
            factory_defaults=factory_defaults or {},
        )
    )


# --- show and explain ------------------------------------------------------------------------------------


def show(args: argparse.Namespace) -> int:
    """Print every value with its origin, or what Trainer and loaders would be given."""
    resolution = resolve_from(args)
    settings = ExecutionSettings.from_resolution(resolution)
    if args.trainer or args.loader:
        from ptycho_exec.trainer.build import inference_loader_kwargs, train_loader_kwargs, trainer_kwargs

        kwargs = {"trainer": trainer_kwargs(settings)} if args.trainer else {}
        if args.loader:
            kwargs["train_loader"] = train_loader_kwargs(settings)
            kwargs["inference_loader"] = inference_loader_kwargs(settings)
        print(json.dumps(kwargs, indent=2, default=str))
        return 0
    if args.json:
        print(json.dumps(settings_json(settings), indent=2))
        return 0
    rows = [
        (name, shown(getattr(settings, name)), settings.origins[name].describe())
        for name in field_specs()
        if not args.changed or settings.origins[name].kind is not Kind.DEFAULT
    ]
    print("\n".join(table(rows)) if rows else "every value is its default")
    _print_notices(resolution)
    return 0


def shown(value: Any) -> str:
    """Write a value for a line of a terminal: credentials hidden, control characters as escapes."""
    text = format_value(redact(value))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def settings_json(settings: ExecutionSettings) -> dict[str, Any]:
    """Return field -> value, origin and what it shadowed, as plain JSON data with credentials hidden."""
    return {
        name: {
            "value": redact(value),
            "origin": settings.origins[name].to_json(),
            "shadowed": [{"value": redact(o.value), **o.to_json()} for o in settings.origins[name].shadowed],
        }
        for name, value in settings.model_dump(mode="json").items()
    }


def _print_notices(resolution: Resolution) -> None:
    for notice in resolution.notices:
        print(f"note: {notice.what}", file=sys.stderr)


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield rows as text with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        yield "  ".join(
            [cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[-1]]
        ).rstrip()


def explain(args: argparse.Namespace) -> int:
    """Print everything about one field, or, without a name, about every value that is not its default."""
    if args.field and args.field not in field_specs():
        finding = unknown_name(args.field, tuple(field_specs()), where="command line")
        raise SettingsError.from_findings([finding])
    resolution = resolve_from(args)
    settings = ExecutionSettings.from_resolution(resolution)
    names = [args.field] if args.field else _changed(settings)
    if args.json:
        chosen = settings_json(settings)
        print(json.dumps({name: chosen[name] for name in names}, indent=2))
        return 0
    for name in names:
        print("\n".join(_explained(field_specs()[name], settings, resolution.notices)))
        print()
    if resolution.profile:
        print(f"profile {resolution.profile}, asked for by {resolution.profile_asked_by}")
    print("looked for, highest precedence first:")
    for file in resolution.searched:
        print(f"  {'found ' if file.found else 'absent'}  {file.kind}: {redact(file.path)}")
    _print_notices(resolution)
    return 0


def _changed(settings: ExecutionSettings) -> list[str]:
    return [name for name in field_specs() if settings.origins[name].kind is not Kind.DEFAULT]


def _explained(spec: FieldSpec, settings: ExecutionSettings, notices: Sequence[Finding]) -> Iterator[str]:
    origin = settings.origins[spec.name]
    yield f"{spec.name} = {shown(getattr(settings, spec.name))}"
    yield f"  from      {_given_as(origin)}"
    for other in origin.shadowed:
        yield f"  shadows   {shown(other.value)} from {_given_as(other)}"
    for notice in notices:
        if notice.field == spec.name:
            yield f"  unset     {notice.what}"
    yield f"  meaning   {spec.sentence}"
    yield f"  accepts   {spec.expected()}"
    meanings = [(f"    {word}", meaning) for word, meaning in CHOICES.get(spec.name, {}).items()]
    yield from table(meanings) if meanings else ()
    yield f"  effect    {spec.effect.value}"
    yield f"  set with  {spec.variable}, {spec.flag}, or {spec.name} = ... in a file"


def _given_as(origin: Origin) -> str:
    raw = redact(origin.raw) if origin.raw is not None else None
    given = f", given as {raw!r}" if raw is not None and raw != format_value(redact(origin.value)) else ""
    return origin.describe() + given


# --- check, facts, diff ----------------------------------------------------------------------------------


def check(args: argparse.Namespace) -> int:
    """Report whether these settings can run on this machine, or on the one whose facts are given.

    With `--probe` one batch is trained and predicted too.

    Returns:
        0 when it can, 2 when the settings cannot be honored, 1 when the trial failed.
    """
    from ptycho_exec.cli import probe

    if args.test is not None and args.probe is None:
        fix = "give --probe, or leave out --test"
        raise SettingsError("--test is part of --probe", where="command line", fix=fix)
    if args.probe is not None and args.facts:
        what = "--probe runs a batch on this machine, --facts asks about another one"
        raise SettingsError(what, where="command line", fix="choose one of the two")
    plain = not args.json and not args.annotations
    try:
        resolution = resolve_from(args)
        settings = ExecutionSettings.from_resolution(resolution)
        _refuse_conflicts(Request(settings_file=args.settings))
    except SettingsError as error:
        if not plain or args.debug:
            raise
        print("\n".join(map(_fail_line, error.findings)))
        annotate(error)
        return error.exit_code
    from ptycho_exec.machine.facts import MachineFacts
    from ptycho_exec.plan import ModuleTraits, resolve_plan

    facts = MachineFacts.load(args.facts) if args.facts else MachineFacts.probe()
    plan = resolve_plan(settings, facts, ModuleTraits())
    problems = [_placed(problem, settings.origins.get(problem.field)) for problem in plan.problems]
    steps: Sequence[Finding] = ()
    if args.probe is not None and not problems:
        report = (lambda text: print(text, end="", file=sys.stderr)) if args.debug else None
        validation = None if args.test is None else _scan(args.test)
        steps = probe.run_trial(probe.Trial(settings, _scan(args.probe), validation), say=report)
    failed = [_placed(step, settings.origins.get(step.field)) for step in steps if step.level == "error"]
    findings = [*problems, *failed]
    if args.json:
        verdict = {"can_run": not findings, "findings": [finding.to_json() for finding in findings]}
        tried = {} if args.probe is None else {"probe": [probe.to_json(step) for step in steps]}
        print(json.dumps({**verdict, **plan.to_json(), **tried}, indent=2, default=str))
    elif plain:
        notes = [f"note  {notice.what}" for notice in resolution.notices]
        if problems and args.probe is not None:
            notes.append("note  probe was not run, because of the problems above")
        print("\n".join([*map(_fail_line, problems), *notes, *_check_lines(plan, steps)]))
    if not findings:
        return 0
    blocked = (SettingsError if problems else UserError).from_findings(findings)
    if args.annotations:
        raise blocked
    annotate(blocked)
    return blocked.exit_code


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


def _check_lines(plan: Plan, steps: Sequence[Finding]) -> Iterator[str]:
    from ptycho_exec.cli.probe import line

    failed = {problem.field for problem in plan.problems}
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
        if name not in failed and not row.changed and name in _changed(plan.requested)
    ]
    if asked:
        yield f"OK    as asked: {', '.join(asked)}"
    yield from map(line, steps)
    machine = plan.facts.hostname or "this machine"
    problems = [*plan.problems, *(step for step in steps if step.level == "error")]
    notes = [*plan.notices, *(step for step in steps if step.level == "note")]
    counts = f"{_count(problems, 'problem')}, {_count(notes, 'note')}"
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
    a, b = settings_of(args.a), settings_of(args.b)
    rows = [
        (name, shown(getattr(a, name)), shown(getattr(b, name)), spec.effect.value)
        for name, spec in field_specs().items()
        if redact(getattr(a, name)) != redact(getattr(b, name)) and args.only in (None, spec.effect.value)
    ]
    if args.json:
        keys = ("field", "a", "b", "effect")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
    else:
        names = (redact(args.a), redact(args.b))
        print("\n".join(table([("field", *names, "effect"), *rows])) if rows else "no difference")
        from ptycho_exec.record import fingerprint

        left, right = fingerprint(a)[:12], fingerprint(b)[:12]
        if left == right:
            print(f"same numerics, so the same results can be expected (fingerprint {left})")
        else:
            print(f"numerics differ, so results can differ (fingerprints {left}, {right})")
    return 1 if rows else 0


def settings_of(what: str) -> ExecutionSettings:
    """Return the settings that a word names: `env`, `profile:NAME`, a run, a manifest or a settings file."""
    if what == "env":
        return ExecutionSettings()
    if what.startswith("profile:"):
        return ExecutionSettings.from_resolution(resolve_profile(what.removeprefix("profile:")))
    path = Path(what) / "manifest.json" if Path(what).is_dir() else Path(what)
    if not path.is_file():
        raise UserError(
            f"there is no {redact(what)} to compare",
            where="command line",
            expected="a settings file, a manifest, a run directory, profile:NAME, or env for this place",
            fix="correct the name",
        )
    intent = _intent(path)
    if intent is not None:
        return ExecutionSettings.from_values(intent, place=str(path))
    with tempfile.TemporaryDirectory() as nowhere:
        request = Request(settings_file=path.resolve(), environ={}, cwd=Path(nowhere))
        return ExecutionSettings.from_resolution(resolve(request))


def _intent(path: Path) -> dict[str, Any] | None:
    """Return the settings in a run's manifest, with its credentials still hidden; None for another file."""
    if path.suffix.lower() != ".json":
        return None
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    intent = data.get("intent") if isinstance(data, dict) and "manifest_version" in data else None
    return intent if isinstance(intent, dict) else None


# --- what is generated -----------------------------------------------------------------------------------


def schema(_: argparse.Namespace) -> int:
    """Print the JSON schema of a settings file."""
    from ptycho_exec.cli.reference import schema_text

    print(schema_text(), end="")
    return 0


def init(args: argparse.Namespace) -> int:
    """Write a starter settings file, every field commented out at its default, and its schema."""
    from ptycho_exec.cli.reference import schema_text, starter_toml

    path = Path(args.path)
    if path.suffix != ".toml":
        raise UserError(f"{path} is no TOML file", expected="a name that ends with .toml", fix="rename it")
    if path.exists():
        raise UserError(f"{path} exists already", expected="a new file", fix="choose another name")
    schema_path = path.with_name("ptycho_exec.schema.json")
    try:
        schema_path.write_text(schema_text(), "utf-8")
        path.write_text(starter_toml(f"./{schema_path.name}"), "utf-8")
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


def profiles(args: argparse.Namespace) -> int:
    """List the profiles that can be asked for here, each with its sentence and values."""
    reader = Reader(Request())
    found = [find_profile(name, reader, []) for name in profile_names(reader)]
    layer = profile_layer(reader)
    errors = [finding for finding in (*reader.findings, *layer.findings) if finding.level == "error"]
    errors += profile_conflicts(Request())
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


_ANNOTATIONS = switch(
    "--annotations", "print problems as GitHub annotations (also done where GITHUB_ACTIONS=true)"
)
_scan_option = partial(argument, nargs="?", const="simulated", metavar="SCAN")
_COMMANDS = (
    Command(
        show,
        "print every value and where it came from",
        [
            JSON,
            _ANNOTATIONS,
            switch("--changed", "only values that are not the default"),
            switch("--trainer", "print the Trainer's arguments"),
            switch("--loader", "print the loaders' arguments"),
        ],
        settings=True,
    ),
    Command(
        explain,
        "print everything about a field: value, origin, what it shadowed, where it was looked for",
        [
            argument("field", nargs="?", help="a field; without it, every value that is not the default"),
            JSON,
            _ANNOTATIONS,
        ],
        settings=True,
    ),
    Command(
        check,
        "report whether these settings can run on this machine or another",
        [
            JSON,
            _ANNOTATIONS,
            argument("--facts", metavar="FILE", help="facts of another machine"),
            _scan_option(
                "--probe", help="also fit and predict one batch of this scan, or of a simulated one"
            ),
            _scan_option("--test", help="with --probe: validate too, on this scan or on a simulated one"),
        ],
        settings=True,
    ),
    Command(facts, "print the facts of this machine as JSON"),
    Command(
        diff,
        "compare two settings: FILE, RUN, profile:NAME or env; exit code 1 when they differ",
        [
            argument("a", metavar="A", help="file, manifest, run directory, profile:NAME or env"),
            argument("b", metavar="B", help="the other one"),
            argument("--only", choices=[str(effect) for effect in Effect], help="only fields of this effect"),
            JSON,
            _ANNOTATIONS,
        ],
    ),
    Command(schema, "print the JSON schema of a settings file"),
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
    Command(profiles, "list the profiles that can be asked for here", [JSON, _ANNOTATIONS]),
)
