"""A token planted in every source, looked for in everything that is shown, written or raised."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from ptycho_exec.cli.commands import main
from ptycho_exec.cli.freeze import FORMS, freeze
from ptycho_exec.cli.reference import json_schema
from ptycho_exec.errors import ANNOTATIONS, SettingsError
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import resolve_plan
from ptycho_exec.record import (
    manifest_parts,
    settings_from_manifest,
    write_manifest,
    write_settings_toml,
)
from ptycho_exec.settings import ExecutionSettings, override_settings
from ptycho_exec.sources.explain import explain_json
from ptycho_exec.sources.resolve import READERS
from ptycho_exec.trainer.loggers import log_settings

if TYPE_CHECKING:
    from conftest import Place

TOKEN = "s3cr3t-t0ken"
URI = f"https://user:{TOKEN}@mlflow.example/?access_token={TOKEN}"

# Source -> files to write, variables, arguments of the constructor, words of the command line.
Plant = tuple[dict[str, str], dict[str, str], dict[str, Any], list[str]]
LINE = f'tracking_uri = "{URI}"\n'
PLANTS: dict[str, Plant] = {
    "argument": ({}, {}, {"tracking_uri": URI}, ["--tracking-uri", URI]),
    "override": ({}, {}, {"overrides": {"tracking_uri": URI}}, [f"--tracking-uri={URI}"]),
    "flag": ({}, {}, {}, ["--tracking-uri", URI, "--tracking-uri", f"{URI}&again=1"]),
    "context": ({}, {}, {}, []),
    "environment": ({}, {"PTYCHO_EXEC_TRACKING_URI": URI}, {}, []),
    "dotenv": ({".env": f"TOKEN={TOKEN}\nPTYCHO_EXEC_TRACKING_URI={URI}\n"}, {}, {}, []),
    "named TOML": ({"a.toml": LINE}, {}, {"settings_file": "a.toml"}, ["--settings", "a.toml"]),
    "named YAML": ({"a.yaml": f'tracking_uri: "{URI}"\n'}, {"PTYCHO_EXEC_SETTINGS_FILE": "a.yaml"}, {}, []),
    "named JSON": (
        {"a.json": json.dumps({"tracking_uri": URI})},
        {},
        {"settings_file": "a.json"},
        ["--settings=a.json"],
    ),
    "project file": ({"ptycho_exec.toml": LINE}, {}, {}, []),
    "pyproject": ({"pyproject.toml": f"[tool.ptycho_exec]\n{LINE}"}, {}, {}, []),
    "user file": ({"../.config/ptycho_exec/settings.toml": LINE}, {}, {}, []),
    "secret file": ({"s/ptycho_exec_tracking_uri": URI}, {}, {"_secrets_dir": "s"}, ["--tracking-uri", URI]),
    "profile": ({"ptycho_exec.toml": f"[profiles.x]\n{LINE}"}, {}, {"profile": "x"}, ["--profile", "x"]),
    "factory": ({}, {}, {"factory_defaults": {"tracking_uri": URI}}, []),
}


def put(place: Place, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in plant[0].items():
        place.write(name, text)
    for name, text in plant[1].items():
        monkeypatch.setenv(name, text)


def shown(settings: ExecutionSettings, place: Place) -> Iterator[tuple[str, str]]:
    """Yield everything that can be made visible of some settings."""
    yield "repr", f"{settings!r} {settings!s} {[settings]} {settings.origins!r} {settings.__rich_repr__()!r}"
    yield "origins", json.dumps([origin.to_json() for origin in settings.origins.values()])
    plan = resolve_plan(settings, MachineFacts())
    yield "plan", json.dumps(plan.to_json(), default=str) + repr(plan)
    yield "notices", repr(plan.notices) + repr(plan.problems)
    yield "notebook", settings._repr_html_() + settings.explain()
    yield "frozen", repr([freeze(settings, form) for form in FORMS])
    yield "changed", repr(settings.with_overrides(seed=1)) + repr(settings.model_copy(update={"seed": 1}))
    write_manifest(place.cwd / "m.json", **manifest_parts(settings, plan=plan), note=URI)
    yield "manifest", (place.cwd / "m.json").read_text()
    write_settings_toml(place.cwd / "s.toml.txt", settings)
    yield "settings.toml", (place.cwd / "s.toml.txt").read_text()
    refused: list[tuple[str, Callable[[], Any]]] = [
        ("contradiction", lambda: settings.with_overrides(deterministic=True, benchmark=True)),
        ("malformed", lambda: settings.with_overrides(tracking_uri=[URI], seed=URI)),
        ("unknown", lambda: settings.with_overrides(**{URI: 1})),
        ("frozen", lambda: setattr(settings, "tracking_uri", URI)),
        ("hidden", lambda: settings_from_manifest(place.cwd / "m.json", model=type(settings))),
    ]
    for name, act in refused:
        with pytest.raises(SettingsError) as caught:
            act()
        yield name, f"{caught.value} {caught.value!r} {caught.value.findings!r} {caught.value.__context__!r}"
        yield f"{name}, errors()", repr(caught.value.errors())
        yield f"{name}, annotations", "".join(form(caught.value.findings) for form in ANNOTATIONS.values())


@pytest.mark.parametrize("source", PLANTS)
def test_from_every_source_it_shows_nowhere(
    source: str, clean_process: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    put(clean_process, PLANTS[source], monkeypatch)
    arguments = {"tracking_uri": URI} if source == "flag" else PLANTS[source][2]
    with override_settings(**({"tracking_uri": URI} if source == "context" else {})):
        settings = ExecutionSettings(**arguments)
    assert settings.tracking_uri == URI
    told = dict(shown(settings, clean_process))
    assert [name for name, text in told.items() if TOKEN in text] == []
    assert "***" in told["repr"]
    assert "***" in told["manifest"]
    assert TOKEN not in caplog.text


COMMANDS = [
    ["show"],
    ["show", "--json"],
    ["show", "--trainer-kwargs", "--loader-kwargs"],
    *(["show", "--format", form] for form in FORMS),
    ["explain"],
    ["explain", "tracking_uri"],
    ["explain", "tracking_uri", "--json"],
    ["check"],
    ["check", "--json"],
    ["check", "--accelerator", "mps", "--annotations"],
    ["show", "--seed", URI],
    ["show", "--no-such-flag", URI],
]


@pytest.mark.parametrize("source", [name for name in PLANTS if name not in ("context", "factory")])
def test_from_every_source_no_command_shows_it(
    source: str,
    clean_process: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(clean_process, PLANTS[source], monkeypatch)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for words in COMMANDS:
        main([*words, *PLANTS[source][3]])
        told = "".join(capsys.readouterr())
        assert told
        assert TOKEN not in told, words
    for words in (["diff", "env", "profile:ci"], ["diff", "env", "profile:ci", "--json"], ["profiles"]):
        main(words)
        assert TOKEN not in "".join(capsys.readouterr())


def test_every_kind_of_source_is_planted() -> None:
    assert len(PLANTS) == len(READERS) + 2  # a named file in three languages


class Locked(ExecutionSettings):
    """Settings with a field of pydantic's secret type."""

    program: ClassVar[str] = "locked"
    model_config = SettingsConfigDict(env_prefix="LOCKED_")
    key: SecretStr = SecretStr("")


