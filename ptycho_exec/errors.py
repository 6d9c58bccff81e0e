"""Errors that a user can act on: what happened, where, what was expected, how to fix it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

_SECRET_WORD = (
    r"(?:token|secret|password|passwd|pwd|passphrase|api[_-]?key|access[_-]?key|private[_-]?key|credentials?"
    r"|authorization)"
)

# Characters of which one is there, what is sought, and what stands in its place.
_SECRETS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    # `scheme://user:password@`, also when the password holds `@`, `/`, spaces or quotes.
    (
        "@",
        re.compile(
            r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*:/{1,2}|//)"
            r"(?:[^/?#\s\"']*@"
            r"|[^/?#\s\"':@]+:(?!\d{1,5}(?:[/?#\s\"']|$))"
            r"(?:(?:[^\s\"']|[\"'](?=\w))*@|(?=\S)(?:(?!://)[^\"'\n@])*@))"
        ),
        r"\g<scheme>***@",
    ),
    # `user:password@host` without a scheme; neither a time nor the digest of an image.
    (
        "@",
        re.compile(r"(?<![\w/*])(?!mailto:|\d{1,2}:\d{2}@)[\w.%+-]+:[^\s/@:\"']+@(?=[\w.-])(?!sha\d+:)"),
        "***@",
    ),
    (
        "=",
        re.compile(
            r"(?i)(?P<key>(?:^|[?&;#\s])[^=&\s?]*"
            r"(?:token|key|secret|password|passwd|pwd|sig|auth|credential)[^=&\s]*="
            r"|[?&](?:code|pass|session|jwt|otp|pin)=)[^&\s#\"']+"
        ),
        r"\g<key>***",
    ),
    # `password: x`, `"api_key": "x"`, `--token x`, `Authorization: Basic x`.
    (
        ":=-",
        re.compile(
            rf"(?i)(?P<key>\b(?:\w+[_-])?{_SECRET_WORD}[\"']?\s*[:=]\s*(?:(?:bearer|basic|token)\s+)?"
            rf"|--(?:[\w-]+-)?{_SECRET_WORD}\s+)(?!(?:(?:bearer|basic|token)\s+)?\*\*\*)(?:\"[^\"]+\"|'[^']+'|[^\s,;&\"']+)"
        ),
        r"\g<key>***",
    ),
    ("bB", re.compile(r"(?i)(?P<key>\bbearer\s+)[\w.~+/=-]{3,}"), r"\g<key>***"),
    # Keys that are known by how they begin, and those of Weights & Biases.
    (
        "AghxsdeynpwE0123456789",
        re.compile(
            r"(?<![\w*])(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[a-z]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
            r"|xox[a-z]-[\w-]{10,}"
            r"|sk-[\w-]{16,}|hf_\w{16,}|dapi[0-9a-f]{32}|AIza[\w-]{30,}|ya29\.[\w-]{16,}"
            r"|npm_\w{20,}|pypi-[\w-]{20,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?)"
        ),
        "***",
    ),
    ("0123456789", re.compile(r"(?<![\w/@.-])(?<!commit )[0-9a-f]{40}(?![\w.-])"), "***"),
)
_ADDRESS = re.compile(r"(?P<start>https?://[^/\s\"'?#]+/)(?P<path>[^\s\"'?#]+)")
_NAMED = re.compile(r"(?i)(?:tokens?|keys?|secrets?|services|webhooks?|hooks)")


def redact(value: Any) -> Any:
    """Hide what looks like a credential: user information of addresses, values of secret names, keys."""
    if not isinstance(value, str):
        return value
    for marks, pattern, shown in _SECRETS:
        if any(mark in value for mark in marks):
            value = pattern.sub(shown, value)
    return _ADDRESS.sub(_without_tokens, value) if "://" in value else value


def _without_tokens(address: re.Match[str]) -> str:
    """Hide parts of a path that look drawn at random, and numbers and keys that follow a secret word."""
    parts = address["path"].split("/")
    pairs = zip(["", *parts], parts, strict=False)
    return address["start"] + "/".join("***" if _is_token(part, before) else part for before, part in pairs)


def _is_token(part: str, before: str) -> bool:
    changes = sum(a.isdigit() != b.isdigit() for a, b in pairwise(part))
    mixed = part != part.lower() and part != part.upper()
    drawn = len(part) >= 16 and mixed and changes >= 4 and re.fullmatch(r"[\w~+=-]+", part) is not None
    named = _NAMED.fullmatch(before) is not None and len(part) >= 8 and any(map(str.isdigit, part))
    return drawn or named


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


class DriftError(UserError, RuntimeError):
    """The Trainer is not what the settings asked for."""
