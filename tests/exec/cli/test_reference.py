"""What is generated: current, loadable, and a schema that accepts exactly what the model accepts."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import jsonschema
import pytest
import yaml
from annotated_types import Gt, Le
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr
from pydantic_settings import SettingsConfigDict

from ptycho_exec.cli.commands import main
from ptycho_exec.cli.reference import (
    EXAMPLES,
    env_example,
    generated_files,
    json_schema,
    reference_page,
    starter_toml,
    toml_value,
    write_generated,
)
from ptycho_exec.errors import SettingsError, UserError
from ptycho_exec.fields.choices import CHOICES
from ptycho_exec.fields.model import CONFLICTS, Conflict, Positive, TrainerTable
from ptycho_exec.fields.spec import Renamed, field_specs, format_value
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind
from ptycho_exec.sources.resolve import READERS
from ptycho_exec.version import __version__

if TYPE_CHECKING:
    from conftest import Place

ROOT = Path(__file__).parents[3]
SPECS = field_specs()
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@pytest.mark.parametrize("name", generated_files())
def test_generated_files_are_current(name: str) -> None:
    assert (ROOT / name).read_text("utf-8") == generated_files()[name], "run `make docs`"


def switched_on(text: str) -> str:
    """Remove the # before every assignment, as a reader of the file would."""
    return re.sub(r"^# ([A-Z_]+=)", r"\1", text, flags=re.M)


def test_a_copied_env_example_sets_nothing(place: Place) -> None:
    place.write(".env", env_example())
    assert place.resolve().values == {}
    assert place.resolve(profile="laptop").origins["devices"].kind is Kind.PROFILE


def test_the_env_example_names_every_field_once_and_switched_on_loads_to_the_defaults(place: Place) -> None:
    lines = switched_on(env_example()).splitlines()
    place.write(
        ".env", "\n".join(line for line in lines if "_SETTINGS_FILE=" not in line and "_PROFILE=" not in line)
    )
    found = place.settings()
    assert found == ExecutionSettings.from_values({})
    assert {origin.kind for origin in found.origins.values()} == {Kind.DOTENV}
    assert all(spec.sentence in env_example() for spec in SPECS.values())


class Bench(BaseModel):
    """Settings of another program."""

    model_config = SettingsConfigDict(env_prefix="MY_LAB_", use_attribute_docstrings=True)

    voltage: Annotated[float, Gt(0)] = 1.5
    """Volts at the sample."""
    detector: Literal["eiger", "jungfrau"] = "eiger"
    """Which detector reads."""
    window: tuple[float, float] = (0.0, 1.0)
    """Part of the frame, as fractions."""


def test_everything_is_generated_for_any_model() -> None:
    schema = json_schema(Bench)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert schema["title"] == "my_lab settings"
    assert schema["properties"]["voltage"]["x-env"] == "MY_LAB_VOLTAGE"
    assert validator.is_valid({"voltage": 2, "detector": "jungfrau", "profiles": {"x": {"window": [0, 1]}}})
    for wrong in ({"voltage": -1}, {"detector": "x"}, {"seed": 1}, {"profiles": {"x": {"voltage": 0}}}):
        assert not validator.is_valid(wrong), wrong
    assert "# MY_LAB_DETECTOR=eiger" in env_example(Bench)
    assert "my_lab.toml" in env_example(Bench)
    assert tomllib.loads(switched_on_toml(starter_toml("x.json", Bench)))["window"] == [0.0, 1.0]
    assert re.findall(r"^## `(\w+)`$", reference_page(Bench), re.M) == list(Bench.model_fields)
    assert "ptycho_exec" not in env_example(Bench) + starter_toml("x", Bench) + json.dumps(schema)


def switched_on_toml(text: str) -> str:
    return re.sub(r"^# ([a-z_]+ = )", r"\1", text.partition("# profile =")[0], flags=re.M)


def test_the_starter_file_loads_to_the_defaults(place: Place) -> None:
    place.write("ptycho_exec.toml", starter_toml())
    assert place.resolve().values == {}
    assert starter_toml("x.json").startswith("#:schema x.json\n")


