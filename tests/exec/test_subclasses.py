"""Settings classes of other programs: below `ExecutionSettings`, on their own, and inside other models."""

from __future__ import annotations

import enum
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_type_hints

import pytest
from annotated_types import Interval
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from typing_extensions import TypedDict

from ptycho_exec.errors import SettingsError
from ptycho_exec.settings import ExecutionSettings, ResolvedSettings, override_settings
from ptycho_exec.sources.origins import Kind
from ptycho_exec.sources.resolve import Request, resolve

if TYPE_CHECKING:
    from conftest import Place


class Mode(enum.Enum):
    RASTER = "raster"
    SPIRAL = "spiral"


class Lab(ExecutionSettings):
    """The settings of a laboratory: names, fields, a default and a limit of its own."""

    program: ClassVar[str] = "lab"
    model_config = SettingsConfigDict(env_prefix="LAB_")

    batch_size: Annotated[int, Interval(ge=1, le=256)] = 64
    """Samples per step; the detector computer has no more memory than for 256."""
    beamline: str = "none"
    """Where the scan was taken."""
    shutter: bool = False
    dwell_s: Annotated[float, Interval(ge=0.001)] | None = None
    raw: Path = Path("raw")
    mode: Mode = Mode.RASTER
    frames: list[int] = Field(default_factory=list)
    tags: frozenset[str] = frozenset()


class Alone(ResolvedSettings):
    """Settings that are no execution settings."""

    program: ClassVar[str] = "alone"
    model_config = SettingsConfigDict(env_prefix="ALONE_")

    project: str
    depth: Literal["shallow", "deep"] = "deep"
    low: int = 0
    high: int = 10

    @model_validator(mode="after")
    def _ordered(self) -> Alone:
        if self.low > self.high:
            raise ValueError("low is above high; exchange the two")
        return self


VALUES: dict[str, tuple[str, str, Any]] = {
    # field: text of a variable or flag, TOML, value
    "batch_size": ("8", "8", 8),
    "beamline": ("26-ID", '"26-ID"', "26-ID"),
    "shutter": ("on", "true", True),
    "dwell_s": ("0.5", "0.5", 0.5),
    "raw": ("/data/raw", '"/data/raw"', Path("/data/raw")),
    "mode": ("spiral", '"spiral"', Mode.SPIRAL),
    "frames": ("1,2,3", "[1, 2, 3]", [1, 2, 3]),
    "tags": ("a,b", '["a", "b"]', {"a", "b"}),
    "precision": ("bf16-mixed", '"bf16-mixed"', "bf16-mixed"),
}


