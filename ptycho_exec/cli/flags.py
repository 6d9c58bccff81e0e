"""Command-line flags derived from the fields of a model, and a parser that refuses what it does not know.

Every field of `ExecutionSettings`, or of any other pydantic model, is a flag: unset unless it is given, never
abbreviated; a wrong flag is reported like any other wrong name.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import select
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn, TextIO

from pydantic import BaseModel

from ptycho_exec.errors import ANNOTATIONS, Finding, SettingsError, UserError, redact
from ptycho_exec.fields.model import ExecutionFields
from ptycho_exec.fields.spec import FALSE_WORDS, TRUE_WORDS, FieldSpec, format_value, source_specs
from ptycho_exec.fields.stages import Stage, without_effect
from ptycho_exec.interrupts import EXIT_CODE, Interrupted, interrupted, interruptible
from ptycho_exec.machine.ranks import detect_launcher, is_rank_zero
from ptycho_exec.progress import show
from ptycho_exec.sources.suggestions import MOST_UNKNOWN, more_unknown_names, nearest, unknown_name
from ptycho_exec.version import __version__

_DEST = "field_"


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations whose errors are one block with exit code 2."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)
        self.switches: dict[str, FieldSpec] = {}
        self.words: dict[str, list[str]] = {}
        """The words that the flag of a field takes, for shells to complete."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(
            message, where="command line", expected=self._short_usage(), fix=f"{self.prog} --help"
        )

    def _short_usage(self) -> str:
        """Return how the command is written, its options as one word: there are too many to list."""
        words = [str(row.metavar or row.dest) for row in self._get_positional_actions() if row.nargs != "?"]
        return " ".join([self.prog, *words, "[options]"])

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a word that is none of an argument's, with the one that was probably meant."""
        words = [str(word) for word in action.choices or ()]
        if not words or value in words:
            return
        close = nearest(str(value), words, most=1)
        expected = f"one of: {', '.join(words)}"
        if isinstance(action, argparse._SubParsersAction):
            what, code = f"unknown command {str(value)!r}", "unknown-name"
            fix = f"write {close[0]}" if close else "write one of them"
        else:
            flag = action.option_strings[0] if action.option_strings else ""
            what, code = f"{flag or action.dest} = {str(value)!r} is not allowed", "bad-value"
            fix = f"did you mean {' '.join([flag, *close]).strip()}?" if close else "write one of them"
        raise SettingsError(what, where="command line", expected=expected, fix=fix, code=code)

    def add_fields(
        self, group: argparse._ArgumentGroup, specs: Iterable[FieldSpec], hidden: Collection[str] = ()
    ) -> None:
        """Add one flag per field to a group of this parser, unset unless it is given; some without help."""
        for spec in specs:
            listed = spec.choices and len(spec.choices) <= 7 and not spec.kinds & {int, tuple}
            group.add_argument(
                spec.flag,
                dest=_DEST + spec.name,
                action="append",
                metavar=f"{{{','.join(map(format_value, spec.choices))}}}" if listed else "VALUE",
                default=None,
                help=argparse.SUPPRESS
                if spec.field or spec.name in hidden
                else f"{spec.sentence} [{format_value(spec.default)}]".replace("%", "%%"),
            )
            if spec.choices and not spec.field:
                self.words[_DEST + spec.name] = [format_value(choice) for choice in spec.choices]
            if spec.boolean:
                self.switches[spec.flag] = spec

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse, or raise one error that lists every unknown argument."""
        parsers = list(with_commands(self))
        switches = {flag: spec for parser in parsers for flag, spec in parser.switches.items()}
        args, extra = self.parse_known_args(complete_switches(complete_annotations(argv), switches))
        typed = _typed_command(self, args)
        flags = {flag for action in typed._actions for flag in action.option_strings}
        known = sorted(
            (f for f in flags if f.startswith("--")), key=lambda f: (f in ("--profile", "--settings"), f)
        )
        names = [item.partition("=")[0] for item in extra if item != "--"]
        unknown = [name for name in names if name.startswith("-")]
        unknown = unknown or [name for name in names if nearest(name, known)]  # `seed=1`, `_-seed`
        findings = []
        for name in unknown[:MOST_UNKNOWN]:
            # Only switches have a `--no-` form; for others the flag itself is what was meant.
            bare = "--" + name.removeprefix("--no-") if name.startswith("--no-") else name
            finding = unknown_name(bare, known, where="command line", noun="flag")
            homes = [parser.prog for parser in parsers if name in parser._option_string_actions]
            if homes:  # parsed, and yet not known to the command that was typed
                what, fix = f"{name} is no flag of this command", f"leave it out (it is one of {homes[0]})"
                findings.append(replace(finding, what=what, expected="flags of the command", fix=fix))
            else:
                findings.append(replace(finding, what=f"unknown flag {name!r}"))
        if len(unknown) > MOST_UNKNOWN:
            findings.append(more_unknown_names(len(unknown) - MOST_UNKNOWN, "command line"))
        if findings:
            raise SettingsError.from_findings(findings)
        if extra:
            raise _unexpected(extra[0], list(argv), switches)
        return args


def _unexpected(word: str, argv: Sequence[str], switches: Mapping[str, FieldSpec]) -> SettingsError:
    """Return the error for an argument that nothing takes; after a switch, it was meant as its value."""
    before = argv[argv.index(word) - 1] if word in argv[1:] else ""
    if before in switches:
        words = [format_value(choice) for choice in switches[before].choices or (True, False)]
        return SettingsError(
            f"{before} = {redact(word)!r} is not allowed",
            where="command line",
            expected=f"one of: {', '.join(words)}",
            fix=f"{before} {words[0]}; or remove {redact(word)!r} if it was not meant for it",
            code="bad-value",
        )
    what = f"unexpected argument {redact(word)!r}"
    return SettingsError(what, where="command line", expected="no more arguments", fix="remove it")


def _typed_command(parser: Parser, args: argparse.Namespace) -> Parser:
    """Return the parser of the command that was typed, at any depth; without one the parser itself."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and (name := getattr(args, action.dest, None)):
            return _typed_command(action.choices[name], args)
    return parser


