"""Command-line flags of the science configs, derived from their fields like those of the settings."""

from __future__ import annotations

import argparse
import typing
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ptycho_exec.cli.flags import Parser
from ptycho_exec.errors import Finding, SettingsError
from ptycho_exec.fields.spec import format_value
from ptycho_torch.config import DataConfig, InferenceConfig, ModelConfig, TrainingConfig

Config = type[DataConfig | ModelConfig | TrainingConfig | InferenceConfig]
_CONFIGS: tuple[Config, ...] = (DataConfig, ModelConfig, TrainingConfig, InferenceConfig)
_PREFIX = "science_field_"
_NONE = ("none", "null")


def add_science_flags(parser: Parser, *configs: Config, but: tuple[str, ...] = ()) -> None:
    """Add one flag per field, unset unless given, `but` those that the command has in its own way."""
    group = parser.add_argument_group("what to run (science)")
    for config in configs:
        for name, info in config.model_fields.items():
            if name in but:
                continue
            sentence = f"{info.description} [{format_value(info.default)}]".replace("%", "%%")
            flag = "--" + name.lower().replace("_", "-")
            group.add_argument(flag, dest=_PREFIX + name, metavar="VALUE", default=None, help=sentence)


def science_given(args: argparse.Namespace, *, text: bool = False) -> dict[str, Any]:
    """Return the science flags that were typed: field -> value (or its text).

    Raises:
        SettingsError: a text that its field does not accept; all of them at once.
    """
    given = {
        name.removeprefix(_PREFIX): value
        for name, value in vars(args).items()
        if name.startswith(_PREFIX) and value is not None
    }
    if text:
        return given
    findings: list[Finding] = []
    values = {name: _parse(name, word, findings) for name, word in given.items()}
    if findings:
        raise SettingsError.from_findings(findings)
    return values


_READABLE = {"Input should be a valid boolean, unable to interpret input": "true or false"}


def _parse(name: str, word: str, findings: list[Finding]) -> Any:
    info = next(config.model_fields[name] for config in _CONFIGS if name in config.model_fields)
    value: Any = None if word.lower() in _NONE and type(None) in typing.get_args(info.annotation) else word
    if "," in word:
        value = [part.strip() for part in word.strip("[]()").split(",")]
    try:
        annotation: Any = info.annotation
        if info.metadata:
            annotation = typing.Annotated[annotation, *info.metadata]
        accepts: TypeAdapter[Any] = TypeAdapter(annotation)
        return accepts.validate_python(value)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        flag = "--" + name.lower().replace("_", "-")
        findings.append(
            Finding(
                f"{flag} = {word!r} is not allowed",
                where="command line",
                expected=_READABLE.get(message, message.removeprefix("Input should be ")),
                fix=f"{info.description} [{format_value(info.default)}]",
            )
        )
        return None
