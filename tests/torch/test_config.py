"""The science of a run: strict, frozen, light, and without a field of the settings."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import (
    UNITS_M,
    DataConfig,
    InferenceConfig,
    ModelConfig,
    ScienceConfig,
    TrainingConfig,
    Unit,
)

PARTS = (DataConfig, ModelConfig, TrainingConfig, InferenceConfig)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data": {"gridsiz": 2}}, "Extra inputs are not permitted"),
        ({"data": {"gridsize": 9}}, "less than or equal to 8"),
        ({"data": {"x_bounds": (0.5, 0.5)}}, r"got \(0.5, 0.5\); two fractions"),
        ({"data": {"y_bounds": (0.0, 1.1)}}, r"got \(0.0, 1.1\); two fractions"),
        ({"data": {"gridsize": 3, "neighbor_count": 7}}, "needs 8 neighbors and neighbor_count is 7"),
        ({"data": {"max_neighbor_distance_px": 5}}, "has no effect with grouping = nearest"),
        (
            {"data": {"grouping": "distance", "min_neighbor_distance_px": 5, "max_neighbor_distance_px": 5}},
            "window is empty: from 5.0 to 5.0 pixels",
        ),
        ({"inference": {"start": "flat"}}, "refine is 0"),
        ({"model": {"probe_trainable": True}, "training": {"loss": "supervised"}}, "compares with labels"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ScienceConfig.model_validate(values)


def test_the_neighbors_that_a_group_needs_are_enough() -> None:
    for gridsize in (1, 2, 5):
        needed = max(1, gridsize**2 - 1)
        assert DataConfig(gridsize=gridsize, neighbor_count=needed).neighbor_count == needed


def test_science_is_frozen_and_travels_as_json_and_pickle() -> None:
    science = ScienceConfig(data=DataConfig(N=32, x_bounds=(0.25, 0.5)), inference=InferenceConfig(refine=3))
    assert ScienceConfig.model_validate_json(science.model_dump_json()) == science
    assert pickle.loads(pickle.dumps(science)) == science != ScienceConfig()
    with pytest.raises(ValidationError, match="frozen"):
        science.data.N = 64  # type: ignore[misc]


def test_every_field_is_explained_and_none_is_also_a_setting_or_in_two_parts() -> None:
    names = [name for part in PARTS for name in part.model_fields]
    assert len(names) == len(set(names)) > 30
    assert not set(names) & set(ExecutionSettings.model_fields)
    assert [n for part in PARTS for n, field in part.model_fields.items() if not field.description] == []


def test_building_science_loads_no_torch_and_no_numpy() -> None:
    code = "import sys, ptycho_torch.config as c; c.DataConfig(); print({'torch', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_unit_of_length_has_its_meters() -> None:
    assert {*UNITS_M, "auto", "px"} == set(get_args(Unit))
