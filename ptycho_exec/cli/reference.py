"""What is generated from the fields: JSON schema, settings reference, `.env.example`, starter TOML.

Tests compare the committed files with a fresh generation; `ptycho-exec docs` writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ptycho_exec.errors import CODES, UserError
from ptycho_exec.fields.base import NONE_WORDS
from ptycho_exec.fields.choices import CHOICES
from ptycho_exec.fields.model import CONFLICTS
from ptycho_exec.fields.spec import (
    FieldSpec,
    field_specs,
    format_value,
    is_refused,
    plain,
    renamed_fields,
    table_specs,
)
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.classes import settings_classes
from ptycho_exec.sources.discovery import places_of

SCHEMA_PATH = "specs/execution_settings.schema.json"
EXAMPLES: dict[str, Any] = {
    "devices": [0, 1],
    "num_threads": 4,
    "global_batch_size": 64,
    "start_timeout": 300.0,
    "learning_rate": 3e-4,
    "gradient_clip_val": 1.0,
    "max_time": "00:12:00:00",
    "max_steps": 10000,
    "overfit_batches": 2,
    "ema_decay": 0.999,
    "swa_epoch_start": 0.75,
    "limit_val_batches": 0.5,
    "val_check_interval": 0.25,
    "checkpoint_every_n_steps": 1000,
    "checkpoint_every": "00:00:30:00",
    "limit_train_batches": 0.25,
    "fast_dev_run": 2,
    "prefetch_factor": 2,
    "checkpoint_monitor_metric": "train_loss",
    "log_images_every_n_epochs": 5,
    "experiment_name": "beam time 7",
    "tracking_uri": "http://localhost:5000",
    "inference_batch_size": 64,
    "trainer": {"min_epochs": 5},
}
"""A value for the editors of a settings file, where the default shows less."""
_NONE_PATTERN = (
    "^(" + "|".join("".join(f"[{c.upper()}{c}]" for c in word) for word in sorted(NONE_WORDS)) + ")$"
)


def package_name(model: type[BaseModel]) -> str:
    """Return the name that the files and tables of a settings class start with: `ptycho_exec`."""
    places = places_of(model)
    return places.program or places.prefix.lower().strip("_")


def json_schema(model: type[BaseModel] = ExecutionSettings) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a settings file, as editors and other tools read it.

    It accepts what the model accepts. Of the rules between fields it knows those whose both sides
    are in the file: the other side may come from elsewhere.

    Examples:
        >>> from ptycho_exec import json_schema
        >>> json_schema()["properties"]["batch_size"]["minimum"]
        1
    """
    specs = field_specs(model)
    properties = _properties(model, specs)
    old = _old_names(model)
    name, version = package_name(model), str(getattr(model, "version", ""))
    rules = _conflicts(properties)
    conflicts = {"allOf": [{"$ref": "#/$defs/conflicts"}]} if rules else {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ":".join(["urn", name.replace("_", "-"), "settings", *version.split(".")[:2]]).rstrip(":"),
        "title": f"{name} settings",
        "description": f"Settings of {name}, as a file in TOML, YAML or JSON holds them.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "$schema": {"type": "string", "description": "Address of this schema, for editors."},
            "profile": {
                "anyOf": [
                    _text("Its name."),
                    {"type": "array", "items": _text("Names; the later one wins."), "minItems": 1},
                ],
                "description": "Profile, or profiles, to use when none is asked for elsewhere.",
            },
            "profiles": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "extends": _text("Profile whose values are taken where this one has none."),
                        "description": _text(f"One line for `{name.replace('_', '-')} profiles`."),
                        **{name: {"$ref": f"#/properties/{name}"} for name in (*properties, *old)},
                    },
                    **conflicts,
                },
                "description": "Named sets of values: [profiles.NAME].",
            },
            **properties,
            **old,
        },
        **conflicts,
        **({"$defs": {"conflicts": {"allOf": rules}}} if rules else {}),
        "examples": [{"profile": "ci", **{spec.name: spec.default for spec in list(specs.values())[:1]}}],
    }


def table_schema(model: type[BaseModel] = ExecutionSettings) -> dict[str, Any]:
    """Return the JSON schema of the table in pyproject.toml, as validators of that file take for a tool."""
    whole, name = json_schema(model), package_name(model)
    identity = whole["$id"].replace(":settings", ":pyproject-table", 1)
    description = f"Settings of {name}, in the table [tool.{name}] of pyproject.toml."
    return {**whole, "$id": identity, "title": f"[tool.{name}]", "description": description}