def test_the_starter_file_with_every_line_switched_on_loads_to_the_defaults(place: Place) -> None:
    lines = starter_toml().splitlines()
    switched_on = [re.sub(r"^# ([a-z_]+ = )", r"\1", line) for line in lines]
    fields = [line for line in switched_on if line.partition(" = ")[0] in SPECS]
    place.write("ptycho_exec.toml", "\n".join(fields[: len(SPECS)]))
    assert set(tomllib.loads("\n".join(fields[: len(SPECS)]))) == set(SPECS)
    assert place.settings() == ExecutionSettings.from_values({})


def test_the_reference_page_has_a_section_for_each_field() -> None:
    page = reference_page()
    assert re.findall(r"^## `(\w+)`$", page, re.M) == list(SPECS)
    for spec in SPECS.values():
        assert spec.sentence in page
        assert f"`{spec.variable}`, flag: `{spec.flag}`" in page


def test_generated_files_are_written_only_into_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the top of a checkout"):
        write_generated(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "ptycho-exec"\n')
    assert {str(path.relative_to(tmp_path)) for path in write_generated(tmp_path)} == set(generated_files())
    assert write_generated(tmp_path) == []


# --- specs say what the code says -------------------------------------------------------------------------


def test_the_precedence_page_has_the_order_of_the_sources() -> None:
    page = (ROOT / "specs" / "precedence.md").read_text("utf-8")
    rows = re.findall(r"^\| \d+ \| `([a-z-]+)` \|", page, re.M)
    assert rows == [*(kind.value for kind in READERS), Kind.DEFAULT.value]


# --- the schema -----------------------------------------------------------------------------------------


def test_the_schema_is_a_schema_of_2020_12() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("name", SPECS)
def test_every_property_says_how_to_set_it(name: str) -> None:
    node, spec = SCHEMA["properties"][name], SPECS[name]
    assert node["description"] == spec.sentence
    assert node["default"] == spec.default
    assert (node["x-env"], node["x-toml"], node["x-flag"]) == (spec.variable, name, spec.flag)
    assert node["x-effect"] == spec.effect.value
    words = {
        format_value(branch["const"]): branch["description"]
        for branch in node.get("anyOf", [node])
        if "const" in branch
    }
    assert words == CHOICES.get(name, {})


def model_accepts(document: Any) -> bool:
    """Ask the model about one file: what does not stand in it may come from elsewhere, and does not clash."""
    if not isinstance(document, dict):
        return False
    extras = {name: document[name] for name in ("$schema", "profile", "profiles") if name in document}
    own = {name: value for name, value in document.items() if name not in extras}
    try:
        ExecutionSettings.from_values({"deterministic": False, "gradient_clip_val": 1.0, **own})
    except SettingsError:
        return False
    texts = [extras.get("$schema", "x"), extras.get("profile", "x")]
    return all(isinstance(text, str) for text in texts) and bool(texts[1].strip())


STRINGS = sorted({choice for spec in SPECS.values() for choice in spec.choices if isinstance(choice, str)})
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), max_size=6)
NUMBERS = (
    st.integers(-3, 12)
    | st.sampled_from([2**32 - 1, 2**32, 10**9, 10**9 + 1, 10**30, -(10**30)])
    | st.floats(-2, 12, allow_nan=False)
    | st.sampled_from([1.0, 2.0, 0.0, -1.0, 0.5, 1e-9, 1e6, 1e7, 10.0, 1e9, 1e300])
)
SCALAR = (
    st.none()
    | st.booleans()
    | NUMBERS
    | st.sampled_from([*STRINGS, "none", "None", "NULL", "nul", "", " none"])
    | st.from_regex(r"[0-9]{2}:[0-9]{2}:[0-9]{2}:[0-9]{2}", fullmatch=True).filter(str.isascii)
    | st.sampled_from(["00:00:00:00", "00:23:59:59", "00:24:00:00", "val_loss", "val/loss", "1x"])
    | TEXT
)
VALUE = SCALAR | st.lists(SCALAR | st.integers(0, 3), max_size=3) | st.dictionaries(TEXT, SCALAR, max_size=1)


def likely(name: str) -> st.SearchStrategy[Any]:
    """A value of one field: often one of its own words, or a number near its limits."""
    choices = [st.sampled_from(SPECS[name].choices)] if SPECS[name].choices else []
    return st.one_of(*choices, VALUE, st.just(SPECS[name].default)).map(json_native)


def json_native(value: Any) -> Any:
    return json.loads(json.dumps(value))


