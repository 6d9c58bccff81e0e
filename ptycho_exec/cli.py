"""`ptycho-exec`: what the settings are, where they came from, whether they can run here, and their docs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_exec.errors import Finding, SettingsError, UserError
from ptycho_exec.fields import FieldSpec, field_specs, text_of
from ptycho_exec.flags import Parser, add_settings_flags, flags_given, run
from ptycho_exec.names import unknown_name
from ptycho_exec.origins import Kind, Origin, Resolution, redact
from ptycho_exec.settings import Effect, ExecutionSettings
from ptycho_exec.sources import Reader, Request, resolve
from ptycho_exec.tables import Profile, find_profile, profile_names

if TYPE_CHECKING:
    from ptycho_exec.plan import Plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ptycho-exec`; return its exit code."""
    return run(build_parser(), argv, lambda space: space.act(space))


def build_parser() -> Parser:
    """Return the parser of all subcommands."""
    parser = Parser(prog="ptycho-exec", description="Execution settings of a ptychographic reconstruction.")
    verbs = parser.add_subparsers(title="commands", dest="verb", required=True, metavar="COMMAND")
    for name, (act, help_text, extras) in _VERBS.items():
        verb = verbs.add_parser(name, help=help_text, description=help_text)
        verb.set_defaults(act=act)
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        for words, options in extras:
            verb.add_argument(*words, **options)
        if name in ("show", "explain", "check"):
            add_settings_flags(verb)
    return parser


def resolve_from(space: argparse.Namespace, factory_defaults: dict[str, Any] | None = None) -> Resolution:
    """Resolve the settings that a command line asks for, with the environment and the files around it."""
    return resolve(
        Request(
            flags=flags_given(space),
            profile=space.profile,
            settings_file=space.settings,
            factory_defaults=factory_defaults or {},
        )
    )


# --- show and explain ------------------------------------------------------------------------------------


def show(space: argparse.Namespace) -> int:
    """Print every value with its origin, or what Trainer and loaders would be given."""
    resolution = resolve_from(space)
    settings = ExecutionSettings.from_resolution(resolution)
    if space.trainer or space.loader:
        return _show_kwargs(settings, trainer=space.trainer, loader=space.loader)
    if space.json:
        print(json.dumps(settings_json(settings), indent=2))
        return 0
    rows = [
        (name, text_of(redact(getattr(settings, name))), settings.origins[name].describe())
        for name in field_specs()
        if not space.changed or settings.origins[name].kind is not Kind.DEFAULT
    ]
    print("\n".join(table(rows)) if rows else "every value is its default")
    _print_notices(resolution)
    return 0


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


def _show_kwargs(settings: ExecutionSettings, *, trainer: bool, loader: bool) -> int:
    from ptycho_exec.facade import inference_loader_kwargs, train_loader_kwargs, trainer_kwargs

    shown: dict[str, Any] = {}
    if trainer:
        shown["trainer"] = trainer_kwargs(settings)
    if loader:
        shown["train_loader"] = train_loader_kwargs(settings)
        shown["inference_loader"] = inference_loader_kwargs(settings)
    print(json.dumps(shown, indent=2, default=str))
    return 0


def _print_notices(resolution: Resolution) -> None:
    for notice in resolution.notices:
        print(f"note: {notice}", file=sys.stderr)


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield rows as text with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        yield "  ".join(
            [cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[-1]]
        ).rstrip()


def explain(space: argparse.Namespace) -> int:
    """Tell all about one field, or, without a name, where every value was looked for."""
    if space.field and space.field not in field_specs():
        raise SettingsError.from_findings(
            [unknown_name(space.field, tuple(field_specs()), where="command line")]
        )
    resolution = resolve_from(space)
    settings = ExecutionSettings.from_resolution(resolution)
    names = (
        [space.field]
        if space.field
        else [n for n in field_specs() if settings.origins[n].kind != Kind.DEFAULT]
    )
    if space.json:
        chosen = settings_json(settings)
        print(json.dumps({name: chosen[name] for name in names}, indent=2))
        return 0
    for name in names:
        print("\n".join(_explained(field_specs()[name], settings)))
        print()
    print("looked for, highest precedence first:")
    for file in resolution.looked:
        print(f"  {'found ' if file.found else 'absent'}  {file.path}  ({file.kind})")
    _print_notices(resolution)
    return 0


