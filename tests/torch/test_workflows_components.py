"""The workflows with substitutes: what reaches the Trainer, the module and the loaders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ptycho_torch.model
from ptycho_exec import SettingsError
from ptycho_exec.errors import DataError
from ptycho_torch.workflows.components import (
    _build_inference_dataloader,
    _train_with_lightning,
    run_inference_with_lightning,
)
from tests.torch.workflows.tiny_runs import settings, small, tiny_scan

# Scans of these tests are smaller than the default batch, and the plan says so.
pytestmark = pytest.mark.filterwarnings("ignore::ptycho_exec.errors.SettingsWarning")


class RecordedTrainer:
    """Stands in for lightning.pytorch.Trainer and keeps what it is given."""

    made: list[RecordedTrainer]

    def __init__(self, **kwargs: Any) -> None:
        self.kwargs = kwargs
        self.fitted: dict[str, Any] = {}
        type(self).made.append(self)

    def fit(self, module: Any, **loaders: Any) -> None:
        self.fitted = {"module": module, **loaders}


class StubModule:
    """A module without any attributes of its own."""

    def __init__(self, **kwargs: Any) -> None:
        del kwargs


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[RecordedTrainer]:
    RecordedTrainer.made = []
    monkeypatch.setattr("lightning.pytorch.Trainer", RecordedTrainer)
    monkeypatch.setattr("ptycho_torch.model.PtychoPINN_Lightning", StubModule)
    return RecordedTrainer.made


@pytest.fixture
def container() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "X": rng.random((10, 64, 64, 1), dtype=np.float32),
        "coords_relative": np.zeros((10, 1, 2, 1), np.float32),
    }


class CallerConfig:
    """A config of an earlier caller: it mixes science with an execution value."""

    N = 64
    gridsize = 1
    nepochs = 2
    batch_size = 16


class TestTrainWithLightningGreen:
    def test_execution_config_overrides_trainer(
        self, recorded: list[RecordedTrainer], container: dict[str, Any]
    ) -> None:
        asked = settings(accelerator="gpu", deterministic=False, gradient_clip_val=1.0, num_workers=4)
        result = _train_with_lightning(container, None, CallerConfig(), execution_config=asked)
        (trainer,) = recorded
        assert trainer.kwargs["accelerator"] == "gpu"
        assert trainer.kwargs["deterministic"] is False
        assert trainer.kwargs["gradient_clip_val"] == 1.0
        assert trainer.kwargs["max_epochs"] == 2
        assert trainer.fitted["train_dataloaders"].num_workers == 4
        assert trainer.fitted["train_dataloaders"].batch_size == 16
        assert isinstance(trainer.fitted["module"], StubModule)
        assert result["applied"]["num_workers"] == 4

    def test_execution_config_controls_determinism(
        self, recorded: list[RecordedTrainer], container: dict[str, Any]
    ) -> None:
        _train_with_lightning(container, None, CallerConfig(), execution_config=settings(deterministic=True))
        assert recorded[0].kwargs["deterministic"] is True
        _train_with_lightning(
            container, None, CallerConfig(), execution_config=settings(deterministic="warn")
        )
        assert recorded[1].kwargs["deterministic"] == "warn"

    def test_overrides_win_over_the_execution_config(
        self, recorded: list[RecordedTrainer], container: dict[str, Any]
    ) -> None:
        overrides = {"accum_steps": 3, "epochs": 5}
        _train_with_lightning(container, None, None, settings(accum_steps=2), overrides)
        assert recorded[0].kwargs["accumulate_grad_batches"] == 3
        assert recorded[0].kwargs["max_epochs"] == 5

    def test_a_misspelt_override_is_refused(self, container: dict[str, Any]) -> None:
        with pytest.raises(SettingsError, match="unknown override 'batch_sise'"):
            _train_with_lightning(container, None, None, settings(), {"batch_sise": 3})

    def test_missing_patterns_are_an_error_not_random_numbers(self) -> None:
        with pytest.raises(DataError, match="X"):
            _train_with_lightning({"coords_relative": np.zeros((4, 1, 2, 1))}, None, None, settings())


class TestInferenceExecutionConfig:
    def test_inference_uses_execution_batch_size(self) -> None:
        container = {
            "X": np.zeros((20, 64, 64), np.float32),
            "coords_nominal": np.zeros((20, 2), np.float32),
        }
        loader = _build_inference_dataloader(container, CallerConfig(), settings(inference_batch_size=2))
        assert loader.batch_size == 2
        assert [len(batch["amplitude"]) for batch in loader] == [2] * 10
        assert _build_inference_dataloader(container, CallerConfig(), settings()).batch_size == 16
        assert _build_inference_dataloader(container, CallerConfig(), settings(batch_size=5)).batch_size == 5

    def test_missing_patterns_are_an_error(self) -> None:
        with pytest.raises(DataError, match="X"):
            _build_inference_dataloader({"coords_nominal": np.zeros((3, 2))}, None, settings())

    def test_a_container_without_positions_cannot_be_stitched(self) -> None:
        scan = tiny_scan()
        module = ptycho_torch.model.PtychoPINN_Lightning(**small(), probe=scan.probe, intensity_scale=1.0)
        with pytest.raises(DataError, match="coords_nominal"):
            run_inference_with_lightning(module, {"X": np.ones((2, 32, 32), np.float32)}, None, settings())
