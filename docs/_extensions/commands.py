"""The directive `commands`: the commands of a program with their arguments, read from its argument parser.

    ```{commands} ptycho_torch.cli
    ```

Flags that fields become are not repeated under every command: they have pages of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FIELD = "field_"
"""How the destination of a flag begins that a field became (`ptycho_exec.cli.flags`)."""
PAGES = {
    "what to run (science)": "docs/reference/science_settings",
    "how to run (execution settings)": "docs/reference/settings",
}


class Commands(SphinxDirective):
    """Sections of all commands of the program whose module is the argument."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        parser = import_module(self.arguments[0]).build_parser()
        (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        helps = {choice.dest: choice.help for choice in commands._choices_actions}
        return [self.section(command, helps[name]) for name, command in commands.choices.items()]

    def section(self, command: argparse.ArgumentParser, text: str) -> nodes.section:
        """Return name, sentence, usage and arguments of one command."""
        program, _, name = command.prog.partition(" ")
        section = nodes.section(ids=[f"{program}-{name}"], names=[command.prog])
        section += nodes.title(command.prog, "", nodes.literal("", command.prog))
        section += nodes.paragraph("", f"{text[0].upper()}{text[1:]}.")
        usage = nodes.literal_block("", " ".join(usage_of(command)), language="none")
        section += usage
        if rows := list(arguments(command)):
            section += definitions(rows)
        groups = [
            group.title
            for group in command._action_groups
            if group.title in PAGES and any(a.dest.startswith(FIELD) for a in group._group_actions)
        ]
        if groups:
            section += self.fields(groups)
        return section

    def fields(self, titles: list[str]) -> nodes.paragraph:
        """Return a line that leads to the pages of the fields that are flags of a command."""
        line = nodes.paragraph("", "Also, as flags: ")
        for number, title in enumerate(titles):
            link = pending_xref(
                "",
                refdomain="std",
                reftype="doc",
                reftarget="/" + PAGES[title],
                refexplicit=True,
                refdoc=self.env.docname,
            )
            link += nodes.inline("", title)
            line += [nodes.Text(" and " if number else ""), link]
        line += nodes.Text(".")
        return line


def usage_of(command: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the words of a command's usage: as it states them, else its positional arguments."""
    if command.usage:
        yield command.usage
        return
    yield command.prog
    for action in command._get_positional_actions():
        word = str(action.metavar or action.dest).upper()
        yield f"[{word}]" if action.nargs in ("?", "*") else word
    yield "[options]"


def arguments(command: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Yield how each argument is written and what it means; those of fields, which have pages, left out."""
    for action in command._actions:
        if action.dest.startswith(FIELD) or action.help == argparse.SUPPRESS or action.dest == "help":
            continue
        value = f" {metavar(action)}" if action.nargs != 0 else ""
        words = ", ".join(action.option_strings) + value if action.option_strings else metavar(action)
        default = action.default if action.option_strings and action.nargs != 0 else None
        text = str(action.help or "") % {**vars(action), "prog": command.prog}
        stated = default in (None, argparse.SUPPRESS) or "default" in text or text.endswith("]")
        yield words, text if stated else f"{text} [{default}]"


def metavar(action: argparse.Action) -> str:
    if action.metavar is None and action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return str(action.metavar or action.dest.upper())


def definitions(rows: list[tuple[str, str]]) -> nodes.definition_list:
    listed = nodes.definition_list()
    for words, text in rows:
        term = nodes.term("", "", nodes.literal("", words))
        listed += nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph("", text)))
    return listed


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