def with_commands(parser: Parser) -> Iterator[Parser]:
    """Yield a parser and, at any depth, those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from with_commands(child)


def complete_switches(argv: Sequence[str], switches: Mapping[str, FieldSpec]) -> list[str]:
    """Write out boolean switches: `--compile` becomes `--compile=true`, `--no-compile` `--compile=false`.

    A value after the switch is taken only when the field accepts it, so in `--compile scan.npz` the file
    stays an argument of its own.
    """
    rest = list(argv)
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


def add_settings_flags(
    parser: Parser,
    model: type[BaseModel] = ExecutionFields,
    title: str = "how to run (execution settings)",
    stage: Stage | None = None,
) -> None:
    """Add one flag per field of `model`, in a group of their own."""
    parser.add_fields(parser.add_argument_group(title), source_specs(model).values(), without_effect(stage))


def add_controls(parser: Parser) -> None:
    """Add `--settings` and `--profile`."""
    group = parser.add_argument_group("where settings come from")
    group.add_argument("--settings", action=_Once, metavar="FILE", help="settings file: TOML, YAML or JSON")
    group.add_argument(
        "--profile",
        action=_Once,
        metavar="NAME[,NAME]",
        help="profiles, shipped or [profiles.NAME] of a file; the later wins",
    )


Argument = tuple[str, Mapping[str, Any]]


def argument(name: str, **options: Any) -> Argument:
    """Return one argument of a command, as `argparse.ArgumentParser.add_argument` takes it."""
    return name, options


def switch(name: str, help_text: str) -> Argument:
    return argument(name, action="store_true", help=help_text)


JSON = switch("--json", "print stable JSON")
QUIET = switch("--quiet", "show no progress")
ANNOTATE = argument(
    "--annotations",
    choices=tuple(ANNOTATIONS),
    help="print problems as annotations: of GitHub (also done where GITHUB_ACTIONS=true), or with"
    " gitlab as a GitLab code-quality report",
)


class Command(NamedTuple):
    """One command of a program, named as the function that runs it, with hyphens.

    Attributes:
        science: fields whose flags are added.
        settings: whether those of the execution settings are.
        stage: the only one that the command runs; fields that act in the other are refused as flags.
    """

    handler: Callable[[argparse.Namespace], int]
    help: str
    arguments: Sequence[Argument] = ()
    usage: str | None = None
    science: Sequence[FieldSpec] = ()
    settings: bool = False
    stage: Stage | None = None


def add_commands(parser: Parser, commands: Iterable[Command]) -> None:
    """Give a parser `--version` and one subcommand for each row of `commands`."""
    parser.add_argument("--version", action="version", version=f"{parser.prog} {__version__}")
    parser.set_defaults(program=parser)
    group = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for row in commands:
        name = row.handler.__name__.replace("_", "-")
        usage = row.usage and f"{parser.prog} {name} {row.usage} [options]"
        command = group.add_parser(name, help=row.help, description=row.help, usage=usage)
        command.set_defaults(handler=row.handler)
        for argument_name, options in row.arguments:
            command.add_argument(argument_name, **options)
        if row.science:
            command.add_fields(command.add_argument_group("what to run (science)"), row.science)
        if row.settings:
            add_settings_flags(command, stage=row.stage)
            command.add_argument(
                "--quiet",
                dest=f"{_DEST}enable_progress_bar",
                action="append_const",
                const="false",
                help="show no progress, as --enable-progress-bar=false",
            )
        if row.settings or row.science:
            add_controls(command)
        command.set_defaults(stage=row.stage)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")


def flags_given(
    args: argparse.Namespace, model: type[BaseModel] = ExecutionFields
) -> dict[str, tuple[str, ...]]:
    """Return the flags of `model` that were typed: field -> every text, in the order of the command line."""
    texts = {name: getattr(args, _DEST + name, None) for name in source_specs(model)}
    return {name: tuple(given) for name, given in texts.items() if given is not None}


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
                fix="leave one of the two out"
                + (f", or write {option_string} {before},{values}" if self.dest == "profile" else ""),
            )
        setattr(namespace, self.dest, values)


def annotations_form(argv: Sequence[str]) -> str | None:
    """Return the form that `--annotations` asks for, in a command line as it was typed or written out."""
    given = [word for word in complete_annotations(argv) if word.startswith("--annotations=")]
    form = given[-1].partition("=")[2] if given else None
    return form if form in ANNOTATIONS else None


def complete_annotations(argv: Sequence[str]) -> list[str]:
    """Write out `--annotations` as `--annotations=github`; a form after it is taken as its value."""
    rest, done = list(argv), list[str]()
    while rest:
        word = rest.pop(0)
        if word == "--annotations":
            word = f"--annotations={rest.pop(0) if rest and rest[0] in ANNOTATIONS else 'github'}"
        done.append(word)
    return done


def annotate(error: UserError) -> None:
    """In a GitHub job, print each finding as an annotation beside what is printed for people."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print("\n".join(finding.annotation() for finding in error.findings), file=sys.stderr)