FIELDS = st.sampled_from(sorted(SPECS))
ONE = FIELDS.flatmap(lambda name: likely(name).map(lambda value: {name: value}))
CLASHING = ("deterministic", "benchmark", "gradient_clip_algorithm", "gradient_clip_val", "accelerator")
SEVERAL = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from([*SPECS[name].choices, None, 1.0, 2, [0, 1], [0, 0], "none"]).map(json_native)
        for name in (*CLASHING, "devices", "strategy", "precision")
    },
)
FRAME = st.fixed_dictionaries({}, optional={"profile": TEXT | SCALAR, "$schema": SCALAR, "sed": SCALAR})


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(ONE | SEVERAL | FRAME | st.dictionaries(TEXT | FIELDS, VALUE.map(json_native), max_size=3) | VALUE)
def test_the_schema_accepts_exactly_what_the_model_accepts(document: Any) -> None:
    assert VALIDATOR.is_valid(document) == model_accepts(document)


@settings(max_examples=300, deadline=None)
@given(name=FIELDS, value=VALUE.map(json_native))
def test_in_a_profile_too(name: str, value: Any) -> None:
    alone = VALIDATOR.is_valid({name: value})
    assert VALIDATOR.is_valid({"profiles": {"x": {name: value, "extends": "ci"}}}) == alone


@pytest.mark.parametrize("name", SPECS)
def test_every_default_and_choice_is_valid(name: str) -> None:
    for value in (SPECS[name].default, *SPECS[name].choices):
        assert VALIDATOR.is_valid({name: value, **_companion(name)})


def _companion(name: str) -> dict[str, Any]:
    return {"gradient_clip_val": 1} if name == "gradient_clip_algorithm" else {}


@pytest.mark.parametrize(
    "document",
    [
        {"profiles": {"x": {"seeed": 1}}},
        {"profiles": {"x": 1}},
        {"profiles": []},
        {"profiles": {"x": {"extends": ""}}},
        {"extends": "ci"},
    ],
)
def test_wrong_profiles_are_invalid(document: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(document)


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "text", 'a "b"', [0, 1], "ünï"])
def test_values_in_toml(value: Any) -> None:
    read = tomllib.loads(f"x = {toml_value(value)}")["x"]
    assert read == ("none" if value is None else value)


def test_every_profile_that_is_shipped_fits_the_schema() -> None:
    folder = ROOT / "ptycho_exec" / "profiles"
    names = sorted(path.stem for path in folder.glob("*.toml"))
    assert names == ["ci", "laptop", "multi-gpu", "repro", "single-gpu", "slurm"]
    for name in names:
        table = tomllib.loads((folder / f"{name}.toml").read_text("utf-8"))
        assert table["description"].endswith(".")
        VALIDATOR.validate({"profiles": {name: table}})
        ExecutionSettings(profile=name)


# --- what editors and other validators read ---------------------------------------------------------------


def test_the_schema_has_a_stable_name_and_examples_that_hold() -> None:
    assert SCHEMA["$id"] == "urn:ptycho-exec:settings:" + ":".join(__version__.split(".")[:2])
    for name, node in SCHEMA["properties"].items():
        for example in node.get("examples", ()):
            assert VALIDATOR.is_valid({name: example}), (name, example)
    assert all(VALIDATOR.is_valid(example) for example in SCHEMA["examples"])
    assert set(EXAMPLES) <= set(SPECS)
    without = {name for name in SPECS if not SCHEMA["properties"][name].get("examples")}
    assert all(SPECS[name].choices for name in without), without


@pytest.mark.parametrize("rule", CONFLICTS, ids=lambda rule: "-".join(rule.fields))
def test_a_conflict_is_refused_at_the_top_and_in_a_profile_with_words_for_an_editor(
    place: Place, rule: Conflict
) -> None:
    kinds = {tuple: [0, 1], int: 3, float: 0.5}
    values = {name: kinds.get(sides[0], sides[0]) for name, sides in rule.when.items()}
    for document in (values, {"profiles": {"x": values}}):
        assert not VALIDATOR.is_valid(document), document
    nodes = SCHEMA["$defs"]["conflicts"]["allOf"]
    (node,) = (node for node in nodes if tuple(node["not"]["required"]) == rule.fields)
    assert rule.fix in node["errorMessage"]
    assert rule.fix in node["$comment"]
    body = "".join(f"{name} = {toml_value(value)}\n" for name, value in values.items())
    place.write("ptycho_exec.toml", f"[profiles.x]\n{body}")
    with pytest.raises(SettingsError, match="contradict each other"):
        place.settings(profile="x")


