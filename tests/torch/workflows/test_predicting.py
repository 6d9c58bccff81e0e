"""Prediction without a Trainer: the same object to the last bit, and every setting that acts on it acts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_exec.errors import DataError
from ptycho_exec.fields.stages import without_effect
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.progress import Meter
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import ScienceConfig
from ptycho_torch.data.scan import ScanData
from ptycho_torch.model import PtychoPINN_Lightning, load_model
from ptycho_torch.network.checkpoint import save_model
from ptycho_torch.network.predictor import Predictor
from ptycho_torch.workflows import components
from tests.torch.workflows.tiny_runs import settings, untrained

FACTS = MachineFacts(cpus_logical=4, compiler="g++")


@pytest.fixture(scope="module")
def model(scan: ScanData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return save_model(folder / "model.ckpt", untrained(PtychoPINN_Lightning, scan), ScienceConfig(), {})


def reconstructed(model: Any, scan: ScanData, wanted: ExecutionSettings, **more: Any) -> tuple[type, Any]:
    """Return the class of the module that predicted, and the result."""
    inference = components.plan_inference(model, scan, None, wanted, more, facts=FACTS)
    return type(inference.module), components.run_inference(inference)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"inference_batch_size": 7, "num_workers": 2, "persistent_workers": True, "prefetch_factor": 1},
        {"precision": "bf16-mixed"},
        {"deterministic": False, "matmul_precision": "medium", "num_threads": 1},
        {"middle_trim": 8, "pad_eval": True},
    ],
)
def test_the_object_is_that_of_a_trainer_to_the_last_bit(
    model: Path, scan: ScanData, values: dict[str, Any]
) -> None:
    wanted = settings(**values)
    alone, mine = reconstructed(model, scan, wanted)
    module, science = load_model(model)
    lifted, theirs = reconstructed({"models": {"lightning_module": module}, "science": science}, scan, wanted)
    assert (alone, lifted) == (Predictor, PtychoPINN_Lightning)
    np.testing.assert_array_equal(mine.object, theirs.object)
    np.testing.assert_array_equal(mine.coverage, theirs.coverage)
    assert mine.phases_turned_rad == theirs.phases_turned_rad
    said = mine.applied["read_back"]
    assert said == {name: theirs.applied["read_back"][name] for name in said}
    assert not mine.drift.differing


def state(batch: Any) -> dict[str, Any]:
    """Return what a prediction can see of its settings."""
    half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    return {
        "inference_batch_size": len(batch["amplitude"]),
        "batch_size": len(batch["amplitude"]),
        "precision": half,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "num_threads": torch.get_num_threads(),
        "seed": (int(os.environ["PL_GLOBAL_SEED"]), torch.initial_seed()),
        "inference": torch.is_inference_mode_enabled(),
    }


BESIDE = {"batch_size": {"inference_batch_size": None}}
"""Field -> what else must be set so that it acts."""
ACTS: dict[str, tuple[Any, Any]] = {
    "inference_batch_size": (20, 20),
    "batch_size": (24, 24),
    "precision": ("bf16-mixed", torch.bfloat16),
    "deterministic": (False, False),
    "matmul_precision": ("medium", "medium"),
    "num_threads": (3, 3),
    "seed": (7, (7, 7)),
}
"""Field -> a value, and what a prediction sees of it."""


@pytest.mark.acts("inference_batch_size", "length of the batches without a Trainer", ["inference_batch_size"])
@pytest.mark.acts("batch_size", "length of the batches without a Trainer", ["batch_size"])
@pytest.mark.acts("precision", "autocast while a batch is predicted", ["precision"])
@pytest.mark.acts("deterministic", "torch's flag while a batch is predicted", ["deterministic"])
@pytest.mark.acts("matmul_precision", "torch's flag while a batch is predicted", ["matmul_precision"])
@pytest.mark.acts("num_threads", "threads while a batch is predicted", ["num_threads"])
@pytest.mark.acts("seed", "torch's seed while a batch is predicted", ["seed"])
@pytest.mark.parametrize("field", ACTS)
def test_a_setting_acts_without_a_trainer(
    field: str, model: Path, scan: ScanData, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, wanted = ACTS[field]
    seen, step = [], Predictor.predict_step

    def watched(self: Predictor, batch: Any, batch_idx: int = 0) -> Any:
        seen.append(state(batch))
        return step(self, batch, batch_idx)

    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    monkeypatch.setattr(Predictor, "predict_step", watched)
    alone, made = reconstructed(model, scan, settings(**BESIDE.get(field, {}), **{field: value}))
    assert alone is Predictor
    assert seen[0][field] == wanted
    assert seen[0]["inference"]
    assert before == (torch.get_num_threads(), torch.get_float32_matmul_precision())
    assert made.applied["read_back"].get(field, value) == value


@pytest.mark.acts("num_workers", "processes that load the samples of a prediction")
def test_workers_load_without_a_trainer(
    model: Path, scan: ScanData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    collate = components.collate

    def marked(rows: Any) -> Any:
        (tmp_path / str(os.getpid())).touch()
        return collate(rows)

    monkeypatch.setattr(components, "collate", marked)
    alone, _ = reconstructed(model, scan, settings(num_workers=2, inference_batch_size=16))
    assert alone is Predictor
    assert len(list(tmp_path.iterdir())) == 2
    assert not (tmp_path / str(os.getpid())).exists()


@pytest.mark.acts("enable_progress_bar", "the meter that counts batches", ["False"])
@pytest.mark.parametrize("shows", [True, False], ids=str)
def test_the_batches_are_counted_where_progress_is_shown(
    shows: bool, model: Path, scan: ScanData, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []

    class Watched(Meter):
        def close(self) -> None:
            counted.append((self.what, self.done, self.total))
            super().close()

    monkeypatch.setattr("ptycho_exec.trainer.alone.Meter", Watched)
    reconstructed(model, scan, settings(enable_progress_bar=shows, inference_batch_size=20))
    assert counted == ([("reconstructing", 3, 3)] if shows else [])


@pytest.mark.parametrize(
    "values", [{"fast_dev_run": 1}, {"precision": "64-true"}, {"trainer": {"limit_predict_batches": 2}}]
)
def test_what_a_trainer_alone_can_do_is_left_to_it(
    values: dict[str, Any], model: Path, scan: ScanData
) -> None:
    kind, made = reconstructed(model, scan, settings(**values, inference_batch_size=8))
    assert kind is PtychoPINN_Lightning
    assert (made.n_patches < len(scan)) == ("precision" not in values)


ELSEWHERE = frozenset(
    {
        "accelerator", "devices", "num_nodes", "strategy", "start_timeout",  # the plan; or a Trainer
        "fast_dev_run", "trainer",  # always a Trainer
        "benchmark",  # of a GPU; a flag of the process, set for both
        "compile",  # the network's own, which was built with it
        "pin_memory", "persistent_workers", "prefetch_factor",  # arguments of the loader, which both have
        "middle_trim", "pad_eval",  # the stitching, which both have
        "on_unsupported", "drift", "max_requeues",  # no matter of the loop
        "logger_backend", "experiment_name", "wandb_mode", "tracking_uri", "profiler",  # a directory
    }
)  # fmt: skip
"""Fields that no loop reads, with a Trainer or without."""


def test_every_field_is_known_to_act_or_not_to() -> None:
    known = {*ACTS, *ELSEWHERE, "num_workers", "enable_progress_bar", *without_effect("inference")}
    assert known == set(ExecutionSettings.model_fields)


def test_a_compiled_network_is_compiled_without_a_trainer(scan: ScanData, tmp_path: Path) -> None:
    trained = untrained(PtychoPINN_Lightning, scan)
    trained.hparams["execution_config"] = {**trained.hparams["execution_config"], "compile": True}
    save_model(tmp_path / "model.ckpt", trained, ScienceConfig(), {})
    inference = components.plan_inference(tmp_path / "model.ckpt", scan, None, settings(), facts=FACTS)
    compiled = []
    inference.module.network.unet.compile = lambda: compiled.append(True)
    components.run_inference(inference)
    assert compiled == [True]


def test_a_patch_that_cannot_be_stitched_puts_all_back(model: Path, scan: ScanData) -> None:
    moved = ScanData(**{**vars(scan), "positions_px": scan.positions_px - [6.0, 0.0]})
    inference = components.plan_inference(model, moved, None, settings(), facts=FACTS)
    with pytest.raises(DataError, match="canvas"):
        components.run_inference(inference)
    assert not torch.is_inference_mode_enabled()
    assert {weight.device.type for weight in inference.module.parameters()} == {"cpu"}
