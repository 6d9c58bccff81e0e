"""All about a value: the same text from the settings and from the command, and a table for notebooks."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from ptycho_exec.cli.commands import main
from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.settings import ExecutionSettings, ResolvedSettings
from ptycho_exec.sources.explain import COMMAND_LINE, checked_name

if TYPE_CHECKING:
    from conftest import Place

TOKEN = "s3cr3t-t0ken"


@pytest.mark.parametrize("name", field_specs())
def test_the_command_prints_what_the_method_returns(
    clean_process: Place, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    clean_process.write("ptycho_exec.toml", "batch_size = 8\n")
    text = ExecutionSettings().explain(name)
    assert text.startswith(f"{name} = ")
    assert field_specs()[name].sentence in text
    assert main(["explain", name]) == 0
    assert capsys.readouterr().out.startswith(f"{text}\n\n")


def test_the_method_names_origin_shadowed_values_and_notes(clean_process: Place, monkeypatch: Any) -> None:
    path = clean_process.write("ptycho_exec.toml", "seed = 8\n")
    monkeypatch.setenv("PTYCHO_EXEC_SEED", "")
    lines = ExecutionSettings().explain("seed").splitlines()
    assert lines[:3] == [
        "seed = 8",
        f"  from      project-file ({path}:1)",
        "  shadows   42 from default",
    ]
    assert "  unset     PTYCHO_EXEC_SEED is empty and counts as unset" in lines


def test_without_a_name_all_that_were_set() -> None:
    settings = ExecutionSettings.from_values({"seed": 1, "batch_size": 2})
    heads = [line for line in settings.explain().splitlines() if line and not line.startswith(" ")]
    assert heads == ["seed = 1", "batch_size = 2"]
    assert ExecutionSettings.from_values({}).explain() == "every value is its default"


def test_an_unknown_name_is_an_error_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="batch_size"):
        ExecutionSettings.from_values({}).explain("bach_size")


def test_a_notebook_shows_an_escaped_table_without_credentials() -> None:
    nasty = "<script>alert('x')</script>&"
    uri = f"https://user:{TOKEN}@h/<b>"
    html = ExecutionSettings.from_values({"experiment_name": nasty, "tracking_uri": uri})._repr_html_()
    assert TOKEN not in html
    assert "<script>" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;" in html
    assert all(f">{name}</t" in html for name in field_specs())
    assert "<th>experiment_name</th>" in html
    assert "<td>seed</td>" in html


def test_notes_stay_with_the_settings(clean_process: Place, monkeypatch: Any) -> None:
    monkeypatch.setenv("PTYCHO_EXEC_SEED", "")
    settings = ExecutionSettings()
    for other in (settings, copy.deepcopy(settings), pickle.loads(pickle.dumps(settings))):
        assert [notice.code for notice in other.notices] == ["empty-variable"]
        assert "PTYCHO_EXEC_SEED is empty" in other._repr_html_()


def test_settings_without_origins_are_explained_too() -> None:
    bare = ExecutionSettings.model_construct(**dict(ExecutionSettings.from_values({"seed": 3})))
    assert bare.explain("seed").startswith("seed = 3\n  from      default not known")
    assert "<td>seed</td>" in bare._repr_html_()


def test_one_name_of_a_table_is_explained(clean_process: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = clean_process.write("ptycho_exec.toml", "[trainer]\nbarebones = true\n")
    assert main(["explain", "trainer.barebones"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["trainer.barebones = true", f"  from      project-file ({path}:2)"]
    ways = (
        "PTYCHO_EXEC_TRAINER__BAREBONES, --trainer barebones=..., or barebones = ... in [trainer] of a file"
    )
    assert f"  set with  {ways}" in lines
    assert ExecutionSettings().explain("trainer.min_steps").splitlines()[:2] == [
        "trainer.min_steps = none",
        "  from      default",
    ]
    with pytest.raises(SettingsError, match="write barebones"):
        ExecutionSettings().explain("trainer.barebone")
    assert "of these  barebones = true from project-file" in ExecutionSettings().explain("trainer")
    assert "<td>trainer</td>" in ExecutionSettings.from_values({})._repr_html_()
    assert "<th>trainer.barebones</th><th>true</th>" in ExecutionSettings()._repr_html_()


def test_a_name_of_a_table_of_another_class_is_explained_elsewhere() -> None:
    class Other(ResolvedSettings):
        program: ClassVar[str] = "other"

    with pytest.raises(SettingsError) as caught:
        Other.from_values({}).explain("trainer.min_epochs")
    text = str(caught.value)
    assert "trainer.min_epochs is a setting of ptycho_exec" in text
    assert "call ExecutionSettings().explain('trainer.min_epochs')" in text
    with pytest.raises(SettingsError, match=r"unknown setting 'trainer\.nothing'"):
        Other.from_values({}).explain("trainer.nothing")
    with pytest.raises(SettingsError, match=r"run ptycho-exec explain trainer\.min_epochs"):
        checked_name("trainer.min_epochs", Other, where=COMMAND_LINE)