def test_the_schema_of_the_table_in_pyproject(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--table"]) == 0
    table = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(table)
    assert table["title"] == "[tool.ptycho_exec]"
    assert table["$id"] != SCHEMA["$id"]
    validator = jsonschema.Draft202012Validator(table)
    assert validator.is_valid(tomllib.loads("[tool.ptycho_exec]\nseed = 1\n")["tool"]["ptycho_exec"])
    assert not validator.is_valid({"sed": 1})


class Lab(ExecutionSettings):
    """Settings of another program, with fields of its own and one that had another name before."""

    model_config = SettingsConfigDict(env_prefix="MY_LAB_")
    program: ClassVar[str] = "my_lab"
    version: ClassVar[str] = "1.2.3"
    renamed: ClassVar[Mapping[str, Renamed]] = {
        "hv": Renamed("voltage", "1.3.0"),
        "gone": Renamed("voltage", "1.2.0"),
    }

    voltage: Annotated[float, Gt(0), Le(300)] = 1.5
    """Kilovolts."""
    detector: Literal["eiger", "jungfrau"] = "eiger"
    """Which detector reads."""
    note: str | None = None
    """What the operator wrote."""
    batch_size: Positive = 4
    """Samples."""


MANY: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 8, 300, 301, 10**9, 10**9 + 1, 2**32 - 1, 2**32, 10**30),
    *(0.0, -0.5, 0.5, 1.0, 1.5, 2.0, 10.0, 10.5, 1e-9, 1e6, 1e7, 1e300),
    *("", " ", "none", "None", "null", "nul", "auto", "cpu", "gpu", "cuda", "mps", "tpu", "true", "warn"),
    *("1", "1.0", "eiger", "jungfrau", "val_loss", "val/loss", "1x", "csv", "wandb", "min", "max", "norm"),
    *("01:02:03:04", "00:00:00:00", "00:24:00:00", "1:2:3", "32-true", "bf16-mixed", "ddp", "Default"),
    *([], [0], [0, 1], [0, 0], [-1], ["0"], [0.0], [[0]], {}, {"a": 1}),
]


# A lab's settings have all of ours, and fields of their own.
@pytest.mark.parametrize("model", [pytest.param(ExecutionSettings, marks=pytest.mark.thorough), Lab])
def test_every_value_of_every_field_is_judged_alike(model: type[ExecutionSettings]) -> None:
    assert len(MANY) >= 66
    validator = jsonschema.Draft202012Validator(json_schema(model))
    apart = []
    places = [(name,) for name in field_specs(model)] + [
        ("trainer", name) for name in TrainerTable.model_fields
    ]
    for place in places:
        for value in MANY:
            document = {place[0]: {place[1]: value} if place[1:] else value}
            try:
                model.from_values({"deterministic": False, "gradient_clip_val": 1.0, **document})
                accepted = True
            except SettingsError:
                accepted = False
            if validator.is_valid(document) != accepted:
                apart.append((place, value, accepted))
    assert apart == []


def test_an_old_name_is_deprecated_in_the_schema_until_it_is_refused() -> None:
    schema = json_schema(Lab)
    validator = jsonschema.Draft202012Validator(schema)
    assert schema["properties"]["hv"]["deprecated"] is True
    assert "voltage" in schema["properties"]["hv"]["description"]
    assert validator.is_valid({"hv": 200, "profiles": {"x": {"hv": 1}}})
    assert not validator.is_valid({"hv": -1})
    assert not validator.is_valid({"gone": 1})
    assert (schema["$id"], schema["title"]) == ("urn:my-lab:settings:1:2", "my_lab settings")


def test_the_schema_speaks_yaml_too() -> None:
    assert VALIDATOR.is_valid(yaml.safe_load("batch_size: 8\ndevices: [0, 1]\nmax_time: null\n"))


def test_defaults_of_any_flat_type_are_written_as_a_file_holds_them() -> None:
    class Flat(ExecutionSettings):
        raw: Path = Path("raw")
        tags: frozenset[str] = frozenset({"b", "a"})
        token: SecretStr = SecretStr("open-sesame")

    rows = json.loads(json.dumps(json_schema(Flat)))["properties"]
    assert [rows[name]["default"] for name in ("raw", "tags", "token")] == ["raw", ["a", "b"], "***"]
    assert 'tags = ["a", "b"]' in starter_toml(model=Flat)