def _explained(spec: FieldSpec, settings: ExecutionSettings) -> Iterator[str]:
    origin = settings.origins[spec.name]
    yield f"{spec.name} = {text_of(redact(getattr(settings, spec.name)))}"
    yield f"  from      {_told(origin)}"
    for other in origin.shadowed:
        yield f"  shadows   {text_of(redact(other.value))} from {_told(other)}"
    yield f"  meaning   {spec.sentence}"
    yield f"  accepts   {spec.expected()}"
    yield f"  effect    {spec.effect.value}"
    yield f"  set with  {spec.variable}, {spec.flag}, or {spec.name} = ... in a file"


def _told(origin: Origin) -> str:
    raw = redact(origin.raw) if origin.raw is not None else None
    given = f', given as "{raw}"' if raw is not None and raw != text_of(redact(origin.value)) else ""
    return origin.describe() + given


# --- check, facts, diff ----------------------------------------------------------------------------------


def check(space: argparse.Namespace) -> int:
    """Say whether these settings can run on this machine, or on the one whose facts are given."""
    try:
        settings = ExecutionSettings.from_resolution(resolve_from(space))
        plan = _plan_for(settings, space.facts)
    except SettingsError as error:
        return _report_findings(error, space)
    if space.json:
        print(json.dumps(plan.to_json(), indent=2, default=str))
    elif not space.annotations:
        print("\n".join(_check_lines(plan)))
    if plan.problems:
        findings = [problem.finding() for problem in plan.problems]
        return _report_findings(SettingsError.from_findings(findings), space) if space.annotations else 2
    return 0


def _plan_for(settings: ExecutionSettings, facts_file: str | None) -> Plan:
    from ptycho_exec.facts import MachineFacts
    from ptycho_exec.plan import ModuleTraits, resolve_plan

    facts = MachineFacts.load(facts_file) if facts_file else MachineFacts.probe()
    return resolve_plan(settings, facts, ModuleTraits())


def _check_lines(plan: Plan) -> Iterator[str]:
    for problem in plan.problems:
        yield from f"FAIL  {problem.finding().render()}".replace("\n", "\n    ").splitlines()
    failed = {problem.field for problem in plan.problems}
    for notice in plan.notices:
        yield f"note  {notice.field}: {notice.text}"
    rows = [
        ("OK  ", name, text_of(redact(row.value)), row.reason)
        for name, row in plan.effective.items()
        if name not in failed and (row.changed or plan.requested.origins[name].kind is not Kind.DEFAULT)
    ]
    yield from table(rows) if rows else ()
    verdict = "cannot run" if plan.problems else "can run"
    machine = plan.facts.hostname or "this machine"
    yield f"{verdict} on {machine}: {len(plan.problems)} problems, {len(plan.notices)} notes"


def _report_findings(error: UserError, space: argparse.Namespace) -> int:
    if space.annotations:
        for finding in error.findings:
            print(annotation(finding))
        return error.exit_code
    if space.json:
        print(json.dumps({"findings": [_finding_json(finding) for finding in error.findings]}, indent=2))
        return error.exit_code
    raise error


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {name: getattr(finding, name) for name in Finding.__slots__}


def annotation(finding: Finding) -> str:
    """Return a finding as a GitHub workflow command, which marks the file and line in a pull request."""
    place = f" file={_relative(finding.file)},line={finding.line or 1}" if finding.file else ""
    text = finding.render().replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::error{place}::{text}"


def _relative(path: str) -> str:
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def facts(space: argparse.Namespace) -> int:
    """Print the facts of this machine as JSON, for `check --facts` elsewhere."""
    from ptycho_exec.facts import MachineFacts

    del space
    print(MachineFacts.probe().to_json())
    return 0


def diff(space: argparse.Namespace) -> int:
    """Compare two settings: files, manifests or run directories, `profile:NAME`, or `env` for this place."""
    a, b = settings_of(space.a), settings_of(space.b)
    rows = [
        (name, text_of(redact(getattr(a, name))), text_of(redact(getattr(b, name))), spec.effect.value)
        for name, spec in field_specs().items()
        if getattr(a, name) != getattr(b, name) and (space.only is None or spec.effect.value == space.only)
    ]
    if space.json:
        keys = ("field", "a", "b", "effect")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
    else:
        print("\n".join(table([("field", space.a, space.b, "effect"), *rows])) if rows else "no difference")
    return 1 if rows else 0


def settings_of(what: str) -> ExecutionSettings:
    """Return the settings that a word names: `env`, `profile:NAME`, a run, a manifest or a settings file."""
    if what == "env":
        return ExecutionSettings()
    if what.startswith("profile:"):
        return _hermetic(Request(profile=what.removeprefix("profile:"), environ={}))
    path = Path(what) / "manifest.json" if Path(what).is_dir() else Path(what)
    if path.name == "manifest.json":
        from ptycho_exec.record import settings_from_manifest

        return settings_from_manifest(path)
    return _hermetic(Request(settings_file=path.resolve(), environ={}))


