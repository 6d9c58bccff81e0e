"""Settings written so that loading them gives equal settings: a file in TOML or JSON, variables, or flags."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pydantic import SecretBytes, SecretStr

from ptycho_exec.cli.reference import toml_value
from ptycho_exec.errors import redact
from ptycho_exec.fields.base import converted
from ptycho_exec.fields.spec import FieldSpec, decode_text, field_specs, format_value, plain
from ptycho_exec.settings import ResolvedSettings
from ptycho_exec.sources.validators import OF_THE_CLASS, as_given


class Form(NamedTuple):
    """How one form writes a value (None where it cannot), a line, a remark instead of one, and all lines."""

    value: Callable[[FieldSpec, Any], str | None]
    line: Callable[[FieldSpec, str], str]
    remark: Callable[[FieldSpec, str], str | None]
    whole: Callable[[list[str]], str]


def _as_toml(spec: FieldSpec, value: Any) -> str | None:
    text = toml_value(value).replace("\x7f", "\\u007f")  # JSON leaves this control character as it is
    try:
        read = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return None
    return text if (read == "none" and value is None) or _is_same(spec, read, value) else None


def _as_text(spec: FieldSpec, value: Any) -> str | None:
    texts = (format_value(value), json.dumps(plain(value)))
    return next((text for text in texts if _is_same(spec, decode_text(spec, text), value)), None)


def _as_dotenv(spec: FieldSpec, value: Any) -> str | None:
    text = _as_text(spec, value)
    return None if text is None or "\r" in text else text  # a text file cannot keep this end of a line


def _is_same(spec: FieldSpec, read: Any, value: Any) -> bool:
    """Return whether what is read again is the value."""
    again = read if spec.secret else converted(spec.model, spec.name, read)
    return type(again) is type(value) and bool(again == value)


def _as_json(spec: FieldSpec, value: Any) -> str | None:
    text = json.dumps(plain(value))
    return text if _is_same(spec, json.loads(text), value) else None


def _dotenv_quoted(text: str) -> str:
    if re.fullmatch(r"[\w./:,@+\[\]-]+", text, re.ASCII):
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _lines(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


FORMS: dict[str, Form] = {
    "toml": Form(
        _as_toml,
        lambda spec, text: f"{spec.name} = {text}",
        lambda spec, why: f"# {spec.name} is left out: {why}",
        _lines,
    ),
    "env": Form(
        _as_dotenv,
        lambda spec, text: f"{spec.variable}={_dotenv_quoted(text)}",
        lambda spec, why: f"# {spec.variable} is left out: {why}",
        _lines,
    ),
    "flags": Form(
        _as_text,
        lambda spec, text: shlex.quote(f"{spec.flag}={text}"),
        lambda *_: None,
        lambda lines: " ".join(lines) + "\n",
    ),
    "json": Form(
        _as_json,
        lambda spec, text: f"  {json.dumps(spec.name)}: {text}",
        lambda *_: None,
        lambda lines: "{\n" + ",\n".join(lines) + "\n}\n",
    ),
}
"""The forms of `show --format`."""


def freeze(
    settings: ResolvedSettings, form: str, names: Iterable[str] | None = None, *, show_secrets: bool = False
) -> tuple[str, list[str]]:
    """Write settings in one of `FORMS`, so that loading the text gives them again.

    A value with credentials is left out unless `show_secrets`, so that `***` is never loaded in its place.

    Returns:
        the text, and a sentence for each value that is not in it.
    """
    write, specs = FORMS[form], field_specs(type(settings))
    lines, left_out = list[str](), list[str]()
    given = as_given(settings, settings.origins, type(settings).from_values)
    for name in specs if names is None else names:
        spec, value = specs[name], given.get(name)
        hidden = (spec.hidden or redact(value) != value) and not show_secrets
        if isinstance(value, (SecretStr, SecretBytes)):
            value = value.get_secret_value()
        text = None if hidden or name not in given else write.value(spec, value)
        if text is not None:
            lines.append(write.line(spec, text))
            continue
        why = f"{form} cannot hold it" if name in given else OF_THE_CLASS
        why = "it holds credentials; --show-secrets writes them" if hidden else why
        left_out.append(f"{name} is left out: {why}")
        remark = write.remark(spec, why)
        lines += [remark] if remark else []
    return write.whole(lines), left_out
