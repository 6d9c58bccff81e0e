"""Errors that a user can act on: what happened, where, what was expected, how to fix it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

_SECRET_WORD = (
    r"(?:token|secret|password|passwd|pwd|passphrase|api[_-]?key|access[_-]?key|private[_-]?key|credentials?"
    r"|authorization)"
)

# Characters of which one is there, what is sought, and what stands in its place. Patterns here and in the
# modules of the sources are compiled by `re` at their first use: importing this package has no need of them.
_SECRETS: tuple[tuple[str, str, str], ...] = (
    # `scheme://user:password@`, also when the password holds `@`, `/`, spaces or quotes.
    (
        "@",
        (
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
        r"(?<![\w/*])(?!mailto:|\d{1,2}:\d{2}@)[\w.%+-]+:[^\s/@:\"']+@(?=[\w.-])(?!sha\d+:)",
        "***@",
    ),
    (
        "=",
        (
            r"(?i)(?P<key>(?:^|[?&;#\s])[^=&\s?]*"
            r"(?:token|key|secret|password|passwd|pwd|sig|auth|credential)[^=&\s]*="
            r"|[?&](?:code|pass|session|jwt|otp|pin)=)[^&\s#\"']+"
        ),
        r"\g<key>***",
    ),
    # `password: x`, `"api_key": "x"`, `--token x`, `Authorization: Basic x`.
    (
        ":=-",
        (
            rf"(?i)(?P<key>\b(?:\w+[_-])?{_SECRET_WORD}[\"']?\s*[:=]\s*(?:(?:bearer|basic|token)\s+)?"
            rf"|--(?:[\w-]+-)?{_SECRET_WORD}\s+)(?!(?:(?:bearer|basic|token)\s+)?\*\*\*)(?:\"[^\"]+\"|'[^']+'|[^\s,;&\"']+)"
        ),
        r"\g<key>***",
    ),
    ("bB", r"(?i)(?P<key>\bbearer\s+)[\w.~+/=-]{3,}", r"\g<key>***"),
    # Keys that are known by how they begin, and those of Weights & Biases.
    (
        "AghxsdeynpwE0123456789",
        (
            r"(?<![\w*])(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[a-z]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
            r"|xox[a-z]-[\w-]{10,}"
            r"|sk-[\w-]{16,}|hf_\w{16,}|dapi[0-9a-f]{32}|AIza[\w-]{30,}|ya29\.[\w-]{16,}"
            r"|npm_\w{20,}|pypi-[\w-]{20,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?)"
        ),
        "***",
    ),
    ("0123456789", r"(?<![\w/@.-])(?<!commit )[0-9a-f]{40}(?![\w.-])", "***"),
)
_ADDRESS = r"(?P<start>https?://[^/\s\"'?#]+/)(?P<path>[^\s\"'?#]+)"
_NAMED = r"(?i)(?:tokens?|keys?|secrets?|services|webhooks?|hooks)"


def redact(value: Any) -> Any:
    """Hide what looks like a credential: user information of addresses, values of secret names, keys.

    In a list, a set or a mapping every text is looked at.
    """
    if isinstance(value, Mapping):
        inside: Any = {redact(name): _under_a_name(name, item) for name, item in value.items()}
        return value if inside == value else inside
    if isinstance(value, (list, tuple, set, frozenset)):
        kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
        inside = kind(map(redact, value))
        return value if inside == value else inside
    if not isinstance(value, str):
        return value
    for marks, pattern, shown in _SECRETS:
        if any(mark in value for mark in marks):
            value = re.sub(pattern, shown, value)
    return re.sub(_ADDRESS, _without_tokens, value) if "://" in value else value


def _under_a_name(name: Any, value: Any) -> Any:
    """Hide a text whose name in a mapping says that it is a credential, and what looks like one."""
    if name == "commit" and isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40}", value):
        return value  # of a repository: which code ran
    hidden, line = redact(value), f"{name}={value}"
    return "***" if isinstance(value, str) and hidden == value and redact(line) != line else hidden


def _without_tokens(address: re.Match[str]) -> str:
    """Hide parts of a path that look drawn at random, and numbers and keys that follow a secret word."""
    parts = address["path"].split("/")
    pairs = zip(["", *parts], parts, strict=False)
    return address["start"] + "/".join("***" if _is_token(part, before) else part for before, part in pairs)


def _is_token(part: str, before: str) -> bool:
    changes = sum(a.isdigit() != b.isdigit() for a, b in pairwise(part))
    mixed = part != part.lower() and part != part.upper()
    drawn = len(part) >= 16 and mixed and changes >= 4 and re.fullmatch(r"[\w~+=-]+", part) is not None
    named = re.fullmatch(_NAMED, before) is not None and len(part) >= 8 and any(map(str.isdigit, part))
    return drawn or named


Level = Literal["error", "adapted", "note", "ok"]
"""How much a finding stops: everything; nothing, but results can change; nothing; it is good news."""


CODES: Mapping[str, str] = {
    # names
    "unknown-name": "a name that is no setting, flag, profile or variable here",
    "wrong-prefix": "a variable whose prefix is misspelt or missing",
    "misplaced-key": "a setting in a table where it is not read",
    "wrong-table": "a table that is misspelt, misplaced, or no table",
    "duplicate-key": "a name that is defined twice in one file",
    "renamed": "a setting under the name that it had before",
    # values
    "bad-value": "a value that its field does not accept",
    "missing-value": "a field without a default that nobody set",
    "conflict": "values that contradict each other",
    "another-network": "a network to start from that does not fit what is asked for",
    "endless-profile": "a profile that extends itself",
    # files
    "unreadable-file": "a file that is not there or cannot be read",
    "broken-file": "a file that cannot be parsed, or holds no settings",
    "unset-name": "a ${NAME} in a .env file that nothing sets",
    "not-an-assignment": "a line of a .env file that assigns nothing",
    "cannot-write": "a full disk",
    "bad-facts": "facts of a machine that are none",
    # worth knowing
    "not-read": "a file that looks like one of ours and is not read",
    "empty-variable": "a variable that is empty and counts as unset",
    "no-effect": "something that was set and does nothing here",
    "left-out": "a value that is not written, because it holds credentials or has no such form",
    "not-tried": "a trial that did not start",
    "trial-step": "a step of check --probe",
    "launch-cost": "what a launch needs of its nodes and network",
    "too-little-memory": "data that do not fit into the memory of a node",
    # what a plan says about a machine
    "accumulates-beyond-epoch": "more batches per optimizer step than an epoch has",
    "agc-without-hook": "adaptive clipping for a module that has no hook for it",
    "batch-per-process": "a batch size that each of several processes has",
    "batch-larger-than-data": "a batch larger than the data",
    "limit-beyond-epoch": "a limit that the batches of an epoch do not reach",
    "no-averaging": "averaged weights where there is nothing to average, or no such callback",
    "not-divisible": "a total that cannot be shared out evenly among the processes",
    "no-validation": "a setting of validation where nothing validates",
    "smoke-test": "a setting that a smoke test does not reach",
    "validates-beyond-epoch": "an interval between validations that is longer than an epoch",
    "idle": "a setting that nothing reads in this run",
    "decided-twice": "an argument of the Trainer that a setting decides as well",
    "own-argument": "an argument of `build_trainer` that was passed as one of the Trainer",
    "nothing-monitored": "a metric that is monitored and that nothing logs",
    "seeded-late": "a seed that is set after the module was made",
    "cpu-indices": "indices of devices where there is only a CPU",
    "largest-loss-ranks-first": "a loss that is ranked by its largest value",
    "logger-not-installed": "a logger whose package is missing",
    "manual-optimization": "an option that a module with its own optimization loop cannot honor",
    "metric-not-logged": "a monitored metric that nobody logs",
    "more-processes-than-cpus": "more processes than CPUs",
    "more-threads-than-cpus": "more threads than CPUs",
    "more-workers-than-cpus": "more loader processes than CPUs",
    "no-batches": "a training without a single batch",
    "no-checkpoints": "checkpoints that are not written",
    "no-compiler": "compilation without a compiler",
    "no-cuda": "an option of CUDA without a CUDA GPU",
    "no-cudnn": "an option of cuDNN without cuDNN",
    "no-launcher": "several nodes without a launcher",
    "no-length": "a fraction of the batches of a loader that does not know how many it has",
    "no-logger": "something for a logger where there is none",
    "no-such-gpu": "an accelerator that is not there",
    "no-such-precision": "a precision that the hardware does not have",
    "no-such-strategy": "a strategy that cannot run here",
    "no-tf32": "a precision of products that the hardware does not have",
    "no-workers": "an option of loader processes without any",
    "not-this-logger": "an option of another logger",
    "other-nodes-than-launcher": "another number of nodes than the launcher's",
    "other-tasks-than-launcher": "another number of processes than the launcher's",
    "slow-precision": "a precision that is slow on this hardware",
    "launcher-unclear": "variables of a launcher from which no process can tell which one it is",
    "started-by-mpi": "processes that mpirun started, which nothing connects",
    "not-in-srun": "a job of several tasks whose command srun did not start",
    "ranks-differ": "processes of one run that were given different things",
    "rank-missing": "a process of a run that did not come, or ended before the others",
    "uneven-tasks": "a launcher with another number of processes on each node",
    "gpus-hidden-from-tasks": "tasks of a job that each see one GPU of their node",
    "too-many-devices": "more devices than there are",
    # what is odd about a scan
    "dropped": "patterns that were left out because the settings say so",
    "gain": "detector units instead of counts",
    "reading": "what the reader of a format took for granted, averaged or left out",
    "repeated-positions": "positions that are exactly the same",
    "same-patterns": "patterns that are all the same",
    "dark-patterns": "patterns that are zero, or nearly so",
    "gaps": "pixels that hold no measurement in most patterns",
    "hot-pixels": "pixels much brighter than all around them",
    "dead-pixels": "pixels that never count although those around them do",
    "stuck-pixels": "pixels that hold the same number in all patterns",
    "background": "a level that lies under every pixel",
    "off-center": "a beam away from the center of the patterns",
    "far-positions": "positions far from all others",
    "saturated": "values at the largest number of their type",
    "much-overlap": "positions so close that their unit is in doubt",
    "little-overlap": "neighboring probes that hardly overlap",
    "beyond-canvas": "patches that reach beyond the object",
    "corner-frequency": "patterns whose zero frequency is in the corners",
    "cut-probe": "a probe that reaches beyond the window that binned patterns leave",
    # what stops a program
    "another-job": "a directory in which another job was begun than the one that would continue it",
    "drift": "the Trainer is not what the settings asked for",
    "bad-data": "input data that cannot be used",
    "refused": "settings or a call that cannot be honored",
    "failed": "any other failure that a user can act on",
}
"""Every code of a finding and what it means; programs can rely on them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to report, in the order a reader asks: what, where, what was expected, what to do.

    Attributes:
        level: how much it stops.
        code: stable name of its kind, a key of `CODES`, for programs.
        field: the setting that it is about, if it is about one.
        given: what was written there, as text, if that is known.
        file, line: the place that holds what is wrong, for editors and pull requests.
        options: values of settings that mend it, by their names, where such a remedy is known to fit.
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
    given: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """A message may quote what somebody typed; credentials in it are shown to nobody.

        What is no text at all (bytes of a variable that are not UTF-8) is written as escapes.
        """
        for name in ("what", "where", "expected", "fix", "excerpt", "given"):
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

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, every part of it, empty or not."""
        return {name: getattr(self, name) for name in self.__slots__}

    def annotation(self) -> str:
        """Return a GitHub workflow command, which marks the file and line in a pull request."""
        path = _escaped(_in_checkout(self.file, "GITHUB_WORKSPACE"), True)
        place = f" file={path},line={self.line or 1}" if self.file else ""
        command = "error" if self.level == "error" else "notice"
        return f"::{command}{place}::{_escaped(self.render(), False)}"

    def code_quality(self) -> dict[str, Any]:
        """Return one entry of GitLab's code-quality report.

        Each needs a file: what is in none, such as a variable of the job, is shown at the job's own.
        """
        path = _in_checkout(self.file, "CI_PROJECT_DIR")
        path = path or os.environ.get("CI_CONFIG_PATH") or ".gitlab-ci.yml"
        identity = "\0".join((self.code, self.field, path, self.what))
        return {
            "description": self.render(),
            "check_name": self.code,
            "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
            "severity": {"error": "blocker", "adapted": "major"}.get(self.level, "info"),
            "location": {"path": path, "lines": {"begin": self.line or 1}},
        }

    def to_pydantic(self) -> dict[str, Any]:
        """Return the finding as an item of `ValidationError.errors()`: type, loc, msg, input, ctx."""
        context = {name: getattr(self, name) for name in ("where", "expected", "fix", "file", "line")}
        loc = (self.field,) if self.field else ()
        return {"type": self.code, "loc": loc, "msg": self.what, "input": self.given or None, "ctx": context}


ANNOTATIONS: Mapping[str, Callable[[Sequence[Finding]], str]] = {
    "github": lambda findings: "\n".join(finding.annotation() for finding in findings),
    "gitlab": lambda findings: json.dumps([finding.code_quality() for finding in findings], indent=2),
}
"""How findings are written for a system that shows them beside the changed lines."""


def _in_checkout(file: str, variable: str) -> str:
    """Return a path relative to the checkout that a CI system names, where it is in it."""
    top = os.environ.get(variable) or os.getcwd()
    return os.path.relpath(file, top) if file.startswith(top.rstrip(os.sep) + os.sep) else file


def _escaped(text: str, in_property: bool) -> str:
    marks = {"%": "%25", "\r": "%0D", "\n": "%0A"} | ({":": "%3A", ",": "%2C"} if in_property else {})
    return "".join(marks.get(mark, mark) for mark in text)


class UserError(Exception):
    """A failure whose message is meant for the person who runs the program.

    The command line prints it as one block without a traceback and exits with `exit_code`.
    """

    exit_code = 1
    code = "failed"
    """The code of its finding where none is given."""
    spoken_by: int | None = None
    """The rank whose process shows it, where all processes of a run have the same; None shows it anywhere."""

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        expected: str = "",
        fix: str = "",
        code: str = "",
        field: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        finding = Finding(
            what, where, expected, fix, code=code or self.code, field=field, options=options or {}
        )
        self.findings: tuple[Finding, ...] = (finding,)
        super().__init__(finding.what, finding.where, finding.expected, finding.fix)

    def __str__(self) -> str:
        return "\n".join(finding.render() for finding in self.findings)

    def errors(self) -> list[dict[str, Any]]:
        """Return the findings in the shape of pydantic's `ValidationError.errors()`."""
        return [finding.to_pydantic() for finding in self.findings]

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
    code = "refused"


class DataError(UserError, ValueError):
    """Input data that is missing, damaged, ambiguous or physically impossible."""

    code = "bad-data"


class SettingsWarning(UserWarning):
    """A setting that does less, or something else, than its value says; nothing is stopped."""


class DataWarning(UserWarning):
    """Data that can be used and are not as they should be; nothing is stopped."""


class DriftError(UserError, RuntimeError):
    """The Trainer is not what the settings asked for."""

    code = "drift"
