"""Configs out of what a caller has: every override reaches its owner, or is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ptycho_exec import ExecutionSettings, Kind, SettingsError
from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig, ScienceConfig, TrainingConfig
from ptycho_torch.factory import (
    TRAINING_DEFAULTS,
    create_inference_payload,
    create_training_payload,
    execution_settings,
    infer_probe_size,
    science_of,
    split_overrides,
    whole_scan,
)
from ptycho_torch.simulate import save, simulate_scan


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(simulate_scan(n=32, patterns=20, photons=1e5), tmp_path_factory.mktemp("data") / "scan.npz")


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def test_a_training_payload_is_complete_and_says_what_took_effect(scan_file: Path, tmp_path: Path) -> None:
    overrides = {"nepochs": 7, "batch_size": 4, "gridsize": 2, "test_data_file": scan_file}
    payload = create_training_payload(scan_file, tmp_path / "run", overrides)
    assert payload.science.training.epochs == 7
    assert payload.science.data.gridsize == 2
    assert payload.science.data.N == 32
    assert payload.execution_config.batch_size == 4
    assert payload.settings.origins["batch_size"].kind is Kind.OVERRIDE
    assert payload.settings.scheduler == TRAINING_DEFAULTS["scheduler"].value
    assert payload.settings.origins["scheduler"].kind is Kind.FACTORY
    expected = {"epochs": 7, "batch_size": 4, "gridsize": 2, "N": 32, "test_data_file": str(scan_file)}
    assert payload.overrides_applied == expected
    assert not (tmp_path / "run").exists()


def test_a_setting_that_somebody_made_wins_over_the_factory(scan_file: Path, tmp_path: Path) -> None:
    asked = ExecutionSettings.from_values({"scheduler": "Exponential"})
    payload = create_training_payload(scan_file, tmp_path, {}, asked)
    assert payload.settings.scheduler == "Exponential"
    assert payload.settings.gradient_clip_val == TRAINING_DEFAULTS["gradient_clip_val"].value


def test_all_wrong_overrides_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        split_overrides({"epoch": 3, "gridsize": -1, "batchsize": 2}, ScienceConfig())
    unknown, retired, bad = caught.value.findings
    assert (unknown.fix, unknown.code) == ("write epochs, or remove it", "unknown-name")
    assert retired.fix == "write batch_size (its name here)"
    assert bad.what == "gridsize = -1 is not allowed"
    assert bad.where.startswith("override with_overrides()")
    assert (bad.expected, bad.code, bad.field) == ("an integer from 1 to 8", "bad-value", "gridsize")
    assert bad.fix == "write another value, or remove it for the default, 1"


@pytest.mark.parametrize(
    ("overrides", "what", "fix"),
    [
        ({"gridsize": 2, "neighbor_count": 1}, "gridsize 2 needs 3 neighbors", "choose neighbor_count >= 3"),
        ({"refine_probe": True}, "epochs of refinement are needed", "choose refine >= 1"),
        (
            {"grouping": "distance", "min_neighbor_distance_px": 4, "max_neighbor_distance_px": 3},
            "the distance window is empty: from 4",
            "choose a larger upper bound",
        ),
        ({"probe_trainable": True, "loss": "supervised"}, "probe_trainable has no effect", "choose loss"),
    ],
)
def test_values_that_contradict_each_other_are_told_with_a_remedy(
    overrides: dict[str, object], what: str, fix: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        split_overrides(overrides, ScienceConfig())
    (finding,) = caught.value.findings
    assert what in finding.what
    assert finding.fix.startswith(fix)
    assert finding.code == "conflict"


def test_a_legacy_config_gives_science_and_factory_defaults() -> None:
    config = SimpleNamespace(batch_size=5, model=SimpleNamespace(N=64, gridsize=2), nepochs=3)
    science, carried = science_of(config)
    assert (science.data.N, science.data.gridsize, science.training.epochs) == (64, 2, 3)
    settings = execution_settings(None, {}, carried)
    assert settings.batch_size == 5
    assert settings.origins["batch_size"].describe() == "factory, from the config"


def test_a_mapping_of_settings_and_any_object_with_their_names() -> None:
    assert execution_settings({"batch_size": 3}, {"seed": 1}, {}).batch_size == 3
    old = SimpleNamespace(batch_size=9, seed=8)
    settings = execution_settings(old, {"seed": 1}, {})
    assert (settings.batch_size, settings.seed) == (9, 1)


def test_probe_size_without_reading_patterns(scan_file: Path, tmp_path: Path) -> None:
    assert infer_probe_size(scan_file) == 32
    for shape in ((48, 48), (48, 48, 1), (3, 48, 48)):
        np.savez(tmp_path / "probe.npz", probeGuess=np.ones(shape, complex))
        assert infer_probe_size(tmp_path / "probe.npz") == 48
    np.savez(tmp_path / "none.npz", diff3d=np.ones(3))
    with pytest.raises(DataError, match="there is no probe"):
        infer_probe_size(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", other=np.ones(3))
    with pytest.raises(DataError, match="no scan is in here"):
        infer_probe_size(tmp_path / "other.npz")


def test_missing_files_are_told(scan_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="training scan not found"):
        create_training_payload(tmp_path / "no.npz", tmp_path)
    with pytest.raises(DataError, match="test scan not found"):
        create_training_payload(scan_file, tmp_path, {"test_data_file": "no.npz"})
    with pytest.raises(DataError, match="no trained model"):
        create_inference_payload(tmp_path / "no", scan_file, tmp_path)


def test_inference_covers_the_whole_scan_whatever_training_used() -> None:
    data = DataConfig(x_bounds=(0.2, 0.5), n_patterns=3, n_groups=9, gridsize=2)
    science = ScienceConfig(data=data, training=TrainingConfig(epochs=2))
    assert whole_scan(science).data == DataConfig(gridsize=2)
    assert whole_scan(science).training == science.training