def test_a_secret_of_pydantics_is_shown_nowhere(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCKED_KEY", "open-sesame-1")
    clean_process.write("locked.toml", 'key = "open-sesame-2"\n[profiles.a]\nkey = "open-sesame-3"\n')
    kept = Locked(key=SecretStr("open-sesame-4"), overrides={"key": "open-sesame-5"}, profile="a")
    texts = (
        repr(kept),
        kept.explain("key"),
        kept._repr_html_(),
        repr(kept.origins),
        json.dumps([origin.to_json() for origin in kept.origins["key"].shadowed]),
        json.dumps(explain_json(dict(kept), kept.origins), default=str),
        json.dumps(json_schema(Locked)),
    )
    assert [text for text in texts if "sesame" in text] == []
    assert Locked().key.get_secret_value() == "open-sesame-1"
    assert kept.with_overrides(seed=1).key == Locked.from_values({"key": "open-sesame-4"}).key
    clean_process.write("locked.toml", "key = 12345678\n")
    with pytest.raises(SettingsError) as caught:
        Locked()
    assert "12345678" not in f"{caught.value} {caught.value.errors()}"


class Shy(ExecutionSettings):
    """Settings with fields that pydantic leaves out of a repr."""

    program: ClassVar[str] = "shy"
    model_config = SettingsConfigDict(env_prefix="SHY_")
    word: str = Field(default="", repr=False)
    pin: int = Field(default=0, repr=False)
    once: str = Field(default="", repr=False)

    @field_validator("once")
    @classmethod
    def _capitals(cls, value: str) -> str:
        return value.replace("open", "Open")


def test_what_a_field_keeps_out_of_its_repr_is_shown_nowhere(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHY_WORD", "open-sesame-1")
    monkeypatch.setenv("SHY_ONCE", "open-sesame-2")
    clean_process.write("shy.toml", 'word = "open-sesame-3"\npin = 4711\n[profiles.a]\npin = 47110\n')
    shy = Shy(profile="a", overrides={"word": "open-sesame-5"})
    assert (shy.word, shy.pin, shy.once) == ("open-sesame-5", 4711, "Open-sesame-2")
    assert "word" not in repr(shy)  # as pydantic has it
    assert "word = ***\n  from      overrides" in shy.explain("word")
    assert shy._repr_html_().count("<th>***</th>") == 3
    logged: dict[str, Any] = {}
    log_settings(SimpleNamespace(log_hyperparams=logged.update), shy)  # type: ignore[arg-type]
    texts = (
        repr(shy),
        shy.explain(),
        repr(logged),
        shy._repr_html_(),
        repr(shy.origins),
        repr([freeze(shy, form) for form in FORMS]),
        json.dumps(explain_json(shy.model_dump(mode="json"), shy.origins)),
        json.dumps([origin.to_json() for origin in shy.origins.values()]),
        repr(resolve_plan(shy, MachineFacts())),
    )
    assert [text for text in texts if "sesame" in text or "4711" in text] == []


@pytest.mark.parametrize("wrong", ['"4711"', '"4711x"', "4711.5"])
def test_a_hidden_value_that_is_refused_is_not_repeated(clean_process: Place, wrong: str) -> None:
    clean_process.write("shy.toml", f"pin = {wrong}\n")
    with pytest.raises(SettingsError, match="is not allowed") as caught:
        Shy()
    assert "4711" not in f"{caught.value} {caught.value.errors()}"


class Nested(ExecutionSettings):
    """Settings with texts inside of other values."""

    program: ClassVar[str] = "nested"
    model_config = SettingsConfigDict(env_prefix="NESTED_")
    servers: list[str] = Field(default_factory=list)
    by_name: dict[str, Any] = Field(default_factory=dict)
    names: frozenset[str] = frozenset()


def test_a_credential_inside_of_another_value_is_shown_nowhere(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_process.write("nested.toml", f'servers = ["{URI}"]\nby_name = {{ password = "{TOKEN}" }}\n')
    monkeypatch.setenv("NESTED_SERVERS", f'["{URI}", "plain"]')
    settings = Nested(by_name={"a": [URI], "password": TOKEN, "n": 1}, names=frozenset({URI}))
    assert settings.servers == [URI, "plain"]
    told = dict(shown(settings, clean_process))
    assert [name for name, text in told.items() if TOKEN in text] == []
    json_of_all = json.dumps(explain_json(settings.model_dump(mode="json"), settings.origins))
    assert TOKEN not in json_of_all
    assert '"n": 1' in json_of_all
    logged: dict[str, Any] = {}
    log_settings(SimpleNamespace(log_hyperparams=logged.update), settings)  # type: ignore[arg-type]
    assert TOKEN not in str(logged)
    assert "plain" in logged["servers"]