def _hermetic(request: Request) -> ExecutionSettings:
    import tempfile

    with tempfile.TemporaryDirectory() as nowhere:
        request = Request(
            profile=request.profile,
            settings_file=request.settings_file,
            environ={"XDG_CONFIG_HOME": nowhere},
            cwd=Path(nowhere),
        )
        return ExecutionSettings.from_resolution(resolve(request))


# --- what is generated -----------------------------------------------------------------------------------


def schema(space: argparse.Namespace) -> int:
    """Print the JSON schema of a settings file."""
    from ptycho_exec.reference import schema_text

    del space
    print(schema_text(), end="")
    return 0


def init(space: argparse.Namespace) -> int:
    """Write a starter settings file, every field commented out at its default."""
    from ptycho_exec.reference import schema_text, starter_toml

    path = Path(space.path)
    if path.exists():
        raise UserError(
            f"{path} exists already", where=str(path), expected="a new file", fix="choose another name"
        )
    schema_path = path.with_name("ptycho_exec.schema.json")
    schema_path.write_text(schema_text(), "utf-8")
    path.write_text(starter_toml(f"./{schema_path.name}"), "utf-8")
    print(f"wrote {path} and {schema_path}")
    return 0


def docs(space: argparse.Namespace) -> int:
    """Regenerate schema, settings reference and `.env.example` of a checkout."""
    from ptycho_exec.reference import write_generated

    for path in write_generated(Path(space.root)):
        print(f"wrote {path}")
    return 0


def profiles(space: argparse.Namespace) -> int:
    """List the profiles that can be asked for here, each with its sentence and values."""
    reader = Reader(Request())
    found = [find_profile(name, reader, []) for name in profile_names(reader)]
    if reader.findings:
        raise SettingsError.from_findings(reader.findings)
    rows = [_profile_json(profile) for profile in found if profile is not None]
    if space.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        base = f" (extends {row['extends']})" if row["extends"] else ""
        values = ", ".join(f"{name}={text_of(value)}" for name, value in row["values"].items())
        print(f"{row['name']}{base}: {row['description']}\n    {values}\n    {row['file']}")
    return 0


def _profile_json(profile: Profile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "extends": profile.extends,
        "description": profile.description,
        "values": {name: redact(origin.value) for name, origin in profile.entries().items()},
        "file": profile.document.path,
    }


_JSON = (("--json",), {"action": "store_true", "help": "print stable JSON"})
_ANNOTATIONS = (("--annotations",), {"action": "store_true", "help": "print findings as GitHub annotations"})
_VERBS: dict[str, tuple[Any, str, list[tuple[tuple[str, ...], dict[str, Any]]]]] = {
    "show": (
        show,
        "print every value and where it came from",
        [
            _JSON,
            (("--changed",), {"action": "store_true", "help": "only values that are not the default"}),
            (("--trainer",), {"action": "store_true", "help": "print the Trainer's arguments"}),
            (("--loader",), {"action": "store_true", "help": "print the loaders' arguments"}),
        ],
    ),
    "explain": (
        explain,
        "tell all about a field: value, origin, what it shadowed, where it was looked for",
        [
            (("field",), {"nargs": "?", "help": "a field; without it, every value that is not the default"}),
            _JSON,
        ],
    ),
    "check": (
        check,
        "say whether these settings can run on this machine or another",
        [_JSON, _ANNOTATIONS, (("--facts",), {"metavar": "FILE", "help": "facts of another machine"})],
    ),
    "facts": (facts, "print the facts of this machine as JSON", []),
    "diff": (
        diff,
        "compare two settings: FILE, RUN, profile:NAME or env",
        [
            (("a",), {"metavar": "A", "help": "file, manifest, run directory, profile:NAME or env"}),
            (("b",), {"metavar": "B", "help": "the other one"}),
            (
                ("--only",),
                {"choices": [effect.value for effect in Effect], "help": "only fields of this effect"},
            ),
            _JSON,
        ],
    ),
    "schema": (schema, "print the JSON schema of a settings file", []),
    "init": (
        init,
        "write a starter settings file",
        [(("path",), {"nargs": "?", "default": "ptycho_exec.toml", "help": "where to write it"})],
    ),
    "docs": (
        docs,
        "regenerate schema, settings reference and .env.example",
        [(("--root",), {"default": ".", "metavar": "DIR", "help": "top of the checkout"})],
    ),
    "profiles": (profiles, "list the profiles that can be asked for here", [_JSON]),
}