@pytest.mark.parametrize("name", VALUES)
def test_every_field_by_keyword_variable_file_and_flag(
    name: str, clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, toml, value = VALUES[name]
    assert getattr(Lab(**{name: value}), name) == value
    by_flag = Lab.from_resolution(resolve(Request(Lab, flags={name: text})))
    assert (getattr(by_flag, name), by_flag.origins[name].kind) == (value, Kind.FLAG)
    clean_process.write("lab.toml", f"\n{name} = {toml}\n")
    by_file = Lab()
    assert getattr(by_file, name) == value
    assert by_file.origin_of(name) == f"project-file ({clean_process.cwd / 'lab.toml'}:2)"
    monkeypatch.setenv(f"LAB_{name.upper()}", text)
    by_variable = Lab()
    assert (getattr(by_variable, name), by_variable.origin_of(name)) == (
        value,
        f"environment LAB_{name.upper()}",
    )


def test_the_names_of_the_class_above_have_no_effect_and_that_is_a_note(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTYCHO_EXEC_SEED", "7")
    clean_process.write("ptycho_exec.toml", "seed = 8\n")
    resolution = resolve(Request(Lab))
    assert Lab.from_resolution(resolution).seed == 42
    assert [notice.what for notice in resolution.notices] == [
        "PTYCHO_EXEC_SEED has no effect: Lab reads LAB_... in its place"
    ]


def test_its_own_default_counts_before_a_workflows() -> None:
    settings = Lab.from_values({}).with_factory_defaults(batch_size=8, learning_rate=0.5)
    assert (settings.batch_size, settings.origin_of("batch_size")) == (64, "default of Lab")
    assert (settings.learning_rate, settings.origins["learning_rate"].kind) == (0.5, Kind.FACTORY)
    assert Lab(factory_defaults={"batch_size": 8}).batch_size == 64


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch_size": 512}, ["batch_size = 512 is not allowed", "an integer from 1 to 256", "default, 64"]),
        ({"beamlin": "x"}, ["unknown setting 'beamlin'", "expected: beamline"]),
        ({"mode": "spirl"}, ["mode = 'spirl' is not allowed", "raster or spiral"]),
        ({"deterministic": True, "benchmark": True}, ["contradict each other"]),
    ],
)
def test_what_is_wrong_in_it(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        Lab.from_values(values)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_misspelt_variable_of_its_own(clean_process: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_BEAMLIEN", "x")
    with pytest.raises(SettingsError, match="expected: LAB_BEAMLINE"):
        Lab()


def test_profiles_named_files_and_controls_have_its_names(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_process.write("pyproject.toml", "[tool.lab.profiles.night]\nbeamline = '1-BM'\n")
    clean_process.write("n.toml", "seed = 3\n")
    monkeypatch.setenv("LAB_PROFILE", "night")
    monkeypatch.setenv("LAB_SETTINGS_FILE", "n.toml")
    settings = Lab()
    assert (settings.beamline, settings.origins["beamline"].place, settings.seed) == (
        "1-BM",
        "profile:night",
        3,
    )
    assert Lab(profile="ci").origins["logger_backend"].kind is Kind.PROFILE  # the shipped ones come with it


def test_blocks_reach_the_classes_below_and_not_those_above() -> None:
    with override_settings(seed=1), Lab.override(beamline="2-ID", precision="64-true"):
        assert (Lab().seed, Lab().beamline, Lab().precision) == (1, "2-ID", "64-true")
        assert (ExecutionSettings().seed, ExecutionSettings().precision) == (1, "32-true")
    assert Lab().beamline == "none"
    with pytest.raises(SettingsError, match="expected: beamline"), Lab.override(beamlin="x"):
        pass


def test_copies_pickles_and_equality_of_a_subclass() -> None:
    lab = Lab.from_values({"beamline": "x", "mode": Mode.SPIRAL})
    again = pickle.loads(pickle.dumps(lab))
    assert (again, again.origins, type(again)) == (lab, lab.origins, Lab)
    assert lab.with_overrides(seed=1).mode is Mode.SPIRAL
    assert lab != ExecutionSettings.from_values({})
    assert Lab.model_validate_json(lab.model_dump_json()) == lab
    assert Lab.model_validate(lab.model_dump()) == lab


# --- a class of its own -------------------------------------------------------------------------------------


def test_a_required_field_is_missed_with_the_ways_to_set_it(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="project is required and nothing sets it") as caught:
        Alone()
    assert "set ALONE_PROJECT" in caught.value.findings[0].fix
    monkeypatch.setenv("ALONE_PROJECT", "x")
    assert Alone().project == "x"
    assert Alone(project="y").origins["project"].shadowed[0].kind is Kind.ENVIRONMENT


def test_a_rule_of_its_own_is_one_finding() -> None:
    with pytest.raises(SettingsError) as caught:
        Alone.from_values({"project": "x", "low": 11})
    (finding,) = caught.value.findings
    assert (finding.what, finding.fix, finding.code) == ("low is above high", "exchange the two", "conflict")


def test_a_rule_for_one_field_is_one_finding() -> None:
    class Checked(ExecutionSettings):
        beamline: str = "x"

        @field_validator("beamline")
        @classmethod
        def _short(cls, value: str) -> str:
            if len(value) > 3:
                raise ValueError("too long")
            return value

    with pytest.raises(SettingsError, match="beamline = 'long name' is not allowed"):
        Checked.from_values({"beamline": "long name"})
    assert Checked.from_values({"beamline": "abc"}).beamline == "abc"


# --- the hook of pydantic-settings --------------------------------------------------------------------------


def test_a_subclass_can_put_variables_before_arguments(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    class VariablesFirst(ExecutionSettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: Any,
            init_settings: Any,
            env_settings: Any,
            dotenv_settings: Any,
            file_secret_settings: Any,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return env_settings, init_settings

    monkeypatch.setenv("PTYCHO_EXEC_SEED", "7")
    clean_process.write("ptycho_exec.toml", "batch_size = 8\n")
    settings = VariablesFirst(seed=3, batch_size=4)
    assert (settings.seed, settings.batch_size) == (7, 4)
    assert [origin.kind for origin in settings.origins["seed"].shadowed] == [Kind.ARGUMENT, Kind.DEFAULT]
    assert VariablesFirst().batch_size == 16  # it left the files out


def test_a_source_of_pydantic_settings_takes_part(clean_process: Place) -> None:
    clean_process.write("site.toml", "seed = 5\naccum_steps = 2\n")

    class WithSite(ExecutionSettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: Any,
            init_settings: Any,
            env_settings: Any,
            dotenv_settings: Any,
            file_secret_settings: Any,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            standard = super().settings_customise_sources(
                settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings
            )
            return (*standard, TomlConfigSettingsSource(settings_cls, "site.toml"))

    settings = WithSite(accum_steps=4)
    assert (settings.seed, settings.accum_steps) == (5, 4)
    assert settings.origin_of("seed") == "source TomlConfigSettingsSource"
    clean_process.write("site.toml", "sed = 5\n")
    with pytest.raises(SettingsError, match="expected: seed"):
        WithSite()


@pytest.mark.parametrize("model", [ExecutionSettings, Lab])
def test_the_command_line_of_pydantic_settings(model: type[ExecutionSettings], clean_process: Place) -> None:
    table = ["--trainer", "min_epochs=3", "--trainer", '{"barebones": true}']
    settings = CliApp.run(model, cli_args=["--batch_size", "8", "--precision", "bf16-mixed", *table])
    assert (settings.batch_size, settings.precision) == (8, "bf16-mixed")
    assert settings.trainer == {"min_epochs": 3, "barebones": True}
    assert settings.origin_of("batch_size") == "source CliSettingsSource"


def test_the_options_of_its_constructor(clean_process: Place) -> None:
    clean_process.write("other.env", "PTYCHO_EXEC_SEED=5\n")
    clean_process.write(".env", "PTYCHO_EXEC_SEED=6\nPTYCHO_EXEC_BATCH_SIZE=2\n")
    clean_process.write("secrets/ptycho_exec_tracking_uri", "http://u:p@host\n")
    assert ExecutionSettings(_env_file="other.env").seed == 5
    assert ExecutionSettings(_env_file=None).batch_size == 16
    both = ExecutionSettings(_env_file=[".env", "other.env"], _secrets_dir="secrets")
    assert (both.seed, both.batch_size, both.tracking_uri) == (5, 2, "http://u:p@host")
    assert [shadowed.value for shadowed in both.origins["seed"].shadowed] == [6, 42]
    with pytest.raises(SettingsError, match="_env_prefix is no argument of settings"):
        ExecutionSettings(_env_prefix="X_")
    with pytest.raises(SettingsError, match="the secrets directory is not there"):
        ExecutionSettings(_secrets_dir="nowhere")


# --- what cannot work is refused where it is written --------------------------------------------------------


def _define(config: dict[str, Any] | None = None, **fields: Any) -> None:
    names: dict[str, Any] = {name: value for name, (_, value) in fields.items()}
    annotations = {name: annotation for name, (annotation, _) in fields.items()}
    body = {"__annotations__": annotations, "__module__": __name__, "__qualname__": "Wrong", **names}
    type(ExecutionSettings)(
        "Wrong", (ExecutionSettings,), body | ({"model_config": config} if config else {})
    )


class Nested(BaseModel):
    x: int = 1


@dataclass
class Point:
    x: int = 1


class Row(TypedDict):
    x: int


@pytest.mark.parametrize(
    ("config", "fields", "words"),
    [
        ({"extra": "allow"}, {}, "an unknown name is an error"),
        ({"frozen": False}, {}, "settings never change"),
        ({"toml_file": "lab.toml"}, {}, "set the class attribute program"),
        ({"env_nested_delimiter": "__"}, {}, "settings are flat"),
        ({"case_sensitive": True}, {}, "written in capitals"),
        (None, {"profile": (str, "x")}, "the constructor has an argument of that name"),
        (None, {"beam": (str, Field("x", alias="b"))}, "have the name of the field"),
        (None, {"nested": (Nested, Nested())}, "a class around both"),
        (None, {"nested": (list[Nested], [])}, "field nested: a model"),
        (None, {"nested": (Annotated[dict[str, Nested] | None, "x"], None)}, "field nested: a model"),
        (None, {"nested": (Point | None, None)}, "field nested: a dataclass"),
        (None, {"nested": (Point, Point())}, "field nested: a dataclass"),
        (None, {"nested": (tuple[Row, ...], ())}, "field nested: a TypedDict"),
        (None, {"batch_size": (Annotated[int, Interval(le=4)], 64)}, "its default 64 is not allowed"),
    ],
)
def test_a_class_that_cannot_work_is_refused(
    config: dict[str, Any] | None, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match="class Wrong cannot have") as caught:
        _define(config, **fields)
    assert words in str(caught.value)


class North(ExecutionSettings):
    program: ClassVar[str] = "north"
    model_config = SettingsConfigDict(env_prefix="NORTH_", env_file="north.env")
    north: int = 1


class South(ExecutionSettings):
    program: ClassVar[str] = "south"
    model_config = SettingsConfigDict(env_prefix="SOUTH_")
    south: int = 1


class Extra(ExecutionSettings):
    """Fields to mix in, and no names."""

    extra_field: int = 1


@pytest.mark.parametrize(
    ("bases", "value", "named"),
    [
        ((North, South), None, ["'NORTH_' of North and 'SOUTH_' of South", "'north.env' of North"]),
        ((South, North), None, ["'SOUTH_' of South and 'NORTH_' of North"]),
        ((North, South), "SOUTH_", ["'NORTH_' of North and 'SOUTH_' of South"]),
        ((North, Extra), None, ["'NORTH_' of North and 'PTYCHO_EXEC_' of Extra"]),
    ],
)
def test_a_class_with_the_names_of_two_others_is_refused(
    bases: tuple[type, ...], value: str | None, named: list[str], clean_process: Place
) -> None:
    config = SettingsConfigDict(env_prefix=value) if value else {}
    with pytest.raises(SettingsError) as caught:
        _mixed(bases, config)
    text = str(caught.value)
    assert [words for words in named if words not in text] == []
    # The remedies work: what is to be written, a value that neither has, and the other order.
    written = re.findall(r"SettingsConfigDict\((\w+)=('[^']*')\)", text)
    first, second = bases[:2]
    assert (
        _mixed(bases, {key: eval(word) for key, word in written}).model_config["env_prefix"]
        == (first.model_config["env_prefix"])
    )
    files = {"env_file": "both.env"}
    assert _mixed(bases, {"env_prefix": "BOTH_", **files}).model_config["env_prefix"] == "BOTH_"
    last = second.model_config["env_prefix"]
    if second is not Extra:
        assert _mixed((second, first), {"env_prefix": last, **files}).model_config["env_prefix"] == last


def _mixed(bases: tuple[type, ...], config: Any) -> Any:
    body: dict[str, Any] = {"__module__": __name__, **({"model_config": config} if config else {})}
    return type(ExecutionSettings)("Both", bases, body)


def test_a_class_of_two_others_has_the_fields_of_both(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Both(Extra, North): ...

    class Below(Both): ...

    monkeypatch.setenv("NORTH_NORTH", "2")
    clean_process.write("north.env", "NORTH_EXTRA_FIELD=3\n")
    clean_process.write("north.toml", "seed = 4\n")
    for model in (Both, Below):
        settings = model()
        assert (settings.north, settings.extra_field, settings.seed) == (2, 3, 4)


# --- inside other models ------------------------------------------------------------------------------------


class App(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="APP_", env_nested_delimiter="__", env_file="app.env")
    execution: ExecutionSettings = ExecutionSettings.from_values({})
    lab: Lab | None = None


class Holder(BaseModel):
    execution: ExecutionSettings


def test_variables_of_a_program_around_it(clean_process: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_EXECUTION__BATCH_SIZE", "4")
    monkeypatch.setenv("APP_EXECUTION__COMPILE", "yes")
    monkeypatch.setenv("APP_EXECUTION__DEVICES", "[0, 1]")
    monkeypatch.setenv("APP_LAB__SHUTTER", "on")
    monkeypatch.setenv("PTYCHO_EXEC_SEED", "7")
    clean_process.write("app.env", "APP_EXECUTION__LEARNING_RATE=1e-2\n")
    app = App()
    assert (app.execution.batch_size, app.execution.compile, app.execution.devices) == (4, True, (0, 1))
    assert (app.execution.learning_rate, app.execution.seed) == (0.01, 42)
    assert app.lab is not None
    assert app.lab.shutter
    assert app.execution.origin_of("batch_size") == "argument ExecutionSettings in another model"
    by_flag = CliApp.run(App, cli_args=["--execution.batch_size", "8"])
    assert by_flag.execution.batch_size == 8


def test_a_wrong_text_there_is_one_block(clean_process: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_EXECUTION__BATCH_SIZE", "many")
    with pytest.raises((SettingsError, ValidationError), match="batch_size = 'many' is not allowed"):
        App()


def test_texts_are_typed_by_their_field_and_json_is_not() -> None:
    adapter = TypeAdapter(ExecutionSettings)
    assert adapter.validate_strings({"batch_size": "8", "compile": "true"}).batch_size == 8
    assert ExecutionSettings.model_validate_strings({"max_time": "00:01:00:00", "seed": "1"}).seed == 1
    for call in (
        lambda: adapter.validate_json('{"batch_size": "8"}'),
        lambda: Holder.model_validate_json('{"execution": {"batch_size": "8"}}'),
        lambda: ExecutionSettings.model_validate({"batch_size": "8"}),
    ):
        with pytest.raises((SettingsError, ValidationError), match="batch_size = '8' is not allowed"):
            call()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"batch_size": 8,}', "not valid JSON"),
        ('{"seed": 1, "seed": 2}', "seed is defined twice"),
        (b"\xff\xfe", "not UTF-8"),
        ("[1]", "a mapping"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_no_json_is_a_finding(text: str | bytes, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        ExecutionSettings.model_validate_json(text)


@pytest.mark.parametrize("option", ["strict", "context", "from_attributes"])
def test_an_option_that_could_not_act_is_refused(option: str) -> None:
    for call in (ExecutionSettings.model_validate, ExecutionSettings.model_validate_json):
        with pytest.raises(SettingsError, match=f"leave {option} out"):
            call("{}", **{option: True})


def test_ways_around_validation_are_closed() -> None:
    settings = ExecutionSettings.from_values({})
    assert settings.copy(update={"seed": 1}).seed == 1
    with pytest.raises(SettingsError, match="batch_size = 'oops'"):
        settings.copy(update={"batch_size": "oops"})
    with pytest.raises(SettingsError, match="in part"):
        settings.copy(include={"seed"})
    with pytest.raises(SettingsError, match="pass settings on"):
        ExecutionSettings.settings_cached()


def test_the_hints_of_the_class_can_be_read() -> None:
    hints = get_type_hints(ExecutionSettings)
    assert hints["batch_size"] is int
    assert set(ExecutionSettings.model_fields) <= set(hints)


def test_a_dump_and_its_schema_round_trip() -> None:
    settings = Lab.from_values({"frames": [1], "raw": "x"})
    assert Lab.model_validate(json.loads(settings.model_dump_json())) == settings


@pytest.mark.parametrize("name", ["LB_SEED", "LABSEED", "LA_BSEED", "LABS_EED", "LAAB_SEED", "LAB__SEED"])
def test_a_slip_in_a_short_prefix_is_noticed(
    name: str, clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "3")
    monkeypatch.setenv("LABEL_SEEDS", "3")  # another program's
    with pytest.raises(SettingsError, match="LAB_SEED"):
        Lab()


def test_settings_with_lists_sets_and_mappings_can_be_keys_and_are_copied_deep() -> None:
    class Rich(Lab):
        weights: dict[str, list[int]] = Field(default_factory=dict)

    given = {"frames": [1, 2], "tags": ["a"], "weights": {"a": [1]}}
    one, two = Rich.from_values(given), Rich.from_values(given)
    assert len({one, two}) == 1
    copied = one.model_copy(deep=True)
    copied.frames.append(3)
    assert (one.frames, copied.origin_of("frames")) == ([1, 2], one.origin_of("frames"))


def test_a_default_made_of_other_fields_is_refused() -> None:
    with pytest.raises(SettingsError, match="field double: a default made of other fields"):

        class Late(ExecutionSettings):
            double: int = Field(default_factory=lambda data: data["batch_size"] * 2)


def test_what_a_validator_of_a_field_says_is_in_the_message() -> None:
    class Checked(ExecutionSettings):
        name: str = Field("a", pattern="^[a-c]+$")
        path: str = "a"

        @field_validator("path")
        @classmethod
        def _known(cls, value: str) -> str:
            assert value == "a", "no such path, token=open-sesame"
            return value

    with pytest.raises(SettingsError) as caught:
        Checked.from_values({"name": "z", "path": "b"})
    assert [finding.what for finding in caught.value.findings] == [
        "name = 'z' is not allowed: String should match pattern '^[a-c]+$'",
        "path = 'b' is not allowed: no such path, token=***",
    ]
