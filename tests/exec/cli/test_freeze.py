"""Frozen settings: loading any of their forms gives equal settings; no `***` is ever loaded."""

from __future__ import annotations

import enum
import json
import os
import shlex
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from ptycho_exec.cli.commands import build_parser, main, resolve_from
from ptycho_exec.cli.freeze import FORMS, freeze
from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.settings import ExecutionSettings
from tests.exec.samples import COMPANIONS, SAMPLES

if TYPE_CHECKING:
    from conftest import Place

TOKEN = "s3cr3t-t0ken"
URI = f"https://user:{TOKEN}@mlflow.example/?access_token={TOKEN}"
ODD = ["a b", "it's", '"', "#1", "a#b", "\\", "\\n", "$HOME", "${HOME}", "ünï", "a\u2028b", "none", "8", "="]


def loaded(place: Place, form: str, text: str) -> ExecutionSettings:
    """Load frozen settings as their reader would, where nothing else sets anything."""
    (place.cwd / ".env").unlink(missing_ok=True)
    if form == "flags":
        args = build_parser().parse(["show", *shlex.split(text)])
        return ExecutionSettings.from_resolution(resolve_from(args))
    if form == "env":
        place.write(".env", text)
        return place.settings()
    return place.settings(settings_file=place.write(f"frozen.{form}", text))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", field_specs())
def test_every_field_comes_back(clean_process: Place, form: str, name: str) -> None:
    kept = ExecutionSettings.from_values({name: SAMPLES[name], **COMPANIONS.get(name, {})})
    text, left_out = freeze(kept, form)
    assert left_out == []
    again = loaded(clean_process, form, text)
    assert again == kept
    assert {type(a) for a in dict(again).values()} == {type(b) for b in dict(kept).values()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", ODD)
def test_odd_letters_come_back(clean_process: Place, form: str, text: str) -> None:
    kept = ExecutionSettings.from_values({"experiment_name": text})
    assert loaded(clean_process, form, freeze(kept, form)[0]).experiment_name == text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=8),
    st.sampled_from(sorted(FORMS)),
)
def test_a_text_comes_back_or_is_left_out_with_a_note(clean_process: Place, text: str, form: str) -> None:
    kept = ExecutionSettings.from_values({"experiment_name": text})
    written, left_out = freeze(kept, form)
    try:
        again = loaded(clean_process, form, written)
    except SettingsError as error:  # a bare credential-like text may be hidden, never wrong
        pytest.fail(str(error))
    assert again.experiment_name == ("ptycho" if left_out else text)


@pytest.mark.parametrize("form", ["env", "flags"])
def test_a_text_that_a_form_cannot_hold_is_left_out_with_a_note(form: str) -> None:
    text, left_out = freeze(
        ExecutionSettings.from_values({"experiment_name": " a "}), form, ["experiment_name"]
    )
    assert left_out == [f"experiment_name is left out: {form} cannot hold it"]
    assert [line for line in text.splitlines() if not line.startswith("#") and line] == []


@pytest.mark.parametrize("form", FORMS)
def test_credentials_are_left_out_unless_they_are_asked_for(
    clean_process: Place, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "--format", form, "--tracking-uri", URI, "--seed=3"]) == 0
    shown = capsys.readouterr()
    assert TOKEN not in shown.out + shown.err
    assert "note: tracking_uri is left out: it holds credentials; --show-secrets writes them" in shown.err
    again = loaded(clean_process, form, shown.out)
    assert (again.tracking_uri, again.seed) == (None, 3)
    assert main(["show", "--format", form, "--tracking-uri", URI, "--show-secrets"]) == 0
    assert loaded(clean_process, form, capsys.readouterr().out).tracking_uri == URI


def test_only_what_was_set(clean_process: Place, capsys: pytest.CaptureFixture[str]) -> None:
    clean_process.write("ptycho_exec.toml", "batch_size = 8\ndevices = [0, 1]\n")
    expected = {
        "toml": "devices = [0, 1]\nbatch_size = 8\n",
        "env": "PTYCHO_EXEC_DEVICES='[0, 1]'\nPTYCHO_EXEC_BATCH_SIZE=8\n",
        "flags": "'--devices=[0, 1]' --batch-size=8\n",
        "json": '{\n  "devices": [0, 1],\n  "batch_size": 8\n}\n',
    }
    for form, text in expected.items():
        assert main(["show", "--changed", "--format", form]) == 0
        assert capsys.readouterr().out == text
    assert set(expected) == set(FORMS)


def test_flags_can_be_pasted_into_a_shell(place: Place) -> None:
    kept = ExecutionSettings.from_values({"experiment_name": "it's $HOME; a b", "devices": [0, 1]})
    command = f"{shlex.quote(sys.executable)} -m ptycho_exec show --json {freeze(kept, 'flags')[0]}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=place.cwd, capture_output=True, text=True, env=os.environ
    )
    shown: dict[str, Any] = json.loads(done.stdout)["settings"]
    assert (shown["experiment_name"]["value"], shown["devices"]["value"]) == ("it's $HOME; a b", [0, 1])


def test_nothing_set_is_still_a_file_that_loads(clean_process: Place) -> None:
    for form in FORMS:
        assert loaded(clean_process, form, freeze(ExecutionSettings.from_values({}), form, [])[0]).seed == 42


class Mode(enum.Enum):
    RASTER = "raster"
    TWICE = 2


class Lab(ExecutionSettings):
    """Settings with fields of every flat type."""

    program: ClassVar[str] = "lab"
    model_config = SettingsConfigDict(env_prefix="LAB_")
    raw: Path = Path("raw")
    mode: Mode = Mode.RASTER
    level: Literal[1, 2] = 1
    day: date = date(2026, 1, 2)
    pause: timedelta = timedelta(seconds=5)
    frames: list[int] = Field(default_factory=list)
    tags: frozenset[str] = frozenset()
    weights: dict[str, int] = Field(default_factory=dict)
    token: SecretStr = SecretStr("")


OWN: dict[str, Any] = {
    "raw": Path("scans/new"),
    "mode": Mode.TWICE,
    "level": 2,
    "day": date(2026, 3, 4),
    "pause": timedelta(hours=1),
    "frames": [1, 2],
    "tags": frozenset({"b", "a"}),
    "weights": {"x": 1},
    "token": SecretStr("in.the.open"),
}


@pytest.mark.parametrize("form", ["toml", "env", "json"])
@pytest.mark.parametrize("name", OWN)
def test_fields_of_a_subclass_of_any_flat_type_come_back(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch, form: str, name: str
) -> None:
    kept = Lab(**{name: OWN[name]})
    text, left_out = freeze(kept, form, show_secrets=True)
    assert left_out == []
    file = clean_process.write(".env" if form == "env" else f"lab_frozen.{form}", text)
    again = Lab(settings_file=None if form == "env" else file)
    assert again == kept


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_of_pydantics_is_left_out(form: str) -> None:
    text, left_out = freeze(Lab.from_values({"token": "in.the.open"}), form)
    assert "in.the.open" not in text
    assert left_out == ["token is left out: it holds credentials; --show-secrets writes them"]
