"""Which files a resolution reads, and which it only notes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic_settings import SettingsConfigDict

from ptycho_exec.errors import SettingsError
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind
from ptycho_exec.sources.resolve import (
    Request,
    resolve,
)

if TYPE_CHECKING:
    from conftest import Place


def test_every_file_that_was_looked_for_is_listed(place: Place) -> None:
    looked = place.resolve().searched
    assert [row.kind for row in looked] == [
        Kind.DOTENV,
        Kind.SETTINGS_FILE,
        Kind.PROJECT_FILE,
        Kind.PYPROJECT,
        Kind.USER_FILE,
    ]
    assert not any(row.found for row in looked)
    assert "and in every folder above" in looked[2].path
    place.write("ptycho_exec.toml", "")
    assert [row.path for row in place.resolve().searched if row.found] == [
        str(place.cwd / "ptycho_exec.toml")
    ]


def test_the_nearest_project_file_upward_is_read(place: Place) -> None:
    (place.home / "ptycho_exec.toml").write_text("seed = 1\n")
    assert place.settings().seed == 1
    place.write("ptycho_exec.toml", "seed = 2\n")
    assert place.settings().seed == 2


def test_a_pyproject_without_our_table_is_passed_over(place: Place) -> None:
    (place.home / "pyproject.toml").write_text("[tool.ptycho_exec]\nseed = 1\n")
    place.write("pyproject.toml", '[project]\ndependencies = ["ptycho_exec"]\n')
    assert place.settings().seed == 1


def test_xdg_config_home_counts_only_when_it_is_absolute(place: Place, tmp_path: Path) -> None:
    place.write_user_file("seed = 1\n")
    elsewhere = place.write(str(tmp_path / "xdg" / "ptycho_exec" / "settings.toml"), "seed = 2\n")
    assert place.settings().seed == 1
    place.environ["XDG_CONFIG_HOME"] = str(elsewhere.parents[1])
    assert place.settings().seed == 2
    place.environ["XDG_CONFIG_HOME"] = "xdg"
    assert place.settings().seed == 1


def test_without_a_home_there_is_no_user_file(place: Place) -> None:
    looked = resolve(Request(ExecutionSettings, environ={}, cwd=place.cwd)).searched
    assert (looked[-1].kind, looked[-1].found) == (Kind.USER_FILE, False)


def test_a_working_directory_that_is_gone_is_a_notice(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clean_process.cwd / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    resolution = resolve(Request(ExecutionSettings))
    assert resolution.errors == ()
    what = "the working directory no longer exists, so no file in it was read"
    assert (what, "not-read") in {(notice.what, notice.code) for notice in resolution.notices}


@pytest.mark.parametrize("how", ["argument", "environment", "dotenv"])
def test_a_named_file_that_is_missing_is_an_error(place: Place, how: str) -> None:
    request: dict[str, Any] = {"settings_file": "absent.toml"} if how == "argument" else {}
    if how == "environment":
        place.environ["PTYCHO_EXEC_SETTINGS_FILE"] = "absent.toml"
    if how == "dotenv":
        place.write(".env", "\nPTYCHO_EXEC_SETTINGS_FILE=absent.toml\n")
    with pytest.raises(SettingsError, match=r"settings file not found: .*absent\.toml") as caught:
        place.settings(**request)
    finding = caught.value.findings[0]
    assert how in finding.where
    assert finding.line == (2 if how == "dotenv" else 0)


def test_a_directory_in_the_place_of_a_file(place: Place) -> None:
    for name in (".env", "ptycho_exec.toml", "named.toml"):
        (place.cwd / name).mkdir()
    assert place.settings() == ExecutionSettings.from_values({})
    with pytest.raises(SettingsError, match="settings file is a directory"):
        place.settings(settings_file="named.toml")


@pytest.mark.parametrize("name", ["~nobody-has-this-name/a.toml", "a\0b.toml", "/dev/null", ""])
def test_odd_paths_are_errors_that_say_so(place: Place, name: str) -> None:
    with pytest.raises(SettingsError, match="settings file"):
        place.settings(settings_file=name)


def test_a_settings_file_may_be_a_link(place: Place) -> None:
    target = place.write("deep/real.toml", "seed = 8\n")
    (place.cwd / "link.toml").symlink_to(target)
    assert place.settings(settings_file="link.toml").seed == 8


@pytest.mark.parametrize(
    "name", ["ptycho-exec.toml", ".ptycho_exec.toml", "ptycho_exec.yaml", "ptychoexec.json"]
)
def test_a_settings_file_with_nearly_the_right_name_is_noted(place: Place, name: str) -> None:
    path = place.write(name, "{}")
    (notice,) = place.resolve().notices
    assert (
        notice.what
        == f"{path} is not read: the settings file here is ptycho_exec.toml; --settings names another"
    )
    if not name.endswith(".toml"):
        place.write(name, '{"seed": 1}')
        assert place.resolve(settings_file=name).notices == ()


def test_a_user_file_with_nearly_the_right_name_is_noted(place: Place) -> None:
    place.write("../.config/ptycho_exec/settings.yaml", "seed: 1\n")
    assert len(place.resolve().notices) == 1


def test_the_env_file_of_a_folder_above_is_noted_if_it_speaks_of_us(place: Place) -> None:
    above = place.home / ".env"
    above.write_text("OTHER=1\n")
    assert place.resolve().findings == ()
    above.write_text("OTHER=1\nexport PTYCHO_EXEC_SEED=7\n")
    place.write(".env", "PTYCHO_EXEC_BATCH_SIZE=4\n")
    resolution = place.resolve()
    (note,) = resolution.findings
    assert (note.level, note.code) == ("note", "not-read")
    assert str(above) in note.what
    assert (dict(resolution.values), place.settings().seed) == ({"batch_size": 4}, 42)
    above.unlink()
    above.mkdir()
    assert place.resolve().findings == ()


class Named(ExecutionSettings):
    """Settings with files of variables of their own."""

    program: ClassVar[str] = "named"
    model_config = SettingsConfigDict(env_prefix="NAMED_", env_file=(".env", "site.env"))


@pytest.mark.parametrize("given", ["nope.env", (".env", "nope.env"), "~/nope.env", "folder"])
def test_a_dotenv_that_a_call_names_must_be_there(clean_process: Place, given: Any) -> None:
    clean_process.write(".env", "")
    clean_process.write("folder/file", "")
    with pytest.raises(SettingsError, match="is not there") as caught:
        Named(_env_file=given)  # type: ignore[call-arg]
    (finding,) = caught.value.findings
    assert (finding.code, finding.fix) == ("unreadable-file", "correct the path, or do not name it")
    (clean_process.home / "right.env").write_text("NAMED_SEED=7\n")
    assert Named(_env_file="~/right.env").seed == 7  # type: ignore[call-arg]
    assert Named(_env_file=None).seed == 42  # type: ignore[call-arg]


def test_a_dotenv_of_the_class_that_is_not_there_is_noted(clean_process: Place) -> None:
    what = f"{clean_process.cwd / 'site.env'} is not there: env_file of Named names it"
    assert [notice.what for notice in Named().notices] == [what]
    clean_process.write("site.env", "NAMED_SEED=7\n")
    assert (Named().seed, Named().notices) == (7, ())
