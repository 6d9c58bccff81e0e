"""Old names of fields: honored from every source with a warning that names the place, later refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic_settings import SettingsConfigDict

from ptycho_exec.cli.flags import Parser, add_settings_flags, flags_given
from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.spec import Renamed
from ptycho_exec.settings import ExecutionSettings, ResolvedSettings
from ptycho_exec.sources.discovery import Request
from ptycho_exec.sources.resolve import resolve

if TYPE_CHECKING:
    from conftest import Place


class Microscope(ResolvedSettings):
    """Settings of a program of which two fields had other names before."""

    model_config = SettingsConfigDict(env_prefix="SCOPE_")
    program: ClassVar[str] = "scope"
    version: ClassVar[str] = "2.1.0"
    renamed: ClassVar[Mapping[str, Renamed]] = {
        "hv": Renamed("voltage", "2.2.0"),
        "cells": Renamed("panels", "2.1"),
    }

    voltage: int = 100
    """Kilovolts."""
    panels: tuple[int, ...] = (0,)
    """Which panels of the detector are read."""


@pytest.fixture
def sources(clean_process: Place, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every source, each a function that sets a name to a value and returns the settings."""

    def file(name: str, text: str) -> Any:
        def put(**given: int) -> Microscope:
            ((key, value),) = given.items()
            clean_process.write(name, text.format(key=key, KEY=key.upper(), value=value))
            return Microscope(**({"settings_file": name} if name == "x.yaml" else {}))

        return put

    def variable(**given: int) -> Microscope:
        ((key, value),) = given.items()
        monkeypatch.setenv(f"SCOPE_{key.upper()}", str(value))
        return Microscope()

    def flag(**given: int) -> Microscope:
        ((key, value),) = given.items()
        parser = Parser(prog="scope")
        add_settings_flags(parser, Microscope)
        args = parser.parse([f"--{key}", str(value)])
        return Microscope.from_resolution(resolve(Request(Microscope, flags=flags_given(args, Microscope))))

    def block(**given: int) -> Microscope:
        with Microscope.override(**given):
            return Microscope()

    def profile(**given: int) -> Microscope:
        ((key, value),) = given.items()
        clean_process.write("scope.toml", f"[profiles.p]\n{key} = {value}\n")
        return Microscope(profile="p")

    return {
        "argument": lambda **given: Microscope(**given),
        "overrides": lambda **given: Microscope(overrides=given),
        "override": lambda **given: Microscope.from_values({}).with_overrides(**given),
        "values": Microscope.from_values,
        "block": block,
        "flag": flag,
        "variable": variable,
        "dotenv": file(".env", "SCOPE_{KEY}={value}\n"),
        "project file": file("scope.toml", "{key} = {value}\n"),
        "pyproject": file("pyproject.toml", "[tool.scope]\n{key} = {value}\n"),
        "named file": file("x.yaml", "{key}: {value}\n"),
        "profile": profile,
    }


SOURCES = (
    "argument",
    "overrides",
    "override",
    "values",
    "block",
    "flag",
    "variable",
    "dotenv",
    "project file",
    "pyproject",
    "named file",
    "profile",
)


def put(sources: dict[str, Any], source: str, name: str, value: Any) -> Microscope:
    given = {name: value}
    made: Microscope = sources[source](given) if source == "values" else sources[source](**given)
    return made


@pytest.mark.parametrize("source", SOURCES)
def test_an_old_name_acts_with_a_warning_from_every_source(sources: dict[str, Any], source: str) -> None:
    with pytest.warns(
        DeprecationWarning, match=r"hv is now called voltage, and is refused from version 2.2.0"
    ):
        settings = put(sources, source, "hv", 200)
    assert settings.voltage == 200
    (note,) = {notice for notice in settings.notices if notice.code == "renamed"}
    assert (note.field, note.level, note.fix) == ("voltage", "note", "write voltage")
    assert settings.origin_of("voltage") in note.what
    assert set(sources) == set(SOURCES)


@pytest.mark.parametrize("source", SOURCES)
def test_it_is_refused_from_its_version_on(sources: dict[str, Any], source: str) -> None:
    with pytest.raises(SettingsError) as error:
        put(sources, source, "cells", 3)
    assert ("renamed", "cells is now called panels", "write panels") in {
        (finding.code, finding.what, finding.fix) for finding in error.value.findings
    }


@pytest.mark.parametrize("source", ["argument", "project file"])
def test_the_new_name_wins_in_one_source(clean_process: Place, source: str) -> None:
    clean_process.write("scope.toml", "hv = 1\nvoltage = 2\n" if source == "project file" else "")
    with pytest.warns(DeprecationWarning, match="hv is now"):
        settings = Microscope() if source == "project file" else Microscope(hv=1, voltage=2)
    assert settings.voltage == 2


def test_the_warning_is_at_the_line_that_has_the_old_name(clean_process: Place) -> None:
    path = clean_process.write("scope.toml", "\n\nhv = 1\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Microscope()
        Microscope(hv=3)
    places = [(Path(warning.filename), warning.lineno) for warning in caught]
    assert places[0] == (path, 3)
    assert Path(__file__) in {file for file, _ in places}


def test_a_bad_value_under_an_old_name_is_reported(clean_process: Place) -> None:
    with (
        pytest.warns(DeprecationWarning, match="hv is now"),
        pytest.raises(SettingsError, match="voltage = 'x' is not allowed"),
    ):
        Microscope(hv="x")


def test_every_old_name_of_our_own_leads_to_a_field() -> None:
    def rows() -> Iterator[str]:
        yield from (row.new for row in ExecutionSettings.renamed.values())

    assert set(rows()) <= set(ExecutionSettings.model_fields)
    assert not set(ExecutionSettings.renamed) & set(ExecutionSettings.model_fields)
