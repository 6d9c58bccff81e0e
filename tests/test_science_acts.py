"""Every science field does something: a run with it is not the run without it.

With `pytest --cut` each field has its default at the functions that hand the configs to a workflow, and these
tests must fail.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from ptycho_exec.errors import UserError
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.data.convert import convert
from ptycho_torch.data.scan import ScanData
from ptycho_torch.settings import ScienceSettings
from ptycho_torch.simulate import save, simulate_scan
from ptycho_torch.workflows import components
from ptycho_torch.workflows.results import TrainingResult

pytestmark = pytest.mark.slow

SMALL = {"n_filters": 4, "depth": 1, "epochs": 1}
APART = {"gridsize": 2, "grouping": "distance"}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    # field of a training: value, what it needs besides
    "map": ({"patterns": "diff3d"}, {}),
    "positions_order": ("xy", {"map": {"positions": "scan"}}),
    "positions_unit": ("um", {"pixel_size_m": 5e-7}),
    "pixel_size_m": (1e-8, {}),
    "scan_step": (3.0, {}),
    "scan_shape": ((8, 5), {"scan_step": 3.0}),
    "scan_rotation_deg": (30.0, {"scan_step": 3.0, "scan_shape": (8, 5)}),
    "dark_file": ("dark.npy", {"clip_negative": True}),
    "pedestal": (1.0, {"clip_negative": True}),
    "gain": (2.0, {}),
    "clip_negative": (True, {"pedestal": 1.0}),
    "threshold": (3.0, {}),
    "mask_file": ("mask.npy", {}),
    "mask_marks": ("good", {"mask_file": "mask.npy"}),
    "mask_suspects": (True, {}),
    "zero_frequency": ("corner", {}),
    "flip_patterns": ("y", {}),
    "transpose_patterns": (True, {}),
    "center": ((15.0, 14.0), {}),
    "crop": (16, {}),
    "pad": (48, {}),
    "bin": (2, {}),
    "orient": ("flip-y", {}),
    "position_affine": ((1.0, 0.5, 0.0, 1.0), {}),
    "probe": ("probe.npy", {}),
    "propagation": ("far", {}),
    "N": (16, {}),
    "gridsize": (2, {}),
    "domain": ("amplitude", {}),
    "pattern_axes": ("last", {}),
    "patch_center": ("pixel", {}),
    "canvas": ("positions", {}),
    "grouping": ("quadrant", {"gridsize": 2}),
    "neighbor_count": (9, {"gridsize": 2}),
    "min_neighbor_distance_px": (3.0, APART),
    "max_neighbor_distance_px": (6.0, APART),
    "n_groups": (8, {}),
    "sequential": (True, {"n_groups": 8}),
    "x_bounds": ((0.0, 0.5), {}),
    "y_bounds": ((0.0, 0.5), {}),
    "n_patterns": (8, {}),
    "allow_pickle": (True, {}),
    "drop": ("3-7", {}),
    "n_filters": (8, {"depth": 1}),
    "depth": (3, {}),
    "modulus_updates": (2, {}),
    "object_big": (False, {"gridsize": 2}),
    "probe_trainable": (True, {}),
    "intensity_scale_trainable": (False, {}),
    "amp_activation": ("sigmoid", {}),
    "epochs": (2, {}),
    "loss": ("poisson", {}),
    "split_counts": (True, {"loss": "poisson"}),
    "tv_weight": (0.5, {}),
    "mean_deviation_weight": (0.5, {}),
    "val_fraction": (0.25, {}),
}
INFERENCE_CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "patch_weighting": ("uniform", {}),
    "window": ("hann", {}),
    "align_phases": (False, {}),
    "out_of_canvas": ("crop", {}),
    "refine": (1, {}),
    "start": ("flat", {"refine": 1}),
    "likelihood": ("counts", {"refine": 2}),
    "denoise": (True, {"refine": 2, "likelihood": "counts"}),
    "refine_probe": (True, {"refine": 4}),
    "probe_modes": (2, {"refine": 2}),
    "refine_positions": (True, {"refine": 4}),
    "position_limit_px": (1e-3, {"refine": 4, "refine_positions": True}),
    "refine_background": (True, {"refine": 2}),
}
ELSEWHERE = {"allow_links", "translation", "prediction_updates"}
"""Fields with a test of their own below."""


def acting(cases: dict[str, Any]) -> list[Any]:
    return [
        pytest.param(
            name, id=name, marks=pytest.mark.acts(name, "a run that is not the one without it", [name])
        )
        for name in cases
    ]


def quiet() -> ExecutionSettings:
    values = {"logger_backend": None, "enable_progress_bar": False, "batch_size": 4, "num_threads": 1}
    return ExecutionSettings.from_values(values)


@cache
def whole_scan() -> ScanData:
    return simulate_scan(n=32, patterns=40, photons=1e5, seed=3)


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan with everything that a field can be about: a declared domain, an object, pickled metadata."""
    path = tmp_path_factory.mktemp("scan") / "scan.npz"
    save(whole_scan(), path)
    arrays = dict(np.load(path))
    positions = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    np.savez(path, **arrays, scan=positions, _metadata=np.array({"beamline": "26-ID"}, dtype=object))
    np.save(path.with_name("dark.npy"), np.ones((32, 32)))
    np.save(path.with_name("mask.npy"), np.eye(32, dtype=bool))
    np.save(path.with_name("probe.npy"), whole_scan().probe * 1j)
    return path