def run(parser: Parser, argv: Sequence[str] | None, handler: Callable[[argparse.Namespace], int]) -> int:
    """Parse and run. A user's error prints as one block on standard error; `--debug` shows its traceback.

    Returns:
        0 done, 1 failed, 2 wrong usage or settings, 130 interrupted. Where the output cannot be written, what
        went wrong before counts, else 1.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have every letter
    code = 0
    try:
        try:
            args = parser.parse(argv)
            first = is_rank_zero()
            with (
                interruptible(),
                nullcontext() if first else redirect_stdout(io.StringIO()),
                show(first and not _quiet(args)),
            ):
                code = handler(args)
        except UserError as error:
            if "--debug" in argv:
                raise
            code = error.exit_code
            _report(error, parser.prog, argv)
        except Interrupted as stop:
            code = _report_interrupted(parser.prog, stop)
        except SystemExit:  # after `--help`
            sys.stdout.flush()
            raise
        if sys.stdout is not None:
            sys.stdout.flush()  # or a full disk would show after the end, where nobody can catch it
    except OSError as error:
        unread = isinstance(error, BrokenPipeError) and any(map(_unread, (sys.stdout, sys.stderr)))
        if "--debug" in argv or not (unread or error.errno in _FULL):
            raise
        if not unread:
            fix = "free some space, or write to another disk"
            where = str(error.filename or "")
            problem = Finding(f"cannot write: {error.strerror}", where, fix=fix, code="cannot-write")
            with suppress(OSError):
                print(f"{parser.prog}: {problem.render()}", file=sys.stderr)
        _drop_output()
        return code or 1
    except KeyboardInterrupt:
        return _report_interrupted(parser.prog, Interrupted())
    except Exception:
        if not interrupted() or "--debug" in argv:  # what else an interrupted library made of it
            raise
        return _report_interrupted(parser.prog, Interrupted())
    return code


def _report_interrupted(program: str, stop: Interrupted) -> int:
    """Say in one line what an interrupted command leaves, and return its exit code."""
    if is_rank_zero():
        with suppress(OSError):
            sys.stdout.flush()
            print(f"{program}: {stop}", file=sys.stderr)
    return EXIT_CODE


def _quiet(args: argparse.Namespace) -> bool:
    """Return whether a command was asked to show no progress, by its own flag or by that of the settings."""
    given = getattr(args, _DEST + "enable_progress_bar", None) or ["auto"]
    return getattr(args, "quiet", False) or given[-1].lower() in FALSE_WORDS


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_OF_ALL = ("not-in-srun", "started-by-mpi", "uneven-tasks", "gpus-hidden-from-tasks", "too-little-memory",
           "other-nodes-than-launcher", "other-tasks-than-launcher")  # fmt: skip
"""Codes of what each process of a run finds wrong in the same way."""
GRACE_S = 3.0
"""Seconds in which the first process reports it; then the others do, if no launcher ended them."""


def _spoken(findings: Sequence[Finding], rank: int) -> list[Finding]:
    """Return what this process reports; of what all find alike, others than the first say less, and later.

    A launcher that ends all processes with the first that fails would not let the first one speak.
    """
    if rank == 0 or not all(finding.code in _OF_ALL for finding in findings):
        return list(findings)
    time.sleep(GRACE_S)
    return [Finding(row.what, fix=row.fix, code=row.code) for row in findings]


def _report(error: UserError, program: str, argv: Sequence[str]) -> None:
    """Print what is wrong: for people, as annotations, or as JSON; what all processes know, once."""
    rank = detect_launcher(os.environ).rank
    if error.spoken_by not in (None, rank):
        return
    error = type(error).from_findings(_spoken(error.findings, rank))
    program = f"{program} (rank {rank})" if rank else program
    if form := annotations_form(argv):
        print(ANNOTATIONS[form](error.findings))
        return
    if "--json" in argv:
        print(json.dumps({"findings": [finding.to_json() for finding in error.findings]}, indent=2))
    else:
        print(f"{program}: {error}", file=sys.stderr)
    annotate(error)


def _unread(stream: TextIO | None) -> bool:
    """Return whether nobody is left to read what is written to a stream."""
    try:
        poll = select.poll()
        poll.register(stream.fileno() if stream else -1, select.POLLOUT)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no real file, or a system without poll
        return False


def _drop_output() -> None:
    """Forget what standard output and error still hold; Python would try to write it at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
