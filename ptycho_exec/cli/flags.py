"""Command-line flags derived from the settings, and a parser that refuses what it does not know.

Both programs use it: every field of `ExecutionSettings` is a flag, unset unless it is given, never
abbreviated; a wrong flag is told like any other wrong name.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from ptycho_exec.errors import Finding, SettingsError, UserError, redact
from ptycho_exec.fields.spec import FALSE_WORDS, TRUE_WORDS, FieldSpec, field_specs, format_value
from ptycho_exec.sources.suggestions import nearest, unknown_name

_PREFIX = "settings_field_"


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations whose errors are one block with exit code 2."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise SettingsError(
            message, where=self.prog, expected=self.format_usage().strip(), fix=f"{self.prog} --help"
        )

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse, or raise one error that lists every unknown argument."""
        args, extra = self.parse_known_args(complete_switches(argv))
        known = sorted({flag for flag in _all_flags(self) if flag.startswith("--")})
        names = [item.partition("=")[0] for item in extra if item != "--"]
        unknown = [name for name in names if name.startswith("-")]
        unknown = unknown or [name for name in names if nearest(name, known)]  # `seed=1`, `_-seed`
        if unknown:
            raise SettingsError.from_findings([_unknown_flag(name, known) for name in unknown])
        if extra:
            what = f"unexpected argument {redact(extra[0])!r}"
            raise SettingsError(what, where="command line", expected="no more arguments", fix="remove it")
        return args


def _unknown_flag(name: str, known: Sequence[str]) -> Finding:
    """Only switches have a `--no-` form; for others the flag itself is what was meant."""
    bare = "--" + name.removeprefix("--no-") if name.startswith("--no-") else name
    finding = unknown_name(bare, known, where="command line", noun="flag")
    return replace(finding, what=f"unknown flag {name!r}")


def _all_flags(parser: argparse.ArgumentParser) -> set[str]:
    flags: set[str] = set()
    for action in parser._actions:
        flags |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                flags |= _all_flags(child)
    return flags


def _switches() -> dict[str, FieldSpec]:
    return {spec.flag: spec for spec in field_specs().values() if spec.boolean}


def complete_switches(argv: Sequence[str]) -> list[str]:
    """Write out boolean switches: `--compile` becomes `--compile=true`, `--no-compile` `--compile=false`.

    A value after the switch is taken only when the field accepts it, so in `--compile scan.npz` the file
    stays an argument of its own.
    """
    switches, rest = _switches(), list(argv)
    done: list[str] = []
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*done, word, *rest]
        positive = "--" + word.removeprefix("--no-")
        if word in switches:
            follows = rest[0].lower() if rest else ""
            words = TRUE_WORDS | FALSE_WORDS | {format_value(choice) for choice in switches[word].choices}
            done.append(f"{word}={rest.pop(0) if follows in words else 'true'}")
        elif word.startswith("--no-") and positive in switches:
            done.append(f"{positive}=false")
        else:
            done.append(word)
    return done


def add_settings_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--settings`, `--profile` and one flag per field, in a group of their own."""
    group = parser.add_argument_group("how to run (execution settings)")
    group.add_argument("--settings", action=_Once, metavar="FILE", help="settings file: TOML, YAML or JSON")
    group.add_argument(
        "--profile", action=_Once, metavar="NAME", help="named profile: shipped, or [profiles.NAME] of a file"
    )
    for spec in field_specs().values():
        group.add_argument(
            spec.flag,
            dest=_PREFIX + spec.name,
            action="append",
            metavar=_metavar(spec),
            default=None,
            help=f"{spec.sentence} [{format_value(spec.default)}]".replace("%", "%%"),
        )


def _metavar(spec: FieldSpec) -> str:
    if spec.choices and len(spec.choices) <= 7 and not spec.kinds & {int, tuple}:
        return "{" + ",".join(format_value(choice) for choice in spec.choices) + "}"
    return "VALUE"


def flags_given(args: argparse.Namespace) -> dict[str, str]:
    """Return the settings flags that were typed: field -> text, the last one where there are several."""
    return {name: texts[-1] for name, texts in all_flags_given(args).items()}


def all_flags_given(args: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Return the settings flags that were typed: field -> every text, in the order of the command line."""
    pairs: Mapping[str, Any] = vars(args)
    return {
        name.removeprefix(_PREFIX): tuple(texts)
        for name, texts in pairs.items()
        if name.startswith(_PREFIX) and texts is not None
    }


class _Once(argparse.Action):
    """A flag of which a second one would silently take the place of the first."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        del parser
        before = getattr(namespace, self.dest)
        if before is not None:
            raise SettingsError(
                f"{option_string} is given twice",
                where=f"command line: {before}, then {values}",
                expected="one",
                fix="leave one of the two out",
            )
        setattr(namespace, self.dest, values)


def _report(program: str, error: UserError, argv: Sequence[str]) -> None:
    if "--json" in argv:
        print(json.dumps({"findings": [finding.to_json() for finding in error.findings]}, indent=2))
    elif "--annotations" in argv:
        print("\n".join(finding.annotation() for finding in error.findings))
    else:
        print(f"{program}: {error}", file=sys.stderr)
    if "--annotations" not in argv:
        annotate(error)


def annotate(error: UserError) -> None:
    """In a GitHub job, print each finding as an annotation beside what is printed for people."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print("\n".join(finding.annotation() for finding in error.findings), file=sys.stderr)


def run(parser: Parser, argv: Sequence[str] | None, handler: Callable[[argparse.Namespace], int]) -> int:
    """Parse and run. A user's error prints as one block on standard error; `--debug` shows its traceback.

    Returns:
        0 done, 1 failed, 2 wrong usage or settings, 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have every letter
    try:
        return handler(parser.parse(argv))
    except UserError as error:
        if "--debug" in argv:
            raise
        _report(parser.prog, error, argv)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
