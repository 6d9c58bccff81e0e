"""`completion SHELL`: a script by which a shell completes commands, flags and their values.

It is written once by shtab, from the parser; nothing is loaded for it when a command starts.
"""

from __future__ import annotations

import argparse

from ptycho_exec.cli.flags import Command, Parser, argument, with_commands
from ptycho_exec.errors import UserError
from ptycho_exec.settings import ExecutionSettings

SHELLS = ("bash", "zsh", "tcsh", "fish", "powershell")


def completion(args: argparse.Namespace) -> int:
    """Print the completion script of a shell, for the program that was called."""
    try:
        import shtab
    except ImportError:
        raise UserError(
            "completion scripts are written by shtab, which is not installed",
            expected="the extra completion",
            fix="pip install 'ptycho-exec[completion]'",
        ) from None
    program: Parser = args.program
    files = {"FILE": shtab.FILE, "SCAN": shtab.FILE, "DIR": shtab.DIRECTORY, "RUN": shtab.FILE}
    for parser in with_commands(program):
        for action in parser._actions:
            if words := parser.words.get(action.dest):
                action.choices = words  # this parser parses nothing any more
            elif action.metavar in files:
                action.complete = files[action.metavar]  # type: ignore[attr-defined]
            elif action.dest == "field":
                action.choices = list(ExecutionSettings.model_fields)
    print(shtab.complete(program, args.shell), end="")
    return 0


COMPLETION = Command(
    completion,
    "print a script by which a shell completes this program",
    [argument("shell", choices=SHELLS, help="the shell")],
)