def _old_names(model: type[BaseModel]) -> dict[str, Any]:
    """Return a property for each name that a field had before and that is not refused yet."""
    return {
        name: {
            "$ref": f"#/properties/{row.new}",
            "deprecated": True,
            "description": f"Now called {row.new}; refused from version {row.refused_from} on.",
        }
        for name, row in renamed_fields(model).items()
        if not is_refused(row, model)
    }


def _conflicts(names: Collection[str]) -> list[dict[str, Any]]:
    """Return a rule for each conflict between fields of these names."""
    return [
        {
            "not": {"required": list(rule.when), "properties": sides},
            "$comment": f"{rule.why}: {rule.fix}",
            "errorMessage": f"{' and '.join(rule.fields)} contradict each other: {rule.why}; {rule.fix}",
        }
        for rule in CONFLICTS
        if set(rule.fields) <= set(names)
        for sides in [{name: _one_of(values) for name, values in rule.when.items()}]
    ]


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "pattern": "[^ ]", "description": description}


def _one_of(values: tuple[Any, ...]) -> dict[str, Any]:
    """Return the schema of the values on one side of a conflict, as `Conflict.when` writes them."""
    none = {"anyOf": [{"type": "null"}, {"type": "string", "pattern": _NONE_PATTERN}]}
    special = {tuple: {"type": "array"}, float: {"type": "number"}, None: none}
    return {"anyOf": [special.get(value, {"const": value}) for value in values]}


def _properties(model: type[BaseModel], specs: Mapping[str, FieldSpec]) -> dict[str, Any]:
    fields = model.model_json_schema()["properties"]
    return {name: _property(spec, fields[name]) for name, spec in specs.items()}


def _property(spec: FieldSpec, generated: dict[str, Any]) -> dict[str, Any]:
    node = {key: value for key, value in generated.items() if key not in ("title", "env_names")}
    if spec.table:
        node = {
            "type": "object",
            "additionalProperties": False,
            "properties": _properties(spec.table, table_specs(spec)),
        }
    branches = [branch for part in node.pop("anyOf", [node]) for branch in _described(spec, part)]
    if spec.optional:
        branches.append({"type": "string", "pattern": _NONE_PATTERN})
    default = list(spec.default) if isinstance(spec.default, tuple) else plain(spec.default)
    example = EXAMPLES.get(spec.name, None if spec.choices else default)
    return {
        "description": spec.sentence,
        **(branches[0] if len(branches) == 1 else {"anyOf": branches}),
        **({} if spec.required else {"default": default}),
        **({} if example is None or "examples" in generated else {"examples": [example]}),
        "x-effect": spec.effect.value,
        "x-env": spec.variable,
        "x-toml": spec.full_name,
        "x-flag": spec.flag,
    }