def trained(scan: Any, values: dict[str, Any]) -> Any:
    """Return what can be seen of a training: losses, parameters, patterns, report; or its refusal."""
    science = ScienceSettings.from_values({**SMALL, **values}).config
    try:
        result = components.train(scan, None, science, quiet())
    except UserError as error:
        return [finding.what for finding in error.findings]
    seen: ScanData = result.train_container
    return result.history, parameters(result), len(seen), seen.object_guess is None, seen.report


def parameters(result: TrainingResult) -> list[tuple[str, tuple[int, ...]]]:
    named = result.module.named_parameters()
    return [(name, tuple(value.shape)) for name, value in named if value.requires_grad]


@pytest.mark.filterwarnings("ignore::ptycho_exec.errors.DataWarning")
@pytest.mark.parametrize("name", acting(CASES))
def test_a_training_with_it_is_not_the_one_without(name: str, scan_file: Path) -> None:
    value, companions = CASES[name]
    assert trained(scan_file, {**companions, name: value}) != trained(scan_file, companions)


@pytest.fixture(scope="module")
def model() -> TrainingResult:
    return components.train(whole_scan(), None, ScienceSettings.from_values(SMALL).config, quiet())


def reconstructed(model: TrainingResult, scan: ScanData, values: dict[str, Any]) -> bytes:
    science = ScienceSettings.from_values({**SMALL, **values}).config
    try:
        result = components.reconstruct(model, scan, science, quiet())
    except UserError as error:
        return error.findings[0].what.encode()
    probe = b"" if result.probe is None else result.probe.tobytes()
    more = b"" if result.refinement is None else str(result.refinement.more_arrays()).encode()
    return result.object.tobytes() + probe + more


@pytest.mark.filterwarnings("ignore:.*outside:UserWarning")
@pytest.mark.parametrize("name", acting(INFERENCE_CASES))
def test_a_reconstruction_with_it_is_not_the_one_without(name: str, model: TrainingResult) -> None:
    value, companions = INFERENCE_CASES[name]
    scan = whole_scan()
    if name == "out_of_canvas":
        scan = replace(scan, positions_px=scan.positions_px + 8.0)
    asked = reconstructed(model, scan, {**companions, name: value})
    assert asked != reconstructed(model, scan, companions)


@pytest.mark.acts("prediction_updates", "the predicted patches")
def test_updates_in_prediction_change_the_object_and_not_the_losses() -> None:
    seen = []
    for number in (3, 6):
        science = ScienceSettings.from_values({**SMALL, "prediction_updates": number}).config
        result = components.train(whole_scan(), None, science, quiet())
        with torch.inference_mode():
            seen.append((result.history, components.reconstruct(result, whole_scan(), None, quiet()).object))
    assert seen[0][0] == seen[1][0]
    assert not np.array_equal(seen[0][1], seen[1][1])


@pytest.mark.acts("translation", "where the positions of a CXI file are")
def test_the_translation_of_a_file_decides_where_its_patterns_are(tmp_path: Path) -> None:
    scan = replace(whole_scan(), pixel_size_m=1e-8, photon_energy_eV=8e3, detector_distance_m=2.0)
    path = convert_to_cxi(scan, tmp_path)
    reports = [trained(path, {"translation": word}) for word in ("probe", "sample")]
    assert reports[0] != reports[1]


@pytest.mark.acts("allow_links", "whether patterns in another file are read")
def test_data_in_another_file_are_read_where_allowed(tmp_path: Path) -> None:
    scan = whole_scan()
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        file["frames"] = np.asarray(scan.patterns)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["ycoords"], file["xcoords"] = scan.positions_px.T
        file["probeGuess"] = scan.probe
        file["diffraction"] = h5py.ExternalLink("frames.h5", "frames")
    refused = ["the data lie in another file, 'frames.h5'"]
    assert trained(tmp_path / "scan.h5", {}) == refused
    assert trained(tmp_path / "scan.h5", {"allow_links": True}) != refused


def convert_to_cxi(scan: ScanData, folder: Path) -> Path:
    save(scan, folder / "scan.npz")
    physical = {"photon_energy_eV": 8e3, "detector_distance_m": 2.0, "pixel_size_m": 1e-8}
    return convert(
        folder / "scan.npz",
        folder / "scan.cxi",
        "cxi",
        ScienceSettings.from_values({}).config.data,
        **physical,
    )


def test_every_field_has_a_case() -> None:
    assert {*CASES, *INFERENCE_CASES, *ELSEWHERE} == set(ScienceSettings.model_fields)
