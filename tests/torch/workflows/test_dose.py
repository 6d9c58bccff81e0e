"""What a training follows is chosen by the counts of its patterns, and a choice of the user stands."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from ptycho_exec.errors import DataError, SettingsError
from ptycho_torch import simulate_scan
from ptycho_torch.config import ModelConfig, ScienceConfig, TrainingConfig
from ptycho_torch.data.scan import ScanData
from ptycho_torch.evaluation.metrics import evaluate
from ptycho_torch.settings import ScienceSettings
from ptycho_torch.workflows import components
from ptycho_torch.workflows.dose import counts_per_pixel, fitted_to_dose


@cache
def scan_of(photons: float) -> ScanData:
    return simulate_scan(n=32, patterns=40, photons=photons, seed=3)


def as_amplitudes(scan: ScanData) -> ScanData:
    return replace(scan, patterns=scan.amplitude(np.arange(len(scan))) + 0.3, domain="amplitude", report={})


def chosen(scan: Any, **values: Any) -> tuple[str, bool]:
    asked = ScienceConfig(training=TrainingConfig(**values))
    training = fitted_to_dose(asked, scan).training
    return training.loss, training.split_counts


@pytest.mark.parametrize(
    ("photons", "values", "want"),
    [
        (1e6, {}, ("mae", False)),
        (2e3, {}, ("poisson", True)),
        (2e3, {"loss": "mae"}, ("mae", False)),
        (2e3, {"split_counts": False}, ("poisson", False)),
        (2e3, {"loss": "poisson"}, ("poisson", True)),
        (1e6, {"loss": "poisson"}, ("poisson", False)),
        (1e6, {"split_counts": True}, ("poisson", True)),
        (2e3, {"loss": "supervised"}, ("supervised", False)),
    ],
)
def test_few_counts_are_split(photons: float, values: dict[str, Any], want: tuple[str, bool]) -> None:
    assert chosen(scan_of(photons), **values) == want


def test_patterns_without_counts_are_compared_by_amplitude() -> None:
    roots = as_amplitudes(scan_of(2e3))
    assert counts_per_pixel(roots) is None
    assert chosen(roots) == ("mae", False)
    assert chosen({"X": np.ones((4, 32, 32))}) == ("mae", False)


def test_counts_that_are_not_there_cannot_be_split_and_the_remedy_works() -> None:
    roots = as_amplitudes(scan_of(2e3))
    with pytest.raises(DataError, match="hold no counts") as caught:
        chosen(roots, split_counts=True)
    assert "--split-counts false" in str(caught.value)
    assert chosen(roots, split_counts=False) == ("mae", False)


@pytest.mark.parametrize("loss", ["mae", "supervised"])
def test_halves_are_compared_by_their_likelihood_alone(loss: str) -> None:
    with pytest.raises(SettingsError, match="halves of counts") as caught:
        ScienceSettings.from_values({"loss": loss, "split_counts": True}, place="here")
    assert "loss = poisson" in str(caught.value)
    assert ScienceSettings.from_values({"loss": "poisson", "split_counts": True}, place="here").split_counts


def test_the_reason_is_the_origin_and_is_said() -> None:
    science = ScienceSettings.from_values({}, place="here").config
    said: list[str] = []
    fitted = fitted_to_dose(science, scan_of(2e3), said.append)
    reason = fitted.origins["loss"].describe()
    assert " counts per pixel are few" in reason
    assert [line.split(":")[0] for line in said] == [
        "--loss poisson",
        "--split-counts true",
        "--modulus-updates 0",
        "--prediction-updates 1",
    ]
    assert fitted_to_dose(fitted, scan_of(1e6)) == fitted, "what was decided stands"


def test_of_many_counts_and_where_the_user_says_so_patches_are_brought_to_the_measurement() -> None:
    model = fitted_to_dose(ScienceConfig(), scan_of(1e6)).model
    assert (model.modulus_updates, model.prediction_updates) == (1, 3)
    asked = ScienceConfig(model=ModelConfig(modulus_updates=2))
    model = fitted_to_dose(asked, scan_of(2e3)).model
    assert (model.modulus_updates, model.prediction_updates) == (2, 1)


@pytest.mark.slow
@pytest.mark.thorough
def test_more_epochs_of_few_counts_do_not_make_the_object_worse() -> None:
    scan = simulate_scan(n=32, patterns=225, photons=2e3, seed=3)
    quiet = {"logger_backend": None, "enable_progress_bar": False, "num_threads": 1}
    errors = []
    for epochs in (5, 40):
        science = ScienceConfig(training=TrainingConfig(epochs=epochs))
        trained = components.train(scan, None, science, quiet)
        made = components.reconstruct(trained, scan, None, quiet)
        errors.append(evaluate(made.object, truth_of(scan), coverage=made.coverage).nrmse)
    assert errors[1] < 1.02 * errors[0]  # 1.06 where the counts are not split


def truth_of(scan: ScanData) -> np.ndarray:
    assert scan.object_guess is not None
    return scan.object_guess
