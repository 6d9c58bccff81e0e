"""Errors that a user can act on: what happened, where, what was expected, how to fix it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

# `scheme://user:password@`, also when the password holds an unescaped `@` or `/`, and without a scheme.
_USERINFO = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*:/{1,2}|//)"
    r"(?:[^/?#\s\"']*@|[^/?#\s\"':@]+:(?!\d{1,5}(?:[/?#\s\"']|$))[^\s\"']*@)"
)
_BARE_USERINFO = re.compile(r"(?<![\w/*])[\w.%+-]+:[^\s/@:\"']+@(?=[\w.-])")
_QUERY = re.compile(
    r"(?i)(?P<key>(?:^|[?&;#\s])[^=&\s?]*(?:token|key|secret|password|passwd|pwd|sig|auth|credential)[^=&\s]*=)"
    r"[^&\s#\"']+"
)


def redact(value: Any) -> Any:
    """Hide credentials in addresses: user information and secret-looking query values become `***`."""
    if not isinstance(value, str):
        return value
    value = _BARE_USERINFO.sub("***@", _USERINFO.sub(r"\g<scheme>***@", value))
    return _QUERY.sub(r"\g<key>***", value)


Level = Literal["error", "adapted", "note", "ok"]
"""How much a finding stops: everything; nothing, but results can change; nothing; it is good news."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to report, in the order a reader asks: what, where, what was expected, what to do.

    Attributes:
        level: how much it stops.
        code: stable name of its kind, such as `unknown-name`, for programs; empty where none is given.
        field: the setting that it is about, if it is about one.
        file, line: the place that holds what is wrong, for editors and pull requests.
    """

    what: str
    where: str = ""
    expected: str = ""
    fix: str = ""
    excerpt: str = ""
    file: str = ""
    line: int = 0
    level: Level = "error"
    code: str = ""
    field: str = ""

    def __post_init__(self) -> None:
        """A message may quote what somebody typed; credentials in it are shown to nobody.

        What is no text at all (bytes of a variable that are not UTF-8) is written as escapes.
        """
        for name in ("what", "where", "expected", "fix", "excerpt"):
            text = redact(getattr(self, name)).encode("utf-8", "backslashreplace").decode()
            object.__setattr__(self, name, text)

    def render(self) -> str:
        """Return the finding as indented text, without the parts that are empty."""
        parts = (("where", self.where), ("expected", self.expected), ("fix", self.fix))
        lines = [self.what]
        lines += [f"  {label + ':':<10}{text}" for label, text in parts if text]
        if self.excerpt:
            lines += [f"    {row}" for row in self.excerpt.splitlines()]
        return "\n".join(lines)

    def to_json(self) -> dict[str, str | int]:
        """Return plain JSON data, every part of it, empty or not."""
        return {name: getattr(self, name) for name in self.__slots__}

    def annotation(self) -> str:
        """Return a GitHub workflow command, which marks the file and line in a pull request."""
        file, place = self.file, ""
        if file:
            # GitHub wants paths relative to the checkout.
            top = os.environ.get("GITHUB_WORKSPACE") or os.getcwd()
            inside = file.startswith(top.rstrip(os.sep) + os.sep)
            path = _escaped(os.path.relpath(file, top) if inside else file, True)
            place = f" file={path},line={self.line or 1}"
        return f"::error{place}::{_escaped(self.render(), False)}"


def _escaped(text: str, in_property: bool) -> str:
    marks = {"%": "%25", "\r": "%0D", "\n": "%0A"} | ({":": "%3A", ",": "%2C"} if in_property else {})
    return "".join(marks.get(mark, mark) for mark in text)


class UserError(Exception):
    """A failure whose message is meant for the person who runs the program.

    The command line prints it as one block without a traceback and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", expected: str = "", fix: str = "") -> None:
        finding = Finding(what, where, expected, fix)
        self.findings: tuple[Finding, ...] = (finding,)
        super().__init__(finding.what, finding.where, finding.expected, finding.fix)

    def __str__(self) -> str:
        return "\n".join(finding.render() for finding in self.findings)

    @classmethod
    def from_findings(cls, findings: Sequence[Finding]) -> UserError:
        """Return one error that reports every finding, so that nobody fixes them one run at a time."""
        first = findings[0]
        error = cls(first.what, where=first.where, expected=first.expected, fix=first.fix)
        error.findings = tuple(findings)
        return error

    def __reduce__(self) -> tuple[object, ...]:
        return type(self).from_findings, (self.findings,)


class SettingsError(UserError, ValueError):
    """Settings that are misspelt, malformed, contradictory, or impossible on this machine."""

    exit_code = 2


class DataError(UserError, ValueError):
    """Input data that is missing, damaged, ambiguous or physically impossible."""


class SettingsWarning(UserWarning):
    """A setting that does less, or something else, than its value says; nothing is stopped."""


class DriftError(UserError, RuntimeError):
    """The Trainer is not what the settings asked for."""
