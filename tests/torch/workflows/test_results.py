"""What a training and an inference return: typed, readable as mappings, and summed up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptycho_torch.workflows.components import (
    _train_with_lightning,
    run_cdi_example_torch,
    run_inference_with_lightning,
)
from tests.torch.workflows.tiny_runs import science, settings


def test_results_are_typed_and_read_as_mappings_too(scan: Any) -> None:
    amplitude, _, results = run_cdi_example_torch(scan, None, science(), execution_config=settings())
    assert results["models"]["lightning_module"] is results.module
    assert {**results}["history"] is results.history
    assert results["inference"] is results.inference is not None
    assert results.inference["amplitude"] is amplitude
    assert results.inference.get("probe") is None
    results["note"] = "of the caller"
    assert dict(results)["note"] == "of the caller"
    with pytest.raises(KeyError):
        results["absent"]


def test_an_item_can_be_replaced_and_removed_and_is_the_attribute(scan: Any) -> None:
    made = run_inference_with_lightning(None, scan, None, settings(), {"start": "flat", "refine": 1})
    made["notices"] = ("seen",)
    assert made.notices == ("seen",)
    count = len(made)
    del made["times"]
    assert (len(made), "times" in made) == (count - 1, False)


def test_amplitude_and_phase_are_those_of_the_object(scan: Any) -> None:
    made = run_inference_with_lightning(None, scan, None, settings(), {"start": "flat", "refine": 1})
    assert (made.amplitude.dtype, made.phase.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(made.amplitude * np.exp(1j * made.phase), made.object, atol=1e-5)
    np.testing.assert_allclose(made.amplitude**2, made.object.real**2 + made.object.imag**2, rtol=1e-4)


def test_a_summary_counts_epochs_and_steps_and_has_the_last_metrics(scan: Any) -> None:
    result = _train_with_lightning(scan, None, science(epochs=3), settings(batch_size=12, accum_steps=2))
    summary = result.summary()
    batches = -(-len(scan) // 12)
    assert (summary["epochs"], summary["optimizer_steps"]) == (3, 3 * -(-batches // 2))
    assert summary["last"]["train_loss"] == result.history["train_loss"][2]
    assert summary["samples_per_second"] > 0
    result.history["empty"] = []
    assert "empty" not in result.summary()["last"]


def test_results_show_themselves_in_a_few_lines_and_as_figures(scan: Any) -> None:
    _, _, results = run_cdi_example_torch(scan, None, science(), execution_config=settings())
    assert len(repr(results)) < 200
    assert "last train_loss" in results._repr_html_()
    (losses,) = results.plot().axes
    assert list(losses.lines[0].get_ydata()) == results.history["train_loss"]
    made = results.inference
    assert f"{made.object.shape[0]} x {made.object.shape[1]}" in repr(made)
    assert made.verdict.status in made._repr_html_()
    amplitude, phase = made.plot().axes[:2]
    assert (amplitude.get_title(), phase.get_title()) == ("Amplitude", "Phase")
    assert {"plot", "summary", "history"} <= set(dir(results))
    assert {"object", "phase", "verdict"} <= set(made._ipython_key_completions_())
