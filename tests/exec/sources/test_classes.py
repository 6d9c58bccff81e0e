"""Names that belong to the settings of another installed package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ptycho_exec.errors import SettingsError
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.classes import owner_of, settings_classes, spec_elsewhere
from ptycho_torch.settings import ScienceSettings

if TYPE_CHECKING:
    from conftest import Place


def test_the_classes_of_both_packages_are_registered() -> None:
    assert set(settings_classes()) >= {ExecutionSettings, ScienceSettings}


def test_a_name_has_its_owner() -> None:
    assert owner_of("epochs", ExecutionSettings) is ScienceSettings
    assert owner_of("batch_size", ScienceSettings) is ExecutionSettings
    assert owner_of("batch_size", ExecutionSettings) is None
    assert owner_of("nothing", ExecutionSettings) is None
    found = spec_elsewhere("ptycho_torch_epochs")
    assert found is not None
    assert found.variable == "PTYCHO_TORCH_EPOCHS"


@pytest.mark.parametrize(
    ("model", "name", "text"),
    [
        (ExecutionSettings, "ptycho_exec.toml", "epochs = 3\n"),
        (ExecutionSettings, "pyproject.toml", "[tool.ptycho_exec]\nepochs = 3\n"),
        (ExecutionSettings, ".env", "PTYCHO_EXEC_EPOCHS=3\n"),
        (ScienceSettings, "ptycho_torch.toml", "batch_size = 3\n"),
        (ScienceSettings, "pyproject.toml", "[tool.ptycho_torch.profiles.x]\nbatch_size = 3\n"),
        (ScienceSettings, ".env", "PTYCHO_TORCH_BATCH_SIZE=3\n"),
    ],
)
def test_a_name_in_the_other_ones_place_is_told_where_it_belongs(
    model: type[ExecutionSettings], name: str, text: str, clean_process: Place
) -> None:
    clean_process.write(name, text)
    with pytest.raises(SettingsError) as caught:
        model()
    (finding,) = caught.value.findings
    other, field = ("torch", "epochs") if model is ExecutionSettings else ("exec", "batch_size")
    ways = f"set PTYCHO_{other.upper()}_{field.upper()}, or write {field} in ptycho_{other}.toml"
    assert finding.fix == f"remove it here and {ways} (it is a setting of ptycho_{other})"
    # The remedy works.
    clean_process.write(name, "")
    clean_process.write(f"ptycho_{other}.toml", f"{field} = 3\n")
    meant = ScienceSettings if other == "torch" else ExecutionSettings
    assert getattr(meant(), field) == 3


def test_a_named_file_may_hold_both_and_says_what_has_no_effect_here(clean_process: Place) -> None:
    clean_process.write("run.toml", "seed = 1\nepochs = 3\n[profiles.long]\ngridsize = 2\n")
    settings = ExecutionSettings(settings_file="run.toml")
    assert settings.seed == 1
    path = clean_process.cwd / "run.toml"
    assert [notice.what for notice in settings.notices] == [
        f"{name} in {path} is a setting of ptycho_torch and has no effect here"
        for name in ("epochs", "gridsize")
    ]
    assert ScienceSettings(settings_file="run.toml").epochs == 3