def _described(spec: FieldSpec, branch: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a branch of a schema as it is, or each of its words with its meaning, for editors to show."""
    meanings = CHOICES.get(spec.name, {})
    words = branch.get("enum") or ([branch["const"]] if "const" in branch else [])
    if branch.get("type") == "boolean" and "true" in meanings:
        words = [True, False]
    if not words or not meanings:
        return [{key: value for key, value in branch.items() if key not in ("default", "description")}]
    return [{"const": word, "description": meanings[format_value(word)]} for word in words]


def schema_text(model: type[BaseModel] = ExecutionSettings, *, table: bool = False) -> str:
    return json.dumps((table_schema if table else json_schema)(model), indent=2) + "\n"


def reference_page(model: type[BaseModel] = ExecutionSettings) -> str:
    """Return the settings reference as Markdown."""
    lines = [
        f"# Settings of `{package_name(model)}`",
        "",
        "Every setting, generated by `ptycho-exec docs` from the fields; do not edit.",
        "Effect: `numerics` can change results, `performance` speed, `io` what is written, `ui` the display.",
        "",
    ]
    for spec in field_specs(model).values():
        lines += [
            f"## `{spec.name}`",
            "",
            spec.sentence,
            "",
            f"- accepts: {spec.expected()}",
            *(f"  - `{word}`: {meaning}" for word, meaning in CHOICES.get(spec.name, {}).items()),
            *(
                f"  - `{name}`: {row.sentence} [{row.expected()}; default `{format_value(row.default)}`]"
                for name, row in table_specs(spec).items()
            ),
            f"- default: `{format_value(spec.default)}`",
            f"- effect: {spec.effect.value}",
            f"- variable: `{spec.variable}`, flag: `{spec.flag}`, TOML: `{spec.name} = ...`",
            "",
        ]
    return "\n".join(lines)


def env_example(model: type[BaseModel] = ExecutionSettings) -> str:
    """Return `.env.example`: every field and its default, commented out, so that a copy sets nothing."""
    name, places = package_name(model), places_of(model)
    lines = [
        f"# Every setting of {name} at its default: copy to .env and remove the # before what you change.",
        "# Generated by `ptycho-exec docs`. Real environment variables win over this file.",
        "",
        "# A settings file (TOML, YAML or JSON) and a profile to start from.",
        f"# {places.settings_file_variable}={name}.toml",
        f"# {places.profile_variable}=laptop",
        "",
    ]
    for spec in field_specs(model).values():
        lines += [
            f"# {spec.sentence}",
            f"# Accepts: {spec.expected()}.",
            f"# {spec.variable}={format_value(spec.default)}",
            "",
        ]
    return "\n".join(lines)


def starter_toml(schema: str = SCHEMA_PATH, model: type[BaseModel] = ExecutionSettings) -> str:
    """Return a starter settings file: every field commented out at its default, with a schema line."""
    lines = [
        f"#:schema {schema}",
        f"# Settings of {package_name(model)}. Remove the # before a name to set it.",
        "",
    ]
    for spec in field_specs(model).values():
        lines += [f"# {spec.sentence}", f"# {spec.name} = {toml_value(spec.default)}", ""]
    lines += ['# profile = "laptop"', "", "# [profiles.mine]", '# extends = "ci"', "# batch_size = 8", ""]
    return "\n".join(lines)


def findings_page() -> str:
    """Return the codes of findings as Markdown."""
    lines = [
        "# Codes of findings",
        "",
        "Generated by `ptycho-exec docs` from `ptycho_exec.errors.CODES`; do not edit.",
        "",
        "Every finding has a `code`: in `SettingsError.findings`, in `--json`, as `type` in",
        "`SettingsError.errors()`, as `check_name` in a GitLab report. Codes are stable; a finding about one",
        "setting names it in `field`.",
        "",
        "| code | meaning |",
        "|---|---|",
        *(f"| `{code}` | {meaning} |" for code, meaning in CODES.items()),
        "",
    ]
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    """Write a value in TOML, which has no null: none is a word there."""
    value = plain(value)
    if value is None:
        return '"none"'
    if isinstance(value, dict):
        rows = [f"{json.dumps(str(name))} = {toml_value(item)}" for name, item in value.items()]
        return f"{{{', '.join(rows)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else format_value(value)


def generated_files() -> dict[str, str]:
    """Return every generated file of the repository, path -> text, for all registered settings classes."""
    models = settings_classes()
    names = {model: re.sub(r"(?<=[a-z])(?=[A-Z])", "_", model.__name__).lower() for model in models}
    return {
        **{f"specs/{name}.schema.json": schema_text(model) for model, name in names.items()},
        **{
            f"docs/reference/{name.removeprefix('execution_')}.md": reference_page(m)
            for m, name in names.items()
        },
        "docs/reference/findings.md": findings_page(),
        ".env.example": "\n\n".join(env_example(model) for model in models),
    }


def write_generated(root: Path) -> list[Path]:
    """Write the generated files below `root`, the top of a checkout, and return the ones that changed.

    Raises:
        UserError: `root` is no checkout of this package.
    """
    pyproject = root / "pyproject.toml"
    if not pyproject.is_file() or 'name = "ptycho-exec"' not in pyproject.read_text("utf-8"):
        raise UserError(
            "this is not the top of a checkout of ptycho-exec",
            where=str(root.resolve()),
            expected="its pyproject.toml",
            fix="name the checkout with --root; `ptycho-exec schema` prints the schema anywhere",
        )
    changed = []
    for name, text in generated_files().items():
        path = root / name
        if not path.is_file() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            changed.append(path)
    return changed
